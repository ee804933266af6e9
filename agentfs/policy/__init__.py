"""What to do when: decisions without mechanism."""
