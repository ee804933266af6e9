"""The `agentfs` command: arguments in, exit codes out.

Nothing heavy is imported before it is needed: `agentfs version` is answered
without trio, pyfuse3 or rich.
"""

from __future__ import annotations

from agentfs.cli.entry import main, mount_helper

__all__ = ["main", "mount_helper"]
