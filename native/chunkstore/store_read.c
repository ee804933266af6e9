/* Reading: by piece through the cache, and whole segments past it. */
#include "store_state.h"

#include <stdlib.h>
#include <string.h>

#include "io.h"

/*
 * Of a block that a whole file is read from: such pieces are of what the file shares with others,
 * a result or a turn, and its neighbours are none of the file's. 20 of the 27 blocks of a
 * conversation of 1.5 MB give that little. Decompressed as far as wanted they take 60 % of the
 * time.
 */
enum { LITTLE_BYTES = 64 << 10 };

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
                              struct evidence *evidence, uint8_t *raw, size_t wanted)
{
    struct digested *digested;

    if (header->dictionary == 0)
        return codec_decompress(codec, header, NULL, payload, raw, wanted);
    enum status status =
        dictionaries_to_read(&store->dictionaries, header->dictionary, evidence, &digested);
    if (status != STATUS_OK)
        return status;
    status = codec_decompress(codec, header, digested->decoder, payload, raw, wanted);
    dictionaries_release(&store->dictionaries, digested);
    return status;
}

/* Of a block all, or the first wanted bytes if it has as many; raw_bytes is what it has. */
static enum status load_start(struct store *store, uint64_t segment, uint64_t offset, size_t wanted,
                              struct evidence *evidence, uint8_t **raw, uint32_t *raw_bytes)
{
    struct segment_file *file;
    struct segment_view view;
    struct block_header header;
    const uint8_t *payload;

    enum status status = files_open(&store->files, segment, evidence, &file);
    if (status != STATUS_OK)
        return status;
    struct codec *codec = codec_borrow(&store->codecs);
    if (codec == NULL) {
        status = STATUS_NO_MEMORY;
        goto release_file;
    }
    *evidence = (struct evidence){.segment = segment, .offset = offset};
    status = view_segment(store, file, evidence, &view);
    if (status == STATUS_OK)
        status = segment_read_block(&view, offset, &codec->stored, evidence, &header, &payload);
    if (status != STATUS_OK)
        goto return_codec;

    uint8_t *bytes = malloc(header.raw_bytes);
    if (bytes == NULL) {
        status = STATUS_NO_MEMORY;
        goto return_codec;
    }
    status = decompress(store, codec, &header, payload, evidence, bytes,
                        wanted < header.raw_bytes ? wanted : header.raw_bytes);
    if (status != STATUS_OK) {
        free(bytes);
        goto return_codec;
    }
    *raw = bytes;
    *raw_bytes = header.raw_bytes;
    atomic_fetch_add_explicit(&store->bytes_read, BLOCK_HEADER_BYTES + header.stored_bytes,
                              memory_order_relaxed);

return_codec:
    codec_return(&store->codecs, codec);
release_file:
    files_release(&store->files, file);
    return status;
}

static enum status load_block(void *context, uint64_t segment, uint64_t offset,
                              struct evidence *evidence, uint8_t **raw, uint32_t *raw_bytes)
{
    return load_start(context, segment, offset, SIZE_MAX, evidence, raw, raw_bytes);
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

/* raw_bytes is what the block has. */
static enum status copy_pieces(const struct destined *group, size_t count, const uint8_t *raw,
                               uint32_t raw_bytes, struct evidence *evidence)
{
    for (size_t i = 0; i < count; i++) {
        const struct store_piece *piece = group[i].piece;
        if (piece->start > raw_bytes || piece->length > raw_bytes - piece->start) {
            *evidence = (struct evidence){0, piece->segment, piece->offset};
            return STATUS_OUTSIDE;
        }
        memcpy(group[i].into, raw + piece->start, piece->length);
    }
    return STATUS_OK;
}

/* Of a block of which little is wanted, and nothing else soon: it is read as far as that goes. */
static enum status copy_from_start(struct store *store, const struct destined *group, size_t count,
                                   size_t wanted, struct evidence *evidence)
{
    const struct store_piece *first = group[0].piece;
    uint8_t *raw;
    uint32_t raw_bytes;

    cache_passed_by(&store->cache);
    enum status status =
        load_start(store, first->segment, first->offset, wanted, evidence, &raw, &raw_bytes);
    if (status != STATUS_OK)
        return status;
    status = copy_pieces(group, count, raw, raw_bytes, evidence);
    free(raw);
    return status;
}

/* All pieces of one block, or zeros. */
static enum status get_group(struct store *store, const struct destined *group, size_t count,
                             enum store_reading reading, struct evidence *evidence)
{
    const struct store_piece *first = group[0].piece;
    struct cached_block *block;
    size_t taken = 0;
    size_t wanted = 0;

    for (size_t i = 0; i < count; i++) {
        size_t end = (size_t)group[i].piece->start + group[i].piece->length;
        taken += group[i].piece->length;
        wanted = end > wanted ? end : wanted;
    }
    if (first->segment == 0) {
        for (size_t i = 0; i < count; i++)
            memset(group[i].into, 0, group[i].piece->length);
        return STATUS_OK;
    }
    bool is_little = reading == STORE_READ_WHOLE_FILE && taken < LITTLE_BYTES;
    enum status status = cache_get(&store->cache, first->segment, first->offset,
                                   is_little || reading == STORE_READ_CACHED ? NULL : load_block,
                                   store, evidence, &block);
    if (status == STATUS_NOT_CACHED && is_little)
        return copy_from_start(store, group, count, wanted, evidence);
    if (status != STATUS_OK)
        return status;
    status = copy_pieces(group, count, block->raw, block->raw_bytes, evidence);
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
                                    verification->evidence, codec->raw.bytes, header->raw_bytes);
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
