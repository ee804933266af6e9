#define _GNU_SOURCE
#include "store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache.h"
#include "codec.h"
#include "files.h"
#include "io.h"

enum { IDLE_FILES = 128 };

struct store {
    int directory; /* owned; a writer holds flock on it */
    bool read_only;
    uint64_t segment_bytes;
    struct segment_files files;
    struct block_cache cache;
    struct codec_pool codecs;
    struct pace pace;

    pthread_mutex_t sync_lock; /* held through a whole sync or remove */

    pthread_mutex_t append_lock;
    struct segment_file
        *tail;            /* guarded by append_lock; a reference; NULL: the next put starts one */
    uint64_t tail_end;    /* guarded by append_lock */
    uint64_t next_number; /* guarded by append_lock */
    struct segment_file
        *dirty;           /* guarded by append_lock; references; appended to since the last sync */
    bool directory_dirty; /* guarded by append_lock; a segment was created since the last sync */
    struct segment_file *failed; /* guarded by append_lock; references; their fdatasync failed */
    int failed_error;            /* guarded by append_lock; errno of the first of failed */
    int directory_error; /* guarded by append_lock; errno of a failed fsync of the directory */

    atomic_uint_fast64_t bytes_put;
    atomic_uint_fast64_t raw_bytes_put;
    atomic_uint_fast64_t bytes_read;
    atomic_uint_fast64_t blocks_put;
};

static enum status failed(struct evidence *evidence, int error)
{
    evidence->error = error;
    return STATUS_ERRNO;
}

/* --- opening ------------------------------------------------------------------------------- */

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

/* --- appending ----------------------------------------------------------------------------- */

/* append_lock is held. The tail gets no more blocks. */
static void retire_tail(struct store *store)
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

/* append_lock is held. */
static enum status start_segment(struct store *store, struct evidence *evidence)
{
    struct segment_file *file;

    retire_tail(store);
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
        retire_tail(store);
    if (store->tail == NULL) {
        status = start_segment(store, evidence);
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
            retire_tail(store); /* a torn block stays behind: nothing may follow it */
        return STATUS_ERRNO;
    }
    store->tail_end += size;
    mark_dirty(store);
    *place = (struct store_place){number, offset, (uint32_t)size};
    return STATUS_OK;
}

