#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "check.h"
#include "files.h"
#include "pace.h"
#include "store.h"

enum { BLOCK = 100000 };

static struct evidence evidence;

static struct store *open_store(const char *directory, uint64_t segment_bytes)
{
    struct store_options options = {1 << 20, segment_bytes, false};
    struct store *store;
    CHECK(store_open(directory, &options, &evidence, &store) == STATUS_OK);
    return store;
}

static struct store_place put(struct store *store, uint64_t seed, int level)
{
    static uint8_t bytes[BLOCK];
    struct store_place place;
    check_fill_text(bytes, BLOCK, seed);
    struct store_chunk chunks[] = {{bytes, 1000}, {bytes + 1000, BLOCK - 1000}};
    CHECK(store_put(store, chunks, 2, level, 0, &evidence, &place) == STATUS_OK);
    return place;
}

static enum status get(struct store *store, struct store_place place, uint32_t start,
                       uint32_t length, uint8_t *into)
{
    struct store_piece piece = {place.segment, place.offset, start, length};
    return store_get(store, &piece, 1, STORE_READ, &evidence, into);
}

static bool holds(struct store *store, struct store_place place, uint64_t seed)
{
    static uint8_t expected[BLOCK];
    static uint8_t got[BLOCK];
    check_fill_text(expected, BLOCK, seed);
    return get(store, place, 0, BLOCK, got) == STATUS_OK && memcmp(got, expected, BLOCK) == 0;
}

static void write_at(const char *directory, uint64_t number, off_t offset, const void *bytes,
                     size_t size)
{
    char path[4096];
    char name[FILES_NAME_BYTES];
    files_name(number, SEGMENT_SUFFIX, name);
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int fd = open(path, O_RDWR | O_CREAT, 0600);
    CHECK(fd >= 0);
    if (offset < 0)
        offset = lseek(fd, 0, SEEK_END) + offset + 1;
    CHECK(pwrite(fd, bytes, size, offset) == (ssize_t)size);
    close(fd);
}

static size_t count_segments(struct store *store)
{
    struct store_segment *segments;
    size_t count;
    CHECK(store_segments(store, &evidence, &segments, &count) == STATUS_OK);
    free(segments);
    return count;
}

static void what_was_put_is_read_back_after_reopening(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, 1 << 20);
    struct store_place places[30];
    for (int i = 0; i < 30; i++)
        places[i] = put(store, (uint64_t)i, i % 5);
    for (int i = 0; i < 30; i++)
        CHECK(holds(store, places[i], (uint64_t)i));
    CHECK(store_sync(store, &evidence) == STATUS_OK);
    store_close(store);

    store = open_store(directory, 1 << 20);
    for (int i = 0; i < 30; i++)
        CHECK(holds(store, places[i], (uint64_t)i));
    uint64_t total = 0;
    for (uint64_t number = 1; number <= places[29].segment; number++) {
        uint64_t blocks;
        CHECK(store_verify(store, number, &evidence, &blocks) == STATUS_OK);
        total += blocks;
    }
    CHECK(total == 30 && places[29].segment > 1);
    CHECK(put(store, 99, 1).segment == places[29].segment);
    store_close(store);
    check_remove(directory);
}

static void pieces_are_joined_and_bounded(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, 1 << 20);
    struct store_place a = put(store, 1, 3);
    struct store_place b = put(store, 2, 3);
    static uint8_t first[BLOCK];
    static uint8_t second[BLOCK];
    uint8_t got[30];
    check_fill_text(first, BLOCK, 1);
    check_fill_text(second, BLOCK, 2);
    struct store_piece pieces[] = {
        {a.segment, a.offset, BLOCK - 10, 10},
        {b.segment, b.offset, 0, 10},
        {b.segment, b.offset, 500, 10},
        {a.segment, a.offset, BLOCK, 0},
    };
    CHECK(store_get(store, pieces, 4, STORE_READ, &evidence, got) == STATUS_OK);
    CHECK(memcmp(got, first + BLOCK - 10, 10) == 0 && memcmp(got + 10, second, 10) == 0 &&
          memcmp(got + 20, second + 500, 10) == 0);
    CHECK(store_get(store, pieces, 0, STORE_READ, &evidence, got) == STATUS_OK);
    CHECK(get(store, a, BLOCK - 9, 10, got) == STATUS_OUTSIDE);
    CHECK(get(store, a, UINT32_MAX, 10, got) == STATUS_OUTSIDE);
    CHECK(evidence.segment == a.segment && evidence.offset == a.offset);
    a.offset++;
    CHECK(get(store, a, 0, 10, got) == STATUS_CORRUPT_HEADER);
    a.segment = 77;
    CHECK(get(store, a, 0, 10, got) == STATUS_ERRNO && evidence.error == ENOENT);
    store_close(store);
    check_remove(directory);
}

