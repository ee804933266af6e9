#include "cache.h"

#include <errno.h>

#include "check.h"

enum { BLOCK = 1000 };

static struct block_cache cache;
static struct evidence evidence;

static enum status load_bytes(void *context, uint64_t segment, uint64_t offset,
                              struct evidence *where, uint8_t **raw, uint32_t *raw_bytes)
{
    struct cached_block *block;
    (void)context;
    (void)where;
    /* Who only looks does not wait for us, and leaves nothing behind. */
    CHECK(cache_get(&cache, segment, offset, NULL, NULL, &evidence, &block) == STATUS_NOT_CACHED);
    *raw = calloc(1, BLOCK);
    *raw_bytes = BLOCK;
    CHECK(*raw != NULL);
    return STATUS_OK;
}

static enum status load_nothing(void *context, uint64_t segment, uint64_t offset,
                                struct evidence *where, uint8_t **raw, uint32_t *raw_bytes)
{
    (void)context;
    (void)raw;
    (void)raw_bytes;
    *where = (struct evidence){EIO, segment, offset};
    return STATUS_ERRNO;
}

/* The segment is removed while its block is loading. */
static enum status load_dropped(void *context, uint64_t segment, uint64_t offset,
                                struct evidence *where, uint8_t **raw, uint32_t *raw_bytes)
{
    cache_drop(&cache, segment);
    return load_bytes(context, segment, offset, where, raw, raw_bytes);
}

static void a_look_at_a_loading_block_keeps_no_reference(void)
{
    struct cached_block *block;
    CHECK(cache_init(&cache, 10 * BLOCK));
    CHECK(cache_get(&cache, 1, 32, NULL, NULL, &evidence, &block) == STATUS_NOT_CACHED);
    CHECK(cache_get(&cache, 1, 32, load_bytes, NULL, &evidence, &block) == STATUS_OK);
    cache_release(&cache, block);
    CHECK(cache_get(&cache, 1, 32, NULL, NULL, &evidence, &block) == STATUS_OK);
    cache_release(&cache, block);
    CHECK(cache.bytes == BLOCK && block->node.refs == 0);
    cache_drop(&cache, 1);
    CHECK(cache.bytes == 0 && cache.blocks.count == 0);
    cache_free(&cache);
}

static void a_failure_is_not_cached(void)
{
    struct cached_block *block;
    CHECK(cache_init(&cache, 10 * BLOCK));
    CHECK(cache_get(&cache, 1, 32, load_nothing, NULL, &evidence, &block) == STATUS_ERRNO);
    CHECK(evidence.error == EIO && evidence.segment == 1 && evidence.offset == 32);
    CHECK(cache.blocks.count == 0);
    CHECK(cache_get(&cache, 1, 32, load_bytes, NULL, &evidence, &block) == STATUS_OK);
    cache_release(&cache, block);
    cache_free(&cache);
}

static void a_block_dropped_while_loading_serves_its_reader_only(void)
{
    struct cached_block *block;
    CHECK(cache_init(&cache, 10 * BLOCK));
    CHECK(cache_get(&cache, 1, 32, load_dropped, NULL, &evidence, &block) == STATUS_OK);
    CHECK(block->raw_bytes == BLOCK && cache.bytes == 0 && cache.blocks.count == 0);
    cache_release(&cache, block);
    cache_free(&cache);
}

static void a_lower_limit_holds_at_once_and_for_blocks_in_use_later(void)
{
    struct cached_block *block, *used;
    CHECK(cache_init(&cache, 10 * BLOCK));
    CHECK(cache_get(&cache, 1, 1, load_bytes, NULL, &evidence, &used) == STATUS_OK);
    for (uint64_t offset = 2; offset <= 10; offset++) {
        CHECK(cache_get(&cache, 1, offset, load_bytes, NULL, &evidence, &block) == STATUS_OK);
        cache_release(&cache, block);
    }
    cache_limit(&cache, 3 * BLOCK);
    CHECK(cache.bytes == 3 * BLOCK && cache.blocks.count == 3);
    CHECK(cache_get(&cache, 1, 10, NULL, NULL, &evidence, &block) == STATUS_OK);
    cache_release(&cache, block);
    cache_limit(&cache, 0);
    CHECK(cache.bytes == BLOCK && used->raw != NULL);
    cache_release(&cache, used);
    CHECK(cache.bytes == 0 && cache.blocks.count == 0);
    cache_limit(&cache, BLOCK);
    CHECK(cache_get(&cache, 1, 1, load_bytes, NULL, &evidence, &block) == STATUS_OK);
    cache_release(&cache, block);
    CHECK(cache.bytes == BLOCK);
    cache_free(&cache);
}

int main(void)
{
    RUN(a_look_at_a_loading_block_keeps_no_reference);
    RUN(a_failure_is_not_cached);
    RUN(a_block_dropped_while_loading_serves_its_reader_only);
    RUN(a_lower_limit_holds_at_once_and_for_blocks_in_use_later);
    return 0;
}
