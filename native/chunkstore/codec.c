#include "codec.h"

#include <stdlib.h>
#include <string.h>
/* For stable buffers: without them zstd keeps a window to copy from or to. */
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

/* What zstd compresses at once anyway: the frame is as small as one made in a single call. */
enum { PACED_STEP_BYTES = 128 << 10 };

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

size_t codec_bytes(const struct codec *codec)
{
    return codec->raw.capacity + codec->stored.capacity + ZSTD_sizeof_CCtx(codec->compressor) +
           ZSTD_sizeof_DCtx(codec->decompressor);
}

void codec_return(struct codec_pool *pool, struct codec *codec)
{
    if (codec_bytes(codec) <= KEEP_BYTES) {
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

/*
 * What zstd looks matches up in. Level 19 wants 24 and 22 for 8 MiB, 80 MB of memory. With less
 * than half of that it forgets the first half of a block before the end, but for long matches,
 * which it is told to keep a table of its own of, of half a megabyte: blocks are as small. Levels
 * up to 15 ask for less by themselves.
 */
enum {
    CHAIN_LOG_MAX = 23,
    HASH_LOG_MAX = 20,
};

static void set_level(ZSTD_CCtx *compressor, int level, size_t raw_bytes)
{
    ZSTD_compressionParameters wanted = ZSTD_getCParams(level, raw_bytes, 0);
    bool is_bound = wanted.chainLog > CHAIN_LOG_MAX;
    int as_level_says = 0;

    ZSTD_CCtx_setParameter(compressor, ZSTD_c_compressionLevel, level);
    ZSTD_CCtx_setParameter(compressor, ZSTD_c_chainLog, is_bound ? CHAIN_LOG_MAX : as_level_says);
    ZSTD_CCtx_setParameter(compressor, ZSTD_c_hashLog, is_bound ? HASH_LOG_MAX : as_level_says);
    ZSTD_CCtx_setParameter(compressor, ZSTD_c_enableLongDistanceMatching, is_bound);
}

/*
 * Whether zstd may be told that a frame's bytes stay where they are while more of them come: it
 * keeps a copy of a window otherwise. Earlier versions want all of them at once.
 */
static int takes_growing_input(void)
{
    return ZSTD_versionNumber() >= 10504;
}

/* One frame of level into codec->stored. */
static enum status compress(struct codec *codec, const uint8_t *raw, size_t raw_bytes, int level,
                            encoder *dictionary, const struct pace *pace, size_t *stored)
{
    ZSTD_outBuffer out = {codec->stored.bytes, codec->stored.capacity, 0};
    ZSTD_inBuffer in = {raw, 0, 0};

    ZSTD_CCtx_reset(codec->compressor, ZSTD_reset_session_only);
    set_level(codec->compressor, level, raw_bytes);
    ZSTD_CCtx_setParameter(codec->compressor, ZSTD_c_dictIDFlag, 0); /* the block header has it */
    ZSTD_CCtx_refCDict(codec->compressor, dictionary);
    if (pace == NULL) {
        out.pos = ZSTD_compress2(codec->compressor, out.dst, out.size, raw, raw_bytes);
        *stored = out.pos;
        /* The bound is met and the level clamped: nothing else can fail. */
        return ZSTD_isError(out.pos) ? STATUS_NO_MEMORY : STATUS_OK;
    }
    ZSTD_CCtx_setParameter(codec->compressor, ZSTD_c_stableInBuffer, takes_growing_input());
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

/* Rule 7 of a valid block, before anything is decoded. */
static bool is_frame(const struct block_header *header, const uint8_t *payload)
{
    return ZSTD_getFrameContentSize(payload, header->stored_bytes) == header->raw_bytes &&
           ZSTD_findFrameCompressedSize(payload, header->stored_bytes) == header->stored_bytes &&
           ZSTD_getDictID_fromFrame(payload, header->stored_bytes) == 0;
}

static bool has_decompressor(struct codec *codec)
{
    if (codec->decompressor == NULL)
        codec->decompressor = ZSTD_createDCtx();
    return codec->decompressor != NULL;
}

static enum status failure(size_t code)
{
    return ZSTD_getErrorCode(code) == ZSTD_error_memory_allocation ? STATUS_NO_MEMORY
                                                                   : STATUS_CORRUPT_PAYLOAD;
}

enum status codec_decompress(struct codec *codec, const struct block_header *header,
                             decoder *dictionary, const uint8_t *payload, uint8_t *raw)
{
    if (header->codec == CODEC_RAW) {
        memcpy(raw, payload, header->raw_bytes);
        return STATUS_OK;
    }
    if (!is_frame(header, payload))
        return STATUS_CORRUPT_PAYLOAD;
    if (header->dictionary && dictionary == NULL)
        return STATUS_NO_DICTIONARY;
    if (!has_decompressor(codec))
        return STATUS_NO_MEMORY;

    size_t got = ZSTD_decompress_usingDDict(codec->decompressor, raw, header->raw_bytes, payload,
                                            header->stored_bytes, dictionary);
    if (ZSTD_isError(got))
        return failure(got);
    return got == header->raw_bytes ? STATUS_OK : STATUS_CORRUPT_PAYLOAD;
}

enum status codec_begin(struct codec *codec, const struct block_header *header,
                        const uint8_t *payload)
{
    if (!is_frame(header, payload))
        return STATUS_CORRUPT_PAYLOAD;
    if (!has_decompressor(codec))
        return STATUS_NO_MEMORY;
    ZSTD_DCtx_reset(codec->decompressor, ZSTD_reset_session_only);
    ZSTD_DCtx_setParameter(codec->decompressor, ZSTD_d_stableOutBuffer, 1);
    codec->rest = (struct codec_rest){
        .payload = payload,
        .payload_bytes = header->stored_bytes,
        .wanted = ZSTD_FRAMEHEADERSIZE_MAX,
    };
    return STATUS_OK;
}

enum status codec_continue(struct codec *codec, uint8_t *raw, uint32_t raw_bytes, uint32_t end,
                           uint32_t *done)
{
    struct codec_rest *rest = &codec->rest;
    ZSTD_inBuffer in = {rest->payload, rest->at, rest->at};
    ZSTD_outBuffer out = {raw, raw_bytes, *done};

    while (rest->wanted > 0 && (out.pos < end || out.pos == raw_bytes)) {
        /* No more than the piece needs: given all of it, zstd would go on to the end. */
        size_t left = rest->payload_bytes - in.pos;
        in.size = in.pos + (rest->wanted < left ? rest->wanted : left);
        size_t before = in.pos + out.pos;
        rest->wanted = ZSTD_decompressStream(codec->decompressor, &out, &in);
        if (ZSTD_isError(rest->wanted))
            return failure(rest->wanted);
        if (in.pos + out.pos == before)
            return STATUS_CORRUPT_PAYLOAD;
    }
    rest->at = in.pos;
    *done = (uint32_t)out.pos;
    if (rest->wanted == 0 && (out.pos != raw_bytes || in.pos != rest->payload_bytes))
        return STATUS_CORRUPT_PAYLOAD;
    return STATUS_OK;
}
