"""What dictionaries save of small files that are sealed one by one.

Half of a corpus' files, drawn at random or by directory, is written, sealed and compacted, with
which dictionaries come. The files of the other half are then sealed each by itself, as fsync does:
with the dictionaries, and once more in a copy of the store without. Bytes are those of the blocks.

    python -m bench.dictionaries --corpus DIR
"""

import argparse
import gc
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from agentfs import config
from agentfs.filesystem.volume import Volume
from agentfs.model import ROOT_INODE
from agentfs.policy.dictionaries import BLOCK_BYTES
from bench.common import Results, benchmark, figures_table, parser, progress
from bench.growing import Agents

KIB = 1024
SIZES = {"up to 4 KiB": 4 * KIB, "4 to 16 KiB": 16 * KIB, "16 to 64 KiB": BLOCK_BYTES}


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("dictionaries", __doc__)
    made.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="a directory")
    made.add_argument("--files", type=int, default=1000, help="sealed one by one, at most")
    return made


def halves(files: Sequence[Path], group: Callable[[Path], Path]) -> tuple[list[Path], list[Path]]:
    """The files of half of the groups, and those of the others."""
    groups = sorted({group(file) for file in files})
    random.Random(1).shuffle(groups)
    known = set(groups[::2])
    return (
        [file for file in files if group(file) in known],
        [file for file in files if group(file) not in known],
    )


async def _write(volume: Volume, name: str, data: bytes) -> None:
    await Agents(volume).write(name, data)
    inode = volume.namespace.lookup(ROOT_INODE, name.encode())
    file = volume.table.live(inode.id) if inode is not None else None
    if file is not None:
        await volume.sealer.fsync(file)


def _segment_bytes(store: Path) -> int:
    return sum(file.stat().st_size for file in (store / "segments").glob("*.seg"))


async def _learn(store: Path, files: Sequence[Path]) -> Results:
    volume = Volume(store, config.load_profile("default"))
    try:
        agents = Agents(volume)
        for number, file in enumerate(files):
            await agents.write(f"known-{number:06}{file.suffix}", file.read_bytes())
        await volume.sync(lambda done, total: None)
        await volume.compact(lambda done, total: None)
        stats = volume.stats()
        return {key: stats[key] for key in ("dictionaries", "dictionary_bytes", "segment_bytes")}
    finally:
        volume.close()


async def _seal_one_by_one(store: Path, files: Sequence[Path], step: Callable[[], None]) -> Results:
    taken = dict.fromkeys(SIZES, 0)
    volume = Volume(store, config.load_profile("default"))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(volume.sealer.serve_fsync)
            for number, file in enumerate(files):
                data, before = file.read_bytes(), _segment_bytes(store)
                await _write(volume, f"new-{number:06}{file.suffix}", data)
                name = next(name for name, most in SIZES.items() if len(data) <= most)
                taken[name] += _segment_bytes(store) - before
                step()
            nursery.cancel_scope.cancel()
    finally:
        volume.close()
    return taken


def measure(chosen: argparse.Namespace) -> Results:
    """Halves by file, and by directory."""
    files = sorted(path for path in chosen.corpus.rglob("*") if path.is_file())
    groups: dict[str, Callable[[Path], Path]] = {
        "files at random": lambda file: file,
        "directories at random": lambda file: file.parent,
    }
    found: Results = {}
    gc.freeze()
    with tempfile.TemporaryDirectory(dir=chosen.work) as work, progress() as bar:
        for what, group in groups.items():
            known, new = halves(files, group)
            new = [file for file in new if 0 < file.stat().st_size <= BLOCK_BYTES]
            new = random.Random(2).sample(new, min(len(new), chosen.files))
            task = bar.add_task(what, total=2 * len(new))
            store = Path(work) / what
            store.mkdir()
            learned = trio.run(_learn, store, known)
            plain = Path(shutil.copytree(store, Path(work) / f"{what}, without"))
            for copy in [*plain.glob("segments/*.dict"), *plain.glob("segments/*.twin")]:
                copy.unlink()  # no block of a compacted store needs one
            step = lambda task=task: bar.advance(task)  # noqa: E731
            after = trio.run(_seal_one_by_one, store, new, step)
            before = trio.run(_seal_one_by_one, plain, new, step)
            for size in SIZES:
                found[f"{what}, {size}"] = learned | {
                    "without": before[size],
                    "with": after[size],
                    "saved": 100 * (1 - after[size] / before[size]) if before[size] else None,
                }
    return found


def show(results: Results) -> None:
    """One row a size."""
    figures_table(
        "Bytes of blocks of files sealed one by one",
        results,
        {
            "without": ("without", 0),
            "with": ("with", 0),
            "saved, %": ("saved", 1),
            "dictionaries": ("dictionaries", 0),
            "their bytes": ("dictionary_bytes", 0),
            "compacted segments": ("segment_bytes", 0),
        },
        "files",
    )


def main() -> int:
    """Measure, show, write."""
    return benchmark("dictionaries", arguments(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
