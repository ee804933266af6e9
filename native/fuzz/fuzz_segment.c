/*
 * The segment reader on arbitrary files. The first byte chooses: an even one leaves the CRCs as
 * they are, an odd one mends those of everything that looks like a header, so that what lies behind
 * the checks is reached. A block that holds a dictionary is that of all blocks behind it that name
 * one.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bytes.h"
#include "codec.h"
#include "crc32c.h"
#include "dictionary.h"
#include "segment.h"

enum { NUMBER = 1 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void mend(uint8_t *file, size_t size)
{
    if (size < SEGMENT_HEADER_BYTES)
        return;
    store32(file + SEGMENT_AT_CRC, crc32c(0, file, SEGMENT_AT_CRC));
    uint64_t offset = SEGMENT_HEADER_BYTES;
    while (size - offset >= BLOCK_HEADER_BYTES) {
        uint8_t *header = file + offset;
        uint8_t place[16];
        uint64_t stored = load32(header + BLOCK_AT_STORED);
        store64(place, NUMBER);
        store64(place + 8, offset);
        if (stored <= size - offset - BLOCK_HEADER_BYTES)
            store32(header + BLOCK_AT_PAYLOAD_CRC, crc32c(0, header + BLOCK_HEADER_BYTES, stored));
        store32(header + BLOCK_AT_HEADER_CRC,
                crc32c(crc32c(0, header, BLOCK_AT_HEADER_CRC), place, sizeof place));
        if (stored > size - offset - BLOCK_HEADER_BYTES)
            break;
        offset += BLOCK_HEADER_BYTES + stored;
    }
}

struct reading {
    struct codec *codec;
    ZSTD_DDict *dictionary;
};

static enum status decompress(void *context, uint64_t offset, const struct block_header *header,
                              const uint8_t *payload)
{
    struct reading *reading = context;
    (void)offset;
    if (header->raw_bytes > BLOCK_RAW_MAX || header->stored_bytes > header->raw_bytes)
        abort();
    uint8_t *raw = malloc(header->raw_bytes); /* of the exact size, so that one byte more is seen */
    enum status status = STATUS_NO_MEMORY;
    const struct ZSTD_DDict_s *dictionary = header->dictionary ? reading->dictionary : NULL;
    if (raw) {
        enum status half = codec_decompress(reading->codec, header, dictionary, payload, raw,
                                            header->raw_bytes / 2);
        status =
            codec_decompress(reading->codec, header, dictionary, payload, raw, header->raw_bytes);
        if (status == STATUS_OK && half != STATUS_OK)
            abort(); /* what has an end has a start */
    }
    if (status == STATUS_OK && header->dictionary == 0 &&
        dictionary_check(raw, header->raw_bytes) == STATUS_OK) {
        ZSTD_freeDDict(reading->dictionary);
        reading->dictionary = ZSTD_createDDict(raw + 1, header->raw_bytes - 1);
        if (reading->dictionary == NULL)
            abort(); /* what passes the check is one to zstd */
    }
    free(raw);
    return status;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    struct codec_pool pool;
    struct evidence evidence;

    if (size < 1 || size > 1 << 20)
        return 0;
    if (fd < 0)
        fd = memfd_create("segment", 0);
    uint8_t *file = malloc(size);
    if (file == NULL)
        return 0;
    bool mended = data[0] & 1;
    size--;
    memcpy(file, data + 1, size);
    if (mended)
        mend(file, size);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, file, size, 0) != (ssize_t)size)
        abort();
    free(file);

    codec_pool_init(&pool);
    struct reading reading = {codec_borrow(&pool), NULL};
    struct segment_view view = {fd, NUMBER, size};
    enum status headers = segment_walk(&view, NULL, NULL, NULL, &evidence);
    enum status whole =
        segment_walk(&view, &reading.codec->stored, decompress, &reading, &evidence);
    if (whole == STATUS_OK && headers != STATUS_OK)
        abort();
    ZSTD_freeDDict(reading.dictionary);
    codec_return(&pool, reading.codec);
    codec_pool_free(&pool);
    return 0;
}
