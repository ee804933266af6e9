"""Real programs in a real mount."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 280.0


def run(*command: str | Path, **options: Any) -> str:
    """Run a program that must succeed; its stdout."""
    done = subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        **{"timeout": LIMIT_S} | options,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-4000:]}"
    return done.stdout


@pytest.fixture
def program() -> Callable[..., str]:
    """`program(command, arguments)` runs it; it must succeed."""
    return run


def tool(variable: str) -> Path:
    """The path a tester gave in the environment; else the test is skipped."""
    path = os.environ.get(variable)
    if not path:
        pytest.skip(f"set {variable} to a path to run this")
    assert Path(path).exists(), f"{variable}={path} does not exist"
    return Path(path)


@pytest.fixture
def given() -> Callable[[str], Path]:
    """`given("AGENTFS_FSX")` is the path in that variable, or skips."""
    return tool
