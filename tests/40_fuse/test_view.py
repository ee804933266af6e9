"""/.agentfs: everything the daemon knows, and nothing that can be changed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import re
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from prometheus_client.parser import text_string_to_metric_families

from agentfs.errors import UsageError
from agentfs.fuse._relay import LEDGER_INODES_END
from agentfs.index import Index
from agentfs.model import ROOT_INODE, VIEW_FIRST, VIEW_NAME, Inode
from tests.conftest import run_agentfs

LINE = b"what an agent is told before anything else\n"
RENAME_EXCHANGE = 2


def test_the_relay_tells_the_same_nodeids_from_those_of_inodes() -> None:
    assert LEDGER_INODES_END == VIEW_FIRST


def put(mounted: Any, name: str, data: bytes) -> Path:
    """A sealed file; returns its content's place in the view."""
    path: Path = mounted.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    mounted.agentfs("sync", mounted.path)
    place: Path = mounted.path / ".agentfs/by-hash" / blake3(data).hexdigest()
    return place


def test_it_is_reached_by_name_and_listed_nowhere(mnt: Path) -> None:
    (mnt / "file").write_bytes(LINE)
    assert os.listdir(mnt) == ["file"]
    assert sorted(os.listdir(mnt / ".agentfs")) == ["agents", "by-hash", "metrics", "stats.json"]
    assert not (mnt / ".agentfs/other").exists()
    (mnt / "below").mkdir()
    assert not (mnt / "below/.agentfs").exists()
    (mnt / "below/.agentfs").mkdir()


def test_stats_are_those_of_the_command(mounted: Any) -> None:
    put(mounted, "file", LINE * 1000)
    shown = json.loads((mounted.path / ".agentfs/stats.json").read_text())
    asked = mounted.stats()
    moving = {"uptime_s", "rss_bytes", "relay", "available_share", "stalled_share"}
    assert {key: shown[key] for key in shown.keys() - moving} == {
        key: asked[key] for key in shown.keys() - moving
    }


def test_metrics_are_what_prometheus_reads(mounted: Any) -> None:
    put(mounted, "agents/a/prompt", LINE * 1000)
    text = (mounted.path / ".agentfs/metrics").read_text()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    asked = mounted.stats()
    for name in ("logical_bytes", "stored_bytes", "resident_budget_bytes", "chunks"):
        (sample,) = families[f"agentfs_{name}"].samples
        assert sample.value == asked[name]
    (info,) = families["agentfs_info"].samples
    assert info.labels["mountpoint"] == str(mounted.path)
    states = {s.labels["state"]: s.value for s in families["agentfs_agents"].samples}
    assert states == {"active": 1, "idle": 0, "paused": 0}
    for name in ("cache_hits", "prefetched", "prefetch_used", "prefetch_wasted"):
        assert families[f"agentfs_{name}"].type == "counter"
    for family in families.values():
        assert family.documentation
        assert family.type in ("gauge", "counter")
        assert re.fullmatch(r"agentfs_[a-z_]+", family.name)


def test_each_agent_has_a_file(mounted: Any) -> None:
    put(mounted, "agents/one/prompt", LINE * 10)
    put(mounted, "agents/two/prompt", LINE * 10)
    view = mounted.path / ".agentfs/agents"
    assert sorted(os.listdir(view)) == ["one.json", "two.json"]
    time.sleep(1.1)  # as long as an answer is good
    one = json.loads((view / "one.json").read_text())
    assert one["name"] == "one"
    assert one["directories"] == ["/agents/one"]
    assert one["logical_bytes"] == one["shared_bytes"] == len(LINE) * 10
    (mounted.path / "agents/one").rename(mounted.path / "agents/three")
    assert sorted(os.listdir(view)) == ["three.json", "two.json"]
    assert not (view / "one.json").exists()


def test_a_name_that_is_no_file_name_has_no_file(mounted: Any) -> None:
    for number, name in enumerate((b"x" * 255, b"fine")):
        directory = mounted.path / str(number)
        directory.mkdir()
        os.setxattr(directory, "user.agentfs.agent", name)
    assert os.listdir(mounted.path / ".agentfs/agents") == ["fine.json"]


