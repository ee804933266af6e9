#include "cache.h"

#include <stdlib.h>

/* Only a guess for the number of hash buckets. */
enum { TYPICAL_BLOCK_BYTES = 64 << 10 };

bool cache_init(struct block_cache *cache, uint64_t limit_bytes, const struct cache_source *source)
{
    *cache = (struct block_cache){.limit_bytes = limit_bytes, .source = *source};
    if (!lru_init(&cache->blocks, limit_bytes / TYPICAL_BLOCK_BYTES))
        return false;
    pthread_mutex_init(&cache->lock, NULL);
    pthread_cond_init(&cache->loaded, NULL);
    return true;
}

/* The lock is held, and given up: then what was buried under it is unloaded. */
static void unlock(struct block_cache *cache)
{
    struct cached_block *buried = cache->buried;
    cache->buried = NULL;
    pthread_mutex_unlock(&cache->lock);
    while (buried) {
        struct cached_block *block = buried;
        buried = block->next;
        cache->source.unload(cache->source.context, &block->bytes);
        free(block);
    }
}

/* The lock is held. Nobody has the block, and nobody can find it. */
static void bury_locked(struct block_cache *cache, struct cached_block *block)
{
    block->next = cache->buried;
    cache->buried = block;
}

/* The lock is held. Takes the block out of the table and of the account. */
static void unlink_locked(struct block_cache *cache, struct cached_block *block)
{
    cache->bytes -= block->counted_bytes;
    block->counted_bytes = 0;
    if (lru_unlink(&cache->blocks, &block->node))
        bury_locked(cache, block);
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
        bury_locked(cache, block);
    evict_locked(cache);
}

void cache_free(struct block_cache *cache)
{
    cache_drop(cache, 0);
    lru_free(&cache->blocks);
    pthread_cond_destroy(&cache->loaded);
    pthread_mutex_destroy(&cache->lock);
}

/* The lock is held. */
static bool reaches(const struct cached_block *block, uint32_t end)
{
    /* Once some of it is ready, nobody writes raw_bytes any more. */
    return block->ready_bytes > 0 &&
           (block->ready_bytes >= end || block->ready_bytes == block->bytes.raw_bytes);
}

/* The lock is held, and let go while loading. The block is ours to load. */
static void load_locked(struct block_cache *cache, struct cached_block *block, uint32_t end)
{
    struct evidence evidence = {0};

    cache->misses++;
    block->state = CACHED_LOADING;
    pthread_mutex_unlock(&cache->lock);
    enum status status = cache->source.load(cache->source.context, block->node.high,
                                            block->node.low, end, &evidence, &block->bytes);
    pthread_mutex_lock(&cache->lock);
    block->status = status;
    block->evidence = evidence;
    block->state = status == STATUS_OK ? CACHED_READY : CACHED_FAILED;
    if (status == STATUS_OK) {
        block->ready_bytes = block->bytes.loaded_bytes;
        if (block->node.linked) {
            cache->bytes += block->bytes.memory_bytes - block->counted_bytes;
            block->counted_bytes = block->bytes.memory_bytes;
        }
    } else if (block->node.linked) {
        unlink_locked(cache, block); /* not cached: the next reader tries again */
    }
    pthread_cond_broadcast(&cache->loaded);
}

enum status cache_get(struct block_cache *cache, uint64_t segment, uint64_t offset, uint32_t end,
                      bool cached_only, struct evidence *evidence, struct cached_block **found)
{
    pthread_mutex_lock(&cache->lock);
    struct cached_block *block = (struct cached_block *)lru_find(&cache->blocks, segment, offset);
    if (cached_only && (block == NULL || !reaches(block, end))) {
        if (block)
            release_locked(cache, block);
        unlock(cache);
        return STATUS_NOT_CACHED;
    }
    if (block == NULL) {
        block = calloc(1, sizeof *block);
        if (block == NULL) {
            unlock(cache);
            return STATUS_NO_MEMORY;
        }
        lru_insert(&cache->blocks, &block->node, segment, offset);
        load_locked(cache, block, end);
    } else if (reaches(block, end) || block->state == CACHED_LOADING) {
        cache->hits++;
    }
    while (block->state != CACHED_FAILED && !reaches(block, end)) {
        if (block->state == CACHED_READY)
            load_locked(cache, block, end);
        else
            pthread_cond_wait(&cache->loaded, &cache->lock);
    }
    enum status status = reaches(block, end) ? STATUS_OK : block->status;
    if (status == STATUS_OK) {
        *found = block;
    } else {
        *evidence = block->evidence;
        release_locked(cache, block);
    }
    unlock(cache);
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
    unlock(cache);
}

void cache_limit(struct block_cache *cache, uint64_t limit_bytes)
{
    pthread_mutex_lock(&cache->lock);
    cache->limit_bytes = limit_bytes;
    evict_locked(cache);
    unlock(cache);
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
    unlock(cache);
}

void cache_drop_block(struct block_cache *cache, uint64_t segment, uint64_t offset)
{
    pthread_mutex_lock(&cache->lock);
    struct cached_block *block = (struct cached_block *)lru_find(&cache->blocks, segment, offset);
    if (block) {
        unlink_locked(cache, block);
        release_locked(cache, block);
    }
    unlock(cache);
}
