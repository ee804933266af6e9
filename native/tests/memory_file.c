#include "memory_file.h"

#include <string.h>

#include "check.h"

static struct memory_file *file_of(sqlite3_file *file)
{
    return (struct memory_file *)file;
}

static int memory_read(sqlite3_file *file, void *into, int size, sqlite3_int64 offset)
{
    const struct memory_file *memory = file_of(file);
    size_t there = (size_t)offset < memory->size ? memory->size - (size_t)offset : 0;
    size_t taken = there < (size_t)size ? there : (size_t)size;

    memset(into, 0, (size_t)size);
    memcpy(into, memory->bytes + offset, taken);
    return taken == (size_t)size ? SQLITE_OK : SQLITE_IOERR_SHORT_READ;
}

static int memory_write(sqlite3_file *file, const void *from, int size, sqlite3_int64 offset)
{
    struct memory_file *memory = file_of(file);
    size_t taken = (size_t)size;

    if (memory->writes_left == 0)
        taken /= 2; /* and no more */
    CHECK((size_t)offset + taken <= sizeof memory->bytes);
    memcpy(memory->bytes + offset, from, taken);
    if ((size_t)offset + taken > memory->size)
        memory->size = (size_t)offset + taken;
    if (memory->writes_left == 0)
        return SQLITE_FULL;
    memory->writes_left -= memory->writes_left > 0;
    return SQLITE_OK;
}

static int memory_truncate(sqlite3_file *file, sqlite3_int64 size)
{
    file_of(file)->size = (size_t)size;
    return SQLITE_OK;
}

static int memory_size(sqlite3_file *file, sqlite3_int64 *size)
{
    *size = (sqlite3_int64)file_of(file)->size;
    return SQLITE_OK;
}

const sqlite3_io_methods memory_file_methods = {
    .iVersion = 1,
    .xRead = memory_read,
    .xWrite = memory_write,
    .xTruncate = memory_truncate,
    .xFileSize = memory_size,
};
