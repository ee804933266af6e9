"""Kernel settings that suit a machine full of agents: proposed, set, and set back.

What a setting was is on disk, and flushed, before it is changed, and stays noted until
it has been set back: to apply twice loses nothing. A boot undoes all of them, so what
was noted under another boot counts no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from agentfs.errors import NothingApplied, NotPermitted, SettingsUnknown
from agentfs.machine.reading import Machine

STATE = "/var/lib/agentfs/tune.json"

SWAPPINESS = "/proc/sys/vm/swappiness"
HUGE_SHMEM = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
ZSWAP = "/sys/module/zswap/parameters"
HALT_POLL = "/sys/module/haltpoll/parameters/guest_halt_poll_ns"
IDLE_GOVERNOR = "/sys/devices/system/cpu/cpuidle/current_governor"

_HALT_POLL_NS = "200000"
"""The kernel's own default, see its Documentation/virt/guest-halt-polling.rst."""


@dataclass(frozen=True, slots=True)
class Proposal:
    """One setting, and what it should be."""

    path: str
    now: str
    wanted: str
    why: str

    @property
    def is_met(self) -> bool:
        return self.now == self.wanted


@dataclass(frozen=True, slots=True)
class Change:
    """What was done to one setting."""

    path: str
    before: str
    after: str
    problem: str | None = None
    """Why it is not what it should be."""


def proposals(machine: Machine) -> list[Proposal]:
    """What to set on this machine, in this order; settings that its kernel lacks are left out."""
    found = []
    for path, wanted, why in _wishes(machine):
        now = machine.setting(path)
        if now is not None:
            found.append(Proposal(path, now, wanted or now, why))
    return found


def _wishes(machine: Machine) -> Iterator[tuple[str, str | None, str]]:
    """Paths, what they should be, None where any value will do, and why."""
    if not machine.swaps_to_ram:
        compressor = "zstd" if _has_zstd(machine) else None
        yield f"{ZSWAP}/compressor", compressor, "zstd makes less of text than lzo and lz4 do"
        yield f"{ZSWAP}/zpool", "zsmalloc", "zbud and z3fold keep two or three to a page at most"
        yield f"{ZSWAP}/shrinker_enabled", "Y", "what stays cold moves on to the disk in time"
        yield f"{ZSWAP}/enabled", "Y", "agents that wait are compressed in RAM, not written to disk"
    if machine.swaps_to_ram or machine.setting(f"{ZSWAP}/enabled") is not None:
        yield SWAPPINESS, "100", "swapping to RAM costs no more than reading a file again"
    huge = "advise" if machine.setting(HUGE_SHMEM) == "deny" else None
    yield HUGE_SHMEM, huge, "deny keeps huge pages from what agents share; else each mount asks"
    if polls_when_idle(machine) is not None:
        polls = None if polls_when_idle(machine) else _HALT_POLL_NS
        yield HALT_POLL, polls, "a processor that halts leaves the virtual machine, at each request"


def polls_when_idle(machine: Machine) -> bool | None:
    """Whether a processor of this virtual machine waits a while before it halts; None: it cannot.

    Else whoever asks the daemon for something, and the daemon, are woken by way of the host.
    """
    setting = machine.setting(HALT_POLL)
    if setting is None or machine.setting(IDLE_GOVERNOR) != "haltpoll":
        return None
    return setting != "0"


def _has_zstd(machine: Machine) -> bool:
    """Whether the kernel can compress with zstd, as it is or with a module."""
    registered = machine.text("/proc/crypto") or ""
    is_there = re.search(r"^name\s*: zstd$", registered, flags=re.MULTILINE) is not None
    return is_there or machine.kernel_option("CRYPTO_ZSTD") in ("y", "m")


def apply(machine: Machine) -> list[Change]:
    """Set what is not as proposed.

    :raises NotPermitted: not root
    :raises SettingsUnknown: what was before cannot be noted, so nothing was changed
    """
    with _noted(machine) as noted:
        due = [proposal for proposal in proposals(machine) if not proposal.is_met]
        before = dict(noted.settings)
        for proposal in due:
            first = before.get(proposal.path, (proposal.now, ""))[0]
            noted.settings[proposal.path] = (first, proposal.wanted)
        noted.save()
        changes = [_set(machine, p.path, before=p.now, after=p.wanted) for p in due]
        for change in changes:
            if change.after != change.before:
                noted.settings[change.path] = (noted.settings[change.path][0], change.after)
            elif change.path in before:
                noted.settings[change.path] = before[change.path]
            else:
                del noted.settings[change.path]
        noted.save()
        return changes


def undo(machine: Machine) -> list[Change]:
    """Set back what `apply` changed, but for what somebody else has changed since.

    :raises NothingApplied: there is nothing to set back
    :raises NotPermitted, SettingsUnknown: as `apply`
    """
    with _noted(machine) as noted:
        if not noted.settings:
            raise NothingApplied(
                "there is nothing to restore: since the machine started, "
                "agentfs tune --apply has changed nothing that was not set back"
            )
        changes = []
        for path, (before, applied) in reversed(list(noted.settings.items())):
            now = machine.setting(path) or ""
            if now in (before, applied):
                changes.append(_set(machine, path, before=now, after=before))
            else:
                problem = f"somebody has set it since; it was {before} before agentfs tune"
                changes.append(Change(path, now, now, problem))
            if changes[-1].problem is None or now not in (before, applied):
                del noted.settings[path]
        noted.save()
        return changes


def _set(machine: Machine, path: str, *, before: str, after: str) -> Change:
    if before == after:
        return Change(path, before, after)
    try:
        machine.path(path).write_text(after)
    except OSError as error:
        return Change(path, before, before, f"the kernel refuses {after}: {error.strerror}")
    now = machine.setting(path) or ""
    return Change(path, before, now, None if now == after else f"{after} was asked for")


class _Noted:
    """What settings were, in a file that is changed whole or not at all."""

    def __init__(self, machine: Machine, directory: int) -> None:
        self._path = machine.path(STATE)
        self._directory = directory
        self._boot = machine.boot
        self.settings: dict[str, tuple[str, str]] = {}
        """(before, as applied), by path, in the order in which they were set."""
        try:
            found: Any = json.loads(self._path.read_text())
            if found["boot"] == self._boot:
                self.settings = {
                    str(path): (str(before), str(applied))
                    for path, (before, applied) in found["settings"].items()
                }
        except FileNotFoundError:
            pass
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise SettingsUnknown(
                f"{self._path}, which says what settings were before, cannot be read "
                f"({type(error).__name__}); nothing was changed: look into it, or remove it"
            ) from error

    def save(self) -> None:
        """Make it durable."""
        scratch = self._path.with_suffix(".tmp")
        try:
            if self.settings:
                with scratch.open("w") as file:
                    json.dump({"boot": self._boot, "settings": self.settings}, file, indent=2)
                    file.flush()
                    os.fsync(file.fileno())
                scratch.replace(self._path)
            else:
                self._path.unlink(missing_ok=True)
            os.fsync(self._directory)
        except OSError as error:
            raise SettingsUnknown(
                f"{self._path}, which says what settings were before, cannot be written: "
                f"{error.strerror}"
            ) from error


@contextlib.contextmanager
def _noted(machine: Machine) -> Iterator[_Noted]:
    """What is noted, for one process at a time."""
    if not machine.is_root:
        raise NotPermitted("kernel settings take root; agentfs tune alone shows them to anybody")
    directory = machine.path(STATE).parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise SettingsUnknown(f"{directory} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield _Noted(machine, fd)
    finally:
        os.close(fd)
