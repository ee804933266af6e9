"""Mounts with a keeper: relay mode only."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from agentfs.fuse._relay import passthrough_available


@pytest.fixture
def mode() -> str:
    obstacle = passthrough_available()
    if obstacle is not None:
        pytest.skip(f"no relay mode here: {obstacle}")
    return "relay"


@pytest.fixture
def kill_worker(mounted: Any) -> Any:
    """Kill the worker of the mount; returns its pid."""

    def kill() -> int:
        pid: int = mounted.stats()["worker_pid"]
        os.kill(pid, signal.SIGKILL)
        return pid

    return kill
