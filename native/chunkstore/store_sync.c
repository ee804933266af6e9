/* What was appended made durable; removal of segments. */
#define _GNU_SOURCE
#include "store_state.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

/* Takes over the reference. */
static void file_failed(struct store *store, struct segment_file *file, int error)
{
    pthread_mutex_lock(&store->append_lock);
    if (store->tail == file)
        store_retire_tail(store);
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
        status = store_start_segment(store, evidence);
    pthread_mutex_unlock(&store->append_lock);
    if (highest && status == STATUS_OK)
        status = fsync(store->directory) == 0 ? STATUS_OK : failed(evidence, errno);
    return status;
}

static enum status remove_locked(struct store *store, uint64_t number, struct evidence *evidence)
{
    char name[FILES_NAME_BYTES];
    struct stat facts;

    files_name(number, SEGMENT_SUFFIX, name);
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
