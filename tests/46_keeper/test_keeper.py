"""The keeper's life: restarts, ends, giving up; what systemd is told."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import agentfs
from agentfs.cli.mounts import mount_at
from agentfs.config import profiles_dir
from agentfs.control import lock
from tests.conftest import children, run_agentfs, wait_until

Kill = Callable[[], int]


def test_stats_name_keeper_and_worker(mounted: Any) -> None:
    figures = mounted.stats()
    assert figures["keeper_pid"] == figures["pid"] == mounted.pid == lock.holder(mounted.store)
    assert figures["worker_pid"] in children(mounted.pid)


def test_the_keeper_is_small(mounted: Any) -> None:
    rollup = Path(f"/proc/{mounted.pid}/smaps_rollup").read_text()
    pss_kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
    assert pss_kib < 20_000


def test_a_restart_replaces_the_worker_and_programs_go_on(mounted: Any) -> None:
    before = mounted.stats()["worker_pid"]
    with (mounted.path / "file").open("w+b", buffering=0) as file:
        file.write(b"before")
        answer = json.loads(mounted.agentfs("restart", mounted.path, "--json"))
        assert answer["worker_before"] == before
        file.write(b", after")
        assert (mounted.path / "file").read_bytes() == b"before, after"
    assert mounted.stats()["worker_pid"] == answer["worker_pid"] != before
    assert "has handed over" in mounted.log()
    assert "another takes over" not in mounted.log()


def test_a_restart_takes_the_version_that_is_installed_by_then(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And one that does not start takes nothing: the old worker stays."""
    installed = tmp_path / "installed"
    source = Path(agentfs.__file__).parents[1]
    shutil.copytree(source / "agentfs", installed / "agentfs")
    shutil.copytree(profiles_dir(), installed / "mountpoints" / "profiles", dirs_exist_ok=True)
    monkeypatch.setenv("PYTHONPATH", str(installed))
    path, store = tmp_path / "mnt", tmp_path / "store"
    path.mkdir()
    assert run_agentfs("mount", path, "--store", store, "--mode", mode).returncode == 0
    try:
        main = installed / "agentfs" / "__init__.py"
        main.write_text(main.read_text().replace(agentfs.__version__, "99.0"))
        with (path / "file").open("w+b", buffering=0) as file:
            file.write(b"before")
            assert run_agentfs("restart", path).returncode == 0
            figures = json.loads(run_agentfs("stats", path, "--json").stdout)
            assert figures["version"] == "99.0"
            server = installed / "agentfs" / "keeper" / "forkserver.py"
            server.write_text("raise SystemExit('not this one')")
            done = run_agentfs("restart", path)
            assert done.returncode == 1
            assert "does not start" in done.stderr
            file.write(b", after")
        again = json.loads(run_agentfs("stats", path, "--json").stdout)
        assert again["worker_pid"] == figures["worker_pid"]
        assert (path / "file").read_bytes() == b"before, after"
    finally:
        run_agentfs("umount", path)


def test_a_worker_is_forked_by_a_fork_server_that_was_killed_and_replaced(
    mounted: Any, kill_worker: Kill
) -> None:
    worker = mounted.stats()["worker_pid"]
    (server,) = set(children(mounted.pid)) - {worker}
    os.kill(server, signal.SIGKILL)
    kill_worker()
    (mounted.path / "file").write_bytes(b"x")
    assert mounted.stats()["worker_pid"] != worker


def test_workers_that_die_at_once_are_given_up(mounted: Any) -> None:
    deadline = time.monotonic() + 30
    while mount_at(mounted.path) is not None and time.monotonic() < deadline:
        for child in children(mounted.pid):
            if not Path(f"/proc/{child}/cmdline").read_bytes():
                continue
            if child != _server(mounted.pid):
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    wait_until(lambda: lock.holder(mounted.store) is None)
    assert "5 workers in a row died within 1 s of their start" in mounted.log()
    assert mount_at(mounted.path) is None
    mounted.mount()
    (mounted.path / "file").write_bytes(b"x")


