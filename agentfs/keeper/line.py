"""What keeper, fork server and worker say to each other: one JSON object a packet.

    keeper to fork server   {"config": {}}             first; answered by {"warm": layout}
                            {"start": {}}              a worker, with its descriptors
    worker to keeper        {"pid": int}               first
                            {"ready": {}}              it serves
                            {"error": str, "exit_code": int}    why it ends
                            {"alive": true}            now and then
                            {"restart": true}          replace me
    keeper to worker        {"stop": true}             seal, unmount, end
                            {"retire": true}           another one is ready to go on
                            {"refused": str}           why no other one can

End of file means that the other side is gone.
"""

from __future__ import annotations

import array
import dataclasses
import json
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agentfs.config import MountConfig, profile_of

PACKET_BYTES = 64 * 1024
_DESCRIPTORS_MAX = 32

HANDED_OVER = 75
"""Exit code of a worker that another one goes on for."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new line."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(line: socket.socket, message: dict[str, Any], descriptors: Sequence[int] = ()) -> None:
    """:raises OSError: the other side is gone, or reads nothing any more"""
    packet = json.dumps(message, default=str).encode()
    rights = array.array("i", descriptors)
    extra = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if descriptors else []
    line.sendmsg([packet], extra, socket.MSG_NOSIGNAL)


def receive(line: socket.socket) -> tuple[dict[str, Any] | None, list[int]]:
    """The next message, None at the end, and the descriptors that came with it."""
    try:
        packet, rights, _, _ = socket.recv_fds(line, PACKET_BYTES, _DESCRIPTORS_MAX)
    except ConnectionResetError:
        return None, []
    for descriptor in rights:
        os.set_inheritable(descriptor, False)
    return (json.loads(packet) if packet else None), rights


def config_message(config: MountConfig) -> dict[str, Any]:
    """What `config_of` makes the same configuration of."""
    return dataclasses.asdict(config)


def config_of(message: dict[str, Any]) -> MountConfig:
    """Undo `config_message`.

    :raises TypeError: it is of another version
    """
    values = dict(message) | {
        "store": Path(message["store"]),
        "mountpoint": Path(message["mountpoint"]),
        "profile": profile_of(message["profile"]),
    }
    return MountConfig(**values)
