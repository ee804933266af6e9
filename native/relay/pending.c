#include "pending.h"

#include <stdlib.h>

struct entry {
    struct map_node node; /* first; key is unique */
    struct origin origin;
};

static void release(struct map_node *node)
{
    free(node);
}

bool pending_init(struct pending *pending)
{
    pthread_mutex_init(&pending->lock, NULL);
    return map_init(&pending->requests);
}

void pending_free(struct pending *pending)
{
    map_free(&pending->requests, release);
    pthread_mutex_destroy(&pending->lock);
}

bool pending_add(struct pending *pending, const struct origin *origin)
{
    struct entry *entry = malloc(sizeof *entry);
    if (entry == NULL)
        return false;
    entry->origin = *origin;
    pthread_mutex_lock(&pending->lock);
    bool is_new = map_find(&pending->requests, origin->unique) == NULL;
    if (is_new)
        map_insert(&pending->requests, &entry->node, origin->unique);
    pthread_mutex_unlock(&pending->lock);
    if (!is_new)
        free(entry);
    return is_new;
}

static bool give(struct map_node *node, struct origin *origin)
{
    struct entry *entry = (struct entry *)(void *)node;
    if (entry)
        *origin = entry->origin;
    free(entry);
    return entry != NULL;
}

bool pending_take(struct pending *pending, uint64_t unique, struct origin *origin)
{
    pthread_mutex_lock(&pending->lock);
    struct map_node *node = map_remove(&pending->requests, unique);
    pthread_mutex_unlock(&pending->lock);
    return give(node, origin);
}

bool pending_take_any(struct pending *pending, struct origin *origin)
{
    pthread_mutex_lock(&pending->lock);
    struct map_node *node = map_remove_any(&pending->requests);
    pthread_mutex_unlock(&pending->lock);
    return give(node, origin);
}

bool pending_find(struct pending *pending, uint64_t unique, struct origin *origin)
{
    pthread_mutex_lock(&pending->lock);
    struct map_node *node = map_find(&pending->requests, unique);
    if (node)
        *origin = ((struct entry *)(void *)node)->origin;
    pthread_mutex_unlock(&pending->lock);
    return node != NULL;
}

bool pending_search(struct pending *pending, uint32_t opcode, uint64_t nodeid,
                    struct origin *origin)
{
    bool is_found = false;
    pthread_mutex_lock(&pending->lock);
    for (size_t i = 0; i <= pending->requests.mask && !is_found; i++) {
        const struct map_node *node = pending->requests.buckets[i];
        for (; node && !is_found; node = node->chain) {
            *origin = ((const struct entry *)(const void *)node)->origin;
            is_found = origin->opcode == opcode && origin->nodeid == nodeid;
        }
    }
    pthread_mutex_unlock(&pending->lock);
    return is_found;
}
