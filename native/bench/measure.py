"""Speed of the chunk store, one thread: python native/bench/measure.py DIRECTORY-OF-FILES [SCRATCH]

Files are concatenated in the order of extension, folder and name, as a batch of seals would be.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from agentfs.chunks import PARAMETER_SETS, Store, crc32c, cut


def best_of(repeats: int, call: Callable[[], object]) -> float:
    """Seconds of the fastest call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def measure_store(directory: str, blocks: list[bytes], level: int) -> None:
    """Prints one line: each block put, synced, read decompressing, read from the cache."""
    store = Store(directory, cache_bytes=1 << 30)
    places: list[tuple[int, int, int]] = []
    put_s = best_of(1, lambda: places.extend([store.put([block], level) for block in blocks]))
    sync_s = best_of(1, store.sync)
    pieces = [
        (segment, offset, 0, len(block))
        for (segment, offset, _), block in zip(places, blocks, strict=True)
    ]

    def read_all() -> None:
        for piece in pieces:
            store.get([piece])

    read_all()
    hot_s = best_of(3, read_all)
    store.drop_cache()
    cold_s = best_of(1, read_all)
    stored = store.stats()["bytes_put"]
    store.close()
    size = sum(map(len, blocks))
    print(
        f"{len(blocks[0]) >> 10} KiB level {level}: ratio {size / stored:.2f}"
        f" put {size / put_s / 1e6:.0f} MB/s (sync {sync_s * 1e3:.0f} ms)"
        f" get {size / cold_s / 1e6:.0f} decompressing, {size / hot_s / 1e6:.0f} cached"
    )


def main() -> None:
    """Prints the figures."""
    files = [path for path in Path(sys.argv[1]).rglob("*") if path.is_file()]
    files.sort(key=lambda path: (path.suffix, path.parent, path.name))
    corpus = b"".join(path.read_bytes() for path in files)
    noise = os.urandom(128 << 20)
    print(f"{len(files)} files, {len(corpus) / 1e6:.1f} MB")

    print("\ncrc32c GB/s", f"{len(noise) / best_of(5, lambda: crc32c(noise)) / 1e9:.1f}")
    for number, (least, average, most) in PARAMETER_SETS.items():
        speeds = [
            f"{name} {len(data) / best_of(5, partial(cut, data, number)) / 1e9:.2f}"
            for name, data in (("incompressible", noise), ("corpus", corpus))
        ]
        print(f"cut {least >> 10}/{average >> 10}/{most >> 10} KiB GB/s", *speeds)

    for block_bytes in (256 << 10, 1 << 20):
        blocks = [corpus[at : at + block_bytes] for at in range(0, len(corpus), block_bytes)]
        for level in (1, 3, 6):
            with tempfile.TemporaryDirectory(dir=sys.argv[2] if sys.argv[2:] else None) as scratch:
                measure_store(scratch, blocks, level)


if __name__ == "__main__":
    main()
