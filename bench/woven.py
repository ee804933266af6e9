"""Prompts, tools and conversations of any length, woven from the files of a corpus.

A corpus of 90 MB is to become gigabytes of different text that is as redundant as the corpus is,
no more and no less. So texts are taken in the order in which the corpus has them, tool output
beside what quotes it, and each session is written in an alphabet of its own: the 35 letters that
no JSON escape needs change places among themselves. What repeats within a session repeats as it
did; between sessions nothing is equal, down to single lines. What is equal in real ones is added:

- an eighth of a session is documents that all agents read as they are: 400 results of tools;
- one session in ten is a fork: its first half is that of the agent's session before it.

Each line has an id and a time that no other has, but for those of a fork. Repeatable by seed.
"""

import itertools
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DOCUMENTS = 400
QUOTED = 0.125
"""Of the bytes."""
FORKED = 0.1
"""Of the sessions."""

LONGEST = 64 << 10
SHORTEST = 20
"""Texts, in characters."""

PIECE_BYTES = 1 << 20

_LETTERS = b"GHIJKLMNOPQRSTVWXYZghijklmopqsvwxyz"
"""Neither hexadecimal digits, as in \\u00e4, nor n, r, t, u, as in \\n: JSON stays JSON."""


def _alphabet(rng: random.Random) -> bytes:
    """A table for bytes.translate that exchanges letters."""
    small = [one for one in _LETTERS if one >= ord("a")]
    large = [one for one in _LETTERS if one < ord("a")]
    others = rng.sample(large, len(large)) + rng.sample(small, len(small))
    return bytes.maketrans(bytes(large + small), bytes(others))


def _strings(value: Any) -> Iterator[str]:
    """All texts in a JSON value, in order; keys are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _strings(one)
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def _texts(path: Path) -> Iterator[bytes]:
    """What was said in a file, as JSON writes it in a string."""
    raw = path.read_text(errors="replace")
    try:
        parts = list(_strings(json.loads(raw)))
    except ValueError:
        parts = []
        for line in raw.splitlines():
            try:
                parts.extend(_strings(json.loads(line)))
            except ValueError:
                parts.append(line)
    for part in parts:
        if len(part) >= SHORTEST:
            yield _escaped(part)


def _escaped(text: str) -> bytes:
    return json.dumps(text[:LONGEST])[1:-1].encode()


def _files(corpus: Path, kind: str) -> list[Path]:
    """The files of a kind; all of a corpus that does not have them apart."""
    below = corpus / kind if (corpus / kind).is_dir() else corpus
    return sorted(path for path in below.rglob("*") if path.is_file() and not path.is_symlink())


class Weaver:
    """Makes files of a corpus's texts."""

    def __init__(self, corpus: Path) -> None:
        """:param corpus: with prompts/, tools/, conversations/, results/, or some other files"""
        self._said = [text for path in _files(corpus, "conversations") for text in _texts(path)]
        results = _files(corpus, "results")
        some = random.Random(0).sample(results, min(DOCUMENTS, len(results)))
        self._documents = [_escaped(path.read_text(errors="replace")) for path in some]
        self._bytes = {
            kind: b"".join(path.read_bytes() for path in _files(corpus, kind))
            for kind in ("prompts", "tools")
        }

    def document(self, kind: str, size: int, seed: str) -> bytes:
        """Of prompts or tools: all that the corpus has, again and again in other letters."""
        rng, made = random.Random(seed), bytearray()
        whole = self._bytes[kind]
        start = rng.randrange(len(whole))
        made += whole[start:]
        while len(made) < size:
            made += whole.translate(_alphabet(rng))
        return bytes(made[:size])

    def session(self, size: int, seed: str) -> Iterator[bytes]:
        """A conversation of so many bytes, as JSON lines, in pieces; the last line is cut."""
        rng = random.Random(seed)
        alphabet = _alphabet(rng)
        said = itertools.cycle(self._said)
        for _ in range(rng.randrange(len(self._said))):
            next(said)
        clock, written = 1_700_000_000_000 + rng.randrange(10**10), 0
        lines, quoted = bytearray(), 0
        while written + len(lines) < size:
            clock += rng.randrange(60_000)
            if quoted < QUOTED * (written + len(lines)):
                role, text = b"tool", rng.choice(self._documents)
                quoted += len(text)
            else:
                role, text = b"assistant", next(said).translate(alphabet)
            lines += b'{"uuid": "%032x", "timestamp": %d, "role": "%s", "content": "%s"}\n' % (
                rng.getrandbits(128),
                clock,
                role,
                text,
            )
            if len(lines) > PIECE_BYTES:
                yield bytes(lines[: size - written])
                written += len(lines)
                lines.clear()
        yield bytes(lines[: size - written])

    def sessions(self, sizes: Iterable[int], seed: str) -> Iterator[Iterator[bytes]]:
        """One agent's conversations, one after the other."""
        rng, before = random.Random(seed), ""
        for number, size in enumerate(sizes):
            own = f"{seed}/{number}"
            if before and rng.random() < FORKED:
                yield itertools.chain(
                    self.session(size // 2, before), self.session(size - size // 2, own)
                )
            else:
                yield self.session(size, own)
            before = own