static void each_block_is_read_once_wherever_its_pieces_go(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, 1 << 20);
    struct store_place place[] = {put(store, 1, 3), put(store, 2, 3)};
    static uint8_t whole[2][BLOCK];
    struct store_piece pieces[21];
    uint8_t got[21 * 10];
    struct store_stats stats;

    store_limit_cache(store, 0);
    for (unsigned which = 0; which < 2; which++)
        check_fill_text(whole[which], BLOCK, which + 1);
    for (uint32_t i = 0; i < 21; i++)
        pieces[i] = (struct store_piece){place[i % 2].segment, place[i % 2].offset, i * 1000, 10};
    pieces[7] = (struct store_piece){0, 0, 0, 10};
    CHECK(store_get(store, pieces, 21, STORE_READ, &evidence, got) == STATUS_OK);
    for (size_t i = 0; i < 21; i++)
        if (i != 7)
            CHECK(memcmp(got + i * 10, whole[i % 2] + i * 1000, 10) == 0);
    CHECK(memcmp(got + 70, (uint8_t[10]){0}, 10) == 0);
    store_stats(store, &stats);
    CHECK(stats.cache_misses == 2);
    store_close(store);
    check_remove(directory);
}

/* Levels: one that stores raw, and one of which zstd makes eight pieces. */
static void little_of_a_block_is_read_as_far_as_it_goes_and_not_kept(void)
{
    enum { LARGE = 1 << 20 };
    const char *directory = check_directory();
    struct store *store = open_store(directory, 1 << 24);
    static uint8_t whole[LARGE];
    struct store_stats stats;
    uint8_t got[100];

    check_fill_text(whole, LARGE, 1);
    for (int level = 0; level <= 3; level += 3) {
        struct store_chunk chunk = {whole, LARGE};
        struct store_place place;
        CHECK(store_put(store, &chunk, 1, level, 0, &evidence, &place) == STATUS_OK);
        for (uint32_t start = 0; start <= LARGE - 100; start += (LARGE - 100) / 7) {
            struct store_piece piece = {place.segment, place.offset, start, 100};
            CHECK(store_get(store, &piece, 1, STORE_READ_WHOLE_FILE, &evidence, got) == STATUS_OK);
            CHECK(memcmp(got, whole + start, 100) == 0);
        }
        struct store_piece beyond = {place.segment, place.offset, LARGE - 50, 100};
        CHECK(store_get(store, &beyond, 1, STORE_READ_WHOLE_FILE, &evidence, got) ==
              STATUS_OUTSIDE);
    }
    store_stats(store, &stats);
    CHECK(stats.cache_misses == 18 && stats.cache_bytes == 0);
    store_close(store);
    check_remove(directory);
}

static void a_file_that_has_much_of_a_block_leaves_it_in_the_cache(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, 1 << 20);
    struct store_place place = put(store, 1, 3);
    struct store_piece much = {place.segment, place.offset, 0, 70000};
    struct store_piece little = {place.segment, place.offset, 70000, 10};
    static uint8_t got[BLOCK];
    struct store_stats stats;

    CHECK(store_get(store, &much, 1, STORE_READ_WHOLE_FILE, &evidence, got) == STATUS_OK);
    CHECK(store_get(store, &little, 1, STORE_READ_WHOLE_FILE, &evidence, got) == STATUS_OK);
    store_stats(store, &stats);
    CHECK(stats.cache_misses == 1 && stats.cache_hits == 1 && stats.cache_bytes == BLOCK);
    store_close(store);
    check_remove(directory);
}