def test_every_content_is_under_its_hash(mounted: Any) -> None:
    contents = [os.urandom(1000), os.urandom(300_000), LINE * 50_000]
    places = [put(mounted, f"file{number}", data) for number, data in enumerate(contents)]
    for place, data in zip(places, contents, strict=True):
        for _ in range(3):
            assert place.read_bytes() == data
        assert place.stat().st_size == len(data)
        with place.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == data
    assert {path.name for path in places} == set(os.listdir(places[0].parent))


def test_a_long_listing_is_whole(mounted: Any) -> None:
    expected = set()
    for number in range(700):
        data = f"content {number}\n".encode()
        (mounted.path / f"file{number}").write_bytes(data)
        expected.add(blake3(data).hexdigest())
    mounted.agentfs("sync", mounted.path)
    assert set(os.listdir(mounted.path / ".agentfs/by-hash")) == expected


@pytest.mark.parametrize("name", ["0" * 64, "abc", "g" * 64, "A" * 64, "0" * 63, "0" * 300])
def test_what_is_no_content_is_not_there(mnt: Path, name: str) -> None:
    with pytest.raises(OSError) as caught:  # noqa: PT011
        (mnt / ".agentfs/by-hash" / name).open("rb")
    assert caught.value.errno in (errno.ENOENT, errno.ENAMETOOLONG)


def test_a_content_that_is_written_is_there_at_once_though_it_was_missed(mounted: Any) -> None:
    place = mounted.path / ".agentfs/by-hash" / blake3(LINE).hexdigest()
    assert not place.exists()
    put(mounted, "file", LINE)
    assert place.read_bytes() == LINE


