#include "lru.h"

#include <stdlib.h>

static struct lru_node **bucket(const struct lru *lru, uint64_t high, uint64_t low)
{
    uint64_t h = (high * UINT64_C(0x9E3779B97F4A7C15)) ^ low;
    h *= UINT64_C(0xBF58476D1CE4E5B9);
    return &lru->buckets[(h >> 32) & lru->mask];
}

static void enqueue(struct lru *lru, struct lru_node *node)
{
    node->newer = &lru->queue;
    node->older = lru->queue.older;
    node->older->newer = node;
    lru->queue.older = node;
}

static void dequeue(struct lru_node *node)
{
    node->older->newer = node->newer;
    node->newer->older = node->older;
}

bool lru_init(struct lru *lru, size_t expected)
{
    size_t size = 64;
    while (size < expected && size < (size_t)1 << 20)
        size *= 2;
    lru->buckets = calloc(size, sizeof *lru->buckets);
    lru->mask = size - 1;
    lru->count = 0;
    lru->queue.newer = lru->queue.older = &lru->queue;
    return lru->buckets != NULL;
}

void lru_free(struct lru *lru)
{
    free(lru->buckets);
}

struct lru_node *lru_find(struct lru *lru, uint64_t high, uint64_t low)
{
    for (struct lru_node *node = *bucket(lru, high, low); node; node = node->chain) {
        if (node->high == high && node->low == low) {
            if (node->refs++ == 0)
                dequeue(node);
            return node;
        }
    }
    return NULL;
}

void lru_insert(struct lru *lru, struct lru_node *node, uint64_t high, uint64_t low)
{
    struct lru_node **head = bucket(lru, high, low);
    *node = (struct lru_node){.high = high, .low = low, .chain = *head, .refs = 1, .linked = true};
    *head = node;
    lru->count++;
}

bool lru_release(struct lru *lru, struct lru_node *node)
{
    if (--node->refs > 0)
        return false;
    if (!node->linked)
        return true;
    enqueue(lru, node);
    return false;
}

bool lru_unlink(struct lru *lru, struct lru_node *node)
{
    struct lru_node **at = bucket(lru, node->high, node->low);
    while (*at != node)
        at = &(*at)->chain;
    *at = node->chain;
    node->linked = false;
    lru->count--;
    if (node->refs > 0)
        return false;
    dequeue(node);
    return true;
}

struct lru_node *lru_oldest(struct lru *lru)
{
    return lru->queue.newer == &lru->queue ? NULL : lru->queue.newer;
}

void lru_each(struct lru *lru, void (*visit)(struct lru_node *node, void *context), void *context)
{
    for (size_t i = 0; i <= lru->mask; i++) {
        struct lru_node *next;
        for (struct lru_node *node = lru->buckets[i]; node; node = next) {
            next = node->chain;
            visit(node, context);
        }
    }
}
