"""Real agent files: how fast they go in, how little they take, how fast they come back intact.

For each target, on an empty store:

1. `cp -r` of the corpus (its files in the page cache), then sync: files per second of both.
2. What the store takes on disk against the bytes of the files.
3. A second copy in another directory: what it adds.
4. Unmount, drop the store's cached pages, mount, read every file: files per second; the SHA-256 of
   each is compared with the source (hashing is not timed).
5. agentfs: remove the second copy, `agentfs compact`: seconds, what the store takes then, and
   milliseconds to open and read small files out of it in random order, with nothing cached at
   first. Most find their block in the daemon's cache; the 99th percentile is one that does not.
   Then step 4 once more.

borg and restic, where installed, archive the same tree: their ratio is what a backup tool gets from
dedup and compression without being a filesystem. One `tar | zstd -19 --long=27` stream is the
bound.

    python -m bench.corpus --corpus corpus.tar.zst --s3ql-bin DIR --json corpus.json
"""

import argparse
import contextlib
import hashlib
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.common import (
    NothingRan,
    Results,
    Stopwatch,
    add_targets,
    all_identical,
    benchmark,
    err,
    figures_table,
    parser,
    progress,
    ratio,
    shown,
    table,
)
from bench.targets import (
    FAILURES,
    Agentfs,
    Btrfs,
    S3ql,
    Target,
    available,
    directory_bytes,
    run,
    work_directory,
)

LONG_SECONDS = 3600.0

SMALL_BYTES = 64 << 10
SMALL_FILES = 1500


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("corpus", __doc__)
    made.set_defaults(hang_seconds=1800.0)
    add_targets(made, "ext4,btrfs,agentfs,s3ql")
    made.add_argument(
        "--corpus",
        type=Path,
        required=True,
        metavar="TAR_OR_DIR",
        help="a directory, or a tar that GNU tar can read",
    )
    made.add_argument("--no-archivers", action="store_true", help="leave out borg, restic and tar")
    return made


def unpack(corpus: Path, work: Path) -> Path:
    """The corpus as a directory: itself, or the tar's content below the work directory."""
    if corpus.is_dir():
        return corpus
    source = work / "corpus"
    source.mkdir()
    run("tar", "-xf", corpus, "-C", source, "--no-same-owner", seconds=LONG_SECONDS)
    return source


def digests(directory: Path) -> tuple[dict[str, str], int, float]:
    """SHA-256 by relative path, bytes in all, and the seconds that opening and reading took."""
    found: dict[str, str] = {}
    size, seconds = 0, 0.0
    for folder, folders, names in os.walk(directory):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(folder, name)
            if os.path.islink(path):
                continue
            start = perf_counter()
            with open(path, "rb", buffering=0) as file:
                content = file.read()
            seconds += perf_counter() - start
            found[os.path.relpath(path, directory)] = hashlib.sha256(content).hexdigest()
            size += len(content)
    return found, size, seconds


def measure_target(target: Target, source: Path, expected: dict[str, str], raw: int) -> Results:
    """The four steps of the module's head, on an empty mounted target."""
    files = len(expected)
    first, second = target.root / "first", target.root / "second"
    with Stopwatch() as copying:
        run("cp", "-r", source, first, seconds=LONG_SECONDS)
    with Stopwatch() as syncing:
        target.sync()
    found: Results = {
        "copy_seconds": copying.seconds,
        "sync_seconds": syncing.seconds,
        "files_per_second": files / (copying.seconds + syncing.seconds),
    }
    found.update(_taken(target, raw))
    before = _stats(target)
    with Stopwatch() as again:
        run("cp", "-r", source, second, seconds=LONG_SECONDS)
        target.sync()
    after = _stats(target)
    found["second_files_per_second"] = files / again.seconds
    grown = _settled(target)
    if grown is not None:
        found["second_bytes_per_file"] = (grown - found["stored_bytes"]) / files
    if before is not None and after is not None:
        found["second_chunks_added"] = after["chunks"] - before["chunks"]
        found["stats"] = after
    if isinstance(target, Btrfs):
        with Stopwatch() as merging:
            merged = target.dedupe()
        if merged:
            found["duperemove_seconds"] = merging.seconds
            found["both_copies_reduction"] = ratio(2 * raw, target.stored_bytes())
    target.remount_cold()
    got, _, seconds = digests(first)
    found["cold_files_per_second"] = files / seconds
    found["identical"] = got == expected
    if isinstance(target, Agentfs):
        shutil.rmtree(second)
        found.update(measure_compaction(target, first, expected, raw))
    return found


