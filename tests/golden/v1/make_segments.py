"""How segments/ was made, once, by version 0.1.0. It is never made again: old bytes are the point.

PYTHONPATH=. python tests/golden/v1/make_segments.py
"""

import json
import random
import sys
from pathlib import Path

from blake3 import blake3

from agentfs.chunks import Store

DIRECTORY = Path(__file__).parent / "segments"


def main():
    if any(DIRECTORY.glob("*.seg")):
        sys.exit(f"{DIRECTORY} exists and must not change")
    pick = random.Random(1)
    words = [pick.randbytes(3).hex().encode() for _ in range(50)]
    prose = [b" ".join(pick.choices(words, k=40)) + b"\n" for _ in range(30)]
    store = Store(DIRECTORY, segment_bytes=3000)
    expected = []
    for chunks, level in [
        ([b"x"], 3),
        ([pick.randbytes(1500)], 3),
        (prose[:1], 1),
        (prose[:10], 3),
        (prose, 19),
        ([bytes(100_000)], 3),
        ([b"stored as it is"] * 3, 0),
        ([pick.randbytes(700), bytes(700)], 6),
    ]:
        segment, offset, stored_bytes = store.put(chunks, level)
        raw = b"".join(chunks)
        expected.append(
            {
                "segment": segment,
                "offset": offset,
                "codec": int(stored_bytes - 32 < len(raw)),
                "chunks": len(chunks),
                "raw_bytes": len(raw),
                "blake3": blake3(raw).hexdigest(),
            }
        )
    store.close()
    (DIRECTORY / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
