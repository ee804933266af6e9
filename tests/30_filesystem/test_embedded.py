"""An image that many messages quote in base64 costs one copy, wherever it stands in them."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest

from agentfs.chunks import cut, params_for_size
from agentfs.chunks.digest import chunk_digest
from agentfs.filesystem import staging
from fakes.volumes import KIB, Machine, Shell

MESSAGES = 138
"""In which one image of a real corpus of conversations stands."""


def image(size: int) -> str:
    """As it stands in JSON; a PNG is as good as noise."""
    return base64.b64encode(random.Random(size).randbytes(size * 3 // 4)).decode()


def message(number: int, embedded: str) -> bytes:
    """Around the image each has other text, and another length of it."""
    pick = random.Random(number)
    said = " ".join(f"{pick.getrandbits(30):x}" for _ in range(pick.randrange(5, 800)))
    answer = " ".join(f"{pick.getrandbits(30):x}" for _ in range(pick.randrange(5, 100)))
    source = {"type": "base64", "media_type": "image/png", "data": embedded}
    url = {"url": f"data:image/png;base64,{embedded}"}
    forms = (
        [{"role": "user", "text": said, "content": [source]}, {"role": "assistant", "t": answer}],
        [{"role": "user", "content": said}, {"type": "image_url", "image_url": url}, answer],
        {"text": said, "image": embedded, "answer": answer},
    )
    return json.dumps(forms[number % 3], indent=number % 2 or None).encode()


@pytest.mark.parametrize("size", [100_000, 200_000, 300_000])
def test_chunks_isolate_the_image_but_for_a_twentieth(size: int) -> None:
    embedded = image(size)
    unique: dict[bytes, int] = {}
    text = 0
    for number in range(MESSAGES):
        data, start = memoryview(message(number, embedded)), 0
        text += len(data) - size
        for length in memoryview(cut(data, params_for_size(len(data)))).cast("I"):
            unique[chunk_digest(data[start : start + length], None)] = length
            start += length
    # Where text and image meet, a chunk has something of both: 4 KiB of the image on either side.
    beyond = sum(unique.values()) - text - size
    assert 0 <= beyond <= MESSAGES * min(10 * KIB, size // 16)


async def fill(shell: Shell, embedded: str, once: str, *, alone: bool) -> tuple[int, int]:
    """Bytes of segments after sealing, and after compaction."""
    await shell.write("/once", once.encode() + b"\n")
    for number in range(MESSAGES):
        path = f"/{number:03}.json"
        await shell.write(path, message(number, embedded))
        if alone:
            await shell.seal(path)
    await shell.sync()
    sealed = shell.segment_bytes()
    await shell.compact()
    return sealed, shell.segment_bytes()


@pytest.mark.parametrize("alone", [False, True], ids=["sealed together", "sealed one by one"])
async def test_compressed_it_costs_one_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, alone: bool
) -> None:
    embedded, found = image(200_000), []
    for name, everywhere, once in (("all", embedded, ""), ("one", "", embedded)):
        (tmp_path / name).mkdir()
        machine = Machine(tmp_path / name)
        monkeypatch.setattr(staging, "TMPFS", machine.tmpfs)
        found.append(await fill(machine.open(), everywhere, once, alone=alone))
        machine.close()
    (sealed, compacted), (sealed_once, compacted_once) = found
    assert compacted < 1.05 * compacted_once
    if not alone:  # else each block has the ends of the image once more, 10 KB, until then
        assert sealed < 1.05 * sealed_once
    assert sealed < sealed_once + MESSAGES * 10 * KIB
