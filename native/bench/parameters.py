"""What a parameter set costs: python native/bench/parameters.py DIRECTORY-OF-FILES

Compiles cutter.c by itself, because the library knows released sets only. A chunk is charged 90
bytes of index, a reference from a recipe 8. Blocks are 1 MiB at level 3. Each version of a file is
sealed by itself, so that versions share chunks and nothing through the compressor's window:

- edited: eight versions, each with 1 to 3 inserts of 200 bytes and 2 KiB more at the end;
- forked: eight versions, by turns cut off in the second half and continued, or only continued.
"""

import ctypes
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import zstandard
from blake3 import blake3

CHUNK_BYTES = 90
REFERENCE_BYTES = 8
BLOCK_BYTES = 1 << 20
CUTTER = Path(__file__).parents[1] / "chunkstore" / "cutter.c"


class Parameters(ctypes.Structure):
    """struct cutter_params."""

    _fields_ = [(name, ctypes.c_uint32) for name in ("id", "min", "avg", "max")]


def load_cutter(scratch: str) -> ctypes.CDLL:
    """cutter.c as a library."""
    library = f"{scratch}/cutter.so"
    subprocess.run(["cc", "-O3", "-shared", "-fPIC", "-o", library, CUTTER], check=True)
    cutter = ctypes.CDLL(library)
    cutter.cutter_cut.restype = ctypes.c_size_t
    return cutter


def chunks_of(cutter: ctypes.CDLL, data: bytes, parameters: Parameters) -> Iterable[bytes]:
    """The chunks of *data*, in order."""
    lengths = (ctypes.c_uint32 * (len(data) // parameters.min + 1))()
    count = cutter.cutter_cut(ctypes.byref(parameters), data, ctypes.c_size_t(len(data)), lengths)
    at = 0
    for length in lengths[:count]:
        yield data[at : at + length]
        at += length


def cost(cutter: ctypes.CDLL, batches: list[list[bytes]], least: int) -> str:
    """A line of the table; each batch of contents is sealed into blocks of its own."""
    parameters = Parameters(99, least, 4 * least, 16 * least)
    compressor = zstandard.ZstdCompressor(level=3)
    logical = sum(len(data) for batch in batches for data in batch)
    seen: set[bytes] = set()
    references = unique = stored = 0
    for batch in batches:
        fresh = bytearray()
        for data in batch:
            for chunk in chunks_of(cutter, data, parameters):
                references += 1
                digest = blake3(chunk).digest()
                if digest not in seen:
                    seen.add(digest)
                    fresh += chunk
        unique += len(fresh)
        for at in range(0, len(fresh), BLOCK_BYTES):
            stored += len(compressor.compress(bytes(fresh[at : at + BLOCK_BYTES])))
    index = len(seen) * CHUNK_BYTES + references * REFERENCE_BYTES
    return (
        f"| {least >> 10}/{least >> 8}/{least >> 6} | {len(seen)} | {logical / unique:.3f}"
        f" | {stored / 1e6:.2f} | {index / 1e6:.2f} | {logical / (stored + index):.2f} |"
    )


def versions_of(
    contents: list[bytes], change: Callable[[bytes, bytes, int], bytes]
) -> list[list[bytes]]:
    """Each content and its eight versions, each a batch of its own."""
    batches = []
    for content in contents:
        version = content
        batches.append([version])
        for number in range(8):
            version = change(content, version, number)
            batches.append([version])
    return batches


def changes(
    contents: list[bytes], pick: random.Random
) -> dict[str, Callable[[bytes, bytes, int], bytes]]:
    """Ways to make the next version from the first one, the last one and its number."""

    def excerpt(size: int) -> bytes:
        source = pick.choice(contents)
        at = pick.randrange(len(source))
        return source[at : at + size]

    def edited(first: bytes, last: bytes, number: int) -> bytes:
        version = bytearray(last if number % 2 else first)
        for _ in range(pick.randint(1, 3)):
            at = pick.randrange(len(version))
            version[at:at] = excerpt(200)
        return bytes(version) + excerpt(2048)

    def forked(first: bytes, last: bytes, number: int) -> bytes:
        base = last if number % 2 else first[: int(len(first) * pick.uniform(0.5, 1))]
        return base + excerpt(pick.randrange(1000, 12000))

    return {"edited": edited, "forked": forked}


def main() -> None:
    """Prints the figures."""
    files = [path for path in Path(sys.argv[1]).rglob("*") if path.is_file()]
    files.sort(key=lambda path: (path.suffix, path.parent, path.name))
    contents = [path.read_bytes() for path in files]
    pick = random.Random(1)
    large = [data for data in contents if len(data) > 50_000]
    groups = {
        "200 files of 16 to 64 KiB": [d for d in contents if 16 << 10 <= len(d) < 64 << 10][:200],
        "200 files of 64 KiB to 4 MiB": [d for d in contents if 64 << 10 <= len(d) < 4 << 20][:200],
        "4 files of 12 MiB": [
            b"".join(pick.sample(large, len(large) // 2))[: 12 << 20] for _ in range(4)
        ],
        "2 files of 40 MiB": [b"".join(pick.sample(large, len(large)))[: 40 << 20] for _ in "ab"],
    }
    inputs = {"the files as they are": [contents]}
    for group, members in groups.items():
        for name, change in changes(members, pick).items():
            inputs[f"{group}, {name}"] = versions_of(members, change)
    with tempfile.TemporaryDirectory() as scratch:
        cutter = load_cutter(scratch)
        for name, batches in inputs.items():
            logical = sum(len(data) for batch in batches for data in batch)
            print(f"\n{name}, {logical / 1e6:.1f} MB\n")
            print("| KiB | unique chunks | dedup | stored MB | index MB | ratio of all |")
            print("|---|---:|---:|---:|---:|---:|")
            for kib in (1, 2, 4, 8, 16, 32):
                print(cost(cutter, batches, kib << 10), flush=True)


if __name__ == "__main__":
    main()
