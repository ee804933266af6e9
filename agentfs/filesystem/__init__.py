"""POSIX meaning: names, files, staging, sealing. No FUSE, and no bytes of chunks."""
