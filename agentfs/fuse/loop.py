"""How pyfuse3 waits for requests: the parts of trio it uses, with a cheaper hand-over.

pyfuse3 keeps two tasks per descriptor and passes a `trio.Lock` between them for
every request, which costs a turn of the event loop although most requests are
answered without waiting. Here the task that reads goes on reading; another one
is let in only when a handler really waits. pyfuse3 looks these names up in
`pyfuse3.trio`, the attribute through which its asyncio mode is switched on.

Measured on a stat that reaches the daemon: 79 us with trio.Lock, 63 us so.
"""

from __future__ import annotations

import time
import types
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace, TracebackType
from typing import Any, TypeAlias, TypeVar

import pyfuse3
import trio

_PATIENCE_MS = 1
"""How long to wait for the next request before the event loop is asked to wait for it."""

_TURN_S = 0.002
"""How long other tasks may be kept from their turn while requests follow each other."""

Result = TypeVar("Result")

Request: TypeAlias = tuple[int, int, int, int, int, bytes]

Poll: TypeAlias = Callable[[int, int], bool | Request | None]
"""Waits until a descriptor is readable or so many milliseconds are over; True: it is. A tuple is
a request that came by another way and can be answered without waiting. None: other tasks may want
their turn."""

Answer: TypeAlias = Callable[[Request], None]


class _Turn:
    """The right to read the next request; released without waking whoever wants it."""

    def __init__(self) -> None:
        self.waiting_handlers = 0
        self.on_reply: Callable[[], None] | None = None
        """Called when a task comes back for more, having replied to its last request."""
        self._taken = False
        self._parked = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        if self.on_reply is not None:
            self.on_reply()
        while self._taken:
            await self._parked.park()
        self._taken = True

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._taken = False

    def let_in(self) -> None:
        """Wake one task that wants to read, if the turn is free."""
        if not self._taken:
            self._parked.unpark()


class _Waiter:
    """Waits for a descriptor: first without the event loop, which costs a tenth of a turn of it.

    While a handler waits for something, the event loop must not be kept from noticing.
    """

    def __init__(self, poll: Poll, answer: Answer, idle_fd: int | None) -> None:
        self._poll = poll
        self._answer = answer
        self._idle_fd = idle_fd
        self._is_over = False
        self._next_turn = 0.0

    def end(self, fd: int) -> None:
        """For pyfuse3.terminate: wake who waits, and who is about to."""
        self._is_over = True
        trio.lowlevel.notify_closing(fd if self._idle_fd is None else self._idle_fd)

    async def wait_readable(self, fd: int) -> None:
        while not self._is_over:
            if time.monotonic() >= self._next_turn:
                await trio.lowlevel.checkpoint()
                self._next_turn = time.monotonic() + _TURN_S
            found = self._poll(fd, 0 if _turn.waiting_handlers else _PATIENCE_MS)
            if found is True:
                return
            if found:
                self._answer(found)
            elif found is not None:
                await trio.lowlevel.wait_readable(fd if self._idle_fd is None else self._idle_fd)
                self._next_turn = time.monotonic() + _TURN_S
        raise trio.ClosedResourceError


_turn = _Turn()


class _Nursery:
    """A nursery whose tasks, when they end, let another one in."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(self, function: Callable[..., Any], *args: Any, name: str) -> None:
        async def task() -> None:
            try:
                await function(*args)
            finally:
                _turn.let_in()

        self._nursery.start_soon(task, name=name)


@asynccontextmanager
async def _open_nursery() -> AsyncIterator[_Nursery]:
    async with trio.open_nursery() as nursery:
        yield _Nursery(nursery)


def enable(
    poll: Poll, on_reply: Callable[[], None], answer: Answer, idle_fd: int | None = None
) -> None:
    """Let pyfuse3 wait this way. Before pyfuse3.main.

    :param on_reply: carries replies on; called soon after each
    :param answer: answers what *poll* returns of requests
    :param idle_fd: readable when requests come again after *poll* has found none; None: that
        descriptor itself
    """
    _turn.on_reply = on_reply
    waiter = _Waiter(poll, answer, idle_fd)
    pyfuse3.trio = SimpleNamespace(  # type: ignore[attr-defined]
        ClosedResourceError=trio.ClosedResourceError,
        Lock=lambda: _turn,
        open_nursery=_open_nursery,
        lowlevel=SimpleNamespace(
            current_task=trio.lowlevel.current_task,
            current_trio_token=trio.lowlevel.current_trio_token,
            notify_closing=waiter.end,
            wait_readable=waiter.wait_readable,
        ),
    )


@contextmanager
def noticing_at_once() -> Iterator[None]:
    """Let who waits for a thread go on as soon as it is done, not after `_PATIENCE_MS`."""
    _turn.waiting_handlers += 1
    try:
        yield
    finally:
        _turn.waiting_handlers -= 1


@types.coroutine
def letting_others_in(
    handler: Coroutine[Any, Any, Result],
) -> Generator[Any, Any, Result]:
    """Run *handler*; when it first waits, let another task read requests."""
    try:
        wanted = handler.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    _turn.let_in()
    _turn.waiting_handlers += 1
    try:
        while True:
            step: Callable[[Any], Any]
            try:
                sent = yield wanted
            except BaseException as error:
                step, value = handler.throw, error
            else:
                step, value = handler.send, sent
            try:
                wanted = step(value)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
    finally:
        _turn.waiting_handlers -= 1
