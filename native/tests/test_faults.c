/* System calls and allocations that fail: linked with --wrap, so that each can be told to. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "store.h"
#include "trainer.h"

enum { BLOCK = 50000 };

static struct evidence evidence;
static uint8_t bytes[BLOCK];
static const struct store_chunk chunk = {bytes, BLOCK};

/* Each is how many calls from now the fault strikes at; 0 is never. */
static int write_fault;
static int write_fault_bytes; /* that many get through before it */
static int truncate_fault;
static int data_sync_fault;
static int directory_sync_fault;
static long allocation_fault;
static int data_syncs;
static int directory_syncs;
static atomic_int slow_sync_state; /* 0 fast, 1 wait to begin, 2 begun, 3 may end */

static int strikes(int *countdown)
{
    return *countdown > 0 && --*countdown == 0;
}

ssize_t __real_pwritev64(int fd, const struct iovec *parts, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *parts, int count, off_t offset);
ssize_t __wrap_pwritev64(int fd, const struct iovec *parts, int count, off_t offset)
{
    if (strikes(&write_fault)) {
        if (write_fault_bytes > 0) {
            write_fault = 1; /* a short write first, then the error */
            ssize_t got = pwrite(fd, parts[0].iov_base, (size_t)write_fault_bytes, offset);
            write_fault_bytes = 0;
            return got;
        }
        errno = ENOSPC;
        return -1;
    }
    return __real_pwritev64(fd, parts, count, offset);
}

int __real_ftruncate64(int fd, off_t size);
int __wrap_ftruncate64(int fd, off_t size);
int __wrap_ftruncate64(int fd, off_t size)
{
    if (strikes(&truncate_fault)) {
        errno = EIO;
        return -1;
    }
    return __real_ftruncate64(fd, size);
}

int __real_fdatasync(int fd);
int __wrap_fdatasync(int fd);
int __wrap_fdatasync(int fd)
{
    data_syncs++;
    if (atomic_load(&slow_sync_state) == 1) {
        atomic_store(&slow_sync_state, 2);
        while (atomic_load(&slow_sync_state) != 3)
            usleep(100);
    }
    if (strikes(&data_sync_fault)) {
        errno = EIO;
        return -1;
    }
    return __real_fdatasync(fd);
}

int __real_fsync(int fd);
int __wrap_fsync(int fd);
int __wrap_fsync(int fd)
{
    directory_syncs++;
    if (strikes(&directory_sync_fault)) {
        errno = EIO;
        return -1;
    }
    return __real_fsync(fd);
}

static int allocation_strikes(void)
{
    return allocation_fault > 0 && --allocation_fault == 0;
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size)
{
    return allocation_strikes() ? NULL : __real_malloc(size);
}

void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size)
{
    return allocation_strikes() ? NULL : __real_calloc(count, size);
}

void *__real_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_realloc(void *old, size_t size)
{
    return allocation_strikes() ? NULL : __real_realloc(old, size);
}

static struct store *open_store(const char *directory)
{
    struct store_options options = {1 << 20, 1 << 20, false};
    struct store *store;
    CHECK(store_open(directory, &options, &evidence, &store) == STATUS_OK);
    return store;
}

static struct store_place put(struct store *store)
{
    struct store_place place;
    CHECK(store_put(store, &chunk, 1, 1, 0, &evidence, &place) == STATUS_OK);
    return place;
}

static bool holds(struct store *store, struct store_place place)
{
    static uint8_t got[BLOCK];
    struct store_piece piece = {place.segment, place.offset, 0, BLOCK};
    return store_get(store, &piece, 1, STORE_READ, &evidence, got) == STATUS_OK &&
           memcmp(got, bytes, BLOCK) == 0;
}

static uint64_t blocks_in(struct store *store, uint64_t segment)
{
    uint64_t blocks;
    CHECK(store_verify(store, segment, &evidence, &blocks) == STATUS_OK);
    return blocks;
}

