/*
 * Writes to a log, gathered into one per transaction. SQLite writes each frame in two pieces, the
 * header and the page, which makes a dozen system calls of a small commit. Up to the frame that
 * commits nothing of them counts, so they wait in memory until then; when a commit returns, all of
 * it is with the kernel, as without this.
 */
#ifndef AGENTFS_GATHER_H
#define AGENTFS_GATHER_H

#include <stdbool.h>
#include <stdint.h>

#include <sqlite3.h>

#include "log.h"

enum { GATHER_BYTES = 64 * FRAME_BYTES };

struct gather {
    uint8_t bytes[GATHER_BYTES];
    int used;
    sqlite3_int64 offset; /* of the first byte in the log */
    sqlite3_int64 end;    /* of what was written since the log began anew */
    bool commits;         /* the header that came last is of a frame that commits */
};

/* Returns an SQLite result code, of this write or of earlier ones that had waited. */
int gather_write(struct gather *gather, sqlite3_file *log, const void *from, int size,
                 sqlite3_int64 offset);

/* Writes what waits: before the log is read, measured, cut, synced or closed. */
int gather_flush(struct gather *gather, sqlite3_file *log);

#endif
