"""The control socket: what it answers, and that nothing a client does stalls it."""

from __future__ import annotations

import json
import os
import socket
import stat
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
import trio

from agentfs.control import client, lock, protocol, server
from agentfs.errors import (
    AgentfsError,
    DaemonSilent,
    FilesOpen,
    NotMounted,
    StoreBusy,
    StoreUnusable,
    UsageError,
)

T = TypeVar("T")


async def echo(args: dict[str, Any], _progress: server.ProgressFn) -> dict[str, Any]:
    return args


async def count(args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
    for done in range(args["to"]):
        progress("counting", done, args["to"])
        await trio.sleep(0.02)
    return {"counted": args["to"]}


async def fail(_args: dict[str, Any], _progress: server.ProgressFn) -> dict[str, Any]:
    raise ZeroDivisionError("no matter")


async def refuse(_args: dict[str, Any], _progress: server.ProgressFn) -> dict[str, Any]:
    raise FilesOpen("somebody reads")


async def huge(_args: dict[str, Any], _progress: server.ProgressFn) -> dict[str, Any]:
    return {"x": "x" * protocol.MAX_LINE_BYTES}


HANDLERS = {"echo": echo, "count": count, "fail": fail, "refuse": refuse, "huge": huge}


@asynccontextmanager
async def serving(store: Path, **more: server.Handler) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        await nursery.start(server.serve, store, HANDLERS | more)
        yield nursery
        nursery.cancel_scope.cancel()


async def in_thread(function: Callable[..., T], *args: Any, **named: Any) -> T:
    return await trio.to_thread.run_sync(lambda: function(*args, **named))


def connect(store: Path) -> socket.socket:
    raw = socket.socket(socket.AF_UNIX)
    raw.settimeout(10)
    with protocol.socket_address(store) as address:
        raw.connect(address)
    return raw


def exchange(store: Path, data: bytes) -> dict[str, Any]:
    with connect(store) as raw:
        raw.sendall(data)
        answer: dict[str, Any] = json.loads(raw.makefile().readline())
        return answer


async def test_a_request_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path):
        assert await in_thread(client.call, tmp_path, "echo", {"a": [1, "ü"]}) == {"a": [1, "ü"]}


async def test_one_connection_carries_several_requests(tmp_path: Path) -> None:
    def twice() -> list[str]:
        with connect(tmp_path) as raw:
            raw.sendall(protocol.encode({"op": "echo", "args": {"n": 1}}) * 2)
            replies = raw.makefile()
            return [replies.readline(), replies.readline()]

    async with serving(tmp_path):
        first, second = await in_thread(twice)
    assert json.loads(first) == json.loads(second) == {"ok": True, "result": {"n": 1}}


async def test_progress_comes_before_the_result(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    async with serving(tmp_path):
        result = await in_thread(
            client.call,
            tmp_path,
            "count",
            {"to": 40},
            on_progress=lambda *args: seen.append(args),
        )
    assert result == {"counted": 40}
    assert seen
    assert {(what, total) for what, _, total in seen} == {("counting", 40)}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)


async def test_an_error_arrives_as_the_class_it_was_raised_as(tmp_path: Path) -> None:
    async with serving(tmp_path):
        with pytest.raises(FilesOpen, match="somebody reads"):
            await in_thread(client.call, tmp_path, "refuse")


