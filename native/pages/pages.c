#include "pages.h"

#include <stdlib.h>
#include <string.h>

#include "bytes.h"
#include "crc32c.h"
#include "gather.h"
#include "log.h"

enum {
    CRC_AT = PAGES_BYTES - PAGES_RESERVED,
    FIRST_PAGE_AT = LOG_HEADER_BYTES + FRAME_HEADER_BYTES,
};

static const sqlite3_int64 NOWHERE = INT64_MAX;

/* One connection uses a file at a time, as SQLite promises: no lock. */
struct checked_file {
    sqlite3_file base;
    sqlite3_file *real;           /* behind this struct, in the memory that SQLite allotted */
    struct gather *gather;        /* of a log; NULL: this is a database */
    sqlite3_int64 frame_header;   /* where one was written last */
    sqlite3_int64 rewritten_from; /* pages from here on have frame headers that do not fit yet */
};

static uint32_t page_crc(const uint8_t page[PAGES_BYTES], uint32_t number)
{
    uint8_t place[4];
    store32(place, number);
    return crc32c(crc32c(0, page, CRC_AT), place, sizeof place);
}

bool pages_is_good(const uint8_t page[PAGES_BYTES], uint32_t number)
{
    return load32(page + CRC_AT) == page_crc(page, number);
}

static struct checked_file *checked(sqlite3_file *file)
{
    return (struct checked_file *)file;
}

static sqlite3_file *real(sqlite3_file *file)
{
    return checked(file)->real;
}

/* --- the database -------------------------------------------------------------------------- */

static int read_page(struct checked_file *file, uint8_t page[PAGES_BYTES], sqlite3_int64 number)
{
    int result =
        file->real->pMethods->xRead(file->real, page, PAGES_BYTES, (number - 1) * PAGES_BYTES);
    if (result == SQLITE_IOERR_SHORT_READ)
        return SQLITE_IOERR_DATA; /* SQLite would take what is missing for zeros */
    if (result == SQLITE_OK && !pages_is_good(page, (uint32_t)number))
        return SQLITE_IOERR_DATA;
    return result;
}

/* A database that is not there yet is made as the header of its first page says. */
static int read_nothing(uint8_t *into, int size, sqlite3_int64 offset)
{
    memset(into, 0, (size_t)size);
    if (offset == 0 && size > PAGES_RESERVED_AT) {
        into[PAGES_PAGE_BYTES_AT] = PAGES_BYTES >> 8;
        into[PAGES_RESERVED_AT] = PAGES_RESERVED;
    }
    return SQLITE_IOERR_SHORT_READ;
}

static int read_database(struct checked_file *file, uint8_t *into, int size, sqlite3_int64 offset)
{
    uint8_t page[PAGES_BYTES];
    sqlite3_int64 file_bytes;

    int result = file->real->pMethods->xFileSize(file->real, &file_bytes);
    if (result != SQLITE_OK)
        return result;
    if (file_bytes == 0)
        return read_nothing(into, size, offset);
    while (size > 0) {
        int within = (int)(offset % PAGES_BYTES);
        int taken = size < PAGES_BYTES - within ? size : PAGES_BYTES - within;
        result = read_page(file, page, offset / PAGES_BYTES + 1);
        if (result != SQLITE_OK)
            return result;
        memcpy(into, page + within, (size_t)taken);
        into += taken;
        offset += taken;
        size -= taken;
    }
    return SQLITE_OK;
}

static int write_database(struct checked_file *file, const void *from, int size,
                          sqlite3_int64 offset)
{
    uint8_t page[PAGES_BYTES];

    if (size != PAGES_BYTES || offset % PAGES_BYTES != 0)
        return SQLITE_IOERR_WRITE; /* a database of other pages is none of ours */
    memcpy(page, from, CRC_AT);
    store32(page + CRC_AT, page_crc(page, (uint32_t)(offset / PAGES_BYTES + 1)));
    return file->real->pMethods->xWrite(file->real, page, PAGES_BYTES, offset);
}

/* --- its log ------------------------------------------------------------------------------- */