/* One chunk is compressed where it is, several are gathered first. */
static enum status gather(struct codec *codec, const struct store_chunk *chunks, size_t count,
                          const uint8_t **raw, size_t *raw_bytes)
{
    size_t total = 0;
    for (size_t i = 0; i < count; i++) {
        if (chunks[i].size > BLOCK_RAW_MAX - total)
            return STATUS_TOO_LARGE;
        total += chunks[i].size;
    }
    *raw_bytes = total;
    if (count == 1) {
        *raw = chunks[0].bytes;
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
                       int level, const struct pace *pace, struct evidence *evidence,
                       struct store_place *place)
{
    struct block_header header = {.chunks = (uint32_t)count};
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
        status = codec_compress(codec, raw, raw_bytes, level, pace, &header, &payload);
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
                      int level, struct evidence *evidence, struct store_place *place)
{
    return put(store, chunks, count, level, NULL, evidence, place);
}

enum status store_pack(struct store *store, const struct store_chunk *chunks, size_t count,
                       int level, struct evidence *evidence, struct store_place *place)
{
    return put(store, chunks, count, level, &store->pace, evidence, place);
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
    retire_tail(store);
    *segment = store->next_number;
    pthread_mutex_unlock(&store->append_lock);
    return STATUS_OK;
}

/* --- durability ---------------------------------------------------------------------------- */

/* Takes over the reference. */
static void file_failed(struct store *store, struct segment_file *file, int error)
{
    pthread_mutex_lock(&store->append_lock);
    if (store->tail == file)
        retire_tail(store);
    /* A put may have marked it dirty since; then the list to sync holds a reference of its own. */
    if (file->dirty) {
        struct segment_file **at = &store->dirty;
        while (*at != file)
            at = &(*at)->next;
        *at = file->next;
        files_release(&store->files, file);
    }
    file->dirty = true; /* stays so: it never goes on the list to sync again */
    file->next = store->failed;
    store->failed = file;
    if (store->failed_error == 0)
        store->failed_error = error;
    pthread_mutex_unlock(&store->append_lock);
}

/* sync_lock is held: whoever waited for it has its blocks in the list taken here or in an earlier
 * one. */
static enum status sync_locked(struct store *store, struct evidence *evidence)
{
    pthread_mutex_lock(&store->append_lock);
    struct segment_file *list = store->dirty;
    bool directory_dirty = store->directory_dirty;
    size_t count = 0;
    for (struct segment_file *file = list; file; file = file->next)
        count++;
    struct segment_file **files = malloc((count ? count : 1) * sizeof *files);
    if (files) {
        count = 0;
        for (struct segment_file *file = list; file; file = file->next) {
            files[count++] = file;
            file->dirty = false;
        }
        store->dirty = NULL;
        store->directory_dirty = false;
    }
    pthread_mutex_unlock(&store->append_lock);
    if (files == NULL)
        return STATUS_NO_MEMORY;

    for (size_t i = 0; i < count; i++) {
        if (fdatasync(files[i]->fd) != 0)
            file_failed(store, files[i], errno);
        else
            files_release(&store->files, files[i]);
    }
    free(files);
    int error = directory_dirty && fsync(store->directory) != 0 ? errno : 0;

    enum status status = STATUS_OK;
    pthread_mutex_lock(&store->append_lock);
    if (store->directory_error == 0)
        store->directory_error = error;
    if (store->failed) {
        evidence->segment = store->failed->number;
        status = failed(evidence, store->failed_error);
    } else if (store->directory_error) {
        status = failed(evidence, store->directory_error);
    }
    pthread_mutex_unlock(&store->append_lock);
    return status;
}

enum status store_sync(struct store *store, struct evidence *evidence)
{
    *evidence = (struct evidence){0};
    if (store->read_only)
        return failed(evidence, EROFS);
    pthread_mutex_lock(&store->sync_lock);
    enum status status = sync_locked(store, evidence);
    pthread_mutex_unlock(&store->sync_lock);
    return status;
}

/* append_lock is held. Takes the segment off a list and gives its reference back. */
static void drop_from(struct store *store, struct segment_file **list, uint64_t number)
{
    for (struct segment_file **at = list; *at; at = &(*at)->next) {
        struct segment_file *file = *at;
        if (file->number == number) {
            *at = file->next;
            files_release(&store->files, file);
            return;
        }
    }
}

/* sync_lock is held. A number must not come again, so the highest file goes only behind a higher
 * one. */
static enum status detach(struct store *store, uint64_t number, struct evidence *evidence)
{
    enum status status = STATUS_OK;

    pthread_mutex_lock(&store->append_lock);
    bool highest = number + 1 == store->next_number;
    if (highest)
        status = start_segment(store, evidence);
    pthread_mutex_unlock(&store->append_lock);
    if (highest && status == STATUS_OK)
        status = fsync(store->directory) == 0 ? STATUS_OK : failed(evidence, errno);
    return status;
}

static enum status remove_locked(struct store *store, uint64_t number, struct evidence *evidence)
{
    char name[FILES_NAME_BYTES];
    struct stat facts;

    files_name(number, name);
    if (fstatat(store->directory, name, &facts, AT_SYMLINK_NOFOLLOW) != 0)
        return failed(evidence, errno);
    enum status status = detach(store, number, evidence);
    if (status != STATUS_OK)
        return status;
    if (unlinkat(store->directory, name, 0) != 0)
        return failed(evidence, errno);

    pthread_mutex_lock(&store->append_lock);
    drop_from(store, &store->dirty, number);
    drop_from(store, &store->failed, number);
    if (store->failed == NULL)
        store->failed_error = 0;
    store->directory_dirty = true;
    pthread_mutex_unlock(&store->append_lock);
    files_forget(&store->files, number);
    cache_drop(&store->cache, number);
    return STATUS_OK;
}

enum status store_remove(struct store *store, uint64_t number, struct evidence *evidence)
{
    *evidence = (struct evidence){.segment = number};
    if (store->read_only)
        return failed(evidence, EROFS);
    pthread_mutex_lock(&store->sync_lock);
    enum status status = remove_locked(store, number, evidence);
    pthread_mutex_unlock(&store->sync_lock);
    return status;
}

/* --- reading ------------------------------------------------------------------------------- */

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
    status = codec_decompress(codec, &header, payload, bytes);
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
    struct codec *codec;
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
    enum status status = codec_decompress(codec, header, payload, codec->raw.bytes);
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
    struct verification verification = {codec_borrow(&store->codecs), 0};
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
