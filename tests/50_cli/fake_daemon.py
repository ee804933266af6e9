"""`agentfs` with a daemon that mounts nothing, but starts, answers or fails as told.

FAKE_DAEMON names the behaviour: ready, refuse, crash, vanish, busy, stuck.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Callable
from typing import Any

from agentfs.cli import main
from agentfs.config import MountConfig
from agentfs.control import lock
from agentfs.errors import FilesOpen, StoreNewer


def run(config: MountConfig, reason: str, ready: Callable[[dict[str, Any]], None]) -> int:
    """Stand in for agentfs.mount.run and for the keeper's."""
    behaviour = os.environ["FAKE_DAEMON"]
    if behaviour == "refuse":
        raise StoreNewer("the store is of a newer version")
    if behaviour == "crash":
        raise ZeroDivisionError("something\nnobody expected")
    if behaviour == "vanish":
        os._exit(9)
    held = lock.hold(config.store)
    if behaviour == "stuck":
        import socket
        import time

        listener = socket.socket(socket.AF_UNIX)
        os.chdir(config.store)
        listener.bind("control")
        listener.listen(1)
        ready({"mode": "plain"})
        time.sleep(30)  # and never accepts
        return 0
    code = _answer_until_stopped(config, ready, behaviour)
    os.close(held)
    return code


def _answer_until_stopped(
    config: MountConfig, ready: Callable[[dict[str, Any]], None], behaviour: str
) -> int:
    import trio

    from agentfs.control import server

    async def body() -> None:
        async with trio.open_nursery() as nursery:

            async def stop(_args: dict[str, Any], _progress: Any) -> dict[str, Any]:
                if behaviour == "busy":
                    raise FilesOpen(f"{config.mountpoint} is in use")
                nursery.cancel_scope.cancel()
                return {}

            async def work(_args: dict[str, Any], progress: Any) -> dict[str, Any]:
                progress("files", 1, 2)
                return {"stored_bytes": 2048}

            async def stats(_args: dict[str, Any], _progress: Any) -> dict[str, Any]:
                return {
                    "files": 7,
                    "logical_bytes": 4000,
                    "unique_bytes": 2000,
                    "stored_bytes": 1000,
                    "pid": os.getpid(),
                    "mode": "plain",
                    "mode_reason": "there is no kernel below it",
                }

            async def die(_args: dict[str, Any], _progress: Any) -> dict[str, Any]:
                os._exit(1)

            handlers = {"stop": stop, "gc": work, "sync": work, "stats": stats, "die": die}
            await nursery.start(server.serve, config.store, handlers)
            ready({"mode": "plain"})
            nursery.start_soon(_end_after, nursery)

    async def _end_after(nursery: trio.Nursery) -> None:
        await trio.sleep(60)  # a test that fails must not leave a daemon for long
        nursery.cancel_scope.cancel()

    trio.run(body)
    return 0


if __name__ == "__main__":
    module = types.ModuleType("agentfs.mount")
    module.run = run  # type: ignore[attr-defined]
    sys.modules["agentfs.mount"] = sys.modules["agentfs.keeper.keeper"] = module
    sys.exit(main())
