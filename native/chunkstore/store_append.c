/* Appending blocks, and beginning another segment. */
#define _GNU_SOURCE
#include "store_state.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "io.h"

void store_retire_tail(struct store *store)
{
    if (store->tail)
        files_release(&store->files, store->tail);
    store->tail = NULL;
}

static struct segment_file *share_file(struct store *store, struct segment_file *file)
{
    pthread_mutex_lock(&store->files.lock);
    file->node.refs++;
    pthread_mutex_unlock(&store->files.lock);
    return file;
}

/* append_lock is held. The tail has bytes that the next sync must make durable. */
static void mark_dirty(struct store *store)
{
    if (store->tail->dirty)
        return;
    store->tail->dirty = true;
    store->tail->next = store->dirty;
    store->dirty = share_file(store, store->tail);
}

enum status store_start_segment(struct store *store, struct evidence *evidence)
{
    struct segment_file *file;

    store_retire_tail(store);
    if (store->next_number > SEGMENT_NUMBER_MAX)
        return failed(evidence, EOVERFLOW);
    enum status status = files_create(&store->files, store->next_number, evidence, &file);
    if (status != STATUS_OK)
        return status;
    store->next_number++;
    store->tail = file;
    store->tail_end = SEGMENT_HEADER_BYTES;
    store->directory_dirty = true;
    mark_dirty(store);
    return STATUS_OK;
}

/* append_lock is held. */
static enum status append(struct store *store, const struct block_header *header,
                          const uint8_t *payload, struct evidence *evidence,
                          struct store_place *place)
{
    uint8_t bytes[BLOCK_HEADER_BYTES];
    uint64_t size = BLOCK_HEADER_BYTES + (uint64_t)header->stored_bytes;
    enum status status;

    if (store->tail && store->tail_end > SEGMENT_HEADER_BYTES &&
        store->tail_end + size > store->segment_bytes)
        store_retire_tail(store);
    if (store->tail == NULL) {
        status = store_start_segment(store, evidence);
        if (status != STATUS_OK)
            return status;
    }
    uint64_t number = store->tail->number;
    uint64_t offset = store->tail_end;
    block_header_encode(bytes, header, number, offset);

    struct iovec parts[] = {
        {bytes, sizeof bytes},
        {(void *)(uintptr_t)payload, header->stored_bytes},
    };
    int error = io_write(store->tail->fd, parts, 2, offset);
    if (error) {
        *evidence = (struct evidence){error, number, offset};
        if (ftruncate(store->tail->fd, (off_t)offset) != 0)
            store_retire_tail(store); /* a torn block stays behind: nothing may follow it */
        return STATUS_ERRNO;
    }
    store->tail_end += size;
    mark_dirty(store);
    *place = (struct store_place){number, offset, (uint32_t)size};
    return STATUS_OK;
}

/* Chunks that lie one behind the other are compressed where they are, others are gathered first. */
static enum status gather(struct codec *codec, const struct store_chunk *chunks, size_t count,
                          const uint8_t **raw, size_t *raw_bytes)
{
    const uint8_t *first = chunks[0].bytes;
    size_t total = 0;
    bool is_whole = true;
    for (size_t i = 0; i < count; i++) {
        if (chunks[i].size > BLOCK_RAW_MAX - total)
            return STATUS_TOO_LARGE;
        is_whole = is_whole && (uintptr_t)chunks[i].bytes == (uintptr_t)first + total;
        total += chunks[i].size;
    }
    *raw_bytes = total;
    if (is_whole) {
        *raw = first;
        return STATUS_OK;
    }
    if (!buffer_reserve(&codec->raw, total))
        return STATUS_NO_MEMORY;
    size_t at = 0;
    for (size_t i = 0; i < count; i++) {
        memcpy(codec->raw.bytes + at, chunks[i].bytes, chunks[i].size);
        at += chunks[i].size;
    }
    *raw = codec->raw.bytes;
    return STATUS_OK;
}

static enum status put(struct store *store, const struct store_chunk *chunks, size_t count,
                       int level, struct digested *dictionary, const struct pace *pace,
                       struct evidence *evidence, struct store_place *place)
{
    struct block_header header = {
        .chunks = (uint32_t)count,
        .dictionary = dictionary ? (uint32_t)dictionary->node.high : 0,
    };
    encoder *encoder = dictionary ? dictionary->encoder : NULL;
    const uint8_t *raw;
    const uint8_t *payload;
    size_t raw_bytes;

    *evidence = (struct evidence){0};
    if (store->read_only)
        return failed(evidence, EROFS);
    struct codec *codec = codec_borrow(&store->codecs);
    if (codec == NULL)
        return STATUS_NO_MEMORY;
    enum status status = gather(codec, chunks, count, &raw, &raw_bytes);
    if (status == STATUS_OK)
        status = codec_compress(codec, raw, raw_bytes, level, encoder, pace, &header, &payload);
    if (status == STATUS_OK) {
        pthread_mutex_lock(&store->append_lock);
        status = append(store, &header, payload, evidence, place);
        pthread_mutex_unlock(&store->append_lock);
    }
    codec_return(&store->codecs, codec);
    if (status == STATUS_OK) {
        atomic_fetch_add_explicit(&store->bytes_put, place->stored_bytes, memory_order_relaxed);
        atomic_fetch_add_explicit(&store->raw_bytes_put, raw_bytes, memory_order_relaxed);
        atomic_fetch_add_explicit(&store->blocks_put, 1, memory_order_relaxed);
    }
    return status;
}

enum status store_put(struct store *store, const struct store_chunk *chunks, size_t count,
                      int level, uint32_t dictionary, struct evidence *evidence,
                      struct store_place *place)
{
    struct digested *digested = NULL;

    if (dictionary && level != 0 &&
        dictionaries_to_write(&store->dictionaries, dictionary, level, evidence, &digested) !=
            STATUS_OK)
        digested = NULL;
    enum status status = put(store, chunks, count, level, digested, NULL, evidence, place);
    if (digested)
        dictionaries_release(&store->dictionaries, digested);
    return status;
}

enum status store_pack(struct store *store, const struct store_chunk *chunks, size_t count,
                       int level, struct evidence *evidence, struct store_place *place)
{
    return put(store, chunks, count, level, NULL, &store->pace, evidence, place);
}

void store_set_pace(struct store *store, int permille)
{
    atomic_store_explicit(&store->pace.permille, permille, memory_order_relaxed);
}

enum status store_roll(struct store *store, struct evidence *evidence, uint64_t *segment)
{
    *evidence = (struct evidence){0};
    if (store->read_only)
        return failed(evidence, EROFS);
    pthread_mutex_lock(&store->append_lock);
    store_retire_tail(store);
    *segment = store->next_number;
    pthread_mutex_unlock(&store->append_lock);
    return STATUS_OK;
}
