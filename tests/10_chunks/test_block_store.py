import errno
import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import reference_reader
from hypothesis import given, settings
from hypothesis import strategies as st

from agentfs.chunks import BLOCK_HEADER_BYTES, BLOCK_RAW_MAX, CorruptBlock, Store


def text(size, seed=0):
    return bytes(random.Random(seed).choices(b"the quick brown fox", k=size))


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path)
    yield store
    store.close()


def test_a_block_is_read_back(store):
    segment, offset, stored_bytes = store.put([b"hello ", bytearray(b"world")], 3)
    assert (segment, offset, stored_bytes) == (1, 32, BLOCK_HEADER_BYTES + 11)
    assert store.get([(segment, offset, 0, 11)]) == b"hello world"
    assert store.blocks(1) == [(32, 11, stored_bytes, 2, 0)]
    assert store.segments() == [(1, 32 + stored_bytes)]


def test_pieces_are_joined_in_order(store):
    first = store.put([text(5000, 1)], 3)[:2]
    second = store.put([text(5000, 2)], 0)[:2]
    pieces = [(*second, 10, 90), (*first, 4000, 1000), (*first, 0, 1), (*second, 0, 0)]
    expected = text(5000, 2)[10:100] + text(5000, 1)[4000:] + text(5000, 1)[:1]
    assert store.get(pieces) == expected
    assert store.get([]) == b""


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.lists(
        st.tuples(
            st.lists(st.binary(min_size=1, max_size=3000), min_size=1, max_size=8),
            st.sampled_from([-3, 0, 1, 3, 9, 19]),
        ),
        min_size=1,
        max_size=8,
    ),
    segment_bytes=st.integers(1, 10000),
)
def test_any_blocks_are_read_back_by_both_readers(tmp_path_factory, blocks, segment_bytes):
    directory = tmp_path_factory.mktemp("store")
    store = Store(directory, segment_bytes=segment_bytes)
    places = [store.put(chunks, level) for chunks, level in blocks]
    for (segment, offset, stored_bytes), (chunks, _) in zip(places, blocks, strict=True):
        raw = b"".join(chunks)
        assert store.get([(segment, offset, 0, len(raw))]) == raw
        assert (offset, len(raw), stored_bytes, len(chunks), 0) in store.blocks(segment)
    store.close()
    read = [
        (number, block.offset, block.stored_bytes, block.chunks, block.raw)
        for number in sorted({place[0] for place in places})
        for block in reference_reader.read_segment(directory / f"{number:016x}.seg")
    ]
    assert read == [
        (*place, len(chunks), b"".join(chunks))
        for place, (chunks, _) in zip(places, blocks, strict=True)
    ]


def test_threads_put_and_get_at_once(tmp_path):
    store = Store(tmp_path, segment_bytes=300_000, cache_bytes=100_000)
    errors = []

    def work(seed):
        try:
            mine = []
            for step in range(60):
                data = text(3000 + step, seed * 1000 + step)
                mine.append((*store.put([data[:1000], data[1000:]], step % 4)[:2], data))
                segment, offset, data = random.Random(step).choice(mine)
                assert store.get([(segment, offset, 0, len(data))]) == data
                if step % 20 == 0:
                    store.sync()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert sum(store.verify(number) for number, _ in store.segments()) == 360
    assert store.stats()["blocks_put"] == 360
    store.close()


def test_a_read_only_store_needs_no_lock_and_writes_nothing(tmp_path, store):
    segment, offset, _ = store.put([b"shared"], 1)
    reader = Store(os.fsencode(tmp_path), read_only=True)
    assert reader.get([(segment, offset, 0, 6)]) == b"shared"
    for write in (
        lambda: reader.put([b"x"], 1),
        lambda: reader.remove(segment),
        reader.roll,
        reader.sync,
    ):
        with pytest.raises(OSError, match="Read-only") as caught:
            write()
        assert caught.value.errno == errno.EROFS
    reader.close()


def test_a_second_writer_is_refused_until_the_first_closes(tmp_path, store):
    with pytest.raises(BlockingIOError):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        Store(tmp_path / "none")
    assert os.fsdecode(caught.value.filename) == str(tmp_path / "none")


