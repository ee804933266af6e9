"""Writes the seeds of fuzz_segment: small whole segments, each to be taken as it is and mended."""

import tempfile
from pathlib import Path

from agentfs.chunks import Store

CORPUS = Path(__file__).parent / "corpus" / "segment"


def main() -> None:
    """Overwrites the committed seeds."""
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
            for first in (b"\0", b"\1"):
                (CORPUS / f"{name}-{first[0]}").write_bytes(first + content)


if __name__ == "__main__":
    main()
