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
    /*
     * Of a block that a whole file is read from: such pieces are of what the file shares with
     * others, a result or a turn, and its neighbours are none of the file's. 20 of the 27 blocks of
     * a conversation of 1.5 MB give that little. Decompressed as far as wanted they take 60 % of
     * the time.
     */
    LITTLE_BYTES = 64 << 10,
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

static enum status load_block(struct store *store, uint64_t segment, uint64_t offset, uint32_t end,
                              struct evidence *evidence, struct cached_bytes *bytes)
{
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

enum status store_load_ahead(void *context, uint64_t segment, uint64_t offset, uint32_t end,
                             struct evidence *evidence, struct cached_bytes *bytes)
{
    uint32_t ahead = (end + STORE_AHEAD_BYTES - 1) / STORE_AHEAD_BYTES * STORE_AHEAD_BYTES;
    return load_block(context, segment, offset, ahead, evidence, bytes);
}

void store_unload_block(void *context, struct cached_bytes *bytes)
{
    struct store *store = context;
    if (bytes->rest)
        codec_return(&store->readers, bytes->rest);
    free(bytes->raw);
}

/* A piece and where it goes. */
struct destined {
    const struct store_piece *piece;
    uint8_t *into;
};

static int by_block(const void *left, const void *right)
{
    const struct destined *a = left;
    const struct destined *b = right;

    if (a->piece->segment != b->piece->segment)
        return a->piece->segment < b->piece->segment ? -1 : 1;
    if (a->piece->offset != b->piece->offset)
        return a->piece->offset < b->piece->offset ? -1 : 1;
    return (a->piece > b->piece) - (a->piece < b->piece);
}

static bool are_of_one_block(const struct store_piece *a, const struct store_piece *b)
{
    return a->segment == b->segment && a->offset == b->offset;
}

static enum status copy_pieces(const struct destined *group, size_t count,
                               const struct cached_bytes *block, struct evidence *evidence)
{
    for (size_t i = 0; i < count; i++) {
        const struct store_piece *piece = group[i].piece;
        if (piece->start > block->raw_bytes || piece->length > block->raw_bytes - piece->start) {
            *evidence = (struct evidence){0, piece->segment, piece->offset};
            return STATUS_OUTSIDE;
        }
        memcpy(group[i].into, block->raw + piece->start, piece->length);
    }
    return STATUS_OK;
}

/* Of a block of which little is wanted, and nothing else soon: it is not kept. */
static enum status copy_past_cache(struct store *store, const struct destined *group, size_t count,
                                   uint32_t end, struct evidence *evidence)
{
    const struct store_piece *first = group[0].piece;
    struct cached_bytes block = {0};

    cache_passed_by(&store->cache);
    enum status status = load_block(store, first->segment, first->offset, end, evidence, &block);
    if (status == STATUS_OK)
        status = copy_pieces(group, count, &block, evidence);
    store_unload_block(store, &block);
    return status;
}

/* All pieces of one block, or zeros. */
static enum status get_group(struct store *store, const struct destined *group, size_t count,
                             enum store_reading reading, struct evidence *evidence)
{
    const struct store_piece *first = group[0].piece;
    struct cached_block *block;
    uint64_t taken = 0;
    uint64_t end = 1; /* of a piece of nothing the block must be there all the same */

    for (size_t i = 0; i < count; i++) {
        uint64_t piece_end = (uint64_t)group[i].piece->start + group[i].piece->length;
        taken += group[i].piece->length;
        end = piece_end > end ? piece_end : end;
    }
    if (first->segment == 0) {
        for (size_t i = 0; i < count; i++)
            memset(group[i].into, 0, group[i].piece->length);
        return STATUS_OK;
    }
    end = end < BLOCK_RAW_MAX ? end : BLOCK_RAW_MAX;
    bool is_little = reading == STORE_READ_WHOLE_FILE && taken < LITTLE_BYTES;
    enum status status = cache_get(&store->cache, first->segment, first->offset, (uint32_t)end,
                                   is_little || reading == STORE_READ_CACHED, evidence, &block);
    if (status == STATUS_NOT_CACHED && is_little)
        return copy_past_cache(store, group, count, (uint32_t)end, evidence);
    if (status != STATUS_OK)
        return status;
    status = copy_pieces(group, count, &block->bytes, evidence);
    cache_release(&store->cache, block);
    return status;
}

/*
 * Block by block: a file that has grown turn by turn, or shares chunks with others, has those of a
 * block in many places, and the cache may be too small for all its blocks. In the order of the
 * pieces the 29 blocks of such a conversation of 2 MiB were decompressed 47 times.
 */
enum status store_get(struct store *store, const struct store_piece *pieces, size_t count,
                      enum store_reading reading, struct evidence *evidence, uint8_t *into)
{
    enum status status = STATUS_OK;
    size_t end;

    *evidence = (struct evidence){0};
    if (count == 0)
        return STATUS_OK;
    struct destined *order = calloc(count, sizeof *order);
    if (order == NULL)
        return STATUS_NO_MEMORY;
    for (size_t i = 0; i < count; i++) {
        order[i] = (struct destined){&pieces[i], into};
        into += pieces[i].length;
    }
    qsort(order, count, sizeof *order, by_block);
    for (size_t start = 0; start < count && status == STATUS_OK; start = end) {
        for (end = start + 1; end < count; end++)
            if (!are_of_one_block(order[start].piece, order[end].piece))
                break;
        status = get_group(store, order + start, end - start, reading, evidence);
    }
    free(order);
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
