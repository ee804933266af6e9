#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "bytes.h"
#include "check.h"
#include "crc32c.h"
#include "segment.h"

static const struct block_header sample = {
    .codec = CODEC_RAW,
    .raw_bytes = 5,
    .stored_bytes = 5,
    .chunks = 2,
};

/* Written out by hand from docs/FORMAT.md. */
static void headers_have_the_bytes_of_the_format(void)
{
    static const uint8_t segment[28] = "agentSEG\x01\0\0\0\0\0\0\0\x34\x12\0\0\0\0\0\0\0\0\0";
    static const uint8_t block[28] = "aBLK\x01\0\0\0\x05\0\0\0\x05\0\0\0\x02\0\0\0\0\0\0\0\0\0\0";
    uint8_t bytes[32];

    segment_header_encode(bytes, 0x1234);
    CHECK(memcmp(bytes, segment, 28) == 0);
    CHECK(load32(bytes + 28) == crc32c(0, segment, 28));
    block_header_encode(bytes, &sample, 0x1234, 32);
    CHECK(memcmp(bytes, block, 28) == 0);
    uint8_t whole[44];
    memcpy(whole, block, 28);
    store64(whole + 28, 0x1234);
    store64(whole + 36, 32);
    CHECK(load32(bytes + 28) == crc32c(0, whole, 44));
}

static void reseal_segment(uint8_t *bytes)
{
    store32(bytes + SEGMENT_AT_CRC, crc32c(0, bytes, SEGMENT_AT_CRC));
}

static void reseal_block(uint8_t *bytes, uint64_t number, uint64_t offset)
{
    uint8_t whole[BLOCK_AT_HEADER_CRC + 16];
    memcpy(whole, bytes, BLOCK_AT_HEADER_CRC);
    store64(whole + BLOCK_AT_HEADER_CRC, number);
    store64(whole + BLOCK_AT_HEADER_CRC + 8, offset);
    store32(bytes + BLOCK_AT_HEADER_CRC, crc32c(0, whole, sizeof whole));
}

static void every_flipped_bit_of_a_header_is_found(void)
{
    uint8_t bytes[32];
    struct block_header header;
    for (int bit = 0; bit < 256; bit++) {
        segment_header_encode(bytes, 7);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK(segment_header_check(bytes, 7) == STATUS_CORRUPT_HEADER);
        block_header_encode(bytes, &sample, 7, 99);
        bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
        CHECK(block_header_decode(bytes, 7, 99, &header) == STATUS_CORRUPT_HEADER);
    }
}

static void a_header_is_bound_to_its_place(void)
{
    uint8_t bytes[32];
    struct block_header header;
    segment_header_encode(bytes, 7);
    CHECK(segment_header_check(bytes, 7) == STATUS_OK);
    CHECK(segment_header_check(bytes, 8) == STATUS_CORRUPT_HEADER);
    block_header_encode(bytes, &sample, 7, 99);
    CHECK(block_header_decode(bytes, 7, 99, &header) == STATUS_OK);
    CHECK(header.codec == CODEC_RAW && header.raw_bytes == 5 && header.stored_bytes == 5);
    CHECK(header.chunks == 2 && header.payload_crc == 0);
    CHECK(block_header_decode(bytes, 8, 99, &header) == STATUS_CORRUPT_HEADER);
    CHECK(block_header_decode(bytes, 7, 98, &header) == STATUS_CORRUPT_HEADER);
}

static void what_is_newer_is_told_from_damage(void)
{
    uint8_t bytes[32];
    struct block_header header;
    segment_header_encode(bytes, 7);
    store32(bytes + SEGMENT_AT_VERSION, 2);
    reseal_segment(bytes);
    CHECK(segment_header_check(bytes, 7) == STATUS_NEWER);
    store32(bytes + SEGMENT_AT_VERSION, 0);
    reseal_segment(bytes);
    CHECK(segment_header_check(bytes, 7) == STATUS_CORRUPT_HEADER);

    static const int newer[] = {BLOCK_AT_VERSION, BLOCK_AT_CODEC, BLOCK_AT_FLAGS,
                                BLOCK_AT_FLAGS + 1};
    for (size_t i = 0; i < sizeof newer / sizeof newer[0]; i++) {
        block_header_encode(bytes, &sample, 7, 99);
        bytes[newer[i]] += 2;
        reseal_block(bytes, 7, 99);
        CHECK(block_header_decode(bytes, 7, 99, &header) == STATUS_NEWER);
    }
}

