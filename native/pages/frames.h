/*
 * What SQLite takes for its write-ahead log: the frames that it writes are kept as differences to
 * the version of the page before (log.h), and made again when it reads them. A create changes some
 * 300 bytes in three pages; SQLite would write the pages.
 *
 * Writes are gathered into one per transaction. Up to the frame that commits nothing of them
 * counts, so they wait in memory until then; when a commit returns, all of it is with the kernel.
 */
#ifndef AGENTFS_FRAMES_H
#define AGENTFS_FRAMES_H

#include <sqlite3.h>

/* Of one log; used by one thread at a time. */
struct frames;

/* NULL: out of memory. */
struct frames *frames_new(void);
void frames_free(struct frames *frames);

/* Each returns an SQLite result code; `log` is the file. */

/* Finds out what is in the file, once it is open: all up to the first record that is damaged. A log
 * of SQLite's own, which an earlier version left, is read and written as it is until it begins
 * anew. */
int frames_open(struct frames *frames, sqlite3_file *log);

int frames_read(struct frames *frames, sqlite3_file *log, void *into, int size,
                sqlite3_int64 offset);
int frames_write(struct frames *frames, sqlite3_file *log, const void *from, int size,
                 sqlite3_int64 offset);
int frames_truncate(struct frames *frames, sqlite3_file *log, sqlite3_int64 size);
int frames_size(struct frames *frames, sqlite3_file *log, sqlite3_int64 *size);

/* Writes what waits: before the file is synced or closed. */
int frames_flush(struct frames *frames, sqlite3_file *log);

#endif