static void a_full_disk_leaves_the_segment_as_it_was(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory);
    struct store_place first = put(store);
    struct store_place place;
    for (int part = 0; part < 2; part++) {
        write_fault = 1;
        write_fault_bytes = 20 * part;
        CHECK(store_put(store, &chunk, 1, 1, 0, &evidence, &place) == STATUS_ERRNO);
        CHECK(evidence.error == ENOSPC && blocks_in(store, 1) == 1);
    }
    place = put(store);
    CHECK(place.segment == 1 && place.offset == first.offset + first.stored_bytes);
    CHECK(holds(store, first) && holds(store, place) && blocks_in(store, 1) == 2);
    store_close(store);
    check_remove(directory);
}

static void a_full_disk_leaves_no_file_without_header(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory);
    struct store_place place;
    struct store_segment *segments;
    size_t count;
    write_fault = 1;
    CHECK(store_put(store, &chunk, 1, 1, 0, &evidence, &place) == STATUS_ERRNO);
    CHECK(evidence.error == ENOSPC);
    CHECK(store_segments(store, &evidence, &segments, &count) == STATUS_OK && count == 0);
    free(segments);
    CHECK(put(store).segment == 1);
    store_close(store);
    check_remove(directory);
}

static void nothing_follows_a_torn_block(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory);
    struct store_place first = put(store);
    struct store_place place;
    uint64_t blocks;
    write_fault = 1;
    write_fault_bytes = 20;
    truncate_fault = 1;
    CHECK(store_put(store, &chunk, 1, 1, 0, &evidence, &place) == STATUS_ERRNO);
    CHECK(evidence.error == ENOSPC);
    CHECK(put(store).segment == 2);
    CHECK(holds(store, first));
    CHECK(store_verify(store, 1, &evidence, &blocks) == STATUS_TRUNCATED && blocks == 1);
    store_close(store);
    check_remove(directory);
}

static void sync_touches_what_was_appended_to_and_no_more(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory);
    data_syncs = directory_syncs = 0;
    CHECK(store_sync(store, &evidence) == STATUS_OK && data_syncs == 0 && directory_syncs == 0);
    put(store);
    put(store);
    CHECK(store_sync(store, &evidence) == STATUS_OK && data_syncs == 1 && directory_syncs == 1);
    put(store);
    CHECK(store_sync(store, &evidence) == STATUS_OK && data_syncs == 2 && directory_syncs == 1);
    uint64_t next;
    CHECK(store_roll(store, &evidence, &next) == STATUS_OK);
    CHECK(store_sync(store, &evidence) == STATUS_OK && data_syncs == 2 && directory_syncs == 1);
    put(store);
    CHECK(store_roll(store, &evidence, &next) == STATUS_OK);
    put(store);
    CHECK(store_sync(store, &evidence) == STATUS_OK && data_syncs == 4 && directory_syncs == 2);
    store_close(store);

    /* Whoever created the last segment may have died before its sync. */
    store = open_store(directory);
    put(store);
    CHECK(store_sync(store, &evidence) == STATUS_OK && data_syncs == 5 && directory_syncs == 3);
    store_close(store);
    check_remove(directory);
}

static void a_failed_sync_is_not_forgotten(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory);
    struct store_place first = put(store);
    data_sync_fault = 1;
    CHECK(store_sync(store, &evidence) == STATUS_ERRNO && evidence.error == EIO);
    CHECK(evidence.segment == 1);
    struct store_place second = put(store);
    CHECK(second.segment == 2); /* the failed one is closed for appending */
    for (int i = 0; i < 3; i++)
        CHECK(store_sync(store, &evidence) == STATUS_ERRNO && evidence.error == EIO);
    CHECK(holds(store, first) && holds(store, second));
    CHECK(store_remove(store, 1, &evidence) == STATUS_OK);
    CHECK(store_sync(store, &evidence) == STATUS_OK);
    CHECK(holds(store, second) && !holds(store, first));
    store_close(store);
    check_remove(directory);
}

