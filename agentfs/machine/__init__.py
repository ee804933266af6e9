"""The machine below a mount: what the kernel has, what it is set to, and setting it."""
