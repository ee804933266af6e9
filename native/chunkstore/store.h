/*
 * A directory of segments: blocks go in at the end, come out by place. docs/FORMAT.md is the
 * format.
 *
 * Every function may be called from any thread at any time between store_open and store_close.
 * Lock order: sync_lock, append_lock, then the lock of files, cache, codecs, readers or
 * dictionaries (never two of those). Compression, decompression and reading happen under none of
 * them, fdatasync under sync_lock only. The lock under which dictionaries are written is held with
 * none of the others but that of codecs.
 */
#ifndef AGENTFS_STORE_H
#define AGENTFS_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "dictionary.h"
#include "segment.h"
#include "status.h"

struct store;

struct store_options {
    uint64_t cache_bytes;   /* decompressed blocks to keep */
    uint64_t segment_bytes; /* no segment grows beyond it, unless by its only block */
    bool read_only;         /* takes no lock on the directory; put, sync, remove, roll give EROFS */
};

struct store_chunk {
    const void *bytes;
    size_t size; /* > 0 */
};

struct store_place {
    uint64_t segment;
    uint64_t offset;
    uint32_t stored_bytes; /* with header: what the segment grew by */
};

struct store_piece {
    uint64_t segment; /* 0: zeros, for a hole; offset and start mean nothing then */
    uint64_t offset;  /* of the block */
    uint32_t start;   /* in the raw block */
    uint32_t length;
};

struct store_stats {
    uint64_t cache_hits;
    uint64_t cache_misses;
    uint64_t cache_bytes;   /* now */
    uint64_t bytes_put;     /* stored bytes with headers */
    uint64_t raw_bytes_put; /* before compression */
    uint64_t bytes_read;    /* stored bytes with headers, cache misses only */
    uint64_t blocks_put;
};

/* The directory must exist. A second writer gets EWOULDBLOCK. */
enum status store_open(const char *directory, const struct store_options *options,
                       struct evidence *evidence, struct store **store);

/* No other call may be under way. Does not sync. */
void store_close(struct store *store);

/*
 * Appends one block of the chunks, concatenated. Not durable before a later store_sync. With a
 * dictionary (0: none), unless that cannot be had or the chunks do not compress.
 */
enum status store_put(struct store *store, const struct store_chunk *chunks, size_t count,
                      int level, uint32_t dictionary, struct evidence *evidence,
                      struct store_place *place);

/*
 * The same as background work: no faster than store_set_pace allows, all threads that pack together
 * taken one by one. STATUS_STOPPED when told so, and nothing is appended.
 */
enum status store_pack(struct store *store, const struct store_chunk *chunks, size_t count,
                       int level, struct evidence *evidence, struct store_place *place);

/* Permille of a core for each thread that packs, PACE_REST or PACE_STOP; PACE_FULL at first. */
void store_set_pace(struct store *store, int permille);

/* Of a large block as many are decompressed into the cache at a time: neighbours are read next,
 * each by way of a thread. */
enum { STORE_AHEAD_BYTES = 1 << 20 };

enum store_reading {
    STORE_READ,            /* what is read is kept in the cache */
    STORE_READ_CACHED,     /* nothing is read: STATUS_NOT_CACHED if any block is not at hand */
    STORE_READ_WHOLE_FILE, /* nothing else is wanted soon of blocks that give little of it */
};

/* Concatenates the pieces into into, which has room for the sum of their lengths. */
enum status store_get(struct store *store, const struct store_piece *pieces, size_t count,
                      enum store_reading reading, struct evidence *evidence, uint8_t *into);

/*
 * Makes durable every block whose put returned before the call. Once a sync has failed, each later
 * one fails as well until the segment it failed for is removed (a failed directory: for good).
 */
enum status store_sync(struct store *store, struct evidence *evidence);

/* Headers of all blocks, in order; visit is called without a lock. */
enum status store_walk(struct store *store, uint64_t segment, segment_visit *visit, void *context,
                       struct evidence *evidence);

/* Reads, checks and decompresses all blocks, past the cache. *blocks counts the good ones. */
enum status store_verify(struct store *store, uint64_t segment, struct evidence *evidence,
                         uint64_t *blocks);

/* Sorted by number. *segments is malloc'ed, or NULL when there are none. */
enum status store_segments(struct store *store, struct evidence *evidence,
                           struct store_segment **segments, size_t *count);

/* Deletes the file. A reader in the middle of it goes on undisturbed; later ones get ENOENT. */
enum status store_remove(struct store *store, uint64_t segment, struct evidence *evidence);

/* Ends the tail: the next put goes to a new segment, of this number. */
enum status store_roll(struct store *store, struct evidence *evidence, uint64_t *segment);

/*
 * Dictionaries, as dictionary.h says. Before one is removed no block may refer to it, and nobody
 * may be about to write one.
 */
enum status store_dictionaries(struct store *store, struct evidence *evidence,
                               struct dictionary_facts **list, size_t *count);
enum status store_dictionary(struct store *store, uint32_t number, struct evidence *evidence,
                             uint8_t **bytes, size_t *size);
enum status store_add_dictionary(struct store *store, uint8_t kind, const uint8_t *bytes,
                                 size_t size, struct evidence *evidence, uint32_t *number);
enum status store_remove_dictionary(struct store *store, uint32_t number,
                                    struct evidence *evidence);

void store_drop_cache(struct store *store);

/* Of the cache, the blocks of these pieces alone. */
void store_drop_pieces(struct store *store, const struct store_piece *pieces, size_t count);

/* Replaces store_options' cache_bytes from now on. */
void store_limit_cache(struct store *store, uint64_t cache_bytes);

/* Frees what is kept for those who compress and read next, 6 MiB each. */
void store_give_back(struct store *store);

void store_stats(struct store *store, struct store_stats *stats);

#endif
