"""`agentfs tune`: kernel settings for agents, shown, set, or set back."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from agentfs.cli import output
from agentfs.errors import SettingRefused
from agentfs.machine import tune
from agentfs.machine.reading import Machine

_NO_SWAP = "there is no swap: zswap and swappiness have no effect until there is"


def tune_command(arguments: argparse.Namespace) -> int:
    """Show, set or set back, as the arguments say."""
    machine = Machine()
    if arguments.apply:
        return report(tune.apply(machine), machine, as_json=arguments.json)
    if arguments.undo:
        return report(tune.undo(machine), machine, as_json=arguments.json)
    return show(machine, as_json=arguments.json)


def show(machine: Machine, *, as_json: bool) -> int:
    """Print what is proposed, and change nothing."""
    proposals = tune.proposals(machine)
    lines = [
        f"  {p.path} is {p.now}" + ("" if p.is_met else f", should be {p.wanted}: {p.why}")
        for p in proposals
    ]
    due = sum(not proposal.is_met for proposal in proposals)
    lines.append(
        f"agentfs: {due} to be set; agentfs tune --apply sets them, --undo sets them back"
        if due
        else "agentfs: all is as it should be"
    )
    settings = [asdict(p) | {"is_met": p.is_met} for p in proposals]
    return _answer(machine, {"settings": settings}, lines, as_json)


def report(changes: Sequence[tune.Change], machine: Machine, *, as_json: bool) -> int:
    """Print what was done; returns an exit code."""
    problems = sum(change.problem is not None for change in changes)
    lines = [_line(change) for change in changes]
    done = len(changes) - problems
    lines.append(
        f"agentfs: {done} set" + (f", {problems} not as asked for" if problems else "")
        if changes
        else "agentfs: all is as it should be"
    )
    _answer(machine, {"changes": [asdict(change) for change in changes]}, lines, as_json)
    return SettingRefused.exit_code if problems else 0


def _line(change: tune.Change) -> str:
    if change.problem is None:
        return f"  {change.path} is {change.after}, was {change.before}"
    return f"  {change.path} stays {change.after}: {change.problem}"


def _answer(machine: Machine, value: dict[str, Any], lines: list[str], as_json: bool) -> int:
    if not machine.swaps():
        lines.append(f"agentfs: {_NO_SWAP}")
    return output.answer(as_json, value | {"has_swap": bool(machine.swaps())}, "\n".join(lines))
