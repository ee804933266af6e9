/* Requests of the kernel: what is answered here; the rest is forwarded. */
#define _GNU_SOURCE
#include "relay_state.h"

#include <errno.h>
#include <string.h>
#include <time.h>

/* From here on Python copies faster than the kernel does by itself: 8 MiB in 0.7 ms against 1.8,
 * but 64 KiB in 90 us against 27. */
enum { COPY_LEAST_BYTES = 512 * 1024 };

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void relay_save_init(struct relay *relay, struct ledger_init *saved, const uint8_t *bytes,
                     size_t size)
{
    pthread_mutex_lock(&relay->init_lock);
    ledger_save_init(saved, bytes, size);
    pthread_mutex_unlock(&relay->init_lock);
}

static bool answer_open(struct relay *relay, int device, const struct request *request)
{
    const struct fuse_open_in *in = (const void *)request->body;
    const struct fuse_in_header *header = &request->header;
    struct open_reply reply = {
        .header = {.len = sizeof reply, .unique = header->unique},
        .out = {.fh = HANDLE_RELAY | header->nodeid},
    };
    int slot;

    if (!table_answer_open(&relay->table, header->nodeid, in->flags, now_ns(), &reply, &slot))
        return false;
    count(relay, COUNTER_answered_open);
    if (!relay_give_kernel(relay, device, &reply, sizeof reply))
        table_not_opened(&relay->table, header->nodeid, table_kind(reply.out.fh, in->flags));
    table_given(&relay->table, slot);
    return true;
}

/* Counts a RELEASE down and answers it; true when Python need not know of it. */
static bool answer_release(struct relay *relay, int device, const struct request *request)
{
    const struct fuse_release_in *in = (const void *)request->body;
    const struct fuse_in_header *header = &request->header;
    const struct fuse_out_header reply = {.len = sizeof reply, .unique = header->unique};
    enum ledger_kind kind = table_kind(in->fh, in->flags);
    int slot;

    table_closed(&relay->table, header->nodeid, kind, &reply, &slot);
    relay_give_kernel(relay, device, &reply, sizeof reply);
    table_given(&relay->table, slot);
    if (kind_is_answered(kind))
        count(relay, COUNTER_answered_release);
    return kind_is_answered(kind);
}

static bool answer_getattr(struct relay *relay, int device, const struct request *request)
{
    struct fuse_attr_out out;
    if (!table_answer_getattr(&relay->table, request->header.nodeid, &out))
        return false;
    count(relay, COUNTER_answered_getattr);
    relay_give_answer(relay, device, request->header.unique, 0, &out, sizeof out);
    return true;
}

static bool answer_getxattr(struct relay *relay, int device, const struct request *request)
{
    const char *name = (const char *)request->body + sizeof(struct fuse_getxattr_in);
    bool is_absent = false;

    if (strcmp(name, "security.capability") == 0)
        is_absent = table_capability_free(&relay->table, request->header.nodeid);
    else if (strcmp(name, "system.posix_acl_access") == 0 ||
             strcmp(name, "system.posix_acl_default") == 0)
        is_absent = atomic_load(&relay->is_acl_free);
    if (!is_absent)
        return false;
    count(relay, COUNTER_answered_getxattr);
    relay_give_answer(relay, device, request->header.unique, ENODATA, NULL, 0);
    return true;
}

static bool answer_flush(struct relay *relay, int device, const struct request *request)
{
    count(relay, COUNTER_answered_flush);
    relay_give_answer(relay, device, request->header.unique, ENOSYS, NULL, 0);
    return true;
}

/* pyfuse3 carries none, and the kernel does not remember an ENOSYS to this one. Python's open()
 * asks each file whether it is a terminal. */
static bool answer_ioctl(struct relay *relay, int device, const struct request *request)
{
    count(relay, COUNTER_answered_ioctl);
    relay_give_answer(relay, device, request->header.unique, ENOTTY, NULL, 0);
    return true;
}

/* After EOPNOTSUPP the kernel copies by itself, from backing file to backing file. */
static bool answer_copy(struct relay *relay, int device, const struct request *request)
{
    const struct fuse_copy_file_range_in *in = (const void *)request->body;
    if (in->len >= COPY_LEAST_BYTES)
        return false;
    count(relay, COUNTER_answered_copy);
    relay_give_answer(relay, device, request->header.unique, EOPNOTSUPP, NULL, 0);
    return true;
}

