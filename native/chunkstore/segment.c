#include "segment.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "crc32c.h"
#include "io.h"

/* One read serves a block that fits; most do not cost more than this in page cache copies. */
enum { FIRST_READ_BYTES = 64 << 10 };

void segment_header_encode(uint8_t bytes[SEGMENT_HEADER_BYTES], uint64_t number)
{
    memcpy(bytes + SEGMENT_AT_MAGIC, SEGMENT_MAGIC, sizeof SEGMENT_MAGIC - 1);
    store32(bytes + SEGMENT_AT_VERSION, SEGMENT_VERSION);
    store32(bytes + SEGMENT_AT_FLAGS, 0);
    store64(bytes + SEGMENT_AT_NUMBER, number);
    store32(bytes + SEGMENT_AT_RESERVED, 0);
    store32(bytes + SEGMENT_AT_CRC, crc32c(0, bytes, SEGMENT_AT_CRC));
}

enum status segment_header_check(const uint8_t bytes[SEGMENT_HEADER_BYTES], uint64_t number)
{
    if (memcmp(bytes + SEGMENT_AT_MAGIC, SEGMENT_MAGIC, sizeof SEGMENT_MAGIC - 1) != 0 ||
        load32(bytes + SEGMENT_AT_CRC) != crc32c(0, bytes, SEGMENT_AT_CRC))
        return STATUS_CORRUPT_HEADER;
    if (load32(bytes + SEGMENT_AT_VERSION) > SEGMENT_VERSION)
        return STATUS_NEWER;
    if (load32(bytes + SEGMENT_AT_VERSION) != SEGMENT_VERSION ||
        load32(bytes + SEGMENT_AT_FLAGS) != 0 || load32(bytes + SEGMENT_AT_RESERVED) != 0 ||
        load64(bytes + SEGMENT_AT_NUMBER) != number)
        return STATUS_CORRUPT_HEADER;
    return STATUS_OK;
}

static uint32_t block_header_crc(const uint8_t *bytes, uint64_t number, uint64_t offset)
{
    uint8_t place[16];
    store64(place, number);
    store64(place + 8, offset);
    return crc32c(crc32c(0, bytes, BLOCK_AT_HEADER_CRC), place, sizeof place);
}

void block_header_encode(uint8_t bytes[BLOCK_HEADER_BYTES], const struct block_header *header,
                         uint64_t number, uint64_t offset)
{
    memcpy(bytes + BLOCK_AT_MAGIC, BLOCK_MAGIC, sizeof BLOCK_MAGIC - 1);
    bytes[BLOCK_AT_VERSION] = BLOCK_VERSION;
    bytes[BLOCK_AT_CODEC] = header->codec;
    store16(bytes + BLOCK_AT_FLAGS, 0);
    store32(bytes + BLOCK_AT_RAW, header->raw_bytes);
    store32(bytes + BLOCK_AT_STORED, header->stored_bytes);
    store32(bytes + BLOCK_AT_CHUNKS, header->chunks);
    store32(bytes + BLOCK_AT_DICTIONARY, header->dictionary);
    store32(bytes + BLOCK_AT_PAYLOAD_CRC, header->payload_crc);
    store32(bytes + BLOCK_AT_HEADER_CRC, block_header_crc(bytes, number, offset));
}

enum status block_header_decode(const uint8_t bytes[BLOCK_HEADER_BYTES], uint64_t number,
                                uint64_t offset, struct block_header *header)
{
    if (memcmp(bytes + BLOCK_AT_MAGIC, BLOCK_MAGIC, sizeof BLOCK_MAGIC - 1) != 0 ||
        load32(bytes + BLOCK_AT_HEADER_CRC) != block_header_crc(bytes, number, offset))
        return STATUS_CORRUPT_HEADER;
    if (bytes[BLOCK_AT_VERSION] != BLOCK_VERSION || bytes[BLOCK_AT_CODEC] > CODEC_ZSTD ||
        load16(bytes + BLOCK_AT_FLAGS) != 0)
        return STATUS_NEWER;

    struct block_header h = {
        .codec = bytes[BLOCK_AT_CODEC],
        .raw_bytes = load32(bytes + BLOCK_AT_RAW),
        .stored_bytes = load32(bytes + BLOCK_AT_STORED),
        .chunks = load32(bytes + BLOCK_AT_CHUNKS),
        .dictionary = load32(bytes + BLOCK_AT_DICTIONARY),
        .payload_crc = load32(bytes + BLOCK_AT_PAYLOAD_CRC),
    };
    if (h.raw_bytes > BLOCK_RAW_MAX)
        return STATUS_TOO_LARGE;
    if (h.raw_bytes == 0 || h.stored_bytes == 0 || h.stored_bytes > h.raw_bytes || h.chunks == 0 ||
        h.chunks > h.raw_bytes || h.dictionary > DICTIONARY_NUMBER_MAX ||
        (h.codec == CODEC_RAW && (h.stored_bytes != h.raw_bytes || h.dictionary != 0)))
        return STATUS_CORRUPT_HEADER;
    *header = h;
    return STATUS_OK;
}

