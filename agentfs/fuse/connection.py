"""The connection to the kernel that relay mode has: made by the keeper, used by its workers.

Imports neither pyfuse3 nor trio: the keeper is to stay small.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from agentfs.config import MountConfig
from agentfs.errors import FuseUnavailable
from agentfs.fuse import _relay

Mode = Literal["plain", "relay"]


@dataclass(frozen=True, slots=True)
class Connection:
    """A mounted filesystem. While somebody has the descriptors open it is not lost."""

    devices: tuple[int, ...]
    ledger: int


def choose(config: MountConfig) -> tuple[Mode, str]:
    """The mode that *config* asks for, or the best there can be, and why in a few words.

    :raises FuseUnavailable: relay mode was asked for and cannot be
    """
    if config.mode == "plain":
        return "plain", "asked for"
    obstacle = _relay.passthrough_available()
    if obstacle is None:
        return "relay", "the kernel passes reads and writes through"
    if config.mode == "relay":
        raise FuseUnavailable(f"relay mode is not possible: {obstacle}; use --mode plain")
    return "plain", obstacle


def connect(config: MountConfig) -> Connection:
    """Mount; requests wait in the kernel until a worker reads them.

    :raises FuseUnavailable: the kernel refused
    """
    options = ["default_permissions", f"fsname={escaped(config.store)}"]
    if config.allow_other:
        options.append("allow_other")
    try:
        devices = _relay.mount(config.mountpoint, ",".join(options))
    except OSError as error:
        raise FuseUnavailable(
            f"{config.mountpoint} could not be mounted: {error.strerror}"
        ) from error
    return Connection(tuple(devices), _relay.create_ledger())


def escaped(path: Path) -> str:
    """Protect a path in mount options, which are split at commas and lose their backslashes."""
    return str(path).replace("\\", "\\\\").replace(",", "\\,")
