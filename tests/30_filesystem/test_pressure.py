"""What is given up while memory is short: when, what becomes of it, and that it is taken back."""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio

from agentfs import config
from agentfs.filesystem import memory, volume
from agentfs.filesystem.memory import Memory
from agentfs.filesystem.passthrough import PassthroughFiles
from agentfs.filesystem.pressure import Pressure
from agentfs.filesystem.volume import Volume
from agentfs.machine import reading
from agentfs.policy.pressure import HELD_S, Forecast, Readings, Step, causes, next_step
from fakes.machine import FakeMachine
from fakes.relay import FakeRelay
from fakes.volumes import KIB, MIB, NEVER_S, Machine, Shell, profile, running

SETTINGS = config.Pressure()
STEPS = [step for step in Step if step != Step.NORMAL]

NORMAL, STOP_PREFETCH, SHRINK, EARLY, SLOW = Step

LIMIT_S = 20.0


# The function


@pytest.mark.parametrize(
    ("readings", "expected"),
    [
        (Readings(), NORMAL),
        (Readings(0.49, 0.49, 0.79, 0.16, 0.04), NORMAL),
        (Readings(expected=0.50), STOP_PREFETCH),
        (Readings(expected=0.65), SHRINK),
        (Readings(expected=0.75), EARLY),
        (Readings(expected=9.0), EARLY),
        (Readings(expected=0.95, staged=0.94), EARLY),
        (Readings(expected=0.95, staged=0.95), SLOW),
        (Readings(daemon=0.80), STOP_PREFETCH),
        (Readings(daemon=0.90), SHRINK),
        (Readings(daemon=1.00), EARLY),
        (Readings(daemon=9.0), EARLY),
        (Readings(available=0.149), STOP_PREFETCH),
        (Readings(available=0.099), SHRINK),
        (Readings(available=0.059), EARLY),
        (Readings(available=0.029), SLOW),
        (Readings(stalled=0.05), STOP_PREFETCH),
        (Readings(stalled=0.10), SHRINK),
        (Readings(stalled=0.20), EARLY),
        (Readings(stalled=0.40), SLOW),
        (Readings(expected=0.5, available=0.05, stalled=0.1), EARLY),
    ],
)
def test_the_reading_that_is_worst_decides(readings: Readings, expected: Step) -> None:
    assert next_step(NORMAL, 0.0, readings, SETTINGS) == expected


@pytest.mark.parametrize("current", STEPS)
def test_a_step_is_left_for_the_one_below_and_not_at_once(current: Step) -> None:
    assert next_step(current, HELD_S - 0.1, Readings(), SETTINGS) == current
    assert next_step(current, HELD_S, Readings(), SETTINGS) == current - 1


@pytest.mark.parametrize(
    ("just_below", "well_below"),
    [
        (Readings(expected=0.74), Readings(expected=0.67)),
        (Readings(daemon=0.99), Readings(daemon=0.89)),
        (Readings(available=0.061), Readings(available=0.073)),
        (Readings(stalled=0.19), Readings(stalled=0.09)),
    ],
)
def test_a_figure_near_its_bound_does_not_swing(just_below: Readings, well_below: Readings) -> None:
    assert next_step(EARLY, 1000.0, just_below, SETTINGS) == EARLY
    assert next_step(EARLY, 1000.0, well_below, SETTINGS) == SHRINK


def test_bounds_are_the_profiles() -> None:
    mine = config.Pressure(available_share=0.4, stalled_share=0.02)
    assert next_step(NORMAL, 0.0, Readings(available=0.39), mine) == SHRINK
    assert next_step(NORMAL, 0.0, Readings(stalled=0.03), mine) == SHRINK
    assert next_step(NORMAL, 0.0, Readings(available=0.01), config.Pressure(available_share=0)) == 0


def test_causes_are_those_that_call_for_the_step() -> None:
    readings = Readings(expected=0.8, daemon=0.85, available=0.05)
    assert causes(EARLY, readings, SETTINGS) == ["tmpfs", "available"]
    assert causes(STOP_PREFETCH, readings, SETTINGS) == ["tmpfs", "daemon", "available"]
    assert causes(NORMAL, readings, SETTINGS) == []


