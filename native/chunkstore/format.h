/* The constants of docs/FORMAT.md, and nothing else. */
#ifndef AGENTFS_FORMAT_H
#define AGENTFS_FORMAT_H

#include <assert.h>
#include <stdint.h>

#define SEGMENT_MAGIC     "agentSEG"
#define BLOCK_MAGIC       "aBLK"
#define SEGMENT_SUFFIX    ".seg"
#define DICTIONARY_SUFFIX ".dict"
#define DICTIONARY_TWIN   ".twin"

#define SEGMENT_UNNAMED    "new"
#define DICTIONARY_UNNAMED "new.dict"
#define SEGMENT_NUMBER_MAX INT64_MAX

enum {
    SEGMENT_VERSION = 1,
    BLOCK_VERSION = 1,
    BLOCK_RAW_MAX = 8 << 20,
    SEGMENT_NAME_DIGITS = 16,
    DICTIONARY_MAX = 1 << 20,
};

#define DICTIONARY_NUMBER_MAX INT32_MAX

enum block_codec {
    CODEC_RAW = 0,
    CODEC_ZSTD = 1,
};

/* Where fields start; the last line of each is the size of the whole. */
enum segment_layout {
    SEGMENT_AT_MAGIC = 0,
    SEGMENT_AT_VERSION = SEGMENT_AT_MAGIC + 8,
    SEGMENT_AT_FLAGS = SEGMENT_AT_VERSION + 4,
    SEGMENT_AT_NUMBER = SEGMENT_AT_FLAGS + 4,
    SEGMENT_AT_RESERVED = SEGMENT_AT_NUMBER + 8,
    SEGMENT_AT_CRC = SEGMENT_AT_RESERVED + 4,
    SEGMENT_HEADER_BYTES = SEGMENT_AT_CRC + 4,
};

enum block_layout {
    BLOCK_AT_MAGIC = 0,
    BLOCK_AT_VERSION = BLOCK_AT_MAGIC + 4,
    BLOCK_AT_CODEC = BLOCK_AT_VERSION + 1,
    BLOCK_AT_FLAGS = BLOCK_AT_CODEC + 1,
    BLOCK_AT_RAW = BLOCK_AT_FLAGS + 2,
    BLOCK_AT_STORED = BLOCK_AT_RAW + 4,
    BLOCK_AT_CHUNKS = BLOCK_AT_STORED + 4,
    BLOCK_AT_DICTIONARY = BLOCK_AT_CHUNKS + 4,
    BLOCK_AT_PAYLOAD_CRC = BLOCK_AT_DICTIONARY + 4,
    BLOCK_AT_HEADER_CRC = BLOCK_AT_PAYLOAD_CRC + 4,
    BLOCK_HEADER_BYTES = BLOCK_AT_HEADER_CRC + 4,
};

static_assert(sizeof SEGMENT_MAGIC - 1 == SEGMENT_AT_VERSION, "docs/FORMAT.md, segment header");
static_assert(SEGMENT_AT_NUMBER == 16, "docs/FORMAT.md, segment header");
static_assert(SEGMENT_AT_CRC == 28, "docs/FORMAT.md, segment header");
static_assert(SEGMENT_HEADER_BYTES == 32, "docs/FORMAT.md, segment header");
static_assert(sizeof BLOCK_MAGIC - 1 == BLOCK_AT_VERSION, "docs/FORMAT.md, block header");
static_assert(BLOCK_AT_CODEC == 5, "docs/FORMAT.md, block header");
static_assert(BLOCK_AT_RAW == 8, "docs/FORMAT.md, block header");
static_assert(BLOCK_AT_STORED == 12, "docs/FORMAT.md, block header");
static_assert(BLOCK_AT_CHUNKS == 16, "docs/FORMAT.md, block header");
static_assert(BLOCK_AT_DICTIONARY == 20, "docs/FORMAT.md, block header");
static_assert(BLOCK_AT_PAYLOAD_CRC == 24, "docs/FORMAT.md, block header");
static_assert(BLOCK_AT_HEADER_CRC == 28, "docs/FORMAT.md, block header");
static_assert(BLOCK_HEADER_BYTES == 32, "docs/FORMAT.md, block header");
static_assert(BLOCK_RAW_MAX == 8388608, "docs/FORMAT.md, block header");

#endif
