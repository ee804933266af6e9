#define _GNU_SOURCE
#include "log.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "crc32c.h"
#include "io.h"

enum {
    CRC_BYTES = 4,
    FRAME_AT = 4,
    NUMBER_AT = 8,
    COMMIT_AT = 12,
    CHECKSUM_AT = 16,
    BACK_AT = 24,
    LENGTH_AT = 28,
    DEPTH_AT = 30, /* and a byte that is 0 */
    LOG_CHECKSUM_AT = 24,
};

static_assert(DEPTH_AT + 2 == RECORD_HEADER_BYTES, "docs/FORMAT.md");

const uint8_t log_magic[LOG_MAGIC_BYTES] = {'a', 'g', 'e', 'n', 't', 'L', 'O', 'G'};

void log_seal_record(uint8_t bytes[RECORD_BYTES_MAX], const struct record *record)
{
    store32(bytes + FRAME_AT, record->frame);
    memcpy(bytes + NUMBER_AT, record->number, sizeof record->number);
    memcpy(bytes + COMMIT_AT, record->commit, sizeof record->commit);
    memcpy(bytes + CHECKSUM_AT, record->checksum, sizeof record->checksum);
    store32(bytes + BACK_AT, record->back);
    store16(bytes + LENGTH_AT, record->length);
    bytes[DEPTH_AT] = record->depth;
    bytes[DEPTH_AT + 1] = 0;
    size_t summed = RECORD_HEADER_BYTES - CRC_BYTES + record->length;
    store32(bytes, crc32c(0, bytes + CRC_BYTES, summed));
}

static bool makes_sense(const struct record *record, uint64_t at)
{
    if (record->back == 0)
        return record->length == PAGES_BYTES && record->depth == 0;
    return record->length <= PAGES_BYTES && record->depth > 0 && record->depth <= LOG_DEPTH_MAX &&
           at >= RECORDS_AT && record->back <= at - RECORDS_AT;
}

bool log_read_record(const uint8_t *bytes, size_t size, uint64_t at, struct record *record)
{
    if (size < RECORD_HEADER_BYTES)
        return false;
    record->frame = load32(bytes + FRAME_AT);
    memcpy(record->number, bytes + NUMBER_AT, sizeof record->number);
    memcpy(record->commit, bytes + COMMIT_AT, sizeof record->commit);
    memcpy(record->checksum, bytes + CHECKSUM_AT, sizeof record->checksum);
    record->back = load32(bytes + BACK_AT);
    record->length = load16(bytes + LENGTH_AT);
    record->depth = bytes[DEPTH_AT];
    size_t summed = RECORD_HEADER_BYTES - CRC_BYTES + record->length;
    return makes_sense(record, at) && size - CRC_BYTES >= summed &&
           load32(bytes) == crc32c(0, bytes + CRC_BYTES, summed);
}

/* Have a record in the window, if there is as much of the log. */
static void fill(struct log_scan *scan)
{
    if (scan->size - scan->at >= RECORD_BYTES_MAX || scan->has_failed)
        return;
    memmove(scan->window, scan->window + scan->at, scan->size - scan->at);
    scan->offset += scan->at;
    scan->size -= scan->at;
    scan->at = 0;
    ssize_t more = scan->read(scan->source, scan->window + scan->size,
                              sizeof scan->window - scan->size, scan->offset + scan->size);
    scan->has_failed = more < 0;
    scan->size += more > 0 ? (size_t)more : 0;
}

bool log_scan_next(struct log_scan *scan, struct record *record)
{
    fill(scan);
    return log_read_record(scan->window + scan->at, scan->size - scan->at, scan->offset + scan->at,
                           record);
}

static uint32_t word(const uint8_t *at, bool big_endian)
{
    return big_endian ? load32_big_endian(at) : load32(at);
}

/* As SQLite asks: of one that is not good it takes nothing. */
static bool header_is_good(const uint8_t header[LOG_HEADER_BYTES])
{
    uint32_t sum[2] = {0, 0};

    for (size_t i = 0; i < LOG_CHECKSUM_AT; i += 8) {
        sum[0] += word(header + i, header[3] & 1) + sum[1];
        sum[1] += word(header + i + 4, header[3] & 1) + sum[0];
    }
    return sum[0] == word(header + LOG_CHECKSUM_AT, true) &&
           sum[1] == word(header + LOG_CHECKSUM_AT + 4, true);
}

static ssize_t read_log(void *source, uint8_t *into, size_t size, uint64_t offset)
{
    const int *fd = source;
    size_t got;

    errno = io_read(*fd, into, size, offset, &got);
    return errno ? -1 : (ssize_t)got;
}

static size_t commits_behind_end(struct log_scan *scan, bool has_ended)
{
    struct record record;
    size_t lost = 0;
    uint32_t last = UINT32_MAX; /* one that commits may be there twice */

    for (;;) {
        if (!log_scan_next(scan, &record)) {
            if (scan->size == scan->at)
                return lost;
            has_ended = true;
            scan->at++;
            continue;
        }
        bool commits = load32(record.commit) != 0;
        lost += has_ended && commits && record.frame != last;
        if (commits)
            last = record.frame;
        scan->at += RECORD_HEADER_BYTES + record.length;
    }
}

int log_commits_behind_end(int fd, size_t *lost)
{
    uint8_t header[RECORDS_AT];

    *lost = 0;
    ssize_t size = read_log(&fd, header, sizeof header, 0);
    if (size < RECORDS_AT)
        return size < 0 ? errno : 0;
    struct log_scan *scan = calloc(1, sizeof *scan);
    if (!scan)
        return ENOMEM;
    scan->read = read_log;
    scan->source = &fd;
    scan->offset = RECORDS_AT;
    bool is_ours = memcmp(header, log_magic, sizeof log_magic) == 0;
    *lost = commits_behind_end(scan, !is_ours || !header_is_good(header + LOG_MAGIC_BYTES));
    int error = scan->has_failed ? errno : 0;
    free(scan);
    return error;
}
