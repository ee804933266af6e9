"""The page of `agentfs report`: true, whole, harmless and alone."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from agentfs.cli import charts, page
from agentfs.errors import NotMounted, UsageError
from agentfs.model import Kind

NOW_S = 1_800_000_000.0
VOID = {"meta", "link", "br", "line"}

FIGURES: dict[str, Any] = {
    **{"mountpoint": "/agentmem", "store": "/var/lib/agentfs/store", "version": "0.1.0"},
    **{"mode": "relay", "profile": "default", "uptime_s": 90.0, "files": 3, "reduction": 12.34},
    **{"logical_bytes": 3 << 20, "unique_bytes": 1 << 20, "stored_bytes": 300_000},
    **{"segment_bytes": 200_000, "garbage_bytes": 1000, "dedup_ratio": 3.0},
    **{"compression_ratio": 5.2, "resident_bytes": 1 << 20, "resident_budget_bytes": 1 << 30},
    **{"cache_hits": 90, "cache_misses": 10, "agents": [], "holdings": [], "samples": []},
    **{"prefetched": 5, "prefetch_used": 3, "prefetch_wasted": 1, "prefetch_hit_rate": 0.75},
}


def sample(at_s: float, **others: float) -> dict[str, float]:
    keys = ("logical_bytes", "unique_bytes", "stored_bytes", "young_bytes", "resident_bytes")
    base = dict.fromkeys((*keys, "cache_hits", "cache_misses"), 0.0)
    return {"time_s": NOW_S + at_s} | base | others


def holding(agent: str | None, kind: str, logical: int) -> dict[str, Any]:
    tiers = {"hot_bytes": logical, "warm_bytes": 0, "cold_bytes": 0}
    head = {"agent": agent, "kind": kind, "files": 1, "logical_bytes": logical}
    return head | {"stored_bytes": logical / 4} | tiers


def agent(name: str, logical: int = 1000) -> dict[str, Any]:
    sizes = dict.fromkeys(("shared_bytes", "exclusive_bytes", "hot_bytes"), 0)
    head = {"name": name, "state": "active", "importance": 50, "files": 1, "last_used_ns": 0}
    return head | {"logical_bytes": logical} | sizes


class Reader(HTMLParser):
    """Reads as a strict browser would: every element is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def drawn(**changes: Any) -> str:
    samples = [sample(0), sample(10, resident_bytes=5e6, young_bytes=1e6, unique_bytes=2e6)]
    return page.page(FIGURES | {"samples": samples} | changes, NOW_S)


def test_a_page_loads_nothing_and_runs_nothing() -> None:
    reader = read(drawn(agents=[agent("a")], holdings=[holding("a", "conversation", 10)]))
    assert reader.tags.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base"})
    names = {name for name, _ in reader.attributes}
    assert names.isdisjoint({"src", "href", "srcset", "xlink:href"})
    assert not any(name.startswith("on") for name in names)
    assert "url(" not in drawn()
    assert "@import" not in drawn()


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><b>', "a&b", "\x1b[2J", "\udcff", "</style>", "'"]
)
def test_names_are_text_whatever_they_look_like(name: str) -> None:
    text = drawn(
        agents=[agent(name)], holdings=[holding(name, "other", 10)], mountpoint=name, store=name
    )
    reader = read(text)
    assert "script" not in reader.tags
    assert "\x1b" not in text
    text.encode(errors="backslashreplace")
    assert "<script>" not in text


def test_it_is_light_or_dark_as_its_reader_is() -> None:
    text = drawn()
    assert "prefers-color-scheme: dark" in text
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", text))
    light, dark = text.split("prefers-color-scheme: dark")
    for name in used:
        assert f"{name}:" in light
        assert f"{name}:" in dark, "what has a colour by day has one by night"


def test_figures_are_those_of_the_daemon() -> None:
    shown = read(drawn()).text
    for part in (
        "12.3x",
        "3.00 MiB",
        "3 files",
        "293 KiB",
        "of 1.00 GiB",
        "3.0x by dedup",
        "90.0%",
        "5 files brought, 3 used soon after, 1 not (75%)",
    ):
        assert part in shown


