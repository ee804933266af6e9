"""Where the bytes are, by agent and kind; figures over time."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from agentfs.filesystem import samples
from agentfs.filesystem.census import Census
from agentfs.filesystem.report import Totals
from agentfs.filesystem.samples import Samples
from agentfs.model import AgentUse, Holding
from fakes.volumes import Shell, quiet

PROMPT = os.urandom(300_000)


async def holdings(shell: Shell) -> dict[tuple[str | None, str], Holding]:
    found = await shell.volume.breakdown(quiet)
    assert len({(one.agent, one.kind) for one in found}) == len(found)
    return {(one.agent, one.kind): one for one in found}


async def test_every_file_is_under_its_agent_and_its_kind(shell: Shell) -> None:
    for path in ("/agents", "/agents/one", "/agents/one/prompts", "/agents/one/conversations"):
        shell.mkdir(path)
    await shell.write("/agents/one/prompts/a.md", PROMPT)
    await shell.write("/agents/one/conversations/b", b"b" * 5000)
    await shell.write("/agents/one/conversations/c", b"c" * 7000)
    await shell.write("/d", b"d" * 11)
    shell.symlink(b"/d", "/link")
    await shell.sync()
    found = await holdings(shell)
    assert {key: (one.files, one.logical_bytes) for key, one in found.items()} == {
        ("one", "system_prompt"): (1, 300_000),
        ("one", "conversation"): (2, 12_000),
        (None, "other"): (1, 11),
    }


async def test_what_is_stored_adds_up_to_what_the_segments_hold(shell: Shell) -> None:
    for name in ("one", "two", "three"):
        shell.mkdir(f"/{name}")
        shell.set_xattr(f"/{name}", b"user.agentfs.agent", name.encode())
        await shell.write(f"/{name}/prompt.md", PROMPT)
        await shell.write(f"/{name}/own", os.urandom(50_000))
    await shell.sync()
    found = await holdings(shell)
    totals = shell.volume.stats()
    stored = sum(one.stored_bytes for one in found.values())
    assert stored == pytest.approx(totals["segment_bytes"], rel=0.01)
    shares = dict.fromkeys(("one", "two", "three"), 0.0)
    for (agent, _), one in found.items():
        assert agent is not None
        shares[agent] += one.stored_bytes
    assert shares == pytest.approx(dict.fromkeys(shares, stored / 3), rel=0.02)


async def test_bytes_are_hot_then_warm_then_cold(shell: Shell) -> None:
    await shell.write("/file", PROMPT)

    async def tiers() -> tuple[int, int, int]:
        one = (await holdings(shell))[None, "other"]
        return one.hot_bytes, one.warm_bytes, one.cold_bytes

    assert await tiers() == (300_000, 0, 0)
    await shell.sync()
    assert await tiers() == (0, 300_000, 0)
    await shell.compact()
    assert await tiers() == (0, 0, 300_000)
    await shell.write("/file", b"x")
    assert await tiers() == (300_000, 0, 0)


async def test_a_file_with_two_names_is_counted_once(shell: Shell) -> None:
    await shell.write("/file", b"x" * 100)
    shell.link("/file", "/other")
    assert (await holdings(shell))[None, "other"].files == 1


async def test_a_deep_and_wide_tree_is_counted_whole(shell: Shell) -> None:
    path = ""
    for _ in range(30):
        path += "/d"
        shell.mkdir(path)
        for number in range(10):
            await shell.write(f"{path}/{number}", b"1234")
    for number in range(300):
        await shell.write(f"/{number}", b"1234")
    assert (await holdings(shell))[None, "other"].files == 600


# Over time


def figures_of(clock: list[float]) -> Any:
    return lambda: dict.fromkeys(samples.KEYS, clock[0])


def test_samples_cover_all_of_the_time_with_few() -> None:
    clock = [0.0]
    taken = Samples(figures_of(clock))
    for number in range(5000):
        clock[0] = float(number)
        taken.take()
    kept = [one["logical_bytes"] for one in taken.all()]
    assert kept[0] == 0.0
    assert kept[-1] == 4999.0
    assert len(kept) <= samples._SAMPLES_MAX + 1
    assert kept == sorted(kept)


def test_there_is_always_one_of_now() -> None:
    (one,) = Samples(figures_of([7.0])).all()
    assert one["resident_bytes"] == 7.0
    assert abs(one["time_s"] - time.time()) < 60


async def test_figures_that_cannot_be_had_end_nothing(
    autojump_clock: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import trio

    def fail() -> dict[str, float]:
        raise OSError(5, "a page is damaged")

    with trio.move_on_after(3 * 3600.0 + 1):
        await Samples(fail).run()
    messages = [record.message for record in caplog.records if "no sample" in record.message]
    assert 2 <= len(messages) <= 4, "once an hour, not once a second"


async def test_sampling_keeps_to_its_share_of_the_time(autojump_clock: Any) -> None:
    import trio

    calls = 0

    def slow() -> dict[str, float]:
        nonlocal calls
        calls += 1
        until = time.thread_time() + 0.02
        while time.thread_time() < until:
            pass
        return dict.fromkeys(samples.KEYS, 0.0)

    with trio.move_on_after(100.0):
        await Samples(slow).run()
    assert calls <= 26, "4 s each, for 20 ms of work"


# Asked for again and again


class CountedAgents:
    """Counts how often it is asked, and takes its time."""

    def __init__(self, cost_s: float) -> None:
        self.calls = 0
        self._cost_s = cost_s

    async def uses(self) -> list[AgentUse]:
        self.calls += 1
        time.sleep(self._cost_s)
        return []


async def test_who_asks_often_gets_the_same_count() -> None:
    agents = CountedAgents(0.1)
    census = Census(agents)  # type: ignore[arg-type]
    for _ in range(100):
        await census.uses()
    assert agents.calls == 1


async def test_repeated_stats_are_counted_seldom_and_others_always(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def totals(*_: object) -> dict[str, Any]:
        asked.append(time.monotonic())
        time.sleep(0.05)
        return {}

    monkeypatch.setattr("agentfs.filesystem.report.store_totals", totals)
    counted = Totals(shell.volume.index, shell.volume.path)
    for _ in range(10):
        counted.recent()
    assert len(asked) == 1
    counted.now()
    assert len(asked) == 2
