"""A database, a version control system and a package installer work in the mount."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import sys
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

Program = Callable[..., str]

ROWS = 3000


@pytest.mark.parametrize("journal", ["wal", "delete", "truncate"])
def test_an_sqlite_database_lives_in_the_mount(mounted: Any, journal: str) -> None:
    rng = random.Random(1)
    path = mounted.path / "agents.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        assert db.execute(f"PRAGMA journal_mode = {journal}").fetchone() == (journal,)
        db.execute("CREATE TABLE message (id INTEGER PRIMARY KEY, agent TEXT, body BLOB)")
        db.execute("CREATE INDEX message_agent ON message (agent)")
        for start in range(0, ROWS, 100):
            db.execute("BEGIN")
            for number in range(start, start + 100):
                db.execute(
                    "INSERT INTO message VALUES (?, ?, ?)",
                    (number, f"agent {number % 17}", rng.randbytes(rng.randrange(600))),
                )
            db.execute("COMMIT" if start != 1000 else "ROLLBACK")
        db.execute("DELETE FROM message WHERE id % 7 = 0")
        with closing(sqlite3.connect(path)) as reader:
            count = reader.execute("SELECT count(*) FROM message").fetchone()
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        digest = db.execute("SELECT sum(id), sum(length(body)) FROM message").fetchone()
    mounted.remount()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM message").fetchone() == count
        assert db.execute("SELECT sum(id), sum(length(body)) FROM message").fetchone() == digest


def test_an_sqlite_transaction_survives_a_killed_daemon(mounted: Any) -> None:
    path = mounted.path / "agents.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = FULL")
        db.execute("CREATE TABLE message (body TEXT)")
        for number in range(50):
            db.execute("INSERT INTO message VALUES (?)", (f"{number}" * 100,))
    mounted.kill()
    mounted.mount()
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert db.execute("SELECT count(*) FROM message").fetchone() == (50,)


@pytest.fixture
def git(program: Program, tmp_path: Path) -> Program:
    """git that knows no configuration but ours."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_{what}": "agent" for who in ("AUTHOR", "COMMITTER") for what in ("NAME",)},
        "GIT_AUTHOR_EMAIL": "agent@example.org",
        "GIT_COMMITTER_EMAIL": "agent@example.org",
    }
    return lambda *arguments, **options: program("git", *arguments, env=environment, **options)


def test_a_git_repository_lives_in_the_mount(mounted: Any, git: Program) -> None:
    repository, clone = mounted.path / "repository", mounted.path / "clone"
    git("init", "-q", "-b", "main", repository)
    rng = random.Random(1)
    for commit in range(8):
        for number in range(40):
            path = repository / f"package{number % 5}" / f"module{number}.py"
            path.parent.mkdir(exist_ok=True)
            lines = [f"value_{rng.randrange(50)} = {rng.randrange(10**6)}" for _ in range(60)]
            path.write_text("\n".join(lines))
        git("add", "-A", cwd=repository)
        git("commit", "-q", "-m", f"commit {commit}", cwd=repository)
    git("checkout", "-q", "-b", "side", "HEAD~3", cwd=repository)
    (repository / "side.txt").write_text("on the side\n")
    git("add", "side.txt", cwd=repository)
    git("commit", "-q", "-m", "side", cwd=repository)
    git("gc", "-q", "--aggressive", "--prune=now", cwd=repository)
    git("clone", "-q", "--no-local", repository, clone)
    assert git("status", "--porcelain", cwd=clone) == ""
    mounted.remount()
    for tree in (repository, clone):
        git("fsck", "--full", "--strict", cwd=tree)
        assert git("status", "--porcelain", cwd=tree) == ""
    assert (clone / "side.txt").read_text() == "on the side\n"
    assert len(git("log", "--oneline", "main", cwd=repository).splitlines()) == 8


@pytest.mark.timeout(200)
def test_a_virtual_environment_works_in_the_mount(mounted: Any, program: Program) -> None:
    environment = mounted.path / "venv"
    python = environment / "bin" / "python"
    pytest.importorskip("ensurepip", reason="a venv with pip needs it")
    program(sys.executable, "-m", "venv", environment)
    wheel = make_wheel(mounted.path)
    install = ["install", "-q", "--no-index", "--disable-pip-version-check", wheel]
    program(python, "-m", "pip", *install)
    assert program(python, "-c", "import spoken; print(spoken.word)") == "heard\n"
    mounted.remount()
    assert program(python, "-c", "import spoken; print(spoken.word)") == "heard\n"
    assert "spoken" in program(python, "-m", "pip", "--disable-pip-version-check", "list")
    program(python, "-m", "pip", "check")


def make_wheel(folder: Path) -> Path:
    """A wheel with a module of one line, made without any build tool."""
    path = folder / "spoken-1.0-py3-none-any.whl"
    meta = "spoken-1.0.dist-info"
    files = {
        "spoken.py": 'word = "heard"\n',
        f"{meta}/METADATA": "Metadata-Version: 2.1\nName: spoken\nVersion: 1.0\n",
        f"{meta}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{meta}/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in (files | {f"{meta}/RECORD": record}).items():
            wheel.writestr(name, text)
    return path


def test_tar_there_and_back_changes_nothing(mounted: Any, program: Program, tmp_path: Path) -> None:
    source = Path(os.__file__).parent / "json"
    program("cp", "-a", source, mounted.path / "tree")
    program("tar", "-C", mounted.path, "-cf", mounted.path / "tree.tar", "tree")
    mounted.remount()
    (tmp_path / "out").mkdir()
    program("tar", "-C", tmp_path / "out", "-xf", mounted.path / "tree.tar")
    program("diff", "-r", source, tmp_path / "out" / "tree")
    program("diff", "-r", source, mounted.path / "tree")
