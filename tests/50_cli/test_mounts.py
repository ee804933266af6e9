"""mountinfo, and which mount a command means."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentfs.cli import mounts
from agentfs.errors import NotMounted, UsageError
from agentfs.machine.mountinfo import parse_mountinfo

LINE = r"36 35 0:{minor} / {path} rw,nosuid - fuse.agentfs {store} rw,user_id=0"


@pytest.fixture
def mountinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "mountinfo"
    path.write_text("22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n")
    monkeypatch.setattr(mounts, "MOUNTINFO", path)
    monkeypatch.setattr(mounts, "default_store", lambda: tmp_path / "default")
    return path


def add(mountinfo: Path, path: str, store: str, minor: int = 45) -> None:
    with mountinfo.open("a") as file:
        file.write(LINE.format(path=path, store=store, minor=minor) + "\n")


def test_spaces_and_backslashes_are_unescaped() -> None:
    text = LINE.format(path=r"/mnt/a\040b\134c", store=r"/s\011t\012", minor=7).encode()
    (mount,) = parse_mountinfo(text)
    assert mount.mountpoint == Path("/mnt/a b\\c")
    assert mount.store == Path("/s\tt\n")
    assert mount.is_agentfs
    assert mount.device_minor == 7


def test_names_that_are_not_utf8_survive() -> None:
    (mount,) = parse_mountinfo(b"1 2 0:3 / /mnt/\xff rw - fuse.agentfs /\xfe rw")
    assert bytes(mount.mountpoint) == b"/mnt/\xff"
    assert bytes(mount.store) == b"/\xfe"


def test_optional_fields_may_be_none_or_many() -> None:
    lines = b"1 2 0:3 / /a rw - tmpfs x rw\n1 2 0:4 / /b rw shared:1 master:2 - tmpfs y rw\nodd\n"
    assert [mount.source for mount in parse_mountinfo(lines)] == ["x", "y"]


def test_a_path_is_in_the_deepest_mount_that_came_last(mountinfo: Path) -> None:
    add(mountinfo, "/mnt/a", "/var/a")
    add(mountinfo, "/mnt/a/b", "/var/b")
    add(mountinfo, "/mnt/a/b", "/var/c")
    for path, store in (("/mnt/a/x", "/var/a"), ("/mnt/a/bc", "/var/a"), ("/mnt/a/b", "/var/c")):
        mount = mounts.mount_holding(Path(path))
        assert mount is not None
        assert mount.store == Path(store)
    mount = mounts.mount_holding(Path("/mnt"))
    assert mount is not None
    assert not mount.is_agentfs


def test_a_bind_mount_says_which_part_it_is() -> None:
    line = rb"1 2 0:3 /agents/a\0401 /srv/a rw - fuse.agentfs /var/a rw"
    (mount,) = parse_mountinfo(line)
    assert mount.root == Path("/agents/a 1")


def test_a_target_is_found_by_mountpoint_and_by_store(mountinfo: Path) -> None:
    add(mountinfo, "/mnt/a", "/var/a")
    expected = mounts.Target(Path("/var/a"), Path("/mnt/a"))
    assert mounts.find_target("/mnt/a") == expected
    assert mounts.find_target("/mnt/../mnt/a/") == expected
    assert mounts.find_target("/var/a") == expected


def test_the_upper_of_two_mounts_counts(mountinfo: Path) -> None:
    add(mountinfo, "/mnt/a", "/var/a")
    add(mountinfo, "/mnt/a", "/var/b")
    assert mounts.find_target("/mnt/a").store == Path("/var/b")


def test_a_link_to_a_mountpoint_is_followed(mountinfo: Path, tmp_path: Path) -> None:
    add(mountinfo, "/mnt/a", "/var/a")
    link = tmp_path / "link"
    link.symlink_to("/mnt/a")
    assert mounts.find_target(str(link)).store == Path("/var/a")


def test_without_a_name_agentmem_is_meant(mountinfo: Path) -> None:
    add(mountinfo, "/mnt/a", "/var/a")
    assert mounts.find_target(None).store == Path("/var/a")
    add(mountinfo, "/agentmem", "/var/b")
    assert mounts.find_target(None).store == Path("/var/b")


def test_of_several_mounts_one_must_be_named(mountinfo: Path) -> None:
    add(mountinfo, "/mnt/a", "/var/a")
    add(mountinfo, "/mnt/b", "/var/b")
    with pytest.raises(UsageError, match="/mnt/a, /mnt/b"):
        mounts.find_target(None)


def test_without_a_mount_the_default_store_is_meant(mountinfo: Path, tmp_path: Path) -> None:
    with pytest.raises(NotMounted, match="agentfs mount makes both"):
        mounts.find_target(None)
    (tmp_path / "default").mkdir()
    (tmp_path / "default" / "index.db").touch()
    assert mounts.find_target(None) == mounts.Target(tmp_path / "default", None)


def test_a_directory_that_is_neither_is_an_error(mountinfo: Path, tmp_path: Path) -> None:
    with pytest.raises(NotMounted, match="neither an agentfs mountpoint nor a store"):
        mounts.find_target(str(tmp_path))
