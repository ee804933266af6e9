"""`agentfs ls`: what it shows, and a line and an exit code for what can be wrong."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentfs.errors import NoSuchPath, NotMounted

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def prompts(mounted: Any) -> Path:
    directory: Path = mounted.path / "agents/one/prompts"
    directory.mkdir(parents=True)
    (directory / "system.md").write_bytes(b"You are careful.\n" * 1000)
    (directory / "sub").mkdir()
    mounted.agentfs("sync", mounted.path)
    return directory


def test_a_long_listing_has_a_line_for_each_file(prompts: Path, run: Run) -> None:
    directory, file = run("ls", "-l", prompts).stdout.splitlines()
    assert directory.split() == ["d", "-", "one", "-", "-", "-", "sub"]
    kind, size, reduction, name = (file.split()[place] for place in (1, 4, 6, 7))
    assert (kind, size, name) == ("system_prompt", "16.6", "system.md")
    assert reduction.endswith("x")


def test_a_listing_in_json_has_every_figure(prompts: Path, run: Run) -> None:
    answer = json.loads(run("ls", prompts / "system.md", "--json").stdout)
    assert answer["path"] == str(prompts / "system.md")
    (entry,) = answer["entries"]
    assert entry["kind"] == "system_prompt"
    assert entry["size"] == 17_000
    assert entry["reduction"] > 10


def test_names_are_listed_alone_and_on_one_line_each(prompts: Path, run: Run) -> None:
    (prompts / os.fsdecode(b"\xff \n\x1b[31m")).write_bytes(b"")
    done = run("ls", prompts)
    assert done.stdout.splitlines() == ["sub", "system.md", r"\udcff \n\x1b[31m"]


def test_a_large_directory_is_listed_whole(mounted: Any, run: Run) -> None:
    names = sorted(f"{number:0100}" for number in range(1500))
    for name in names:
        (mounted.path / name).touch()
    assert run("ls", mounted.path).stdout.splitlines() == names


def test_what_is_wrong_is_said_in_a_line(mounted: Any, run: Run, tmp_path: Path) -> None:
    for kind, path in ((NotMounted, tmp_path), (NoSuchPath, mounted.path / "missing")):
        done = run("ls", path)
        assert (done.returncode, done.stdout) == (kind.exit_code, "")
        assert done.stderr.count("\n") == 1
    assert run("ls", "-l", mounted.path).stdout == "", "an empty directory has no lines"