def test_every_step_has_a_name_of_its_own() -> None:
    names = [step.label for step in Step]
    assert names[0] == "normal"
    assert len(set(names)) == len(names)


def test_a_forecast_goes_on_as_the_last_seconds_did() -> None:
    forecast = Forecast()
    assert forecast.growth(5.0) == 0.0
    for tick in range(40):
        forecast.note(100 + tick / 2, 1000.0 * tick)
    assert forecast.growth(5.0) == pytest.approx(10_000.0)
    for tick in range(40, 60):
        forecast.note(100 + tick / 2, 39_000.0)
    assert forecast.growth(5.0) == 0.0, "what grew long ago does not count"
    forecast.note(131.0, 0.0)
    assert forecast.growth(5.0) == 0.0, "what shrinks is not expected to"


def test_a_forecast_does_not_take_two_hurried_ticks_for_a_trend() -> None:
    forecast = Forecast()
    forecast.note(100.0, 0.0)
    forecast.note(100.001, 1e9)
    assert forecast.growth(5.0) == 0.0


# The readings


@pytest.fixture
def host(tmp_path: Path) -> FakeMachine:
    """A machine with memory to spare."""
    host = FakeMachine(tmp_path / "host")
    set_available(host, 0.5)
    return host


def set_available(host: FakeMachine, share: float) -> None:
    host.set("/proc/meminfo", f"MemTotal: 1000 kB\nMemAvailable: {share * 1000:.0f} kB\nHuge: 0")


def set_stalled(host: FakeMachine, percent: float) -> None:
    host.set("/proc/pressure/memory", f"some avg10={percent:.2f} avg60=0.00 avg300=0.00 total=1")


def test_what_is_available_and_how_long_programs_wait_is_read(host: FakeMachine) -> None:
    set_available(host, 0.25)
    set_stalled(host, 12.5)
    read = Memory(host)
    assert read.available_share() == 0.25
    assert read.stalled_share() == 0.125
    read.close()


def test_a_machine_that_shows_nothing_is_short_of_nothing(host: FakeMachine) -> None:
    host.remove("/proc/meminfo")
    host.remove("/proc/pressure/memory")
    read = Memory(host)
    assert (read.available_share(), read.stalled_share()) == (1.0, 0.0)
    assert read.alarm is None
    read.close()


def test_the_limit_of_a_control_group_counts_and_pages_of_files_are_available(
    host: FakeMachine,
) -> None:
    group = "/sys/fs/cgroup/system.slice"
    host.set(f"{group}/memory.max", "1000")
    host.set(f"{group}/memory.current", "900")
    host.set(f"{group}/memory.stat", "anon 100\nshmem 600\ninactive_file 150\nactive_file 50")
    host.set(f"{group}/agentfs@default.service/memory.pressure", "some avg10=30.00 avg60=0.00")
    read = Memory(host)
    assert read.available_share() == pytest.approx(0.3)
    assert read.stalled_share() == 0.3
    host.set(f"{group}/memory.max", "max")
    assert read.available_share() == 0.5, "the limit was lifted"
    read.close()


def test_the_limit_of_a_group_of_version_1_counts(host: FakeMachine) -> None:
    host.set("/proc/self/cgroup", "4:memory:/agents")
    host.set(
        "/proc/self/mountinfo",
        "31 24 0:27 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory",
    )
    group = "/sys/fs/cgroup/memory/agents"
    host.set(f"{group}/memory.limit_in_bytes", "1000")
    host.set(f"{group}/memory.usage_in_bytes", "950")
    host.set(f"{group}/memory.stat", "total_inactive_file 20\ntotal_active_file 10")
    read = Memory(host)
    assert read.available_share() == pytest.approx(0.08)
    read.close()


