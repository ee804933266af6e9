"""`agentfs clone`: its answers, and a line and an exit code for each thing that can be wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agentfs.errors import NoSuchPath, NotMounted, NotPermitted, PathTaken, UsageError

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tree(mounted: Any) -> Path:
    path: Path = mounted.path / "tree"
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "file").write_bytes(b"x" * 2048)
    return path


def test_the_answer_says_what_was_made(tree: Path, run: Run) -> None:
    target = tree.with_name("clone")
    done = run("clone", tree, target, "--json")
    answer = json.loads(done.stdout)
    assert answer.pop("daemon_s") > 0
    assert answer == {
        "source": str(tree),
        "destination": str(target),
        "inode": target.stat().st_ino,
        "files": 1,
        "directories": 2,
        "logical_bytes": 2048,
    }
    done = run("clone", tree / "sub/file", tree / "copy")
    assert done.stdout.startswith(f"agentfs: {tree}/copy is a clone of {tree}/sub/file (1 files,")
    assert done.stderr == ""


def test_names_that_are_not_utf8_and_links_to_the_source(tree: Path, run: Run) -> None:
    odd = tree / os.fsdecode(b"\xff \n\\")
    (tree / "sub/file").rename(odd)
    (tree / "link").symlink_to(odd.name)
    done = run("clone", tree / "link", tree / os.fsdecode(b"\xfe"), "--json")
    assert done.returncode == 0, done.stderr
    assert (tree / os.fsdecode(b"\xfe")).read_bytes() == b"x" * 2048
    assert not (tree / os.fsdecode(b"\xfe")).is_symlink(), "a link is followed to the source"


def test_relative_paths(tree: Path, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "agentfs.cli", "clone", "sub", "./other"]
    subprocess.run(command, cwd=tree, env=environment, check=True, capture_output=True)
    assert (tree / "other" / "file").read_bytes() == b"x" * 2048


@pytest.fixture
def refused(tree: Path, run: Run) -> Callable[..., str]:
    """Run a clone that must fail with one line, and change nothing."""

    def check(kind: type[Any], *arguments: str | Path) -> str:
        before = sorted(tree.parent.rglob("*"))
        done = run("clone", *arguments)
        assert (done.returncode, done.stdout) == (kind.exit_code, ""), done.stderr
        assert done.stderr.startswith("agentfs: ")
        assert done.stderr.count("\n") == 1
        assert sorted(tree.parent.rglob("*")) == before
        return done.stderr

    return check


def test_each_thing_that_is_wrong_has_its_line(
    tree: Path, mounted: Any, refused: Callable[..., str], tmp_path: Path
) -> None:
    root, outside = mounted.path, tmp_path / "outside"
    outside.mkdir()
    assert "not in an agentfs mount" in refused(NotMounted, outside, root / "new")
    assert "not in an agentfs mount" in refused(NotMounted, tree, outside / "new")
    assert "is not there" in refused(NoSuchPath, root / "missing", root / "new")
    assert "is not there" in refused(NoSuchPath, tree, root / "missing/new")
    assert "not a directory" in refused(NoSuchPath, tree, tree / "sub/file/new")
    taken = refused(PathTaken, tree, tree / "sub")
    assert f"{tree}/sub is there already; --force" in taken
    assert "within the source" in refused(UsageError, tree, tree / "sub/new")
    assert "is the source" in refused(UsageError, "--force", tree, tree)
    assert "or holds it" in refused(UsageError, "--force", tree / "sub", tree)
    assert "the mounted directory itself" in refused(UsageError, "--force", tree, root)
    assert "too long" in refused(UsageError, tree, root / ("n" * 256))
    (tree / "circle").symlink_to("circle")
    assert "circle" in refused(NoSuchPath, tree / "circle", root / "new")


def test_two_mounts_are_two(tree: Path, mount_store: Any, refused: Callable[..., str]) -> None:
    other = mount_store(name="other")
    assert "different mounts" in refused(UsageError, tree, other.path / "new")


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else takes root")
def test_who_may_not_read_or_write_is_told_so(
    tree: Path, mounted: Any, environment: dict[str, str]
) -> None:
    script = (
        "import os, sys, agentfs.cli.clone; from agentfs.cli import main, arguments;"
        "arguments.build_parser(); os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        "sys.exit(main(sys.argv[1:]))"
    )
    for above in (*mounted.path.parents, mounted.path):
        if above.stat().st_uid == os.geteuid() and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o005)
    (tree / "sub/file").chmod(0o600)
    open_to_all = mounted.path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    for source, target, word in (
        (tree / "sub/file", open_to_all / "new", "read"),
        (tree / "sub", tree / "new", "write"),
    ):
        command = [sys.executable, "-c", script, "clone", str(source), str(target)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == NotPermitted.exit_code, done.stderr
        assert f"may not {word}" in done.stderr
        assert not target.exists()


@pytest.fixture
def bind_mount(tree: Path, tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("mounting takes root")
    path = tmp_path / "bound"
    path.mkdir()
    subprocess.run(["mount", "--bind", tree, path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_bind_mount_of_a_part_is_the_same_mount(tree: Path, bind_mount: Path, run: Run) -> None:
    done = run("clone", bind_mount / "sub", tree.with_name("clone"))
    assert done.returncode == 0, done.stderr
    assert (tree.with_name("clone") / "file").read_bytes() == b"x" * 2048
    done = run("clone", tree / "sub", bind_mount / "back")
    assert done.returncode == 0, done.stderr
    assert (tree / "back" / "file").read_bytes() == b"x" * 2048


def test_a_dead_daemon_is_named(mounted: Any, tree: Path, run: Run) -> None:
    mounted.kill()
    done = run("clone", tree, tree.with_name("new"))
    assert done.returncode == NotMounted.exit_code
    assert "dead" in done.stderr
