"""The segment format of docs/FORMAT.md, read with struct and zstandard only."""

import struct
from dataclasses import dataclass
from pathlib import Path

import zstandard

SEGMENT_HEADER = struct.Struct("<8sIIQII")
BLOCK_HEADER = struct.Struct("<4sBBHIIIIII")
BLOCK_RAW_MAX = 8388608


def _table():
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
        yield crc


TABLE = list(_table())


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class Invalid(Exception):
    """Args: the rule that is broken, and the offset."""


@dataclass
class Block:
    offset: int
    stored_bytes: int  # with header
    chunks: int
    codec: int
    dictionary: int
    raw: bytes


def check(condition, rule, offset):
    if not condition:
        raise Invalid(rule, offset)


def read_block(content, number, offset, dictionaries=None):
    """dictionaries: of zstandard, by number."""
    check(32 <= offset <= len(content) - 32, "outside the file", offset)
    header = content[offset : offset + 32]
    magic, version, codec, flags, raw, stored, chunks, dictionary, payload_crc, header_crc = (
        BLOCK_HEADER.unpack(header)
    )
    check(magic == b"aBLK", "magic", offset)
    check(header_crc == crc32c(header[:28] + struct.pack("<QQ", number, offset)), "crc", offset)
    check((version, flags) == (1, 0) and codec in (0, 1), "newer", offset)
    check(1 <= raw <= BLOCK_RAW_MAX and 1 <= stored <= raw, "lengths", offset)
    check(1 <= chunks <= raw, "chunks", offset)
    check(dictionary < 1 << 31 and (codec == 1 or dictionary == 0), "dictionary", offset)
    payload = content[offset + 32 : offset + 32 + stored]
    check(len(payload) == stored, "truncated", offset)
    check(payload_crc == crc32c(payload), "payload crc", offset)
    if codec == 1:
        check(zstandard.frame_content_size(payload) == raw, "content size", offset)
        check(zstandard.get_frame_parameters(payload).dict_id == 0, "frame dictionary", offset)
        known = dictionaries or {}
        check(dictionary == 0 or dictionary in known, "dictionary is lost", offset)
        decompressor = zstandard.ZstdDecompressor(dict_data=known.get(dictionary)).decompressobj()
        payload = decompressor.decompress(payload)
        check(decompressor.eof and not decompressor.unused_data, "one frame", offset)
    check(len(payload) == raw, "raw length", offset)
    return Block(offset, 32 + stored, chunks, codec, dictionary, payload)


def read_dictionaries(directory):
    """Of each number the first copy that is valid."""
    found = {}
    for suffix in ("dict", "twin"):
        for path in Path(directory).glob(f"*.{suffix}"):
            try:
                (block,) = read_segment(path)
                check(block.dictionary == 0, "dictionary of a dictionary", 32)
                check(block.raw[1:5] == b"\x37\xa4\x30\xec", "dictionary magic", 32)
            except (Invalid, ValueError):
                continue
            dictionary = zstandard.ZstdCompressionDict(block.raw[1:])
            found.setdefault(int(path.stem, 16), dictionary)
    return found


def read_segment(path, dictionaries=None):
    """All blocks of a clean segment file."""
    path = Path(path)
    number = int(path.stem, 16)
    content = path.read_bytes()
    check(len(content) >= 32, "truncated", 0)
    header = content[:32]
    check(header[28:] == struct.pack("<I", crc32c(header[:28])), "crc", 0)
    check(SEGMENT_HEADER.unpack(header)[:5] == (b"agentSEG", 1, 0, number, 0), "header", 0)
    blocks = []
    offset = 32
    while offset < len(content):
        blocks.append(read_block(content, number, offset, dictionaries))
        offset += blocks[-1].stored_bytes
    return blocks
