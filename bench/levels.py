"""What a level and a block size make of a corpus: how much smaller, and how fast on one core.

Files are cut, deduplicated and packed in the order in which agentfs seals them (extension, folder,
name); compressing and appending is timed, in CPU time. Data only, without the index.

    python -m bench.levels --corpus DIR
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from agentfs.chunks import Store, cut, params_for_size
from agentfs.chunks.digest import digest_of
from bench.common import Results, benchmark, figures_table, parser

KIB = 1024
CASES = (
    *((level, 1024 * KIB) for level in (1, 3, 5, 6, 9)),
    *((5, size * KIB) for size in (64, 256, 4096, 8192)),
)


def unknown_chunks(corpus: Path) -> tuple[list[memoryview], int]:
    """The chunks of all files, each once, in packing order; and the bytes of the files."""
    files = [path for path in corpus.rglob("*") if path.is_file() and not path.is_symlink()]
    files.sort(key=lambda path: (path.suffix, path.parent, path.name))
    seen: set[bytes] = set()
    chunks: list[memoryview] = []
    raw = 0
    for path in files:
        data = memoryview(path.read_bytes())
        raw += len(data)
        start = 0
        for length in memoryview(cut(data, params_for_size(len(data)))).cast("I"):
            chunk = data[start : start + length]
            start += length
            digest = digest_of(chunk, None)
            if digest not in seen:
                seen.add(digest)
                chunks.append(chunk)
    return chunks, raw


def packed(chunks: list[memoryview], block_bytes: int) -> list[list[memoryview]]:
    """Blocks as a seal packs them: as many chunks as fit."""
    blocks: list[list[memoryview]] = [[]]
    size = 0
    for chunk in chunks:
        if size + len(chunk) > block_bytes and blocks[-1]:
            blocks.append([])
            size = 0
        blocks[-1].append(chunk)
        size += len(chunk)
    return blocks


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("levels", __doc__)
    made.add_argument("--corpus", type=Path, required=True, metavar="DIR")
    return made


def measure(chosen: argparse.Namespace) -> Results:
    """Each level and block size over the same chunks."""
    chunks, raw = unknown_chunks(chosen.corpus)
    unique = sum(map(len, chunks))
    found: Results = {"raw_bytes": raw, "unique_bytes": unique, "cases": {}}
    for level, block_bytes in CASES:
        with tempfile.TemporaryDirectory(dir=chosen.work) as directory:
            store = Store(directory, cache_bytes=0, segment_bytes=64 * KIB * KIB)
            blocks = packed(chunks, block_bytes)
            start = time.process_time()
            stored = sum(store.put(block, level)[2] for block in blocks)
            seconds = time.process_time() - start
            store.close()
        found["cases"][f"level {level}, {block_bytes // KIB} KiB"] = {
            "smaller": raw / stored,
            "mb_per_cpu_second": unique / 1e6 / seconds,
        }
    return found


def show(results: Results) -> None:
    """One row a case."""
    figures_table(
        f"{results['raw_bytes'] / 1e6:.1f} MB, {results['unique_bytes'] / 1e6:.1f} MB after dedup",
        results["cases"],
        {"times smaller": ("smaller", 2), "MB per CPU second": ("mb_per_cpu_second", 0)},
        "level, block",
    )


def main() -> int:
    """Measure, show, write."""
    return benchmark("levels", arguments(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
