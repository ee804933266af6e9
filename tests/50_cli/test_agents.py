"""`agentfs agents` and `agentfs agent`: what they answer, and what is said when they cannot."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentfs.errors import NoSuchPath, PathTaken, UsageError

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def agents(mounted: Any) -> Path:
    directory: Path = mounted.path / "agents"
    prompt = os.urandom(500_000)
    for name, own in (("one", 1000), ("two", 50_000)):
        (directory / name).mkdir(parents=True)
        (directory / name / "prompt").write_bytes(prompt)
        (directory / name / "own").write_bytes(os.urandom(own))
    mounted.agentfs("sync", mounted.path)
    return directory


def listed(run: Run, agents: Path, *options: str) -> list[dict[str, Any]]:
    answer: dict[str, Any] = json.loads(run("agents", agents.parent, "--json", *options).stdout)
    found: list[dict[str, Any]] = answer["agents"]
    return found


def test_agents_are_listed_with_what_they_share_and_own(agents: Path, run: Run) -> None:
    header, one, two = run("agents", agents.parent).stdout.splitlines()
    assert header.split()[:4] == ["agent", "state", "importance", "files"]
    assert one.split()[:4] == ["one", "active", "50", "2"]
    assert two.endswith(" s ago")
    found = {agent["name"]: agent for agent in listed(run, agents)}
    assert found["two"]["exclusive_bytes"] == 50_000
    assert found["two"]["shared_bytes"] == 500_000
    assert found["two"]["directories"] == ["/agents/two"]


def test_agents_are_sorted_by_any_figure(agents: Path, run: Run) -> None:
    assert [one["name"] for one in listed(run, agents)] == ["one", "two"]
    for key in ("own", "logical", "used"):
        assert listed(run, agents, "--sort", key)[0]["name"] == "two"
    assert run("agents", "--sort", "weight").returncode == UsageError.exit_code


def test_an_agent_is_paused_resumed_and_weighed(agents: Path, run: Run) -> None:
    assert "two is paused" in run("agent", "pause", "two", agents.parent).stdout
    assert run("agent", "importance", "two", "90", agents.parent).returncode == 0
    found = {one["name"]: (one["state"], one["importance"]) for one in listed(run, agents)}
    assert found == {"one": ("active", 50), "two": ("paused", 90)}
    answer = json.loads(run("agent", "resume", "two", agents.parent, "--json").stdout)
    assert answer == {"agent": "two", "state": None, "directories": ["/agents/two"]}
    assert listed(run, agents)[1]["state"] == "active"


def test_a_spawned_agent_is_there_whole_and_mappable_at_once(agents: Path, run: Run) -> None:
    done = run("agent", "spawn", "three", agents.parent, "--from", "one")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"agentfs: three is an agent in {agents}/three (2 files, 489 KiB")
    for file in (agents / "one").iterdir():
        with open(agents / "three" / file.name, "rb") as copy:
            mapped = mmap.mmap(copy.fileno(), 0, prot=mmap.PROT_READ)
            assert bytes(mapped) == file.read_bytes()
    assert listed(run, agents, "--sort", "name")[1]["exclusive_bytes"] == 0


def test_any_directory_can_be_a_template(agents: Path, run: Run) -> None:
    done = run("agent", "spawn", "four", agents.parent, "--from", agents / "two", "--json")
    answer = json.loads(done.stdout)
    assert (answer["agent"], answer["directory"]) == ("four", str(agents / "four"))
    assert (answer["files"], answer["template"]) == (2, str(agents / "two"))
    assert 0 < answer["daemon_s"] < 5


def test_what_is_wrong_is_said_in_a_line(agents: Path, run: Run, tmp_path: Path) -> None:
    root = agents.parent
    for kind, words in (
        (NoSuchPath, ("pause", "nobody", root)),
        (NoSuchPath, ("spawn", "new", root, "--from", "nobody")),
        (NoSuchPath, ("spawn", "new", root, "--from", agents / "missing")),
        (NoSuchPath, ("spawn", "new", root, "--from", agents / "one/own")),
        (PathTaken, ("spawn", "two", root, "--from", "one")),
        (UsageError, ("spawn", "a/b", root, "--from", "one")),
        (UsageError, ("spawn", "new", root, "--from", root)),
        (UsageError, ("spawn", "n" * 256, root, "--from", "one")),
    ):
        done = run("agent", *words)
        assert (done.returncode, done.stdout) == (kind.exit_code, ""), words
        assert done.stderr.startswith("agentfs: ")
        assert done.stderr.count("\n") == 1
    assert run("agent", "importance", "one", "101", root).returncode == UsageError.exit_code
    assert sorted(os.listdir(agents)) == ["one", "two"]


def test_an_agent_of_several_directories_is_no_template_by_name(agents: Path, run: Run) -> None:
    (agents.parent / "more").mkdir()
    os.setxattr(agents.parent / "more", "user.agentfs.agent", b"one")
    done = run("agent", "spawn", "new", agents.parent, "--from", "one")
    assert done.returncode == UsageError.exit_code
    assert f"{agents}/one" in done.stderr


def test_a_store_without_agents_lists_none(mounted: Any, run: Run) -> None:
    assert run("agents", mounted.path).stdout == ""
    assert json.loads(run("agents", mounted.path, "--json").stdout) == {"agents": []}
