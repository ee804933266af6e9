"""`agentfs top`: agents and tiers, live."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentfs.cli import live, output
from agentfs.cli.agents import sorted_agents
from agentfs.cli.mounts import find_target
from agentfs.control import client

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_ROWS_ABOVE = 8
"""Of the screen, for what is not an agent."""


def top_command(arguments: argparse.Namespace) -> int:
    """Draw one store's agents again and again."""
    target = find_target(arguments.target)
    return live.show(
        lambda: gather(target.store, arguments.sort),
        lambda figures, rows: draw(figures, rows, target.mountpoint),
        arguments.interval,
        as_json=arguments.json,
    )


def gather(store: Path, sort: str) -> dict[str, Any]:
    """Ask the daemon for its figures and agents."""
    figures = client.call(store, "top")
    return figures | {"agents": sorted_agents(figures.pop("rows", []), sort)}


def draw(figures: dict[str, Any], rows: int | None, mountpoint: Path | None) -> RenderableType:
    """One frame, no longer than *rows*."""
    from rich.console import Group
    from rich.text import Text

    shown = figures["agents"] if rows is None else figures["agents"][: max(rows - _ROWS_ABOVE, 0)]
    parts: list[RenderableType] = [
        Text(_headline(figures, mountpoint), no_wrap=True, overflow="ellipsis"),
        _tiers(figures),
        Text(_activity(figures), no_wrap=True, overflow="ellipsis"),
        "",
        _agents(shown),
    ]
    hidden = len(figures["agents"]) - len(shown)
    if hidden:
        parts.append(Text(f"  and {hidden:,} more", "dim"))
    return Group(*parts)


def _headline(figures: dict[str, Any], mountpoint: Path | None) -> str:
    counts = sorted(Counter(agent["state"] for agent in figures["agents"]).items())
    states = ", ".join(f"{count:,} {state}" for state, count in counts)
    agents = output.count(len(figures["agents"]), "agents") + (f" ({states})" if states else "")
    files = output.count(figures["files"], "files")
    return (
        f"{mountpoint or figures['store']}: {agents}, {files}, {figures['reduction']:.1f}x smaller"
    )


def _tiers(figures: dict[str, Any]) -> Table:
    from rich.table import Table

    cold = figures["unique_bytes"] - figures["young_bytes"]
    budget = figures["resident_budget_bytes"]
    rows = (
        ("hot", figures["resident_bytes"], f"on tmpfs, of {output.size(budget)}"),
        ("warm", figures["young_bytes"], "on disk, packed fast"),
        ("cold", cold, f"on disk, compacted; all stored: {output.size(figures['stored_bytes'])}"),
    )
    most = max(*(count for _, count, _ in rows), 1)
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(style="dim", no_wrap=True, overflow="ellipsis")
    for name, count, meaning in rows:
        table.add_row(f"  {name}", output.size(count), output.bar(count / most), meaning)
    return table


def _activity(figures: dict[str, Any]) -> str:
    hits, misses = figures["cache_hits"], figures["cache_misses"]
    said = f"  staged {output.count(figures['staged_files'], 'files')}"
    if hits + misses:
        said += f", {hits / (hits + misses):.0%} of {hits + misses:,} block reads from the cache"
    if figures["prefetched"]:
        said += f", prefetch: {output.prefetch(figures)}"
    said += f", memory: {output.pressure(figures)}"
    return f"{said}, {figures['mode']} mode, up {output.duration(figures['uptime_s'])}"


def _agents(agents: list[dict[str, Any]]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="bold")
    table.add_column("agent", no_wrap=True, overflow="ellipsis", ratio=1)
    for name in ("state", "files", "open", "logical", "shared", "own", "hot", "used"):
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    now_ns = time.time_ns()
    for agent in agents:
        sizes = (
            output.size(agent[key])
            for key in ("logical_bytes", "shared_bytes", "exclusive_bytes", "hot_bytes")
        )
        table.add_row(
            Text(output.printable(agent["name"])),
            agent["state"],
            f"{agent['files']:,}",
            f"{agent['open_files']:,}",
            *sizes,
            output.duration(max(now_ns - agent["last_used_ns"], 0) / 1e9)
            if agent["last_used_ns"]
            else "never",
            style="bold" if agent["state"] == "active" else None,
        )
    return table
