/* Dictionaries: two copies of each, what becomes of blocks that need one, and many threads. */
#define _GNU_SOURCE
#include "dictionary.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bytes.h"
#include "check.h"
#include "crc32c.h"
#include "store.h"
#include "trainer.h"

enum {
    SAMPLE = 1000,
    SAMPLES = 400,
    CAPACITY = 8 << 10,
    LEVEL = 5,
};

static _Thread_local struct evidence evidence;
static uint8_t trained[CAPACITY];
static size_t trained_size;

/* Sentences of a few words that all have, so one tells something of the other. */
static void fill_sentences(uint8_t *bytes, size_t size, uint64_t seed)
{
    static const char *const words[] = {"conversation ", "assistant ", "tool_calls ", "arguments ",
                                        "the ",          "function ",  "returned ",   "nothing "};
    size_t at = 0;
    while (at < size) {
        uint64_t pick = check_random(&seed);
        char word[32];
        int length = snprintf(word, sizeof word, "%s%x ", words[pick % 8], (unsigned)(pick >> 60));
        for (int i = 0; i < length && at < size; i++)
            bytes[at++] = (uint8_t)word[i];
    }
}

static void train(void)
{
    static uint8_t samples[SAMPLES * SAMPLE];
    size_t sizes[SAMPLES];
    for (size_t i = 0; i < SAMPLES; i++) {
        fill_sentences(samples + i * SAMPLE, SAMPLE, i + 1000);
        sizes[i] = SAMPLE;
    }
    CHECK(trainer_train(samples, sizes, SAMPLES, trained, CAPACITY, &trained_size) == STATUS_OK);
    CHECK(trained_size > 256 && trained_size <= CAPACITY);
    uint64_t plain;
    uint64_t with;
    CHECK(trainer_measure(samples, sizes, 10, LEVEL, NULL, 0, &plain) == STATUS_OK);
    CHECK(trainer_measure(samples, sizes, 10, LEVEL, trained, trained_size, &with) == STATUS_OK);
    CHECK(with < plain);
}

static void too_few_samples_make_no_dictionary(void)
{
    uint8_t into[CAPACITY];
    size_t sizes[] = {3, 2};
    size_t size = 1;
    CHECK(trainer_train((const uint8_t *)"abcde", sizes, 2, into, CAPACITY, &size) == STATUS_OK);
    CHECK(size == 0);
    CHECK(trainer_train(NULL, sizes, 0, into, CAPACITY, &size) == STATUS_OK && size == 0);
}

static struct store *open_store(const char *directory, bool read_only)
{
    struct store_options options = {1 << 20, 1 << 20, read_only};
    struct store *store;
    CHECK(store_open(directory, &options, &evidence, &store) == STATUS_OK);
    return store;
}

static uint32_t add(struct store *store)
{
    uint32_t number = 0;
    CHECK(store_add_dictionary(store, 7, trained, trained_size, &evidence, &number) == STATUS_OK);
    return number;
}

static struct store_place put(struct store *store, uint64_t seed, uint32_t dictionary)
{
    uint8_t bytes[SAMPLE];
    struct store_chunk chunk = {bytes, sizeof bytes};
    struct store_place place;
    fill_sentences(bytes, sizeof bytes, seed);
    CHECK(store_put(store, &chunk, 1, LEVEL, dictionary, &evidence, &place) == STATUS_OK);
    return place;
}

static enum status get(struct store *store, struct store_place place, uint8_t *into)
{
    struct store_piece piece = {place.segment, place.offset, 0, SAMPLE};
    return store_get(store, &piece, 1, STORE_READ, &evidence, into);
}

/* The start of it is read by itself, past the cache. */
static bool holds(struct store *store, struct store_place place, uint64_t seed)
{
    struct store_piece start = {place.segment, place.offset, 0, SAMPLE / 2};
    uint8_t expected[SAMPLE];
    uint8_t got[SAMPLE];
    fill_sentences(expected, sizeof expected, seed);
    if (store_get(store, &start, 1, STORE_READ_WHOLE_FILE, &evidence, got) != STATUS_OK ||
        memcmp(got, expected, SAMPLE / 2) != 0)
        return false;
    return get(store, place, got) == STATUS_OK && memcmp(got, expected, SAMPLE) == 0;
}