/* True when it needs no forwarding. */
static bool answer_here(struct relay *relay, int device, const struct request *request)
{
    switch (request->header.opcode) {
    case FUSE_OPEN:
        return answer_open(relay, device, request);
    case FUSE_RELEASE:
        return answer_release(relay, device, request);
    case FUSE_GETATTR:
        return answer_getattr(relay, device, request);
    case FUSE_GETXATTR:
        return answer_getxattr(relay, device, request);
    case FUSE_FLUSH:
        return answer_flush(relay, device, request);
    case FUSE_IOCTL:
        return answer_ioctl(relay, device, request);
    case FUSE_COPY_FILE_RANGE:
    case ABI_COPY_FILE_RANGE_64:
        return answer_copy(relay, device, request);
    default:
        return false;
    }
}

/* pyfuse3 knows nothing of an operation that it does not carry, and those go to their end. */
static bool interrupts_operation(struct relay *relay, const struct request *request)
{
    const struct fuse_interrupt_in *in = (const void *)request->body;
    struct origin origin;
    return pending_find(&relay->pending, in->unique, &origin) &&
           message_is_operation(origin.opcode);
}

size_t relay_copy_init(struct relay *relay, const struct ledger_init *saved, uint8_t *bytes,
                       size_t room)
{
    pthread_mutex_lock(&relay->init_lock);
    size_t size = atomic_load(&saved->size);
    memcpy(bytes, saved->bytes, size < room ? size : room);
    pthread_mutex_unlock(&relay->init_lock);
    return size;
}

/* A request that an earlier worker had, too. True when that one had its reply ready. */
static bool answer_again(struct relay *relay, int device, const struct request *request)
{
    uint8_t bytes[LEDGER_INIT_BYTES];
    uint64_t unique = request->header.unique;
    size_t size = 0;

    if (request->header.opcode == FUSE_INIT && relay->has_taken_over) {
        size = relay_copy_init(relay, &ledger_of(relay)->init_reply, bytes, sizeof bytes);
        ((struct fuse_out_header *)(void *)bytes)->unique = unique;
    } else {
        size = ledger_find_reply(&relay->table.ledger, unique, bytes);
    }
    if (size == 0)
        return false;
    count(relay, COUNTER_answered_again);
    relay_give_kernel(relay, device, bytes, size);
    return true;
}

enum handled relay_handle_request(struct relay *relay, int device, uint8_t *bytes, size_t size,
                                  bool may_keep)
{
    struct request request;

    count(relay, COUNTER_requests);
    enum request_state state = message_request(bytes, size, &request);
    if (state != REQUEST_OK) {
        count(relay, COUNTER_malformed_requests);
        if (state == REQUEST_BAD && request.header.unique != 0 &&
            message_wants_reply(request.header.opcode))
            relay_give_answer(relay, device, request.header.unique, EIO, NULL, 0);
        return HANDLED_NEVER;
    }
    bool is_resent = (request.header.unique & ABI_UNIQUE_RESEND) != 0;
    if (is_resent && answer_again(relay, device, &request))
        return HANDLED_HERE;
    if (answer_here(relay, device, &request))
        return HANDLED_HERE;
    switch (request.header.opcode) {
    case FUSE_INIT:
        relay_save_init(relay, &ledger_of(relay)->init_request, bytes, size);
        size = message_hide_init(bytes, size);
        break;
    case FUSE_RELEASEDIR:
        table_listing_closed(&relay->table, *(const uint64_t *)(const void *)request.body);
        break;
    case FUSE_INTERRUPT:
        if (interrupts_operation(relay, &request))
            return HANDLED_NEVER;
        count(relay, COUNTER_interrupts);
        break;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
        count(relay, COUNTER_forgets);
        break;
    default:
        message_clear_handles(&request);
        break;
    }
    if (!relay_note(relay, device, &request))
        return HANDLED_NEVER;
    if (may_keep && !is_resent && message_is_brief(request.header.opcode)) {
        count(relay, COUNTER_kept);
        return HANDLED_KEPT;
    }
    relay_forward(relay, &request.header, bytes, size);
    return HANDLED_BY_PYTHON;
}