def _server(keeper: int) -> int:
    """The fork server: the oldest child."""
    return min(children(keeper))


def test_without_its_keeper_a_worker_goes_on(mounted: Any) -> None:
    worker = mounted.stats()["worker_pid"]
    os.kill(mounted.pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{mounted.pid}").exists())
    (mounted.path / "file").write_bytes(b"x")
    wait_until(lambda: mounted.stats()["keeper_pid"] is None)
    assert mounted.stats()["worker_pid"] == worker
    mounted.umount()
    mounted.mount()
    assert (mounted.path / "file").read_bytes() == b"x"


def test_sigterm_to_the_keeper_seals_and_unmounts(mounted: Any) -> None:
    (mounted.path / "file").write_bytes(b"x" * 1000)
    os.kill(mounted.pid, signal.SIGTERM)
    wait_until(lambda: lock.holder(mounted.store) is None)
    assert mount_at(mounted.path) is None
    figures = json.loads(run_agentfs("stats", mounted.store, "--json").stdout)
    assert figures["logical_bytes"] == 1000


def test_commands_wait_for_the_next_worker(mounted: Any, kill_worker: Kill) -> None:
    for _ in range(3):
        kill_worker()
        mounted.agentfs("sync", mounted.path)


def test_plain_mode_has_no_keeper_to_ask(tmp_path: Path) -> None:
    path, store = tmp_path / "mnt", tmp_path / "store"
    path.mkdir()
    run_agentfs("mount", path, "--store", store, "--mode", "plain")
    try:
        figures = json.loads(run_agentfs("stats", path, "--json").stdout)
        assert figures["keeper_pid"] is None
        assert figures["worker_pid"] == figures["pid"]
        done = run_agentfs("restart", path)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "relay mode" in done.stderr
    finally:
        run_agentfs("umount", path)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    """Stands in for systemd."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(20)
        yield listener


@contextlib.contextmanager
def serving(top: Path, mode: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A mount in the foreground with a watchdog of 0.3 s, as a service manager starts it."""
    path = top / "mnt"
    path.mkdir()
    arguments = ["mount", path, "--store", top / "store", "--foreground", "--mode", mode]
    service = subprocess.Popen(
        [sys.executable, "-m", "agentfs.cli", *map(str, arguments)],
        env=os.environ | {"NOTIFY_SOCKET": str(top / "notify"), "WATCHDOG_USEC": "300000"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield service, path
    finally:
        service.kill()
        service.wait()
        subprocess.run(["umount", "-l", path], check=False, capture_output=True)


@pytest.mark.parametrize("chosen", ["relay", "plain"])
def test_a_service_manager_is_told(
    chosen: str, mode: str, manager: socket.socket, tmp_path: Path
) -> None:
    with serving(tmp_path, chosen) as (service, path):
        told = [manager.recv(100).decode() for _ in range(4)]
        assert "READY=1" in told
        assert told.count("WATCHDOG=1") >= 3
        service.send_signal(signal.SIGTERM)
        assert service.wait(20) == 0
        assert mount_at(path) is None


def test_a_worker_that_does_not_answer_feeds_no_watchdog(
    mode: str, manager: socket.socket, tmp_path: Path
) -> None:
    with serving(tmp_path, "relay") as (service, path):
        while manager.recv(100) != b"READY=1":
            pass
        figures = json.loads(run_agentfs("stats", path, "--json").stdout)
        os.kill(figures["worker_pid"], signal.SIGSTOP)
        manager.settimeout(1.0)
        with pytest.raises(TimeoutError):
            while True:
                manager.recv(100)
        os.kill(figures["worker_pid"], signal.SIGCONT)
        manager.settimeout(20)
        assert manager.recv(100) == b"WATCHDOG=1"
        service.send_signal(signal.SIGTERM)
        assert service.wait(20) == 0
