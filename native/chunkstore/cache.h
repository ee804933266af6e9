/*
 * Decompressed blocks, shared by readers. Of a large one there may be the beginning alone, as far
 * as somebody wanted it; who wants more goes on from there. What several threads miss at once is
 * loaded by the first; the others wait for it. The lock is never held while a block is loaded or
 * its memory given back.
 */
#ifndef AGENTFS_CACHE_H
#define AGENTFS_CACHE_H

#include <pthread.h>

#include "lru.h"
#include "status.h"

enum cached_state {
    CACHED_LOADING, /* for the first time, or more of it */
    CACHED_READY,
    CACHED_FAILED,
};

/* What a loader makes of a block, and goes on with: nobody else's while CACHED_LOADING. */
struct cached_bytes {
    uint8_t *raw;          /* owned; what is loaded of it never changes */
    uint32_t raw_bytes;    /* of the whole block */
    uint32_t loaded_bytes; /* from its beginning on */
    uint64_t memory_bytes; /* that all of this takes */
    void *rest;            /* owned; what the others are made of; NULL: there are none */
};

struct cached_block {
    struct lru_node node;     /* guarded by the cache's lock; first, so that a node is a block */
    enum cached_state state;  /* guarded by the cache's lock */
    enum status status;       /* guarded by the cache's lock; of the last loading */
    struct evidence evidence; /* likewise */
    uint32_t ready_bytes;     /* guarded by the cache's lock: what readers may look at */
    uint64_t counted_bytes;   /* guarded by the cache's lock: of the cache's bytes */
    struct cached_bytes bytes;
    struct cached_block *next; /* among the buried; guarded by the cache's lock */
};

/* How blocks are had. Both are called without the cache's lock. */
struct cache_source {
    void *context;
    /*
     * Loads bytes up to end, or all if there are fewer, into what is zeros at first; or fills
     * evidence and leaves bytes in a state for unload.
     */
    enum status (*load)(void *context, uint64_t segment, uint64_t offset, uint32_t end,
                        struct evidence *evidence, struct cached_bytes *bytes);
    /* Frees what load has made. */
    void (*unload)(void *context, struct cached_bytes *bytes);
};

struct block_cache {
    pthread_mutex_t lock;
    pthread_cond_t loaded;
    struct cache_source source;
    uint64_t limit_bytes;        /* guarded by lock */
    struct lru blocks;           /* guarded by lock */
    struct cached_block *buried; /* guarded by lock; owned: to be unloaded when it is given up */
    uint64_t bytes;              /* guarded by lock: memory of what is loaded and in the table */
    uint64_t hits;               /* guarded by lock */
    uint64_t misses;             /* guarded by lock */
};

bool cache_init(struct block_cache *cache, uint64_t limit_bytes, const struct cache_source *source);

/* Every reference must have been given back. */
void cache_free(struct block_cache *cache);

/*
 * Takes a reference when it returns STATUS_OK: then the block is there up to end, or as far as it
 * goes. With cached_only: STATUS_NOT_CACHED rather than wait.
 */
enum status cache_get(struct block_cache *cache, uint64_t segment, uint64_t offset, uint32_t end,
                      bool cached_only, struct evidence *evidence, struct cached_block **block);

/* Somebody reads a block without keeping it here. */
void cache_passed_by(struct block_cache *cache);

void cache_release(struct block_cache *cache, struct cached_block *block);

/* What is above the limit goes at once, but for blocks in use, which go when they are released. */
void cache_limit(struct block_cache *cache, uint64_t limit_bytes);

/* Forgets the blocks of one segment, or of all with segment 0. Who holds one keeps it. */
void cache_drop(struct block_cache *cache, uint64_t segment);

/* Forgets one block, in the same way. */
void cache_drop_block(struct block_cache *cache, uint64_t segment, uint64_t offset);

#endif
