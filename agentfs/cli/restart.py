"""`agentfs restart`: another worker, of the version on disk, goes on without unmounting."""

from __future__ import annotations

import argparse
import contextlib
import time

from agentfs.cli import output
from agentfs.cli.mounts import Target, find_target
from agentfs.control import client
from agentfs.errors import DaemonSilent, NotMounted

LIMIT_S = 60.0
_LOOK_EVERY_S = 0.02


def restart_command(arguments: argparse.Namespace) -> int:
    """Replace the worker as the arguments say; another one serves when this returns."""
    target = find_target(arguments.target)
    before, after = restart(target)
    value = {"store": str(target.store), "worker_before": before, "worker_pid": after}
    where = target.mountpoint or target.store
    return output.answer(
        arguments.json, value, f"agentfs: {where} is served by worker {after}, before by {before}"
    )


def restart(target: Target) -> tuple[int, int]:
    """Replace the worker; returns the pids before and after."""
    before = int(client.call(target.store, "stats")["worker_pid"])
    with contextlib.suppress(NotMounted):  # the one that was asked has gone
        client.call(target.store, "restart", is_repeatable=False)
    deadline = time.monotonic() + LIMIT_S
    while (after := int(client.call(target.store, "stats")["worker_pid"])) == before:
        if time.monotonic() > deadline:
            raise DaemonSilent(
                f"worker {before} was told to hand over and still serves after {LIMIT_S:g} s; "
                f"see {target.store}/daemon.log"
            )
        time.sleep(_LOOK_EVERY_S)
    return before, after
