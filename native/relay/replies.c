/* What Python answers, amended where the kernel is to hear more; and its notifications. */
#include "relay_state.h"

#include <errno.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

/* Copying less costs less than to look what it is the answer to. */
enum { COPIED_BYTES_MAX = 4096 };

static size_t amend_init(struct relay *relay, uint8_t *bytes, size_t size)
{
    struct fuse_init_in offered = {0};
    bool passthrough;

    pthread_mutex_lock(&relay->init_lock);
    const struct ledger_init *saved = &ledger_of(relay)->init_request;
    if (atomic_load(&saved->size) > sizeof(struct fuse_in_header)) {
        size_t body = atomic_load(&saved->size) - sizeof(struct fuse_in_header);
        memcpy(&offered, saved->bytes + sizeof(struct fuse_in_header),
               body < sizeof offered ? body : sizeof offered);
    }
    pthread_mutex_unlock(&relay->init_lock);
    struct init_wishes wishes = {&offered, relay->max_write, relay->page_bytes,
                                 relay->asks_for_passthrough};
    size = message_amend_init(bytes, size, &wishes, &passthrough);
    count(relay, COUNTER_amended_init);
    relay_save_init(relay, &ledger_of(relay)->init_reply, bytes, size);
    return size;
}

/* Remembers how far a listing got. */
static void note_listing(struct relay *relay, const struct origin *origin, uint8_t *bytes,
                         size_t size)
{
    struct ledger_place place = {0};
    const char *name;

    if (message_last_entry(origin->opcode, bytes, size, &place.position, &name, &place.length) &&
        place.length <= LEDGER_NAME_BYTES) {
        memcpy(place.name, name, place.length);
        table_listed(&relay->table, origin->handle, &place);
    }
}

/* Counts an open that Python granted, and gives it to the kernel. */
static void grant_open(struct relay *relay, const struct origin *origin, struct abi_open_out *out,
                       uint8_t *bytes, size_t size)
{
    struct attributes created;
    uint64_t nodeid = origin->nodeid;
    int slot;

    if (message_one_attributes(origin->opcode, nodeid, bytes, &created))
        nodeid = created.nodeid;
    if (!table_open(&relay->table, nodeid, origin->flags, bytes, size, out, &slot)) {
        relay_fail(relay, origin, ENFILE);
        return;
    }
    if (out->fh & HANDLE_AMENDED)
        count(relay, COUNTER_amended_open);
    table_replied(&relay->table, &origin->stamp);
    count(relay, COUNTER_replied);
    if (!relay_give_kernel(relay, origin->device, bytes, size))
        table_not_opened(&relay->table, nodeid, table_kind(out->fh, origin->flags));
    table_given(&relay->table, slot);
}

/* pyfuse3 has answered the INIT request. */
static void give_init(struct relay *relay, const struct origin *origin, uint8_t *bytes, size_t size)
{
    size = amend_init(relay, bytes, size);
    count(relay, COUNTER_replied);
    if (relay_give_kernel(relay, origin->device, bytes, size)) {
        atomic_store(&relay->is_ready, true);
        eventfd_write(relay->event_fd, 1);
    }
}

/* bytes is a valid reply, in a buffer that has room for that to INIT. */
static void relay_reply(struct relay *relay, const struct origin *origin, uint8_t *bytes,
                        size_t size)
{
    if (origin->device < 0)
        return;
    if (origin->opcode == FUSE_INIT) {
        give_init(relay, origin, bytes, size);
        return;
    }
    struct abi_open_out *out = message_open_out(origin->opcode, bytes);
    if (!table_amend_attributes(&relay->table, origin->opcode, origin->nodeid, &origin->stamp,
                                bytes, size) ||
        (out && out->fh & HANDLE_OURS)) {
        count(relay, COUNTER_malformed_replies);
        relay_fail(relay, origin, EIO);
        return;
    }
    if (out) {
        grant_open(relay, origin, out, bytes, size);
        return;
    }
    if (origin->opcode == FUSE_READDIR || origin->opcode == FUSE_READDIRPLUS)
        note_listing(relay, origin, bytes, size);
    table_replied(&relay->table, &origin->stamp);
    count(relay, COUNTER_replied);
    relay_give_kernel(relay, origin->device, bytes, size);
}

