"""`agentfs stats`: what a store holds, what it saves, and how the daemon fares."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agentfs import __version__
from agentfs.cli import live, output
from agentfs.cli.mounts import Target, find_target
from agentfs.control import client, lock

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

# Every key a reader may count on. What only a daemon knows is None when there is none.
EMPTY: dict[str, Any] = {
    "mode": "unmounted",
    **dict.fromkeys(
        ("files", "logical_bytes", "unique_bytes", "stored_bytes", "resident_bytes"), 0
    ),
    **dict.fromkeys(("reduction", "dedup_ratio", "compression_ratio"), 1.0),
    **dict.fromkeys(("chunks", "blocks", "segments"), 0),
    **dict.fromkeys(("pid", "keeper_pid", "worker_pid"), None),
    **dict.fromkeys(("relay", "rss_bytes", "uptime_s", "cache_hits", "cache_misses"), None),
    **dict.fromkeys(("prefetched", "prefetch_used", "prefetch_wasted", "prefetch_hit_rate"), None),
    **dict.fromkeys(("pressure", "pressure_step", "pressure_causes", "pressure_entered"), None),
    **dict.fromkeys(("daemon_budget_bytes", "available_share", "stalled_share"), None),
    **dict.fromkeys(("expected_bytes", "evicted_bytes", "evicted_ahead_bytes"), None),
    **dict.fromkeys(("tmpfs_refusals", "writer_waits"), None),
    **dict.fromkeys(("compaction", "compaction_done_bytes", "compaction_total_bytes"), None),
}


def stats_command(arguments: argparse.Namespace) -> int:
    """Print the figures of one store, once or again and again."""
    target = find_target(arguments.target)
    if arguments.watch is not None:
        return live.show(
            lambda: gather(target),
            lambda figures, _: draw(figures),
            arguments.watch,
            as_json=arguments.json,
        )
    figures = gather(target)
    if arguments.json:
        output.print_json(figures)
    else:
        output.console(soft_wrap=True).print(draw(figures))
    return 0


def gather(target: Target) -> dict[str, Any]:
    """Ask the live daemon, or read the index of a store that none holds."""
    if lock.holder(target.store) is not None:
        figures = client.call(target.store, "stats")
        mountpoint = target.mountpoint or figures.get("mountpoint")
    else:
        figures = _offline(target.store)
        mountpoint = None
    where = {"store": str(target.store), "mountpoint": _text(mountpoint), "version": __version__}
    return EMPTY | where | figures | {"mountpoint": _text(mountpoint)}


def draw(figures: dict[str, Any]) -> RenderableType:
    """The figures for a person."""
    from rich.console import Group
    from rich.text import Text

    details = "\n".join(_details(figures))
    return Group(Text(_headline(figures)), "", _bytes_table(figures), "", Text(details))


def _offline(store: Path) -> dict[str, Any]:
    from agentfs.filesystem.report import offline_stats

    figures: dict[str, Any] = offline_stats(store)
    return figures


def _headline(figures: dict[str, Any]) -> str:
    where = figures["mountpoint"] or figures["store"]
    saved = f"{figures['reduction']:.1f}x smaller"
    by = f"{figures['dedup_ratio']:.1f}x by dedup, {figures['compression_ratio']:.1f}x by zstd"
    return f"{where}: {output.count(figures.get('files', 0), 'files')}, {saved} ({by})"


def _bytes_table(figures: dict[str, Any]) -> Table:
    from rich.table import Table

    on_disk = "on disk"
    if isinstance(figures.get("segment_bytes"), int) and isinstance(
        figures.get("index_bytes"), int
    ):
        data, index = output.size(figures["segment_bytes"]), output.size(figures["index_bytes"])
        on_disk = f"on disk: {data} data, {index} index"
    hot = "uncompressed on tmpfs"
    if figures.get("resident_budget_bytes"):
        hot += f", of {output.size(figures['resident_budget_bytes'])}"
    rows = (
        ("logical", "logical_bytes", "what programs see"),
        ("unique", "unique_bytes", "after dedup"),
        ("stored", "stored_bytes", on_disk),
        ("hot", "resident_bytes", hot),
    )
    most = max(*(int(figures.get(key) or 0) for _, key, _ in rows), 1)
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(style="bold")
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column(style="dim", no_wrap=True)
    for name, key, meaning in rows:
        value = int(figures.get(key) or 0)
        table.add_row(f"  {name}", output.size(value), output.bar(value / most), meaning)
    return table


def _details(figures: dict[str, Any]) -> list[str]:
    counts = ", ".join(
        output.count(figures[key], key)
        for key in ("chunks", "blocks", "segments")
        if isinstance(figures.get(key), int)
    )
    if figures.get("garbage_bytes"):
        counts += f", {output.size(figures['garbage_bytes'])} garbage"
    if figures.get("young_bytes"):
        counts += f", {output.size(figures['young_bytes'])} not compacted"
    lines = [f"  store    {figures['store']} ({counts})" if counts else f"  {figures['store']}"]
    if figures["pid"] is None:
        return [*lines, "  daemon   none: the store is not mounted"]
    daemon = f"  daemon   pid {figures['pid']}, {figures['mode']} mode ({figures['mode_reason']})"
    if figures["uptime_s"] is not None:
        daemon += f", up {output.duration(figures['uptime_s'])}"
    if figures["rss_bytes"] is not None:
        daemon += f", RSS {output.size(figures['rss_bytes'])}"
    hits, misses = figures["cache_hits"] or 0, figures["cache_misses"] or 0
    if hits + misses:
        daemon += f", cache hits {hits / (hits + misses):.0%} of {hits + misses:,}"
    lines.append(daemon)
    if figures["prefetched"]:
        lines.append(f"  prefetch {output.prefetch(figures)}")
    if figures["pressure"] is not None:
        lines.append(f"  memory   {output.pressure(figures)}")
    if figures["compaction"] not in (None, "idle"):
        done, total = figures["compaction_done_bytes"], figures["compaction_total_bytes"]
        of = f"{output.size(done)} of {output.size(total)}"
        lines.append(f"  packing  {figures['compaction']}, {of} done")
    return lines


def _text(path: object) -> str | None:
    return None if path is None else str(path)
