"""`agentfs doctor` and `agentfs tune` on this machine, whatever it is."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable

import pytest

from agentfs.errors import MachineUnfit, NotPermitted
from agentfs.fuse._relay import passthrough_available

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_doctor_says_of_passthrough_what_mount_finds(run: Run) -> None:
    done = run("doctor", "--json")
    answer = json.loads(done.stdout)
    assert done.returncode == (MachineUnfit.exit_code if answer["fail"] else 0)
    (passthrough,) = (f for f in answer["findings"] if f["name"] == "passthrough")
    if os.geteuid() == 0:
        assert (passthrough["status"] == "ok") == (passthrough_available() is None)


def test_doctor_is_plain_text_in_a_pipe(run: Run) -> None:
    text = run("doctor").stdout
    assert "kernel" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 96


def test_tune_shows_and_changes_nothing(run: Run) -> None:
    first, again = run("tune", "--json"), run("tune", "--json")
    assert first.returncode == 0
    assert json.loads(first.stdout) == json.loads(again.stdout)


def test_tune_does_not_apply_and_undo_at_once(run: Run) -> None:
    assert run("tune", "--apply", "--undo").returncode == 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may")
def test_a_user_may_not_tune(run: Run) -> None:
    assert run("tune", "--apply").returncode == NotPermitted.exit_code
