"""The commands against a real daemon and a real mount."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentfs.cli.mounts import all_mounts, mount_at
from agentfs.control import lock
from agentfs.errors import (
    DamageFound,
    FilesOpen,
    MountpointUnusable,
    NotMounted,
    StoreBusy,
    StoreDamaged,
    StoreNewer,
)
from agentfs.index.connection import connect
from fakes.damage import flip_in_log

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]

STATS_KEYS = {
    *("files", "logical_bytes", "unique_bytes", "stored_bytes", "resident_bytes"),
    *("reduction", "dedup_ratio", "compression_ratio", "chunks", "blocks", "segments"),
    *("mode", "pid", "rss_bytes", "uptime_s", "cache_hits", "cache_misses"),
    *("prefetched", "prefetch_used", "prefetch_wasted", "prefetch_hit_rate"),
    *("store", "mountpoint", "version"),
}

LINE = b"the agent read the file, thought about it, and wrote this line\n"


def test_what_was_written_is_there_after_umount_and_mount(mounted: Any) -> None:
    (mounted.path / "notes").mkdir()
    (mounted.path / "notes" / "a.txt").write_bytes(LINE * 1000)
    mounted.remount()
    assert (mounted.path / "notes" / "a.txt").read_bytes() == LINE * 1000


def test_the_man_page_names_every_figure_of_stats(mounted: Any) -> None:
    section = (ROOT / "docs/agentfs.1").read_text().partition(".SH STATS IN JSON")[2]
    lines = re.findall(r"^\.B (\w+(?:, \w+)*)$", section.partition(".SH ")[0], re.MULTILINE)
    named = {key for line in lines for key in line.split(", ")}
    assert named - {"unmounted"} == set(mounted.stats())


def test_the_mounted_directory_belongs_to_who_mounted_it(mounted: Any) -> None:
    status = os.stat(mounted.path)
    assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())
    assert abs(status.st_mtime - time.time()) < 600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's mounts have a tmpfs of their own")
def test_umount_leaves_nothing_on_tmpfs(mounted: Any) -> None:
    (mounted.path / "a").write_bytes(LINE)
    [tmpfs] = mounted.tmpfs()
    mounted.umount()
    assert not tmpfs.exists()


def test_hot_bytes_overrides_the_profile(mounted: Any) -> None:
    mounted.umount()
    mounted.agentfs("mount", mounted.path, "--store", mounted.store, "--hot-bytes", "48MiB")
    assert mounted.stats()["resident_budget_bytes"] == 48 << 20
    assert "of 48.0 MiB" in mounted.agentfs("stats", mounted.path)


def test_a_file_larger_than_the_budget_is_written_whole_and_leaves_the_tmpfs(mounted: Any) -> None:
    mounted.umount()
    mounted.agentfs("mount", mounted.path, "--store", mounted.store, "--hot-bytes", "16MiB")
    data = random.Random(1).randbytes(8 << 20) * 10
    (mounted.path / "large").write_bytes(data)
    mounted.agentfs("sync", mounted.path)
    assert mounted.stats()["resident_bytes"] <= 16 << 20
    assert (mounted.path / "large").read_bytes() == data
    assert mounted.stats()["resident_bytes"] <= 16 << 20
    with (mounted.path / "large").open("r+b") as file:
        file.write(b"new")
        assert mounted.stats()["resident_bytes"] <= 16 << 20, "staged on disk"
    mounted.remount()
    assert (mounted.path / "large").read_bytes() == b"new" + data[3:]


def test_the_mode_is_told_with_its_reason(mounted: Any) -> None:
    figures = mounted.stats()
    assert f"{figures['mode']} mode ({figures['mode_reason']})" in mounted.agentfs(
        "stats", mounted.path
    )
    assert f"({figures['mode']} mode: {figures['mode_reason']})" in mounted.log()


def test_programs_that_write_many_files_leave_the_daemon_descriptors(mounted: Any) -> None:
    resource.prlimit(mounted.pid, resource.RLIMIT_NOFILE, (1100, 1100))
    held = []
    try:
        with contextlib.suppress(OSError):
            for number in range(300):
                held.append(os.open(mounted.path / f"held{number}", os.O_CREAT | os.O_WRONLY))
                os.write(held[-1], LINE)
        count = len(held)
        assert count > 50
        assert len(os.listdir(mounted.path)) == count, "a file that cannot be opened is not made"
        mounted.agentfs("sync", mounted.path)
    finally:
        for fd in held:
            os.close(fd)
    for number in range(300, 600):
        (mounted.path / f"held{number}").write_bytes(LINE)
    mounted.remount()
    assert all(path.read_bytes() == LINE for path in mounted.path.iterdir())
    assert len(os.listdir(mounted.path)) == count + 300


def test_a_copy_of_a_mounted_store_is_a_store_of_its_own(mounted: Any, tmp_path: Path) -> None:
    (mounted.path / "sealed").write_bytes(LINE)
    mounted.agentfs("sync", mounted.path)
    (mounted.path / "staged").write_bytes(LINE)
    copy, path = tmp_path / "copy", tmp_path / "second"
    shutil.copytree(mounted.store, copy, ignore=shutil.ignore_patterns("control"))
    path.mkdir()
    mounted.agentfs("mount", path, "--store", copy)
    try:
        (path / "sealed").write_bytes(b"of the copy")
        (mounted.path / "staged").write_bytes(b"of the original")
    finally:
        mounted.agentfs("umount", path)
    mounted.remount()
    assert (mounted.path / "sealed").read_bytes() == LINE
    assert (mounted.path / "staged").read_bytes() == b"of the original"


def test_mountinfo_says_which_store_it_is(mounted: Any) -> None:
    mount = mount_at(mounted.path)
    assert mount is not None
    assert mount.is_agentfs
    assert mount.store == mounted.store


def test_stats_have_every_key_and_count_what_is_there(mounted: Any, mode: str) -> None:
    for name in ("a", "b"):
        (mounted.path / name).write_bytes(LINE * 5000)
    mounted.agentfs("sync", mounted.path)
    figures = mounted.stats()
    assert set(figures) >= STATS_KEYS
    assert figures["files"] == 2
    assert figures["logical_bytes"] == 2 * 5000 * len(LINE)
    assert figures["unique_bytes"] < figures["logical_bytes"] * 0.6
    assert figures["dedup_ratio"] > 1.9
    assert figures["mode"] == mode
    assert figures["pid"] == mounted.pid == lock.holder(mounted.store)
    assert figures["mountpoint"] == str(mounted.path)
    assert figures["rss_bytes"] > 10 << 20


def test_stats_of_a_store_that_is_not_mounted(mounted: Any) -> None:
    (mounted.path / "a").write_bytes(LINE * 5000)
    mounted.agentfs("sync", mounted.path)
    live = mounted.stats()
    mounted.umount()
    before = sorted(mounted.store.rglob("*"))
    figures = mounted.stats()
    assert set(figures) >= STATS_KEYS
    assert figures["mode"] == "unmounted"
    assert figures["pid"] is figures["mountpoint"] is None
    for key in ("files", "logical_bytes", "unique_bytes", "chunks", "blocks", "segments"):
        assert figures[key] == live[key]
    assert sorted(mounted.store.rglob("*")) == before, "reading changes nothing"


def test_stats_for_people_fit_a_line_width_and_name_the_daemon(mounted: Any, mode: str) -> None:
    (mounted.path / "a").write_bytes(LINE * 5000)
    mounted.agentfs("sync", mounted.path)
    text = mounted.agentfs("stats", mounted.path)
    assert text.startswith(f"{mounted.path}: 1 file, ")
    assert f"pid {mounted.pid}, {mode} mode" in text
    assert "█" in text
    assert "\x1b" not in text, "no colours in a pipe"


def test_stats_work_in_a_locale_without_utf8(mounted: Any, run: Run, mode: str) -> None:
    done = run("stats", mounted.path, LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert f"{mode} mode" in done.stdout


@pytest.mark.parametrize("command", ["sync", "gc", "stats", "umount"])
def test_every_command_answers_in_json(mounted: Any, command: str) -> None:
    answer = json.loads(mounted.agentfs(command, mounted.path, "--json"))
    assert isinstance(answer, dict)


def test_gc_removes_what_was_deleted(mounted: Any) -> None:
    path = mounted.path / "noise"
    path.write_bytes(os.urandom(4 << 20))
    mounted.agentfs("sync", mounted.path)
    assert mounted.stats()["stored_bytes"] > 4 << 20
    path.unlink()
    mounted.agentfs("gc", mounted.path)
    assert mounted.stats()["stored_bytes"] < 1 << 20


def test_a_second_mount_of_the_store_is_refused(mounted: Any, run: Run, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    done = run("mount", other, "--store", mounted.store)
    assert done.returncode == StoreBusy.exit_code
    assert f"pid {mounted.pid}" in done.stderr
    assert mount_at(other) is None


def test_a_second_store_at_the_mountpoint_is_refused(
    mounted: Any, run: Run, tmp_path: Path
) -> None:
    done = run("mount", mounted.path, "--store", tmp_path / "second")
    assert done.returncode == MountpointUnusable.exit_code
    assert f"fuse.agentfs of {mounted.store}" in done.stderr
    assert not (tmp_path / "second").exists()


def test_umount_names_who_has_a_file_open_and_loses_nothing(mounted: Any, run: Run) -> None:
    with (mounted.path / "open").open("w") as file:
        file.write("first\n")
        file.flush()
        done = run("umount", mounted.path)
        assert done.returncode == FilesOpen.exit_code
        assert f"pid {os.getpid()}, {mounted.path}/open" in done.stderr
        file.write("second\n")
    assert (mounted.path / "open").read_text() == "first\nsecond\n"
    mounted.umount()
    assert mount_at(mounted.path) is None


def test_umount_by_the_store_is_the_same(mounted: Any, run: Run) -> None:
    assert run("umount", mounted.store).returncode == 0
    assert mount_at(mounted.path) is None
    done = run("umount", mounted.store)
    assert done.returncode == NotMounted.exit_code
    assert "there is nothing to do" in done.stderr


def test_umount_returns_when_everything_is_sealed(mounted: Any) -> None:
    for number in range(50):
        (mounted.path / f"{number}.txt").write_bytes(LINE * number)
    mounted.umount()
    figures = mounted.stats()
    assert figures["files"] == 50
    assert figures["logical_bytes"] == sum(range(50)) * len(LINE)
    assert not [path for path in (mounted.store / "staging").rglob("*") if path.is_file()]


def test_umount8_ends_the_daemon_and_seals_too(mounted: Any) -> None:
    (mounted.path / "a.txt").write_bytes(LINE)
    command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    subprocess.run([*command, mounted.path], check=True, timeout=60)
    deadline = time.monotonic() + 20
    while lock.holder(mounted.store) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    mounted.mount()
    assert (mounted.path / "a.txt").read_bytes() == LINE


def test_a_killed_daemons_mount_is_cleared_by_mounting_again(mounted: Any) -> None:
    (mounted.path / "a.txt").write_bytes(LINE)
    mounted.agentfs("sync", mounted.path)
    mounted.kill()
    with pytest.raises(OSError, match="not connected"):
        os.listdir(mounted.path)
    mounted.mount()
    assert (mounted.path / "a.txt").read_bytes() == LINE
    assert len([mount for mount in all_mounts() if mount.mountpoint == mounted.path]) == 1


def test_a_killed_daemons_mount_is_cleared_by_umount(mounted: Any, run: Run) -> None:
    mounted.kill()
    done = run("umount", mounted.path)
    assert done.returncode == 0
    assert "had no daemon any more and is cleared" in done.stdout
    assert mount_at(mounted.path) is None


def test_what_damage_to_the_log_has_taken_is_told_by_mount_and_fsck(mounted: Any, run: Run) -> None:
    for number in range(50):
        (mounted.path / f"{number}").mkdir()
    mounted.kill()
    flip_in_log(mounted.store)
    said = run("mount", mounted.path, "--store", mounted.store)
    assert said.returncode == 0
    assert "of the last changes are lost" in said.stderr
    assert "log was damaged" in run("fsck", mounted.path).stdout
    run("umount", mounted.path)
    checked = run("fsck", mounted.store)
    assert "log was damaged" in checked.stdout
    assert checked.returncode == DamageFound.exit_code


def test_a_dead_mount_of_another_store_is_explained(mounted: Any, run: Run, tmp_path: Path) -> None:
    mounted.kill()
    done = run("mount", mounted.path, "--store", tmp_path / "second")
    assert done.returncode == MountpointUnusable.exit_code
    assert f"fusermount3 -u -z {mounted.path}" in done.stderr


def test_a_store_of_a_newer_version_is_refused(mounted: Any, run: Run) -> None:
    mounted.umount()
    with connect(mounted.store / "index.db", "rw") as index:
        (table,) = index.execute(
            "SELECT name FROM sqlite_master WHERE name LIKE '%migrations%' AND type = 'table'"
        ).fetchone()
        columns = [row[1] for row in index.execute(f"PRAGMA table_info({table})")]
        row = list(index.execute(f"SELECT * FROM {table}").fetchone())
        row[columns.index("name")] = "m999_the_future"
        if "id" in columns:
            row[columns.index("id")] = None
        index.execute(f"INSERT INTO {table} VALUES ({','.join('?' * len(row))})", row)
    index.close()
    done = run("mount", mounted.path, "--store", mounted.store)
    assert done.returncode == StoreNewer.exit_code
    assert "newer agentfs" in done.stderr
    assert done.stderr.count("\n") == 1
    done = run("stats", mounted.store)
    assert done.returncode == StoreNewer.exit_code


def test_a_damaged_index_is_refused_and_left_alone(mounted: Any, run: Run) -> None:
    mounted.umount()
    garbage = b"not a database" * 1000
    (mounted.store / "index.db").write_bytes(garbage)
    for arguments in (("mount", mounted.path, "--store", mounted.store), ("stats", mounted.store)):
        done = run(*arguments)
        assert done.returncode == StoreDamaged.exit_code
        assert done.stderr.count("\n") == 1
    assert (mounted.store / "index.db").read_bytes() == garbage
    assert mount_at(mounted.path) is None


@pytest.mark.parametrize("name", ["a b", "tab\tnew\nline", "back\\slash", "com,ma", "ünïcode"])
def test_paths_may_have_any_characters(mount_store: Any, name: str) -> None:
    mounted = mount_store(name=name)
    (mounted.path / "file").write_bytes(LINE)
    mount = mount_at(mounted.path)
    assert mount is not None
    assert mount.store == mounted.store
    mounted.umount()
    assert mount_at(mounted.path) is None


def test_a_store_may_have_a_long_path(mount_store: Any, tmp_path: Path) -> None:
    mounted = mount_store(name="n" * 180)
    (mounted.path / "file").write_bytes(LINE)
    mounted.agentfs("sync", mounted.store)
    mounted.remount()
    assert (mounted.path / "file").read_bytes() == LINE


def test_a_link_to_the_mountpoint_is_as_good(mounted: Any, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(mounted.path)
    assert json.loads(mounted.agentfs("stats", link, "--json"))["pid"] == mounted.pid


def test_a_mountpoint_that_is_not_empty_is_warned_about(
    mount_store: Any, tmp_path: Path, run: Run
) -> None:
    mounted = mount_store()
    mounted.umount()
    (mounted.path / "hidden").touch()
    done = run("mount", mounted.path, "--store", mounted.store)
    assert done.returncode == 0
    assert "is not empty; the mount hides what is there" in done.stderr
    assert os.listdir(mounted.path) == []


@pytest.fixture
def foreground(
    tmp_path: Path, mountpoint: Path, environment: dict[str, str], mount_store: Any
) -> Iterator[subprocess.Popen[str]]:
    arguments = ["mount", mountpoint, "--store", tmp_path / "store", "--foreground", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "agentfs.cli", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    yield process
    process.kill()
    process.communicate()
    subprocess.run(["umount", "-l", mountpoint], check=False, capture_output=True)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT])
def test_the_foreground_serves_until_a_signal(
    foreground: subprocess.Popen[str], mountpoint: Path, end: signal.Signals
) -> None:
    assert foreground.stdout is not None
    answer = "".join(iter(foreground.stdout.readline, "}\n")) + "}"
    assert json.loads(answer)["pid"] == foreground.pid
    (mountpoint / "a").write_bytes(LINE)
    foreground.send_signal(end)
    assert foreground.wait(20) == 0
    assert mount_at(mountpoint) is None


def test_the_tour_runs_and_runs_again(mounted: Any, environment: dict[str, str]) -> None:
    tour = Path(__file__).resolve().parents[2] / "examples" / "tour.py"
    for again in (False, True):
        done = subprocess.run(
            [sys.executable, tour, mounted.path],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        assert ("of the last tour" in done.stdout) is again
        assert "18 agents and 2 forks" in done.stdout
        assert f"umount {mounted.path}" in done.stdout
    assert mounted.stats()["dedup_ratio"] > 3


def test_the_tour_writes_to_no_other_filesystem(
    mountpoint: Path, environment: dict[str, str]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    tour = Path(__file__).resolve().parents[2] / "examples" / "tour.py"
    subprocess.run(["mount", "-t", "tmpfs", "none", mountpoint], check=True)
    try:
        done = subprocess.run(
            [sys.executable, tour, mountpoint],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert os.listdir(mountpoint) == []
    finally:
        subprocess.run(["umount", mountpoint], check=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert f"{mountpoint} is mounted, but not by agentfs" in done.stderr


def test_the_tours_files_are_small_and_licensed() -> None:
    examples = Path(__file__).resolve().parents[2] / "examples" / "agents"
    files = [path for path in examples.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 2_000_000
    readme = (examples / "README.md").read_text()
    for folder in examples.glob("*/*/"):
        assert f"`{folder.relative_to(examples)}/`" in readme


def test_compact_packs_what_is_sealed_and_stats_say_so(mounted: Any) -> None:
    for number in range(20):
        (mounted.path / f"{number}").write_bytes(b"%d " % number + LINE * 300)
    mounted.agentfs("sync", mounted.path)
    assert mounted.stats()["young_bytes"] > 0
    answer = json.loads(mounted.agentfs("compact", mounted.path, "--json"))
    assert answer["rewritten_bytes"] > 0
    assert mounted.stats()["young_bytes"] == 0
    mounted.remount()
    for number in range(20):
        assert (mounted.path / f"{number}").read_bytes() == b"%d " % number + LINE * 300


def test_a_mount_that_compacts_is_unmounted_at_once(mounted: Any) -> None:
    words = random.Random(1).choices([b"agent", b"tool", b"result", b"file"], k=3_000_000)
    (mounted.path / "text").write_bytes(b" ".join(words))
    mounted.agentfs("sync", mounted.path)
    compacting = subprocess.Popen(
        [sys.executable, "-m", "agentfs.cli", "compact", mounted.path],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    for _ in range(200):
        if mounted.stats()["compaction"] == "running":
            break
        time.sleep(0.02)
    started = time.monotonic()
    mounted.remount()
    assert time.monotonic() - started < 5, "of some 10 s of work"
    compacting.wait(timeout=30)
    assert (mounted.path / "text").read_bytes() == b" ".join(words)
