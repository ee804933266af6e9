#include "gather.h"

#include <string.h>

#include "bytes.h"

enum { COMMIT_AT = 4 }; /* in the header of a frame: pages of the database if it commits, or 0 */

int gather_flush(struct gather *gather, sqlite3_file *log)
{
    int size = gather->used;

    gather->used = 0; /* should it fail, SQLite gives the transaction up and writes another */
    if (size == 0)
        return SQLITE_OK;
    return log->pMethods->xWrite(log, gather->bytes, size, gather->offset);
}

static int write_through(struct gather *gather, sqlite3_file *log, const void *from, int size,
                         sqlite3_int64 offset)
{
    int result = gather_flush(gather, log);

    if (result != SQLITE_OK)
        return result;
    return log->pMethods->xWrite(log, from, size, offset);
}

static bool is_next(const struct gather *gather, int size, sqlite3_int64 offset)
{
    return gather->used == 0 ||
           (offset == gather->offset + gather->used && size <= GATHER_BYTES - gather->used);
}

int gather_write(struct gather *gather, sqlite3_file *log, const void *from, int size,
                 sqlite3_int64 offset)
{
    int result = SQLITE_OK;

    if (offset == 0)
        gather->end = 0;
    /* Headers are written again after the page that commits, so they may not wait for one. */
    if (offset < gather->end || size > GATHER_BYTES)
        return write_through(gather, log, from, size, offset);
    if (!is_next(gather, size, offset))
        result = gather_flush(gather, log);
    if (result != SQLITE_OK)
        return result;
    if (gather->used == 0)
        gather->offset = offset;
    memcpy(gather->bytes + gather->used, from, (size_t)size);
    gather->used += size;
    gather->end = offset + size;
    if (size == FRAME_HEADER_BYTES) {
        gather->commits = load32((const uint8_t *)from + COMMIT_AT) != 0;
        return SQLITE_OK;
    }
    return gather->commits ? gather_flush(gather, log) : SQLITE_OK;
}
