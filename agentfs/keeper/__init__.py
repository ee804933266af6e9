"""The process that a mount's workers come and go under. docs/RELAY.md, "The keeper"."""
