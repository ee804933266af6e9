/* Threads put, get, sync, verify and remove at once; the thread sanitizer looks on. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

#include "check.h"
#include "store.h"

enum {
    BLOCK = 8000,
    SLOTS = 512,
    PUTTERS = 3,
    GETTERS = 3,
    PUTS = 800,
};

/* What a slot holds; a slot is written by one putter and read by all. */
struct slot {
    pthread_mutex_t lock;
    bool full;
    uint64_t seed;
    struct store_place place;
};

static struct slot slots[SLOTS];
static struct store *store;
static atomic_int putters_left;
static atomic_int gets;
static atomic_int gone;

static void *putter(void *argument)
{
    uint64_t seed = (uintptr_t)argument << 32;
    uint8_t bytes[BLOCK];
    for (int i = 0; i < PUTS; i++) {
        struct evidence evidence;
        struct store_place place;
        check_fill_text(bytes, BLOCK, ++seed);
        struct store_chunk chunks[] = {{bytes, 4000}, {bytes + 4000, BLOCK - 4000}};
        CHECK(store_put(store, chunks, 2, i % 4, 0, &evidence, &place) == STATUS_OK);
        struct slot *slot = &slots[check_random(&(uint64_t){seed}) % SLOTS];
        pthread_mutex_lock(&slot->lock);
        slot->full = true;
        slot->seed = seed;
        slot->place = place;
        pthread_mutex_unlock(&slot->lock);
    }
    atomic_fetch_sub(&putters_left, 1);
    return NULL;
}

static void *getter(void *argument)
{
    uint64_t state = (uintptr_t)argument;
    uint8_t expected[BLOCK];
    uint8_t got[BLOCK];
    while (atomic_load(&putters_left) > 0) {
        struct slot *slot = &slots[check_random(&state) % SLOTS];
        pthread_mutex_lock(&slot->lock);
        bool full = slot->full;
        uint64_t seed = slot->seed;
        struct store_place place = slot->place;
        pthread_mutex_unlock(&slot->lock);
        if (!full)
            continue;
        struct evidence evidence;
        struct store_piece pieces[] = {{place.segment, place.offset, 0, 1000},
                                       {place.segment, place.offset, 1000, BLOCK - 1000}};
        enum status status = store_get(store, pieces, 2, STORE_READ, &evidence, got);
        if (status == STATUS_ERRNO && evidence.error == ENOENT) {
            atomic_fetch_add(&gone, 1);
            continue;
        }
        CHECK(status == STATUS_OK);
        check_fill_text(expected, BLOCK, seed);
        CHECK(memcmp(got, expected, BLOCK) == 0);
        atomic_fetch_add(&gets, 1);
    }
    return NULL;
}

static void *syncer(void *argument)
{
    struct evidence evidence;
    (void)argument;
    while (atomic_load(&putters_left) > 0)
        CHECK(store_sync(store, &evidence) == STATUS_OK);
    return NULL;
}

static void *remover(void *argument)
{
    uint64_t state = 42;
    (void)argument;
    while (atomic_load(&putters_left) > 0) {
        struct evidence evidence;
        struct store_segment *segments;
        size_t count;
        uint64_t blocks;
        struct store_stats stats;
        CHECK(store_segments(store, &evidence, &segments, &count) == STATUS_OK);
        if (count > 4) {
            CHECK(store_remove(store, segments[check_random(&state) % count].number, &evidence) ==
                  STATUS_OK);
        } else if (count > 0) {
            enum status status =
                store_verify(store, segments[count - 1].number, &evidence, &blocks);
            CHECK(status == STATUS_OK);
        }
        if (check_random(&state) % 8 == 0)
            store_drop_cache(store);
        if (check_random(&state) % 16 == 0)
            CHECK(store_roll(store, &evidence, &blocks) == STATUS_OK);
        store_stats(store, &stats);
        free(segments);
    }
    return NULL;
}

