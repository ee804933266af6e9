#define _GNU_SOURCE
/* Reading: by piece through the cache, and whole segments past it. */
#include "store_state.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "io.h"

enum {
    /* From that size on a block is decompressed no further than somebody reads. */
    PIECEMEAL_FROM_BYTES = 512 << 10,
    HUGE_PAGE_BYTES = 2 << 20,
};

/* Fills view for the segment; a reader never looks behind the last whole block of the tail. */
static enum status view_segment(struct store *store, const struct segment_file *file,
                                struct evidence *evidence, struct segment_view *view)
{
    *view = (struct segment_view){.fd = file->fd, .number = file->number};
    pthread_mutex_lock(&store->append_lock);
    bool is_tail = store->tail == file;
    view->end = store->tail_end;
    pthread_mutex_unlock(&store->append_lock);
    int error = is_tail ? 0 : io_size(file->fd, &view->end);
    return error ? failed(evidence, error) : STATUS_OK;
}

/* With the dictionary that the header names, if it names one. */
static enum status decompress(struct store *store, struct codec *codec,
                              const struct block_header *header, const uint8_t *payload,
                              struct evidence *evidence, uint8_t *raw)
{
    struct digested *digested;

    if (header->dictionary == 0)
        return codec_decompress(codec, header, NULL, payload, raw);
    enum status status =
        dictionaries_to_read(&store->dictionaries, header->dictionary, evidence, &digested);
    if (status != STATUS_OK)
        return status;
    status = codec_decompress(codec, header, digested->decoder, payload, raw);
    dictionaries_release(&store->dictionaries, digested);
    return status;
}

static size_t round_up(uint32_t bytes)
{
    return ((size_t)bytes + HUGE_PAGE_BYTES - 1) & ~(size_t)(HUGE_PAGE_BYTES - 1);
}

/* The memory of a block, of which the kernel gives what is written to, 2 MiB at a time. */
static uint8_t *allocate_raw(uint32_t raw_bytes)
{
    if (raw_bytes < HUGE_PAGE_BYTES)
        return malloc(raw_bytes);
    size_t size = round_up(raw_bytes);
    uint8_t *raw = aligned_alloc(HUGE_PAGE_BYTES, size);
    if (raw)
        madvise(raw, size, MADV_HUGEPAGE);
    return raw;
}

/* Reads and checks the block, and decompresses it unless that is done piece by piece. */
static enum status open_block(struct store *store, uint64_t segment, uint64_t offset,
                              struct codec *codec, struct evidence *evidence,
                              struct cached_bytes *bytes)
{
    struct segment_file *file;
    struct segment_view view;
    struct block_header header;
    const uint8_t *payload;

    enum status status = files_open(&store->files, segment, evidence, &file);
    if (status != STATUS_OK)
        return status;
    *evidence = (struct evidence){.segment = segment, .offset = offset};
    status = view_segment(store, file, evidence, &view);
    if (status == STATUS_OK)
        status = segment_read_block(&view, offset, &codec->stored, evidence, &header, &payload);
    files_release(&store->files, file);
    if (status != STATUS_OK)
        return status;
    atomic_fetch_add_explicit(&store->bytes_read, BLOCK_HEADER_BYTES + header.stored_bytes,
                              memory_order_relaxed);

    bytes->raw_bytes = header.raw_bytes;
    bytes->raw = allocate_raw(header.raw_bytes);
    if (bytes->raw == NULL)
        return STATUS_NO_MEMORY;
    if (header.raw_bytes >= PIECEMEAL_FROM_BYTES && header.codec == CODEC_ZSTD &&
        header.dictionary == 0)
        return codec_begin(codec, &header, payload);
    status = decompress(store, codec, &header, payload, evidence, bytes->raw);
    bytes->loaded_bytes = header.raw_bytes;
    return status;
}

enum status store_load_block(void *context, uint64_t segment, uint64_t offset, uint32_t end,
                             struct evidence *evidence, struct cached_bytes *bytes)
{
    struct store *store = context;
    enum status status = STATUS_OK;

    if (bytes->rest == NULL) {
        bytes->rest = codec_borrow(&store->readers);
        if (bytes->rest == NULL)
            return STATUS_NO_MEMORY;
        status = open_block(store, segment, offset, bytes->rest, evidence, bytes);
    }
    struct codec *codec = bytes->rest;
    if (status == STATUS_OK && bytes->loaded_bytes < bytes->raw_bytes) {
        *evidence = (struct evidence){.segment = segment, .offset = offset};
        status = codec_continue(codec, bytes->raw, bytes->raw_bytes, end, &bytes->loaded_bytes);
    }
    if (status != STATUS_OK)
        return status;
    bytes->memory_bytes =
        bytes->raw_bytes < HUGE_PAGE_BYTES ? bytes->raw_bytes : round_up(bytes->loaded_bytes);
    if (bytes->loaded_bytes < bytes->raw_bytes) {
        bytes->memory_bytes += codec_bytes(codec);
    } else {
        codec_return(&store->readers, codec);
        bytes->rest = NULL;
    }
    return STATUS_OK;
}