static const char *path_of(const char *directory, const char *name)
{
    static char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static const char *const copies[] = {"0000000000000001.dict", "0000000000000001.twin"};

static void damage(const char *directory, const char *name, off_t offset)
{
    uint8_t byte;
    int fd = open(path_of(directory, name), O_RDWR);
    CHECK(fd >= 0);
    CHECK(pread(fd, &byte, 1, offset) == 1);
    byte ^= 0x20;
    CHECK(pwrite(fd, &byte, 1, offset) == 1);
    close(fd);
}

static unsigned good_copies(struct store *store)
{
    struct dictionary_facts *list;
    size_t count;
    CHECK(store_dictionaries(store, &evidence, &list, &count) == STATUS_OK);
    CHECK(count == 1 && list[0].number == 1);
    unsigned good = list[0].good_copies;
    CHECK(good == 0 || list[0].kind == 7);
    free(list);
    return good;
}

static void a_block_with_a_dictionary_is_smaller_and_comes_back(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, false);
    uint32_t number = add(store);
    CHECK(number == 1 && good_copies(store) == 2);
    struct store_place with = put(store, 1, number);
    struct store_place without = put(store, 1, 0);
    CHECK(with.stored_bytes < without.stored_bytes);
    CHECK(holds(store, with, 1) && holds(store, without, 1));
    uint64_t blocks;
    CHECK(store_verify(store, with.segment, &evidence, &blocks) == STATUS_OK && blocks == 2);
    store_close(store);
    store = open_store(directory, true);
    CHECK(holds(store, with, 1));
    uint8_t *kept;
    size_t size;
    CHECK(store_dictionary(store, number, &evidence, &kept, &size) == STATUS_OK);
    CHECK(size == trained_size && memcmp(kept, trained, size) == 0);
    free(kept);
    CHECK(store_dictionary(store, 9, &evidence, &kept, &size) == STATUS_NO_DICTIONARY);
    store_close(store);
    check_remove(directory);
}

static void noise_and_stored_blocks_name_no_dictionary(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, false);
    uint32_t number = add(store);
    uint8_t noise[SAMPLE];
    struct store_chunk chunk = {noise, sizeof noise};
    struct store_place places[3];
    static const int levels[] = {LEVEL, 19, 0};
    check_fill(noise, sizeof noise, 1);
    for (int i = 0; i < 3; i++)
        CHECK(store_put(store, &chunk, 1, levels[i], number, &evidence, &places[i]) == STATUS_OK);
    store_close(store);
    for (size_t i = 0; i < 2; i++)
        CHECK(unlink(path_of(directory, copies[i])) == 0);
    store = open_store(directory, true);
    uint8_t got[SAMPLE];
    for (int i = 0; i < 3; i++)
        CHECK(get(store, places[i], got) == STATUS_OK && memcmp(got, noise, SAMPLE) == 0);
    store_close(store);
    check_remove(directory);
}

/* Every byte of a copy, each copy: the other one serves, and a writer mends. */
static void either_copy_serves_and_the_other_is_mended(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, false);
    struct store_place place = put(store, 1, add(store));
    store_close(store);
    for (int i = 0; i < 2; i++) {
        struct stat facts;
        CHECK(stat(path_of(directory, copies[i]), &facts) == 0);
        for (off_t at = 0; at < facts.st_size; at += at < 80 ? 1 : 97) {
            damage(directory, copies[i], at);
            store = open_store(directory, true);
            CHECK(good_copies(store) == 1 && holds(store, place, 1));
            CHECK(good_copies(store) == 1); /* who only reads mends nothing */
            store_close(store);
            store = open_store(directory, false);
            CHECK(holds(store, place, 1));
            store_close(store);
            store = open_store(directory, true);
            CHECK(good_copies(store) == 2);
            store_close(store);
        }
        CHECK(unlink(path_of(directory, copies[i])) == 0);
        store = open_store(directory, false);
        CHECK(holds(store, place, 1) && good_copies(store) == 2);
        store_close(store);
    }
    check_remove(directory);
}

static void without_a_copy_its_blocks_are_lost_and_others_are_not(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, false);
    struct store_place with = put(store, 1, add(store));
    struct store_place without = put(store, 2, 0);
    store_close(store);
    for (int i = 0; i < 2; i++)
        damage(directory, copies[i], 90);
    store = open_store(directory, false);
    uint8_t got[SAMPLE];
    CHECK(get(store, with, got) == STATUS_NO_DICTIONARY);
    CHECK(evidence.segment == with.segment && evidence.offset == with.offset);
    CHECK(holds(store, without, 2) && good_copies(store) == 0);
    CHECK(holds(store, put(store, 3, 1), 3)); /* written without */
    damage(directory, copies[1], 90);         /* the bit flips back */
    CHECK(holds(store, with, 1) && good_copies(store) == 2);
    store_close(store);
    check_remove(directory);
}

