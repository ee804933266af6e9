/* Reading: by piece through the cache, and whole segments past it. */
#include "store_state.h"

#include <stdlib.h>
#include <string.h>

#include "io.h"

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

static enum status load_block(void *context, uint64_t segment, uint64_t offset,
                              struct evidence *evidence, uint8_t **raw, uint32_t *raw_bytes)
{
    struct store *store = context;
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
    status = decompress(store, codec, &header, payload, evidence, bytes);
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

enum status store_get(struct store *store, const struct store_piece *pieces, size_t count,
                      bool cached_only, struct evidence *evidence, uint8_t *into)
{
    enum status status = STATUS_OK;
    struct cached_block *block = NULL;

    *evidence = (struct evidence){0};
    for (size_t i = 0; i < count; i++) {
        const struct store_piece *piece = &pieces[i];
        /* Neighbouring pieces mostly come from one block: keep it between them. */
        if (block && (piece->segment != piece[-1].segment || piece->offset != piece[-1].offset)) {
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
                               cached_only ? NULL : load_block, store, evidence, &block);
        if (status != STATUS_OK)
            return status;
        if (piece->start > block->raw_bytes || piece->length > block->raw_bytes - piece->start) {
            *evidence = (struct evidence){0, piece->segment, piece->offset};
            status = STATUS_OUTSIDE;
            break;
        }
        memcpy(into, block->raw + piece->start, piece->length);
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
