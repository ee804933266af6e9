/* Open segment files: shared, counted, few. A file that is removed stays readable for whoever has
 * it. */
#ifndef AGENTFS_FILES_H
#define AGENTFS_FILES_H

#include <pthread.h>

#include "lru.h"
#include "segment.h"
#include "status.h"

struct segment_file {
    struct lru_node node; /* guarded by files->lock; first, so that a node is a file */
    int fd;               /* owned; closed with the last reference */
    uint64_t number;
    bool dirty; /* guarded by the store's append lock: on its list to sync */
    struct segment_file
        *next; /* guarded by the store's append lock: on its list to sync or of the failed */
};

struct segment_files {
    int directory; /* borrowed */
    size_t limit;  /* idle files above it are closed */
    pthread_mutex_t lock;
    struct lru open; /* guarded by lock */
};

bool files_init(struct segment_files *files, int directory, size_t limit);

/* Every reference must have been given back. */
void files_free(struct segment_files *files);

/* Opens for reading, or shares what is open. Takes a reference. A segment header that is damaged
 * does not matter, one of a newer version does. */
enum status files_open(struct segment_files *files, uint64_t number, struct evidence *evidence,
                       struct segment_file **file);

/* Opens the last segment to append to it. The number must not be open yet. Takes a reference. */
enum status files_open_tail(struct segment_files *files, uint64_t number, struct evidence *evidence,
                            struct segment_file **file);

/* Creates and writes the header, and leaves nothing behind when it fails. Takes a reference. */
enum status files_create(struct segment_files *files, uint64_t number, struct evidence *evidence,
                         struct segment_file **file);

void files_release(struct segment_files *files, struct segment_file *file);

/* Who opens the number from now on gets what the directory has. */
void files_forget(struct segment_files *files, uint64_t number);

/* name has room for FILES_NAME_BYTES. */
enum { FILES_NAME_BYTES = 24 };
void files_name(uint64_t number, const char *suffix, char *name);

/* 0 when the name is not a number with that suffix. */
uint64_t files_number(const char *name, const char *suffix);

/* The files so named, sorted by number. *list is malloc'ed, or NULL when there are none. */
enum status files_list(int directory, const char *suffix, struct evidence *evidence,
                       struct store_segment **list, size_t *count);

#endif