static void everything_at_once(void)
{
    const char *directory = check_directory();
    struct store_options options = {40 * BLOCK, 20 * BLOCK, false};
    struct evidence evidence;
    pthread_t threads[PUTTERS + GETTERS + 3];
    size_t count = 0;

    CHECK(store_open(directory, &options, &evidence, &store) == STATUS_OK);
    for (int i = 0; i < SLOTS; i++)
        pthread_mutex_init(&slots[i].lock, NULL);
    atomic_store(&putters_left, PUTTERS);
    for (uintptr_t i = 0; i < PUTTERS; i++)
        CHECK(pthread_create(&threads[count++], NULL, putter, (void *)(i + 1)) == 0);
    for (uintptr_t i = 0; i < GETTERS; i++)
        CHECK(pthread_create(&threads[count++], NULL, getter, (void *)(i + 1)) == 0);
    CHECK(pthread_create(&threads[count++], NULL, syncer, NULL) == 0);
    CHECK(pthread_create(&threads[count++], NULL, syncer, NULL) == 0);
    CHECK(pthread_create(&threads[count++], NULL, remover, NULL) == 0);
    for (size_t i = 0; i < count; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(store_sync(store, &evidence) == STATUS_OK);
    printf("%d blocks read, %d were removed\n", atomic_load(&gets), atomic_load(&gone));
    CHECK(atomic_load(&gets) > 0);
    store_close(store);
    check_remove(directory);
}

enum { READERS = 8 };

static struct store_place shared_place;
static pthread_barrier_t start_line;

static void *read_shared(void *argument)
{
    uint8_t got[BLOCK];
    struct evidence evidence;
    struct store_piece piece = {shared_place.segment, shared_place.offset, 0, BLOCK};
    (void)argument;
    pthread_barrier_wait(&start_line);
    CHECK(store_get(store, &piece, 1, STORE_READ, &evidence, got) == STATUS_OK);
    return NULL;
}

static void readers_of_one_missing_block_load_it_once(void)
{
    const char *directory = check_directory();
    struct store_options options = {1 << 20, 1 << 20, false};
    struct evidence evidence;
    uint8_t bytes[BLOCK];
    struct store_chunk chunk = {bytes, BLOCK};
    pthread_t threads[READERS];

    check_fill_text(bytes, BLOCK, 1);
    CHECK(store_open(directory, &options, &evidence, &store) == STATUS_OK);
    CHECK(store_put(store, &chunk, 1, 3, 0, &evidence, &shared_place) == STATUS_OK);
    for (uint64_t round = 1; round <= 50; round++) {
        struct store_stats stats;
        store_drop_cache(store);
        pthread_barrier_init(&start_line, NULL, READERS);
        for (int i = 0; i < READERS; i++)
            CHECK(pthread_create(&threads[i], NULL, read_shared, NULL) == 0);
        for (int i = 0; i < READERS; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
        pthread_barrier_destroy(&start_line);
        store_stats(store, &stats);
        CHECK(stats.cache_misses == round);
    }
    store_close(store);
    check_remove(directory);
}

enum { LARGE = 2 << 20, LARGE_READS = 40 };

static uint8_t large[LARGE];

/* Each piece by piece from another beginning, so that all want more of the block all the time. */
static void *read_large(void *argument)
{
    uint64_t state = (uintptr_t)argument;
    uint8_t got[BLOCK];
    struct evidence evidence;
    pthread_barrier_wait(&start_line);
    for (int i = 0; i < LARGE_READS; i++) {
        uint32_t start = (uint32_t)(check_random(&state) % (LARGE - BLOCK));
        struct store_piece piece = {shared_place.segment, shared_place.offset, start, BLOCK};
        CHECK(store_get(store, &piece, 1, STORE_READ, &evidence, got) == STATUS_OK);
        CHECK(memcmp(got, large + start, BLOCK) == 0);
        if (check_random(&state) % 16 == 0)
            store_drop_cache(store);
    }
    return NULL;
}

static void readers_go_on_where_another_stopped(void)
{
    const char *directory = check_directory();
    struct store_options options = {4 << 20, 4 << 20, false};
    struct evidence evidence;
    struct store_chunk chunk = {large, LARGE};
    pthread_t threads[READERS];

    check_fill_text(large, LARGE, 1);
    CHECK(store_open(directory, &options, &evidence, &store) == STATUS_OK);
    CHECK(store_put(store, &chunk, 1, 3, 0, &evidence, &shared_place) == STATUS_OK);
    pthread_barrier_init(&start_line, NULL, READERS);
    for (uintptr_t i = 0; i < READERS; i++)
        CHECK(pthread_create(&threads[i], NULL, read_large, (void *)(i + 1)) == 0);
    for (int i = 0; i < READERS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    pthread_barrier_destroy(&start_line);
    store_close(store);
    check_remove(directory);
}

int main(void)
{
    RUN(readers_go_on_where_another_stopped);
    RUN(readers_of_one_missing_block_load_it_once);
    RUN(everything_at_once);
    return 0;
}
