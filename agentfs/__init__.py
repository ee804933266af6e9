"""agentfs: a mounted directory for AI agents' files, where equal content is kept once."""

__version__ = "0.1.0"