async def test_a_bug_in_a_handler_leaves_the_server_running(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(tmp_path):
        with pytest.raises(AgentfsError, match=r"fail failed: ZeroDivisionError: no matter"):
            await in_thread(client.call, tmp_path, "fail")
        assert await in_thread(client.call, tmp_path, "echo") == {}
    assert "Traceback" in caplog.text


async def test_rows_may_be_more_than_a_line_holds(tmp_path: Path) -> None:
    rows = [{"number": number, "text": "x" * 1000} for number in range(1000)]

    async def list_all(_args: dict[str, Any], _progress: server.ProgressFn) -> dict[str, Any]:
        return {"rows": rows, "more": False}

    async with serving(tmp_path, list=list_all):
        assert await in_thread(client.call, tmp_path, "list") == {"rows": rows, "more": False}


async def test_an_answer_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    async with serving(tmp_path):
        with pytest.raises(AgentfsError, match="longer than 64 KiB"):
            await in_thread(client.call, tmp_path, "huge")


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"garbage\n",
        b"\xff\xfe\x00\n",
        b"[" * 60_000 + b"\n",
        b"9" * 60_000 + b"\n",
        b"x" * (protocol.MAX_LINE_BYTES + 10),
        b"[1]\n",
        b"null\n",
        b'{"op":["echo"]}\n',
        b'{"op":"echo","args":3}\n',
        b'{"args":{}}\n',
    ],
    ids=lambda line: repr(line[:12]),
)
async def test_garbage_is_answered_with_a_usage_error(tmp_path: Path, line: bytes) -> None:
    async with serving(tmp_path):
        answer = await in_thread(exchange, tmp_path, line)
        assert answer["ok"] is False
        assert answer["exit_code"] == UsageError.exit_code
        assert await in_thread(client.call, tmp_path, "echo") == {}


async def test_an_operation_goes_on_when_its_client_vanishes(tmp_path: Path) -> None:
    finished = trio.Event()

    async def work(_args: dict[str, Any], progress: server.ProgressFn) -> dict[str, Any]:
        for done in range(30):
            progress("working", done, 30)
            await trio.sleep(0.02)
        finished.set()
        return {}

    async with serving(tmp_path, work=work):
        with connect(tmp_path) as raw:
            raw.sendall(b'{"op":"work"}\n')
        with trio.fail_after(10):
            await finished.wait()
        assert await in_thread(client.call, tmp_path, "echo") == {}


async def test_a_client_that_does_not_read_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SEND_S", 0.1)
    async with serving(tmp_path):
        with connect(tmp_path) as raw:
            request = protocol.encode({"op": "echo", "args": {"x": "x" * 60_000}})

            def flood() -> None:
                for _ in range(100):
                    raw.sendall(request)

            with pytest.raises((BrokenPipeError, ConnectionResetError, TimeoutError)):
                await in_thread(flood)
        assert await in_thread(client.call, tmp_path, "echo") == {}


async def test_an_idle_client_is_hung_up_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_S", 0.1)
    async with serving(tmp_path):
        with connect(tmp_path) as raw:
            assert await in_thread(raw.recv, 100) == b""