bool buffer_reserve(struct buffer *buffer, size_t size)
{
    if (size <= buffer->capacity)
        return true;
    uint8_t *bytes = malloc(size);
    if (bytes == NULL)
        return false;
    free(buffer->bytes);
    buffer->bytes = bytes;
    buffer->capacity = size;
    return true;
}

void buffer_free(struct buffer *buffer)
{
    free(buffer->bytes);
    *buffer = (struct buffer){0};
}

/* size bytes at offset, or STATUS_TRUNCATED. */
static enum status read_exactly(const struct segment_view *view, uint64_t offset, size_t size,
                                struct evidence *evidence, uint8_t *into)
{
    size_t got;
    if (offset > view->end || size > view->end - offset)
        return STATUS_TRUNCATED;
    evidence->error = io_read(view->fd, into, size, offset, &got);
    if (evidence->error)
        return STATUS_ERRNO;
    return got == size ? STATUS_OK : STATUS_TRUNCATED;
}

enum status segment_check(const struct segment_view *view, struct evidence *evidence)
{
    uint8_t bytes[SEGMENT_HEADER_BYTES];

    *evidence = (struct evidence){.segment = view->number};
    enum status status = read_exactly(view, 0, sizeof bytes, evidence, bytes);
    return status ? status : segment_header_check(bytes, view->number);
}

/* Rules 1 to 5 of a valid block, for bytes that were read at offset. */
static enum status decode_at(const struct segment_view *view, uint64_t offset, const uint8_t *bytes,
                             struct block_header *header)
{
    enum status status = block_header_decode(bytes, view->number, offset, header);
    if (status == STATUS_OK && header->stored_bytes > view->end - offset - BLOCK_HEADER_BYTES)
        status = STATUS_TRUNCATED;
    return status;
}

enum status segment_read_header(const struct segment_view *view, uint64_t offset,
                                struct evidence *evidence, struct block_header *header)
{
    uint8_t bytes[BLOCK_HEADER_BYTES];

    *evidence = (struct evidence){.segment = view->number, .offset = offset};
    if (offset < SEGMENT_HEADER_BYTES)
        return STATUS_CORRUPT_HEADER;
    enum status status = read_exactly(view, offset, sizeof bytes, evidence, bytes);
    return status ? status : decode_at(view, offset, bytes, header);
}

enum status segment_read_block(const struct segment_view *view, uint64_t offset,
                               struct buffer *scratch, struct evidence *evidence,
                               struct block_header *header, const uint8_t **payload)
{
    enum status status;

    *evidence = (struct evidence){.segment = view->number, .offset = offset};
    if (offset < SEGMENT_HEADER_BYTES)
        return STATUS_CORRUPT_HEADER;
    if (offset > view->end || view->end - offset < BLOCK_HEADER_BYTES)
        return STATUS_TRUNCATED;

    uint64_t left = view->end - offset;
    size_t first = left < FIRST_READ_BYTES ? (size_t)left : FIRST_READ_BYTES;
    if (!buffer_reserve(scratch, FIRST_READ_BYTES))
        return STATUS_NO_MEMORY;
    status = read_exactly(view, offset, first, evidence, scratch->bytes);
    if (status == STATUS_OK)
        status = decode_at(view, offset, scratch->bytes, header);
    if (status != STATUS_OK)
        return status;

    size_t whole = BLOCK_HEADER_BYTES + (size_t)header->stored_bytes;
    if (whole > first) {
        if (whole > scratch->capacity) {
            uint8_t *grown = realloc(scratch->bytes, whole);
            if (grown == NULL)
                return STATUS_NO_MEMORY;
            scratch->bytes = grown;
            scratch->capacity = whole;
        }
        status =
            read_exactly(view, offset + first, whole - first, evidence, scratch->bytes + first);
        if (status != STATUS_OK)
            return status;
    }
    *payload = scratch->bytes + BLOCK_HEADER_BYTES;
    return crc32c(0, *payload, header->stored_bytes) == header->payload_crc
               ? STATUS_OK
               : STATUS_CORRUPT_PAYLOAD;
}

enum status segment_walk(const struct segment_view *view, struct buffer *scratch,
                         segment_visit *visit, void *context, struct evidence *evidence)
{
    enum status status = segment_check(view, evidence);
    uint64_t offset = SEGMENT_HEADER_BYTES;

    while (status == STATUS_OK && offset < view->end) {
        struct block_header header;
        const uint8_t *payload = NULL;
        if (scratch)
            status = segment_read_block(view, offset, scratch, evidence, &header, &payload);
        else
            status = segment_read_header(view, offset, evidence, &header);
        if (status == STATUS_OK && visit)
            status = visit(context, offset, &header, payload);
        if (status == STATUS_OK)
            offset += BLOCK_HEADER_BYTES + (uint64_t)header.stored_bytes;
    }
    return status;
}
