/* Frames kept as differences: what SQLite writes to its log comes back, or ends where it is
 * damaged. */
#include "frames.h"

#include <string.h>

#include "check.h"
#include "difference.h"
#include "log.h"
#include "memory_file.h"

enum { FRAMES = 300, NUMBERS = 20 };

static struct memory_file disk = MEMORY_FILE;
static sqlite3_file *const file = &disk.base;

static uint8_t header[LOG_HEADER_BYTES];
static uint8_t expected[FRAMES][FRAME_BYTES];

static sqlite3_int64 place(size_t frame)
{
    return LOG_HEADER_BYTES + (sqlite3_int64)frame * FRAME_BYTES;
}

static int write_frame(struct frames *frames, size_t frame)
{
    const uint8_t *bytes = expected[frame];
    int result = frames_write(frames, file, bytes, FRAME_HEADER_BYTES, place(frame));

    if (result != SQLITE_OK)
        return result;
    return frames_write(frames, file, bytes + FRAME_HEADER_BYTES, PAGES_BYTES,
                        place(frame) + FRAME_HEADER_BYTES);
}

/* Frames of pages that change a little each time; every third commits. */
static void expect_frames(uint64_t seed)
{
    static uint8_t pages[NUMBERS][PAGES_BYTES];

    check_fill(header, sizeof header, seed);
    for (size_t i = 0; i < NUMBERS; i++)
        check_fill(pages[i], PAGES_BYTES, seed + i);
    for (size_t frame = 0; frame < FRAMES; frame++) {
        size_t number = check_random(&seed) % (frame % 2 ? 3 : NUMBERS);
        size_t at = check_random(&seed) % PAGES_BYTES;
        size_t length = check_random(&seed) % (frame % 17 ? 60 : PAGES_BYTES);
        if (length > PAGES_BYTES - at)
            length = PAGES_BYTES - at;
        check_fill(pages[number] + at, length, seed);
        uint8_t *bytes = expected[frame];
        memset(bytes, 0, FRAME_HEADER_BYTES);
        bytes[3] = (uint8_t)(number + 1);
        bytes[FRAME_COMMIT_AT + 3] = frame % 3 == 2 ? NUMBERS : 0;
        memcpy(bytes + FRAME_SALTS_AT, header + LOG_SALTS_AT, FRAME_SALTS_BYTES);
        check_fill(bytes + FRAME_CHECKSUM_AT, FRAME_CHECKSUM_BYTES, seed);
        memcpy(bytes + FRAME_HEADER_BYTES, pages[number], PAGES_BYTES);
    }
}

static struct frames *opened(void)
{
    struct frames *frames = frames_new();
    CHECK(frames);
    CHECK(frames_open(frames, file) == SQLITE_OK);
    return frames;
}

static struct frames *begun(void)
{
    disk.size = 0;
    struct frames *frames = opened();
    CHECK(frames_write(frames, file, header, sizeof header, 0) == SQLITE_OK);
    return frames;
}

/* How many frames are there, all of them as they were written. */
static size_t frames_there(struct frames *frames)
{
    uint8_t bytes[FRAME_BYTES];
    sqlite3_int64 size;

    CHECK(frames_size(frames, file, &size) == SQLITE_OK);
    size_t count = size ? (size_t)(size - LOG_HEADER_BYTES) / FRAME_BYTES : 0;
    for (size_t frame = 0; frame < count; frame++) {
        CHECK(frames_read(frames, file, bytes, FRAME_BYTES, place(frame)) == SQLITE_OK);
        CHECK(memcmp(bytes, expected[frame], FRAME_BYTES) == 0);
    }
    return count;
}

static void a_difference_makes_one_page_of_another(void)
{
    uint8_t base[PAGES_BYTES], page[PAGES_BYTES], again[PAGES_BYTES];
    uint8_t difference[DIFFERENCE_BYTES_MAX];
    uint64_t seed = 1;
    int too_large = 0;

    check_fill(base, sizeof base, 7);
    CHECK(difference_make(base, base, difference) == 0);
    for (int round = 0; round < 20000; round++) {
        memcpy(page, base, sizeof page);
        size_t places = check_random(&seed) % (round % 10 ? 12 : 300);
        for (size_t i = 0; i < places; i++)
            page[check_random(&seed) % PAGES_BYTES] ^= (uint8_t)check_random(&seed);
        size_t size = difference_make(base, page, difference);
        too_large += size > DIFFERENCE_BYTES_MAX;
        if (size > DIFFERENCE_BYTES_MAX)
            continue;
        memcpy(again, base, sizeof again);
        CHECK(difference_apply(again, difference, size));
        CHECK(memcmp(again, page, sizeof page) == 0);
        memcpy(base, page, sizeof page);
    }
    CHECK(too_large > 100 && too_large < 5000);
}

