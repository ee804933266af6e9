"""Bytes without names: cut content into chunks, keep blocks of chunks in segments, read them back.

Owns nothing but the directory of segments. Who refers to a chunk, and under which digest, is the
index's business. A block counts only when the index names it, and the index may name it only
after `Store.sync` returned. docs/FORMAT.md is the format; the work is done in native/chunkstore.
"""

from agentfs.chunks._native import (
    AHEAD_BYTES,
    BLOCK_HEADER_BYTES,
    BLOCK_RAW_MAX,
    CUT_HUGE,
    CUT_LARGE,
    CUT_SMALL,
    DICTIONARY_MAX,
    PARAMETER_SETS,
    CorruptBlock,
    NewerFormat,
    Store,
    compressed_bytes,
    crc32c,
    cut,
    fallocate,
    params_for_size,
    train_dictionary,
)

__all__ = [
    "AHEAD_BYTES",
    "BLOCK_HEADER_BYTES",
    "BLOCK_RAW_MAX",
    "CUT_HUGE",
    "CUT_LARGE",
    "CUT_SMALL",
    "DICTIONARY_MAX",
    "PARAMETER_SETS",
    "CorruptBlock",
    "NewerFormat",
    "Store",
    "compressed_bytes",
    "crc32c",
    "cut",
    "fallocate",
    "params_for_size",
    "train_dictionary",
]
