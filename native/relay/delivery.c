/* Messages on their way out: to the kernel, and to Python as its socket has room. */
#include "relay_state.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

/* --- to the kernel ------------------------------------------------------------------------- */

static bool given(struct relay *relay, ssize_t written)
{
    if (written < 0)
        count(relay, COUNTER_write_errors);
    return written >= 0;
}

bool relay_give_kernel(struct relay *relay, int device, const void *bytes, size_t size)
{
    ssize_t written;
    do {
        written = write(device, bytes, size);
    } while (written < 0 && errno == EINTR);
    return given(relay, written);
}

bool relay_give_answer(struct relay *relay, int device, uint64_t unique, int error,
                       const void *body, size_t body_bytes)
{
    struct fuse_out_header header = {
        .len = (uint32_t)(sizeof header + body_bytes),
        .error = -error,
        .unique = unique,
    };
    /* An iovec knows no const; nothing is written to it. */
    const struct iovec parts[] = {{&header, sizeof header}, {(void *)(uintptr_t)body, body_bytes}};
    ssize_t written;

    if (body_bytes == 0)
        return relay_give_kernel(relay, device, &header, sizeof header);
    do {
        written = writev(device, parts, 2);
    } while (written < 0 && errno == EINTR);
    return given(relay, written);
}

void relay_fail(struct relay *relay, const struct origin *origin, int error)
{
    table_replied(&relay->table, &origin->stamp);
    count(relay, COUNTER_failed);
    if (origin->device >= 0)
        relay_give_answer(relay, origin->device, origin->unique, error, NULL, 0);
}

void relay_fail_pending(struct relay *relay)
{
    struct origin origin;
    while (pending_take_any(&relay->pending, &origin))
        relay_fail(relay, &origin, ENOTCONN);
}

void relay_python_is_gone(struct relay *relay)
{
    atomic_store(&relay->is_python_gone, true);
    relay_fail_pending(relay);
}

void relay_mount_is_gone(struct relay *relay)
{
    atomic_store(&relay->is_unmounted, true);
    eventfd_write(relay->event_fd, 1);
}

/* --- to Python ----------------------------------------------------------------------------- */

static enum delivery send_once(struct relay *relay, const uint8_t *bytes, size_t size)
{
    ssize_t sent;
    do {
        sent = send(relay->socket, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    } while (sent < 0 && errno == EINTR);
    if (sent >= 0)
        return DELIVERED;
    switch (errno) {
    case EAGAIN:
    case ENOBUFS:
    case ENOMEM:
        return DELIVERY_LATER;
    case EMSGSIZE:
        return DELIVERY_NEVER;
    default:
        return DELIVERY_PYTHON_GONE;
    }
}

enum delivery relay_give_python(struct relay *relay, const uint8_t *bytes, size_t size)
{
    struct queue *queue = &relay->requests;
    enum delivery delivery = DELIVERY_LATER;

    pthread_mutex_lock(&queue->lock);
    if (queue->head == NULL)
        delivery = send_once(relay, bytes, size);
    if (delivery == DELIVERY_LATER) {
        delivery = queue_add_locked(queue, bytes, size) ? DELIVERED : DELIVERY_NEVER;
        count(relay, COUNTER_queued);
    }
    pthread_mutex_unlock(&queue->lock);
    return delivery;
}

static enum delivery give_operation(struct relay *relay, const uint8_t *bytes, size_t size)
{
    if (!queue_add(&relay->operations, bytes, size))
        return DELIVERY_NEVER;
    count(relay, COUNTER_operations);
    eventfd_write(relay->operations_fd, 1);
    return DELIVERED;
}

/* What its reply must know of a request. */
static void describe(struct origin *origin, const struct request *request)
{
    const void *body = request->body;
    switch (request->header.opcode) {
    case FUSE_OPEN:
        origin->flags = ((const struct fuse_open_in *)body)->flags;
        break;
    case FUSE_CREATE:
    case FUSE_TMPFILE:
        origin->flags = ((const struct fuse_create_in *)body)->flags;
        break;
    case FUSE_SETXATTR:
        origin->flags = ((const struct fuse_setxattr_in *)body)->flags;
        break;
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
        origin->handle = ((const struct fuse_read_in *)body)->fh;
        break;
    case FUSE_RELEASE:
        origin->device = -1; /* answered already */
        break;
    default:
        break;
    }
}

bool relay_note(struct relay *relay, int device, const struct request *request)
{
    const struct fuse_in_header *header = &request->header;
    struct origin origin = {
        .unique = header->unique,
        .nodeid = header->nodeid,
        .opcode = header->opcode,
        .device = device,
    };

    if (!message_wants_reply(header->opcode))
        return true;
    describe(&origin, request);
    origin.stamp = table_forwarding(&relay->table, request, message_changes(request));
    if (pending_add(&relay->pending, &origin))
        return true;
    relay_fail(relay, &origin, EIO);
    return false;
}

void relay_forward(struct relay *relay, const struct fuse_in_header *header, const uint8_t *bytes,
                   size_t size)
{
    enum delivery delivery = DELIVERY_PYTHON_GONE;
    struct origin origin;

    count(relay, COUNTER_forwarded);
    if (!atomic_load(&relay->is_python_gone))
        delivery = message_is_operation(header->opcode) ? give_operation(relay, bytes, size)
                                                        : relay_give_python(relay, bytes, size);
    if (delivery == DELIVERY_PYTHON_GONE)
        relay_python_is_gone(relay); /* this request with all others */
    if (delivery == DELIVERY_NEVER && message_wants_reply(header->opcode) &&
        pending_take(&relay->pending, header->unique, &origin))
        relay_fail(relay, &origin, EIO);
}

void *relay_forwarder(void *argument)
{
    struct thread *thread = argument;
    struct relay *relay = thread->relay;
    struct pollfd writable = {.fd = relay->socket, .events = POLLOUT};
    const struct queued *first;

    while ((first = queue_wait_first(&relay->requests)) != NULL) {
        enum delivery delivery = send_once(relay, first->bytes, first->size);
        if (delivery == DELIVERY_LATER) {
            poll(&writable, 1, -1); /* interrupted when stopping */
            if (!atomic_load(&relay->is_stopping))
                continue;
            delivery = DELIVERY_PYTHON_GONE;
        }
        if (delivery == DELIVERY_PYTHON_GONE)
            relay_python_is_gone(relay);
        if (delivery == DELIVERY_NEVER) {
            struct origin origin;
            const struct fuse_in_header *header = (const void *)first->bytes;
            if (pending_take(&relay->pending, header->unique, &origin))
                relay_fail(relay, &origin, EIO);
        }
        queue_drop_first(&relay->requests);
    }
    atomic_store(&thread->has_ended, true);
    return NULL;
}