/* A segment header of version 2 is no damage, so nobody may write over it. */
static void a_newer_copy_is_left_alone(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, false);
    struct store_place place = put(store, 1, add(store));
    store_close(store);
    uint8_t header[SEGMENT_HEADER_BYTES];
    for (int i = 0; i < 2; i++) {
        int fd = open(path_of(directory, copies[i]), O_RDWR);
        CHECK(fd >= 0 && pread(fd, header, sizeof header, 0) == sizeof header);
        store32(header + SEGMENT_AT_VERSION, SEGMENT_VERSION + 1);
        store32(header + SEGMENT_AT_CRC, crc32c(0, header, SEGMENT_AT_CRC));
        CHECK(pwrite(fd, header, sizeof header, 0) == sizeof header);
        close(fd);
        store = open_store(directory, false);
        uint8_t got[SAMPLE];
        CHECK(get(store, place, got) == (i == 0 ? STATUS_OK : STATUS_NEWER));
        store_close(store);
    }
    check_remove(directory);
}

static void numbers_never_come_again(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, false);
    CHECK(add(store) == 1 && add(store) == 2);
    CHECK(store_remove_dictionary(store, 2, &evidence) == STATUS_ERRNO && evidence.error == EBUSY);
    CHECK(store_remove_dictionary(store, 1, &evidence) == STATUS_OK);
    CHECK(add(store) == 3);
    CHECK(store_remove_dictionary(store, 2, &evidence) == STATUS_OK);
    store_close(store);
    store = open_store(directory, true);
    uint32_t number;
    CHECK(store_add_dictionary(store, 7, trained, trained_size, &evidence, &number) ==
              STATUS_ERRNO &&
          evidence.error == EROFS);
    CHECK(store_remove_dictionary(store, 3, &evidence) == STATUS_ERRNO && evidence.error == EROFS);
    store_close(store);
    check_remove(directory);
}

static void what_is_no_dictionary_is_not_kept(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, false);
    uint32_t number;
    uint8_t broken[CAPACITY];
    memcpy(broken, trained, trained_size);
    broken[0] ^= 1;
    CHECK(store_add_dictionary(store, 7, broken, trained_size, &evidence, &number) ==
          STATUS_CORRUPT_PAYLOAD);
    CHECK(store_add_dictionary(store, 7, trained, 20, &evidence, &number) ==
          STATUS_CORRUPT_PAYLOAD);
    CHECK(store_add_dictionary(store, 7, trained, 0, &evidence, &number) == STATUS_CORRUPT_PAYLOAD);
    CHECK(access(path_of(directory, copies[0]), F_OK) != 0);
    store_close(store);
    check_remove(directory);
}

/* More dictionaries than are kept digested, at several levels. */
enum { DICTIONARIES = 20, THREADS = 4, PUTS = 100 };

static void *put_and_get(void *store)
{
    for (uint64_t i = 0; i < PUTS; i++) {
        uint64_t seed = i * 7;
        struct store_place place = put(store, seed, (uint32_t)(i % DICTIONARIES) + 1);
        store_drop_cache(store);
        CHECK(holds(store, place, seed));
    }
    return NULL;
}

static void *spoil(void *directory)
{
    for (int i = 0; i < 50; i++)
        damage(directory, copies[1], 40);
    return NULL;
}

static void threads_use_many_dictionaries_while_one_copy_changes(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, false);
    for (uint32_t i = 1; i <= DICTIONARIES; i++)
        CHECK(add(store) == i);
    pthread_t threads[THREADS + 1];
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, put_and_get, store) == 0);
    CHECK(pthread_create(&threads[THREADS], NULL, spoil, (void *)(uintptr_t)directory) == 0);
    for (int i = 0; i <= THREADS; i++)
        pthread_join(threads[i], NULL);
    uint64_t blocks;
    CHECK(store_verify(store, 1, &evidence, &blocks) == STATUS_OK && blocks == THREADS * PUTS);
    store_close(store);
    check_remove(directory);
}

int main(void)
{
    RUN(train);
    RUN(too_few_samples_make_no_dictionary);
    RUN(a_block_with_a_dictionary_is_smaller_and_comes_back);
    RUN(noise_and_stored_blocks_name_no_dictionary);
    RUN(either_copy_serves_and_the_other_is_mended);
    RUN(without_a_copy_its_blocks_are_lost_and_others_are_not);
    RUN(a_newer_copy_is_left_alone);
    RUN(numbers_never_come_again);
    RUN(what_is_no_dictionary_is_not_kept);
    RUN(threads_use_many_dictionaries_while_one_copy_changes);
    return 0;
}
