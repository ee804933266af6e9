"""Writes the seeds of fuzz_segment: small whole segments, each to be taken as it is and mended."""

import tempfile
from pathlib import Path

from agentfs.chunks import Store, train_dictionary

CORPUS = Path(__file__).parent / "corpus" / "segment"


SENTENCES = [b"turn %d: the assistant said nothing about %d\n" % (n, n * n) * 3 for n in range(300)]


def write(name: str, content: bytes) -> None:
    """To be taken as it is, and mended."""
    for first in (b"\0", b"\1"):
        (CORPUS / f"{name}-{first[0]}").write_bytes(first + content)


def with_dictionary() -> bytes:
    """A segment of a dictionary, and of blocks that need it."""
    dictionary = train_dictionary(SENTENCES, 400)
    with tempfile.TemporaryDirectory() as directory:
        store = Store(directory)
        number = store.add_dictionary(3, dictionary)
        store.put([b"\3" + dictionary], 19)
        for sentence in SENTENCES[:3]:
            store.put([sentence], 5, number)
        store.close()
        return (Path(directory) / "0000000000000001.seg").read_bytes()


def main() -> None:
    """Overwrites the committed seeds."""
    write("dictionary", with_dictionary())
    for name, blocks in {
        "empty": [],
        "raw": [([b"raw bytes"], 0)],
        "zstd": [([b"a" * 500, b"b" * 300], 3)],
        "several": [([b"one " * 99], 19), ([b"x"], 0), ([bytes(range(256)) * 8], 1), ([b"end"], 0)],
    }.items():
        with tempfile.TemporaryDirectory() as directory:
            store = Store(directory)
            for chunks, level in blocks:
                store.put(chunks, level)
            store.close()
            segment = Path(directory) / "0000000000000001.seg"
            content = segment.read_bytes() if blocks else b"agentSEG\1" + bytes(23)
            write(name, content)


if __name__ == "__main__":
    main()