@pytest.mark.skipif(not os.access("/proc/pressure/memory", os.W_OK), reason="no PSI here")
def test_the_kernel_takes_the_trigger_and_keeps_quiet() -> None:
    read = Memory(reading.Machine())
    if read.alarm is None:
        pytest.skip("this kernel keeps triggers to itself")
    read.acknowledge()  # somebody may just have waited
    assert 0.0 <= read.stalled_share() <= 1.0
    read.close()


# What the steps do


@dataclass
class Short:
    """An open volume on a machine whose memory a test makes short, with a clock of its own."""

    shell: Shell
    host: FakeMachine
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.volume.pressure.clock = lambda: self.now

    @property
    def volume(self) -> Volume:
        return self.shell.volume

    @property
    def pressure(self) -> Pressure:
        return self.volume.pressure

    async def tick(self, seconds: float = 0.5) -> Step:
        """So much later, housekeeping."""
        self.now += seconds
        self.volume.files.look_at_growth()
        self.pressure.look()
        await self.volume.files.tidy()
        await self.volume._seal_what_rests()
        return self.pressure.step

    async def have(self, available: float) -> Step:
        """Let so much be available, and notice."""
        set_available(self.host, available)
        return await self.tick(5.0)

    async def calm(self) -> None:
        """Let all be well again, and wait for it."""
        set_available(self.host, 0.5)
        for step in reversed(range(self.pressure.step)):
            assert await self.tick(HELD_S) == step
        assert self.pressure.step == NORMAL


OpenShort = Callable[..., Short]


@pytest.fixture
def open_short(machine: Machine, host: FakeMachine) -> OpenShort:
    def open_(budget_bytes: int = 64 * MIB, relay: FakeRelay | None = None) -> Short:
        machine.volume = Volume(
            machine.store, profile(budget_bytes=budget_bytes), relay=relay, machine=host
        )
        return Short(Shell(machine.volume), host)

    return open_


@pytest.fixture
def short(open_short: OpenShort) -> Short:
    return open_short()