static void no_bytes_taken_for_a_difference_do_harm(void)
{
    uint8_t page[PAGES_BYTES] = {0};
    uint8_t difference[DIFFERENCE_BYTES_MAX];
    uint64_t seed = 2;
    int refused = 0;

    for (int round = 0; round < 20000; round++) {
        size_t size = check_random(&seed) % sizeof difference;
        check_fill(difference, size, seed);
        for (size_t i = 1; i < size; i += 2)
            difference[i] &= 7;
        refused += !difference_apply(page, difference, size);
    }
    CHECK(refused > 10000);
}

static void frames_come_back_as_they_were_written(void)
{
    expect_frames(3);
    struct frames *frames = begun();
    for (size_t frame = 0; frame < FRAMES; frame++)
        CHECK(write_frame(frames, frame) == SQLITE_OK);
    CHECK(frames_there(frames) == FRAMES);
    CHECK(disk.size < FRAMES * FRAME_BYTES / 3);
    frames_free(frames);
    frames = opened();
    CHECK(frames_there(frames) == FRAMES);
    frames_free(frames);
}

static void what_goes_on_after_a_kill_is_read_as_well(void)
{
    expect_frames(4);
    struct frames *frames = begun();
    for (size_t frame = 0; frame < FRAMES; frame++) {
        CHECK(write_frame(frames, frame) == SQLITE_OK);
        if (frame % 30 == 29) { /* it commits */
            frames_free(frames);
            frames = opened();
            CHECK(frames_there(frames) == frame + 1);
        }
    }
    frames_free(frames);
}

static void a_transaction_that_could_not_be_written_is_written_anew(void)
{
    for (int fails_at = 0; fails_at < 60; fails_at++) {
        expect_frames((uint64_t)fails_at);
        struct frames *frames = begun();
        disk.writes_left = fails_at;
        size_t first = 0; /* of the transaction */
        for (size_t frame = 0; frame < FRAMES; frame++) {
            if (write_frame(frames, frame) != SQLITE_OK) {
                disk.writes_left = -1;
                frame = first - 1;
                continue;
            }
            if (frame % 3 == 2)
                first = frame + 1;
        }
        CHECK(frames_there(frames) == FRAMES);
        frames_free(frames);
        frames = opened();
        CHECK(frames_there(frames) == FRAMES);
        frames_free(frames);
    }
}

static void a_frame_that_is_written_again_has_its_newest_bytes(void)
{
    static uint8_t kept[FRAMES][FRAME_BYTES];

    expect_frames(5);
    memcpy(kept, expected, sizeof kept);
    expect_frames(6);
    memcpy(kept[0] + FRAME_SALTS_AT, expected[0] + FRAME_SALTS_AT, FRAME_SALTS_BYTES);
    struct frames *frames = begun();
    for (size_t frame = 0; frame < 40; frame++)
        CHECK(write_frame(frames, frame) == SQLITE_OK);
    for (size_t frame = 30; frame < 40; frame++) { /* the other's page, then its header */
        memcpy(expected[frame] + FRAME_HEADER_BYTES, kept[frame] + FRAME_HEADER_BYTES, PAGES_BYTES);
        CHECK(frames_write(frames, file, expected[frame] + FRAME_HEADER_BYTES, PAGES_BYTES,
                           place(frame) + FRAME_HEADER_BYTES) == SQLITE_OK);
        expected[frame][FRAME_CHECKSUM_AT] ^= 1;
        CHECK(frames_write(frames, file, expected[frame], FRAME_HEADER_BYTES, place(frame)) ==
              SQLITE_OK);
    }
    CHECK(frames_there(frames) == 40);
    frames_free(frames);
    frames = opened();
    CHECK(frames_there(frames) == 40);
    frames_free(frames);
}

static void a_log_ends_where_it_is_damaged_or_cut_short(void)
{
    expect_frames(8);
    struct frames *frames = begun();
    for (size_t frame = 0; frame < FRAMES; frame++)
        CHECK(write_frame(frames, frame) == SQLITE_OK);
    frames_free(frames);
    size_t whole = disk.size;
    for (size_t at = RECORDS_AT; at < whole; at += 53) {
        disk.bytes[at] ^= 1 << at % 8;
        frames = opened();
        CHECK(frames_there(frames) < FRAMES);
        frames_free(frames);
        disk.bytes[at] ^= 1 << at % 8;
    }
    size_t before = FRAMES;
    for (size_t size = whole; size > 0; size -= size < 89 ? size : 89) {
        disk.size = size;
        frames = opened();
        size_t there = frames_there(frames);
        CHECK(there <= before);
        before = there;
        frames_free(frames);
    }
    CHECK(before == 0);
}

