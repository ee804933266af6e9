"""Damage, age and the golden store: what is on disk is what docs/FORMAT.md says."""

import json
import shutil
import struct
from pathlib import Path

import pytest
import reference_reader
from blake3 import blake3

from agentfs.chunks import CorruptBlock, NewerFormat, Store, train_dictionary

GOLDEN = Path(__file__).parents[1] / "golden"
golden = pytest.mark.parametrize("version", ["v1", "v2"])


def seal_segment(content):
    content[28:32] = struct.pack("<I", reference_reader.crc32c(content[:28]))


def seal_block(content, offset, number=1):
    place = struct.pack("<QQ", number, offset)
    crc = reference_reader.crc32c(content[offset : offset + 28] + place)
    content[offset + 28 : offset + 32] = struct.pack("<I", crc)


@pytest.fixture
def segment(tmp_path):
    """The file of a segment of three blocks, and their places."""
    store = Store(tmp_path)
    places = [store.put([bytes([65 + i]) * 900 + b"tail"], 3) for i in range(3)]
    store.close()
    return tmp_path / "0000000000000001.seg", places


def change(path, edit):
    content = bytearray(path.read_bytes())
    edit(content)
    path.write_bytes(content)


@golden
def test_the_golden_store_reads_as_ever(version):
    directory = GOLDEN / version / "segments"
    expected = json.loads((directory / "expected.json").read_text())
    store = Store(directory, read_only=True)
    assert [number for number, _ in store.segments()] == sorted({e["segment"] for e in expected})
    for entry in expected:
        piece = (entry["segment"], entry["offset"], 0, entry["raw_bytes"])
        assert blake3(store.get([piece])).hexdigest() == entry["blake3"]
    total = sum(store.verify(number) for number, _ in store.segments())
    assert total == len(expected)
    store.close()


@golden
def test_the_reference_reader_reads_the_golden_store(version):
    directory = GOLDEN / version / "segments"
    expected = json.loads((directory / "expected.json").read_text())
    dictionaries = reference_reader.read_dictionaries(directory)
    read = [
        {
            "segment": int(path.stem, 16),
            "offset": block.offset,
            "codec": block.codec,
            **({"dictionary": block.dictionary} if version != "v1" else {}),
            "chunks": block.chunks,
            "raw_bytes": len(block.raw),
            "blake3": blake3(block.raw).hexdigest(),
        }
        for path in sorted(directory.glob("*.seg"))
        for block in reference_reader.read_segment(path, dictionaries)
    ]
    assert read == expected


@golden
def test_a_golden_store_can_be_continued(tmp_path, version):
    directory = shutil.copytree(GOLDEN / version / "segments", tmp_path / "copy")
    store = Store(directory, segment_bytes=10_000)
    last = store.segments()[-1][0]
    for number in (0, *(number for number, *_ in store.dictionaries())):
        segment, offset, _ = store.put([b"a later age"], 3, number)
        assert segment == last
        assert store.get([(segment, offset, 0, 11)]) == b"a later age"
    store.verify(last)
    store.close()


def test_every_flipped_byte_of_a_block_is_found(segment):
    path, places = segment
    _, offset, stored_bytes = places[1]
    pristine = path.read_bytes()
    for at in range(offset, offset + stored_bytes):
        change(path, lambda content, at=at: content.__setitem__(at, content[at] ^ 0x10))
        store = Store(path.parent, read_only=True)
        with pytest.raises(CorruptBlock) as caught:
            store.get([(1, offset, 0, 904)])
        assert (caught.value.segment, caught.value.offset_bytes) == (1, offset)
        assert caught.value.reason in ("header is damaged", "payload is damaged")
        with pytest.raises(CorruptBlock):
            store.verify(1)
        for _, good, _ in (places[0], places[2]):
            assert len(store.get([(1, good, 0, 904)])) == 904
        store.close()
        path.write_bytes(pristine)


def test_damage_heals_when_the_bytes_do(segment):
    path, places = segment
    pristine = path.read_bytes()
    store = Store(path.parent, read_only=True)
    with path.open("r+b") as file:
        file.seek(places[0][1] + 40)
        file.write(b"XX")
    with pytest.raises(CorruptBlock):
        store.get([(1, 32, 0, 904)])
    path.write_bytes(pristine)
    assert len(store.get([(1, 32, 0, 904)])) == 904
    store.close()


@pytest.mark.parametrize("cut_off", [1, 20, 31, 50])
def test_a_torn_tail_is_reported_left_alone_and_not_appended_to(segment, cut_off):
    path, places = segment
    content = path.read_bytes()[:-cut_off]
    path.write_bytes(content)
    store = Store(path.parent)
    with pytest.raises(CorruptBlock, match="truncated") as caught:
        store.blocks(1)
    assert caught.value.offset_bytes == places[2][1]
    assert len(store.get([(1, places[1][1], 0, 904)])) == 904
    assert store.put([b"next"], 1)[0] == 2
    store.close()
    assert path.read_bytes() == content


