#include "codec.h"

#include <stdlib.h>
#include <string.h>
/* For ZSTD_d_stableOutBuffer: without it zstd decompresses a stream into memory of its own first.
 */
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>
#include <zstd_errors.h>

#include "crc32c.h"

/*
 * Level 3 on 1 MiB needs about 6 MiB with buffers, level 19 on 8 MiB about 90: the big ones are for
 * background work and not worth keeping.
 */
enum {
    KEEP_CODECS = 8,
    KEEP_BYTES = 16 << 20,
};

/* A block that shrinks by less than 1/32 is stored raw: reading it then costs no decompression. */
enum { WORTH_SHIFT = 5 };

/*
 * No level makes of images, archives and tensors what level 1 does not, at 1 to 2 ms of CPU a MB.
 * Others take 4 to 14 ms (level 5), or 200 (19), for the same bytes: of noise nothing, of base64 of
 * it 75 %, of 16-bit floats 78 %. Text is at 45 % or below.
 *
 * Strong levels are worth a probe of all of it. Others have pieces probed, a 64th of a block each:
 * text is told by the first.
 */
enum {
    PROBE_LEVEL = 1,
    PROBE_ALL_ABOVE_LEVEL = 9,
    PROBE_PIECES = 8,
    PROBE_PIECE_SHIFT = 6,
    PROBE_FROM_BYTES = 256 << 10, /* below that pieces are too short to say anything */
    HOPELESS_PERCENT = 70,
};

/*
 * The levels that build trees of what they have seen find the roots of these in a table that zstd
 * makes as large as the block has bytes. For blocks of 4 MiB a quarter of that is as good: 0.01 %
 * in size, 12 of 50 MB of memory, a tenth of the time and more.
 */
enum {
    TREES_FROM_LEVEL = 16,
    TREE_ROOTS_LOG = 20,
};

/* What zstd compresses at once anyway: the frame is as small as one made in a single call. */
enum { PACED_STEP_BYTES = 128 << 10 };

/* Of any frame zstd asks for so much at first; then it says how much it takes next. */
enum { FRAME_START_BYTES = 5 };

void codec_pool_init(struct codec_pool *pool)
{
    pthread_mutex_init(&pool->lock, NULL);
    pool->idle = NULL;
    pool->idle_count = 0;
}

static void codec_free(struct codec *codec)
{
    ZSTD_freeCCtx(codec->compressor);
    ZSTD_freeDCtx(codec->decompressor);
    buffer_free(&codec->raw);
    buffer_free(&codec->stored);
    free(codec);
}

void codec_pool_drop(struct codec_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    struct codec *idle = pool->idle;
    pool->idle = NULL;
    pool->idle_count = 0;
    pthread_mutex_unlock(&pool->lock);
    while (idle) {
        struct codec *codec = idle;
        idle = codec->next;
        codec_free(codec);
    }
}

void codec_pool_free(struct codec_pool *pool)
{
    codec_pool_drop(pool);
    pthread_mutex_destroy(&pool->lock);
}

struct codec *codec_borrow(struct codec_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    struct codec *codec = pool->idle;
    if (codec) {
        pool->idle = codec->next;
        pool->idle_count--;
    }
    pthread_mutex_unlock(&pool->lock);
    return codec ? codec : calloc(1, sizeof *codec);
}

static size_t footprint(const struct codec *codec)
{
    return codec->raw.capacity + codec->stored.capacity + ZSTD_sizeof_CCtx(codec->compressor) +
           ZSTD_sizeof_DCtx(codec->decompressor);
}

void codec_return(struct codec_pool *pool, struct codec *codec)
{
    if (footprint(codec) <= KEEP_BYTES) {
        pthread_mutex_lock(&pool->lock);
        if (pool->idle_count < KEEP_CODECS) {
            codec->next = pool->idle;
            pool->idle = codec;
            pool->idle_count++;
            codec = NULL;
        }
        pthread_mutex_unlock(&pool->lock);
    }
    if (codec)
        codec_free(codec);
}

