/*
 * The log of an index on arbitrary files. The first byte chooses: of an odd one the checksums of
 * everything that looks like a record are mended, so that what lies behind them is reached. What is
 * read twice is the same, and so is what is written over it.
 */
#include "log.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "crc32c.h"
#include "frames.h"
#include "memory_file.h"

enum { LENGTH_AT = 28, FRAMES = 40 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct memory_file disk = MEMORY_FILE;
static sqlite3_file *const file = &disk.base;

static void mend(uint8_t *log, size_t size)
{
    if (size < RECORDS_AT)
        return;
    memcpy(log, log_magic, LOG_MAGIC_BYTES);
    size_t length;
    for (size_t at = RECORDS_AT; size - at >= RECORD_HEADER_BYTES; at += length) {
        length = RECORD_HEADER_BYTES + (size_t)load16(log + at + LENGTH_AT);
        if (length > size - at)
            return;
        store32(log + at, crc32c(0, log + at + 4, length - 4));
    }
}

static sqlite3_int64 place(size_t frame)
{
    return LOG_HEADER_BYTES + (sqlite3_int64)frame * FRAME_BYTES;
}

static struct frames *opened(void)
{
    struct frames *frames = frames_new();
    if (!frames || frames_open(frames, file) != SQLITE_OK)
        abort();
    return frames;
}

/* Backwards, so that differences are followed; then as SQLite does, which remembers pages. */
static void read_twice(void)
{
    static uint8_t backwards[FRAMES][FRAME_BYTES];
    uint8_t forwards[FRAME_BYTES];
    int results[FRAMES];

    struct frames *frames = opened();
    for (size_t i = FRAMES; i-- > 0;)
        results[i] = frames_read(frames, file, backwards[i], FRAME_BYTES, place(i));
    frames_free(frames);
    frames = opened();
    for (size_t i = 0; i < FRAMES; i++) {
        int result = frames_read(frames, file, forwards, FRAME_BYTES, place(i));
        if (result == SQLITE_OK && results[i] == SQLITE_OK &&
            memcmp(forwards, backwards[i], FRAME_BYTES) != 0)
            abort();
    }
    frames_free(frames);
}

static void write_over(const uint8_t *data, size_t size)
{
    uint8_t frame[FRAME_BYTES] = {[3] = 1, [FRAME_COMMIT_AT] = 1};
    uint8_t found[FRAME_BYTES];

    struct frames *frames = opened();
    memcpy(frame + FRAME_HEADER_BYTES, data, size < PAGES_BYTES ? size : PAGES_BYTES);
    bool is_written =
        frames_write(frames, file, frame, FRAME_HEADER_BYTES, place(0)) == SQLITE_OK &&
        frames_write(frames, file, frame + FRAME_HEADER_BYTES, PAGES_BYTES,
                     place(0) + FRAME_HEADER_BYTES) == SQLITE_OK;
    if (is_written &&
        (frames_read(frames, file, found, FRAME_BYTES, place(0)) != SQLITE_OK ||
         memcmp(found + FRAME_HEADER_BYTES, frame + FRAME_HEADER_BYTES, PAGES_BYTES) != 0))
        abort();
    frames_free(frames);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1 || size > MEMORY_FILE_MAX / 2)
        return 0;
    disk.size = size - 1;
    memcpy(disk.bytes, data + 1, disk.size);
    if (data[0] & 1)
        mend(disk.bytes, disk.size);
    read_twice();
    write_over(data, size);
    return 0;
}
