"""What is compressed with a dictionary, when one is trained, and which are worth having.

A block of one small file has little to refer back to: with a dictionary trained on such files those
up to 16 KiB take 16 to 24 % less than at the same level without, those up to 64 KiB
7 to 10 %, and what compaction packs together nothing (docs/decisions/0008).
"""

from __future__ import annotations

BLOCK_BYTES = 64 << 10
"""Raw bytes of a block up to which it is compressed with a dictionary."""

_DICTIONARY_MOST = 112 << 10
"""As of `zstd --train`; one of 32 KiB saves a third less."""

_DICTIONARY_LEAST = 8 << 10

_SAMPLES_PER_BYTE = 8
"""Bytes of samples for each of a dictionary, at least."""

TRAINED_BYTES = 1 << 20
"""Samples that a dictionary is made of: 100 ms of CPU."""

HELD_OUT_BYTES = 256 << 10
"""Samples that it is tried on, of which none is among those."""

SAMPLE_MIN_BYTES = 256

_SAMPLES_MIN = 64
_SAMPLES_MIN_BYTES = 128 << 10
"""Of those it is made of: less says nothing of what comes."""

_SAVES = 0.1
"""Of what held-out samples take, at least."""

_ROOM_SHARE = 0.005
"""Of the bytes of segments may be dictionaries, both copies counted."""

_ROOM_PER_BYTE = 0.85
"""That a dictionary takes on disk: each copy is compressed, to a third or a little more."""

_CONTENTS_MIN = 256
"""Contents made before the first training."""


def is_due(contents: int, trained_at: int) -> bool:
    """Whether to train.

    :param contents: made so far
    :param trained_at: how many those were the last time; 0: never
    """
    return contents >= max(_CONTENTS_MIN, 2 * trained_at)


def split(samples: list[bytes]) -> tuple[list[bytes], list[bytes]] | None:
    """(to make a dictionary of, to try it on); None: there are too few."""
    held_out = _first(samples[::4], HELD_OUT_BYTES)
    trained = _first([one for place, one in enumerate(samples) if place % 4], TRAINED_BYTES)
    if len(trained) < _SAMPLES_MIN or sum(map(len, trained)) < _SAMPLES_MIN_BYTES:
        return None
    return trained, held_out


def _first(samples: list[bytes], most: int) -> list[bytes]:
    taken, size = [], 0
    for sample in samples:
        size += len(sample)
        if size > most:
            break
        taken.append(sample)
    return taken


def saves(before: int, after: int) -> bool:
    """Whether a dictionary is worth it that makes *after* bytes of *before*."""
    return after <= (1 - _SAVES) * before


def room(dictionaries: int, segments: int) -> int:
    """Bytes that another may take on disk.

    :param dictionaries: bytes that both copies of those take that there are
    :param segments: bytes of all segments
    """
    return max(0, int(_ROOM_SHARE * segments) - dictionaries)


def dictionary_bytes(samples: int, room: int) -> int:
    """How large one should be that is made of so many bytes of samples; 0: too small to be any use.

    :param room: bytes that it may take on disk
    """
    size = min(_DICTIONARY_MOST, samples // _SAMPLES_PER_BYTE, int(room / _ROOM_PER_BYTE))
    return size if size >= _DICTIONARY_LEAST else 0