/* One frame of level into codec->stored. */
static enum status compress(struct codec *codec, const uint8_t *raw, size_t raw_bytes, int level,
                            encoder *dictionary, const struct pace *pace, size_t *stored)
{
    ZSTD_outBuffer out = {codec->stored.bytes, codec->stored.capacity, 0};
    ZSTD_inBuffer in = {raw, 0, 0};

    ZSTD_CCtx_reset(codec->compressor, ZSTD_reset_session_only);
    ZSTD_CCtx_setParameter(codec->compressor, ZSTD_c_compressionLevel, level);
    ZSTD_CCtx_setParameter(codec->compressor, ZSTD_c_hashLog,
                           level < TREES_FROM_LEVEL ? 0 : TREE_ROOTS_LOG);
    ZSTD_CCtx_setParameter(codec->compressor, ZSTD_c_dictIDFlag, 0); /* the block header has it */
    ZSTD_CCtx_refCDict(codec->compressor, dictionary);
    if (pace == NULL) {
        out.pos = ZSTD_compress2(codec->compressor, out.dst, out.size, raw, raw_bytes);
        *stored = out.pos;
        /* The bound is met and the level clamped: nothing else can fail. */
        return ZSTD_isError(out.pos) ? STATUS_NO_MEMORY : STATUS_OK;
    }
    ZSTD_CCtx_setPledgedSrcSize(codec->compressor, raw_bytes);
    while (in.pos < raw_bytes) {
        uint64_t since_ns = pace_now_ns();
        in.size = raw_bytes - in.pos > PACED_STEP_BYTES ? in.pos + PACED_STEP_BYTES : raw_bytes;
        ZSTD_EndDirective end = in.size == raw_bytes ? ZSTD_e_end : ZSTD_e_continue;
        size_t left;
        do {
            left = ZSTD_compressStream2(codec->compressor, &out, &in, end);
            if (ZSTD_isError(left))
                return STATUS_NO_MEMORY;
        } while (end == ZSTD_e_end ? left != 0 : in.pos < in.size);
        if (!pace_keep(pace, since_ns))
            return STATUS_STOPPED;
    }
    *stored = out.pos;
    return STATUS_OK;
}

static bool is_hopeless(size_t stored, size_t raw_bytes)
{
    return stored * 100 >= raw_bytes * HOPELESS_PERCENT;
}

/* Whether each of some pieces of it is. */
static enum status probe(struct codec *codec, const uint8_t *raw, size_t raw_bytes, bool *hopeless)
{
    size_t piece = raw_bytes >> PROBE_PIECE_SHIFT;

    *hopeless = raw_bytes >= PROBE_FROM_BYTES;
    for (size_t i = 0; *hopeless && i < PROBE_PIECES; i++) {
        size_t stored;
        const uint8_t *at = raw + i * (raw_bytes / PROBE_PIECES);
        enum status status = compress(codec, at, piece, PROBE_LEVEL, NULL, NULL, &stored);
        if (status != STATUS_OK)
            return status;
        *hopeless = is_hopeless(stored, piece);
    }
    return STATUS_OK;
}

enum status codec_compress(struct codec *codec, const uint8_t *raw, size_t raw_bytes, int level,
                           encoder *dictionary, const struct pace *pace,
                           struct block_header *header, const uint8_t **payload)
{
    size_t stored = raw_bytes;

    if (raw_bytes > BLOCK_RAW_MAX)
        return STATUS_TOO_LARGE;
    if (level != 0) {
        if (codec->compressor == NULL)
            codec->compressor = ZSTD_createCCtx();
        if (codec->compressor == NULL ||
            !buffer_reserve(&codec->stored, ZSTD_compressBound(raw_bytes)))
            return STATUS_NO_MEMORY;
        bool hopeless = false;
        enum status status = STATUS_OK;
        if (level > PROBE_ALL_ABOVE_LEVEL) {
            status = compress(codec, raw, raw_bytes, PROBE_LEVEL, NULL, pace, &stored);
            hopeless = is_hopeless(stored, raw_bytes);
        } else if (level > PROBE_LEVEL) {
            status = probe(codec, raw, raw_bytes, &hopeless);
            if (status == STATUS_OK && hopeless)
                status = compress(codec, raw, raw_bytes, PROBE_LEVEL, NULL, pace, &stored);
        }
        if (hopeless)
            dictionary = NULL;
        else if (status == STATUS_OK)
            status = compress(codec, raw, raw_bytes, level, dictionary, pace, &stored);
        if (status != STATUS_OK)
            return status;
    }

