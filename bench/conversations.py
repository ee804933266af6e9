"""A deterministic JSONL of agent conversations, for benchmarks that need gigabytes of it.

What makes it like the real thing, and not trivially compressible:

- most lines are new text: sentences of a 20,000-word vocabulary, words drawn by Zipf's law;
- tool results repeat: one line in eight quotes one of 400 documents of 4 to 64 KiB, a tenth of
  these quotes edited;
- conversations are forked: one in ten begins with the lines of an earlier one, its ids changed;
- every line carries ids and times that no other line has.

The same size and seed give the same bytes on every machine.
"""

import itertools
import random
from collections.abc import Iterator

VOCABULARY = 20_000
DOCUMENTS = 400
POOL_BYTES = 24 << 20
LINES_PER_CONVERSATION = 120
FORKED = 0.1
QUOTING = 0.125
EDITED = 0.1


def _vocabulary(rng: random.Random) -> list[str]:
    starts = [c + v for c in "bcdfghklmnprstvwz" for v in "aeiou"]
    return ["".join(rng.choices(starts, k=rng.choice((1, 2, 2, 3, 4)))) for _ in range(VOCABULARY)]


def _pool(rng: random.Random) -> str:
    """Text to cut new sentences out of; drawing every word anew would take minutes a gigabyte."""
    words = _vocabulary(rng)
    weights = list(itertools.accumulate(1 / (rank + 3) for rank in range(VOCABULARY)))
    text: list[str] = []
    length = 0
    while length < POOL_BYTES:
        sentence = " ".join(rng.choices(words, cum_weights=weights, k=rng.randrange(5, 25)))
        text.append(sentence.capitalize())
        length += len(sentence) + 2
    return ". ".join(text)


def _fresh(rng: random.Random, pool: str, mean_bytes: int) -> str:
    """New text: short cuts from anywhere in the pool, so that long repeats are rare."""
    parts = []
    left = int(rng.expovariate(1 / mean_bytes)) + 20
    while left > 0:
        size = min(left, rng.randrange(20, 80))
        start = rng.randrange(len(pool) - size)
        parts.append(pool[start : start + size])
        left -= size
    return "".join(parts)


def _line(rng: random.Random, role: str, text: str, clock: int) -> str:
    return (
        f'{{"uuid": "{rng.getrandbits(128):032x}", "timestamp": {clock}, "role": "{role}", '
        f'"content": [{{"type": "text", "text": "{text}"}}], "usage": {{"input_tokens": '
        f'{rng.randrange(200_000)}, "output_tokens": {rng.randrange(4_000)}}}}}\n'
    )


def conversations(size_bytes: int, seed: int = 1) -> Iterator[bytes]:
    """Whole lines in pieces of about 200 KiB, size_bytes in all (the last line is cut)."""
    rng = random.Random(seed)
    pool = _pool(rng)
    documents = [_fresh(rng, pool, rng.randrange(4 << 10, 64 << 10)) for _ in range(DOCUMENTS)]
    earlier: list[list[tuple[str, str]]] = []
    clock, written = 1_700_000_000_000, 0
    while written < size_bytes:
        turns: list[tuple[str, str]] = []
        if earlier and rng.random() < FORKED:
            origin = rng.choice(earlier)
            turns = origin[: rng.randrange(1, len(origin))]
        while len(turns) < LINES_PER_CONVERSATION:
            if rng.random() < QUOTING:
                text = rng.choice(documents)
                if rng.random() < EDITED:
                    cut = rng.randrange(len(text))
                    text = text[:cut] + _fresh(rng, pool, 60) + text[cut:]
                turns.append(("tool", text))
            else:
                turns.append((rng.choice(("user", "assistant")), _fresh(rng, pool, 1500)))
        earlier = [*earlier[-50:], turns]
        lines = []
        for role, text in turns:
            clock += rng.randrange(60_000)
            lines.append(_line(rng, role, text, clock))
        piece = "".join(lines).encode()[: size_bytes - written]
        written += len(piece)
        yield piece