@pytest.mark.parametrize("size", [0, 1, 31])
def test_a_file_without_a_whole_header_is_truncated(segment, size):
    path, _ = segment
    path.write_bytes(path.read_bytes()[:size])
    store = Store(path.parent)
    with pytest.raises(CorruptBlock, match="truncated") as caught:
        store.get([(1, 32, 0, 904)])
    assert caught.value.offset_bytes == 0
    assert store.segments() == [(1, size)]
    assert store.put([b"next"], 1)[0] == 2
    store.close()


def test_a_newer_segment_is_not_damage(segment):
    path, _ = segment

    def edit(content):
        content[8] = 2
        seal_segment(content)

    change(path, edit)
    store = Store(path.parent)
    with pytest.raises(NewerFormat) as caught:
        store.get([(1, 32, 0, 904)])
    assert (caught.value.segment, caught.value.offset_bytes) == (1, 0)
    assert store.put([b"next"], 1)[0] == 2
    store.close()


@pytest.mark.parametrize("field", [4, 5, 6])
def test_a_newer_block_is_not_damage(segment, field):
    path, places = segment
    offset = places[1][1]

    def edit(content):
        content[offset + field] += 2
        seal_block(content, offset)

    change(path, edit)
    store = Store(path.parent)
    with pytest.raises(NewerFormat) as caught:
        store.get([(1, offset, 0, 904)])
    assert (caught.value.segment, caught.value.offset_bytes) == (1, offset)
    with pytest.raises(NewerFormat):
        store.verify(1)
    store.close()


def test_a_block_without_its_dictionary_is_damage(segment):
    path, places = segment
    offset = places[1][1]

    def edit(content):
        content[offset + 20] = 2
        seal_block(content, offset)

    change(path, edit)
    store = Store(path.parent)
    with pytest.raises(CorruptBlock, match="its dictionary is lost") as caught:
        store.get([(1, offset, 0, 904)])
    assert (caught.value.segment, caught.value.offset_bytes) == (1, offset)
    with pytest.raises(reference_reader.Invalid):
        reference_reader.read_segment(path)
    store.close()


def test_the_reference_reader_reads_what_is_written_with_a_dictionary(tmp_path):
    sentences = [b"turn %d says nothing of %d\n" % (n, n * n) * 5 for n in range(400)]
    store = Store(tmp_path)
    number = store.add_dictionary(9, train_dictionary(sentences, 2000))
    places = [store.put([sentence], 5, number) for sentence in sentences[:10]]
    plain = store.put(sentences[:1], 5)
    assert store.dictionaries()[0][:3] == (1, 9, 2)
    assert [block[4] for block in store.blocks(1)] == [number] * 10 + [0]
    store.close()
    assert places[0][2] < plain[2]
    for copy in ("dict", "twin"):
        (tmp_path / f"0000000000000001.{copy}").rename(tmp_path / "aside")
        dictionaries = reference_reader.read_dictionaries(tmp_path)
        blocks = reference_reader.read_segment(tmp_path / "0000000000000001.seg", dictionaries)
        assert [block.raw for block in blocks] == [*sentences[:10], sentences[0]]
        (tmp_path / "aside").rename(tmp_path / f"0000000000000001.{copy}")


def test_a_block_in_the_wrong_place_is_damage(segment):
    path, places = segment
    first, second = places[0], places[1]
    assert first[2] == second[2]

    def edit(content):
        content[first[1] : first[1] + first[2]] = content[second[1] : second[1] + second[2]]

    change(path, edit)
    store = Store(path.parent, read_only=True)
    with pytest.raises(CorruptBlock):
        store.get([(1, first[1], 0, 904)])
    store.close()
    path.rename(path.with_name("0000000000000002.seg"))
    store = Store(path.parent, read_only=True)
    with pytest.raises(CorruptBlock, match="header is damaged"):
        store.get([(2, second[1], 0, 904)])
    store.close()


def test_lengths_from_disk_are_bounded(segment):
    path, _ = segment
    pristine = path.read_bytes()
    for raw, stored, reason in [
        (0xFFFFFFFF, 10, "too large"),
        (8 << 20, 8 << 20, "truncated"),
        (100, 101, "damaged"),
        (0, 0, "damaged"),
    ]:

        def edit(content, raw=raw, stored=stored):
            content[40:48] = struct.pack("<II", raw, stored)
            seal_block(content, 32)

        change(path, edit)
        store = Store(path.parent, read_only=True)
        with pytest.raises(CorruptBlock, match=reason):
            store.get([(1, 32, 0, 4)])
        store.close()
        path.write_bytes(pristine)


def test_a_frame_that_decodes_to_another_length_is_damage(segment):
    path, _ = segment

    def edit(content):
        content[40:44] = struct.pack("<I", 905)
        seal_block(content, 32)

    change(path, edit)
    store = Store(path.parent, read_only=True)
    with pytest.raises(CorruptBlock, match="payload"):
        store.get([(1, 32, 0, 4)])
    store.close()


def test_other_files_in_the_directory_are_ignored(segment):
    path, _ = segment
    (path.parent / "README").write_text("not a segment")
    (path.parent / "00000000000000FF.seg").write_text("nor this")
    (path.parent / "00000000000000ff.seg.tmp").write_text("nor this")
    store = Store(path.parent)
    assert [number for number, _ in store.segments()] == [1]
    assert store.put([b"x"], 1)[0] == 1
    store.close()
