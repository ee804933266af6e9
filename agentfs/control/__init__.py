"""The daemon's side door: one socket and one lock in the store's directory."""
