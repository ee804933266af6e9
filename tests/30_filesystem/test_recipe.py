"""Recipes and names of contents, alone."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from agentfs.chunks.digest import ContentHasher
from agentfs.chunks.recipe import Recipe, encode
from agentfs.index.contents import recipe_parts

GIB = 1 << 30

Part = tuple[int | None, int]

parts_of_files = st.lists(
    st.one_of(
        st.tuples(st.integers(2, 2**32 - 1), st.integers(1, 2**20)),
        st.tuples(st.none(), st.integers(1, 5 * GIB)),
        st.tuples(st.none(), st.sampled_from([GIB - 1, GIB, GIB + 1, 8192 * GIB])),
    ),
    max_size=20,
)


def merged(parts: Iterable[Part]) -> list[Part]:
    """Neighbouring holes are one hole."""
    found: list[Part] = []
    for chunk, length in parts:
        if chunk is None and found and found[-1][0] is None:
            found[-1] = (None, found[-1][1] + length)
        else:
            found.append((chunk, length))
    return found


def clipped(parts: Iterable[Part], start: int, end: int) -> list[tuple[int | None, int, int]]:
    """(chunk, offset within it or 0 for a hole, length) of what lies from start to end."""
    position, found = 0, []
    for chunk, length in parts:
        low, high = max(start, position), min(end, position + length)
        if low < high:
            found.append((chunk, 0 if chunk is None else low - position, high - low))
        position += length
    return found


def without_places_in_holes(
    parts: Iterable[tuple[int | None, int, int]],
) -> list[tuple[int | None, int, int]]:
    """Holes merged, and what is asked within a hole taken as its start."""
    found: list[tuple[int | None, int, int]] = []
    for chunk, within, length in parts:
        if chunk is None and found and found[-1][0] is None:
            found[-1] = (None, 0, found[-1][2] + length)
        else:
            found.append((chunk, 0 if chunk is None else within, length))
    return found


@given(parts_of_files)
def test_what_was_encoded_is_recipe_parts(parts: list[Part]) -> None:
    assert merged(recipe_parts(encode(parts))) == merged(parts)


@given(parts_of_files, st.data())
@settings(max_examples=200)
def test_a_range_is_covered_by_the_parts_that_lie_in_it(
    parts: list[Part], data: st.DataObject
) -> None:
    size = sum(length for _, length in parts)
    start = data.draw(st.integers(0, size + 10))
    wanted = data.draw(st.integers(0, size + 10))
    recipe = Recipe(b"", size, encode(parts))
    expected = clipped(merged(parts), start, min(start + wanted, size))
    assert without_places_in_holes(recipe.parts(start, wanted)) == expected


@given(parts_of_files)
def test_the_chunks_of_a_recipe_stand_in_order_as_often_as_they_occur(parts: list[Part]) -> None:
    recipe = Recipe(b"", 0, encode(parts))
    assert list(recipe.chunks) == [chunk for chunk, _ in parts if chunk is not None]


@given(parts_of_files, st.integers(0, 6 * GIB))
def test_extents_alternate_and_make_up_the_size(parts: list[Part], limit: int) -> None:
    size = sum(length for _, length in parts)
    extents = list(Recipe(b"", size, encode(parts)).extents(limit))
    assert sum(length for _, length, _ in extents) == min(size, limit)
    for (start, length, was_hole), (next_start, _, is_hole) in itertools.pairwise(extents):
        assert (start + length, was_hole) == (next_start, not is_hole)


def test_a_hole_of_eight_exbibytes_takes_32_bytes() -> None:
    largest = 2**63 - 1
    encoded = encode([(None, largest)])
    recipe = Recipe(b"", largest, encoded)
    assert len(encoded) == 32
    assert without_places_in_holes(recipe.parts(largest - 5, 100)) == [(None, 0, 5)]


def test_nothing_is_an_empty_recipe() -> None:
    recipe = Recipe(b"", 0, encode([]))
    assert (list(recipe.parts()), list(recipe.chunks), recipe.is_sparse) == ([], [], False)


# Names of contents

layouts = st.lists(
    st.one_of(st.binary(min_size=1, max_size=64), st.integers(1, 1 << 40)), min_size=1, max_size=8
)


def name_of(layout: Iterable[bytes | int], *, sparse: bool | None = None) -> bytes:
    """The digest of runs of bytes and lengths of holes."""
    layout = list(layout)
    if sparse is None:
        sparse = any(isinstance(part, int) for part in layout)
    hasher, position = ContentHasher(sparse=sparse), 0
    for part in layout:
        if isinstance(part, int):
            hasher.hole(position, part)
            position += part
        else:
            hasher.data(part)
            position += len(part)
    return hasher.digest()


def joined(layout: Iterable[bytes | int]) -> tuple[bytes | int, ...]:
    """One form for each content: neighbouring runs are one run."""
    found: list[bytes | int] = []
    for part in layout:
        if (found and isinstance(part, bytes) and isinstance(found[-1], bytes)) or (
            found and isinstance(part, int) and isinstance(found[-1], int)
        ):
            found[-1] += part
        else:
            found.append(part)
    return tuple(found)


@given(st.lists(st.binary(max_size=100)))
def test_the_name_of_a_dense_content_is_its_blake3(runs: list[bytes]) -> None:
    assert name_of(runs, sparse=False) == blake3(b"".join(runs)).digest()


@given(layouts, layouts)
def test_different_contents_have_different_names(
    one: list[bytes | int], other: list[bytes | int]
) -> None:
    one_name, other_name = name_of(joined(one)), name_of(joined(other))
    assert (one_name == other_name) == (joined(one) == joined(other))


def test_a_hole_and_the_same_zeros_written_have_different_names() -> None:
    assert name_of([b"a", 4096]) != name_of([b"a", bytes(4096)])
    assert name_of([b"a", 4096]) != name_of([b"a", bytes(4096)], sparse=True)


def test_bytes_that_look_like_a_hole_do_not_stand_for_one() -> None:
    def written(offset: int, length: int) -> bytes:
        return offset.to_bytes(8, "little") + length.to_bytes(8, "little")

    page = b"p" * 4096
    hole_then_bytes = [page, 4096, b"x" * 4080 + written(8192, 4096) + b"end"]
    bytes_then_hole = [page + written(4096, 4096) + b"x" * 4080, 4096, b"end"]
    assert name_of(hole_then_bytes) != name_of(bytes_then_hole)
