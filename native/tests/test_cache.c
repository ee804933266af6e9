#include "cache.h"

#include <errno.h>
#include <stdlib.h>

#include "check.h"

enum { BLOCK = 1000 };

static struct block_cache cache;
static struct evidence evidence;

/* Half a block at least, in STEPs, with what takes REST until the whole is there. */
enum { STEP = BLOCK / 2, REST = 100 };

static int loads;
static int unloads;

/* Segments, each with a fault of its own. */
enum {
    GOOD = 1,
    DROPPED,   /* removed while its block is loading */
    ABSENT,    /* nothing can be loaded */
    HALF_LOST, /* the first half can */
};

static enum status load(void *context, uint64_t segment, uint64_t offset, uint32_t end,
                        struct evidence *where, struct cached_bytes *bytes)
{
    struct cached_block *block;
    (void)context;
    loads++;
    if (segment == DROPPED)
        cache_drop(&cache, segment);
    else /* who only looks does not wait for us, and leaves nothing behind */
        CHECK(cache_get(&cache, segment, offset, end, true, &evidence, &block) ==
              STATUS_NOT_CACHED);
    *where = (struct evidence){EIO, segment, offset};
    if (segment == ABSENT || (segment == HALF_LOST && end > STEP))
        return STATUS_ERRNO;
    if (bytes->raw == NULL) {
        bytes->raw = calloc(1, BLOCK);
        bytes->raw_bytes = BLOCK;
        bytes->rest = malloc(REST);
        CHECK(bytes->raw != NULL && bytes->rest != NULL);
    }
    while (bytes->loaded_bytes < end && bytes->loaded_bytes < BLOCK)
        bytes->loaded_bytes += STEP;
    bytes->memory_bytes = BLOCK;
    if (bytes->loaded_bytes == BLOCK) {
        free(bytes->rest);
        bytes->rest = NULL;
    } else {
        bytes->memory_bytes += REST;
    }
    return STATUS_OK;
}

static void unload(void *context, struct cached_bytes *bytes)
{
    (void)context;
    unloads++;
    free(bytes->raw);
    free(bytes->rest);
}

static void begin(void)
{
    struct cache_source source = {NULL, load, unload};
    loads = unloads = 0;
    CHECK(cache_init(&cache, 10 * BLOCK, &source));
}

static enum status get(uint64_t segment, uint64_t offset, uint32_t end, struct cached_block **block)
{
    return cache_get(&cache, segment, offset, end, false, &evidence, block);
}

static enum status look(uint64_t segment, uint64_t offset, uint32_t end)
{
    struct cached_block *block;
    enum status status = cache_get(&cache, segment, offset, end, true, &evidence, &block);
    if (status == STATUS_OK)
        cache_release(&cache, block);
    return status;
}

static void a_look_at_a_loading_block_keeps_no_reference(void)
{
    struct cached_block *block;
    begin();
    CHECK(look(GOOD, 32, BLOCK) == STATUS_NOT_CACHED);
    CHECK(get(GOOD, 32, BLOCK, &block) == STATUS_OK);
    cache_release(&cache, block);
    CHECK(look(GOOD, 32, BLOCK) == STATUS_OK);
    CHECK(cache.bytes == BLOCK && block->node.refs == 0);
    cache_drop(&cache, GOOD);
    CHECK(cache.bytes == 0 && cache.blocks.count == 0 && unloads == 1);
    cache_free(&cache);
}

static void a_failure_is_not_cached(void)
{
    struct cached_block *block;
    begin();
    CHECK(get(ABSENT, 32, BLOCK, &block) == STATUS_ERRNO);
    CHECK(evidence.error == EIO && evidence.segment == ABSENT && evidence.offset == 32);
    CHECK(cache.blocks.count == 0 && unloads == 1);
    CHECK(get(ABSENT, 32, BLOCK, &block) == STATUS_ERRNO && loads == 2);
    cache_free(&cache);
}

static void a_block_dropped_while_loading_serves_its_reader_only(void)
{
    struct cached_block *block;
    begin();
    CHECK(get(DROPPED, 32, BLOCK, &block) == STATUS_OK);
    CHECK(block->bytes.raw_bytes == BLOCK && cache.bytes == 0 && cache.blocks.count == 0);
    cache_release(&cache, block);
    CHECK(unloads == 1);
    cache_free(&cache);
}