void store_unload_block(void *context, struct cached_bytes *bytes)
{
    struct store *store = context;
    if (bytes->rest)
        codec_return(&store->readers, bytes->rest);
    free(bytes->raw);
}

static bool is_same_block(const struct store_piece *one, const struct store_piece *other)
{
    return one->segment == other->segment && one->offset == other->offset;
}

/* How much of their block the pieces at the front, count of them at most, need. */
static uint32_t end_needed(const struct store_piece *pieces, size_t count)
{
    uint64_t end = 1; /* of a piece of nothing the block must be there all the same */
    for (size_t i = 0; i < count && is_same_block(&pieces[i], pieces); i++) {
        uint64_t piece_end = (uint64_t)pieces[i].start + pieces[i].length;
        end = piece_end > end ? piece_end : end;
    }
    return end > BLOCK_RAW_MAX ? BLOCK_RAW_MAX : (uint32_t)end;
}

enum status store_get(struct store *store, const struct store_piece *pieces, size_t count,
                      bool cached_only, struct evidence *evidence, uint8_t *into)
{
    enum status status = STATUS_OK;
    struct cached_block *block = NULL;

    *evidence = (struct evidence){0};
    for (size_t i = 0; i < count; i++) {
        const struct store_piece *piece = &pieces[i];
        /* Neighbouring pieces mostly come from one block: keep it between them. */
        if (block && !is_same_block(piece, piece - 1)) {
            cache_release(&store->cache, block);
            block = NULL;
        }
        if (piece->segment == 0) {
            memset(into, 0, piece->length);
            into += piece->length;
            continue;
        }
        if (block == NULL)
            status = cache_get(&store->cache, piece->segment, piece->offset,
                               end_needed(piece, count - i), cached_only, evidence, &block);
        if (status != STATUS_OK)
            return status;
        uint32_t raw_bytes = block->bytes.raw_bytes;
        if (piece->start > raw_bytes || piece->length > raw_bytes - piece->start) {
            *evidence = (struct evidence){0, piece->segment, piece->offset};
            status = STATUS_OUTSIDE;
            break;
        }
        memcpy(into, block->bytes.raw + piece->start, piece->length);
        into += piece->length;
    }
    if (block)
        cache_release(&store->cache, block);
    return status;
}

enum status store_walk(struct store *store, uint64_t segment, segment_visit *visit, void *context,
                       struct evidence *evidence)
{
    struct segment_file *file;
    struct segment_view view;

    enum status status = files_open(&store->files, segment, evidence, &file);
    if (status != STATUS_OK)
        return status;
    status = view_segment(store, file, evidence, &view);
    if (status == STATUS_OK)
        status = segment_walk(&view, NULL, visit, context, evidence);
    files_release(&store->files, file);
    return status;
}

struct verification {
    struct store *store;
    struct codec *codec;
    struct evidence *evidence;
    uint64_t blocks;
};

static enum status verify_block(void *context, uint64_t offset, const struct block_header *header,
                                const uint8_t *payload)
{
    struct verification *verification = context;
    struct codec *codec = verification->codec;

    (void)offset;
    if (!buffer_reserve(&codec->raw, header->raw_bytes))
        return STATUS_NO_MEMORY;
    enum status status = decompress(verification->store, codec, header, payload,
                                    verification->evidence, codec->raw.bytes);
    if (status == STATUS_OK)
        verification->blocks++;
    return status;
}

enum status store_verify(struct store *store, uint64_t segment, struct evidence *evidence,
                         uint64_t *blocks)
{
    struct segment_file *file;
    struct segment_view view;

    *blocks = 0;
    enum status status = files_open(&store->files, segment, evidence, &file);
    if (status != STATUS_OK)
        return status;
    struct verification verification = {store, codec_borrow(&store->codecs), evidence, 0};
    if (verification.codec == NULL) {
        status = STATUS_NO_MEMORY;
        goto release_file;
    }
    status = view_segment(store, file, evidence, &view);
    if (status == STATUS_OK)
        status =
            segment_walk(&view, &verification.codec->stored, verify_block, &verification, evidence);
    *blocks = verification.blocks;
    codec_return(&store->codecs, verification.codec);

release_file:
    files_release(&store->files, file);
    return status;
}
