#include "queue.h"

#include <stdlib.h>
#include <string.h>

void queue_init(struct queue *queue)
{
    *queue = (struct queue){.has_ended = false};
    queue->tail = &queue->head;
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->filled, NULL);
    pthread_cond_init(&queue->drained, NULL);
}

void queue_free(struct queue *queue)
{
    struct queued *next;
    for (struct queued *message = queue->head; message; message = next) {
        next = message->next;
        free(message);
    }
    pthread_cond_destroy(&queue->drained);
    pthread_cond_destroy(&queue->filled);
    pthread_mutex_destroy(&queue->lock);
}

bool queue_add_locked(struct queue *queue, const uint8_t *bytes, size_t size)
{
    struct queued *message = queue->has_ended ? NULL : malloc(sizeof *message + size);
    if (message == NULL)
        return false;
    message->next = NULL;
    message->size = size;
    memcpy(message->bytes, bytes, size);
    *queue->tail = message;
    queue->tail = &message->next;
    queue->bytes += size;
    pthread_cond_signal(&queue->filled);
    return true;
}

bool queue_add(struct queue *queue, const uint8_t *bytes, size_t size)
{
    pthread_mutex_lock(&queue->lock);
    bool added = queue_add_locked(queue, bytes, size);
    pthread_mutex_unlock(&queue->lock);
    return added;
}

const struct queued *queue_wait_first(struct queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    while (queue->head == NULL && !queue->has_ended)
        pthread_cond_wait(&queue->filled, &queue->lock);
    const struct queued *first = queue->has_ended ? NULL : queue->head;
    pthread_mutex_unlock(&queue->lock);
    return first;
}

const struct queued *queue_first(struct queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    const struct queued *first = queue->head;
    pthread_mutex_unlock(&queue->lock);
    return first;
}

void queue_drop_first(struct queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    struct queued *first = queue->head;
    queue->head = first->next;
    if (queue->head == NULL)
        queue->tail = &queue->head;
    queue->bytes -= first->size;
    pthread_cond_broadcast(&queue->drained);
    pthread_mutex_unlock(&queue->lock);
    free(first);
}

void queue_end(struct queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    queue->has_ended = true;
    pthread_cond_broadcast(&queue->filled);
    pthread_cond_broadcast(&queue->drained);
    pthread_mutex_unlock(&queue->lock);
}

size_t queue_bytes(struct queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    size_t bytes = queue->bytes;
    pthread_mutex_unlock(&queue->lock);
    return bytes;
}

void queue_wait_below(struct queue *queue, size_t bytes, const atomic_bool *is_over)
{
    pthread_mutex_lock(&queue->lock);
    while (queue->bytes >= bytes && !queue->has_ended && !atomic_load(is_over))
        pthread_cond_wait(&queue->drained, &queue->lock);
    pthread_mutex_unlock(&queue->lock);
}

void queue_wake(struct queue *queue)
{
    pthread_mutex_lock(&queue->lock);
    pthread_cond_broadcast(&queue->drained);
    pthread_mutex_unlock(&queue->lock);
}
