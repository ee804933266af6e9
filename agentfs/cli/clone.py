"""`agentfs clone`: which mount the paths are in, who may, and what the daemon made.

The daemon asks nobody for rights: whoever may connect to its socket is root or its
own user. So that a clone gives no more than `cp -a` would, what a copy needs of the
source and of the directory of the destination is asked for here.
"""

from __future__ import annotations

import argparse
import errno
import os
from pathlib import Path

from agentfs.cli import output
from agentfs.cli.mounts import Mount, mount_holding
from agentfs.control import client
from agentfs.errors import NoSuchPath, NotMounted, NotPermitted, UsageError


def clone_command(arguments: argparse.Namespace) -> int:
    """Have a file or a tree cloned, and wait until every program sees it."""
    source = _resolved(arguments.source)
    above, name = os.path.split(os.path.abspath(arguments.destination))
    target = _resolved(above) / name
    mount, source_inside = _locate(source)
    target_mount, target_inside = _locate(target)
    if mount.store != target_mount.store:
        raise UsageError(f"{source} and {target} are in different mounts; copy with cp -a")
    if target == target_mount.mountpoint:
        raise UsageError(f"{target} is the mounted directory itself; name one in it")
    if not target.parent.is_dir():
        raise NoSuchPath(f"{target.parent} is not a directory")
    _check_rights(source, os.R_OK | (os.X_OK if source.is_dir() else 0), "read")
    _check_rights(target.parent, os.W_OK | os.X_OK, "write")
    request = {"source": source_inside, "target": target_inside, "replaces": arguments.force}
    with output.progress() as on_progress:
        result = client.call(mount.store, "clone", request, on_progress=on_progress)
    result = {"source": str(source), "destination": str(target)} | result
    things = f"{result['files']:,} files, {output.size(result['logical_bytes'])}"
    text = f"agentfs: {target} is a clone of {source} ({things}, {result['daemon_s']:.3f} s)"
    return output.answer(arguments.json, result, text)


def _resolved(path: str) -> Path:
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


def _locate(path: Path) -> tuple[Mount, str]:
    mount = mount_holding(path)
    if mount is None or not mount.is_agentfs:
        raise NotMounted(f"{path} is not in an agentfs mount; copy with cp -a")
    return mount, str(mount.root / path.relative_to(mount.mountpoint))


def _check_rights(path: Path, wanted: int, verb: str) -> None:
    if not os.access(path, wanted, effective_ids=True):
        raise NotPermitted(f"you may not {verb} {path}")
