"""How a daemon starts, fails to start, is asked, and ends; with a daemon that mounts nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentfs.cli.mounting import umount
from agentfs.cli.mounts import Target
from agentfs.control import client, lock
from agentfs.errors import (
    DaemonSilent,
    FilesOpen,
    NotMounted,
    StoreBusy,
    StoreNewer,
)

Run = Callable[..., subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK),
    reason="the checks before a mount want a /dev/fuse that this user may open",
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "store"
    yield path
    pid = lock.holder(path)
    if pid:
        os.kill(pid, signal.SIGKILL)


@pytest.fixture
def started(run_fake: Run, store: Path, mountpoint: Path) -> Callable[[str], int]:
    """Start a fake daemon of some behaviour; returns its pid."""

    def start(behaviour: str) -> int:
        done = run_fake("mount", mountpoint, "--store", store, "--json", behaviour=behaviour)
        assert done.returncode == 0, done.stderr
        pid: int = json.loads(done.stdout)["pid"]
        return pid

    return start


def test_mount_returns_when_the_daemon_is_ready(
    run_fake: Run, store: Path, mountpoint: Path
) -> None:
    done = run_fake("mount", mountpoint, "--store", store, behaviour="ready")
    pid = lock.holder(store)
    assert done.stdout == (
        f"agentfs: {mountpoint} is mounted (plain mode), store {store}, pid {pid}\n"
    )
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_daemon_is_one(started: Callable[[str], int], store: Path) -> None:
    """No terminal, no session of its own, no folder kept busy, nothing inherited."""
    pid = started("ready")
    process = Path(f"/proc/{pid}")
    assert os.readlink(process / "cwd") == "/"
    assert os.getsid(pid) != pid
    assert os.getsid(pid) != os.getsid(0)
    assert os.readlink(process / "fd/0") == "/dev/null"
    assert os.readlink(process / "fd/1") == os.readlink(process / "fd/2") == f"{store}/daemon.log"
    pipes = [os.readlink(fd) for fd in (process / "fd").iterdir()]
    assert not [link for link in pipes if link.startswith("pipe:")]
    assert "Umask:\t0077" in (process / "status").read_text()


def test_a_daemon_that_refuses_gives_its_line_and_code(
    run_fake: Run, store: Path, mountpoint: Path
) -> None:
    done = run_fake("mount", mountpoint, "--store", store, behaviour="refuse")
    assert done.returncode == StoreNewer.exit_code
    assert done.stderr == "agentfs: the store is of a newer version\n"
    assert not store.exists()


def test_a_mount_that_failed_removes_no_store_it_did_not_make(
    run_fake: Run, store: Path, mountpoint: Path
) -> None:
    store.mkdir()
    run_fake("mount", mountpoint, "--store", store, behaviour="refuse")
    assert (store / "daemon.log").exists()


def test_an_unexpected_error_is_one_line_and_its_traceback_is_in_the_log(
    run_fake: Run, store: Path, mountpoint: Path
) -> None:
    done = run_fake("mount", mountpoint, "--store", store, behaviour="crash")
    assert done.returncode == 1
    assert done.stderr == (
        "agentfs: unexpected ZeroDivisionError: something nobody expected; "
        f"see {store}/daemon.log\n"
    )
    assert "Traceback" in (store / "daemon.log").read_text()
    done = run_fake("mount", mountpoint, "--store", store, behaviour="ready")
    assert done.returncode == 0, "what a failed start left behind is no obstacle"


def test_a_daemon_that_dies_at_its_start_is_noticed(
    run_fake: Run, store: Path, mountpoint: Path
) -> None:
    done = run_fake("mount", mountpoint, "--store", store, behaviour="vanish")
    assert done.returncode == 1
    assert f"died while it started; see {store}/daemon.log" in done.stderr


def test_an_unexpected_error_in_the_foreground_is_one_line_without_debug(
    run_fake: Run, store: Path, mountpoint: Path
) -> None:
    done = run_fake("mount", mountpoint, "--store", store, "--foreground", behaviour="crash")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "AGENTFS_DEBUG=1" in done.stderr


def test_a_second_daemon_of_one_store_is_refused(
    started: Callable[[str], int], run_fake: Run, store: Path, mountpoint: Path
) -> None:
    pid = started("ready")
    done = run_fake("mount", mountpoint, "--store", store, behaviour="ready")
    assert done.returncode == StoreBusy.exit_code
    assert f"pid {pid}" in done.stderr


def test_commands_reach_the_daemon_by_its_store(
    started: Callable[[str], int], run: Run, store: Path
) -> None:
    pid = started("ready")
    (store / "index.db").touch()
    figures = json.loads(run("stats", store, "--json").stdout)
    assert figures["pid"] == pid
    assert figures["files"] == 7
    shown = run("stats", store)
    assert "7 files" in shown.stdout
    assert shown.returncode == 0
    assert run("sync", store).stdout == "agentfs: everything is sealed and on disk\n"
    assert "2.00 KiB given back" in run("gc", store).stdout


def test_umount_returns_when_the_store_is_free(started: Callable[[str], int], store: Path) -> None:
    started("ready")
    assert umount(Target(store, None)) == "stopped"
    assert lock.holder(store) is None


def test_umount_of_a_mount_in_use_leaves_it(started: Callable[[str], int], store: Path) -> None:
    started("busy")
    with pytest.raises(FilesOpen):
        umount(Target(store, None))
    assert lock.holder(store) is not None


def test_umount_of_what_is_not_mounted_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotMounted, match="nothing to do"):
        umount(Target(tmp_path, None))


def test_a_daemon_that_hangs_is_told_from_one_that_works(
    started: Callable[[str], int], store: Path
) -> None:
    started("stuck")
    begin = time.monotonic()
    with pytest.raises(DaemonSilent):
        client.call(store, "stats", silence_s=0.5)
    assert time.monotonic() - begin < 5


def test_a_daemon_that_dies_while_asked_is_an_error(
    started: Callable[[str], int], store: Path
) -> None:
    started("ready")
    with pytest.raises(NotMounted, match=r"ended before it answered; see .*daemon\.log"):
        client.call(store, "die")


def test_a_log_that_has_grown_is_put_aside(
    started: Callable[[str], int], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.mkdir()
    (store / "daemon.log").write_bytes(b"x" * (5 << 20))
    started("ready")
    assert (store / "daemon.log.1").stat().st_size == 5 << 20
    assert (store / "daemon.log").stat().st_size < 10_000