def test_bars_are_as_long_as_their_share() -> None:
    text = drawn(
        holdings=[
            holding("a", "conversation", 1000),
            holding("a", "system_prompt", 3000),
            holding("b", "conversation", 1000),
        ]
    )
    by_kind, by_agent = text.split("by kind")[1].split("by agent")[:2]
    assert re.findall(r"width:([\d.]+)%", by_kind) == ["100.000", "66.667"]
    assert re.findall(r"width:([\d.]+)%", by_agent) == ["75.000", "25.000", "25.000"]


def test_many_agents_are_summed_up() -> None:
    text = drawn(holdings=[holding(f"agent{n}", "other", 1000 + n) for n in range(40)])
    assert "agent39" in text
    assert "agent14<" not in text
    assert "15 more" in text


def test_a_store_with_nothing_in_it_is_drawn() -> None:
    empty = dict.fromkeys(
        ("files", "logical_bytes", "unique_bytes", "stored_bytes", "segment_bytes"), 0
    )
    nothing = {"garbage_bytes": 0, "resident_bytes": 0, "cache_hits": 0, "cache_misses": 0}
    reader = read(drawn(**empty, **nothing, samples=[sample(0)]))
    assert "There are none" in reader.text
    assert "No block has been read" in reader.text


def test_every_kind_has_a_name_and_a_colour() -> None:
    assert set(page._KINDS) == {kind.label for kind in Kind} == set(page._KIND_STYLES)
    for style in page._KIND_STYLES.values():
        assert f"i.{style} {{" in page._STYLE


def test_lines_go_through_their_values() -> None:
    parts = [charts.Part("x", "c1", values=[0.0, 4096.0, None, 2048.0])]
    text = charts.lines([0.0, 10.0, 20.0, 30.0], parts)
    (path,) = re.findall(r'<path class="c1" d="M([^h]*)h0">', text)
    points = [tuple(map(float, point.split())) for point in path.split("L")]
    (x0, y0), (x1, y1), (x3, y3) = points
    assert y1 < y3 < y0
    assert (y0 - y1) == pytest.approx(2 * (y0 - y3), abs=0.2)
    assert (x3 - x0) == pytest.approx(3 * (x1 - x0), abs=0.2)


@pytest.mark.parametrize("most", [0, 1, 3, 100, 1023, 1024, 1_000_000, 5e9, 3.3e13])
def test_an_axis_reaches_above_its_values_and_not_far(most: float) -> None:
    top = charts._nice_bytes(most)
    assert most <= top
    assert top <= max(3 * most, 4.0)


# The command


def test_a_report_of_a_mount(mounted: Any, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (mounted.path / "agents" / name / "prompts").mkdir(parents=True)
        (mounted.path / "agents" / name / "prompts/p.md").write_bytes(b"You are. " * 9000)
    mounted.agentfs("sync", mounted.path)
    out = tmp_path / "out.html"
    answer = json.loads(mounted.agentfs("report", out, mounted.path, "--json"))
    assert answer["bytes"] == out.stat().st_size
    reader = read(out.read_text())
    for part in ("one", "two", "system prompts", "2 files", "2.0x by dedup"):
        assert part in reader.text
    assert os.listdir(out.parent).count("out.html") == 1
    assert not [name for name in os.listdir(out.parent) if name.startswith(".out")]
    out.write_text("old")
    mounted.agentfs("report", out, mounted.path)
    assert read(out.read_text()).tags


def test_a_report_with_a_thousand_agents(mounted: Any, tmp_path: Path) -> None:
    for number in range(1000):
        (mounted.path / "agents" / f"agent-{number:04}").mkdir(parents=True)
    mounted.agentfs("report", tmp_path / "out.html", mounted.path)
    assert "agent-0999" in (tmp_path / "out.html").read_text()


def test_bad_places_for_a_page(mounted: Any, tmp_path: Path, run: Callable[..., Any]) -> None:
    for place in (tmp_path, tmp_path / "missing" / "out.html", Path("/proc/out.html")):
        done = run("report", place, mounted.path)
        assert done.returncode == UsageError.exit_code, done.stderr
        assert done.stderr.count("\n") == 1


def test_a_store_that_is_not_mounted(tmp_path: Path, run: Callable[..., Any]) -> None:
    done = run("report", tmp_path / "out.html", tmp_path)
    assert done.returncode == NotMounted.exit_code
    assert not (tmp_path / "out.html").exists()
