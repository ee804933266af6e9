"""Many recorders at once, and the comparison of what they did with what is left of it."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fakes import recorder
from fakes.history import History, Seen, look

ENDS_S = 30.0

Verdict = Callable[[dict[str, Seen]], str | None]


class Load:
    """Programs that each change a folder of their own, over several lives of a mount."""

    def __init__(self, root: Path, logs: Path, writers: int, seed: int, mode: str) -> None:
        self._root = root
        self._is_plain = mode == "plain"
        self._logs = logs
        self._writers = writers
        self._seed = seed * 1000
        self._histories: list[History] = []
        self._power_fails_at = math.inf
        self._before: list[dict[str, Seen]] = [{} for _ in range(writers)]
        self.operations = 0
        logs.mkdir()

    @contextmanager
    def running(self) -> Iterator[None]:
        """They run while the block does, which is to end the mount, and have ended after it."""
        self._seed += self._writers
        self._power_fails_at = math.inf
        logs = [self._logs / f"{self._seed + number}" for number in range(self._writers)]
        programs = [
            subprocess.Popen(
                [
                    *(sys.executable, recorder.__file__),
                    *(self._folder(number), log, f"{self._seed + number}"),
                ],
                cwd="/",
            )
            for number, log in enumerate(logs)
        ]
        try:
            yield
        finally:
            for program in programs:
                program.terminate()
            for program in programs:
                program.wait(ENDS_S)
        self._histories = [
            History.read(
                log,
                before,
                msync_reaches_us=self._is_plain,
                power_fails_at=self._power_fails_at,
            )
            for log, before in zip(logs, self._before, strict=True)
        ]
        self.operations += sum(len(history.ops) for history in self._histories)

    def power_fails(self) -> None:
        """The programs hear no answer from now on.

        Here they outlive the cut by some milliseconds, in which the kernel lies to them: an
        fdatasync that was under way at FS_IOC_SHUTDOWN may report success for what is lost. Four
        processes that did nothing else, without agentfs: in 9 of 150 cuts of ext4, 5 of 100 of XFS.
        """
        self._power_fails_at = time.monotonic()

    def check(self, verdict: Callable[[History], Verdict], when: str) -> None:
        """What is there must be right after what was done. What follows begins with it.

        :param verdict: what the history of each is asked, about what is found
        """
        for number, history in enumerate(self._histories):
            seen = look(self._folder(number))
            wrong = verdict(history)(seen)
            assert wrong is None, f"after {when}, writer {number}: {wrong}"
            self._before[number] = seen
        self._histories = [History(before) for before in self._before]

    def _folder(self, number: int) -> Path:
        return self._root / f"writer {number}"
