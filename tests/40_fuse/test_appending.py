"""Conversations: files that are opened, appended to and closed again and again."""

from __future__ import annotations

import os
import random
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_until

AGENT = 1000


def append(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        assert os.write(fd, data) == len(data)
    finally:
        os.close(fd)


def grow(path: Path, turns: int = 8) -> bytes:
    """A conversation by its first few turns."""
    path.write_bytes(b"")
    for turn in range(turns):
        append(path, b"turn %d\n" % turn)
    return path.read_bytes()


def test_each_turn_is_seen_at_once_and_stays(mounted: Any) -> None:
    path = mounted.path / "talk"
    text = b""
    path.write_bytes(text)
    with path.open("rb", buffering=0) as follower:
        for turn in range(50):
            line = b"%d: %s\n" % (turn, b"x" * turn)
            append(path, line)
            text += line
            assert follower.read(1000) == line
            assert path.stat().st_size == os.fstat(follower.fileno()).st_size == len(text)
            assert path.read_bytes() == text
    mounted.remount()
    assert path.read_bytes() == text


def test_the_relay_answers_turns_alone(mounted: Any, mode: str) -> None:
    if mode != "relay":
        pytest.skip("without the relay all requests come to Python")
    path = mounted.path / "talk"
    text = grow(path)
    before = mounted.stats()["relay"]["answered_open"]
    for turn in range(10):
        append(path, b"again %d\n" % turn)
        text += b"again %d\n" % turn
    assert mounted.stats()["relay"]["answered_open"] - before >= 10
    assert path.read_bytes() == text


def test_several_programs_append_to_one_file(mnt: Path) -> None:
    path = mnt / "log"
    grow(path)
    path.write_bytes(b"")

    def write(number: int) -> None:
        for turn in range(200):
            append(path, b"%d %d\n" % (number, turn))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    lines = path.read_bytes().splitlines()
    assert sorted(lines) == sorted(b"%d %d" % (n, t) for n in range(4) for t in range(200))
    for number in range(4):
        mine = [line for line in lines if line.startswith(b"%d " % number)]
        assert mine == [b"%d %d" % (number, turn) for turn in range(200)], "in its order"


@pytest.mark.usefixtures("as_root", "open_to_all")
def test_rights_that_are_taken_away_are_gone(mnt: Path, run_as: Any) -> None:
    path = mnt / "talk"
    text = grow(path)
    path.chmod(0o666)
    once = "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND); os.write(fd, b'agent')"
    for _ in range(3):
        run_as(AGENT, once, path)
    path.chmod(0o644)
    refused = "\ntry:\n os.open(sys.argv[1], os.O_WRONLY)\nexcept PermissionError: print('refused')"
    assert run_as(AGENT, refused, path) == "refused\n"
    path.chmod(0o4666)
    run_as(AGENT, once, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666, "who writes takes set-id bits away"
    assert path.read_bytes() == text + 4 * b"agent"


def test_other_names_and_other_files_are_theirs(mnt: Path) -> None:
    path, link, other = mnt / "talk", mnt / "link", mnt / "other"
    text = grow(path)
    os.link(path, link)
    append(link, b"by its other name\n")
    text += b"by its other name\n"
    assert path.read_bytes() == link.read_bytes() == text
    path.rename(other)
    append(other, b"renamed\n")
    text += b"renamed\n"
    assert link.read_bytes() == text
    assert grow(path, 4) == b"turn 0\nturn 1\nturn 2\nturn 3\n"
    fd = os.open(other, os.O_WRONLY | os.O_APPEND)
    other.unlink()
    link.unlink()
    os.write(fd, b"to nobody")
    assert os.fstat(fd).st_size == len(text) + len(b"to nobody")
    os.close(fd)
    assert sorted(entry.name for entry in mnt.iterdir() if entry.name != ".agentfs") == ["talk"]


def test_truncated_and_written_anew_between_turns(mnt: Path) -> None:
    path = mnt / "talk"
    grow(path)
    os.truncate(path, 7)
    append(path, b"second")
    assert path.read_bytes() == b"turn 0\nsecond"
    path.write_bytes(b"anew\n")
    append(path, b"and on")
    assert path.read_bytes() == b"anew\nand on"
    with path.open("r+b", buffering=0) as file:
        file.write(b"ANEW")
        os.ftruncate(file.fileno(), 6)
    assert path.read_bytes() == b"ANEW\na"


@pytest.mark.timeout(180)
def test_whatever_else_is_done_to_it_no_turn_is_lost(mounted: Any) -> None:
    rng = random.Random(20)
    root = mounted.path
    texts: dict[str, bytes] = {}
    forks = 0

    def fork(name: str) -> None:
        nonlocal forks
        forks += 1
        mounted.agentfs("clone", root / name, root / f"fork {forks}")
        texts[f"fork {forks}"] = texts[name]

    def begin(name: str) -> None:
        (root / name).write_bytes(b"")
        texts[name] = b""

    def end(name: str) -> None:
        (root / name).unlink()
        del texts[name]
        begin(name)

    def rename(name: str) -> None:
        other = rng.choice(list(texts))
        (root / name).rename(root / other)
        texts[other] = texts[name]
        if other != name:
            del texts[name]
            begin(name)

    def cut(name: str) -> None:
        size = rng.randrange(len(texts[name]) + 1)
        os.truncate(root / name, size)
        texts[name] = texts[name][:size]

    def overwrite(name: str) -> None:
        with (root / name).open("r+b", buffering=0) as file:
            file.write(b"begin")
        texts[name] = b"begin" + texts[name][5:]

    def replace(name: str) -> None:
        (root / "new").write_bytes(b"replaced\n")
        (root / "new").rename(root / name)
        texts[name] = b"replaced\n"

    def settle(name: str) -> None:
        if rng.random() < 0.3:
            mounted.agentfs("sync", root)

    def synced(name: str) -> None:
        fd = os.open(root / name, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"synced\n")
        os.fsync(fd)
        os.close(fd)
        texts[name] += b"synced\n"

    others = [fork, end, rename, cut, overwrite, replace, settle, synced]
    for name in ("one", "two", "three"):
        begin(name)
    for number in range(400):
        name = rng.choice(list(texts))
        for turn in range(rng.randrange(6)):
            line = b"%d %d %s\n" % (number, turn, b"-" * rng.randrange(200))
            append(root / name, line)
            texts[name] += line
        if rng.random() < 0.25:
            rng.choice(others)(name)
        name = rng.choice(list(texts))
        assert (root / name).stat().st_size == len(texts[name])
        assert (root / name).read_bytes() == texts[name]
    assert {name: (root / name).read_bytes() for name in texts} == texts
    mounted.remount()
    assert {name: (root / name).read_bytes() for name in texts} == texts
    assert "Traceback" not in mounted.log()


@pytest.mark.usefixtures("as_root", "open_to_all")
def test_who_was_let_in_takes_set_id_bits_away(mnt: Path, script: Any) -> None:
    path = mnt / "talk"
    text = grow(path)
    path.chmod(0o666)
    for _ in range(3):
        append(path, b".")
    code = (
        "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND); print(flush=True);"
        "input(); os.write(fd, b'agent')"
    )
    child = script(code, path, uid=AGENT)
    child.stdout.readline()
    path.chmod(0o4666)
    child.communicate("\n", timeout=20)
    wait_until(lambda: stat.S_IMODE(path.stat().st_mode) == 0o666)
    assert path.read_bytes() == text + b"...agent"


def test_what_was_synced_survives_a_power_cut(mounted: Any) -> None:
    path = mounted.path / "talk"
    text = grow(path)
    for turn in range(3):
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"synced %d\n" % turn)
        text += b"synced %d\n" % turn
        os.fsync(fd)
        os.close(fd)
    append(path, b"not synced")
    mounted.kill()
    mounted.lose_tmpfs()
    mounted.mount()
    assert path.read_bytes() == text
