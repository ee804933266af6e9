"""What is given up while memory is short, step by step, and when.

    step                   entered when any of these is reached
                           expected  staged  daemon  available  stalled
    stop prefetch            0.50      -      0.80     1.5        0.5
    shrink caches            0.65      -      0.90     1          1
    seal and evict early     0.75      -      1.00     0.6        2
    slow writers              -       0.95     -       0.3        4

    step                   what it means, beside what those above it mean
    normal                 all is as configured
    stop prefetch          nothing is brought that nobody asked for
    shrink caches          caches are an eighth; what has cooled leaves tmpfs
    seal and evict early   closed files are sealed at once; contents cool ten times as fast
    slow writers           tmpfs takes nothing new; who writes something anew waits for a tick

The first three columns are shares of a budget: what of tmpfs unsealed files will take if they
go on growing, what they take, and the daemon's memory. The last two count in
`pressure.available_share` and `pressure.stalled_share` of the profile. The daemon's memory
never slows a writer: what it holds most of, names that the kernel knows, no seal gives back.

A step is entered at once. It is left for the one below after `HELD_S`, and only when
what would call for it is a margin away, so that a figure near its bound does not swing.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass

from agentfs.config import Pressure

HELD_S = 2.0
"""Between two steps down."""

_FULL_MARGIN = 0.9
_AVAILABLE_MARGIN = 1.2
_STALLED_MARGIN = 0.5
"""By which a bound is moved for a step that is to be left."""

_WINDOW_S = 3.0
"""How far a forecast looks back: a burst shows within two ticks, one file does not."""

_SAMPLE_S = 0.25
"""Between two samples of a forecast; fewer than two say nothing."""


class Step(enum.IntEnum):
    """What is given up: all that the steps below give up, too."""

    NORMAL = 0
    STOP_PREFETCH = 1
    SHRINK_CACHES = 2
    SEAL_EARLY = 3
    SLOW_WRITERS = 4

    @property
    def label(self) -> str:
        return _LABELS[self]


_LABELS = (
    "normal",
    "stop prefetch",
    "shrink caches",
    "seal and evict early",
    "slow writers",
)


@dataclass(frozen=True, slots=True)
class Readings:
    """Shares, all of them: 0 is nothing, 1 is all."""

    expected: float = 0.0
    """Of the budget of tmpfs, what unsealed files will take within the horizon."""
    staged: float = 0.0
    """What they take now; of as many as may be staged, if that is more."""
    daemon: float = 0.0
    """Of its budget, the daemon's memory."""
    available: float = 1.0
    """Of RAM, or of what our control group may use, what is to be had without swapping."""
    stalled: float = 0.0
    """Of the last ten seconds, in which some program waited for memory."""


_NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class _Bounds:
    expected: float
    staged: float
    daemon: float
    available: float
    stalled: float


_BOUNDS = {
    Step.STOP_PREFETCH: _Bounds(0.5, _NEVER, 0.8, 1.5, 0.5),
    Step.SHRINK_CACHES: _Bounds(0.65, _NEVER, 0.9, 1.0, 1.0),
    Step.SEAL_EARLY: _Bounds(0.75, _NEVER, 1.0, 0.6, 2.0),
    Step.SLOW_WRITERS: _Bounds(_NEVER, 0.95, _NEVER, 0.3, 4.0),
}


def causes(
    step: Step, readings: Readings, settings: Pressure, *, is_leaving: bool = False
) -> list[str]:
    """Which readings call for a step: some of tmpfs, daemon, available, stalled.

    :param is_leaving: which would call for it again too soon, if it were left
    """
    if step == Step.NORMAL:
        return []
    bounds = _BOUNDS[step]
    full = _FULL_MARGIN if is_leaving else 1.0
    available = settings.available_share * (_AVAILABLE_MARGIN if is_leaving else 1.0)
    stalled = settings.stalled_share * (_STALLED_MARGIN if is_leaving else 1.0)
    calls = {
        "tmpfs": readings.expected >= bounds.expected * full
        or readings.staged >= bounds.staged * full,
        "daemon": readings.daemon >= bounds.daemon * full,
        "available": readings.available < bounds.available * available,
        "stalled": readings.stalled >= bounds.stalled * stalled,
    }
    return [name for name, is_reached in calls.items() if is_reached]


def next_step(current: Step, held_s: float, readings: Readings, settings: Pressure) -> Step:
    """The step that follows from readings.

    :param held_s: seconds since the last change of step
    """
    wanted = max(
        (step for step in _BOUNDS if causes(step, readings, settings)), default=Step.NORMAL
    )
    if wanted >= current:
        return wanted
    if held_s < HELD_S or causes(current, readings, settings, is_leaving=True):
        return current
    return Step(current - 1)


class Forecast:
    """By how much a quantity will grow, if it goes on as in the last seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, float]] = deque()
        """(seconds, quantity); the first is the newest of those before the window."""

    def note(self, now_s: float, quantity: float) -> None:
        samples = self._samples
        if samples and now_s - samples[-1][0] < _SAMPLE_S:
            return
        samples.append((now_s, quantity))
        while len(samples) > 2 and samples[1][0] <= now_s - _WINDOW_S:
            samples.popleft()

    def growth(self, horizon_s: float) -> float:
        """Never less than nothing."""
        if len(self._samples) < 2:
            return 0.0
        (began_s, before), (ended_s, after) = self._samples[0], self._samples[-1]
        return max((after - before) / (ended_s - began_s) * horizon_s, 0.0)
