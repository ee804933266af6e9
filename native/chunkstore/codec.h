/* Compression contexts with their scratch memory, lent to one thread at a time. */
#ifndef AGENTFS_CODEC_H
#define AGENTFS_CODEC_H

#include <pthread.h>

#include "pace.h"
#include "segment.h"

/* Of a payload that is decompressed piece by piece. */
struct codec_rest {
    const uint8_t *payload;
    size_t payload_bytes;
    size_t at;
    size_t wanted; /* of the payload, for the next piece; 0: there is none */
};

struct codec {
    struct ZSTD_CCtx_s *compressor;   /* owned; made at first use */
    struct ZSTD_DCtx_s *decompressor; /* owned; made at first use */
    struct buffer raw;
    struct buffer stored;
    struct codec_rest rest;
    struct codec *next; /* in the pool; guarded by its lock */
};

struct codec_pool {
    pthread_mutex_t lock;
    struct codec *idle;  /* owned; guarded by lock */
    unsigned idle_count; /* guarded by lock */
};

void codec_pool_init(struct codec_pool *pool);

/* Frees those that nobody has borrowed. */
void codec_pool_drop(struct codec_pool *pool);

/* Every codec must have been given back. */
void codec_pool_free(struct codec_pool *pool);

/* NULL when out of memory. */
struct codec *codec_borrow(struct codec_pool *pool);
void codec_return(struct codec_pool *pool, struct codec *codec);

/* The memory that it has. */
size_t codec_bytes(const struct codec *codec);

/* NULL: none. */
typedef const struct ZSTD_CDict_s encoder;
typedef const struct ZSTD_DDict_s decoder;

/*
 * Level 0 means do not compress. Fills all of header but chunks; *payload points into codec->stored
 * or is raw itself. The encoder is of that level and of the dictionary that header has the number
 * of, which becomes 0 if it was no use. With a pace (NULL: none) it works in steps of about 30 ms
 * at level 19, and returns STATUS_STOPPED when the pace says so.
 */
enum status codec_compress(struct codec *codec, const uint8_t *raw, size_t raw_bytes, int level,
                           encoder *dictionary, const struct pace *pace,
                           struct block_header *header, const uint8_t **payload);

/* raw has room for header->raw_bytes. The payload's CRC has been checked. */
enum status codec_decompress(struct codec *codec, const struct block_header *header,
                             decoder *dictionary, const uint8_t *payload, uint8_t *raw);

/*
 * The same in pieces of 128 KiB, as many as make end bytes: a payload of zstd without a dictionary
 * that stays where it is, and raw, between codec_begin and the last codec_continue. No more than
 * header->raw_bytes are written, and none that were *done.
 */
enum status codec_begin(struct codec *codec, const struct block_header *header,
                        const uint8_t *payload);
enum status codec_continue(struct codec *codec, uint8_t *raw, uint32_t raw_bytes, uint32_t end,
                           uint32_t *done);

#endif
