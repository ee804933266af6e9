#define _GNU_SOURCE
#include "log.h"

#include <errno.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "bytes.h"

enum {
    MAGIC = 0x377f0682, /* its last bit says big-endian */
    PAGE_BYTES_AT = 8,
    SALTS_AT = 16, /* in the header of the log */
    SALTS_BYTES = 8,
    FRAME_COMMIT_AT = 4, /* pages of the database after a commit; 0: none */
    FRAME_SALTS_AT = 8,
    FRAME_SUMMED_BYTES = 8, /* of the header of a frame: what its checksum covers */
    FRAMES_AT_ONCE = 32,
};

static uint32_t word(const uint8_t *at, bool big_endian)
{
    uint32_t value = load32(at);
    return big_endian ? __builtin_bswap32(value) : value;
}

static void add_to_checksum(uint32_t sum[2], const uint8_t *bytes, size_t size, bool big_endian)
{
    for (size_t i = 0; i < size; i += 8) {
        sum[0] += word(bytes + i, big_endian) + sum[1];
        sum[1] += word(bytes + i + 4, big_endian) + sum[0];
    }
}

static bool is_checksum(const uint32_t sum[2], const uint8_t stored[LOG_CHECKSUM_BYTES])
{
    return sum[0] == word(stored, true) && sum[1] == word(stored + 4, true);
}

bool log_is_big_endian(const uint8_t header[LOG_HEADER_BYTES])
{
    return header[3] & 1;
}

bool log_frame_follows(const uint8_t before[LOG_CHECKSUM_BYTES],
                       const uint8_t header[FRAME_HEADER_BYTES], const uint8_t page[PAGES_BYTES],
                       bool big_endian)
{
    uint32_t sum[2] = {word(before, true), word(before + 4, true)};
    add_to_checksum(sum, header, FRAME_SUMMED_BYTES, big_endian);
    add_to_checksum(sum, page, PAGES_BYTES, big_endian);
    return is_checksum(sum, header + FRAME_CHECKSUM_AT);
}

static bool header_is_good(const uint8_t header[LOG_HEADER_BYTES])
{
    uint32_t sum[2] = {0, 0};
    add_to_checksum(sum, header, LOG_CHECKSUM_AT, log_is_big_endian(header));
    return (word(header, true) & ~1u) == MAGIC &&
           word(header + PAGE_BYTES_AT, true) == PAGES_BYTES &&
           is_checksum(sum, header + LOG_CHECKSUM_AT);
}

struct scan {
    bool has_begun; /* the salts are known */
    bool has_ended; /* for SQLite */
    bool big_endian;
    uint8_t salts[SALTS_BYTES];
    uint8_t before[LOG_CHECKSUM_BYTES]; /* checksum of what comes before the next frame */
    size_t lost;
};

static void begin(struct scan *scan, const uint8_t header[LOG_HEADER_BYTES])
{
    *scan = (struct scan){
        .has_begun = header_is_good(header),
        .big_endian = log_is_big_endian(header),
    };
    scan->has_ended = !scan->has_begun;
    memcpy(scan->salts, header + SALTS_AT, SALTS_BYTES);
    memcpy(scan->before, header + LOG_CHECKSUM_AT, LOG_CHECKSUM_BYTES);
}

static void look_at(struct scan *scan, const uint8_t frame[FRAME_BYTES])
{
    /* Another log's frames may lie behind this one's. Without a header, the first has the salts. */
    if (!scan->has_begun)
        memcpy(scan->salts, frame + FRAME_SALTS_AT, SALTS_BYTES);
    scan->has_begun = true;
    if (memcmp(frame + FRAME_SALTS_AT, scan->salts, SALTS_BYTES) != 0 ||
        !log_frame_follows(scan->before, frame, frame + FRAME_HEADER_BYTES, scan->big_endian))
        scan->has_ended = true;
    else if (scan->has_ended && word(frame + FRAME_COMMIT_AT, true) != 0)
        scan->lost++;
    memcpy(scan->before, frame + FRAME_CHECKSUM_AT, LOG_CHECKSUM_BYTES);
}

static ssize_t read_fully(int fd, uint8_t *into, size_t size, off_t offset)
{
    size_t done = 0;

    while (done < size) {
        ssize_t count = pread(fd, into + done, size - done, offset + (off_t)done);
        if (count < 0 && errno == EINTR)
            continue;
        if (count < 0)
            return -1;
        if (count == 0)
            break;
        done += (size_t)count;
    }
    return (ssize_t)done;
}

int log_commits_behind_end(int fd, size_t *lost)
{
    uint8_t frames[FRAMES_AT_ONCE * FRAME_BYTES];
    struct scan scan;
    off_t offset = LOG_HEADER_BYTES;

    *lost = 0;
    ssize_t size = read_fully(fd, frames, LOG_HEADER_BYTES, 0);
    if (size < LOG_HEADER_BYTES)
        return size < 0 ? errno : 0;
    begin(&scan, frames);
    do {
        size = read_fully(fd, frames, sizeof frames, offset);
        if (size < 0)
            return errno;
        offset += size;
        for (ssize_t at = 0; at + FRAME_BYTES <= size; at += FRAME_BYTES)
            look_at(&scan, frames + at);
    } while (size == (ssize_t)sizeof frames);
    *lost = scan.lost;
    return 0;
}
