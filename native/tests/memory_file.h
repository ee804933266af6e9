/* A file of SQLite's in memory, on a disk that may fail. */
#ifndef AGENTFS_MEMORY_FILE_H
#define AGENTFS_MEMORY_FILE_H

#include <stddef.h>
#include <stdint.h>

#include <sqlite3.h>

enum { MEMORY_FILE_MAX = 4 << 20 };

struct memory_file {
    sqlite3_file base;
    size_t size;
    int writes_left; /* until one fails, half done; -1: none does */
    uint8_t bytes[MEMORY_FILE_MAX];
};

extern const sqlite3_io_methods memory_file_methods;

#define MEMORY_FILE                                                                                \
    {                                                                                              \
        .base = {&memory_file_methods}, .writes_left = -1                                          \
    }

#endif
