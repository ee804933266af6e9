"""Each thing that can be wrong has its line, its exit code, and changes nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentfs.cli import checks
from agentfs.config import MountConfig, Profile
from agentfs.control import lock
from agentfs.errors import (
    FuseUnavailable,
    MountpointUnusable,
    NoSpace,
    NotMounted,
    ProfileInvalid,
    StoreBusy,
    StoreUnusable,
    UsageError,
)
from agentfs.index import Index
from fakes.machine import FakeMachine

Run = Callable[..., subprocess.CompletedProcess[str]]

NOBODY = 65534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a tmpfs takes root")


def tree(path: Path) -> list[str]:
    return sorted(str(entry) for entry in path.rglob("*"))


@pytest.fixture
def refused(tmp_path: Path, run: Run) -> Callable[..., str]:
    """Run a command that must fail with an exit code, in one line, and change nothing."""

    def check(exit_code: int, *arguments: str | Path) -> str:
        before = tree(tmp_path)
        done = run(*arguments)
        assert done.returncode == exit_code, done.stderr
        assert done.stdout == ""
        assert done.stderr.startswith("agentfs: ")
        assert done.stderr.count("\n") == 1
        assert tree(tmp_path) == before
        return done.stderr

    return check


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_missing_mountpoint(refused: Callable[..., str], tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    message = refused(MountpointUnusable.exit_code, "mount", missing, "--store", tmp_path / "store")
    assert f"mkdir {missing}" in message


def test_a_mountpoint_that_is_a_file(refused: Callable[..., str], tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    message = refused(MountpointUnusable.exit_code, "mount", file, "--store", tmp_path / "store")
    assert "is not a directory" in message


def test_a_mountpoint_that_is_busy(refused: Callable[..., str], tmp_path: Path) -> None:
    message = refused(MountpointUnusable.exit_code, "mount", "/proc", "--store", tmp_path / "s")
    assert "already a mountpoint (proc of proc)" in message


def test_a_store_path_that_is_a_file(
    refused: Callable[..., str], tmp_path: Path, mountpoint: Path
) -> None:
    file = tmp_path / "file"
    file.touch()
    for store in (file, file / "below"):
        message = refused(StoreUnusable.exit_code, "mount", mountpoint, "--store", store)
        assert f"{file} is not a directory" in message


def test_a_store_path_that_holds_other_files(
    refused: Callable[..., str], tmp_path: Path, mountpoint: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "photos" / "lock").touch()
    message = refused(StoreUnusable.exit_code, "mount", mountpoint, "--store", tmp_path / "photos")
    assert "is no agentfs store" in message


def test_a_store_below_the_mountpoint(refused: Callable[..., str], mountpoint: Path) -> None:
    message = refused(
        MountpointUnusable.exit_code, "mount", mountpoint, "--store", mountpoint / "store"
    )
    assert "keep them apart" in message


def test_a_mountpoint_inside_the_store(tmp_path: Path, run: Run) -> None:
    store = tmp_path / "store"
    (store / "segments").mkdir(parents=True)
    done = run("mount", store / "segments", "--store", store)
    assert done.returncode == MountpointUnusable.exit_code


def test_a_store_that_is_mounted_elsewhere(
    refused: Callable[..., str], tmp_path: Path, mountpoint: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    held = lock.hold(store)
    try:
        message = refused(StoreBusy.exit_code, "mount", mountpoint, "--store", store)
    finally:
        os.close(held)
    assert f"pid {os.getpid()}" in message
    assert f"agentfs umount {store}" in message


def test_an_unknown_profile_and_an_unknown_key(
    refused: Callable[..., str], tmp_path: Path, mountpoint: Path
) -> None:
    code = ProfileInvalid.exit_code
    store = tmp_path / "store"
    message = refused(code, "mount", mountpoint, "--store", store, "--profile", "fast")
    assert "archive, default, small-machine" in message
    profile = tmp_path / "mine.toml"
    profile.write_text("[seal]\nrest = 1\n")
    message = refused(code, "mount", mountpoint, "--store", store, "--profile", profile)
    assert "nearest is seal.rest_s" in message
    for size in ("much", "-1", "65536 TiB"):
        message = refused(code, "mount", mountpoint, "--store", store, f"--hot-bytes={size}")
        assert message.startswith("agentfs: --hot-bytes: hot.bytes")


@needs_root
def test_a_full_disk(refused: Callable[..., str], small_disk: Path, mountpoint: Path) -> None:
    message = refused(
        NoSpace.exit_code, "mount", mountpoint, "--store", small_disk / "deep" / "store"
    )
    assert "1.00 MiB free, agentfs needs 16.0 MiB" in message


@needs_root
def test_a_disk_that_is_read_only(
    refused: Callable[..., str], small_disk: Path, mountpoint: Path
) -> None:
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    message = refused(StoreUnusable.exit_code, "mount", mountpoint, "--store", small_disk / "store")
    assert f"no right to write in {small_disk}" in message


@pytest.mark.parametrize("command", ["umount", "sync", "stats", "gc"])
def test_a_directory_that_is_no_mount(
    refused: Callable[..., str], tmp_path: Path, command: str
) -> None:
    message = refused(NotMounted.exit_code, command, tmp_path)
    assert "neither an agentfs mountpoint nor a store" in message


@pytest.mark.parametrize(
    "arguments",
    [[], ["moutn"], ["mount", "--stor", "x"], ["mount", "a", "b"], ["completion", "fish"]],
)
def test_a_command_line_that_makes_no_sense(run: Run, arguments: list[str]) -> None:
    done = run(*arguments)
    assert done.returncode == UsageError.exit_code
    assert "usage: agentfs" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_in_json_is_an_object_and_a_line(run: Run, tmp_path: Path) -> None:
    done = run("stats", tmp_path, "--json")
    assert done.returncode == NotMounted.exit_code
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == NotMounted.exit_code
    assert done.stderr == f"agentfs: {answer['error']}\n"


def test_a_reader_that_has_enough_is_no_error(environment: dict[str, str]) -> None:
    script = f"{sys.executable} -m agentfs.cli completion bash | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""


# What a machine lacks cannot be taken from this one, so these ask the checks themselves.


@pytest.fixture
def config(tmp_path: Path, mountpoint: Path) -> MountConfig:
    return MountConfig(tmp_path / "store", mountpoint, Profile("default"), foreground=False)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """What the checks look at: a good machine, as root sees it."""
    fake = FakeMachine(tmp_path / "machine")
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr(checks, "Machine", lambda: fake)
    return fake


def test_a_good_machine_passes(machine: FakeMachine) -> None:
    checks.check_fuse(allow_other=True)
    machine.as_user()
    checks.check_fuse(allow_other=True)


def test_no_fuse_device(config: MountConfig, machine: FakeMachine) -> None:
    machine.remove("/dev/fuse")
    with pytest.raises(FuseUnavailable, match="modprobe fuse"):
        checks.check_all(config)


def test_no_right_to_open_the_fuse_device(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "may_use", lambda _path: False)
    with pytest.raises(FuseUnavailable, match="chmod 666"):
        checks.check_fuse(allow_other=False)


def test_no_fusermount3(machine: FakeMachine) -> None:
    machine.as_user().remove("/usr/bin/fusermount3")
    with pytest.raises(FuseUnavailable, match="apt-get install fuse3"):
        checks.check_fuse(allow_other=False)


def test_allow_other_without_the_line_in_fuse_conf(machine: FakeMachine) -> None:
    machine.as_user().set("/etc/fuse.conf", "#user_allow_other")
    with pytest.raises(FuseUnavailable, match="user_allow_other"):
        checks.check_fuse(allow_other=True)
    checks.check_fuse(allow_other=False)


def test_a_mountpoint_of_another_user(config: MountConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(checks.os, "access", lambda *_: False)
    with pytest.raises(MountpointUnusable, match="belongs to another user"):
        checks.check_mountpoint(config.mountpoint, config.store)


def test_root_in_a_container_without_the_capability(machine: FakeMachine) -> None:
    machine.set("/proc/self/status", "CapEff:\t00000000a80425fb")
    with pytest.raises(FuseUnavailable, match="CAP_SYS_ADMIN"):
        checks.check_fuse(allow_other=True)


@needs_root
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for kind in ("symbolic link", "hard link", "another user's")
        for name in ("index.db", "daemon.log", "lock", "boot", "control", "segments", "staging")
        if name not in ("segments", "staging") or kind != "hard link"
    ],
)
@pytest.mark.parametrize("command", ["mount", "fsck", "fsck --repair"])
def test_a_name_in_the_store_that_others_may_have_put_there(
    refused: Callable[..., str],
    tmp_path: Path,
    mountpoint: Path,
    name: str,
    kind: str,
    command: str,
) -> None:
    is_directory = name in ("segments", "staging")
    store, victim = tmp_path / "store", tmp_path / "victim"
    store.mkdir()
    Index(store).close()
    planted = store / name
    planted.unlink(missing_ok=True)
    if is_directory:
        victim.mkdir()
    else:
        victim.write_bytes(b"untouched")
    if kind == "symbolic link":
        planted.symlink_to(victim)
    elif kind == "hard link":
        os.link(victim, planted)
    else:
        victim = victim.rename(planted)
        os.chown(planted, NOBODY, NOBODY)
    target = [mountpoint, "--store", store] if command == "mount" else [store]
    message = refused(StoreUnusable.exit_code, *command.split(), *target)
    assert str(planted) in message
    assert "belongs to another user" in message or "leads out of the store" in message
    assert is_directory or victim.read_bytes() == b"untouched"


@needs_root
@pytest.mark.parametrize("command", ["mount", "fsck --repair"])
def test_a_store_of_another_user(
    refused: Callable[..., str], tmp_path: Path, mountpoint: Path, command: str
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    Index(store).close()
    os.chown(store, NOBODY, NOBODY)
    target = [mountpoint, "--store", store] if command == "mount" else [store]
    message = refused(StoreUnusable.exit_code, *command.split(), *target)
    assert "run agentfs as that user" in message


def test_a_store_that_others_may_enter_is_closed_when_it_is_held(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    Index(store).close()
    store.chmod(0o777)
    os.close(lock.hold(store))
    assert store.stat().st_mode & 0o777 == 0o700


REFUSING_FUSERMOUNT = """
import sys
import pyfuse3
from agentfs.cli.entry import main

def refuse(*_):
    raise RuntimeError("fuse_session_mount failed")

pyfuse3.init = refuse
sys.exit(main())
"""


def test_a_mount_that_fusermount3_refuses(tmp_path: Path) -> None:
    mountpoint = tmp_path / "agentmem"
    mountpoint.mkdir()
    command = ["mount", "--mode", "plain", "--store", tmp_path / "store", mountpoint]
    done = subprocess.run(
        [sys.executable, "-c", REFUSING_FUSERMOUNT, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == FuseUnavailable.exit_code, done.stderr
    assert done.stdout == ""
    why = f"{mountpoint} could not be mounted: fuse_session_mount failed; see the log"
    assert done.stderr == f"agentfs: {why}\n"
