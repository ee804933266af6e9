"""`mount.fuse.agentfs STORE MOUNTPOINT -o OPTIONS`: how mount(8) and fstab get here.

mount(8) passes on what fstab says, so options that only concern mount itself
are accepted and have no effect. What restricts a mount (nosuid, nodev, noexec,
ro) does have one: root's mount is remounted with it. Any other option is an
error: a misspelt one must not be taken for a setting.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from agentfs.cli import mounting
from agentfs.cli.mounts import absolute, find_target
from agentfs.config import DEFAULT_MODE, MODES, MountConfig, load_profile
from agentfs.errors import UsageError

WITHOUT_EFFECT = frozenset(
    {"rw", "defaults", "dev", "suid", "exec", "async", "silent", "loud", "default_permissions"}
    | {"auto", "noauto", "user", "nouser", "users", "owner", "group", "_netdev", "nofail"}
    | {"atime", "noatime", "diratime", "nodiratime", "relatime", "lazytime", "nolazytime"}
)
RESTRICTIONS = frozenset({"ro", "nosuid", "nodev", "noexec"})


@dataclass(slots=True)
class Options:
    """What an -o string asks for."""

    profile: str = "default"
    mode: str = DEFAULT_MODE
    allow_other: bool = False
    restrictions: tuple[str, ...] = ()


def helper_main(argv: list[str]) -> int:
    """Mount as mount(8) asks; returns an exit code of agentfs."""
    parser = argparse.ArgumentParser(
        prog="mount.fuse.agentfs",
        description="Mount an agentfs store; called by mount(8) for the type fuse.agentfs.",
        allow_abbrev=False,
    )
    parser.add_argument("store", metavar="STORE", help="the store's directory")
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="an existing directory")
    parser.add_argument(
        "-o",
        metavar="OPTIONS",
        dest="options",
        action="append",
        default=[],
        help="profile=NAME, mode=MODE, allow_other, and the generic options of mount(8)",
    )
    parser.add_argument("-t", metavar="TYPE", help="ignored")
    parser.add_argument("-f", action="store_true", help="check the options, do not mount")
    for flag in ("-s", "-n", "-v"):
        parser.add_argument(flag, action="store_true", help="ignored")
    arguments = parser.parse_args(argv)
    options = parse_options(",".join(arguments.options))
    config = MountConfig(
        store=Path(os.path.realpath(arguments.store)),
        mountpoint=absolute(arguments.mountpoint),
        profile=load_profile(options.profile),
        foreground=False,
        mode=options.mode,
        allow_other=options.allow_other or os.geteuid() == 0,
    )
    if arguments.f:
        return 0
    exit_code = mounting.mount(config, as_json=False, make_mountpoint=False)
    if options.restrictions:
        _restrict(config.mountpoint, options.restrictions)
    return exit_code


def parse_options(text: str) -> Options:
    """Read a comma-separated option string; raises UsageError for an unknown option."""
    options = Options()
    for option in filter(None, text.split(",")):
        name, _, value = option.partition("=")
        if name == "profile" and value:
            options.profile = value
        elif name == "mode" and value in MODES:
            options.mode = value
        elif option == "allow_other":
            options.allow_other = True
        elif option in RESTRICTIONS:
            options.restrictions += (option,)
        elif option not in WITHOUT_EFFECT and not name.startswith("x-") and name != "comment":
            raise UsageError(
                f"unknown mount option {option!r}; "
                "agentfs knows profile=NAME, mode=auto|relay|plain and allow_other"
            )
    return options


def _restrict(mountpoint: Path, restrictions: tuple[str, ...]) -> None:
    if os.geteuid() != 0:
        restrictions = tuple(r for r in restrictions if r not in ("nosuid", "nodev"))
        if not restrictions:
            return  # fusermount3 sets both on every user's mount
    options = ",".join(("remount", "bind", *restrictions))
    done = subprocess.run(
        ["mount", "--internal-only", "-o", options, str(mountpoint)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        mounting.umount(find_target(str(mountpoint)))
        raise UsageError(
            f"the options {','.join(restrictions)} cannot be set here: {done.stderr.strip()}"
        )
