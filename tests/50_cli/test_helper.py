"""mount(8) with the type fuse.agentfs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentfs
from agentfs.cli.helper import Options, parse_options
from agentfs.cli.mounts import mount_at
from agentfs.errors import UsageError

HELPER = Path("/sbin/mount.fuse.agentfs")


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("", Options()),
        ("rw", Options()),
        ("rw,noauto,user,_netdev,x-systemd.automount,comment=mine,dev,suid", Options()),
        ("profile=archive,allow_other", Options("archive", allow_other=True)),
        ("nosuid,rw,nodev", Options(restrictions=("nosuid", "nodev"))),
    ],
)
def test_options_of_fstab_are_understood(text: str, options: Options) -> None:
    assert parse_options(text) == options


@pytest.mark.parametrize(
    "text", ["profil=archive", "profile", "profile=", "allow_others", "size=3"]
)
def test_an_unknown_option_is_an_error(text: str) -> None:
    with pytest.raises(UsageError, match="unknown mount option"):
        parse_options(f"rw,{text}")


@pytest.fixture
def helper() -> Iterator[Path]:
    """The helper where mount(8) looks for it, for the time of one test."""
    if os.geteuid() != 0:
        pytest.skip("mount(8) of a new type takes root")
    if HELPER.exists():
        yield HELPER
        return
    source = Path(agentfs.__file__).resolve().parents[1]
    HELPER.write_text(
        f"#!/bin/sh\nexport PYTHONPATH={source}\n"
        f"exec {sys.executable} -P -c 'import sys; from agentfs.cli import mount_helper; "
        'sys.exit(mount_helper())\' "$@"\n'
    )
    HELPER.chmod(0o755)
    yield HELPER
    HELPER.unlink()


def test_mount_and_umount_work_as_for_any_file_system(helper: Path, mounted: object) -> None:
    store, path = mounted.store, mounted.path  # type: ignore[attr-defined]
    mounted.umount()  # type: ignore[attr-defined]
    command = ["mount", "-t", "fuse.agentfs", store, path, "-o", "profile=archive,nosuid,noexec"]
    subprocess.run(command, check=True, timeout=60, capture_output=True)
    there = mount_at(path)
    assert there is not None
    assert there.is_agentfs
    assert there.store == store
    assert mounted.stats()["profile"] == "archive"  # type: ignore[attr-defined]
    line = next(
        line for line in Path("/proc/self/mounts").read_text().splitlines() if str(path) in line
    )
    assert {"nosuid", "noexec"} <= set(line.split()[3].split(","))
    (path / "file").write_text("x")
    subprocess.run(["umount", path], check=True, timeout=60)


def test_a_mistake_in_fstab_is_one_line(helper: Path, tmp_path: Path, mountpoint: Path) -> None:
    command = ["mount", "-t", "fuse.agentfs", tmp_path / "store", mountpoint, "-o", "profil=x"]
    done = subprocess.run(command, check=False, timeout=60, capture_output=True, text=True)
    assert done.returncode != 0
    assert "agentfs: unknown mount option 'profil=x'" in done.stderr
    assert not (tmp_path / "store").exists()
