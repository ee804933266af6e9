#include "map.h"

#include <stdlib.h>

enum { BUCKETS_AT_FIRST = 256 };

static struct map_node **bucket(const struct map *map, uint64_t key)
{
    return &map->buckets[((key * UINT64_C(0x9E3779B97F4A7C15)) >> 32) & map->mask];
}

bool map_init(struct map *map)
{
    map->buckets = calloc(BUCKETS_AT_FIRST, sizeof *map->buckets);
    map->mask = BUCKETS_AT_FIRST - 1;
    map->count = 0;
    return map->buckets != NULL;
}

void map_free(struct map *map, void (*release)(struct map_node *node))
{
    struct map_node *node;
    while (release && map->buckets && (node = map_remove_any(map)) != NULL)
        release(node);
    free(map->buckets);
    map->buckets = NULL;
}

struct map_node *map_find(const struct map *map, uint64_t key)
{
    struct map_node *node = *bucket(map, key);
    while (node && node->key != key)
        node = node->chain;
    return node;
}

static void grow(struct map *map)
{
    size_t size = (map->mask + 1) * 2;
    struct map_node **old = map->buckets;
    size_t old_mask = map->mask;
    struct map_node **buckets = calloc(size, sizeof *buckets);
    if (buckets == NULL)
        return;
    map->buckets = buckets;
    map->mask = size - 1;
    for (size_t i = 0; i <= old_mask; i++) {
        struct map_node *next;
        for (struct map_node *node = old[i]; node; node = next) {
            next = node->chain;
            struct map_node **head = bucket(map, node->key);
            node->chain = *head;
            *head = node;
        }
    }
    free(old);
}

void map_insert(struct map *map, struct map_node *node, uint64_t key)
{
    if (map->count > map->mask)
        grow(map);
    struct map_node **head = bucket(map, key);
    node->key = key;
    node->chain = *head;
    *head = node;
    map->count++;
}

struct map_node *map_remove(struct map *map, uint64_t key)
{
    struct map_node **at = bucket(map, key);
    while (*at && (*at)->key != key)
        at = &(*at)->chain;
    struct map_node *node = *at;
    if (node) {
        *at = node->chain;
        map->count--;
    }
    return node;
}

struct map_node *map_remove_any(struct map *map)
{
    for (size_t i = 0; map->count > 0 && i <= map->mask; i++) {
        if (map->buckets[i])
            return map_remove(map, map->buckets[i]->key);
    }
    return NULL;
}