static void a_failed_sync_of_the_directory_is_for_good(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory);
    put(store);
    directory_sync_fault = 1;
    for (int i = 0; i < 3; i++)
        CHECK(store_sync(store, &evidence) == STATUS_ERRNO && evidence.error == EIO);
    store_close(store);
    check_remove(directory);
}

static void *sync_in_thread(void *store)
{
    struct evidence mine;
    enum status status = store_sync(store, &mine);
    return (void *)(uintptr_t)status;
}

/* A put of before both syncs; the first sync is stuck in fdatasync when the second is called. */
static void sync_waits_for_a_sync_under_way_and_shares_its_fate(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory);
    pthread_t first;
    pthread_t second;
    void *result;
    put(store);
    atomic_store(&slow_sync_state, 1);
    data_sync_fault = 1;
    CHECK(pthread_create(&first, NULL, sync_in_thread, store) == 0);
    while (atomic_load(&slow_sync_state) != 2)
        usleep(100);
    CHECK(put(store).segment == 1); /* putting goes on meanwhile */
    CHECK(pthread_create(&second, NULL, sync_in_thread, store) == 0);
    struct timespec soon;
    clock_gettime(CLOCK_REALTIME, &soon);
    soon.tv_nsec += 50 * 1000 * 1000;
    soon.tv_sec += soon.tv_nsec / 1000000000;
    soon.tv_nsec %= 1000000000;
    CHECK(pthread_timedjoin_np(second, &result, &soon) == ETIMEDOUT);
    atomic_store(&slow_sync_state, 3);
    CHECK(pthread_join(first, &result) == 0 && (uintptr_t)result == STATUS_ERRNO);
    CHECK(pthread_join(second, &result) == 0 && (uintptr_t)result == STATUS_ERRNO);
    atomic_store(&slow_sync_state, 0);
    CHECK(put(store).segment == 2);
    store_close(store);
    check_remove(directory);
}

/* Of samples that have something in common. */
static size_t train(uint8_t *into, size_t capacity)
{
    static uint8_t samples[200 * 200];
    size_t sizes[200];
    size_t size;
    for (size_t i = 0; i < 200; i++) {
        memcpy(samples + i * 200, bytes + (i % 7) * 100, 200);
        sizes[i] = 200;
    }
    CHECK(trainer_train(samples, sizes, 200, into, capacity, &size) == STATUS_OK && size > 0);
    return size;
}

static enum status add_dictionary(struct store *store, uint32_t *number)
{
    uint8_t trained[1000];
    size_t size = train(trained, sizeof trained);
    return store_add_dictionary(store, 0, trained, size, &evidence, number);
}

static size_t count_dictionaries(struct store *store, unsigned good_copies)
{
    struct dictionary_facts *list;
    size_t count;
    CHECK(store_dictionaries(store, &evidence, &list, &count) == STATUS_OK);
    for (size_t i = 0; i < count; i++)
        CHECK(list[i].good_copies == good_copies);
    free(list);
    return count;
}

/* Two writes, and an fsync of the file and of the directory for each. */
static void a_dictionary_is_kept_twice_or_not_at_all(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory);
    uint32_t number;
    for (int n = 1; n <= 4; n++) {
        directory_sync_fault = n;
        CHECK(add_dictionary(store, &number) == STATUS_ERRNO && evidence.error == EIO);
        CHECK(directory_sync_fault == 0 && count_dictionaries(store, 2) == 0);
    }
    for (int n = 1; n <= 2; n++) {
        write_fault = n;
        write_fault_bytes = 20;
        CHECK(add_dictionary(store, &number) == STATUS_ERRNO && evidence.error == ENOSPC);
        CHECK(write_fault == 0 && count_dictionaries(store, 2) == 0);
    }
    CHECK(add_dictionary(store, &number) == STATUS_OK && number == 1);
    CHECK(count_dictionaries(store, 2) == 1);
    store_close(store);
    check_remove(directory);
}

