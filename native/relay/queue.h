/* A queue of messages between threads; ends on request. Adding never waits: who must not let it
 * grow waits before. */
#ifndef AGENTFS_RELAY_QUEUE_H
#define AGENTFS_RELAY_QUEUE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct queued {
    struct queued *next;
    size_t size;
    uint8_t bytes[];
};

struct queue {
    pthread_mutex_t lock;
    pthread_cond_t filled;
    pthread_cond_t drained;
    struct queued *head;  /* guarded by lock; owned */
    struct queued **tail; /* guarded by lock */
    size_t bytes;         /* guarded by lock; in all messages */
    bool has_ended;       /* guarded by lock */
};

void queue_init(struct queue *queue);
void queue_free(struct queue *queue);

/* Copies the message. False when out of memory or ended. */
bool queue_add(struct queue *queue, const uint8_t *bytes, size_t size);

/* The same, with the lock held by the caller. */
bool queue_add_locked(struct queue *queue, const uint8_t *bytes, size_t size);

/* Waits for the first message and leaves it there; NULL when the queue has ended. It stays where it
 * is until queue_drop_first(): one thread only may do these two. */
const struct queued *queue_wait_first(struct queue *queue);

/* The same without waiting: NULL when there is none. */
const struct queued *queue_first(struct queue *queue);
void queue_drop_first(struct queue *queue);

/* Lets every waiter go; what is queued stays until queue_free(). */
void queue_end(struct queue *queue);

size_t queue_bytes(struct queue *queue);

/* Waits while that much is queued, until the queue has ended or *is_over, after which is to be
 * queue_wake(). */
void queue_wait_below(struct queue *queue, size_t bytes, const atomic_bool *is_over);
void queue_wake(struct queue *queue);

#endif