static void damage_that_comes_later_is_an_error_and_never_another_page(void)
{
    uint8_t bytes[FRAME_BYTES];
    int failed = 0;

    expect_frames(9);
    struct frames *frames = begun();
    for (size_t frame = 0; frame < FRAMES; frame++)
        CHECK(write_frame(frames, frame) == SQLITE_OK);
    for (size_t at = RECORDS_AT; at < disk.size; at += 211) {
        disk.bytes[at] ^= 1;
        for (size_t frame = 0; frame < FRAMES; frame++) {
            int result = frames_read(frames, file, bytes, FRAME_BYTES, place(frame));
            CHECK(result == SQLITE_OK || result == SQLITE_IOERR_DATA);
            CHECK(result != SQLITE_OK || memcmp(bytes, expected[frame], FRAME_BYTES) == 0);
            failed += result != SQLITE_OK;
        }
        disk.bytes[at] ^= 1;
    }
    CHECK(failed > 100);
    frames_free(frames);
}

/* As a fuzzer would find them if it could guess checksums. */
static void records_that_make_no_sense_do_no_harm(void)
{
    uint8_t bytes[FRAME_BYTES];
    struct record record;
    uint64_t seed = 11;

    for (int round = 0; round < 300; round++) {
        expect_frames(11);
        struct frames *frames = begun();
        for (size_t frame = 0; frame < 60; frame++)
            CHECK(write_frame(frames, frame) == SQLITE_OK);
        frames_free(frames);
        uint64_t at = RECORDS_AT;
        while (log_read_record(disk.bytes + at, disk.size - at, at, &record)) {
            size_t size = RECORD_HEADER_BYTES + record.length;
            uint64_t chance = check_random(&seed);
            if (chance % 8 == 0)
                record.back = (uint32_t)(check_random(&seed) % (at + 1));
            if (chance % 8 == 1)
                record.depth = (uint8_t)check_random(&seed);
            if (chance % 8 == 2)
                record.frame = (uint32_t)(check_random(&seed) % 60);
            if (chance % 8 == 3)
                check_fill(record.number, sizeof record.number, seed);
            if (chance % 8 == 4 && record.length)
                disk.bytes[at + RECORD_HEADER_BYTES + chance / 8 % record.length] ^= 255;
            log_seal_record(disk.bytes + at, &record);
            at += size;
        }
        frames = opened();
        sqlite3_int64 size;
        CHECK(frames_size(frames, file, &size) == SQLITE_OK);
        for (sqlite3_int64 from = LOG_HEADER_BYTES; from < size; from += FRAME_BYTES) {
            int result = frames_read(frames, file, bytes, FRAME_BYTES, from);
            CHECK(result == SQLITE_OK || result == SQLITE_IOERR_DATA);
        }
        frames_free(frames);
    }
}

static void a_log_of_sqlites_own_is_read_as_it_is_until_it_begins_anew(void)
{
    static const uint8_t magic[4] = {0x37, 0x7f, 0x06, 0x83};
    uint8_t bytes[FRAME_BYTES];

    expect_frames(10);
    memcpy(header, magic, sizeof magic);
    memcpy(disk.bytes, header, sizeof header);
    for (size_t frame = 0; frame < 10; frame++)
        memcpy(disk.bytes + place(frame), expected[frame], FRAME_BYTES);
    disk.size = (size_t)place(10);
    struct frames *frames = opened();
    CHECK(frames_there(frames) == 10);
    CHECK(write_frame(frames, 10) == SQLITE_OK);
    CHECK(frames_there(frames) == 11 && disk.size == (size_t)place(11));
    CHECK(frames_write(frames, file, header, sizeof header, 0) == SQLITE_OK);
    CHECK(frames_read(frames, file, bytes, FRAME_BYTES, place(0)) == SQLITE_IOERR_SHORT_READ);
    for (size_t frame = 0; frame < 9; frame++)
        CHECK(write_frame(frames, frame) == SQLITE_OK);
    CHECK(frames_there(frames) == 9 && memcmp(disk.bytes, log_magic, LOG_MAGIC_BYTES) == 0);
    CHECK(frames_truncate(frames, file, 0) == SQLITE_OK);
    CHECK(frames_there(frames) == 0 && disk.size == 0);
    frames_free(frames);
}

int main(void)
{
    RUN(a_difference_makes_one_page_of_another);
    RUN(no_bytes_taken_for_a_difference_do_harm);
    RUN(frames_come_back_as_they_were_written);
    RUN(what_goes_on_after_a_kill_is_read_as_well);
    RUN(a_transaction_that_could_not_be_written_is_written_anew);
    RUN(a_frame_that_is_written_again_has_its_newest_bytes);
    RUN(a_log_ends_where_it_is_damaged_or_cut_short);
    RUN(damage_that_comes_later_is_an_error_and_never_another_page);
    RUN(records_that_make_no_sense_do_no_harm);
    RUN(a_log_of_sqlites_own_is_read_as_it_is_until_it_begins_anew);
    return 0;
}
