"""How the event loop's thread waits for a request in plain mode."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from agentfs.fuse._relay import look


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def test_it_says_whether_there_is_something(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    assert not look(reading, 0)
    assert not look(reading, 1)
    os.write(writing, b"x")
    assert look(reading, 0)
    assert look(reading, 10_000)


def test_others_run_meanwhile(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    thread = threading.Thread(target=lambda: (time.sleep(0.05), os.write(writing, b"x")))
    thread.start()
    assert look(reading, 20_000)
    thread.join()


def test_a_signal_ends_it_and_is_handled(pipe: tuple[int, int]) -> None:
    seen = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        assert not look(pipe[0], 20_000)
        assert seen == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_may_raise(pipe: tuple[int, int]) -> None:
    def refuse(number: int, frame: object) -> None:
        raise TimeoutError("enough")

    before = signal.signal(signal.SIGALRM, refuse)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(TimeoutError, match="enough"):
            look(pipe[0], 20_000)
    finally:
        signal.signal(signal.SIGALRM, before)