static void lengths_out_of_bounds_are_refused(void)
{
    static const struct {
        struct block_header header;
        enum status status;
    } cases[] = {
        {{CODEC_ZSTD, BLOCK_RAW_MAX, 1, 1, 0, 0}, STATUS_OK},
        {{CODEC_ZSTD, BLOCK_RAW_MAX + 1, 1, 1, 0, 0}, STATUS_TOO_LARGE},
        {{CODEC_ZSTD, UINT32_MAX, UINT32_MAX, 1, 0, 0}, STATUS_TOO_LARGE},
        {{CODEC_ZSTD, 5, 6, 1, 0, 0}, STATUS_CORRUPT_HEADER},
        {{CODEC_ZSTD, 5, 0, 1, 0, 0}, STATUS_CORRUPT_HEADER},
        {{CODEC_ZSTD, 0, 0, 0, 0, 0}, STATUS_CORRUPT_HEADER},
        {{CODEC_ZSTD, 5, 4, 0, 0, 0}, STATUS_CORRUPT_HEADER},
        {{CODEC_ZSTD, 5, 4, 6, 0, 0}, STATUS_CORRUPT_HEADER},
        {{CODEC_RAW, 5, 4, 1, 0, 0}, STATUS_CORRUPT_HEADER},
        {{CODEC_ZSTD, 5, 4, 1, INT32_MAX, 0}, STATUS_OK},
        {{CODEC_ZSTD, 5, 4, 1, UINT32_C(1) << 31, 0}, STATUS_CORRUPT_HEADER},
        {{CODEC_RAW, 5, 5, 1, 1, 0}, STATUS_CORRUPT_HEADER},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        uint8_t bytes[32];
        struct block_header header;
        block_header_encode(bytes, &cases[i].header, 7, 99);
        CHECK(block_header_decode(bytes, 7, 99, &header) == cases[i].status);
    }
}

static enum status count_block(void *context, uint64_t offset, const struct block_header *header,
                               const uint8_t *payload)
{
    (void)offset;
    (void)header;
    CHECK(payload == NULL || memcmp(payload, "bytes", 5) == 0);
    ++*(int *)context;
    return STATUS_OK;
}

static void a_file_cut_anywhere_is_truncated_there(void)
{
    enum { BLOCKS = 3, SIZE = 32 + BLOCKS * 37 };
    uint8_t bytes[SIZE];
    segment_header_encode(bytes, 7);
    for (uint64_t at = 32; at < SIZE; at += 37) {
        struct block_header header = sample;
        header.payload_crc = crc32c(0, "bytes", 5);
        block_header_encode(bytes + at, &header, 7, at);
        memcpy(bytes + at + 32, "bytes", 5);
    }
    int fd = memfd_create("segment", 0);
    CHECK(fd >= 0 && write(fd, bytes, SIZE) == SIZE);
    for (size_t size = SIZE + 1; size-- > 0;) {
        struct segment_view view = {fd, 7, size};
        struct evidence evidence;
        struct buffer scratch = {0};
        int whole = size < 32 ? 0 : (int)(size - 32) / 37;
        bool clean = size >= 32 && (size - 32) % 37 == 0;
        CHECK(ftruncate(fd, (off_t)size) == 0);
        for (int pass = 0; pass < 2; pass++) {
            int blocks = 0;
            enum status status =
                segment_walk(&view, pass ? &scratch : NULL, count_block, &blocks, &evidence);
            CHECK(status == (clean ? STATUS_OK : STATUS_TRUNCATED));
            CHECK(blocks == whole);
            if (size > 32 && !clean)
                CHECK(evidence.offset == 32 + 37 * (uint64_t)whole && evidence.segment == 7);
        }
        /* The file got shorter behind our back. */
        view.end = SIZE + 1;
        int blocks = 0;
        CHECK(segment_walk(&view, &scratch, count_block, &blocks, &evidence) == STATUS_TRUNCATED);
        buffer_free(&scratch);
    }
    close(fd);
}

static void offsets_outside_the_file_are_refused(void)
{
    uint8_t bytes[32];
    segment_header_encode(bytes, 7);
    int fd = memfd_create("segment", 0);
    CHECK(fd >= 0 && write(fd, bytes, 32) == 32);
    struct segment_view view = {fd, 7, 32};
    static const uint64_t offsets[] = {0, 1, 31, 32, 33, 1 << 20, INT64_MAX, UINT64_MAX};
    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        struct evidence evidence;
        struct block_header header;
        struct buffer scratch = {0};
        const uint8_t *payload;
        enum status expected = offsets[i] < 32 ? STATUS_CORRUPT_HEADER : STATUS_TRUNCATED;
        CHECK(segment_read_header(&view, offsets[i], &evidence, &header) == expected);
        CHECK(segment_read_block(&view, offsets[i], &scratch, &evidence, &header, &payload) ==
              expected);
        buffer_free(&scratch);
    }
    close(fd);
}

int main(void)
{
    RUN(headers_have_the_bytes_of_the_format);
    RUN(every_flipped_bit_of_a_header_is_found);
    RUN(a_header_is_bound_to_its_place);
    RUN(what_is_newer_is_told_from_damage);
    RUN(lengths_out_of_bounds_are_refused);
    RUN(a_file_cut_anywhere_is_truncated_there);
    RUN(offsets_outside_the_file_are_refused);
    return 0;
}