    header->codec = CODEC_ZSTD;
    *payload = codec->stored.bytes;
    if (stored >= raw_bytes - (raw_bytes >> WORTH_SHIFT)) {
        header->codec = CODEC_RAW;
        dictionary = NULL;
        stored = raw_bytes;
        *payload = raw;
    }
    if (dictionary == NULL)
        header->dictionary = 0;
    header->raw_bytes = (uint32_t)raw_bytes;
    header->stored_bytes = (uint32_t)stored;
    header->payload_crc = crc32c(0, *payload, stored);
    return STATUS_OK;
}

/* Whether the payload is one frame of what header says. */
static bool is_frame(const struct block_header *header, const uint8_t *payload)
{
    return ZSTD_getFrameContentSize(payload, header->stored_bytes) == header->raw_bytes &&
           ZSTD_findFrameCompressedSize(payload, header->stored_bytes) == header->stored_bytes &&
           ZSTD_getDictID_fromFrame(payload, header->stored_bytes) == 0;
}

static enum status all_or(size_t got, size_t expected)
{
    if (ZSTD_isError(got) && ZSTD_getErrorCode(got) == ZSTD_error_memory_allocation)
        return STATUS_NO_MEMORY;
    return got == expected ? STATUS_OK : STATUS_CORRUPT_PAYLOAD;
}

/* Piece by piece of what zstd compressed at once, 128 KiB at most, until there is enough. */
static enum status decompress_start(ZSTD_DCtx *context, const struct block_header *header,
                                    decoder *dictionary, const uint8_t *payload, uint8_t *raw,
                                    size_t wanted)
{
    ZSTD_outBuffer out = {raw, header->raw_bytes, 0};
    ZSTD_inBuffer in = {payload, 0, 0};
    size_t next = FRAME_START_BYTES;

    ZSTD_DCtx_refDDict(context, dictionary);
    while (out.pos < wanted && in.pos < header->stored_bytes && !ZSTD_isError(next)) {
        size_t left = header->stored_bytes - in.pos;
        in.size = in.pos + (next < left ? next : left);
        next = ZSTD_decompressStream(context, &out, &in);
    }
    ZSTD_DCtx_reset(context, ZSTD_reset_session_only);
    ZSTD_DCtx_refDDict(context, NULL); /* it is the caller's to free */
    return out.pos >= wanted ? STATUS_OK : all_or(next, header->raw_bytes);
}

enum status codec_decompress(struct codec *codec, const struct block_header *header,
                             decoder *dictionary, const uint8_t *payload, uint8_t *raw,
                             size_t wanted)
{
    if (header->codec == CODEC_RAW) {
        memcpy(raw, payload, wanted);
        return STATUS_OK;
    }
    if (!is_frame(header, payload))
        return STATUS_CORRUPT_PAYLOAD;
    if (header->dictionary && dictionary == NULL)
        return STATUS_NO_DICTIONARY;
    if (codec->decompressor == NULL)
        codec->decompressor = ZSTD_createDCtx();
    if (codec->decompressor == NULL)
        return STATUS_NO_MEMORY;
    if (wanted < header->raw_bytes &&
        !ZSTD_isError(ZSTD_DCtx_setParameter(codec->decompressor, ZSTD_d_stableOutBuffer, 1)))
        return decompress_start(codec->decompressor, header, dictionary, payload, raw, wanted);
    return all_or(ZSTD_decompress_usingDDict(codec->decompressor, raw, header->raw_bytes, payload,
                                             header->stored_bytes, dictionary),
                  header->raw_bytes);
}
