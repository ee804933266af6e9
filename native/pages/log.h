/*
 * SQLite's write-ahead log of an index: what the checksums of its frames say of each other,
 * https://sqlite.org/fileformat.html#walformat
 */
#ifndef AGENTFS_LOG_H
#define AGENTFS_LOG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pages.h"

enum {
    LOG_HEADER_BYTES = 32,
    LOG_CHECKSUM_BYTES = 8,
    LOG_CHECKSUM_AT = 24, /* in the header of the log */
    FRAME_HEADER_BYTES = 24,
    FRAME_CHECKSUM_AT = 16, /* in the header of a frame */
    FRAME_BYTES = FRAME_HEADER_BYTES + PAGES_BYTES,
};

/* Whether the sums in a log are of big-endian words; those themselves always are. */
bool log_is_big_endian(const uint8_t header[LOG_HEADER_BYTES]);

/* Whether a frame's checksum goes on from that of the frame before, or of the log's header. */
bool log_frame_follows(const uint8_t before[LOG_CHECKSUM_BYTES],
                       const uint8_t header[FRAME_HEADER_BYTES], const uint8_t page[PAGES_BYTES],
                       bool big_endian);

/*
 * How many transactions a log holds behind the first frame that is damaged, where SQLite takes it
 * to end without a word. What is left of one that was not committed counts for nothing, so this is
 * 0 whenever a process was killed. It is 0 as well, though the last transaction is lost, if the
 * damage is in the last frame or in the checksum of the one before. Returns 0 or an errno.
 */
int log_commits_behind_end(int fd, size_t *lost);

#endif
