"""Access lists, beside a tmpfs that has them: what they make of modes, new files and rights."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fakes.acl import ACCESS, DEFAULT, packed

pytestmark = pytest.mark.usefixtures("as_root", "open_to_all")

As = Callable[..., str]

ONE, OTHER, GROUP, OTHER_GROUP = 4001, 4002, 5000, 5001

LISTS = {
    "a user": "u::rw- u:4001:rwx g::r-- m::rwx o::---",
    "users": "u::rwx u:4001:--- u:4002:r-x g::rwx m::r-x o::rwx",
    "a group": "u::rw- g::--- g:5000:rw- m::rw- o::r--",
    "groups": "u::r-- g::rw- g:5000:r-- g:5001:-w- m::rwx o::---",
    "all": "u::rwx u:4001:rwx u:4002:-w- g::r-x g:5000:rwx m::r-- o::--x",
    "a mask": "u::rwx g::rwx m::r-x o::r--",
    "no more than a mode": "u::rw- g::r-- o::---",
    "nothing": "u::--- g::--- o::---",
}


def seen(path: Path) -> tuple[object, ...]:
    """What a filesystem says of a name."""
    status = path.lstat()
    lists = [outcome(os.getxattr, path, name, follow_symlinks=False) for name in (ACCESS, DEFAULT)]
    listed = sorted(name for name in os.listxattr(path, follow_symlinks=False) if "acl" in name)
    return oct(status.st_mode), status.st_uid, status.st_gid, lists, listed


def outcome(step: Callable[..., object], *arguments: Any, **options: Any) -> object:
    """What a step returns, or the name of its error."""
    try:
        return step(*arguments, **options)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@contextlib.contextmanager
def umask(bits: int) -> Iterator[None]:
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A directory of a tmpfs with access lists."""
    path = Path(tempfile.mkdtemp(dir="/dev/shm"))
    path.chmod(0o755)
    try:
        os.setxattr(path, ACCESS, packed(LISTS["a user"]))
        os.removexattr(path, ACCESS)
    except OSError:
        shutil.rmtree(path)
        pytest.skip("there is no tmpfs with access lists")
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def sides(mnt: Path, tmpfs: Path) -> tuple[Path, Path]:
    """The same twice, ours first."""
    return mnt, tmpfs


MAKERS: dict[str, Callable[[Path, int], object]] = {
    "file": lambda path, mode: os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode)),
    "directory": lambda path, mode: path.mkdir(mode),
    "fifo": os.mkfifo,
    "node": lambda path, mode: os.mknod(path, stat.S_IFREG | mode),
    "link": lambda path, mode: path.symlink_to("nowhere"),
}


def new_files(root: Path) -> list[object]:
    """Make files of every type in directories with every default list, under several umasks."""
    done: list[object] = []
    for number, text in enumerate([None, *LISTS.values()]):
        folder = root / f"d{number}"
        folder.mkdir()
        if text is not None:
            done.append(outcome(os.setxattr, folder, DEFAULT, packed(text)))
        done.append(seen(folder))
        for bits, mode in itertools.product(
            (0o022, 0, 0o077, 0o777), (0o666, 0o777, 0o640, 0o2771)
        ):
            made = folder / f"{bits:o}-{mode:o}"
            for kind, make in MAKERS.items():
                with umask(bits):
                    path = made.with_name(f"{made.name}-{kind}")
                    done.append((kind, oct(bits), oct(mode), outcome(make, path, mode), seen(path)))
            deeper = made.with_name(f"{made.name}-directory") / "deeper"
            with umask(bits):
                deeper.mkdir(mode)
            done.append(seen(deeper))
    return done


