"""A store's figures over time, in memory: a few hundred samples of however long the daemon runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

import trio

log = logging.getLogger(__name__)

KEYS: Final = (
    "logical_bytes",
    "unique_bytes",
    "stored_bytes",
    "young_bytes",
    "resident_bytes",
    "cache_hits",
    "cache_misses",
)
"""Of the figures, what is sampled."""

_SAMPLES_MAX = 256
_FIRST_INTERVAL_S = 1.0
_LAST_INTERVAL_S = 3600.0
_COST_SHARE = 0.005
"""Of the time may be spent on sampling."""

Sample = dict[str, float]


class Samples:
    """When there are too many, every other one goes, and from then on half as many are taken."""

    def __init__(self, figures: Callable[[], Mapping[str, Any]]) -> None:
        self._figures = figures
        self._samples: list[Sample] = []
        self._interval_s = _FIRST_INTERVAL_S

    async def run(self) -> None:
        """Take samples. Runs until cancelled."""
        while True:
            began = time.thread_time()
            try:
                self.take()
            except Exception as error:  # such as a damaged page of the index
                log.warning("no sample of the figures: %s", error)
                self._interval_s = _LAST_INTERVAL_S
            cost_s = time.thread_time() - began
            await trio.sleep(max(self._interval_s, cost_s / _COST_SHARE))

    def take(self) -> None:
        figures = self._figures()
        self._samples.append({"time_s": time.time()} | {key: figures[key] for key in KEYS})
        if len(self._samples) > _SAMPLES_MAX:
            self._samples = self._samples[::2]  # and so the first and the last stay
            self._interval_s = min(2 * self._interval_s, _LAST_INTERVAL_S)

    def all(self) -> list[Sample]:
        """Oldest first, and one of now."""
        figures = self._figures()
        return [*self._samples, {"time_s": time.time()} | {key: figures[key] for key in KEYS}]
