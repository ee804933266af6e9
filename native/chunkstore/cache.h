/*
 * Decompressed blocks, shared by readers. A block that several threads miss at once is loaded by
 * the first; the others wait for it. The lock is never held while a block is loaded.
 */
#ifndef AGENTFS_CACHE_H
#define AGENTFS_CACHE_H

#include <pthread.h>

#include "lru.h"
#include "status.h"

enum cached_state {
    CACHED_LOADING,
    CACHED_READY,
    CACHED_FAILED,
};

struct cached_block {
    struct lru_node node;     /* guarded by the cache's lock; first, so that a node is a block */
    enum cached_state state;  /* guarded by the cache's lock */
    enum status status;       /* written by the loader before state leaves CACHED_LOADING */
    struct evidence evidence; /* likewise */
    uint8_t *raw;             /* likewise; owned; never changes once ready */
    uint32_t raw_bytes;       /* likewise */
};

struct block_cache {
    pthread_mutex_t lock;
    pthread_cond_t loaded;
    uint64_t limit_bytes; /* guarded by lock */
    struct lru blocks;    /* guarded by lock */
    uint64_t bytes;       /* guarded by lock: raw bytes of the ready blocks that are in the table */
    uint64_t hits;        /* guarded by lock */
    uint64_t misses;      /* guarded by lock */
};

/* Fills raw (malloc) and raw_bytes, or evidence. Called without the lock. */
typedef enum status cache_load(void *context, uint64_t segment, uint64_t offset,
                               struct evidence *evidence, uint8_t **raw, uint32_t *raw_bytes);

bool cache_init(struct block_cache *cache, uint64_t limit_bytes);

/* Every reference must have been given back. */
void cache_free(struct block_cache *cache);

/* Takes a reference when it returns STATUS_OK. Without load: STATUS_NOT_CACHED rather than wait. */
enum status cache_get(struct block_cache *cache, uint64_t segment, uint64_t offset,
                      cache_load *load, void *context, struct evidence *evidence,
                      struct cached_block **block);

/* Somebody reads a block without keeping it here. */
void cache_passed_by(struct block_cache *cache);

void cache_release(struct block_cache *cache, struct cached_block *block);

/* What is above the limit goes at once, but for blocks in use, which go when they are released. */
void cache_limit(struct block_cache *cache, uint64_t limit_bytes);

/* Forgets the blocks of one segment, or of all with segment 0. Who holds one keeps it. */
void cache_drop(struct block_cache *cache, uint64_t segment);

#endif