static void on_a_full_disk_a_copy_stays_damaged_and_the_other_serves(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory);
    struct store_place place;
    uint32_t number;
    uint8_t got[BLOCK];
    CHECK(add_dictionary(store, &number) == STATUS_OK);
    CHECK(store_put(store, &chunk, 1, 1, number, &evidence, &place) == STATUS_OK);
    store_close(store);
    char path[4096];
    snprintf(path, sizeof path, "%s/0000000000000001.dict", directory);
    CHECK(unlink(path) == 0);
    store = open_store(directory);
    struct store_piece piece = {place.segment, place.offset, 0, BLOCK};
    write_fault = 1;
    CHECK(store_get(store, &piece, 1, STORE_READ, &evidence, got) == STATUS_OK);
    CHECK(write_fault == 0 && memcmp(got, bytes, BLOCK) == 0);
    write_fault = 1;
    CHECK(count_dictionaries(store, 1) == 1);
    CHECK(count_dictionaries(store, 2) == 1);
    store_close(store);
    check_remove(directory);
}

/* The n-th allocation fails, for each n until all of it succeeds. */
static void no_allocation_failure_loses_or_leaks(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory);
    struct store_place first = put(store);
    uint32_t dictionary;
    CHECK(add_dictionary(store, &dictionary) == STATUS_OK);
    store_close(store);
    struct store_options options = {1 << 20, 1 << 20, false};
    const struct store_chunk two[] = {{bytes, 9}, {bytes, 20000}};
    long n = 0;
    bool all;
    do {
        struct store_place place;
        struct store_piece piece = {first.segment, first.offset, 0, 10};
        struct store_segment *segments = NULL;
        uint8_t got[10];
        uint64_t blocks;
        size_t count;
        allocation_fault = ++n;
        all = false;
        enum status status = store_open(directory, &options, &evidence, &store);
        CHECK(status == STATUS_OK || status == STATUS_NO_MEMORY || evidence.error == ENOMEM);
        if (status != STATUS_OK)
            continue;
        status = store_put(store, two, 2, 3, dictionary, &evidence, &place);
        CHECK(status == STATUS_OK || status == STATUS_NO_MEMORY);
        struct store_piece with = {place.segment, place.offset, 0, 10};
        status = status ? status : store_get(store, &with, 1, STORE_READ, &evidence, got);
        CHECK(status == STATUS_OK || status == STATUS_NO_MEMORY);
        status = store_get(store, &piece, 1, STORE_READ, &evidence, got);
        CHECK(status == STATUS_OK || status == STATUS_NO_MEMORY);
        status = store_verify(store, first.segment, &evidence, &blocks);
        CHECK(status == STATUS_OK || status == STATUS_NO_MEMORY);
        status = store_sync(store, &evidence);
        CHECK(status == STATUS_OK || status == STATUS_NO_MEMORY);
        status = store_segments(store, &evidence, &segments, &count);
        CHECK(status == STATUS_OK || status == STATUS_NO_MEMORY || evidence.error == ENOMEM);
        if (status == STATUS_OK)
            free(segments);
        all = allocation_fault > 0;
        allocation_fault = 0;
        CHECK(holds(store, first));
        CHECK(store_sync(store, &evidence) == STATUS_OK);
        store_close(store);
    } while (!all);
    CHECK(n > 10);
    check_remove(directory);
}

int main(void)
{
    check_fill_text(bytes, BLOCK, 1);
    RUN(a_full_disk_leaves_the_segment_as_it_was);
    RUN(a_full_disk_leaves_no_file_without_header);
    RUN(nothing_follows_a_torn_block);
    RUN(sync_touches_what_was_appended_to_and_no_more);
    RUN(a_failed_sync_is_not_forgotten);
    RUN(a_failed_sync_of_the_directory_is_for_good);
    RUN(sync_waits_for_a_sync_under_way_and_shares_its_fate);
    RUN(a_dictionary_is_kept_twice_or_not_at_all);
    RUN(on_a_full_disk_a_copy_stays_damaged_and_the_other_serves);
    RUN(no_allocation_failure_loses_or_leaks);
    return 0;
}
