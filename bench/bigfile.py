"""One large JSONL of conversations: written, sealed, read cold, read hot.

- write: 1 MiB write(2) calls from a file in RAM, until close.
- seal: fsync of the file, then the target's own sync, until both return; for agentfs that is cut,
  hash, compress and commit. Seal MB/s is the file's size over that time; what a daemon already did
  during the write counts in its favour, so "both" is the fairer figure.
- cold: unmounted, the store's cached pages dropped, mounted again; 1 MiB reads. The bytes are
  compared by SHA-256 afterwards.
- compacted (agentfs): the same cold read once more, after `agentfs compact`.
- hot: the same read again; targets take turns, and the median of the repetitions counts.
- mmap: the same, mapped, one touch a page.

The content is deterministic (bench/conversations.py), its zstd -3 ratio is part of the result.

    python -m bench.bigfile --targets ext4,agentfs,s3ql --json bigfile.json
"""

import argparse
import contextlib
import hashlib
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.common import (
    Results,
    Stopwatch,
    add_targets,
    all_identical,
    benchmark,
    figures_table,
    parser,
    progress,
    ratio,
    shown,
)
from bench.conversations import conversations
from bench.targets import Agentfs, Target, available, work_directory

PIECE_BYTES = 1 << 20
PAGE_BYTES = 4096


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("bigfile", __doc__)
    made.set_defaults(hang_seconds=1800.0)
    add_targets(made, "ext4,agentfs,s3ql")
    made.add_argument(
        "--megabytes", type=int, default=1000, help="size of the file, MB of 10^6 bytes"
    )
    made.add_argument("--reads", type=int, default=5, help="hot reads of each (default 5)")
    made.add_argument(
        "--ram",
        type=Path,
        default=Path("/dev/shm"),
        help="a tmpfs with room for the source file (default /dev/shm)",
    )
    return made


def generate(file: Path, size_bytes: int) -> str:
    """Write the conversations there and return their SHA-256."""
    digest = hashlib.sha256()
    with file.open("wb") as out:
        for piece in conversations(size_bytes):
            digest.update(piece)
            out.write(piece)
    return digest.hexdigest()


def zstd_ratio(file: Path) -> float | None:
    """Size over what `zstd -3` makes of it; None without zstd."""
    try:
        with subprocess.Popen(
            ["zstd", "-3", "-q", "-c", str(file)], stdout=subprocess.PIPE
        ) as zstd:
            packed = 0
            while zstd.stdout and (piece := zstd.stdout.read(PIECE_BYTES)):
                packed += len(piece)
    except FileNotFoundError:
        return None
    return file.stat().st_size / packed


def write(source: Path, path: Path) -> float:
    """Seconds to write the source's bytes there, close included."""
    buffer = bytearray(PIECE_BYTES)
    with source.open("rb", buffering=0) as file, Stopwatch() as watch:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        while got := file.readinto(buffer):
            done = 0
            while done < got:
                done += os.write(descriptor, memoryview(buffer)[done:got])
        os.close(descriptor)
    return watch.seconds


def seal(target: Target, path: Path) -> float:
    """Seconds until the file is durable in its final form."""
    with Stopwatch() as watch:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
        target.sync()
    return watch.seconds


def read(path: Path) -> float:
    """Seconds to read it all in 1 MiB pieces."""
    buffer = bytearray(PIECE_BYTES)
    with Stopwatch() as watch, path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return watch.seconds


def touch(path: Path) -> float:
    """Seconds to map it and touch every page."""
    with (
        Stopwatch() as watch,
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
    ):
        sum(mapped[::PAGE_BYTES])
    return watch.seconds


def sha256(path: Path) -> str:
    """Of the file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure(chosen: argparse.Namespace) -> Results:
    """Each target writes and reads cold; then all stay mounted and take turns at hot reads."""
    kinds = available(chosen.targets, chosen)
    size = chosen.megabytes * 1_000_000
    found: Results = {"bytes": size, "targets": {}}
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(work_directory(chosen))
        ram = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=chosen.ram)))
        bar = stack.enter_context(progress())
        task = bar.add_task("bigfile: generating", total=len(kinds) + chosen.reads)
        source = ram / "conversations.jsonl"
        expected = generate(source, size)
        found["zstd_3_ratio"] = zstd_ratio(source)
        targets = []
        for name, kind in kinds.items():
            bar.update(task, description=f"bigfile: {name}")
            target = stack.enter_context(kind(work, chosen))
            with target.watched():
                found["targets"][name] = _in_and_cold(target, source, expected, size)
            targets.append(target)
            bar.advance(task)
        source.unlink()
        hot: dict[str, list[float]] = {name: [] for name in kinds}
        mapped: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(chosen.reads):
            bar.update(task, description=f"bigfile: hot reads {number + 1}")
            for target in targets:
                with target.watched():
                    hot[target.name].append(read(_path(target)))
                    mapped[target.name].append(touch(_path(target)))
            bar.advance(task)
    for name, one in found["targets"].items():
        one["hot_mb_per_second"] = size / 1e6 / statistics.median(hot[name])
        one["mmap_mb_per_second"] = size / 1e6 / statistics.median(mapped[name])
        ext4 = found["targets"].get("ext4", {}).get("hot_mb_per_second")
        one["hot/ext4"] = ratio(one["hot_mb_per_second"], ext4)
    return found


def _path(target: Target) -> Path:
    return target.root / "conversations.jsonl"


def _in_and_cold(target: Target, source: Path, expected: str, size: int) -> Results:
    path, megabytes = _path(target), size / 1e6
    writing, sealing = write(source, path), seal(target, path)
    durable = target.stored_bytes() is not None
    target.remount_cold()
    found: Results = {
        "write_mb_per_second": megabytes / writing,
        "seal_seconds": sealing,
        "seal_mb_per_second": megabytes / sealing if durable else None,
        "write_and_seal_mb_per_second": megabytes / (writing + sealing),
        "cold_mb_per_second": megabytes / read(path),
        "reduction": ratio(size, target.stored_bytes()),
        "identical": sha256(path) == expected,
    }
    if isinstance(target, Agentfs):
        target.compact()
        target.remount_cold()
        found["compacted_cold_mb_per_second"] = megabytes / read(path)
        found["compacted_reduction"] = ratio(size, target.stored_bytes())
        found["identical"] = found["identical"] and sha256(path) == expected
    return found


def show(results: Results) -> None:
    """One row a target."""
    columns = {
        "write": ("write_mb_per_second", 0),
        "seal": ("seal_mb_per_second", 0),
        "both": ("write_and_seal_mb_per_second", 0),
        "cold read": ("cold_mb_per_second", 0),
        "compacted, cold": ("compacted_cold_mb_per_second", 0),
        "hot read": ("hot_mb_per_second", 0),
        "mmap": ("mmap_mb_per_second", 0),
        "hot/ext4": ("hot/ext4", 2),
        "reduction": ("reduction", 2),
        "compacted": ("compacted_reduction", 2),
    }
    figures_table(
        f"MB/s, one JSONL of {results['bytes'] / 1e6:,.0f} MB "
        f"(zstd -3 makes it {shown(results['zstd_3_ratio'], 2)} times smaller)",
        results["targets"],
        columns,
    )


def main() -> int:
    """Measure, show, write. 1 when bytes came back different, 2 when no target can run here."""
    return benchmark("bigfile", arguments(), measure, show, is_right=all_identical)


if __name__ == "__main__":
    sys.exit(main())
