"""Knows which step of `policy.pressure` is taken, and looks when the next one is due.

Each tick it looks at what lies on tmpfs, which costs 10 us. The machine is asked every five
seconds, or with each tick while a step is taken; when programs begin to wait for memory the
kernel says so, and it is asked at once. What a step means is for those to do who are told
(`on_change`), or who ask for `step`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import trio

from agentfs import config
from agentfs.filesystem import memory
from agentfs.filesystem.memory import Memory
from agentfs.filesystem.staging import Staging
from agentfs.policy.pressure import Forecast, Readings, Step, causes, next_step

log = logging.getLogger(__name__)

_CALM_LOOK_S = 5.0
"""Between two questions to the machine while nothing is short."""

_LOOK_S = 0.4
"""The same otherwise: less than a tick."""

_AHEAD_SHARE = 0.25
"""Of the budget, at most, is kept free for what is expected: a burst does not empty tmpfs."""

_NOTHING_SHARE = 1 / 64
"""Of the budget: growth by less is not worth room ahead of it."""


class Pressure:
    """The step that is taken. Its task waits for the kernel; `look` is called with each tick."""

    def __init__(self, settings: config.Pressure, staging: Staging, machine: Memory) -> None:
        self.step = Step.NORMAL
        """What is given up now; whoever has something to give up may ask at any time."""
        self.on_change: Callable[[Step, Step], None] = lambda before, now: None
        """Called with the step before and the one that is taken now."""
        self.clock: Callable[[], float] = time.monotonic
        self._settings = settings
        self._staging = staging
        self._machine = machine
        self._budget_bytes = settings.daemon_budget_bytes
        self._staged, self._taken = Forecast(), Forecast()
        self._readings = Readings()
        self._causes: list[str] = []
        self._since = float("-inf")
        """When the step was taken."""
        self._asked_at = float("-inf")
        self._is_alarmed = False
        self._daemon = self._available = self._stalled = 0.0
        self._entered: Counter[Step] = Counter()
        self._ask_the_machine()

    async def watch(self) -> None:
        """Look at once when the kernel says that programs wait. Runs until cancelled."""
        alarm = self._machine.alarm
        while alarm is not None:
            await trio.lowlevel.wait_readable(alarm.fileno())
            self._machine.acknowledge()
            self._is_alarmed = True
            self.look()

    def look(self) -> None:
        """Take the step that is due."""
        now = self.clock()
        self._look_at_tmpfs(now)
        pause_s = _CALM_LOOK_S if self.step == Step.NORMAL else _LOOK_S
        if self._is_alarmed or now - self._asked_at >= pause_s:
            self._asked_at = now
            self._ask_the_machine()
        staging, budget = self._staging, self._staging.budget_bytes
        staged = staging.staged_bytes / budget
        if staging.used_bytes > budget:  # with all that nobody has open gone already
            staged = max(staged, staging.used_bytes / budget)
        growth = self._staged.growth(self._settings.horizon_s) / budget
        self._readings = Readings(
            expected=max(staged + growth, staging.files_share),
            staged=max(staged, staging.files_share),
            daemon=self._daemon,
            available=self._available,
            stalled=self._stalled,
        )
        step = next_step(self.step, now - self._since, self._readings, self._settings)
        if step != self.step:
            self._take(step, now)

    def _look_at_tmpfs(self, now: float) -> None:
        staging = self._staging
        self._staged.note(now, staging.staged_bytes)
        self._taken.note(now, staging.used_bytes + staging.evicted_bytes)
        growth = int(self._taken.growth(self._settings.horizon_s))
        most = int(staging.budget_bytes * _AHEAD_SHARE)
        is_worth_it = growth > staging.budget_bytes * _NOTHING_SHARE
        staging.expected_bytes = min(growth, most) if is_worth_it else 0

    def _ask_the_machine(self) -> None:
        with contextlib.suppress(OSError):  # no descriptor is left: it is as it was
            self._daemon = memory.own_bytes() / self._budget_bytes
        self._available = self._machine.available_share()
        self._stalled = self._machine.stalled_share()
        if self._is_alarmed:  # an average over ten seconds does not show it yet
            self._is_alarmed = False
            self._stalled = max(self._stalled, memory.TRIGGER_SHARE)

    def _take(self, step: Step, now: float) -> None:
        before, self.step, self._since = self.step, step, now
        self._entered[step] += 1
        if step > before:
            self._causes = causes(step, self._readings, self._settings)
        elif step == Step.NORMAL:
            self._causes = []
        level = logging.WARNING if step > before else logging.INFO
        log.log(level, "memory: %s, was %s (%s)", step.label, before.label, self._said())
        self.on_change(before, step)

    def _said(self) -> str:
        readings = self._readings
        return (
            f"staged on tmpfs {readings.staged:.0%}, soon {readings.expected:.0%}; "
            f"daemon {readings.daemon:.0%} of its budget; "
            f"{readings.available:.0%} available; stalled {readings.stalled:.0%}"
        )

    def figures(self) -> dict[str, Any]:
        """What `agentfs stats` says of it."""
        staging = self._staging
        return {
            "pressure": self.step.label,
            "pressure_step": int(self.step),
            "pressure_causes": self._causes,
            "pressure_entered": {step.label: self._entered[step] for step in Step},
            "daemon_budget_bytes": self._budget_bytes,
            "available_share": round(self._available, 3),
            "stalled_share": round(self._stalled, 3),
            "expected_bytes": staging.expected_bytes,
            "evicted_bytes": staging.evicted_bytes,
            "evicted_ahead_bytes": staging.evicted_ahead_bytes,
            "tmpfs_refusals": staging.refusals,
            "writer_waits": staging.waits,
        }
