#define _GNU_SOURCE
#include "store_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <unistd.h>

enum { IDLE_FILES = 128 };

enum status store_segments(struct store *store, struct evidence *evidence,
                           struct store_segment **segments, size_t *count)
{
    return files_list(store->directory, SEGMENT_SUFFIX, evidence, segments, count);
}

/* Continues the last segment if it is small and clean. Whatever is wrong with it is left for others
 * to report. */
static enum status adopt_tail(struct store *store, const struct store_segment *last,
                              struct evidence *evidence)
{
    struct buffer scratch = {0};
    struct segment_file *file;

    if (last->file_bytes >= store->segment_bytes)
        return STATUS_OK;
    enum status status = files_open_tail(&store->files, last->number, evidence, &file);
    if (status != STATUS_OK)
        return status == STATUS_NO_MEMORY ? status : STATUS_OK;

    struct segment_view view = {file->fd, last->number, last->file_bytes};
    status = segment_walk(&view, &scratch, NULL, NULL, evidence);
    buffer_free(&scratch);
    if (status != STATUS_OK) {
        files_release(&store->files, file);
        return status == STATUS_NO_MEMORY ? status : STATUS_OK;
    }
    store->tail = file;
    store->tail_end = last->file_bytes;
    /* Whoever created it may have been killed before its sync. */
    store->directory_dirty = true;
    return STATUS_OK;
}

static enum status find_tail(struct store *store, struct evidence *evidence)
{
    struct store_segment *segments;
    size_t count;

    enum status status = store_segments(store, evidence, &segments, &count);
    if (status != STATUS_OK)
        return status;
    store->next_number = 1;
    if (count > 0) {
        store->next_number = segments[count - 1].number + 1;
        status = adopt_tail(store, &segments[count - 1], evidence);
    }
    free(segments);
    return status;
}

enum status store_open(const char *directory, const struct store_options *options,
                       struct evidence *evidence, struct store **opened)
{
    enum status status = STATUS_NO_MEMORY;

    *evidence = (struct evidence){0};
    struct store *store = calloc(1, sizeof *store);
    if (store == NULL)
        return STATUS_NO_MEMORY;
    struct cache_source source = {store, store_load_ahead, store_unload_block};
    store->read_only = options->read_only;
    store->segment_bytes = options->segment_bytes;
    store->directory = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (store->directory < 0) {
        status = failed(evidence, errno);
        goto free_store;
    }
    if (!store->read_only && flock(store->directory, LOCK_EX | LOCK_NB) != 0) {
        status = failed(evidence, errno);
        goto close_directory;
    }
    if (!cache_init(&store->cache, options->cache_bytes, &source))
        goto close_directory;
    if (!files_init(&store->files, store->directory, IDLE_FILES))
        goto free_cache;
    codec_pool_init(&store->codecs);
    codec_pool_init(&store->readers);
    if (!dictionaries_init(&store->dictionaries, store->directory, store->read_only,
                           &store->codecs))
        goto free_files;
    store_set_pace(store, PACE_FULL);
    pthread_mutex_init(&store->sync_lock, NULL);
    pthread_mutex_init(&store->append_lock, NULL);
    if (!store->read_only) {
        status = find_tail(store, evidence);
        if (status != STATUS_OK)
            goto free_locks;
    }
    *opened = store;
    return STATUS_OK;

free_locks:
    pthread_mutex_destroy(&store->append_lock);
    pthread_mutex_destroy(&store->sync_lock);
    dictionaries_free(&store->dictionaries);
free_files:
    codec_pool_free(&store->readers);
    codec_pool_free(&store->codecs);
    files_free(&store->files);
free_cache:
    cache_free(&store->cache);
close_directory:
    close(store->directory);
free_store:
    free(store);
    return status;
}

static void release_list(struct store *store, struct segment_file *list)
{
    while (list) {
        struct segment_file *next = list->next;
        files_release(&store->files, list);
        list = next;
    }
}

void store_close(struct store *store)
{
    release_list(store, store->dirty);
    release_list(store, store->failed);
    if (store->tail)
        files_release(&store->files, store->tail);
    pthread_mutex_destroy(&store->append_lock);
    pthread_mutex_destroy(&store->sync_lock);
    dictionaries_free(&store->dictionaries);
    cache_free(&store->cache);
    codec_pool_free(&store->readers);
    codec_pool_free(&store->codecs);
    files_free(&store->files);
    close(store->directory);
    free(store);
}

enum status store_dictionaries(struct store *store, struct evidence *evidence,
                               struct dictionary_facts **list, size_t *count)
{
    return dictionaries_check(&store->dictionaries, evidence, list, count);
}

enum status store_dictionary(struct store *store, uint32_t number, struct evidence *evidence,
                             uint8_t **bytes, size_t *size)
{
    *evidence = (struct evidence){0};
    return dictionaries_bytes(&store->dictionaries, number, evidence, bytes, size);
}

enum status store_add_dictionary(struct store *store, uint8_t kind, const uint8_t *bytes,
                                 size_t size, struct evidence *evidence, uint32_t *number)
{
    *evidence = (struct evidence){0};
    if (store->read_only)
        return failed(evidence, EROFS);
    return dictionaries_add(&store->dictionaries, kind, bytes, size, evidence, number);
}

enum status store_remove_dictionary(struct store *store, uint32_t number, struct evidence *evidence)
{
    *evidence = (struct evidence){0};
    if (store->read_only)
        return failed(evidence, EROFS);
    return dictionaries_remove(&store->dictionaries, number, evidence);
}

void store_drop_cache(struct store *store)
{
    cache_drop(&store->cache, 0);
}

void store_drop_pieces(struct store *store, const struct store_piece *pieces, size_t count)
{
    for (size_t i = 0; i < count; i++)
        cache_drop_block(&store->cache, pieces[i].segment, pieces[i].offset);
}

void store_give_back(struct store *store)
{
    codec_pool_drop(&store->codecs);
    codec_pool_drop(&store->readers);
}

void store_limit_cache(struct store *store, uint64_t cache_bytes)
{
    cache_limit(&store->cache, cache_bytes);
}

void store_stats(struct store *store, struct store_stats *stats)
{
    pthread_mutex_lock(&store->cache.lock);
    *stats = (struct store_stats){
        .cache_hits = store->cache.hits,
        .cache_misses = store->cache.misses,
        .cache_bytes = store->cache.bytes,
    };
    pthread_mutex_unlock(&store->cache.lock);
    stats->bytes_put = atomic_load_explicit(&store->bytes_put, memory_order_relaxed);
    stats->raw_bytes_put = atomic_load_explicit(&store->raw_bytes_put, memory_order_relaxed);
    stats->bytes_read = atomic_load_explicit(&store->bytes_read, memory_order_relaxed);
    stats->blocks_put = atomic_load_explicit(&store->blocks_put, memory_order_relaxed);
}