def changes(root: Path) -> list[object]:
    """Change lists and modes of a file and of a directory by turns."""
    done: list[object] = []
    file, folder, link = root / "file", root / "folder", root / "link"
    file.touch()
    folder.mkdir()
    link.symlink_to("file")
    for path, text in itertools.product((file, folder), LISTS.values()):
        value = packed(text)
        for mode in (0o640, 0o6777):
            path.chmod(mode)
            done += [outcome(os.setxattr, path, ACCESS, value), seen(path)]
            for then in (0o600, 0o070, 0o2775, 0o7421, mode):
                path.chmod(then)
                done.append(seen(path))
            os.chown(path, ONE, GROUP)
            done.append(seen(path))
            os.chown(path, 0, 0)
            done += [outcome(os.removexattr, path, ACCESS), seen(path)]
        done += [outcome(os.setxattr, path, DEFAULT, value), seen(path)]
        path.chmod(0o700)
        done.append(seen(path))
        done += [outcome(os.removexattr, path, DEFAULT), seen(path)]
        done += [
            outcome(os.setxattr, link, name, value, follow_symlinks=False)
            for name in (ACCESS, DEFAULT)
        ]
    return done


def bad_lists(root: Path) -> list[object]:
    """Set what is no list, or an empty one."""
    path = root / "folder"
    path.mkdir()
    good = packed(LISTS["a user"])
    bad = [
        *(good[:length] for length in (0, 1, 4, 5, 11, 12, 20)),
        b"\1" + good[1:],
        good + b"\0" * 8,
        packed("u:4001:rwx g::r-- m::rwx o::---"),
        packed("u::rw- u:4001:rwx g::r-- o::---"),
        packed("u::rw- u::rw- g::r-- o::---"),
        packed("u::rw- m::rwx g::r-- o::---"),
        good.replace(struct.pack("<HHI", 2, 7, ONE), struct.pack("<HHI", 0x40, 7, ONE)),
        good.replace(struct.pack("<HHI", 2, 7, ONE), struct.pack("<HHI", 2, 8, ONE)),
    ]
    done: list[object] = []
    for value, name in itertools.product(bad, (ACCESS, DEFAULT)):
        done += [outcome(os.setxattr, path, name, value), seen(path)]
    return done


@pytest.mark.parametrize("walk", [new_files, changes, bad_lists])
def test_each_step_does_what_it_does_on_tmpfs(
    sides: tuple[Path, Path], walk: Callable[[Path], list[object]]
) -> None:
    ours, theirs = map(walk, sides)
    assert len(ours) > 20
    for number, pair in enumerate(zip(ours, theirs, strict=True)):
        assert pair[0] == pair[1], f"step {number}"


def nameless(root: Path) -> list[object]:
    """Make files without a name where there is a default list; their modes and lists."""
    os.setxattr(root, DEFAULT, packed(LISTS["groups"]))
    done: list[object] = []
    for bits, mode in itertools.product((0o022, 0o777), (0o666, 0o750)):
        with umask(bits):
            fd = os.open(root, os.O_TMPFILE | os.O_WRONLY, mode)
        done.append((oct(os.fstat(fd).st_mode), outcome(os.getxattr, fd, ACCESS)))
        os.close(fd)
    return done


def test_a_file_without_a_name_inherits_as_on_tmpfs(sides: tuple[Path, Path]) -> None:
    ours, theirs = map(nameless, sides)
    assert ours == theirs


def setgid_after_a_list(root: Path, run_as: As) -> list[object]:
    """Whether a file keeps that bit when its owner, of its group or not, sets a list."""
    done: list[object] = []
    for groups in ((), (GROUP,)):
        path = root / f"file{len(groups)}"
        path.touch()
        os.chown(path, ONE, GROUP)
        path.chmod(0o2775)
        run_as(ONE, SET, path, ACCESS, packed(LISTS["groups"]).hex(), groups=groups)
        done.append(seen(path))
        path.chmod(0o2775)
        os.setxattr(path, ACCESS, packed(LISTS["users"]))
        done.append(seen(path))
    return done


SET = "os.setxattr(sys.argv[1], sys.argv[2], bytes.fromhex(sys.argv[3]))"


