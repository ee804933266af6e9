"""`agentfs agents` and `agentfs agent`: who is there, and what is to become of them."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentfs.cli import output
from agentfs.cli.arguments import SORT_KEYS
from agentfs.cli.mounts import Target, find_target
from agentfs.cli.paths import check_rights, located, resolved
from agentfs.control import client
from agentfs.errors import NoSuchPath, NotMounted, UsageError
from agentfs.model import NAME_BYTES_MAX

_HEADER = ("agent", "state", "importance", "files", "logical", "shared", "own", "hot", "last used")


def agents_command(arguments: argparse.Namespace) -> int:
    """List all agents."""
    target = find_target(arguments.target)
    agents = sorted_agents(client.call(target.store, "agents").get("rows", []), arguments.sort)
    if arguments.json:
        output.print_json({"agents": agents})
    elif agents:
        output.print_columns([_HEADER, *map(_cells, agents)], right=range(2, 8))
    return 0


def sorted_agents(agents: list[dict[str, Any]], sort: str) -> list[dict[str, Any]]:
    """Return agents in the order that `--sort` asks for; of figures the highest first."""
    key = SORT_KEYS[sort]
    return sorted(agents, key=lambda one: one[key], reverse=key not in ("name", "state"))


def _cells(agent: dict[str, Any]) -> tuple[str, ...]:
    used_ns = agent["last_used_ns"]
    rest_s = max(time.time() - used_ns / 1e9, 0)
    return (
        output.printable(agent["name"]),
        agent["state"],
        str(agent["importance"]),
        f"{agent['files']:,}",
        *(
            output.size(agent[f"{what}_bytes"])
            for what in ("logical", "shared", "exclusive", "hot")
        ),
        f"{output.duration(rest_s)} ago" if used_ns else "never",
    )


def agent_command(arguments: argparse.Namespace) -> int:
    """Do what was asked with one agent."""
    actions: dict[str, Callable[[argparse.Namespace], int]] = {
        "pause": _pause,
        "resume": _resume,
        "importance": _importance,
        "spawn": _spawn,
    }
    return actions[arguments.action](arguments)


def _pause(arguments: argparse.Namespace) -> int:
    return _set(arguments, {"state": "paused"}, "is paused: its files go first when room is needed")


def _resume(arguments: argparse.Namespace) -> int:
    return _set(arguments, {"state": None}, "is not paused any more")


def _importance(arguments: argparse.Namespace) -> int:
    value = str(arguments.importance)
    return _set(arguments, {"importance": value}, f"has importance {value} of 100")


def _set(arguments: argparse.Namespace, change: dict[str, str | None], done: str) -> int:
    target = find_target(arguments.target)
    request = {"name": arguments.name, "set": change}
    result = {"agent": arguments.name} | change | client.call(target.store, "agent", request)
    return output.answer(arguments.json, result, f"agentfs: {arguments.name} {done}")


def _spawn(arguments: argparse.Namespace) -> int:
    name = arguments.name
    if "/" in name or name in ("", ".", "..") or len(os.fsencode(name)) > NAME_BYTES_MAX:
        raise UsageError(f"{name!r} is no name for an agent: it is to be a directory's")
    target = find_target(arguments.target)
    if target.mountpoint is None:
        raise NotMounted(f"{target.store} is not mounted; agentfs mount does that")
    template = _template(arguments.template, target)
    if template == target.mountpoint:
        raise UsageError(f"{template} is the mounted directory itself; name one in it")
    destination = template.with_name(name)
    check_rights(template, os.R_OK | os.X_OK, "read")
    check_rights(template.parent, os.W_OK | os.X_OK, "write to")
    request = {"source": located(template, "")[1], "target": located(destination, "")[1]}
    answer = client.call(target.store, "spawn", request | {"name": name}, is_repeatable=False)
    result = {"agent": name, "directory": str(destination), "template": str(template)} | answer
    things = f"{result['files']:,} files, {output.size(result['logical_bytes'])}"
    took = f"{result['daemon_s'] * 1e3:.2f} ms"
    text = f"agentfs: {name} is an agent in {destination} ({things}, {took})"
    return output.answer(arguments.json, result, text)


def _template(given: str, target: Target) -> Path:
    """The directory of an agent by its name, or by its path."""
    assert target.mountpoint is not None, "asked before"
    if "/" in given:
        path = resolved(given)
        if located(path, "name one that is")[0].store != target.store:
            raise UsageError(f"{path} is not in {target.mountpoint}; say which mount you mean")
        if not path.is_dir():
            raise NoSuchPath(f"{path} is not a directory")
        return path
    directories = client.call(target.store, "agent", {"name": given})["directories"]
    if len(directories) > 1:
        several = ", ".join(f"{target.mountpoint}{one}" for one in directories)
        raise UsageError(f"{given} has several directories, give the path of one: {several}")
    return Path(f"{target.mountpoint}{directories[0]}")
