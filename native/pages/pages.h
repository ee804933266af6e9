/*
 * A VFS of SQLite whose database pages carry a CRC32C, checked at every read. docs/FORMAT.md,
 * "Index", is the format. Its write-ahead log is kept as differences (frames.h). Pages may be
 * packed (packed.h); these pragmas pack those of an open database:
 *
 * - packed_id: the id of the file that has them, or "".
 * - pack_begin=ID: a new such file, of 32 hexadecimal digits; how many groups there are to add, 0
 *   where that is of no use.
 * - pack_group=N ID: adds a group, from 0 on; between two of them the database may be written.
 * - pack_finish=ID: the file takes the place of the old one, and the database gives back space.
 */
#ifndef AGENTFS_PAGES_H
#define AGENTFS_PAGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <sqlite3.h>

#define PAGES_VFS           "agentfs"
#define PAGES_BYTES         1024
#define PAGES_RESERVED      4  /* at the end of each page, which SQLite leaves alone */
#define PAGES_RESERVED_AT   20 /* in the database header: how many bytes are reserved */
#define PAGES_PAGE_BYTES_AT 16 /* in the database header, big-endian */

/* Numbers begin at 1. */
bool pages_is_good(const uint8_t page[PAGES_BYTES], uint32_t number);

/* All zeros, which is no good page: of one that is packed. */
bool pages_is_blank(const uint8_t page[PAGES_BYTES]);

/* What is called of the SQLite that is to know the VFS: the program may have more than one. */
struct pages_sqlite {
    sqlite3_vfs *(*vfs_find)(const char *name);
    int (*vfs_register)(sqlite3_vfs *vfs, int make_default);
    char *(*mprintf)(const char *format, ...);
};

/* Makes the VFS PAGES_VFS known, above the default one. Once is enough; an SQLite result code. */
int pages_register(const struct pages_sqlite *sqlite);

#endif