async def test_steps_are_taken_at_once_and_taken_back_one_by_one(
    short: Short, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    assert await short.tick() == NORMAL
    assert await short.have(0.029) == SLOW
    figures = short.volume.stats()
    assert (figures["pressure"], figures["pressure_step"]) == ("slow writers", 4)
    assert figures["pressure_causes"] == ["available"]
    await short.calm()
    figures = short.volume.stats()
    assert (figures["pressure"], figures["pressure_causes"]) == ("normal", [])
    assert figures["pressure_entered"] == {
        "normal": 1,
        "stop prefetch": 1,
        "shrink caches": 1,
        "seal and evict early": 1,
        "slow writers": 1,
    }
    told = [record.getMessage() for record in caplog.records if "memory:" in record.getMessage()]
    assert told[0].startswith("memory: slow writers, was normal (")
    assert "3% available" in told[0]
    assert told[-1].startswith("memory: normal, was stop prefetch (")
    assert len(told) == 5


async def test_a_calm_machine_is_asked_every_five_seconds_and_a_short_one_each_tick(
    short: Short, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    available_share = Memory.available_share
    monkeypatch.setattr(
        Memory, "available_share", lambda self: asked.append(1) or available_share(self)
    )
    for _ in range(100):
        await short.tick()
    assert len(asked) == 10
    await short.have(0.12)
    asked.clear()
    for _ in range(10):
        await short.tick()
    assert len(asked) == 10
    asked.clear()
    for _ in range(100):
        await short.tick(0.001)
    assert len(asked) <= 1, "ticks may be hurried, questions are not"


async def test_a_machine_that_cannot_be_asked_for_want_of_descriptors_stops_nothing(
    short: Short, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(memory, "own_bytes", refuse)
    assert await short.tick(5.0) == NORMAL
    assert await short.have(0.09) == SHRINK


async def test_when_the_kernel_says_that_programs_wait_the_machine_is_asked_at_once(
    short: Short, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volume, "_TICK_S", NEVER_S)
    reader, writer = os.pipe()
    with select.epoll() as alarm:
        alarm.register(reader, select.EPOLLIN)
        monkeypatch.setattr(short.volume._memory, "alarm", alarm)
        monkeypatch.setattr(short.volume._memory, "acknowledge", lambda: os.read(reader, 1))
        async with running(short.volume):
            await trio.sleep(0.1)
            assert short.pressure.step == NORMAL
            os.write(writer, b"!")
            with trio.fail_after(LIMIT_S):
                while short.pressure.step == NORMAL:
                    await trio.sleep(0.01)
    assert short.pressure.step == SHRINK
    assert short.volume.stats()["pressure_causes"] == ["stalled"]
    monkeypatch.undo()
    os.close(reader)
    os.close(writer)


async def test_shrunk_caches_are_small_and_grow_again(short: Short) -> None:
    index, reader, store = short.volume.index, short.volume._reader, short.volume._store
    for number in range(40):
        await short.shell.write(f"/{number}", os.urandom(MIB))
    await short.shell.sync()

    async def cached_bytes() -> int:
        for number in range(40):
            await short.shell.read(f"/{number}")
        return store.stats()["cache_bytes"]

    def pages() -> int:
        return int(index.execute("PRAGMA cache_size").fetchone()[0])

    full, full_pages = await cached_bytes(), pages()
    assert full > 30 * MIB
    assert len(reader._recipes) == 40
    assert await short.have(0.14) == STOP_PREFETCH
    assert store.stats()["cache_bytes"] == full
    assert await short.have(0.09) == SHRINK
    assert store.stats()["cache_bytes"] <= 4 * MIB
    assert await cached_bytes() <= 4 * MIB
    assert pages() * 8 == full_pages
    assert len(reader._recipes) == 32
    await short.calm()
    assert await cached_bytes() == full
    assert pages() == full_pages
    assert len(reader._recipes) == 40


async def test_closed_files_are_sealed_at_once_and_rest_again_later(short: Short) -> None:
    assert await short.have(0.07) == SHRINK
    await short.shell.write("/a", b"closed")
    await short.tick()
    assert short.shell.is_staged("/a"), "nothing is sealed early yet"
    assert await short.have(0.05) == EARLY
    assert not short.shell.is_staged("/a")
    await short.calm()
    await short.shell.write("/a", b"again")
    await short.tick()
    assert short.shell.is_staged("/a")
    assert short.volume._profile.seal.rest_s == NEVER_S


async def test_contents_leave_tmpfs_sooner_the_shorter_memory_is(open_short: OpenShort) -> None:
    short = open_short(relay=FakeRelay())
    files = short.volume.files
    assert isinstance(files, PassthroughFiles)
    files.images.clock = lambda: short.now
    names = ("old", "recent", "kept")
    for name in names:
        await short.shell.write(f"/{name}", os.urandom(300 * KIB))
    short.shell.set_xattr("/kept", b"user.agentfs.pin", b"1")
    await short.shell.sync()

    async def use(path: str) -> None:
        inode = short.shell.inode(path)
        await files.prepare(inode, os.O_RDONLY)
        files.release(files.open(inode, os.O_RDONLY, is_privileged=True))

    def resident() -> list[str]:
        contents = {name: short.shell.inode(f"/{name}").content for name in names}
        return [name for name in names if files.images.find(contents[name] or 0)]

    await use("/old")
    await use("/kept")
    short.now += 270.0
    await use("/recent")
    short.now += 50.0
    assert await short.have(0.5) == NORMAL
    assert resident() == ["old", "recent", "kept"]
    await short.have(0.09)
    assert resident() == ["recent", "kept"], "what has cooled"
    await short.have(0.05)
    assert resident() == ["kept"], "what was not used for half a minute"
    await short.calm()
    await use("/old")
    await short.tick(400.0)
    assert resident() == ["old", "kept"]
    figures = short.volume.stats()
    assert figures["evicted_bytes"] == 2 * 300 * KIB


async def test_who_writes_something_anew_waits_and_writes_to_disk(short: Short) -> None:
    staging = short.volume.staging
    short.volume.pressure.clock = trio.current_time
    set_available(short.host, 0.02)
    async with running(short.volume):
        with trio.fail_after(LIMIT_S):
            while not staging.slows_writers:
                await trio.sleep(0.01)
        for number in range(3):
            await short.shell.write(f"/{number}", b"slow")
        assert staging.waits == 3
        assert staging.used_bytes == 0
        assert staging.refusals == 3
        assert await short.shell.read("/0") == b"slow"
        set_available(short.host, 0.5)
        with trio.fail_after(LIMIT_S):
            while short.pressure.step != NORMAL:
                await trio.sleep(0.05)
        await short.shell.write("/fast", b"fast")
        assert (staging.waits, staging.used_bytes) == (3, 4)


async def test_a_file_that_grows_while_writers_are_slowed_moves_to_disk(short: Short) -> None:
    await short.shell.write("/grows", b"a" * KIB)
    assert short.volume.staging.used_bytes == KIB
    assert await short.have(0.02) == SLOW
    short.volume.staging.slows_writers = True
    async with running(short.volume):
        handle = short.shell.open("/grows")
        await short.shell.pwrite(handle, b"b" * KIB, KIB)
        assert await short.shell.pread(handle, 2 * KIB, 0) == b"a" * KIB + b"b" * KIB
        short.shell.close(handle)
    assert short.volume.staging.used_bytes == 0


async def test_reserving_room_is_not_refused_for_want_of_memory(short: Short) -> None:
    await short.shell.write("/grows", b"a" * KIB)
    short.volume.staging.slows_writers = True
    await short.shell.allocate("/grows", 0, 0, MIB)
    assert short.shell.inode("/grows").size == MIB


# The forecast


async def test_unsealed_files_that_grow_are_sealed_before_the_budget_is_hit(short: Short) -> None:
    staging = short.volume.staging
    most = 0
    for number in range(60):
        await short.shell.write(f"/{number}", os.urandom(2 * MIB))
        await short.tick()
        most = max(most, staging.used_bytes)
    assert short.volume.stats()["pressure_entered"]["seal and evict early"] >= 1
    assert most < 0.6 * staging.budget_bytes, "the rate said what would come"
    assert staging.refusals == staging.waits == 0


async def test_without_a_horizon_there_is_no_forecast(machine: Machine, host: FakeMachine) -> None:
    blind = replace(profile(budget_bytes=64 * MIB), pressure=config.Pressure(horizon_s=0.0))
    machine.volume = Volume(machine.store, blind, machine=host)
    short = Short(Shell(machine.volume), host)
    most = 0
    for number in range(40):
        await short.shell.write(f"/{number}", os.urandom(2 * MIB))
        await short.tick()
        most = max(most, short.volume.staging.used_bytes)
    assert 0.7 * 64 * MIB < most <= 64 * MIB
    assert short.volume.staging.expected_bytes == 0


async def test_images_make_room_before_it_is_wanted(open_short: OpenShort) -> None:
    """And tmpfs is as full as it may be when nothing grows."""
    short = open_short(budget_bytes=16 * MIB, relay=FakeRelay())
    staging, files = short.volume.staging, short.volume.files
    for number in range(15):
        await short.shell.write(f"/{number}", os.urandom(MIB))
        await short.shell.sync()
        assert await files.warm(short.shell.inode(f"/{number}"), b"")
    for _ in range(10):
        await short.tick()
    assert staging.image_bytes == 15 * MIB
    assert (staging.expected_bytes, staging.evicted_bytes) == (0, 0), "nothing grows"
    handle = short.shell.open("/grows", os.O_RDWR | os.O_CREAT)
    for step in range(8):
        await short.shell.pwrite(handle, os.urandom(MIB // 4), step * MIB // 4)
        await short.tick()
        assert staging.used_bytes + staging.expected_bytes <= 16 * MIB + MIB // 4
    short.shell.close(handle)
    assert staging.evicted_ahead_bytes == staging.evicted_bytes >= 2 * MIB
    assert staging.expected_bytes <= 4 * MIB, "a burst does not empty tmpfs"