def test_roll_ends_the_segment(store):
    assert store.put([b"one"], 1)[0] == 1
    assert store.roll() == 2
    assert store.roll() == 2
    assert store.put([b"two"], 1)[0] == 2


def test_a_removed_segment_is_gone_and_its_number_spent(tmp_path, store):
    segment, offset, _ = store.put([b"gone"], 1)
    assert store.get([(segment, offset, 0, 4)]) == b"gone"
    store.remove(segment)
    for read in (
        lambda: store.get([(segment, offset, 0, 4)]),
        lambda: store.blocks(segment),
        lambda: store.verify(segment),
        lambda: store.remove(segment),
    ):
        with pytest.raises(FileNotFoundError):
            read()
    store.close()
    with_new_life = Store(tmp_path)
    assert with_new_life.put([b"new"], 1)[0] == segment + 1
    with_new_life.close()


def test_segment_0_stands_for_zeros(store):
    segment, offset, _ = store.put([b"data"], 1)
    pieces = [(0, 0, 0, 3), (segment, offset, 0, 4), (0, 0, 0, 2), (segment, offset, 2, 2)]
    assert store.get(pieces) == bytes(3) + b"data" + bytes(2) + b"ta"
    assert store.get([(0, 7, 7, 5)]) == bytes(5)


def test_cached_only_reads_nothing(store):
    first = (*store.put([b"first"], 1)[:2], 0, 5)
    second = (*store.put([b"second"], 1)[:2], 0, 6)
    assert store.get([first], cached_only=True) is None
    assert store.get([first]) == b"first"
    assert store.get([first], cached_only=True) == b"first"
    assert store.get([first, second], cached_only=True) is None
    assert store.get([(0, 0, 0, 2)], cached_only=True) == bytes(2)
    assert store.stats()["cache_misses"] == 1
    store.drop_cache()
    assert store.stats()["cache_bytes"] == 0


def test_blocks_are_dropped_from_the_cache_alone(store):
    first = (*store.put([b"first"], 1)[:2], 0, 5)
    second = (*store.put([b"second"], 1)[:2], 0, 6)
    store.get([first, second])
    store.drop_cache([first, (0, 0, 0, 7), (first[0], second[1] + 1, 0, 0)])
    assert store.get([first], cached_only=True) is None
    assert store.get([second], cached_only=True) == b"second"
    with pytest.raises(TypeError, match="a piece is"):
        store.drop_cache([first[:2]])
    with pytest.raises(TypeError, match="a piece is"):
        store.drop_cache([7])


def test_little_of_a_block_that_a_whole_file_is_read_from_is_not_kept(store):
    data = text(600_000)
    segment, offset, _ = store.put([data], 3)
    little = [(segment, offset, start, 1000) for start in (500_000, 10, 250_000)]
    expected = b"".join(data[start : start + 1000] for _, _, start, _ in little)
    assert store.get(little, whole_file=True) == expected
    assert (store.stats()["cache_misses"], store.stats()["cache_bytes"]) == (1, 0)
    assert store.get([(segment, offset, 0, len(data))], whole_file=True) == data
    assert store.stats()["cache_bytes"] == len(data)


def test_what_is_given_back_is_made_again(store):
    place = store.put([text(4000)], 3)[:2]
    store.give_back()
    assert len(store.get([(*place, 0, 4000)])) == 4000
    assert store.put([text(5000)], 3)[1] > place[1]


def test_the_cache_is_shrunk_and_grows_again(store):
    places = [(*store.put([text(4000)], 3)[:2], 0, 4000) for _ in range(4)]
    for limit, cached in ((8000, 8000), (0, 0), (12_000, 12_000)):
        store.limit_cache(limit)
        for place in places:
            store.get([place])
        assert store.stats()["cache_bytes"] == cached
    for wrong in (-1, 1 << 64, "1", None):
        with pytest.raises((OverflowError, TypeError)):
            store.limit_cache(wrong)


