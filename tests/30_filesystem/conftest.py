"""Volumes without FUSE: a machine of their own in a temporary directory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from agentfs.filesystem import staging
from agentfs.filesystem import volume as volume_module
from fakes.disk import Disk, DiskStore
from fakes.volumes import Machine, Shell


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    """A disk and a tmpfs on which volumes can be opened, one at a time."""
    machine = Machine(tmp_path)
    monkeypatch.setattr(staging, "TMPFS", machine.tmpfs)
    yield machine
    machine.close()


@pytest.fixture
def disk(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """The disk below the chunk stores of the machine's volumes; `watch` puts an index on it."""
    disk = Disk(machine.store, tmp_path / "durable")
    monkeypatch.setattr(DiskStore, "disk", disk, raising=False)
    monkeypatch.setattr(volume_module, "Store", DiskStore)
    yield disk
    disk.fails = False


@pytest.fixture
def shell(machine: Machine) -> Shell:
    """An open volume, empty, in which nothing is sealed unasked."""
    return machine.open()