static void handle_reply(struct relay *relay, uint8_t *bytes, size_t size)
{
    struct fuse_out_header header;
    struct origin origin;

    if (size < sizeof header) {
        count(relay, COUNTER_malformed_replies);
        return;
    }
    memcpy(&header, bytes, sizeof header);
    if (header.unique == 0) {
        if (header.len != size || size > MESSAGE_BYTES_MAX)
            count(relay, COUNTER_malformed_replies);
        else if (!queue_add(&relay->notifications, bytes, size))
            count(relay, COUNTER_notify_errors);
        return;
    }
    if (header.unique & ABI_UNIQUE_INTERRUPT) {
        /* EAGAIN: the kernel shall send the INTERRUPT again, if its request is still there. */
        bool is_valid = message_reply_valid(FUSE_INTERRUPT, bytes, size) && header.error != 0;
        if (!is_valid)
            count(relay, COUNTER_malformed_replies);
        else if (pending_find(&relay->pending, header.unique & ~ABI_UNIQUE_INTERRUPT, &origin))
            relay_give_kernel(relay, origin.device, bytes, size);
        return;
    }
    if (!pending_take(&relay->pending, header.unique, &origin)) {
        count(relay, COUNTER_unknown_replies);
        return;
    }
    if (size > MESSAGE_BYTES_MAX || !message_reply_valid(origin.opcode, bytes, size)) {
        count(relay, COUNTER_malformed_replies);
        relay_fail(relay, &origin, EIO);
        return;
    }
    relay_reply(relay, &origin, bytes, size);
}

void relay_pump(struct relay *relay)
{
    for (;;) {
        /* MSG_TRUNC: the true size, so that a message too long shows as one whose length lies. */
        ssize_t size =
            recv(relay->socket, relay->buffer, MESSAGE_BYTES_MAX, MSG_TRUNC | MSG_DONTWAIT);
        if (size > 0) {
            handle_reply(relay, relay->buffer, (size_t)size);
        } else if (size == 0 || (errno != EINTR && errno != EAGAIN)) {
            relay_python_is_gone(relay);
            return;
        } else if (errno == EAGAIN) {
            return;
        }
    }
}

void *relay_notifier(void *argument)
{
    struct thread *thread = argument;
    struct relay *relay = thread->relay;
    const struct queued *first;

    while ((first = queue_wait_first(&relay->notifications)) != NULL) {
        ssize_t written = write(relay->devices[0], first->bytes, first->size);
        count(relay, written < 0 ? COUNTER_notify_errors : COUNTER_notifies);
        queue_drop_first(&relay->notifications);
    }
    atomic_store(&thread->has_ended, true);
    return NULL;
}

/* Bytes of a file need not be looked at, nor copied for that. False: it is not about them. */
static bool answer_read(struct relay *relay, uint64_t unique, const void *body, size_t body_bytes)
{
    struct origin origin;

    if (!pending_find(&relay->pending, unique, &origin) || origin.opcode != FUSE_READ ||
        !pending_take(&relay->pending, unique, &origin))
        return false;
    table_replied(&relay->table, &origin.stamp);
    count(relay, COUNTER_replied);
    relay_give_answer(relay, origin.device, unique, 0, body, body_bytes);
    return true;
}

int relay_answer(struct relay *relay, uint64_t unique, int error, const void *body,
                 size_t body_bytes)
{
    struct fuse_out_header *header = (void *)relay->buffer;

    if (unique == 0 || unique & ABI_UNIQUE_INTERRUPT ||
        body_bytes > MESSAGE_BYTES_MAX - sizeof *header)
        return EINVAL;
    if (error == 0 && body_bytes >= COPIED_BYTES_MAX &&
        answer_read(relay, unique, body, body_bytes))
        return 0;
    *header = (struct fuse_out_header){
        .len = (uint32_t)(sizeof *header + body_bytes),
        .error = -error,
        .unique = unique,
    };
    if (body_bytes > 0)
        memcpy(relay->buffer + sizeof *header, body, body_bytes);
    handle_reply(relay, relay->buffer, header->len);
    return 0;
}