def measure_compaction(
    target: Agentfs, directory: Path, expected: dict[str, str], raw: int
) -> Results:
    """The fifth step."""
    with Stopwatch() as compacting:
        target.compact()
    stored = _settled(target)
    target.remount_cold()
    found: Results = {
        "compact_seconds": compacting.seconds,
        "compacted_reduction": ratio(raw, stored),
        "cold_small_ms": small_file_latencies(directory),
    }
    target.remount_cold()
    got, _, seconds = digests(directory)
    found["compacted_cold_files_per_second"] = len(expected) / seconds
    found["compacted_identical"] = got == expected
    return found


def small_file_latencies(directory: Path) -> Results:
    """Percentiles of the milliseconds to open and read a small file, in random order."""
    files = [path for path in directory.rglob("*") if path.stat().st_size <= SMALL_BYTES]
    files = [path for path in files if path.is_file() and not path.is_symlink()]
    random.Random(1).shuffle(files)
    taken = []
    for path in files[:SMALL_FILES]:
        start = perf_counter()
        path.read_bytes()
        taken.append((perf_counter() - start) * 1e3)
    taken.sort()
    return {f"p{share}": taken[len(taken) * share // 100] for share in (50, 90, 99)}


def _stats(target: Target) -> dict[str, Any] | None:
    return target.stats() if isinstance(target, Agentfs) else None


def _settled(target: Target) -> int | None:
    """Stored bytes once all is written: s3ql and agentfs write their metadata when unmounted."""
    if isinstance(target, S3ql | Agentfs):
        target.unmount()
        stored = target.stored_bytes()
        target.mount()
        return stored
    return target.stored_bytes()


def _taken(target: Target, raw: int) -> Results:
    stored = _settled(target)
    found: Results = {"stored_bytes": stored, "reduction": ratio(raw, stored)}
    if isinstance(target, S3ql | Agentfs):
        found["stored_apparent_bytes"] = directory_bytes(target.store)["apparent"]
    return found


def borg(source: Path, work: Path) -> int:
    """Bytes of a borg repository with the corpus, zstd level 19."""
    repository = work / "borg"
    environment = os.environ | {
        "BORG_BASE_DIR": str(work / "borg-home"),
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
    }
    run("borg", "init", "--encryption", "none", repository, env=environment)
    create = ["borg", "create", "--compression", "zstd,19", f"{repository}::corpus", "."]
    run(*create, seconds=LONG_SECONDS, env=environment, cwd=source)
    return directory_bytes(repository)["allocated"]


def restic(source: Path, work: Path) -> int:
    """Bytes of a restic repository with the corpus, strongest compression."""
    repository = work / "restic"
    environment = os.environ | {
        "RESTIC_PASSWORD": "benchmark",
        "RESTIC_REPOSITORY": str(repository),
        "RESTIC_CACHE_DIR": str(work / "restic-cache"),
    }
    run("restic", "init", env=environment)
    backup = ["restic", "backup", "--compression", "max", "."]
    run(*backup, seconds=LONG_SECONDS, env=environment, cwd=source)
    return directory_bytes(repository)["allocated"]


def tar(source: Path, work: Path) -> int:
    """Bytes of one solid stream: no random access, no change; nothing else is expected below it."""
    packed = work / "corpus.tar.zst"
    with packed.open("wb") as file:
        made = subprocess.Popen(
            ["tar", "-c", "--sort=name", "-C", str(source), "."], stdout=subprocess.PIPE
        )
        subprocess.run(
            ["zstd", "-19", "--long=27", "-q", "-c"], stdin=made.stdout, stdout=file, check=True
        )
        made.wait()
    return packed.stat().st_size


ARCHIVERS: dict[str, tuple[str, Callable[[Path, Path], int]]] = {
    "borg zstd,19": ("borg", borg),
    "restic max": ("restic", restic),
    "tar zstd -19 --long": ("zstd", tar),
}


def measure(chosen: argparse.Namespace) -> Results:
    """Every target and archiver, one after the other."""
    kinds = available(chosen.targets, chosen)
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(work_directory(chosen))
        source = unpack(chosen.corpus, work)
        expected, raw, _ = digests(source)
        bar = stack.enter_context(progress())
        task = bar.add_task("corpus", total=len(kinds) + len(ARCHIVERS))
        found: Results = {
            "files": len(expected),
            "raw_bytes": raw,
            "targets": {},
            "archivers": {},
            "failed": {},
        }
        for name, kind in kinds.items():
            bar.update(task, description=f"corpus: {name}")
            try:
                with kind(work, chosen) as target, target.watched():
                    found["targets"][name] = measure_target(target, source, expected, raw)
            except FAILURES as problem:
                found["failed"][name] = str(problem)
                err.print(f"{name} failed: {problem}", markup=False)
            bar.advance(task)
        if not found["targets"]:
            raise NothingRan("every target failed")
        for name, (program, archive) in ARCHIVERS.items():
            if chosen.no_archivers:
                break
            if shutil.which(program) is None:
                err.print(f"skipped {name}: {program} is not installed")
                continue
            bar.update(task, description=f"corpus: {name}")
            with Stopwatch() as watch:
                stored = archive(source, work)
            found["archivers"][name] = {
                "stored_bytes": stored,
                "reduction": raw / stored,
                "seconds": watch.seconds,
            }
            bar.advance(task)
    return found


def show(results: Results) -> None:
    """A table of the filesystems, a table of the archivers."""
    columns = {
        "in, files/s": ("files_per_second", 0),
        "copy, s": ("copy_seconds", 2),
        "sync, s": ("sync_seconds", 2),
        "reduction": ("reduction", 2),
        "2nd copy, files/s": ("second_files_per_second", 0),
        "2nd: B/file": ("second_bytes_per_file", 0),
        "2nd: chunks": ("second_chunks_added", 0),
        "cold, files/s": ("cold_files_per_second", 0),
    }
    figures_table(
        f"Corpus: {results['files']:,} files, {results['raw_bytes'] / 1e6:,.1f} MB",
        results["targets"],
        columns,
    )
    compacted = {
        name: one["cold_small_ms"] | one | {"identical": one["compacted_identical"]}
        for name, one in results["targets"].items()
        if "compacted_reduction" in one
    }
    if compacted:
        figures_table(
            "After agentfs compact; ms to open and read a small file that is not cached",
            compacted,
            {
                "seconds": ("compact_seconds", 1),
                "reduction": ("compacted_reduction", 2),
                "cold, files/s": ("compacted_cold_files_per_second", 0),
                **{key: (key, 2) for key in ("p50", "p90", "p99")},
            },
        )
    if results["archivers"]:
        table(
            "The same in archives",
            ["archiver", "reduction", "seconds"],
            [
                [name, shown(one["reduction"], 2), shown(one["seconds"])]
                for name, one in results["archivers"].items()
            ],
        )


def main() -> int:
    """Measure, show, write. 1 when a file came back different, 2 when no target can run here."""
    return benchmark("corpus", arguments(), measure, show, is_right=_is_whole)


def _is_whole(results: Results) -> bool:
    after = (one.get("compacted_identical", True) for one in results["targets"].values())
    return all_identical(results) and all(after)


if __name__ == "__main__":
    sys.exit(main())