async def test_too_many_clients_are_refused_and_later_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MAX_CLIENTS", 2)
    async with serving(tmp_path):
        crowd = [connect(tmp_path) for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked(0.05)
        with pytest.raises(AgentfsError, match="too many clients"):
            await in_thread(client.call, tmp_path, "echo")
        for raw in crowd:
            raw.close()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert await in_thread(client.call, tmp_path, "echo") == {}


async def test_the_answer_to_stop_gets_out_of_a_server_that_ends(tmp_path: Path) -> None:
    async with serving(tmp_path) as nursery:

        async def stop(_args: dict[str, Any], _progress: server.ProgressFn) -> dict[str, Any]:
            nursery.cancel_scope.cancel()
            return {"bye": True}

        other = tmp_path / "other"
        other.mkdir()
        answers: list[dict[str, Any]] = []
        await nursery.start(server.serve, other, {"stop": stop})
        asking = threading.Thread(target=lambda: answers.append(client.call(other, "stop")))
        asking.start()
        with trio.CancelScope(shield=True):
            await in_thread(asking.join)
    assert answers == [{"bye": True}]
    assert not (other / protocol.SOCKET_NAME).exists()


async def test_the_socket_is_for_its_owner_only(tmp_path: Path) -> None:
    async with serving(tmp_path):
        assert stat.S_IMODE(os.stat(tmp_path / protocol.SOCKET_NAME).st_mode) == 0o600


async def test_a_store_may_have_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    store = tmp_path / ("d" * 120) / ("e" * 120)
    store.mkdir(parents=True)
    async with serving(store):
        assert await in_thread(client.call, store, "echo") == {}


async def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale, protocol.socket_address(tmp_path) as address:
        stale.bind(address)
    async with serving(tmp_path):
        assert await in_thread(client.call, tmp_path, "echo") == {}
    assert not (tmp_path / protocol.SOCKET_NAME).exists()


async def test_a_file_in_the_place_of_the_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / protocol.SOCKET_NAME
    path.write_text("precious")
    with pytest.raises(StoreUnusable, match="is no socket"):
        await server.serve(tmp_path, HANDLERS)
    assert path.read_text() == "precious"


def test_no_daemon_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(NotMounted, match="agentfs mount"):
        client.call(tmp_path, "stats")
    with pytest.raises(NotMounted):
        client.call(tmp_path / "nothing", "stats")


def test_a_dead_daemons_socket_is_an_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale, protocol.socket_address(tmp_path) as address:
        stale.bind(address)
    with pytest.raises(NotMounted):
        client.call(tmp_path, "stats")


@pytest.fixture
def listener(tmp_path: Path) -> socket.socket:
    """A daemon whose every answer the test writes itself."""
    raw = socket.socket(socket.AF_UNIX)
    with protocol.socket_address(tmp_path) as address:
        raw.bind(address)
    raw.listen(1)
    return raw


def answer_with(listener: socket.socket, data: bytes) -> threading.Thread:
    def answer() -> None:
        connection, _ = listener.accept()
        connection.recv(1000)
        connection.sendall(data)
        connection.close()

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


def test_a_hung_daemon_is_an_error_and_no_hang(tmp_path: Path, listener: socket.socket) -> None:
    with listener, pytest.raises(DaemonSilent, match=r"has not answered for 0\.2 s"):
        client.call(tmp_path, "stats", silence_s=0.2)


def test_a_hung_daemon_with_a_full_backlog_is_an_error(
    tmp_path: Path, listener: socket.socket
) -> None:
    with listener:
        crowd = []
        for _ in range(3):
            raw = socket.socket(socket.AF_UNIX)
            raw.setblocking(False)
            with protocol.socket_address(tmp_path) as address:
                raw.connect_ex(address)
            crowd.append(raw)
        with pytest.raises(DaemonSilent):
            client.call(tmp_path, "stats", silence_s=0.3)
        for raw in crowd:
            raw.close()


@pytest.mark.parametrize(
    "data",
    [
        b"hello\n",
        b"{}\n",
        b'{"ok":false}\n',
        b'{"ok":true,"result":3}\n',
        b'{"progress":3}\n',
        b'{"progress":{"done":"x"}}\n',
        b'{"ok":false,"error":"x","exit_code":"y"}\n',
        b"x" * 200_000,
    ],
    ids=lambda data: repr(data[:24]),
)
def test_a_daemon_that_answers_nonsense_is_an_error(
    tmp_path: Path, listener: socket.socket, data: bytes
) -> None:
    with listener:
        thread = answer_with(listener, data)
        with pytest.raises(AgentfsError):
            client.call(tmp_path, "stats", on_progress=lambda *_: None, silence_s=5)
        thread.join()


@pytest.mark.parametrize("data", [b"", b'{"progress":{}}\n', b'{"ok":tr'])
def test_a_daemon_that_dies_before_its_answer_is_an_error(
    tmp_path: Path, listener: socket.socket, data: bytes
) -> None:
    with listener:
        thread = answer_with(listener, data)
        with pytest.raises(NotMounted, match="ended before it answered"):
            client.call(tmp_path, "stats", silence_s=5)
        thread.join()


def test_a_store_is_held_by_one_process(tmp_path: Path) -> None:
    assert lock.holder(tmp_path) is None
    held = lock.hold(tmp_path)
    assert lock.holder(tmp_path) == os.getpid()
    with pytest.raises(StoreBusy, match=f"pid {os.getpid()}"):
        lock.hold(tmp_path)
    os.close(held)
    assert lock.holder(tmp_path) is None
    os.close(lock.hold(tmp_path))


def test_looking_at_the_lock_does_not_keep_a_daemon_out(tmp_path: Path) -> None:
    os.close(lock.hold(tmp_path))
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            lock.holder(tmp_path)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        for _ in range(50):
            os.close(lock.hold(tmp_path))
    finally:
        stop.set()
        thread.join()