static void a_block_is_loaded_no_further_than_somebody_wants_and_nothing_of_it_twice(void)
{
    struct cached_block *block;
    begin();
    CHECK(get(GOOD, 32, 1, &block) == STATUS_OK);
    CHECK(block->ready_bytes == STEP && cache.bytes == BLOCK + REST);
    cache_release(&cache, block);
    CHECK(look(GOOD, 32, STEP) == STATUS_OK && look(GOOD, 32, STEP + 1) == STATUS_NOT_CACHED);
    CHECK(get(GOOD, 32, STEP, &block) == STATUS_OK && loads == 1);
    cache_release(&cache, block);
    CHECK(get(GOOD, 32, STEP + 1, &block) == STATUS_OK && loads == 2);
    CHECK(block->ready_bytes == BLOCK && cache.bytes == BLOCK);
    cache_release(&cache, block);
    CHECK(get(GOOD, 32, 2 * BLOCK, &block) == STATUS_OK && loads == 2); /* there is no more */
    cache_release(&cache, block);
    CHECK(cache.hits == 3 && cache.misses == 2);
    cache_free(&cache);
    CHECK(unloads == 1);
}

static void a_block_whose_rest_is_lost_is_forgotten_and_who_has_its_beginning_keeps_it(void)
{
    struct cached_block *first, *block;
    begin();
    CHECK(get(HALF_LOST, 32, STEP, &first) == STATUS_OK);
    CHECK(get(HALF_LOST, 32, BLOCK, &block) == STATUS_ERRNO);
    CHECK(cache.blocks.count == 0 && cache.bytes == 0 && unloads == 0);
    CHECK(first->ready_bytes == STEP && first->bytes.raw[STEP - 1] == 0);
    CHECK(get(HALF_LOST, 32, STEP, &block) == STATUS_OK && block != first);
    cache_release(&cache, block);
    cache_release(&cache, first);
    CHECK(unloads == 1);
    cache_free(&cache);
    CHECK(unloads == 2);
}

static void a_lower_limit_holds_at_once_and_for_blocks_in_use_later(void)
{
    struct cached_block *block, *used;
    begin();
    CHECK(get(GOOD, 1, BLOCK, &used) == STATUS_OK);
    for (uint64_t offset = 2; offset <= 10; offset++) {
        CHECK(get(GOOD, offset, BLOCK, &block) == STATUS_OK);
        cache_release(&cache, block);
    }
    cache_limit(&cache, 3 * BLOCK);
    CHECK(cache.bytes == 3 * BLOCK && cache.blocks.count == 3);
    CHECK(look(GOOD, 10, BLOCK) == STATUS_OK);
    cache_limit(&cache, 0);
    CHECK(cache.bytes == BLOCK && used->bytes.raw != NULL);
    cache_release(&cache, used);
    CHECK(cache.bytes == 0 && cache.blocks.count == 0);
    cache_limit(&cache, BLOCK);
    CHECK(get(GOOD, 1, BLOCK, &block) == STATUS_OK);
    cache_release(&cache, block);
    CHECK(cache.bytes == BLOCK);
    cache_free(&cache);
}

static void a_block_is_dropped_alone_and_who_has_it_keeps_it(void)
{
    struct cached_block *used, *other;
    begin();
    CHECK(get(GOOD, 32, BLOCK, &used) == STATUS_OK && get(GOOD, 64, BLOCK, &other) == STATUS_OK);
    cache_drop_block(&cache, GOOD, 32);
    cache_drop_block(&cache, GOOD, 96); /* there is none */
    CHECK(cache.blocks.count == 1 && cache.bytes == BLOCK && unloads == 0);
    CHECK(look(GOOD, 32, BLOCK) == STATUS_NOT_CACHED && look(GOOD, 64, BLOCK) == STATUS_OK);
    CHECK(used->bytes.raw[BLOCK - 1] == 0);
    cache_release(&cache, used);
    CHECK(unloads == 1);
    cache_release(&cache, other);
    cache_drop_block(&cache, GOOD, 64);
    CHECK(cache.blocks.count == 0 && cache.bytes == 0 && unloads == 2);
    cache_free(&cache);
}

int main(void)
{
    RUN(a_look_at_a_loading_block_keeps_no_reference);
    RUN(a_failure_is_not_cached);
    RUN(a_block_dropped_while_loading_serves_its_reader_only);
    RUN(a_block_is_loaded_no_further_than_somebody_wants_and_nothing_of_it_twice);
    RUN(a_block_whose_rest_is_lost_is_forgotten_and_who_has_its_beginning_keeps_it);
    RUN(a_lower_limit_holds_at_once_and_for_blocks_in_use_later);
    RUN(a_block_is_dropped_alone_and_who_has_it_keeps_it);
    return 0;
}