static bool is_page_of_log(int size, sqlite3_int64 offset)
{
    return size == PAGES_BYTES && offset >= FIRST_PAGE_AT &&
           (offset - FIRST_PAGE_AT) % FRAME_BYTES == 0;
}

static int check_frame(struct checked_file *file, const uint8_t *page, sqlite3_int64 offset)
{
    uint8_t log_header[LOG_HEADER_BYTES];
    uint8_t before[LOG_CHECKSUM_BYTES];
    uint8_t header[FRAME_HEADER_BYTES];
    const sqlite3_io_methods *methods = file->real->pMethods;

    int result = methods->xRead(file->real, log_header, sizeof log_header, 0);
    if (result != SQLITE_OK)
        return result;
    sqlite3_int64 frame = offset - FRAME_HEADER_BYTES;
    sqlite3_int64 checksum_before =
        frame == LOG_HEADER_BYTES ? LOG_CHECKSUM_AT : frame - FRAME_BYTES + FRAME_CHECKSUM_AT;
    result = methods->xRead(file->real, before, sizeof before, checksum_before);
    if (result == SQLITE_OK)
        result = methods->xRead(file->real, header, sizeof header, frame);
    if (result != SQLITE_OK)
        return result;
    bool is_good = log_frame_follows(before, header, page, log_is_big_endian(log_header));
    return is_good ? SQLITE_OK : SQLITE_IOERR_DATA;
}

static int read_log(struct checked_file *file, uint8_t *into, int size, sqlite3_int64 offset)
{
    int result = file->real->pMethods->xRead(file->real, into, size, offset);
    if (result == SQLITE_OK && is_page_of_log(size, offset) && offset < file->rewritten_from)
        result = check_frame(file, into, offset);
    return result;
}

/*
 * A transaction that outgrows SQLite's cache may write a page a second time, in its frame, without
 * the header. All headers from there on are written again before the transaction is committed.
 */
static void note_write(struct checked_file *file, int size, sqlite3_int64 offset)
{
    if (size == FRAME_HEADER_BYTES) {
        file->frame_header = offset;
        if (offset + FRAME_HEADER_BYTES <= file->rewritten_from)
            file->rewritten_from = NOWHERE;
    } else if (is_page_of_log(size, offset)) {
        bool has_header = file->frame_header == offset - FRAME_HEADER_BYTES;
        if (!has_header && offset < file->rewritten_from)
            file->rewritten_from = offset;
        file->frame_header = -1;
    }
}

/* --- what SQLite calls --------------------------------------------------------------------- */

/* Whatever looks at the log is to find there what was written to it. */
static int settled(sqlite3_file *file)
{
    struct gather *gather = checked(file)->gather;

    return gather ? gather_flush(gather, real(file)) : SQLITE_OK;
}

static int checked_close(sqlite3_file *file)
{
    int result = settled(file);
    int closed = real(file)->pMethods->xClose(real(file));

    free(checked(file)->gather);
    checked(file)->gather = NULL;
    return result == SQLITE_OK ? closed : result;
}

static int checked_read(sqlite3_file *file, void *into, int size, sqlite3_int64 offset)
{
    if (!checked(file)->gather)
        return read_database(checked(file), into, size, offset);
    int result = settled(file);
    return result == SQLITE_OK ? read_log(checked(file), into, size, offset) : result;
}

static int checked_write(sqlite3_file *file, const void *from, int size, sqlite3_int64 offset)
{
    if (!checked(file)->gather)
        return write_database(checked(file), from, size, offset);
    note_write(checked(file), size, offset);
    return gather_write(checked(file)->gather, real(file), from, size, offset);
}

static int checked_truncate(sqlite3_file *file, sqlite3_int64 size)
{
    int result = settled(file);
    return result == SQLITE_OK ? real(file)->pMethods->xTruncate(real(file), size) : result;
}

static int checked_sync(sqlite3_file *file, int flags)
{
    int result = settled(file);
    return result == SQLITE_OK ? real(file)->pMethods->xSync(real(file), flags) : result;
}

static int checked_file_size(sqlite3_file *file, sqlite3_int64 *size)
{
    int result = settled(file);
    return result == SQLITE_OK ? real(file)->pMethods->xFileSize(real(file), size) : result;
}