def test_a_list_takes_the_set_group_id_bit_from_who_is_not_in_the_group(
    sides: tuple[Path, Path], run_as: As
) -> None:
    ours, theirs = (setgid_after_a_list(root, run_as) for root in sides)
    assert ours == theirs
    modes = [str(status[0]) for status in ours]
    assert [mode[-4] == "2" for mode in modes] == [False, True, True, True]


RIGHTS = """
for path in sys.argv[1:]:
    how = (os.R_OK, os.W_OK, os.X_OK)
    print("".join(name for name, right in zip("rwx", how) if os.access(path, right)) or "-")
"""

USERS = [(ONE, ()), (ONE, (GROUP,)), (OTHER, ()), (OTHER, (OTHER_GROUP,)), (4003, ())]
USERS += [(4003, (GROUP,)), (4003, (GROUP, OTHER_GROUP)), (4003, (4100,))]


def files_with_lists(root: Path) -> list[Path]:
    """A file and a directory with each list, of a user and a group."""
    paths = []
    for number, (text, mode) in enumerate(itertools.product(LISTS.values(), (None, 0o750, 0o704))):
        for path in (root / f"f{number}", root / f"d{number}"):
            path.mkdir() if path.name[0] == "d" else path.write_bytes(b"x")
            os.chown(path, 4009, 4100)
            os.setxattr(path, ACCESS, packed(text))
            if mode is not None:
                path.chmod(mode)
            paths.append(path)
    return paths


def test_the_rights_of_users_and_groups_are_those_on_tmpfs(
    mounted: Any, tmpfs: Path, run_as: As
) -> None:
    mounted.path.chmod(0o755)
    ours, theirs = files_with_lists(mounted.path), files_with_lists(tmpfs)
    expected = [run_as(uid, RIGHTS, *theirs, groups=groups) for uid, groups in USERS]
    assert len({line for out in expected for line in out.split()}) > 6, "all sorts of rights"
    for path in ours:
        if path.is_file():
            path.read_bytes()
    for _ in ("staged", "sealed"):
        assert [run_as(uid, RIGHTS, *ours, groups=groups) for uid, groups in USERS] == expected
        mounted.remount()


def test_a_right_that_is_given_or_taken_counts_at_the_next_open(mnt: Path, run_as: As) -> None:
    path = mnt / "file"
    path.write_bytes(b"x")
    path.chmod(0o600)
    with path.open("rb"):  # in relay mode opens need no Python now
        for text, rights in (
            ("u::rw- u:4001:r-- g::--- m::r-- o::---", "r"),
            ("u::rw- u:4001:rw- g::--- m::rw- o::---", "rw"),
            ("u::rw- u:4001:rw- g::--- m::-w- o::---", "w"),
            ("u::rw- u:4002:rw- g::--- m::rw- o::---", "-"),
        ):
            assert run_as(ONE, RIGHTS, path) != rights + "\n"
            os.setxattr(path, ACCESS, packed(text))
            assert run_as(ONE, RIGHTS, path) == rights + "\n"
        os.setxattr(path, ACCESS, packed("u::rw- u:4001:rw- g::--- m::rw- o::---"))
        path.chmod(0o640)
        assert run_as(ONE, RIGHTS, path) == "r\n"
        os.removexattr(path, ACCESS)
        assert run_as(ONE, RIGHTS, path) == "-\n"


def tree_with_lists(root: Path) -> dict[str, tuple[object, ...]]:
    """Make files whose lists are set, inherited or gone; what is to be seen of them."""
    root.mkdir()
    os.setxattr(root, DEFAULT, packed(LISTS["all"]))
    (root / "folder").mkdir()
    (root / "folder/inherits").write_bytes(b"x" * 100)
    os.setxattr(root / "folder", ACCESS, packed(LISTS["groups"]))
    (root / "has").write_bytes(b"y" * 100)
    os.setxattr(root / "has", ACCESS, packed(LISTS["users"]))
    (root / "has").chmod(0o710)
    (root / "has none").touch()
    os.removexattr(root / "has none", ACCESS)
    os.mkfifo(root / "fifo")
    return seen_below(root)


