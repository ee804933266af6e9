"""Users of one mount: what they may do, and what they learn of each other."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("as_root", "open_to_all")

ONE, OTHER, GROUP = 4001, 4002, 5000

As = Callable[..., str]

ACCESS = """
for path in sys.argv[2:]:
    try:
        if sys.argv[1] == "list":
            os.listdir(path)
        elif sys.argv[1] == "make":
            os.mkdir(path)
        else:
            with open(path, sys.argv[1]) as file:
                file.read() if sys.argv[1] == "rb" else file.write(b"changed")
        print("done")
    except PermissionError:
        print("refused")
"""

WRITE = """
with open(sys.argv[1], "wb") as file:
    file.write(sys.argv[2].encode() * 100_000)
os.chmod(sys.argv[1], 0o600)
"""

LOOK = """
for path in sys.argv[1:]:
    told = []
    for name in ("tier", "reduction"):
        try:
            told.append(os.getxattr(path, f"user.agentfs.{name}"))
        except OSError as error:
            told.append(error.errno)
    for name in ("kind", "agent", "digest"):  # of the last, whether there is one
        try:
            value = os.getxattr(path, f"user.agentfs.{name}")
            told.append(len(value) if name == "digest" else value)
        except OSError as error:
            told.append(error.errno)
    status = os.stat(path)
    print(told, os.listxattr(path), status.st_size, status.st_blocks, status.st_nlink)
"""


@pytest.fixture
def shared(mnt: Path) -> Path:
    """A directory of the mount in which everybody may write."""
    path = mnt / "shared"
    path.mkdir()
    path.chmod(0o1777)
    return path


def test_modes_and_groups_say_who_may_what(mounted: Any, shared: Path, run_as: As) -> None:
    file, folder = shared / "file", shared / "folder"
    file.write_bytes(b"for the group")
    os.chown(file, ONE, GROUP)
    file.chmod(0o640)
    folder.mkdir()
    os.chown(folder, ONE, GROUP)
    folder.chmod(0o2770)
    for _ in range(2):  # staged, and sealed
        asked = [
            (uid, groups, run_as(uid, ACCESS, how, path, groups=groups).strip() == "done")
            for uid, groups in ((ONE, ()), (OTHER, ()), (OTHER, (GROUP,)))
            for how, path in (("rb", file), ("r+b", file), ("list", folder))
        ]
        assert [allowed for *_, allowed in asked] == [
            *(True, True, True),  # its owner
            *(False, False, False),  # neither owner nor in the group
            *(True, False, True),  # in the group by a supplementary one
        ]
        mounted.remount()
    assert run_as(OTHER, ACCESS, "make", folder / "new", groups=(GROUP,)) == "done\n"
    assert (folder / "new").stat().st_gid == GROUP


def test_a_file_that_its_owner_has_open_stays_closed_to_others(
    mounted: Any, shared: Path, run_as: As
) -> None:
    path = shared / "private"
    run_as(ONE, WRITE, path, "x")
    mounted.agentfs("sync", mounted.path)
    with path.open("rb") as file:
        assert file.read(1) == b"x"
        assert run_as(ONE, ACCESS, "rb", path) == "done\n"
        assert run_as(OTHER, ACCESS, "rb", path) == "refused\n"
        path.chmod(0o644)
        assert run_as(OTHER, ACCESS, "rb", path) == "done\n"
        path.chmod(0o600)
        assert run_as(OTHER, ACCESS, "rb", path) == "refused\n"


def test_equal_files_of_two_users_look_as_files_that_nobody_else_has(
    mounted: Any, shared: Path, run_as: As
) -> None:
    mine, theirs, unique = shared / "mine", shared / "theirs", shared / "unique"
    run_as(OTHER, WRITE, theirs, "equal")
    mounted.agentfs("sync", mounted.path)
    run_as(OTHER, ACCESS, "rb", theirs, theirs)  # resident by now, where there are images
    run_as(ONE, WRITE, mine, "equal")
    run_as(ONE, WRITE, unique, "alone")
    for seal in (False, True):
        if seal:
            mounted.agentfs("sync", mounted.path)
        ours, alone = run_as(ONE, LOOK, mine, unique).splitlines()
        assert ours == alone
        digest = 64 if seal else errno.ENODATA
        told = [errno.ENODATA, errno.ENODATA, b"other", errno.ENODATA, digest]
        assert ours.startswith(f"{told} []")
    assert mine.stat().st_ino != theirs.stat().st_ino
    assert mine.stat().st_mtime_ns > theirs.stat().st_mtime_ns
    assert float(os.getxattr(mine, "user.agentfs.reduction")) > 1, "root is told"


def test_users_who_are_kept_apart_share_neither_room_nor_memory(
    mount_store: Any, tmp_path: Path, run_as: As, mode: str
) -> None:
    profile = tmp_path / "apart.toml"
    profile.write_text('[store]\ndedup = "user"\n')
    mounted = mount_store("--profile", profile)
    mounted.path.chmod(0o1777)
    files = {ONE: [mounted.path / "a", mounted.path / "b"], OTHER: [mounted.path / "c"]}
    every = [*files[ONE], *files[OTHER]]
    for uid, paths in files.items():
        for path in paths:
            run_as(uid, WRITE, path, "equal")
    mounted.agentfs("sync", mounted.path)
    assert mounted.stats()["logical_bytes"] == 3 * 500_000
    apart = mounted.stats()["unique_bytes"]
    for restarted in (False, True):
        if restarted:
            mounted.kill()
            mounted.mount()
        for uid, paths in files.items():
            run_as(uid, ACCESS, "rb", *paths)
        names = [os.getxattr(path, "user.agentfs.digest") for path in every]
        assert names[0] == names[1] != names[2]
        if mode == "relay":
            (tmpfs,) = mounted.tmpfs()
            assert {path.name.encode() for path in (tmpfs / "images").iterdir()} == set(names)
    mounted.agentfs("compact", mounted.path)
    assert mounted.stats()["unique_bytes"] == apart
    mounted.remount()
    for path in every:
        assert path.read_bytes() == b"equal" * 100_000
    assert "is whole" in mounted.agentfs("fsck", mounted.path)
    together = mount_store(name="together")
    together.path.chmod(0o1777)
    for uid in files:
        run_as(uid, WRITE, together.path / str(uid), "equal")
    together.agentfs("sync", together.path)
    assert together.stats()["unique_bytes"] * 2 == apart


def test_a_store_that_everybody_could_enter_is_closed_while_it_is_mounted(
    mounted: Any, shared: Path, run_as: As
) -> None:
    mounted.umount()
    mounted.store.chmod(0o777)
    mounted.mount()
    assert stat.S_IMODE(mounted.store.stat().st_mode) == 0o700
    (shared / "staged").write_bytes(b"x" * 100_000)
    within = [path for top in (mounted.store, *mounted.tmpfs()) for path in top.rglob("*")]
    files = [path for path in within if path.is_file()]
    assert {path.name for path in within} >= {"segments", "staging", "index.db", "daemon.log"}
    assert all(not path.lstat().st_mode & 0o077 for path in within), "not by their names alone"
    assert set(run_as(OTHER, ACCESS, "rb", *files).split()) == {"refused"}
    assert set(run_as(OTHER, ACCESS, "list", mounted.store, *mounted.tmpfs()).split()) == {
        "refused"
    }
