/* One segment file as docs/FORMAT.md defines it: headers to and from bytes, reading, walking. No
 * locks, no state. */
#ifndef AGENTFS_SEGMENT_H
#define AGENTFS_SEGMENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "format.h"
#include "status.h"

struct block_header {
    uint8_t codec; /* enum block_codec */
    uint32_t raw_bytes;
    uint32_t stored_bytes; /* payload only */
    uint32_t chunks;
    uint32_t dictionary; /* number; 0: none */
    uint32_t payload_crc;
};

void segment_header_encode(uint8_t bytes[SEGMENT_HEADER_BYTES], uint64_t number);
enum status segment_header_check(const uint8_t bytes[SEGMENT_HEADER_BYTES], uint64_t number);

/* A block is bound to its place, so the place goes into its header CRC. */
void block_header_encode(uint8_t bytes[BLOCK_HEADER_BYTES], const struct block_header *header,
                         uint64_t number, uint64_t offset);
enum status block_header_decode(const uint8_t bytes[BLOCK_HEADER_BYTES], uint64_t number,
                                uint64_t offset, struct block_header *header);

/* What the readers below look at; end is the file size, or less when a writer is behind it. */
struct segment_view {
    int fd; /* borrowed */
    uint64_t number;
    uint64_t end;
};

struct store_segment {
    uint64_t number;
    uint64_t file_bytes;
};

/* Memory that grows and is used again. */
struct buffer {
    uint8_t *bytes; /* owned; buffer_free() */
    size_t capacity;
};

/* Room for size bytes; what was in it is lost when it grows. False when out of memory. */
bool buffer_reserve(struct buffer *buffer, size_t size);
void buffer_free(struct buffer *buffer);

enum status segment_check(const struct segment_view *view, struct evidence *evidence);

enum status segment_read_header(const struct segment_view *view, uint64_t offset,
                                struct evidence *evidence, struct block_header *header);

/* Reads a block and checks its CRCs; *payload points into scratch. Does not decompress. */
enum status segment_read_block(const struct segment_view *view, uint64_t offset,
                               struct buffer *scratch, struct evidence *evidence,
                               struct block_header *header, const uint8_t **payload);

/* payload is NULL in a walk over headers. Another status than STATUS_OK ends the walk. */
typedef enum status segment_visit(void *context, uint64_t offset, const struct block_header *header,
                                  const uint8_t *payload);

/* Segment header, then each block in order up to exactly view->end. With scratch, payloads are read
 * and CRC-checked. */
enum status segment_walk(const struct segment_view *view, struct buffer *scratch,
                         segment_visit *visit, void *context, struct evidence *evidence);

#endif