static void what_does_not_shrink_is_stored_raw(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, 1 << 20);
    static uint8_t bytes[BLOCK];
    static uint8_t got[BLOCK];
    struct store_place place;
    check_fill(bytes, BLOCK, 5);
    struct store_chunk chunk = {bytes, BLOCK};
    CHECK(store_put(store, &chunk, 1, 19, 0, &evidence, &place) == STATUS_OK);
    CHECK(place.stored_bytes == BLOCK + BLOCK_HEADER_BYTES);
    CHECK(get(store, place, 0, BLOCK, got) == STATUS_OK && memcmp(bytes, got, BLOCK) == 0);
    chunk.size = 1;
    CHECK(store_put(store, &chunk, 1, 19, 0, &evidence, &place) == STATUS_OK);
    CHECK(place.stored_bytes == 1 + BLOCK_HEADER_BYTES);
    store_close(store);
    check_remove(directory);
}

/* Base64 of noise: one level makes as much of it as another. */
static void what_no_level_shrinks_is_probed_and_left(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, 16 << 20);
    struct store_place fast;
    struct store_place usual;
    struct store_place strong;
    uint8_t *bytes = malloc(1 << 20);
    CHECK(bytes != NULL);
    check_fill(bytes, 1 << 20, 9);
    for (size_t i = 0; i < 1 << 20; i++)
        bytes[i] = '0' + (bytes[i] & 63);
    struct store_chunk chunk = {bytes, 1 << 20};
    CHECK(store_put(store, &chunk, 1, 1, 0, &evidence, &fast) == STATUS_OK);
    CHECK(store_put(store, &chunk, 1, 5, 0, &evidence, &usual) == STATUS_OK);
    CHECK(store_put(store, &chunk, 1, 19, 0, &evidence, &strong) == STATUS_OK);
    CHECK(fast.stored_bytes == strong.stored_bytes && fast.stored_bytes < 9 << 17);
    CHECK(fast.stored_bytes == usual.stored_bytes);
    free(bytes);
    store_close(store);
    check_remove(directory);
}

/* An eighth of the block is text, so the level asked for is the one that is used. */
static void what_holds_some_text_is_not_left(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, 16 << 20);
    struct store_place fast;
    struct store_place usual;
    uint8_t *bytes = malloc(1 << 20);
    CHECK(bytes != NULL);
    check_fill(bytes, 1 << 20, 9);
    for (size_t i = 0; i < 1 << 17; i++) /* words of a hundred, so a better search finds more */
        bytes[(5 << 17) + i] = (uint8_t)('a' + bytes[i / 8 % 97 * 8 + i % 8] % 16);
    struct store_chunk chunk = {bytes, 1 << 20};
    CHECK(store_put(store, &chunk, 1, 1, 0, &evidence, &fast) == STATUS_OK);
    CHECK(store_put(store, &chunk, 1, 5, 0, &evidence, &usual) == STATUS_OK);
    CHECK(usual.stored_bytes != fast.stored_bytes);
    free(bytes);
    store_close(store);
    check_remove(directory);
}

static void what_is_packed_step_by_step_reads_back(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, 16 << 20);
    struct store_place place;
    size_t size = 700 * 1000; /* no whole number of steps */
    uint8_t *bytes = malloc(size);
    uint8_t *got = malloc(size);
    CHECK(bytes != NULL && got != NULL);
    check_fill_text(bytes, size, 4);
    struct store_chunk chunk = {bytes, size};
    CHECK(store_pack(store, &chunk, 1, 12, &evidence, &place) == STATUS_OK);
    CHECK(get(store, place, 0, (uint32_t)size, got) == STATUS_OK && memcmp(bytes, got, size) == 0);
    store_set_pace(store, PACE_STOP);
    CHECK(store_pack(store, &chunk, 1, 12, &evidence, &place) == STATUS_STOPPED);
    CHECK(store_put(store, &chunk, 1, 1, 0, &evidence, &place) == STATUS_OK);
    free(bytes);
    free(got);
    store_close(store);
    check_remove(directory);
}

