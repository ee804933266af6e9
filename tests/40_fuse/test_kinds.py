"""Programs ask for kinds, agents, tiers and digests by extended attributes."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def get(path: Path, what: str) -> str:
    return os.getxattr(path, f"user.agentfs.{what}").decode()


@pytest.fixture
def prompt(mounted: Any) -> Path:
    directory: Path = mounted.path / "agents/one/prompts"
    directory.mkdir(parents=True)
    path = directory / "system.md"
    path.write_bytes(b"You are careful.\n" * 1000)
    return path


def test_attributes_say_what_a_file_is(prompt: Path, mounted: Any) -> None:
    assert (get(prompt, "kind"), get(prompt, "agent"), get(prompt, "tier")) == (
        "system_prompt",
        "one",
        "hot",
    )
    mounted.agentfs("sync", mounted.path)
    assert len(get(prompt, "digest")) == 64
    assert float(get(prompt, "reduction")) > 10
    mounted.remount()
    assert (get(prompt, "kind"), get(prompt, "tier")) == ("system_prompt", "warm")
    assert get(prompt.parent, "agent") == "one"


def test_attributes_are_set_inherited_and_removed(prompt: Path) -> None:
    os.setxattr(prompt.parent.parent, "user.agentfs.kind", b"conversation")
    assert get(prompt, "kind") == "conversation"
    os.setxattr(prompt, "user.agentfs.kind", b"tool_result")
    assert get(prompt, "kind") == "tool_result"
    os.removexattr(prompt, "user.agentfs.kind")
    os.removexattr(prompt.parent.parent, "user.agentfs.kind")
    assert get(prompt, "kind") == "system_prompt"
    for name, value, error in (
        ("kind", b"unheard of", errno.EINVAL),
        ("tier", b"cold", errno.EPERM),
    ):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            os.setxattr(prompt, f"user.agentfs.{name}", value)
        assert caught.value.errno == error


def test_only_what_was_set_is_listed_and_copied(prompt: Path) -> None:
    assert os.listxattr(prompt) == []
    os.setxattr(prompt, "user.agentfs.kind", b"tool_result")
    assert os.listxattr(prompt) == ["user.agentfs.kind"]
    copy = prompt.with_name("copy")
    subprocess.run(["cp", "-a", prompt, copy], check=True)
    assert get(copy, "kind") == "tool_result"


def test_what_is_not_so_is_no_attribute(mounted: Any) -> None:
    path = mounted.path / "x"
    path.write_bytes(b"x")
    for what in ("agent", "digest", "reduction", "importance"):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            get(path, what)
        assert caught.value.errno == errno.ENODATA


def test_attributes_of_ours_do_not_slow_other_files_down(mounted: Any) -> None:
    """The relay answers itself that a new file has no capabilities, as long as none has any."""
    (mounted.path / "d").mkdir()
    os.setxattr(mounted.path / "d", "user.agentfs.kind", b"conversation")
    path = mounted.path / "d" / "x"
    shutil.copy("/bin/true", path)
    with pytest.raises(OSError, match="No data"):
        os.getxattr(path, "security.capability")
    if os.geteuid() == 0:
        value = bytes.fromhex("0100000200200000000000000000000000000000")  # cap_net_raw+e, v2
        os.setxattr(path, "security.capability", value)
        assert os.getxattr(path, "security.capability") == value


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming somebody else takes root")
def test_pinning_is_for_root_and_the_mounts_user(mounted: Any) -> None:
    path = mounted.path / "x"
    path.write_bytes(b"x")
    os.chown(path, 65534, 65534)
    for above in (mounted.path, *mounted.path.parents):
        if above.stat().st_uid == 0 and above != Path("/"):
            above.chmod(above.stat().st_mode | 0o005)
    script = (
        "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534);"
        f" os.setxattr({str(path)!r}, 'user.agentfs.%s', b'%s')"
    )
    for name, value, is_allowed in (("kind", "conversation", True), ("pin", "1", False)):
        command = [sys.executable, "-c", script % (name, value)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == is_allowed, done.stderr
    os.setxattr(path, "user.agentfs.pin", b"1")
