/*
 * Pages of a database kept compressed in a file beside it, docs/FORMAT.md, "Packed pages". The file
 * is made whole and never changes but for notes of pages that the database has written since.
 */
#ifndef AGENTFS_PACKED_H
#define AGENTFS_PACKED_H

#include <stdbool.h>
#include <stdint.h>

#include "columns.h"
#include "pages.h"

#define PACKED_SUFFIX "-packed" /* of the database's name */

enum {
    PACKED_GROUP_PAGES = COLUMNS_PAGES, /* compressed together */
    PACKED_GROUP_BYTES = COLUMNS_GROUP_BYTES,
    PACKED_ID_BYTES = 16,
};

/* Used by one thread at a time. */
struct packed;

/* The path of a file beside another, of the same name but for a suffix; malloc'ed, NULL when out of
 * memory. */
char *packed_beside(const char *path, const char *suffix);

/* Each returns 0 or an errno unless it says otherwise. */

/* ENOENT: there is none; EINVAL: it is damaged, or of a newer version. */
int packed_open(const char *path, bool read_only, struct packed **packed);

/* Begins a file of so many pages, under another name until it is finished. ENOTSUP: the file system
 * cannot give back what is packed. */
int packed_begin(const char *path, const uint8_t id[PACKED_ID_BYTES], uint32_t pages,
                 struct packed **packed);

uint32_t packed_groups(const struct packed *packed);

/* The group that packed_add() takes next. */
uint32_t packed_next(const struct packed *packed);

/* Fewer pages in the last group; what is behind them does not matter. */
int packed_add(struct packed *packed, const uint8_t group[PACKED_GROUP_BYTES]);

/* Once all groups are added: makes the file durable and gives it its name. */
int packed_finish(struct packed *packed);

/* Gives the space of all packed pages of the database back that were not written since. */
int packed_punch(const struct packed *packed, int database);

/* Of one that is not finished, nothing is left. */
void packed_close(struct packed *packed);

const uint8_t *packed_id(const struct packed *packed);

/* EIO: the page is damaged, is not there, or was written since. Its own checksum is not restored.
 */
int packed_read(struct packed *packed, uint32_t number, uint8_t page[PAGES_BYTES]);

/* The database has its own version of a page from now on, or none of those behind the last. */
void packed_note_write(struct packed *packed, uint32_t number);
void packed_note_end(struct packed *packed, uint32_t last);

/* Makes durable what was noted; to be called once the database is. */
int packed_sync(struct packed *packed);

#endif