static void a_block_has_at_most_8_mib(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, 1 << 20);
    uint8_t *bytes = calloc(1, BLOCK_RAW_MAX + 1);
    CHECK(bytes != NULL);
    struct store_place place;
    struct store_chunk chunks[] = {{bytes, BLOCK_RAW_MAX}, {bytes, 1}};
    CHECK(store_put(store, chunks, 1, 1, 0, &evidence, &place) == STATUS_OK);
    CHECK(store_put(store, chunks, 2, 1, 0, &evidence, &place) == STATUS_TOO_LARGE);
    chunks[0].size++;
    CHECK(store_put(store, chunks, 1, 1, 0, &evidence, &place) == STATUS_TOO_LARGE);
    free(bytes);
    store_close(store);
    check_remove(directory);
}

static void a_torn_tail_is_left_alone(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, 1 << 20);
    struct store_place place = put(store, 1, 3);
    store_close(store);
    write_at(directory, 1, -1, "torn", 4);

    store = open_store(directory, 1 << 20);
    CHECK(holds(store, place, 1));
    CHECK(put(store, 2, 3).segment == 2);
    uint64_t blocks;
    CHECK(store_verify(store, 1, &evidence, &blocks) == STATUS_TRUNCATED && blocks == 1);
    CHECK(evidence.offset == place.offset + place.stored_bytes);
    store_close(store);

    write_at(directory, 2, place.offset + BLOCK_HEADER_BYTES + 100, "damage", 6);
    store = open_store(directory, 1 << 20);
    CHECK(put(store, 3, 3).segment == 3);
    CHECK(store_verify(store, 2, &evidence, &blocks) == STATUS_CORRUPT_PAYLOAD && blocks == 0);
    place.segment = 2;
    CHECK(!holds(store, place, 2));
    store_close(store);
    check_remove(directory);
}

static void an_empty_or_foreign_last_file_is_not_appended_to(void)
{
    const char *directory = check_directory();
    write_at(directory, 5, 0, "", 0);
    write_at(directory, 4, 0, "something else that is longer than a header", 43);
    struct store *store = open_store(directory, 1 << 20);
    CHECK(count_segments(store) == 2);
    CHECK(put(store, 1, 1).segment == 6);
    uint64_t blocks;
    CHECK(store_verify(store, 5, &evidence, &blocks) == STATUS_TRUNCATED);
    CHECK(store_verify(store, 4, &evidence, &blocks) == STATUS_CORRUPT_HEADER);
    store_close(store);
    check_remove(directory);
}

static void segments_roll_over_at_their_size(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, 150000);
    struct store_segment *segments;
    size_t count;
    for (uint64_t i = 0; i < 6; i++)
        put(store, i, 1);
    CHECK(store_segments(store, &evidence, &segments, &count) == STATUS_OK && count > 1);
    for (size_t i = 0; i < count; i++)
        CHECK(segments[i].number == i + 1 && segments[i].file_bytes <= 150000);
    free(segments);
    store_close(store);
    store = open_store(directory, 10); /* smaller than any block: one block each */
    CHECK(put(store, 7, 1).segment == count + 1);
    CHECK(put(store, 8, 1).segment == count + 2);
    uint64_t next;
    CHECK(store_roll(store, &evidence, &next) == STATUS_OK && next == count + 3);
    CHECK(put(store, 9, 1).segment == next);
    store_close(store);
    check_remove(directory);
}

