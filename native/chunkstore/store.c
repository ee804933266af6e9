#define _GNU_SOURCE
#include "store_state.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { IDLE_FILES = 128 };

static int by_number(const void *left, const void *right)
{
    const struct store_segment *a = left;
    const struct store_segment *b = right;
    return (a->number > b->number) - (a->number < b->number);
}

/* Opens the directory anew: dup() would share the position of the listing with other threads. */
static DIR *open_listing(int directory)
{
    int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return NULL;
    DIR *listing = fdopendir(fd);
    if (listing == NULL)
        close(fd);
    return listing;
}

enum status store_segments(struct store *store, struct evidence *evidence,
                           struct store_segment **segments, size_t *count)
{
    enum status status = STATUS_OK;
    struct store_segment *list = NULL;
    size_t used = 0;
    size_t room = 0;

    *evidence = (struct evidence){0};
    DIR *listing = open_listing(store->directory);
    if (listing == NULL)
        return failed(evidence, errno);
    for (;;) {
        errno = 0;
        struct dirent *entry = readdir(listing);
        if (entry == NULL) {
            if (errno)
                status = failed(evidence, errno);
            break;
        }
        struct stat facts;
        uint64_t number = files_number(entry->d_name);
        if (number == 0)
            continue;
        if (fstatat(store->directory, entry->d_name, &facts, AT_SYMLINK_NOFOLLOW) != 0) {
            if (errno == ENOENT) /* removed since */
                continue;
            status = failed(evidence, errno);
            break;
        }
        if (!S_ISREG(facts.st_mode))
            continue;
        if (used == room) {
            room = room ? 2 * room : 64;
            struct store_segment *grown = realloc(list, room * sizeof *list);
            if (grown == NULL) {
                status = STATUS_NO_MEMORY;
                break;
            }
            list = grown;
        }
        list[used++] = (struct store_segment){number, (uint64_t)facts.st_size};
    }
    closedir(listing);
    if (status != STATUS_OK) {
        free(list);
        return status;
    }
    if (used > 1)
        qsort(list, used, sizeof *list, by_number);
    *segments = list;
    *count = used;
    return STATUS_OK;
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
    if (!cache_init(&store->cache, options->cache_bytes))
        goto close_directory;
    if (!files_init(&store->files, store->directory, IDLE_FILES))
        goto free_cache;
    codec_pool_init(&store->codecs);
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
    codec_pool_free(&store->codecs);
    files_free(&store->files);
    cache_free(&store->cache);
    close(store->directory);
    free(store);
}

void store_drop_cache(struct store *store)
{
    cache_drop(&store->cache, 0);
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
