/*
 * A hash table of nodes keyed by one number. Intrusive, allocates only its buckets, knows nothing
 * of locks: the owner's lock guards all of it.
 */
#ifndef AGENTFS_RELAY_MAP_H
#define AGENTFS_RELAY_MAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct map_node {
    uint64_t key;
    struct map_node *chain; /* next in the bucket */
};

struct map {
    struct map_node **buckets; /* owned */
    size_t mask;
    size_t count;
};

/* False when out of memory. */
bool map_init(struct map *map);

/* Calls release, unless NULL, for each node left. */
void map_free(struct map *map, void (*release)(struct map_node *node));

/* NULL when there is none. */
struct map_node *map_find(const struct map *map, uint64_t key);

/* There must be none of that key. Cannot fail: without memory for more buckets chains grow. */
void map_insert(struct map *map, struct map_node *node, uint64_t key);

/* The node, now the caller's, or NULL when there is none. */
struct map_node *map_remove(struct map *map, uint64_t key);

/* Any one node, now the caller's, or NULL when empty. */
struct map_node *map_remove_any(struct map *map);

#endif
