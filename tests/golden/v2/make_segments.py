"""How segments/ was made, once, when blocks had dictionaries. It is never made again.

PYTHONPATH=. python tests/golden/v2/make_segments.py
"""

import json
import random
import sys
from pathlib import Path

from blake3 import blake3

from agentfs.chunks import Store, train_dictionary

DIRECTORY = Path(__file__).parent / "segments"


def main():
    if any(DIRECTORY.glob("*.seg")):
        sys.exit(f"{DIRECTORY} exists and must not change")
    pick = random.Random(2)
    words = [pick.randbytes(3).hex().encode() for _ in range(50)]
    prose = [b" ".join(pick.choices(words, k=40)) + b"\n" for _ in range(400)]
    store = Store(DIRECTORY, segment_bytes=3000)
    numbers = [
        store.add_dictionary(kind, train_dictionary(prose[200 * kind : 200 * (kind + 1)], 1000))
        for kind in (0, 1)
    ]
    expected = []
    for chunks, level, dictionary in [
        (prose[:1], 5, 0),
        (prose[1:2], 5, numbers[0]),
        (prose[2:4], -3, numbers[1]),
        (prose[4:9], 19, numbers[1]),
        ([pick.randbytes(700)], 5, numbers[0]),
        (prose[9:30], 5, numbers[0]),
    ]:
        segment, offset, stored_bytes = store.put(chunks, level, dictionary)
        raw = b"".join(chunks)
        is_compressed = stored_bytes - 32 < len(raw)
        expected.append(
            {
                "segment": segment,
                "offset": offset,
                "codec": int(is_compressed),
                "dictionary": dictionary if is_compressed else 0,
                "chunks": len(chunks),
                "raw_bytes": len(raw),
                "blake3": blake3(raw).hexdigest(),
            }
        )
    store.close()
    (DIRECTORY / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


if __name__ == "__main__":
    main()
