import random

import pytest
import reference_cutter
import reference_reader
from hypothesis import given, settings
from hypothesis import strategies as st

from agentfs import chunks

SETS = sorted(chunks.PARAMETER_SETS)


def lengths_of(data, number):
    return list(memoryview(chunks.cut(data, number)).cast("I"))


def pieces_of(data, number):
    at = 0
    for length in lengths_of(data, number):
        yield data[at : at + length]
        at += length


def text(size, seed=0):
    """Lines as an agent's log has them."""
    pick = random.Random(seed)
    words = [bytes(pick.choices(b"abcdefghij", k=pick.randint(2, 9))) for _ in range(500)]
    lines = []
    total = 0
    while total < size:
        lines.append(b" ".join(pick.choices(words, k=pick.randint(3, 20))) + b"\n")
        total += len(lines[-1])
    return b"".join(lines)[:size]


def test_the_sets_are_those_of_the_format():
    assert chunks.PARAMETER_SETS == reference_cutter.SETS
    assert (chunks.CUT_SMALL, chunks.CUT_LARGE, chunks.CUT_HUGE) == (1, 2, 3)


@pytest.mark.parametrize("number", SETS)
@pytest.mark.parametrize("kind", ["random", "text", "zeros", "periodic"])
def test_cuts_are_those_of_the_reference(number, kind):
    size = 1_300_000
    data = {
        "random": lambda: random.Random(number).randbytes(size),
        "text": lambda: text(size, number),
        "zeros": lambda: bytes(size),
        "periodic": lambda: (b'{"role": "tool"},\n' * size)[:size],
    }[kind]()
    assert lengths_of(data, number) == reference_cutter.cut(data, number)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    runs=st.lists(st.tuples(st.integers(0, 9000), st.booleans()), max_size=12),
)
def test_cuts_of_mixed_content_are_those_of_the_reference(seed, runs):
    pick = random.Random(seed)
    data = b"".join(
        pick.randbytes(size) if is_random else bytes([pick.randrange(256)]) * size
        for size, is_random in runs
    )
    assert lengths_of(data, 1) == reference_cutter.cut(data, 1)


@pytest.mark.parametrize("number", SETS)
@pytest.mark.parametrize("kind", ["random", "text"])
def test_one_byte_in_front_changes_a_few_chunks_only(number, kind):
    data = random.Random(1).randbytes(10 << 20) if kind == "random" else text(10 << 20)
    before = set(pieces_of(data, number))
    after = set(pieces_of(b"!" + data, number))
    assert len(after - before) <= 3


def test_cutting_from_a_boundary_gives_the_same_cuts():
    data = random.Random(2).randbytes(1 << 20)
    lengths = lengths_of(data, 1)
    for skipped in range(0, len(lengths), 13):
        assert lengths_of(data[sum(lengths[:skipped]) :], 1) == lengths[skipped:]


@pytest.mark.parametrize("number", SETS)
def test_lengths_keep_the_bounds(number):
    least, average, most = chunks.PARAMETER_SETS[number]
    lengths = lengths_of(random.Random(3).randbytes(8 << 20), number)
    assert sum(lengths) == 8 << 20
    assert all(least <= length <= most for length in lengths[:-1])
    assert average / 2 < (8 << 20) / len(lengths) < average * 2


def test_sets_are_chosen_by_size():
    assert chunks.params_for_size(0) == chunks.CUT_SMALL
    assert chunks.params_for_size((16 << 20) - 1) == chunks.CUT_SMALL
    assert chunks.params_for_size(16 << 20) == chunks.CUT_LARGE
    assert chunks.params_for_size(1 << 30) == chunks.CUT_HUGE
    with pytest.raises(OverflowError):
        chunks.params_for_size(-1)


def test_nothing_is_cut_into_nothing():
    assert chunks.cut(b"", 1) == b""
    assert lengths_of(bytearray(b"x"), 1) == [1]


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="no parameter set 9"):
        chunks.cut(b"x", 9)


@given(st.binary(max_size=5000), st.binary(max_size=5000))
def test_crc32c_is_that_of_the_reference_and_can_be_continued(first, second):
    assert chunks.crc32c(first) == reference_reader.crc32c(first)
    assert chunks.crc32c(second, chunks.crc32c(first)) == chunks.crc32c(first + second)


def test_crc32c_of_the_usual_check_value():
    assert chunks.crc32c(b"123456789") == 0xE3069283
