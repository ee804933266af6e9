/* Requests that Python has and must answer: where each came from. */
#ifndef AGENTFS_RELAY_PENDING_H
#define AGENTFS_RELAY_PENDING_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "map.h"
#include "table.h"

struct origin {
    uint64_t unique;
    uint64_t nodeid;
    uint32_t opcode;
    int device;      /* descriptor the request was read from: its reply goes there; -1: nowhere */
    uint64_t handle; /* of READDIR */
    uint32_t flags;  /* of OPEN, CREATE, TMPFILE, SETXATTR */
    struct stamp stamp;
};

struct pending {
    pthread_mutex_t lock;
    struct map requests; /* guarded by lock; owned */
};

/* False when out of memory. */
bool pending_init(struct pending *pending);
void pending_free(struct pending *pending);

/* False when out of memory or when a request of that number is pending already. */
bool pending_add(struct pending *pending, const struct origin *origin);

/* False when there is none of that number. */
bool pending_take(struct pending *pending, uint64_t unique, struct origin *origin);
bool pending_find(struct pending *pending, uint64_t unique, struct origin *origin);

/* One of that kind for that nodeid; false when there is none. Looks at all. */
bool pending_search(struct pending *pending, uint32_t opcode, uint64_t nodeid,
                    struct origin *origin);

/* Any one of them; false when there is none. */
bool pending_take_any(struct pending *pending, struct origin *origin);

#endif
