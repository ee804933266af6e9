"""Agents' files: copied in, copied again, and read back from a fresh mount.

AGENTFS_CORPUS is a directory or a tar of agents' files. Without it the same is tried with a small
sample: what is in examples/agents/, or else what is made here.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Program = Callable[..., str]
Given = Callable[[str], Path]

COPY_BYTES_PER_FILE_MAX = 250
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "agents"


def make_sample(folder: Path) -> Path:
    """Conversations that fork, prompts that are shared, results that repeat."""
    rng = random.Random(1)
    words = [f"word{number}" for number in range(500)]
    prompt = " ".join(rng.choices(words, k=8000))
    for agent in range(20):
        home = folder / f"agent{agent}"
        home.mkdir(parents=True)
        (home / "system_prompt.md").write_text(prompt)
        turns = [{"role": "system", "content": prompt}]
        for turn in range(15):
            turns.append({"role": "assistant", "content": " ".join(rng.choices(words, k=100))})
            (home / f"checkpoint_{turn:03d}.json").write_text(json.dumps(turns, indent=1))
        (home / "empty").touch()
    return folder


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink()
    }


def copy_twice_and_read_back(source: Path, mounted: Any, program: Program) -> dict[str, float]:
    expected = digests(source)
    raw = sum((source / name).stat().st_size for name in expected)
    program("cp", "-r", source, mounted.path / "first")
    mounted.agentfs("sync", mounted.path)
    first = mounted.stats()
    assert first["files"] == len(expected)
    assert first["logical_bytes"] == raw
    assert first["staged_files"] == 0

    program("cp", "-r", source, mounted.path / "second")
    mounted.agentfs("sync", mounted.path)
    second = mounted.stats()
    assert second["chunks"] == first["chunks"]
    assert second["segment_bytes"] == first["segment_bytes"]
    assert second["unique_bytes"] == first["unique_bytes"]
    grown = second["stored_bytes"] - first["stored_bytes"]
    assert grown <= COPY_BYTES_PER_FILE_MAX * len(expected) + 64 * 1024

    mounted.remount()
    assert digests(mounted.path / "first") == expected
    assert digests(mounted.path / "second") == expected
    return {"stored": first["stored_bytes"], "raw": raw}


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    made = make_sample(tmp_path / "sample")
    if EXAMPLES.is_dir():
        shutil.copytree(EXAMPLES, made / "examples")
    return made


def test_a_second_copy_of_a_sample_adds_no_chunk_and_all_reads_back(
    mounted: Any, program: Program, sample: Path
) -> None:
    sizes = copy_twice_and_read_back(sample, mounted, program)
    assert sizes["stored"] < sizes["raw"] / 4


@pytest.mark.timeout(600)
def test_a_second_copy_of_the_corpus_adds_no_chunk_and_all_reads_back(
    mounted: Any, program: Program, given: Given, tmp_path: Path
) -> None:
    source = given("AGENTFS_CORPUS")
    if source.is_file():
        with tarfile.open(source) as tar:
            tar.extractall(tmp_path / "corpus", filter="data")
        source = tmp_path / "corpus"
    sizes = copy_twice_and_read_back(source, mounted, program)
    assert sizes["stored"] <= sizes["raw"] / 6
