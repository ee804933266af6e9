#define _GNU_SOURCE
#include "pages.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bytes.h"
#include "crc32c.h"
#include "frames.h"
#include "packed.h"

enum { CRC_AT = PAGES_BYTES - PAGES_RESERVED };

static struct pages_sqlite library; /* set when the VFS is registered, before a file is opened */

/* One connection uses a file at a time, as SQLite promises: no lock. */
struct checked_file {
    sqlite3_file base;
    sqlite3_file *real;     /* behind this struct, in the memory that SQLite allotted */
    struct frames *frames;  /* owned; of a log; NULL: this is a database */
    int fd;                 /* owned; of a database that is written, to give space back */
    char *packed_path;      /* owned; of a database */
    struct packed *packed;  /* owned; pages that read as zeros are there; NULL: none are */
    struct packed *packing; /* owned; is being made; NULL: none is */
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

bool pages_is_blank(const uint8_t page[PAGES_BYTES])
{
    return page[0] == 0 && memcmp(page, page + 1, PAGES_BYTES - 1) == 0;
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
    if (result != SQLITE_OK || pages_is_good(page, (uint32_t)number))
        return result;
    if (file->packed && pages_is_blank(page) &&
        packed_read(file->packed, (uint32_t)number, page) == 0)
        return SQLITE_OK;
    return SQLITE_IOERR_DATA;
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
    uint32_t number = (uint32_t)(offset / PAGES_BYTES + 1);
    memcpy(page, from, CRC_AT);
    store32(page + CRC_AT, page_crc(page, number));
    if (file->packed)
        packed_note_write(file->packed, number);
    if (file->packing)
        packed_note_write(file->packing, number);
    return file->real->pMethods->xWrite(file->real, page, PAGES_BYTES, offset);
}

static int truncate_database(struct checked_file *file, sqlite3_int64 size)
{
    uint32_t last = (uint32_t)(size / PAGES_BYTES);

    if (file->packed)
        packed_note_end(file->packed, last);
    if (file->packing)
        packed_note_end(file->packing, last);
    return file->real->pMethods->xTruncate(file->real, size);
}

static int sync_database(struct checked_file *file, int flags)
{
    int result = file->real->pMethods->xSync(file->real, flags);

    if (result == SQLITE_OK && file->packed && packed_sync(file->packed) != 0)
        result = SQLITE_IOERR_FSYNC;
    return result;
}

/* --- packing it ---------------------------------------------------------------------------- */

static int result_of(int error)
{
    return error == 0 ? SQLITE_OK : error == ENOSPC ? SQLITE_FULL : SQLITE_IOERR_WRITE;
}

static bool read_id(const char *digits, uint8_t id[PACKED_ID_BYTES])
{
    if (!digits || strlen(digits) != 2 * PACKED_ID_BYTES ||
        strspn(digits, "0123456789abcdef") != 2 * PACKED_ID_BYTES)
        return false;
    for (size_t i = 0; i < PACKED_ID_BYTES; i++) {
        unsigned byte;
        if (sscanf(digits + 2 * i, "%2x", &byte) != 1)
            return false;
        id[i] = (uint8_t)byte;
    }
    return true;
}

/* How many groups there are to add; 0 where holes cannot be made. */
static int begin_packing(struct checked_file *file, const char *id_digits, uint32_t *groups)
{
    uint8_t id[PACKED_ID_BYTES];
    sqlite3_int64 size;

    if (file->fd < 0 || !read_id(id_digits, id))
        return SQLITE_MISUSE;
    packed_close(file->packing);
    file->packing = NULL;
    int result = file->real->pMethods->xFileSize(file->real, &size);
    if (result != SQLITE_OK)
        return result;
    int error = packed_begin(file->packed_path, id, (uint32_t)(size / PAGES_BYTES), &file->packing);
    *groups = error ? 0 : packed_groups(file->packing);
    return error == EOPNOTSUPP ? SQLITE_OK : result_of(error);
}

/* A page that is not packed, and was never written either, is on SQLite's list of free ones. */
static int add_group(struct checked_file *file, const char *number)
{
    uint8_t group[PACKED_GROUP_BYTES] = {0};
    sqlite3_int64 size;

    if (!file->packing || !number)
        return SQLITE_MISUSE;
    uint32_t next = packed_next(file->packing);
    if (strtoul(number, NULL, 10) != next)
        return SQLITE_OK; /* SQLite may prepare a statement twice */
    int result = file->real->pMethods->xFileSize(file->real, &size);
    if (result != SQLITE_OK)
        return result;
    for (uint32_t i = 0; i < PACKED_GROUP_PAGES; i++) {
        sqlite3_int64 page = (sqlite3_int64)next * PACKED_GROUP_PAGES + i + 1;
        uint8_t *into = group + (size_t)i * PAGES_BYTES;
        if (page * PAGES_BYTES > size)
            break;
        result = read_page(file, into, page);
        if (result == SQLITE_IOERR_DATA && pages_is_blank(into))
            packed_note_write(file->packing, (uint32_t)page);
        else if (result != SQLITE_OK)
            return result;
    }
    return result_of(packed_add(file->packing, group));
}

static int finish_packing(struct checked_file *file)
{
    if (!file->packing)
        return SQLITE_OK;
    struct packed *packing = file->packing;
    file->packing = NULL;
    int error = packed_finish(packing);
    if (error) {
        packed_close(packing);
        return result_of(error);
    }
    packed_close(file->packed);
    file->packed = packing;
    return result_of(packed_punch(packing, file->fd));
}

static char *id_of(const struct packed *packed)
{
    char digits[2 * PACKED_ID_BYTES + 1] = "";

    for (size_t i = 0; packed && i < PACKED_ID_BYTES; i++)
        snprintf(digits + 2 * i, 3, "%02x", packed_id(packed)[i]);
    return library.mprintf("%s", digits);
}

/* What is said to a database by PRAGMA; each with another argument, lest a statement be reused. */
static int answer_pragma(struct checked_file *file, char **argument)
{
    const char *name = argument[1];
    uint32_t groups = 0;
    int result = SQLITE_OK;

    if (strcmp(name, "packed_id") == 0) {
        argument[0] = id_of(file->packed);
        return argument[0] ? SQLITE_OK : SQLITE_NOMEM;
    }
    if (strcmp(name, "pack_begin") == 0)
        result = begin_packing(file, argument[2], &groups);
    else if (strcmp(name, "pack_group") == 0)
        result = add_group(file, argument[2]);
    else if (strcmp(name, "pack_finish") == 0)
        result = finish_packing(file);
    else
        return SQLITE_NOTFOUND;
    if (result == SQLITE_OK && !(argument[0] = library.mprintf("%u", groups)))
        result = SQLITE_NOMEM;
    return result;
}

/* --- what SQLite calls --------------------------------------------------------------------- */

static void release(struct checked_file *file)
{
    packed_close(file->packing);
    packed_close(file->packed);
    free(file->packed_path);
    frames_free(file->frames);
    file->packing = file->packed = NULL;
    file->packed_path = NULL;
    file->frames = NULL;
}

static int checked_close(sqlite3_file *file)
{
    struct frames *frames = checked(file)->frames;
    int result = frames ? frames_flush(frames, real(file)) : SQLITE_OK;
    int closed = real(file)->pMethods->xClose(real(file));

    if (checked(file)->fd >= 0)
        close(checked(file)->fd); /* not before: it ends the locks that SQLite has on the file */
    release(checked(file));
    return result == SQLITE_OK ? closed : result;
}

static int checked_read(sqlite3_file *file, void *into, int size, sqlite3_int64 offset)
{
    if (!checked(file)->frames)
        return read_database(checked(file), into, size, offset);
    return frames_read(checked(file)->frames, real(file), into, size, offset);
}

static int checked_write(sqlite3_file *file, const void *from, int size, sqlite3_int64 offset)
{
    if (!checked(file)->frames)
        return write_database(checked(file), from, size, offset);
    return frames_write(checked(file)->frames, real(file), from, size, offset);
}

static int checked_truncate(sqlite3_file *file, sqlite3_int64 size)
{
    if (!checked(file)->frames)
        return truncate_database(checked(file), size);
    return frames_truncate(checked(file)->frames, real(file), size);
}

static int checked_sync(sqlite3_file *file, int flags)
{
    if (!checked(file)->frames)
        return sync_database(checked(file), flags);
    int result = frames_flush(checked(file)->frames, real(file));
    return result == SQLITE_OK ? real(file)->pMethods->xSync(real(file), flags) : result;
}

static int checked_file_size(sqlite3_file *file, sqlite3_int64 *size)
{
    if (!checked(file)->frames)
        return real(file)->pMethods->xFileSize(real(file), size);
    return frames_size(checked(file)->frames, real(file), size);
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
    if (op == SQLITE_FCNTL_PRAGMA && !checked(file)->frames) {
        int result = answer_pragma(checked(file), argument);
        if (result != SQLITE_NOTFOUND)
            return result;
    }
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

/* What a database needs beside what SQLite opened; one without a name is on no disk. */
static int open_packed(struct checked_file *file, const char *name, bool read_only)
{
    if (!name)
        return SQLITE_OK;
    file->packed_path = packed_beside(name, PACKED_SUFFIX);
    if (!file->packed_path)
        return SQLITE_NOMEM;
    if (!read_only)
        file->fd = open(name, O_RDWR | O_CLOEXEC);
    /* Without it, or if it is damaged, the pages in it cannot be read: each says so by itself. */
    return packed_open(file->packed_path, read_only, &file->packed) == ENOMEM ? SQLITE_NOMEM
                                                                              : SQLITE_OK;
}

static int open_file(sqlite3_vfs *vfs, const char *name, sqlite3_file *base, int flags,
                     int *flags_out)
{
    struct checked_file *file = checked(base);

    if (!(flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL)))
        return below(vfs)->xOpen(below(vfs), name, base, flags, flags_out);
    *file = (struct checked_file){
        .real = (sqlite3_file *)(file + 1),
        .fd = -1,
    };
    file->real->pMethods = NULL;
    if (flags & SQLITE_OPEN_WAL) {
        file->frames = frames_new();
        if (!file->frames)
            return SQLITE_NOMEM;
    }
    int result = below(vfs)->xOpen(below(vfs), name, file->real, flags, flags_out);
    if (result == SQLITE_OK)
        result = file->frames ? frames_open(file->frames, file->real)
                              : open_packed(file, name, flags & SQLITE_OPEN_READONLY);
    if (file->real->pMethods)
        base->pMethods = &checked_methods; /* SQLite closes it, whatever the result */
    else
        release(file);
    return result;
}

int pages_register(const struct pages_sqlite *sqlite)
{
    static sqlite3_vfs vfs; /* SQLite keeps it for as long as the process lives */

    if (sqlite->vfs_find(PAGES_VFS))
        return SQLITE_OK;
    library = *sqlite;
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
