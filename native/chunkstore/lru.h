/*
 * A hash table of reference-counted nodes keyed by two numbers; nodes nobody refers to queue up,
 * oldest first. Intrusive, allocates only its buckets, knows nothing of locks: the owner's lock
 * guards all of it.
 */
#ifndef AGENTFS_LRU_H
#define AGENTFS_LRU_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct lru_node {
    uint64_t high;
    uint64_t low;
    struct lru_node *chain; /* next in the bucket */
    struct lru_node *older; /* in the queue while refs == 0 and linked */
    struct lru_node *newer;
    unsigned refs;
    bool linked; /* in the table: a later lru_find can find it */
};

struct lru {
    struct lru_node **buckets; /* owned */
    size_t mask;
    size_t count;          /* linked nodes */
    struct lru_node queue; /* ring; queue.newer is the oldest idle node */
};

/* False when out of memory. expected is a hint: about how many nodes there will be. */
bool lru_init(struct lru *lru, size_t expected);

/* The table must be empty. */
void lru_free(struct lru *lru);

/* Takes a reference; NULL when there is none. */
struct lru_node *lru_find(struct lru *lru, uint64_t high, uint64_t low);

/* The node comes in with one reference, the caller's. There must be none of that key. */
void lru_insert(struct lru *lru, struct lru_node *node, uint64_t high, uint64_t low);

/* Gives a reference back; true when the node is now the caller's to free: unlinked and
 * unreferenced. */
bool lru_release(struct lru *lru, struct lru_node *node);

/* Makes a linked node unfindable; true when it is now the caller's to free. */
bool lru_unlink(struct lru *lru, struct lru_node *node);

/* The idle node that was released longest ago, or NULL; it stays where it is. */
struct lru_node *lru_oldest(struct lru *lru);

/* Calls visit for each linked node; visit may unlink the node it is given. */
void lru_each(struct lru *lru, void (*visit)(struct lru_node *node, void *context), void *context);

#endif
