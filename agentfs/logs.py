"""Where log records go."""

from __future__ import annotations

import logging
import os
import sys


def log_to_stderr() -> None:
    """Send the daemon's log records to stderr, one line each, with time and level."""
    logging.basicConfig(
        level=logging.DEBUG if os.environ.get("AGENTFS_DEBUG") == "1" else logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
        force=True,
    )
