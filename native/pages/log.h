/*
 * The log of an index: SQLite's write-ahead log, https://sqlite.org/fileformat.html#walformat, with
 * differences between versions of a page in place of pages. docs/FORMAT.md, "Log", is the format.
 */
#ifndef AGENTFS_LOG_H
#define AGENTFS_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "pages.h"

/* What SQLite reads and writes. */
enum {
    LOG_HEADER_BYTES = 32,
    FRAME_HEADER_BYTES = 24,
    FRAME_BYTES = FRAME_HEADER_BYTES + PAGES_BYTES,
    FRAME_COMMIT_AT = 4, /* in the header of a frame: pages of the database if it commits, or 0 */
    FRAME_SALTS_AT = 8,
    FRAME_SALTS_BYTES = 8,
    FRAME_CHECKSUM_AT = 16,
    FRAME_CHECKSUM_BYTES = 8,
    LOG_SALTS_AT = 16, /* in the header of the log */
};

/* What is in the file. */
enum {
    LOG_MAGIC_BYTES = 8,
    RECORDS_AT = LOG_MAGIC_BYTES + LOG_HEADER_BYTES,
    RECORD_HEADER_BYTES = 32,
    RECORD_BYTES_MAX = RECORD_HEADER_BYTES + PAGES_BYTES,
    LOG_DEPTH_MAX = 32, /* differences between a page and the whole one they lead back to */
};

extern const uint8_t log_magic[LOG_MAGIC_BYTES];

/* One frame, or one more version of it. */
struct record {
    uint32_t frame; /* from 0 on */
    uint8_t number[4];
    uint8_t commit[4];
    uint8_t checksum[FRAME_CHECKSUM_BYTES]; /* these three as they are in the frame's header */
    uint32_t back; /* bytes to the record that the difference is to; 0: the page is whole */
    uint16_t length;
    uint8_t depth;
};

/* Puts a record of `length` bytes, which are behind its header already, in order. */
void log_seal_record(uint8_t bytes[RECORD_BYTES_MAX], const struct record *record);

/* Reads a record at a place in the log, of which so many bytes are there; false: it is none. */
bool log_read_record(const uint8_t *bytes, size_t size, uint64_t at, struct record *record);

enum { LOG_WINDOW_BYTES = 64 << 10 };

/* Goes through the records of a log. */
struct log_scan {
    ssize_t (*read)(void *source, uint8_t *into, size_t size, uint64_t offset); /* or -1 */
    void *source;
    uint64_t offset; /* of the window in the log */
    size_t at, size; /* in the window */
    bool has_failed; /* to read */
    uint8_t window[LOG_WINDOW_BYTES];
};

/* Goes to what begins at scan->offset + scan->at; false: there is no record. */
bool log_scan_next(struct log_scan *scan, struct record *record);

/*
 * How many transactions a log holds behind the first record that is damaged, where it ends for
 * SQLite without a word. What is left of one that was not committed counts for nothing, so this is
 * 0 whenever a process was killed. It is 0 as well, though the last transaction is lost, if the
 * damage is in its last record. Returns 0 or an errno.
 */
int log_commits_behind_end(int fd, size_t *lost);

#endif
