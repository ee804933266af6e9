/*
 * Pages of SQLite taken apart by the columns of their rows, so that what is alike lies together and
 * compresses: digests beside digests, numbers as differences to the ones before. docs/FORMAT.md,
 * "Columns of a group". https://sqlite.org/fileformat.html has the pages and the records.
 */
#ifndef AGENTFS_COLUMNS_H
#define AGENTFS_COLUMNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pages.h"

enum {
    COLUMNS_PAGES = 16, /* taken apart together */
    COLUMNS_GROUP_BYTES = COLUMNS_PAGES * PAGES_BYTES,
    COLUMNS_BYTES_MAX = 3 * COLUMNS_GROUP_BYTES,
};

/*
 * Bytes of the columns; 0: they do not fit. The reserved bytes of the pages are lost. What cannot
 * be taken apart is kept as it is, but rows may come back in another form that means the same: the
 * caller compares.
 */
size_t columns_split(const uint8_t group[COLUMNS_GROUP_BYTES], uint8_t columns[COLUMNS_BYTES_MAX]);

/* Whatever the bytes are; false: no group was split into them. */
bool columns_join(const uint8_t *columns, size_t size, uint8_t group[COLUMNS_GROUP_BYTES]);

#endif