def rename(old: Path, new: Path, flags: int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


CHANGES: dict[str, Callable[[Path, Path, Path], object]] = {
    "create": lambda view, place, own: (view / "new").touch(),
    "create among agents": lambda view, place, own: (view / "agents/new.json").touch(),
    "create by hash": lambda view, place, own: (view / "by-hash" / ("0" * 64)).touch(),
    "mkdir": lambda view, place, own: (view / "new").mkdir(),
    "symlink": lambda view, place, own: (view / "new").symlink_to("x"),
    "mkfifo": lambda view, place, own: os.mkfifo(view / "new"),
    "link into it": lambda view, place, own: os.link(own / "file", view / "new"),
    "link out of it": lambda view, place, own: os.link(place, own / "new"),
    "unlink": lambda view, place, own: (view / "metrics").unlink(),
    "unlink a content": lambda view, place, own: place.unlink(),
    "rmdir": lambda view, place, own: view.rmdir(),
    "rmdir below": lambda view, place, own: (view / "agents").rmdir(),
    "rename it": lambda view, place, own: view.rename(view.parent / "new"),
    "rename within": lambda view, place, own: place.rename(view / "new"),
    "rename out of it": lambda view, place, own: place.rename(own / "new"),
    "rename into it": lambda view, place, own: (own / "file").rename(view / "new"),
    "rename over it": lambda view, place, own: rename(own, view),
    "rename over below": lambda view, place, own: (own / "file").rename(view / "metrics"),
    "exchange with it": lambda view, place, own: rename(own, view, RENAME_EXCHANGE),
    "exchange below": lambda view, place, own: rename(own / "file", place, RENAME_EXCHANGE),
    "write": lambda view, place, own: (view / "stats.json").write_bytes(b"x"),
    "write a content": lambda view, place, own: place.open("r+b"),
    "append to a content": lambda view, place, own: place.open("ab"),
    "truncate": lambda view, place, own: os.truncate(place, 0),
    "truncate at open": lambda view, place, own: os.open(place, os.O_RDONLY | os.O_TRUNC),
    "chmod": lambda view, place, own: place.chmod(0o777),
    "chmod it": lambda view, place, own: view.chmod(0o777),
    "chown": lambda view, place, own: os.chown(view / "metrics", 1000, 1000),
    "utime": lambda view, place, own: os.utime(place),
    "set an attribute": lambda view, place, own: os.setxattr(place, "user.x", b"1"),
    "remove an attribute": lambda view, place, own: os.removexattr(place, "user.x"),
    "open a nameless file": lambda view, place, own: os.open(view, os.O_TMPFILE | os.O_RDWR),
}


@pytest.mark.usefixtures("as_root")
def test_every_change_is_refused(mounted: Any) -> None:
    place = put(mounted, "own/file", LINE)
    view, own = mounted.path / ".agentfs", mounted.path / "own"
    for what, change in CHANGES.items():
        with pytest.raises(OSError) as caught:  # noqa: PT011
            change(view, place, own)
        assert caught.value.errno == errno.EROFS, (what, caught.value)
    assert place.read_bytes() == LINE
    assert os.listdir(mounted.path) == ["own"]
    assert os.listdir(own) == ["file"]
    assert os.listxattr(place) == []
    report = json.loads(mounted.agentfs("fsck", mounted.path, "--json"))
    assert report["clean"]


def test_its_name_cannot_be_taken(mnt: Path) -> None:
    with pytest.raises(FileExistsError):
        (mnt / ".agentfs").mkdir()
    with pytest.raises(IsADirectoryError):
        (mnt / ".agentfs").write_bytes(b"x")
    with pytest.raises(FileExistsError):
        (mnt / ".agentfs").symlink_to("elsewhere")
    (mnt / "directory").mkdir()
    with pytest.raises(OSError, match="Read-only"):
        rename(mnt / "directory", mnt / ".agentfs")


def test_clone_neither_takes_from_it_nor_puts_there(mounted: Any) -> None:
    place = put(mounted, "file", LINE)
    for source, target in (
        (place, mounted.path / "new"),
        (mounted.path / "file", place.parent / "new"),
        (mounted.path / "file", mounted.path / ".agentfs"),
    ):
        done = run_agentfs("clone", source, target)
        assert done.returncode == UsageError.exit_code, done.stderr
        assert "view" in done.stderr
    assert os.listdir(mounted.path) == ["file"]


@pytest.mark.usefixtures("as_root")
def test_others_see_that_it_is_there_and_nothing_else(mounted: Any, script: Any) -> None:
    mounted.path.parent.chmod(0o755)
    place = put(mounted, "agents/secret/prompt", LINE)
    code = """
for path in sys.argv[1:]:
    try:
        if os.path.isdir(path): os.listdir(path)
        else: open(path).read()
        print("yes")
    except OSError as error:
        print(error.errno)
"""
    view = mounted.path / ".agentfs"
    paths = [view, view / "stats.json", view / "metrics", view / "agents", place.parent]
    paths += [view / "agents/secret.json", place]
    with _open_to_all(mounted.path):
        process = script(code, *paths, uid=1234)
        answers = process.communicate(timeout=30)[0].split()
    assert answers == ["yes"] + [str(errno.EACCES)] * 6
    assert "secret" not in (view / "metrics").read_text()


@contextlib.contextmanager
def _open_to_all(path: Path) -> Any:
    """Let others reach a directory below pytest's."""
    closed = [above for above in path.parents if not above.stat().st_mode & stat.S_IXOTH]
    modes = [above.stat().st_mode for above in closed]
    for above in closed:
        above.chmod(0o755)
    yield
    for above, mode in zip(closed, modes, strict=True):
        above.chmod(mode)


def test_a_content_that_is_open_outlives_its_last_file(mounted: Any) -> None:
    data = os.urandom(400_000)
    place = put(mounted, "file", data)
    with place.open("rb") as file:
        (mounted.path / "file").unlink()
        mounted.agentfs("gc", mounted.path)
        assert file.read() == data
        put(mounted, "another", os.urandom(400_000))
        file.seek(0)
        assert file.read() == data
    mounted.remount()
    mounted.agentfs("gc", mounted.path)
    assert not place.exists()


def test_a_content_that_is_gone_is_gone_from_the_view(mounted: Any) -> None:
    data = os.urandom(1000)
    place = put(mounted, "file", data)
    (mounted.path / "file").unlink()
    mounted.agentfs("gc", mounted.path)
    assert os.listdir(place.parent) == []
    assert not place.exists()


def test_an_open_text_stays_what_it_was(mounted: Any) -> None:
    with (mounted.path / ".agentfs/stats.json").open("rb", buffering=0) as file:
        begin = file.read(10)
        put(mounted, "file", LINE * 100)
        assert json.loads(begin + file.read(1 << 20))["files"] == 0
    assert json.loads((mounted.path / ".agentfs/stats.json").read_text())["files"] == 1


def test_texts_are_copied_by_programs(mounted: Any, tmp_path: Path) -> None:
    view = mounted.path / ".agentfs"
    subprocess.run(["cp", view / "stats.json", tmp_path / "outside"], check=True)
    subprocess.run(["cp", view / "stats.json", mounted.path / "inside"], check=True)
    for copy in (tmp_path / "outside", mounted.path / "inside"):
        assert json.loads(copy.read_text())["mode"] == mounted.stats()["mode"]


def test_a_store_with_a_file_of_that_name_shows_the_file(mounted: Any) -> None:
    """One of an earlier version: its bytes are the user's, so they are not hidden."""
    mounted.umount()
    index = Index(mounted.store)
    with index.transaction:
        inode = Inode(index.inodes.allocate(), stat.S_IFREG | 0o644, 0, 0, 1, 0, 1, 1, 1)
        inode.parent = ROOT_INODE
        index.inodes.insert(inode)
        index.dentries.insert(ROOT_INODE, VIEW_NAME, inode.id)
    index.close()
    mounted.mount()
    mine = mounted.path / ".agentfs"
    assert os.listdir(mounted.path) == [".agentfs"]
    mine.write_bytes(LINE)
    assert mine.read_bytes() == LINE
    (mounted.path / "other").write_bytes(b"other")
    (mounted.path / "other").rename(mine)
    assert mine.read_bytes() == b"other"
    mine.rename(mounted.path / "mine")
    assert (mounted.path / "mine").read_bytes() == b"other"
    assert os.listdir(mounted.path) == ["mine"]
    assert (mine / "stats.json").is_file(), "from now on it is the view"
    with pytest.raises(OSError, match="Is a directory"):
        (mounted.path / "mine").rename(mine)


@pytest.fixture
def relay_only(mode: str) -> None:
    if mode != "relay":
        pytest.skip("plain mode shares no pages, and has no worker to take over")


@pytest.mark.usefixtures("relay_only")
def test_a_content_shares_its_pages_with_the_files_that_have_it(mounted: Any) -> None:
    data = os.urandom(8 << 20)
    place = put(mounted, "file", data)
    code = """
maps = []
for path in sys.argv[1:]:
    with open(path, "rb") as file:
        maps.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
    sum(maps[-1][at] for at in range(0, len(maps[-1]), 4096))
rss = pss = 0
for line in open("/proc/self/smaps"):
    if line[0] in "0123456789abcdef" and "-" in line.split()[0]:
        ours = any(path in line for path in sys.argv[1:])
    elif ours and line.startswith("Rss:"): rss += int(line.split()[1])
    elif ours and line.startswith("Pss:"): pss += int(line.split()[1])
print(rss, pss)
"""
    command = [sys.executable, "-c", "import sys, mmap\n" + code]
    done = subprocess.run(
        [*command, mounted.path / "file", place], capture_output=True, text=True, check=True
    )
    rss_kib, pss_kib = map(int, done.stdout.split())
    assert rss_kib == 16 << 10
    assert pss_kib == 8 << 10


@pytest.mark.usefixtures("relay_only")
def test_another_worker_goes_on_with_what_is_open(mounted: Any) -> None:
    large, small = os.urandom(1 << 20), os.urandom(1000)
    places = [put(mounted, "large", large), put(mounted, "small", small)]
    view = mounted.path / ".agentfs"
    files = [place.open("rb") for place in places]
    listing = os.scandir(places[0].parent)
    text, half_read = (
        (view / "stats.json").open("rb", buffering=0),
        (view / "metrics").open("rb", buffering=0),
    )
    half_read.read(10)
    before = mounted.stats()["worker_pid"]
    os.kill(before, 9)
    assert [file.read() for file in files] == [large, small]
    assert len(list(listing)) == 2
    assert json.loads(text.read(1 << 20))["worker_pid"] not in (None, before)
    with pytest.raises(OSError, match="Stale"):
        half_read.read(1000)
    for path in ("large", "small"):
        (mounted.path / path).unlink()
    mounted.agentfs("gc", mounted.path)
    for file, data in zip(files, (large, small), strict=True):
        file.seek(0)
        assert file.read() == data, "it is not collected while it is open"
        file.close()
    text.close()
    half_read.close()
    (mounted.path / "new").touch()
    assert os.stat(mounted.path / "new").st_ino < VIEW_FIRST
    mounted.remount()
    mounted.agentfs("gc", mounted.path)
    assert os.listdir(places[0].parent) == []