static void a_removed_number_never_comes_back(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, 1 << 20);
    struct store_place place = put(store, 1, 1);
    CHECK(holds(store, place, 1)); /* cached, and must not be served from there */
    CHECK(store_remove(store, 1, &evidence) == STATUS_OK);
    CHECK(!holds(store, place, 1) && evidence.error == ENOENT);
    CHECK(store_remove(store, 1, &evidence) == STATUS_ERRNO && evidence.error == ENOENT);
    CHECK(store_sync(store, &evidence) == STATUS_OK);
    store_close(store);
    store = open_store(directory, 1 << 20);
    CHECK(put(store, 2, 1).segment == 2);
    CHECK(!holds(store, place, 2));
    store_close(store);
    check_remove(directory);
}

static void one_writer_many_readers(void)
{
    const char *directory = check_directory();
    struct store *writer = open_store(directory, 1 << 20);
    struct store_place place = put(writer, 1, 1);
    struct store_options options = {0, 1 << 20, false};
    struct store *reader;
    CHECK(store_open(directory, &options, &evidence, &reader) == STATUS_ERRNO);
    CHECK(evidence.error == EWOULDBLOCK);
    options.read_only = true;
    CHECK(store_open(directory, &options, &evidence, &reader) == STATUS_OK);
    CHECK(holds(reader, place, 1) && holds(reader, place, 1));
    place = put(writer, 2, 1);
    CHECK(holds(reader, place, 2));
    struct store_stats stats;
    store_stats(reader, &stats);
    CHECK(stats.cache_bytes == 0 &&
          stats.cache_misses == 3); /* a cache of no bytes keeps nothing */
    struct store_chunk chunk = {"x", 1};
    uint64_t number;
    CHECK(store_put(reader, &chunk, 1, 1, 0, &evidence, &place) == STATUS_ERRNO);
    CHECK(evidence.error == EROFS);
    CHECK(store_remove(reader, 1, &evidence) == STATUS_ERRNO && evidence.error == EROFS);
    CHECK(store_roll(reader, &evidence, &number) == STATUS_ERRNO && evidence.error == EROFS);
    CHECK(store_sync(reader, &evidence) == STATUS_ERRNO && evidence.error == EROFS);
    store_close(reader);
    store_close(writer);
    check_remove(directory);
}

static void the_cache_keeps_its_limit(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, 1 << 20); /* a cache of 1 MiB: ten blocks */
    struct store_place places[20];
    struct store_stats stats;
    for (uint64_t i = 0; i < 20; i++)
        places[i] = put(store, i, 1);
    for (uint64_t i = 0; i < 20; i++)
        CHECK(holds(store, places[i], i));
    for (uint64_t i = 10; i < 20; i++)
        CHECK(holds(store, places[i], i));
    store_stats(store, &stats);
    CHECK(stats.cache_misses == 20 && stats.cache_hits == 10 && stats.cache_bytes == 10 * BLOCK);
    store_drop_cache(store);
    CHECK(holds(store, places[19], 19));
    store_stats(store, &stats);
    CHECK(stats.cache_misses == 21 && stats.cache_bytes == BLOCK && stats.blocks_put == 20);
    store_close(store);
    check_remove(directory);
}