def test_the_cache_is_counted_and_dropped(store):
    segment, offset, stored_bytes = store.put([text(4000)], 3)
    for _ in range(3):
        store.get([(segment, offset, 0, 4000)])
    stats = store.stats()
    assert (stats["cache_misses"], stats["cache_hits"], stats["cache_bytes"]) == (1, 2, 4000)
    assert stats["bytes_put"] == stats["bytes_read"] == stored_bytes
    assert (stats["raw_bytes_put"], stats["blocks_put"]) == (4000, 1)
    store.drop_cache()
    assert store.stats()["cache_bytes"] == 0


def test_arguments_out_of_bounds_are_refused(store):
    segment, offset, _ = store.put([b"0123456789"], 1)
    for chunks, reason in [
        ([], "at least one chunk"),
        ([b""], "empty"),
        ([b"x", b""], "empty"),
        ([bytes(BLOCK_RAW_MAX), b"x"], "at most 8388608"),
    ]:
        with pytest.raises(ValueError, match=reason):
            store.put(chunks, 1)
    with pytest.raises(ValueError, match="level"):
        store.put([b"x"], 23)
    with pytest.raises(TypeError):
        store.put(["text"], 1)
    with pytest.raises(TypeError):
        store.put([b"fine", 7], 1)
    for piece in ((segment, offset, 0, -1), (-1, offset, 0, 1), (segment, offset, 0, 9 << 20)):
        with pytest.raises(ValueError, match="outside of any possible block"):
            store.get([piece])
    with pytest.raises(TypeError):
        store.get([(segment, offset, 0)])
    with pytest.raises(TypeError):
        store.get([[segment, offset, 0, 1]])
    with pytest.raises(CorruptBlock, match="beyond its block"):
        store.get([(segment, offset, 5, 6)])
    with pytest.raises(ValueError, match="_bytes must be"):
        Store("/tmp", cache_bytes=-1)
    with pytest.raises(ValueError, match="_bytes must be"):
        Store("/tmp", segment_bytes=0)


def test_buffers_are_given_back(store):
    chunk = bytearray(b"resizable")
    store.put([chunk], 1)
    with pytest.raises(TypeError):
        store.put([chunk, None], 1)
    with pytest.raises(ValueError, match="empty"):
        store.put([chunk, b""], 1)
    chunk.extend(b"!")  # BufferError while exported


def test_a_closed_store_raises_value_error(store):
    store.put([b"x"], 1)
    store.close()
    store.close()
    for call in (
        lambda: store.put([b"x"], 1),
        lambda: store.get([(1, 32, 0, 1)]),
        lambda: store.blocks(1),
        lambda: store.verify(1),
        lambda: store.remove(1),
        store.segments,
        store.sync,
        store.roll,
        store.stats,
        store.drop_cache,
        lambda: store.limit_cache(0),
    ):
        with pytest.raises(ValueError, match="closed"):
            call()


def test_close_lets_calls_under_way_finish(tmp_path):
    for _ in range(10):
        store = Store(tmp_path)
        data = text(200_000)
        with ThreadPoolExecutor(4) as pool:
            puts = [pool.submit(store.put, [data], 9) for _ in range(4)]
            store.close()
            for put in puts:
                try:
                    put.result()
                except ValueError:
                    pass
    store = Store(tmp_path)
    for number, _ in store.segments():
        store.verify(number)
    store.close()


FILL = """
import errno, os, sys
from agentfs.chunks import Store
store = Store(sys.argv[1])
places = []
try:
    while True:
        data = os.urandom(100_000)
        places.append((store.put([data], 1), data))
except OSError as error:
    assert error.errno == {errno}, error
for (segment, offset, _), data in places:
    assert store.get([(segment, offset, 0, len(data))]) == data
assert sum(store.verify(number) for number, _ in store.segments()) == len(places) > 3
small = store.put([b"small"], 1)
assert store.get([(*small[:2], 0, 5)]) == b"small"
store.sync()
store.close()
store = Store(sys.argv[1])
assert store.put([b"x"], 1)[0] == small[0]
"""


def run(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60
    )


def test_a_file_size_limit_leaves_whole_blocks(tmp_path):
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (950_000, 950_000))\n"
    done = run(limit + FILL.format(errno=errno.EFBIG), str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_a_full_disk_leaves_whole_blocks(tmp_path):
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        done = run(FILL.format(errno=errno.ENOSPC), str(tmp_path))
        assert done.returncode == 0, done.stderr
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