static int checked_lock(sqlite3_file *file, int kind)
{
    return real(file)->pMethods->xLock(real(file), kind);
}

static int checked_unlock(sqlite3_file *file, int kind)
{
    return real(file)->pMethods->xUnlock(real(file), kind);
}

static int checked_check_reserved_lock(sqlite3_file *file, int *is_held)
{
    return real(file)->pMethods->xCheckReservedLock(real(file), is_held);
}

static int checked_file_control(sqlite3_file *file, int op, void *argument)
{
    return real(file)->pMethods->xFileControl(real(file), op, argument);
}

static int checked_sector_size(sqlite3_file *file)
{
    return real(file)->pMethods->xSectorSize(real(file));
}

static int checked_device_characteristics(sqlite3_file *file)
{
    return real(file)->pMethods->xDeviceCharacteristics(real(file));
}

static int checked_shm_map(sqlite3_file *file, int page, int size, int extend, void volatile **at)
{
    return real(file)->pMethods->xShmMap(real(file), page, size, extend, at);
}

static int checked_shm_lock(sqlite3_file *file, int offset, int count, int flags)
{
    return real(file)->pMethods->xShmLock(real(file), offset, count, flags);
}

static void checked_shm_barrier(sqlite3_file *file)
{
    real(file)->pMethods->xShmBarrier(real(file));
}

static int checked_shm_unmap(sqlite3_file *file, int delete_it)
{
    return real(file)->pMethods->xShmUnmap(real(file), delete_it);
}

/* Version 2: without xFetch, by which SQLite would read a mapping and not ask us. */
static const sqlite3_io_methods checked_methods = {
    .iVersion = 2,
    .xClose = checked_close,
    .xRead = checked_read,
    .xWrite = checked_write,
    .xTruncate = checked_truncate,
    .xSync = checked_sync,
    .xFileSize = checked_file_size,
    .xLock = checked_lock,
    .xUnlock = checked_unlock,
    .xCheckReservedLock = checked_check_reserved_lock,
    .xFileControl = checked_file_control,
    .xSectorSize = checked_sector_size,
    .xDeviceCharacteristics = checked_device_characteristics,
    .xShmMap = checked_shm_map,
    .xShmLock = checked_shm_lock,
    .xShmBarrier = checked_shm_barrier,
    .xShmUnmap = checked_shm_unmap,
};

static sqlite3_vfs *below(sqlite3_vfs *vfs)
{
    return vfs->pAppData;
}

static int open_file(sqlite3_vfs *vfs, const char *name, sqlite3_file *base, int flags,
                     int *flags_out)
{
    struct checked_file *file = checked(base);

    if (!(flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL)))
        return below(vfs)->xOpen(below(vfs), name, base, flags, flags_out);
    *file = (struct checked_file){
        .real = (sqlite3_file *)(file + 1),
        .frame_header = -1,
        .rewritten_from = NOWHERE,
    };
    file->real->pMethods = NULL;
    if (flags & SQLITE_OPEN_WAL) {
        file->gather = calloc(1, sizeof *file->gather);
        if (!file->gather)
            return SQLITE_NOMEM;
    }
    int result = below(vfs)->xOpen(below(vfs), name, file->real, flags, flags_out);
    if (file->real->pMethods) {
        base->pMethods = &checked_methods;
    } else {
        free(file->gather);
        file->gather = NULL;
    }
    return result;
}

int pages_register(const struct pages_sqlite *sqlite)
{
    static sqlite3_vfs vfs; /* SQLite keeps it for as long as the process lives */

    if (sqlite->vfs_find(PAGES_VFS))
        return SQLITE_OK;
    sqlite3_vfs *ordinary = sqlite->vfs_find(NULL);
    if (ordinary == NULL)
        return SQLITE_ERROR;
    vfs = *ordinary; /* all but xOpen is its business; none of it looks at the vfs it is called with
                      */
    vfs.pNext = NULL;
    vfs.zName = PAGES_VFS;
    vfs.szOsFile = (int)sizeof(struct checked_file) + ordinary->szOsFile;
    vfs.pAppData = ordinary;
    vfs.xOpen = open_file;
    return sqlite->vfs_register(&vfs, 0);
}
