"""A machine made of files, which tests make worse."""

from __future__ import annotations

from pathlib import Path

import pytest

from fakes.machine import FakeMachine


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """One on which nothing is to be improved, as root sees it."""
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    return FakeMachine(tmp_path / "machine")
