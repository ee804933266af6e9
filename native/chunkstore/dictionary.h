/*
 * The dictionaries of a store: two copies of each beside the segments, and what zstd makes of them
 * to read or write with. docs/FORMAT.md, "Dictionaries". A copy that is damaged is written anew
 * from the other one by whoever meets it first and may write.
 */
#ifndef AGENTFS_DICTIONARY_H
#define AGENTFS_DICTIONARY_H

#include <pthread.h>
#include <zstd.h>

#include "codec.h"
#include "lru.h"
#include "segment.h"

/* A dictionary made ready; one for reading, one for each level it is written with. */
struct digested {
    struct lru_node node; /* guarded by the lock of dictionaries; first, so that a node is one */
    ZSTD_DDict *decoder;  /* owned; one of the two is NULL; neither ever changes */
    ZSTD_CDict *encoder;
};

struct dictionaries {
    int directory; /* borrowed */
    bool read_only;
    struct codec_pool *codecs;  /* borrowed */
    pthread_mutex_t write_lock; /* held while copies are written or removed; before lock */
    pthread_mutex_t lock;       /* never held while one is loaded */
    struct lru digested;        /* guarded by lock */
};

struct dictionary_facts {
    uint32_t number;
    uint8_t kind;        /* of what it is for: the writer's business */
    uint8_t good_copies; /* 0: lost, and kind means nothing */
    uint64_t file_bytes; /* of both copies */
};

bool dictionaries_init(struct dictionaries *all, int directory, bool read_only,
                       struct codec_pool *codecs);

/* Every reference must have been given back. */
void dictionaries_free(struct dictionaries *all);

/*
 * To read with; to write with at a level. Takes a reference. STATUS_NO_DICTIONARY when no copy
 * holds, STATUS_ERRNO when that cannot be told just now.
 */
enum status dictionaries_to_read(struct dictionaries *all, uint32_t number,
                                 struct evidence *evidence, struct digested **found);
enum status dictionaries_to_write(struct dictionaries *all, uint32_t number, int level,
                                  struct evidence *evidence, struct digested **found);
void dictionaries_release(struct dictionaries *all, struct digested *digested);

/* Reads all copies of all, and mends what it can if it may write. *list is malloc'ed, or NULL. */
enum status dictionaries_check(struct dictionaries *all, struct evidence *evidence,
                               struct dictionary_facts **list, size_t *count);

/* The bytes of one, without its kind; *bytes is malloc'ed. */
enum status dictionaries_bytes(struct dictionaries *all, uint32_t number, struct evidence *evidence,
                               uint8_t **bytes, size_t *size);

/* Keeps one, durably when it returns. */
enum status dictionaries_add(struct dictionaries *all, uint8_t kind, const uint8_t *bytes,
                             size_t size, struct evidence *evidence, uint32_t *number);

/* Whether these are the raw bytes of a copy: a kind, then what is a dictionary to zstd. */
enum status dictionary_check(const uint8_t *raw, size_t raw_bytes);

/* EBUSY for the highest: its number must not come again. */
enum status dictionaries_remove(struct dictionaries *all, uint32_t number,
                                struct evidence *evidence);

#endif