def seen_below(root: Path) -> dict[str, tuple[object, ...]]:
    return {str(path.relative_to(root)): seen(path) for path in [root, *root.rglob("*")]}


def test_lists_go_where_files_go(mounted: Any) -> None:
    tree = mounted.path / "tree"
    expected = tree_with_lists(tree)
    assert packed(LISTS["users"]) != expected["has"][3][0]  # type: ignore[index]
    mounted.agentfs("clone", tree, mounted.path / "clone")
    assert seen_below(mounted.path / "clone") == expected
    tree = tree.rename(mounted.path / "renamed")
    assert seen_below(tree) == expected
    mounted.kill()
    mounted.mount()
    assert seen_below(tree) == expected
    mounted.remount()
    assert seen_below(tree) == expected
    mounted.agentfs("clone", tree, mounted.path / "later")
    assert seen_below(mounted.path / "later") == expected
    assert "is whole" in mounted.agentfs("fsck", mounted.path)


def test_lists_outlive_the_index(mounted: Any) -> None:
    expected = tree_with_lists(mounted.path / "tree")
    mounted.umount()
    (mounted.store / "index.db").write_bytes(b"nothing of it is left" * 1000)
    mounted.agentfs("fsck", "--repair", mounted.store, check=False)
    mounted.mount()
    assert seen_below(mounted.path / "tree") == expected


@pytest.mark.parametrize(
    "command",
    [
        'cp -a "$1" "$2"',
        'mkdir "$2" && tar -C "$1" --acls -cf - . | tar -C "$2" --acls -xpf -',
        'rsync -aA "$1/" "$2"',
    ],
    ids=["cp", "tar", "rsync"],
)
def test_programs_carry_lists_there_and_back(mnt: Path, tmpfs: Path, command: str) -> None:
    program = next(word for word in ("tar", "rsync", "cp") if word in command)
    if shutil.which(program) is None:
        pytest.skip(f"there is no {program}")
    expected = tree_with_lists(tmpfs / "tree")
    places = [tmpfs / "tree", mnt / "there", mnt / "again", tmpfs / "back"]
    for source, target in itertools.pairwise(places):
        subprocess.run(["sh", "-ec", command, "sh", source, target], check=True)
        assert seen_below(target) == expected


@pytest.mark.parametrize("name", [ACCESS, DEFAULT])
def test_a_profile_may_refuse_lists(mount_store: Any, tmp_path: Path, name: str) -> None:
    profile = tmp_path / "refusing.toml"
    profile.write_text('[store]\nacl = "refuse"\n')
    mounted = mount_store("--profile", profile)
    folder = mounted.path / "folder"
    folder.mkdir()
    refused = errno.errorcode[errno.EOPNOTSUPP]
    assert outcome(os.setxattr, folder, name, packed(LISTS["all"])) == refused
    assert outcome(os.getxattr, folder, name) == refused
    with umask(0o027):
        (folder / "deeper").mkdir()
    assert stat.S_IMODE((folder / "deeper").stat().st_mode) == 0o750
    assert os.listxattr(folder) == []


def test_a_store_with_lists_keeps_them_whatever_the_profile_says(
    mount_store: Any, tmp_path: Path, run_as: As
) -> None:
    mounted = mount_store()
    path = mounted.path / "file"
    path.write_bytes(b"x")
    os.setxattr(path, ACCESS, packed("u::rw- u:4001:r-- g::--- m::r-- o::---"))
    mounted.umount()
    profile = tmp_path / "refusing.toml"
    profile.write_text('[store]\nacl = "refuse"\n')
    mounted = mount_store("--profile", profile)
    assert run_as(ONE, RIGHTS, path) == "r\n"
    os.chown(path, 0, GROUP)
    assert run_as(OTHER, RIGHTS, path, groups=(GROUP,)) == "-\n", "the mode's r is the mask's"
