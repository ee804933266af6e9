/* Segments are verified as soon as they can be seen, while blocks go on being put into new ones. */
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>

#include "check.h"
#include "store.h"

enum { PUTS = 3000 };

static struct store *store;
static atomic_bool done;

static void *verify_newest(void *unused)
{
    (void)unused;
    while (!atomic_load(&done)) {
        struct evidence evidence;
        struct store_segment *segments;
        size_t count;
        uint64_t blocks;
        CHECK(store_segments(store, &evidence, &segments, &count) == STATUS_OK);
        if (count > 0) {
            enum status status =
                store_verify(store, segments[count - 1].number, &evidence, &blocks);
            CHECK(status == STATUS_OK || (status == STATUS_ERRNO && evidence.error == ENOENT));
        }
        if (count > 3)
            CHECK(store_remove(store, segments[0].number, &evidence) == STATUS_OK);
        free(segments);
    }
    return NULL;
}

static void a_segment_is_whole_for_whoever_sees_it(void)
{
    const char *directory = check_directory();
    struct store_options options = {1 << 20, 1, false}; /* a segment for each block */
    struct store_chunk chunk = {"x", 1};
    struct evidence evidence;
    pthread_t thread;

    CHECK(store_open(directory, &options, &evidence, &store) == STATUS_OK);
    CHECK(pthread_create(&thread, NULL, verify_newest, NULL) == 0);
    for (int i = 0; i < PUTS; i++) {
        struct store_place place;
        CHECK(store_put(store, &chunk, 1, 0, 0, &evidence, &place) == STATUS_OK);
    }
    atomic_store(&done, true);
    CHECK(pthread_join(thread, NULL) == 0);
    store_close(store);
    check_remove(directory);
}

int main(void)
{
    RUN(a_segment_is_whole_for_whoever_sees_it);
    return 0;
}
