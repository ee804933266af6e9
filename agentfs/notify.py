"""What systemd is told of a service, as sd_notify(3) does; nothing when it did not ask."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send lines such as `READY=1`. A service manager that is gone is no error."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager,
    ):
        manager.sendto(state.encode(), address)


def watchdog_period_s() -> float | None:
    """How often the watchdog wants `WATCHDOG=1`: three times as often as it must; None: never."""
    period = os.environ.get("WATCHDOG_USEC", "")
    return int(period) / 3e6 if period.isdigit() and int(period) else None
