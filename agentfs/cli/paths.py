"""Paths that commands are given: where they lead, in which mount, and who may.

The daemon asks nobody for rights: whoever may connect to its socket is root or its
own user. So that a command gives no more than a program could get through the mount,
what that would need is asked for here.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from agentfs.cli.mounts import mount_holding
from agentfs.errors import NoSuchPath, NotMounted, NotPermitted
from agentfs.machine.mountinfo import Mount


def resolved(path: str) -> Path:
    """Follow all links of a path that exists."""
    try:
        return Path(path).resolve(strict=True)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise NotMounted(f"the daemon behind {path} is dead; agentfs mount starts it") from None
        if error.errno == errno.EACCES:
            raise NotPermitted(f"you may not go to {path}") from None
        raise NoSuchPath(f"{path} is not there: {error.strerror}") from None
    except RuntimeError:  # so Python 3.11 and 3.12 say it
        raise NoSuchPath(f"{path} leads in a circle of links") from None


def located(path: Path, instead: str) -> tuple[Mount, str]:
    """The mount that a resolved path is in, and the path below that mount's root.

    :param instead: what to do with a path that is in none
    """
    mount = mount_holding(path)
    if mount is None or not mount.is_agentfs:
        raise NotMounted(f"{path} is not in an agentfs mount; {instead}")
    return mount, str(mount.root / path.relative_to(mount.mountpoint))


def check_rights(path: Path, wanted: int, verb: str) -> None:
    """:raises NotPermitted: the caller may not do that; *wanted* is as for access(2)"""
    if not os.access(path, wanted, effective_ids=True):
        raise NotPermitted(f"you may not {verb} {path}")
