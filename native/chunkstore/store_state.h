/*
 * What the files of the store share.
 */
#ifndef AGENTFS_STORE_STATE_H
#define AGENTFS_STORE_STATE_H

#include <stdatomic.h>

#include "cache.h"
#include "codec.h"
#include "dictionary.h"
#include "files.h"
#include "store.h"

struct store {
    int directory; /* owned; a writer holds flock on it */
    bool read_only;
    uint64_t segment_bytes;
    struct segment_files files;
    struct block_cache cache;
    struct codec_pool codecs;
    struct codec_pool readers; /* codecs that only decompress: blocks in the cache may keep one */
    struct dictionaries dictionaries;
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

static inline enum status failed(struct evidence *evidence, int error)
{
    evidence->error = error;
    return STATUS_ERRNO;
}

/* How the cache has blocks; its context is the store. */
enum status store_load_ahead(void *context, uint64_t segment, uint64_t offset, uint32_t end,
                             struct evidence *evidence, struct cached_bytes *bytes);
void store_unload_block(void *context, struct cached_bytes *bytes);

/* append_lock is held. The tail gets no more blocks. */
void store_retire_tail(struct store *store);

/* append_lock is held. */
enum status store_start_segment(struct store *store, struct evidence *evidence);

#endif
