"""Every condition agentfs can end in, one class each, with its exit code.

An error's text is one line: what is wrong, then what to do about it. The
command line prints it as it is; exit codes are listed in docs/agentfs.1.
"""

from __future__ import annotations


class AgentfsError(Exception):
    """Base of all errors a person may see; *exit_code* is the process's."""

    exit_code = 1


class UsageError(AgentfsError):
    """Arguments that do not fit together."""

    exit_code = 2


class StoreBusy(AgentfsError):
    """The store is held by another daemon."""

    exit_code = 3


class StoreNewer(AgentfsError):
    """The store was written by a newer version."""

    exit_code = 4


class StoreDamaged(AgentfsError):
    """The store fails a check; nothing was changed."""

    exit_code = 5


class StoreUnusable(AgentfsError):
    """No store at that path, and none can be made there."""

    exit_code = 6


class MountpointUnusable(AgentfsError):
    """The mountpoint is missing, busy or not a directory."""

    exit_code = 7


class FuseUnavailable(AgentfsError):
    """No fuse3, no /dev/fuse, or no right to mount."""

    exit_code = 8


class NoSpace(AgentfsError):
    """The disk below the store is full."""

    exit_code = 9


class ProfileInvalid(AgentfsError):
    """A mount profile that is missing, or has an unknown key or a bad value."""

    exit_code = 10


class NotMounted(AgentfsError):
    """No agentfs daemon answers for that mountpoint or store."""

    exit_code = 11


class DaemonSilent(AgentfsError):
    """The daemon holds the store but does not answer in time."""

    exit_code = 12


class FilesOpen(AgentfsError):
    """The mount is in use, so it stays; nothing is lost."""

    exit_code = 13


class NoSuchPath(AgentfsError):
    """A path leads nowhere."""

    exit_code = 14


class PathTaken(AgentfsError):
    """There is something at the destination already."""

    exit_code = 15


class NotPermitted(AgentfsError):
    """You lack a right that this takes."""

    exit_code = 16


class WorkerFails(AgentfsError):
    """Workers died as soon as they were started, again and again; the mount is cleared."""

    exit_code = 17


class DamageFound(AgentfsError):
    """A store is damaged; the report says what, and which files it touches."""

    exit_code = 18


class MachineUnfit(AgentfsError):
    """The machine lacks what a mount needs; the report says what."""

    exit_code = 19


class SettingRefused(AgentfsError):
    """A kernel setting is not what it should be; the report says which, and why."""

    exit_code = 20


class NothingApplied(AgentfsError):
    """No kernel setting is there to be restored."""

    exit_code = 21


class SettingsUnknown(AgentfsError):
    """What kernel settings were before cannot be noted, or read."""

    exit_code = 22


def error_for(exit_code: int, message: str) -> AgentfsError:
    """Rebuild an error that crossed a process boundary as *exit_code* and text."""
    for kind in AgentfsError.__subclasses__():
        if kind.exit_code == exit_code:
            return kind(message)
    return AgentfsError(message)
