"""A filesystem behind the relay, mounted in a process of its own; nothing here waits for ever."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.connection import Connection

REPLY_LIMIT_S = 20.0
TEST_LIMIT_S = 60


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.timeout(TEST_LIMIT_S))


def _why_not() -> str | None:
    try:
        from agentfs.fuse import _relay
    except ImportError:
        return "agentfs.fuse._relay is not built"
    if os.geteuid() != 0:
        return "needs root"
    return _relay.passthrough_available()


class Served:
    """The mounted filesystem, and a line to the process that serves it."""

    def __init__(self, path: Path, backing: Path, process: subprocess.Popen[str]) -> None:
        self.path = path
        self.backing = backing
        self.process = process
        self.connection: Connection | None = None

    def receive(self) -> Any:
        """What the process says next."""
        ready, _, _ = select.select([self.process.stdout], [], [], REPLY_LIMIT_S)
        assert ready, "the daemon says nothing"
        line = self.process.stdout.readline()
        assert line, "the daemon has ended"
        answer = json.loads(line)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def ask(self, expression: str) -> Any:
        """Evaluate *expression* there, with `fs` in scope."""
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return self.receive()

    def stats(self) -> dict[str, int]:
        return self.ask("fs.relay.stats()")

    def fill(self, name: str, size: int) -> bytes:
        """A backing file of random bytes."""
        content = os.urandom(size)
        (self.backing / name).write_bytes(content)
        return content

    def eventually(self, expression: str, wanted: Any) -> None:
        """RELEASE and FORGET come some time after close()."""
        deadline = time.monotonic() + REPLY_LIMIT_S
        while (value := self.ask(expression)) != wanted:
            assert time.monotonic() < deadline, f"{expression} is {value}, not {wanted}"
            time.sleep(0.01)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Mounts as often as it is called."""
    reason = _why_not()
    if reason is not None:
        pytest.skip(f"no relay here: {reason}")
    all_served: list[Served] = []
    with tempfile.TemporaryDirectory(dir="/dev/shm") as backing:

        def start(*options: str) -> Served:
            path = tmp_path / f"mnt{len(all_served)}"
            path.mkdir()
            command = [sys.executable, str(Path(__file__).parent / "relayed.py")]
            process = subprocess.Popen(
                [*command, str(path), backing, *options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            served = Served(path, Path(backing), process)
            assert served.receive() == "mounted"
            served.connection = Connection(path)
            served.connection.abort_after(TEST_LIMIT_S - 5)
            all_served.append(served)
            return served

        yield start
        for served in all_served:
            served.connection.abort()
            subprocess.run(["umount", "-l", served.path], check=False, stderr=subprocess.DEVNULL)
            served.connection.close()
            served.process.stdin.close()
            try:
                served.process.wait(REPLY_LIMIT_S)
            except subprocess.TimeoutExpired:
                served.process.kill()
                served.process.wait()
                raise
            finally:
                served.process.stdout.close()
            assert served.process.returncode == 0


@pytest.fixture
def served(serve: Callable[..., Served]) -> Served:
    """One mount with the usual two readers."""
    return serve()
