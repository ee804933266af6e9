"""The page of `agentfs report`: one file that loads nothing, light or dark as its reader is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any

from agentfs.cli import charts, output
from agentfs.cli.charts import Part
from agentfs.model import Kind

_KINDS = {
    Kind.SYSTEM_PROMPT.label: "system prompts",
    Kind.TOOL_DEFINITION.label: "tool definitions",
    Kind.CONVERSATION.label: "conversations",
    Kind.TOOL_RESULT.label: "tool results",
    Kind.OTHER.label: "other files",
}
_KIND_STYLES = {kind: f"c{number}" for number, kind in enumerate(_KINDS, 1)}
_TIERS = (("hot", "hot", "on tmpfs"), ("warm", "warm", "on disk"), ("cold", "cold", "compacted"))
_AGENTS_SHOWN = 25
_NOBODY = "no agent"


def page(figures: dict[str, Any], now_s: float) -> str:
    """The whole page. What comes from the store is text, whatever it looks like."""
    where = escape(output.printable(str(figures["mountpoint"])))
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(now_s))
    sections = (
        ("What it saves", _savings(figures)),
        ("Where the bytes are, by kind", _by_kind(figures["holdings"])),
        ("Where the bytes are, by agent", _by_agent(figures["holdings"])),
        ("Tiers over time", _tiers_over_time(figures["samples"])),
        ("Hit rates", _hit_rates(figures)),
        ("Agents", _agents(figures["agents"], now_s)),
    )
    body = "".join(f"<section><h2>{title}</h2>{content}</section>" for title, content in sections)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>agentfs: {where}</title><style>{_STYLE}</style></head><body><main>"
        f"<header><h1>{where}</h1><p>{when}, {_mode(figures)}</p></header>"
        f"{_tiles(figures)}{body}"
        f"<footer>agentfs {escape(str(figures['version']))},"
        f" store {escape(output.printable(str(figures['store'])))}</footer></main></body></html>\n"
    )


def _mode(figures: dict[str, Any]) -> str:
    up = output.duration(figures["uptime_s"])
    return escape(f"{figures['mode']} mode, up {up}, profile {figures['profile']}")


def _tiles(figures: dict[str, Any]) -> str:
    budget = output.size(figures["resident_budget_bytes"])
    tiles = (
        (f"{figures['reduction']:.1f}x", "smaller than what programs see"),
        (output.size(figures["logical_bytes"]), output.count(figures["files"], "files")),
        (output.size(figures["stored_bytes"]), "on disk, index included"),
        (output.size(figures["resident_bytes"]), f"on tmpfs, of {budget}"),
        (f"{len(figures['agents']):,}", "agents"),
    )
    items = "".join(f"<li><b>{value}</b>{escape(meaning)}</li>" for value, meaning in tiles)
    return f'<ul class="tiles">{items}</ul>'


def _savings(figures: dict[str, Any]) -> str:
    logical, unique = figures["logical_bytes"], figures["unique_bytes"]
    data = figures["segment_bytes"] - figures["garbage_bytes"]
    rest = figures["stored_bytes"] - data
    rows = (
        ("logical", "what programs see", [Part("logical", "c5", logical)]),
        ("unique", f"{figures['dedup_ratio']:.1f}x by dedup", [Part("unique", "c2", unique)]),
        (
            "stored",
            f"{figures['compression_ratio']:.1f}x by zstd, with index and garbage",
            [Part("data", "c1", data), Part("index, copies of it, garbage", "c4", rest)],
        ),
    )
    whole = max(logical, unique, figures["stored_bytes"], 1)
    return _table(
        [
            (
                name,
                output.size(sum(part.value for part in parts)),
                charts.bar(parts, whole),
                escape(how),
            )
            for name, how, parts in rows
        ]
    ) + charts.legend([Part("data on disk", "c1"), Part("index, copies of it, and garbage", "c4")])


def _by_kind(holdings: Sequence[dict[str, Any]]) -> str:
    sums = _summed(holdings, lambda holding: str(holding["kind"]))
    whole = max((one["logical_bytes"] for one in sums.values()), default=0)
    rows = []
    for kind, name in _KINDS.items():
        if kind in sums:
            one = sums[kind]
            parts = [Part(tier, tier, one[f"{tier}_bytes"]) for tier, _, _ in _TIERS]
            rows.append((*_cells(name, one), charts.bar(parts, whole)))
    return _table(rows, ("kind", "files", "logical", "stored", "")) + charts.legend(
        [Part(f"{name}: {meaning}", style) for name, style, meaning in _TIERS]
    )


def _by_agent(holdings: Sequence[dict[str, Any]]) -> str:
    by_agent: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for holding in holdings:
        by_agent[_NOBODY if holding["agent"] is None else holding["agent"]].append(holding)
    totals = _summed(holdings, lambda one: _NOBODY if one["agent"] is None else one["agent"])
    ordered = sorted(totals, key=lambda name: totals[name]["logical_bytes"], reverse=True)
    whole = max((one["logical_bytes"] for one in totals.values()), default=0)
    rows = []
    for name in ordered[:_AGENTS_SHOWN]:
        kinds = _summed(by_agent[name], lambda holding: str(holding["kind"]))
        parts = [
            Part(_KINDS[kind], _KIND_STYLES[kind], kinds[kind]["logical_bytes"])
            for kind in _KINDS
            if kind in kinds
        ]
        rows.append((*_cells(output.printable(name), totals[name]), charts.bar(parts, whole)))
    hidden = ordered[_AGENTS_SHOWN:]
    if hidden:
        rest = _summed((totals[name] for name in hidden), lambda _: "")[""]
        rows.append((*_cells(f"{len(hidden):,} more", rest), ""))
    return _table(rows, ("agent", "files", "logical", "stored", "")) + charts.legend(
        [Part(name, _KIND_STYLES[kind]) for kind, name in _KINDS.items()]
    )


_SUMMED = ("files", "logical_bytes", "stored_bytes", "hot_bytes", "warm_bytes", "cold_bytes")


def _summed(
    holdings: Iterable[dict[str, Any]], key: Callable[[dict[str, Any]], str]
) -> dict[str, dict[str, float]]:
    sums: dict[str, dict[str, float]] = {}
    for holding in holdings:
        total = sums.setdefault(key(holding), dict.fromkeys(_SUMMED, 0))
        for name in _SUMMED:
            total[name] += holding[name]
    return sums


def _cells(name: str, one: dict[str, float]) -> tuple[str, str, str, str]:
    return (
        escape(name),
        f"{one['files']:,}",
        output.size(one["logical_bytes"]),
        output.size(one["stored_bytes"]),
    )


def _tiers_over_time(samples: Sequence[dict[str, Any]]) -> str:
    cold = [one["unique_bytes"] - one["young_bytes"] for one in samples]
    warm = [one["young_bytes"] for one in samples]
    series = [
        Part("hot: on tmpfs", "hot", values=[one["resident_bytes"] for one in samples]),
        Part("warm: unique bytes not compacted", "warm", values=warm),
        Part("cold: unique bytes compacted", "cold", values=cold),
        Part("stored on disk", "c5", values=[one["stored_bytes"] for one in samples]),
    ]
    return _since(samples) + charts.lines(_times(samples), series) + charts.legend(series)


def _hit_rates(figures: dict[str, Any]) -> str:
    samples = figures["samples"]
    hits, misses = figures["cache_hits"], figures["cache_misses"]
    if not hits + misses:
        return "<p>No block has been read from the store yet.</p>"
    text = (
        f"<p>{hits / (hits + misses):.1%} of {hits + misses:,} reads of blocks found them "
        "decompressed in the daemon's cache. What the kernel has in its own, and all that is on "
        "tmpfs, is not read from blocks.</p>"
    )
    counts = [(one["cache_hits"], one["cache_hits"] + one["cache_misses"]) for one in samples]
    rates = [found / reads if reads else None for found, reads in counts]
    if figures["prefetched"]:
        text += f"<p>Prefetch: {escape(output.prefetch(figures))}.</p>"
    series = [Part("hit rate of the block cache, since the daemon began", "c1", values=rates)]
    return text + charts.lines(_times(samples), series, is_share=True) + charts.legend(series)


def _times(samples: Sequence[dict[str, Any]]) -> list[float]:
    return [one["time_s"] for one in samples]


def _since(samples: Sequence[dict[str, Any]]) -> str:
    began = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(samples[0]["time_s"]))
    return f"<p>{output.count(len(samples), 'samples')} since {began}, when the daemon began.</p>"


def _agents(agents: Sequence[dict[str, Any]], now_s: float) -> str:
    if not agents:
        return "<p>There are none: a directory in /agents is one, or has user.agentfs.agent.</p>"
    ordered = sorted(agents, key=lambda one: one["logical_bytes"], reverse=True)
    rows = [
        (
            escape(output.printable(one["name"])),
            escape(one["state"]),
            f"{one['importance']}",
            f"{one['files']:,}",
            *(
                output.size(one[f"{key}_bytes"])
                for key in ("logical", "shared", "exclusive", "hot")
            ),
            f"{output.duration(max(now_s - one['last_used_ns'] / 1e9, 0))} ago"
            if one["last_used_ns"]
            else "never",
        )
        for one in ordered
    ]
    header = (
        "agent",
        "state",
        "importance",
        "files",
        "logical",
        "shared",
        "own",
        "hot",
        "last used",
    )
    return f'<div class="scroll">{_table(rows, header)}</div>'


def _table(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return (
        f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"
    )


_STYLE = """
:root { color-scheme: light dark;
  --back: #fbfaf8; --card: #fff; --text: #1d2126; --dim: #616a75; --line: #e2e0db;
  --c1: #2f6fb0; --c2: #3d9a8b; --c3: #c98a1b; --c4: #a55fa5; --c5: #8b949e;
  --hot: #d1495b; --warm: #e0a030; --cold: #3f7fbf; }
@media (prefers-color-scheme: dark) { :root {
  --back: #14171b; --card: #1c2025; --text: #e4e7ea; --dim: #9aa4af; --line: #30363d;
  --c1: #5b9bd9; --c2: #56b8a8; --c3: #e0ad4a; --c4: #c48ac4; --c5: #7d8590;
  --hot: #ee6c7d; --warm: #edbb5a; --cold: #6aa7e3; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 960px; margin: 0 auto; padding: 24px 20px 40px; }
h1 { font-size: 26px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 12px; }
header p, footer, section > p { color: var(--dim); margin: 0 0 10px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 18px 20px; margin: 0 0 18px; }
footer { font-size: 13px; overflow-wrap: anywhere; }
.tiles { list-style: none; display: grid; gap: 12px; padding: 0; margin: 14px 0 18px;
  grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); }
.tiles li { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 16px; color: var(--dim); font-size: 13px; }
.tiles b { display: block; color: var(--text); font-size: 22px; font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { color: var(--dim); font-weight: 500; font-size: 13px; }
th, td { text-align: right; padding: 4px 10px 4px 0; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; overflow: hidden; text-overflow: ellipsis;
  max-width: 240px; }
td:has(.bar) { width: 50%; padding-right: 0; }
td:has(.bar) + td { text-align: left; padding-left: 12px; color: var(--dim); white-space: normal; }
tbody tr + tr td { border-top: 1px solid var(--line); }
.scroll { overflow-x: auto; }
.bar { display: flex; height: 14px; min-width: 120px; }
.bar i { min-width: 1px; }
.bar i:first-child { border-radius: 3px 0 0 3px; } .bar i:last-child { border-radius: 0 3px 3px 0; }
.bar i:only-child { border-radius: 3px; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 4px 18px; padding: 0;
  margin: 12px 0 0; color: var(--dim); font-size: 13px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px;
  margin-right: 6px; }
svg { display: block; width: 100%; min-width: 600px; height: auto; font-size: 12px; }
svg text { fill: var(--dim); } svg .y { text-anchor: end; }
svg .grid { stroke: var(--line); }
svg path { fill: none; stroke-width: 2; stroke-linejoin: round;
  stroke-linecap: round; stroke: currentColor; }
i.c1 { background: var(--c1); } i.c2 { background: var(--c2); } i.c3 { background: var(--c3); }
i.c4 { background: var(--c4); } i.c5 { background: var(--c5); }
i.hot { background: var(--hot); } i.warm { background: var(--warm); }
i.cold { background: var(--cold); }
svg .c1 { color: var(--c1); } svg .c5 { color: var(--c5); }
svg .hot { color: var(--hot); } svg .warm { color: var(--warm); } svg .cold { color: var(--cold); }
@media (max-width: 640px) { td:has(.bar), table + .legend { display: none; } }
"""
