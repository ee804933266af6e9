"""Screens that are drawn again and again: on a terminal, in a pipe, while it is resized."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agentfs.errors import NotMounted
from agentfs.index import Index

ENTER, LEAVE = b"\x1b[?1049h", b"\x1b[?1049l"
"""The alternate screen of a terminal."""

LIMIT_S = 30.0


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store that is not mounted."""
    path = tmp_path / "store"
    path.mkdir()
    Index(path).close()
    (path / "segments").mkdir()
    return path


class Terminal:
    """A command that has a terminal of its own."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self.master, slave = pty.openpty()
        self.resize(24, 80)
        self.settings = termios.tcgetattr(slave)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "agentfs.cli", *arguments],
            stdin=slave, stdout=slave, stderr=slave, env=environment, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # and so Ctrl-C and resizes
        )  # fmt: skip
        self.slave = slave

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def read_until(self, wanted: bytes) -> bytes:
        """What is drawn from here on, up to and with *wanted*."""
        seen, deadline = b"", time.monotonic() + LIMIT_S
        while wanted not in seen:
            left_s = deadline - time.monotonic()
            assert left_s > 0, seen
            if select.select([self.master], [], [], left_s)[0]:
                seen += os.read(self.master, 65536)
        return seen

    def end(self) -> int:
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def watched(store: Path, environment: dict[str, str]) -> Iterator[Terminal]:
    """`agentfs stats --watch` on a terminal, drawn for the first time."""
    arguments = ["stats", str(store), "--watch", "0.2"]
    terminal = Terminal(arguments, environment | {"TERM": "xterm-256color"})
    first = terminal.read_until(b"logical")
    assert ENTER in first
    yield terminal
    terminal.close()


@pytest.mark.parametrize("key", [b"q", b"Q", b"\x03"])
def test_q_and_ctrl_c_end_it_and_give_the_terminal_back(watched: Terminal, key: bytes) -> None:
    os.write(watched.master, key)
    watched.read_until(LEAVE)
    assert watched.end() == 0
    assert termios.tcgetattr(watched.slave) == watched.settings


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_gives_the_terminal_back(watched: Terminal, number: int) -> None:
    watched.process.send_signal(number)
    watched.read_until(LEAVE)
    assert watched.end() == 128 + number
    assert termios.tcgetattr(watched.slave) == watched.settings


def test_other_keys_do_nothing(watched: Terminal) -> None:
    os.write(watched.master, b"x\x1b[A ")
    watched.read_until(b"logical")
    assert watched.process.poll() is None


def test_it_is_drawn_anew_when_the_terminal_is_resized(
    store: Path, environment: dict[str, str]
) -> None:
    """The next frame is an hour away, but a resize does not wait for it."""
    terminal = Terminal(
        ["stats", str(store), "--watch", "3600"], environment | {"TERM": "xterm-256color"}
    )
    try:
        terminal.read_until(b"daemon")
        for rows, columns in ((60, 200), (3, 20), (1, 1), (24, 80)):
            terminal.resize(rows, columns)
            frame = terminal.read_until(b"\x1b[H")
            assert b"Traceback" not in frame
        os.write(terminal.master, b"q")
        terminal.read_until(LEAVE)
        assert terminal.end() == 0
    finally:
        terminal.close()


def test_a_terminal_that_knows_no_codes_gets_none(store: Path, environment: dict[str, str]) -> None:
    terminal = Terminal(["stats", str(store), "--watch", "0.1"], environment | {"TERM": "dumb"})
    try:
        seen = terminal.read_until(b"logical") + terminal.read_until(b"logical")
        assert b"\x1b" not in seen
        os.write(terminal.master, b"\x03")
        assert terminal.end() == 0
    finally:
        terminal.close()


def test_a_pipe_gets_one_frame_after_the_other(store: Path, environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "agentfs.cli", "stats", str(store), "--watch", "0.1"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        seen = [process.stdout.readline() for _ in range(40)]
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 0
        assert sum(b"logical" in line for line in seen) >= 3
        assert not any(b"\x1b" in line for line in seen)
        assert process.stderr.read() == b""


def test_a_reader_that_has_gone_ends_it(store: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        ["sh", "-c", '"$0" -m agentfs.cli stats "$1" --watch 0.1 | head -n 3',
         sys.executable, str(store)],
        capture_output=True, text=True, timeout=LIMIT_S, env=environment, check=True,
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 3
    assert done.stderr == ""


def test_json_is_one_object_a_line(store: Path, environment: dict[str, str]) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "agentfs.cli", "stats", str(store), "--watch", "0.1", "--json"],
        stdout=subprocess.PIPE, env=environment,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for _ in range(3):
            assert json.loads(process.stdout.readline())["mode"] == "unmounted"
        process.send_signal(signal.SIGINT)
        assert process.wait(LIMIT_S) == 0


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon", "1e9"])
@pytest.mark.parametrize("command", [("stats", "--watch"), ("top", "--interval")])
def test_seconds_that_are_none(run: Any, command: tuple[str, str], seconds: str) -> None:
    done = run(command[0], f"{command[1]}={seconds}")
    assert done.returncode == 2
    assert "is not a number of seconds" in done.stderr


def test_top_of_a_store_that_is_not_mounted(run: Any, store: Path) -> None:
    done = run("top", store)
    assert done.returncode == NotMounted.exit_code
    assert done.stderr.count("\n") == 1


def test_top_shows_agents_in_the_order_asked_for(mounted: Any, environment: Any) -> None:
    for name, size in (("small", 1000), ("large", 30_000), ("middle", 2000)):
        (mounted.path / "agents" / name).mkdir(parents=True)
        (mounted.path / "agents" / name / "prompt").write_bytes(os.urandom(size))
    for order, expected in (
        ("logical", ["large", "middle", "small"]),
        ("name", ["large", "middle", "small"]),
    ):
        with subprocess.Popen(
            [sys.executable, "-m", "agentfs.cli", "top", str(mounted.path), "--json",
             "--interval", "0.1", "--sort", order],
            stdout=subprocess.PIPE, env=environment,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            figures = json.loads(process.stdout.readline())
            process.send_signal(signal.SIGINT)
            process.wait(LIMIT_S)
        assert [agent["name"] for agent in figures["agents"]] == expected
        assert {agent["state"] for agent in figures["agents"]} == {"active"}


def test_top_fits_any_terminal(mounted: Any, environment: dict[str, str]) -> None:
    for number in range(40):
        (mounted.path / "agents" / f"agent-{number:02}").mkdir(parents=True)
    terminal = Terminal(
        ["top", str(mounted.path), "--sort", "name"], environment | {"TERM": "xterm-256color"}
    )
    try:
        frame = terminal.read_until(b"more")
        assert b"agent-00" in frame
        assert b"agent-39" not in frame
        terminal.resize(60, 100)
        terminal.read_until(b"agent-39")
        mounted.umount()
        terminal.read_until(LEAVE)
        assert terminal.end() == NotMounted.exit_code
    finally:
        terminal.close()
