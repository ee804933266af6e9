"""Where requests of the kernel come in. The only package that knows pyfuse3."""