static void a_large_block_is_decompressed_as_far_as_it_is_read(void)
{
    enum { WHOLE = 6 << 20, PIECE = 3000 };
    const char *directory = check_directory();
    struct store_options options = {32 << 20, 32 << 20, false};
    struct store *store;
    struct store_place place;
    struct store_stats stats;
    uint8_t *bytes = malloc(WHOLE);
    uint8_t got[PIECE];
    CHECK(bytes != NULL);
    check_fill_text(bytes, WHOLE, 1);
    struct store_chunk chunk = {bytes, WHOLE};
    CHECK(store_open(directory, &options, &evidence, &store) == STATUS_OK);
    CHECK(store_pack(store, &chunk, 1, 3, &evidence, &place) == STATUS_OK);
    const uint32_t starts[] = {5000, 0, 1 << 20, 3 << 20, 5000, WHOLE - PIECE, 4 << 20};
    for (size_t round = 0; round < 2; round++) {
        for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++) {
            CHECK(get(store, place, starts[i], PIECE, got) == STATUS_OK);
            CHECK(memcmp(got, bytes + starts[i], PIECE) == 0);
            store_stats(store, &stats);
            if (i < 3) /* 2 MiB, and what the rest is made of */
                CHECK(stats.cache_bytes >= (2 << 20) + place.stored_bytes &&
                      stats.cache_bytes < (3 << 20) + place.stored_bytes);
        }
        CHECK(stats.cache_bytes == WHOLE);
        CHECK(stats.bytes_read == (round + 1) * place.stored_bytes);
        CHECK(stats.cache_misses == (round + 1) * 4);
        CHECK(get(store, place, WHOLE - 1, 2, got) == STATUS_OUTSIDE);
        store_drop_cache(store);
    }
    CHECK(get(store, place, 0, 0, got) == STATUS_OK);
    struct store_piece backwards[] = {{place.segment, place.offset, 2 << 20, 10},
                                      {place.segment, place.offset, 10, 10}};
    CHECK(store_get(store, backwards, 2, STORE_READ, &evidence, got) == STATUS_OK);
    CHECK(memcmp(got, bytes + (2 << 20), 10) == 0 && memcmp(got + 10, bytes + 10, 10) == 0);
    CHECK(get(store, place, WHOLE, 1, got) == STATUS_OUTSIDE);
    free(bytes);
    store_close(store);
    check_remove(directory);
}

static void more_segments_than_idle_files(void)
{
    const char *directory = check_directory();
    struct store *store = open_store(directory, 1);
    enum { SEGMENTS = 200 };
    struct store_place places[SEGMENTS];
    for (uint64_t i = 0; i < SEGMENTS; i++)
        places[i] = put(store, i, 1);
    CHECK(store_sync(store, &evidence) == STATUS_OK);
    for (int pass = 0; pass < 2; pass++)
        for (uint64_t i = 0; i < SEGMENTS; i++)
            CHECK(holds(store, places[i], i));
    CHECK(count_segments(store) == SEGMENTS);
    store_close(store);
    check_remove(directory);
}

static void names_of_segments(void)
{
    char name[FILES_NAME_BYTES];
    files_name(0xABC, SEGMENT_SUFFIX, name);
    CHECK(strcmp(name, "0000000000000abc.seg") == 0);
    CHECK(files_number(name, SEGMENT_SUFFIX) == 0xABC);
    CHECK(files_number("7fffffffffffffff.seg", SEGMENT_SUFFIX) == INT64_MAX);
    static const char *const others[] = {"",
                                         ".",
                                         "8000000000000000.seg",
                                         "0000000000000000.seg",
                                         "abc.seg",
                                         "0000000000000ABC.seg",
                                         "0000000000000abc.seg~",
                                         "00000000000000abc.seg",
                                         "0000000000000abc.SEG",
                                         "0000000000000abc"};
    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++)
        CHECK(files_number(others[i], SEGMENT_SUFFIX) == 0);
}

int main(void)
{
    RUN(names_of_segments);
    RUN(what_was_put_is_read_back_after_reopening);
    RUN(pieces_are_joined_and_bounded);
    RUN(each_block_is_read_once_wherever_its_pieces_go);
    RUN(little_of_a_block_is_read_as_far_as_it_goes_and_not_kept);
    RUN(a_file_that_has_much_of_a_block_leaves_it_in_the_cache);
    RUN(what_does_not_shrink_is_stored_raw);
    RUN(what_no_level_shrinks_is_probed_and_left);
    RUN(what_holds_some_text_is_not_left);
    RUN(what_is_packed_step_by_step_reads_back);
    RUN(a_block_has_at_most_8_mib);
    RUN(a_torn_tail_is_left_alone);
    RUN(an_empty_or_foreign_last_file_is_not_appended_to);
    RUN(segments_roll_over_at_their_size);
    RUN(a_removed_number_never_comes_back);
    RUN(one_writer_many_readers);
    RUN(the_cache_keeps_its_limit);
    RUN(a_large_block_is_decompressed_as_far_as_it_is_read);
    RUN(more_segments_than_idle_files);
    return 0;
}
