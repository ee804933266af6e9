#include "cache.h"

#include <stdlib.h>

/* Only a guess for the number of hash buckets. */
enum { TYPICAL_BLOCK_BYTES = 64 << 10 };

bool cache_init(struct block_cache *cache, uint64_t limit_bytes)
{
    *cache = (struct block_cache){.limit_bytes = limit_bytes};
    if (!lru_init(&cache->blocks, limit_bytes / TYPICAL_BLOCK_BYTES))
        return false;
    pthread_mutex_init(&cache->lock, NULL);
    pthread_cond_init(&cache->loaded, NULL);
    return true;
}

static void block_free(struct cached_block *block)
{
    free(block->raw);
    free(block);
}

/* The lock is held. Takes the block out of the table and of the account. */
static void unlink_locked(struct block_cache *cache, struct cached_block *block)
{
    if (block->state == CACHED_READY)
        cache->bytes -= block->raw_bytes;
    if (lru_unlink(&cache->blocks, &block->node))
        block_free(block);
}

/* The lock is held. */
static void evict_locked(struct block_cache *cache)
{
    struct lru_node *oldest;
    while (cache->bytes > cache->limit_bytes && (oldest = lru_oldest(&cache->blocks)))
        unlink_locked(cache, (struct cached_block *)oldest);
}

/* The lock is held. */
static void release_locked(struct block_cache *cache, struct cached_block *block)
{
    if (lru_release(&cache->blocks, &block->node))
        block_free(block);
    evict_locked(cache);
}

void cache_free(struct block_cache *cache)
{
    cache_drop(cache, 0);
    lru_free(&cache->blocks);
    pthread_cond_destroy(&cache->loaded);
    pthread_mutex_destroy(&cache->lock);
}

/* Another thread has the block or is loading it. The lock is held, and let go while waiting. */
static enum status wait_locked(struct block_cache *cache, struct cached_block *block,
                               struct evidence *evidence)
{
    while (block->state == CACHED_LOADING)
        pthread_cond_wait(&cache->loaded, &cache->lock);
    enum status status = block->status;
    if (status != STATUS_OK) {
        *evidence = block->evidence;
        release_locked(cache, block);
    }
    return status;
}

enum status cache_get(struct block_cache *cache, uint64_t segment, uint64_t offset,
                      cache_load *load, void *context, struct evidence *evidence,
                      struct cached_block **block)
{
    enum status status;

    pthread_mutex_lock(&cache->lock);
    struct lru_node *node = lru_find(&cache->blocks, segment, offset);
    if (load == NULL && (node == NULL || ((struct cached_block *)node)->state != CACHED_READY)) {
        if (node)
            release_locked(cache, (struct cached_block *)node);
        pthread_mutex_unlock(&cache->lock);
        return STATUS_NOT_CACHED;
    }
    if (node) {
        *block = (struct cached_block *)node;
        cache->hits++;
        status = wait_locked(cache, *block, evidence);
        pthread_mutex_unlock(&cache->lock);
        return status;
    }
    cache->misses++;
    struct cached_block *fresh = calloc(1, sizeof *fresh);
    if (fresh)
        lru_insert(&cache->blocks, &fresh->node, segment, offset);
    pthread_mutex_unlock(&cache->lock);
    if (fresh == NULL)
        return STATUS_NO_MEMORY;

    status = load(context, segment, offset, &fresh->evidence, &fresh->raw, &fresh->raw_bytes);

    pthread_mutex_lock(&cache->lock);
    fresh->status = status;
    if (status == STATUS_OK) {
        fresh->state = CACHED_READY;
        if (fresh->node.linked)
            cache->bytes += fresh->raw_bytes;
        *block = fresh;
    } else {
        fresh->state = CACHED_FAILED; /* not cached: the next reader tries again */
        *evidence = fresh->evidence;
        if (fresh->node.linked)
            unlink_locked(cache, fresh);
        release_locked(cache, fresh);
    }
    pthread_cond_broadcast(&cache->loaded);
    pthread_mutex_unlock(&cache->lock);
    return status;
}

void cache_passed_by(struct block_cache *cache)
{
    pthread_mutex_lock(&cache->lock);
    cache->misses++;
    pthread_mutex_unlock(&cache->lock);
}

void cache_release(struct block_cache *cache, struct cached_block *block)
{
    pthread_mutex_lock(&cache->lock);
    release_locked(cache, block);
    pthread_mutex_unlock(&cache->lock);
}

void cache_limit(struct block_cache *cache, uint64_t limit_bytes)
{
    pthread_mutex_lock(&cache->lock);
    cache->limit_bytes = limit_bytes;
    evict_locked(cache);
    pthread_mutex_unlock(&cache->lock);
}

struct drop {
    struct block_cache *cache;
    uint64_t segment;
};

static void drop_node(struct lru_node *node, void *context)
{
    struct drop *drop = context;
    if (drop->segment == 0 || node->high == drop->segment)
        unlink_locked(drop->cache, (struct cached_block *)node);
}

void cache_drop(struct block_cache *cache, uint64_t segment)
{
    struct drop drop = {cache, segment};
    pthread_mutex_lock(&cache->lock);
    lru_each(&cache->blocks, drop_node, &drop);
    pthread_mutex_unlock(&cache->lock);
}
