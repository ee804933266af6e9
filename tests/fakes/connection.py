"""The end of a FUSE connection that hangs, by its control file of fusectl(5)."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

from agentfs.cli.mounts import mount_at

FUSECTL = Path("/sys/fs/fuse/connections")


class Connection:
    """Aborts the connection of one mount, and never that of another.

    A mount's number is given to the next one as soon as it is gone, which may be another test's.
    So the control file is opened while the mount is there: held open, it stays this connection's.
    """

    def __init__(self, path: Path) -> None:
        """*path* is the mountpoint, just mounted. Without fusectl, or the right, all are no-ops."""
        _mount_fusectl()
        mount = mount_at(path)
        assert mount is not None, f"nothing is mounted at {path}"
        self._file: int | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(FUSECTL / str(mount.device_minor) / "abort", os.O_WRONLY)

    def abort(self) -> None:
        """Nothing that waits for the filesystem waits any longer; a no-op when it is gone."""
        if self._file is not None:
            os.write(self._file, b"1")

    def abort_after(self, seconds: float) -> None:
        """Have a process of its own abort it then: a process that waits for FUSE cannot."""
        self.keep()
        if self._file is not None:
            self._watchdog = subprocess.Popen(
                ["sh", "-c", 'sleep "$1"; echo 1', "watchdog", f"{seconds:.0f}"],
                stdin=subprocess.DEVNULL,
                stdout=self._file,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def keep(self) -> None:
        """Have no process abort it any more."""
        if self._watchdog is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._watchdog.pid, signal.SIGKILL)
            self._watchdog.wait()
            self._watchdog = None

    def close(self) -> None:
        """Let go of it as it is."""
        self.keep()
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _mount_fusectl() -> None:
    """Have /sys/fs/fuse/connections, which containers often lack."""
    if os.geteuid() == 0 and mount_at(FUSECTL) is None:
        subprocess.run(["mount", "-t", "fusectl", "none", FUSECTL], check=False)
