#define _GNU_SOURCE
#include "relay.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "device.h"
#include "message.h"
#include "pending.h"
#include "queue.h"

/* Several whole messages; the kernel takes memory for what is under way only. */
enum { SOCKET_BYTES = 8 * 1024 * 1024 };

/* Beyond these the kernel counts memory per message, not only its bytes. */
enum { SOCKET_OVERHEAD_BYTES = 4096 };

enum { THREADS_MAX = RELAY_THREADS_MAX + 2 };

/* How long a stopped thread may sleep before it is woken again: a signal that comes just before a
 * system call does not interrupt it. */
enum { KICK_NS = 1000 * 1000 };

/* How long a reader looks for the next request before it sleeps. A program that opens, reads and
 * closes asks again within 20 us; to be woken takes as long as that. */
enum { LINGER_NS = 50 * 1000 };

/* How many requests in a row Python must have waited for in vain of nothing else, before it reads
 * them itself; and how long one may then take it before a reader looks after the others. */
enum { ATTENTION_AFTER = 4, ATTENTION_LOST_NS = 200 * 1000 };

/* How long its thread looks for the next before it sleeps; after how many looks in vain it sleeps
 * at once, and after how many sleeps it looks again. */
enum { LOOK_NS = 30 * 1000, VAIN_LOOKS_MAX = 3, LOOK_AGAIN_AFTER = 64 };

/* From here on Python copies faster than the kernel does by itself: 8 MiB in 0.7 ms against 1.8,
 * but 64 KiB in 90 us against 27. */
enum { COPY_LEAST_BYTES = 512 * 1024 };

const char *const relay_counter_names[COUNTERS] = {
#define RELAY_COUNTER(name) #name,
    RELAY_COUNTERS(RELAY_COUNTER)
#undef RELAY_COUNTER
};

struct relay;

struct thread {
    struct relay *relay;
    pthread_t id;
    int device; /* of a reader */
    bool is_started;
    atomic_bool has_ended;
};

/* While requests for Python follow each other, its thread reads them itself: to be told of each by
 * a reader costs a change of threads. The readers rest, but for one that looks now and then whether
 * Python is busy with one for long. */
struct attention {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    bool is_given;              /* guarded by lock; written by the thread in relay_take() only */
    _Atomic int64_t busy_since; /* monotonic ns; 0: in relay_take() */
    unsigned in_a_row;          /* of the thread in relay_take() */
    unsigned vain_looks;        /* of the same */
};

struct relay {
    struct table table;
    struct pending pending;
    struct queue requests;      /* to Python, while the socket is full */
    struct queue operations;    /* to Python, which takes them from here */
    struct queue notifications; /* to the kernel, which may block on them */

    int devices[RELAY_THREADS_MAX + 1]; /* owned; replies go back through that of the request */
    int readers;                        /* one each; behind theirs that of relay_take() */
    struct attention attention;
    int socket;        /* owned; the relay's end */
    int event_fd;      /* borrowed */
    int operations_fd; /* owned; an eventfd, readable when operations has something */
    uint32_t max_write;
    uint32_t page_bytes;
    uint8_t *buffer; /* owned; MESSAGE_BYTES_MAX; of relay_pump() and relay_take() */

    struct thread threads[THREADS_MAX]; /* readers first */
    int thread_count;

    atomic_bool is_stopping; /* threads other than readers */
    atomic_bool are_readers_stopping;
    atomic_bool is_python_gone;
    atomic_bool is_ready; /* the kernel took the INIT reply */
    atomic_bool is_unmounted;
    atomic_flag is_lingering; /* one thread at a time */
    _Atomic uint64_t counts[COUNTERS];

    pthread_mutex_t init_lock; /* guards the two messages in the ledger */
    bool has_taken_over;
};

static void count(struct relay *relay, enum relay_counter counter)
{
    atomic_fetch_add_explicit(&relay->counts[counter], 1, memory_order_relaxed);
}

/* --- to the kernel ------------------------------------------------------------------------- */

/* False when the kernel did not take it: the request was aborted or the mount is gone. */
static bool give_kernel(struct relay *relay, int device, const void *bytes, size_t size)
{
    ssize_t written;
    do {
        written = write(device, bytes, size);
    } while (written < 0 && errno == EINTR);
    if (written < 0)
        count(relay, COUNTER_write_errors);
    return written >= 0;
}

/* error is an errno, 0 for success. */
static bool answer(struct relay *relay, int device, uint64_t unique, int error, const void *body,
                   size_t body_bytes)
{
    union {
        struct fuse_out_header header;
        uint8_t bytes[sizeof(struct fuse_out_header) + sizeof(struct fuse_attr_out)];
    } reply;

    reply.header = (struct fuse_out_header){
        .len = (uint32_t)(sizeof reply.header + body_bytes),
        .error = -error,
        .unique = unique,
    };
    if (body_bytes > 0)
        memcpy(reply.bytes + sizeof reply.header, body, body_bytes);
    return give_kernel(relay, device, &reply, reply.header.len);
}

/* Ends a request that Python will not answer any more. */
static void fail(struct relay *relay, const struct origin *origin, int error)
{
    table_replied(&relay->table, &origin->stamp);
    count(relay, COUNTER_failed);
    if (origin->device >= 0)
        answer(relay, origin->device, origin->unique, error, NULL, 0);
}

static void fail_pending(struct relay *relay)
{
    struct origin origin;
    while (pending_take_any(&relay->pending, &origin))
        fail(relay, &origin, ENOTCONN);
}

static void python_is_gone(struct relay *relay)
{
    atomic_store(&relay->is_python_gone, true);
    fail_pending(relay);
}

static void mount_is_gone(struct relay *relay)
{
    atomic_store(&relay->is_unmounted, true);
    eventfd_write(relay->event_fd, 1);
}

/* --- to Python ----------------------------------------------------------------------------- */

/* What a failed send means. */
enum delivery { DELIVERED, DELIVERY_LATER, DELIVERY_NEVER, DELIVERY_PYTHON_GONE };

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

/* Never blocks: what does not fit waits in the queue, and behind it all that follows. */
static enum delivery give_python(struct relay *relay, const uint8_t *bytes, size_t size)
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

static void forward(struct relay *relay, int device, const struct request *request,
                    const uint8_t *bytes, size_t size)
{
    const struct fuse_in_header *header = &request->header;
    bool wants_reply = message_wants_reply(header->opcode);
    struct origin origin = {
        .unique = header->unique,
        .nodeid = header->nodeid,
        .opcode = header->opcode,
        .device = device,
    };

    describe(&origin, request);
    if (wants_reply) {
        origin.stamp = table_forwarding(&relay->table, request, message_changes(request));
        if (!pending_add(&relay->pending, &origin)) {
            fail(relay, &origin, EIO);
            return;
        }
    }
    count(relay, COUNTER_forwarded);
    enum delivery delivery = DELIVERY_PYTHON_GONE;
    if (!atomic_load(&relay->is_python_gone))
        delivery = message_is_operation(header->opcode) ? give_operation(relay, bytes, size)
                                                        : give_python(relay, bytes, size);
    if (delivery == DELIVERY_PYTHON_GONE)
        python_is_gone(relay); /* this request with all others */
    if (delivery == DELIVERY_NEVER && wants_reply &&
        pending_take(&relay->pending, header->unique, &origin))
        fail(relay, &origin, EIO);
}

/* Drains the queue; ends with it. */
static void *forwarder(void *argument)
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
            python_is_gone(relay);
        if (delivery == DELIVERY_NEVER) {
            struct origin origin;
            const struct fuse_in_header *header = (const void *)first->bytes;
            if (pending_take(&relay->pending, header->unique, &origin))
                fail(relay, &origin, EIO);
        }
        queue_drop_first(&relay->requests);
    }
    atomic_store(&thread->has_ended, true);
    return NULL;
}

/* --- requests ------------------------------------------------------------------------------ */

static int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static struct ledger_file *ledger_of(struct relay *relay)
{
    return relay->table.ledger.file;
}

static void save_init(struct relay *relay, struct ledger_init *saved, const uint8_t *bytes,
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
        .out = {.fh = HANDLE_RELAY | header->nodeid,
                .open_flags = ABI_FOPEN_PASSTHROUGH | FOPEN_NOFLUSH},
    };
    int slot;

    if (!table_answer_open(&relay->table, header->nodeid, in->flags, now_ns(), &reply, &slot))
        return false;
    count(relay, COUNTER_answered_open);
    if (!give_kernel(relay, device, &reply, sizeof reply))
        table_not_opened(&relay->table, header->nodeid, LEDGER_ANSWERED);
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
    give_kernel(relay, device, &reply, sizeof reply);
    table_given(&relay->table, slot);
    if (kind == LEDGER_ANSWERED)
        count(relay, COUNTER_answered_release);
    return kind == LEDGER_ANSWERED;
}

static bool answer_getattr(struct relay *relay, int device, const struct request *request)
{
    struct fuse_attr_out out;
    if (!table_answer_getattr(&relay->table, request->header.nodeid, &out))
        return false;
    count(relay, COUNTER_answered_getattr);
    answer(relay, device, request->header.unique, 0, &out, sizeof out);
    return true;
}

static bool answer_getxattr(struct relay *relay, int device, const struct request *request)
{
    const char *name = (const char *)request->body + sizeof(struct fuse_getxattr_in);
    if (strcmp(name, "security.capability") != 0 ||
        !table_capability_free(&relay->table, request->header.nodeid))
        return false;
    count(relay, COUNTER_answered_getxattr);
    answer(relay, device, request->header.unique, ENODATA, NULL, 0);
    return true;
}

static bool answer_flush(struct relay *relay, int device, const struct request *request)
{
    count(relay, COUNTER_answered_flush);
    answer(relay, device, request->header.unique, ENOSYS, NULL, 0);
    return true;
}

/* pyfuse3 carries none, and the kernel does not remember an ENOSYS to this one. Python's open()
 * asks each file whether it is a terminal. */
static bool answer_ioctl(struct relay *relay, int device, const struct request *request)
{
    count(relay, COUNTER_answered_ioctl);
    answer(relay, device, request->header.unique, ENOTTY, NULL, 0);
    return true;
}

/* After EOPNOTSUPP the kernel copies by itself, from backing file to backing file. */
static bool answer_copy(struct relay *relay, int device, const struct request *request)
{
    const struct fuse_copy_file_range_in *in = (const void *)request->body;
    if (in->len >= COPY_LEAST_BYTES)
        return false;
    count(relay, COUNTER_answered_copy);
    answer(relay, device, request->header.unique, EOPNOTSUPP, NULL, 0);
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

static size_t copy_init(struct relay *relay, const struct ledger_init *saved, uint8_t *bytes,
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
        size = copy_init(relay, &ledger_of(relay)->init_reply, bytes, sizeof bytes);
        ((struct fuse_out_header *)(void *)bytes)->unique = unique;
    } else {
        size = ledger_find_reply(&relay->table.ledger, unique, bytes);
    }
    if (size == 0)
        return false;
    count(relay, COUNTER_answered_again);
    give_kernel(relay, device, bytes, size);
    return true;
}

/* True when it was answered here. */
static bool handle_request(struct relay *relay, int device, uint8_t *bytes, size_t size)
{
    struct request request;

    count(relay, COUNTER_requests);
    enum request_state state = message_request(bytes, size, &request);
    if (state != REQUEST_OK) {
        count(relay, COUNTER_malformed_requests);
        if (state == REQUEST_BAD && request.header.unique != 0 &&
            message_wants_reply(request.header.opcode))
            answer(relay, device, request.header.unique, EIO, NULL, 0);
        return false;
    }
    if (request.header.unique & ABI_UNIQUE_RESEND && answer_again(relay, device, &request))
        return true;
    if (answer_here(relay, device, &request))
        return true;
    switch (request.header.opcode) {
    case FUSE_INIT:
        save_init(relay, &ledger_of(relay)->init_request, bytes, size);
        size = message_hide_init(bytes, size);
        break;
    case FUSE_RELEASEDIR:
        table_listing_closed(&relay->table, *(const uint64_t *)(const void *)request.body);
        break;
    case FUSE_INTERRUPT:
        if (interrupts_operation(relay, &request))
            return false;
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
    forward(relay, device, &request, bytes, size);
    return false;
}

static int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Waits for a request without sleeping, until LINGER_NS after it began; yields to whoever has
 * something to do. */
static void linger(struct relay *relay, int device, int64_t began_ns)
{
    struct pollfd readable = {.fd = device, .events = POLLIN};

    if (atomic_flag_test_and_set(&relay->is_lingering))
        return;
    while (poll(&readable, 1, 0) == 0 && monotonic_ns() - began_ns < LINGER_NS)
        sched_yield();
    atomic_flag_clear(&relay->is_lingering);
}

/* Handles the next request of a device. *was_answered: without Python. */
enum reading { READING_ON, READING_NOTHING, READING_OVER };

static enum reading read_request(struct relay *relay, int device, uint8_t *bytes,
                                 bool *was_answered)
{
    ssize_t size = read(device, bytes, MESSAGE_BYTES_MAX);
    *was_answered = false;
    if (size > 0) {
        *was_answered = handle_request(relay, device, bytes, (size_t)size);
        return READING_ON;
    }
    if (size == 0 || errno == ENODEV || errno == ECONNABORTED) {
        mount_is_gone(relay);
        return READING_OVER;
    }
    if (errno == EINTR || errno == ENOENT || errno == EAGAIN)
        return READING_NOTHING;
    count(relay, COUNTER_read_errors);
    if (errno != EBADF && errno != EPERM && errno != EINVAL)
        return READING_NOTHING;
    mount_is_gone(relay);
    return READING_OVER;
}

/* What a reader does while Python reads. False: it did nothing of the kind. */
static bool rest(struct relay *relay, bool looks_after, uint8_t *bytes)
{
    struct attention *attention = &relay->attention;
    struct timespec until;
    bool was_answered;

    pthread_mutex_lock(&attention->lock);
    bool rested = attention->is_given;
    while (attention->is_given && !atomic_load(&relay->are_readers_stopping)) {
        if (!looks_after) {
            pthread_cond_wait(&attention->ended, &attention->lock);
            continue;
        }
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += ATTENTION_LOST_NS;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&attention->ended, &attention->lock, &until);
        int64_t busy_since = atomic_load(&attention->busy_since);
        if (busy_since == 0 || monotonic_ns() - busy_since < ATTENTION_LOST_NS)
            continue;
        pthread_mutex_unlock(&attention->lock);
        int device = relay->devices[relay->readers];
        while (read_request(relay, device, bytes, &was_answered) == READING_ON)
            ;
        pthread_mutex_lock(&attention->lock);
    }
    pthread_mutex_unlock(&attention->lock);
    return rested;
}

static void *reader(void *argument)
{
    struct thread *thread = argument;
    struct relay *relay = thread->relay;
    uint8_t *bytes = malloc(MESSAGE_BYTES_MAX);
    bool expects_more = false; /* the last came soon and was answered here */
    bool was_answered;
    enum reading reading = bytes ? READING_ON : READING_OVER;

    while (reading != READING_OVER && !atomic_load(&relay->are_readers_stopping)) {
        if (rest(relay, thread == relay->threads, bytes))
            continue;
        int64_t began_ns = monotonic_ns();
        if (expects_more)
            linger(relay, thread->device, began_ns);
        reading = read_request(relay, thread->device, bytes, &was_answered);
        if (reading == READING_ON)
            expects_more = was_answered && monotonic_ns() - began_ns < LINGER_NS;
    }
    free(bytes);
    atomic_store(&thread->has_ended, true);
    return NULL;
}

/* --- Python as a reader -------------------------------------------------------------------- */

static void kick(const struct thread *thread);

static void give_attention(struct relay *relay)
{
    struct attention *attention = &relay->attention;
    pthread_mutex_lock(&attention->lock);
    attention->is_given = true;
    pthread_mutex_unlock(&attention->lock);
    for (int i = 0; i < relay->readers; i++)
        kick(&relay->threads[i]);
}

static void end_attention(struct relay *relay)
{
    struct attention *attention = &relay->attention;
    pthread_mutex_lock(&attention->lock);
    attention->is_given = false;
    pthread_cond_broadcast(&attention->ended);
    pthread_mutex_unlock(&attention->lock);
    attention->in_a_row = 0;
}

/* Looks for a moment before it sleeps, as long as that finds something: it cannot where the program
 * that asks needs this processor. Never yields: others might keep it for milliseconds. */
static int poll_soon(struct attention *attention, struct pollfd *sources, nfds_t count,
                     int timeout_ms)
{
    int ready = poll(sources, count, 0);
    if (ready != 0 || timeout_ms == 0)
        return ready;
    if (attention->vain_looks < VAIN_LOOKS_MAX) {
        int64_t began_ns = monotonic_ns();
        while (ready == 0 && monotonic_ns() - began_ns < LOOK_NS)
            ready = poll(sources, count, 0);
        attention->vain_looks = ready ? 0 : attention->vain_looks + 1;
    } else if (++attention->vain_looks == LOOK_AGAIN_AFTER) {
        attention->vain_looks = VAIN_LOOKS_MAX - 1;
    }
    return ready ? ready : poll(sources, count, timeout_ms);
}

/* Waits like poll(); what can be answered without Python is. */
static bool wait_attentively(struct relay *relay, int python_fd, int timeout_ms)
{
    struct pollfd sources[] = {{.fd = python_fd, .events = POLLIN},
                               {.fd = relay->operations_fd, .events = POLLIN},
                               {.fd = relay->devices[relay->readers], .events = POLLIN}};
    bool was_answered;

    while (!atomic_load(&relay->is_unmounted)) {
        int ready = poll_soon(&relay->attention, sources, 3, timeout_ms);
        if (ready > 0 && sources[1].revents)
            return false;
        if (ready > 0 && sources[0].revents)
            return true;
        if (ready == 0)
            return false;
        read_request(relay, sources[2].fd, relay->buffer, &was_answered);
    }
    return false;
}

bool relay_take(struct relay *relay, int python_fd, int timeout_ms)
{
    struct attention *attention = &relay->attention;
    struct pollfd sources[] = {{.fd = python_fd, .events = POLLIN},
                               {.fd = relay->operations_fd, .events = POLLIN}};
    bool is_ready;

    atomic_store(&attention->busy_since, 0);
    if (attention->in_a_row >= ATTENTION_AFTER && !atomic_load(&relay->are_readers_stopping)) {
        if (attention->in_a_row++ == ATTENTION_AFTER)
            give_attention(relay);
        is_ready = wait_attentively(relay, python_fd, timeout_ms);
        if (!is_ready)
            end_attention(relay);
    } else {
        is_ready = poll(sources, 2, timeout_ms) > 0 && sources[1].revents == 0;
        attention->in_a_row = is_ready ? attention->in_a_row + 1 : 0;
    }
    if (is_ready)
        atomic_store(&attention->busy_since, monotonic_ns());
    return is_ready;
}

/* --- replies ------------------------------------------------------------------------------- */

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
    struct init_wishes wishes = {&offered, relay->max_write, relay->page_bytes};
    size = message_amend_init(bytes, size, &wishes, &passthrough);
    count(relay, COUNTER_amended_init);
    save_init(relay, &ledger_of(relay)->init_reply, bytes, size);
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
        fail(relay, origin, ENFILE);
        return;
    }
    if (out->fh & HANDLE_AMENDED)
        count(relay, COUNTER_amended_open);
    table_replied(&relay->table, &origin->stamp);
    count(relay, COUNTER_replied);
    if (!give_kernel(relay, origin->device, bytes, size))
        table_not_opened(&relay->table, nodeid, table_kind(out->fh, origin->flags));
    table_given(&relay->table, slot);
}

/* pyfuse3 has answered the INIT request. */
static void give_init(struct relay *relay, const struct origin *origin, uint8_t *bytes, size_t size)
{
    size = amend_init(relay, bytes, size);
    count(relay, COUNTER_replied);
    if (give_kernel(relay, origin->device, bytes, size)) {
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
        fail(relay, origin, EIO);
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
    give_kernel(relay, origin->device, bytes, size);
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
            give_kernel(relay, origin.device, bytes, size);
        return;
    }
    if (!pending_take(&relay->pending, header.unique, &origin)) {
        count(relay, COUNTER_unknown_replies);
        return;
    }
    if (size > MESSAGE_BYTES_MAX || !message_reply_valid(origin.opcode, bytes, size)) {
        count(relay, COUNTER_malformed_replies);
        fail(relay, &origin, EIO);
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
            python_is_gone(relay);
            return;
        } else if (errno == EAGAIN) {
            return;
        }
    }
}

/* The kernel may make a notification wait for an operation whose reply is still to come. */
static void *notifier(void *argument)
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

/* --- life ---------------------------------------------------------------------------------- */

static void kicked(int number)
{
    (void)number;
}

static int kick_signal(void)
{
    return SIGRTMAX - 3;
}

static void init_attention(struct attention *attention)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&attention->lock, NULL);
    pthread_cond_init(&attention->ended, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

static bool size_buffer(int socket, int force, int plain, int bytes)
{
    return setsockopt(socket, SOL_SOCKET, force, &bytes, sizeof bytes) == 0 ||
           setsockopt(socket, SOL_SOCKET, plain, &bytes, sizeof bytes) == 0;
}

/* How much data a message may carry so that two of them fit into the socket. */
static uint32_t fitting_write(int socket, uint32_t page_bytes)
{
    int bytes = 0;
    socklen_t length = sizeof bytes;
    getsockopt(socket, SOL_SOCKET, SO_SNDBUF, &bytes, &length);
    int64_t room = bytes / 2 - SOCKET_OVERHEAD_BYTES;
    if (room > MESSAGE_DATA_MAX)
        room = MESSAGE_DATA_MAX;
    room -= room % page_bytes;
    return room > (int64_t)page_bytes ? (uint32_t)room : page_bytes;
}

static int make_sockets(struct relay *relay, int *python_fd)
{
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0)
        return errno;
    for (int i = 0; i < 2; i++) {
        size_buffer(ends[i], SO_SNDBUFFORCE, SO_SNDBUF, SOCKET_BYTES);
        size_buffer(ends[i], SO_RCVBUFFORCE, SO_RCVBUF, SOCKET_BYTES);
    }
    relay->socket = ends[0];
    *python_fd = ends[1];
    relay->max_write = fitting_write(ends[0], relay->page_bytes);
    return 0;
}

static void close_devices(struct relay *relay)
{
    for (int i = 0; i <= relay->readers; i++) {
        close(relay->devices[i]);
        relay->devices[i] = -1;
    }
}

static int take_devices(struct relay *relay, const struct relay_setup *setup)
{
    int error = 0;
    int i;

    relay->devices[0] = setup->device;
    for (i = 1; i <= setup->threads; i++) {
        relay->devices[i] = setup->clones ? setup->clones[i - 1] : device_clone(setup->device);
        if (relay->devices[i] < 0) {
            error = errno;
            break;
        }
    }
    if (error == 0 && fcntl(relay->devices[setup->threads], F_SETFL, O_NONBLOCK) != 0)
        error = errno;
    while (error && --i > 0 && setup->clones == NULL)
        close(relay->devices[i]);
    relay->readers = setup->threads;
    return error;
}

/* An earlier worker died between the kernel's giving out a backing id and its own noting it. */
static void close_unknown_backing(struct relay *relay)
{
    struct ledger_file *file = ledger_of(relay);
    int32_t id = file->last_backing + 1; /* they are given out in order */

    if (atomic_load(&file->registering)) {
        device_backing_close(relay->devices[0], id);
        ledger_remove_backing(&relay->table.ledger, id);
        file->last_backing = id;
        atomic_store(&file->registering, 0);
    }
}

int relay_new(const struct relay_setup *setup, struct relay **result, int *python_fd)
{
    int error = ENOMEM;

    if (setup->threads < 1 || setup->threads > RELAY_THREADS_MAX)
        return EINVAL;
    struct relay *relay = calloc(1, sizeof *relay);
    if (relay == NULL)
        return ENOMEM;
    relay->event_fd = setup->event_fd;
    relay->operations_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (relay->operations_fd < 0) {
        error = errno;
        free(relay);
        return error;
    }
    atomic_flag_clear(&relay->is_lingering);
    init_attention(&relay->attention);
    relay->page_bytes = (uint32_t)sysconf(_SC_PAGESIZE);
    pthread_mutex_init(&relay->init_lock, NULL);
    queue_init(&relay->requests);
    queue_init(&relay->operations);
    queue_init(&relay->notifications);
    error = table_init(&relay->table, setup->event_fd, setup->ledger_fd);
    if (error)
        goto no_table;
    relay->has_taken_over = ledger_is_inherited(&relay->table.ledger);
    atomic_store(&relay->is_ready, relay->has_taken_over);
    error = ENOMEM;
    if (!pending_init(&relay->pending))
        goto no_pending;
    relay->buffer = malloc(MESSAGE_BYTES_MAX);
    if (relay->buffer == NULL)
        goto no_buffer;
    error = make_sockets(relay, python_fd);
    if (error)
        goto no_sockets;
    error = take_devices(relay, setup);
    if (error)
        goto no_devices;
    close_unknown_backing(relay);
    *result = relay;
    return 0;

no_devices:
    close(relay->socket);
    close(*python_fd);
no_sockets:
    free(relay->buffer);
no_buffer:
    pending_free(&relay->pending);
no_pending:
    table_free(&relay->table);
no_table:
    queue_free(&relay->notifications);
    queue_free(&relay->operations);
    close(relay->operations_fd);
    queue_free(&relay->requests);
    pthread_mutex_destroy(&relay->init_lock);
    free(relay);
    return error;
}

static int start_thread(struct relay *relay, void *(*run)(void *argument), int device)
{
    struct thread *thread = &relay->threads[relay->thread_count];
    thread->relay = relay;
    thread->device = device;
    int error = pthread_create(&thread->id, NULL, run, thread);
    if (error == 0) {
        thread->is_started = true;
        relay->thread_count++;
    }
    return error;
}

/* pyfuse3 is given the INIT request that an earlier worker got; the kernel knows the reply. */
static void repeat_init(struct relay *relay)
{
    union {
        struct fuse_in_header header;
        uint8_t bytes[LEDGER_INIT_BYTES];
    } message;
    size_t size =
        copy_init(relay, &ledger_of(relay)->init_request, message.bytes, sizeof message.bytes);
    struct origin origin = {.unique = message.header.unique, .opcode = FUSE_INIT, .device = -1};

    pending_add(&relay->pending, &origin);
    give_python(relay, message.bytes, message_hide_init(message.bytes, size));
}

/* What earlier workers have read and not answered is to be sent again: before anything is read. */
static int have_resent(struct relay *relay)
{
    const struct fuse_out_header resend = {.len = sizeof resend, .error = ABI_NOTIFY_RESEND};
    bool is_done = write(relay->devices[0], &resend, sizeof resend) >= 0;
    return is_done || errno == ENODEV || errno == ENOTCONN ? 0 : errno; /* readers will see those */
}

int relay_start(struct relay *relay)
{
    struct sigaction action = {.sa_handler = kicked};
    sigset_t all;
    sigset_t before;

    sigemptyset(&action.sa_mask);
    sigaction(kick_signal(), &action, NULL);
    /* The process's signals are for its other threads. */
    sigfillset(&all);
    sigdelset(&all, kick_signal());
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int error = ledger_of(relay)->generation > 1 ? have_resent(relay) : 0;
    if (relay->has_taken_over)
        repeat_init(relay);
    for (int i = 0; i < relay->readers && error == 0; i++)
        error = start_thread(relay, reader, relay->devices[i]);
    if (error == 0)
        error = start_thread(relay, notifier, -1);
    if (error == 0)
        error = start_thread(relay, forwarder, -1);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

static void kick(const struct thread *thread)
{
    pthread_kill(thread->id, kick_signal());
}

static void join(struct thread *thread)
{
    const struct timespec pause = {.tv_nsec = KICK_NS};
    if (!thread->is_started)
        return;
    thread->is_started = false;
    while (!atomic_load(&thread->has_ended)) {
        kick(thread);
        nanosleep(&pause, NULL);
    }
    pthread_join(thread->id, NULL);
}

bool relay_has_taken_over(struct relay *relay)
{
    return relay->has_taken_over;
}

void relay_retire(struct relay *relay)
{
    atomic_store(&relay->are_readers_stopping, true);
    end_attention(relay);
    for (int i = 0; i < relay->readers && i < relay->thread_count; i++)
        join(&relay->threads[i]);
}

void relay_stop(struct relay *relay)
{
    if (relay->devices[0] < 0)
        return;
    /* Readers last: the notifier may be waiting for operations that only they can fail. */
    atomic_store(&relay->is_stopping, true);
    atomic_store(&relay->is_python_gone, true);
    queue_end(&relay->requests);
    queue_end(&relay->notifications);
    fail_pending(relay);
    for (int i = relay->readers; i < relay->thread_count; i++)
        join(&relay->threads[i]);
    atomic_store(&relay->are_readers_stopping, true);
    end_attention(relay);
    for (int i = 0; i < relay->readers && i < relay->thread_count; i++)
        join(&relay->threads[i]);
    fail_pending(relay);
    close_devices(relay);
    close(relay->socket);
    relay->socket = -1;
}

void relay_free(struct relay *relay)
{
    free(relay->buffer);
    pending_free(&relay->pending);
    table_free(&relay->table);
    queue_free(&relay->notifications);
    queue_free(&relay->operations);
    close(relay->operations_fd);
    queue_free(&relay->requests);
    pthread_mutex_destroy(&relay->init_lock);
    free(relay);
}

/* --- questions ----------------------------------------------------------------------------- */

struct table *relay_table(struct relay *relay)
{
    return &relay->table;
}

int relay_replies_fd(struct relay *relay)
{
    return relay->socket;
}

int relay_register(struct relay *relay, int fd, int32_t *backing_id)
{
    struct ledger_file *file = ledger_of(relay);
    struct stat stat;

    if (fstat(fd, &stat) != 0)
        return errno;
    pthread_mutex_lock(&relay->table.lock);
    atomic_store(&file->registering, 1);
    int32_t id = device_backing_open(relay->devices[0], fd);
    int error = id < 0 ? errno : 0;
    if (error == 0 && !ledger_add_backing(&relay->table.ledger, id, stat.st_dev, stat.st_ino)) {
        device_backing_close(relay->devices[0], id);
        error = ENOMEM;
    }
    if (id > 0)
        file->last_backing = id;
    atomic_store(&file->registering, 0);
    pthread_mutex_unlock(&relay->table.lock);
    *backing_id = id;
    return error;
}

int relay_unregister(struct relay *relay, int32_t backing_id)
{
    pthread_mutex_lock(&relay->table.lock);
    int error = device_backing_close(relay->devices[0], backing_id);
    ledger_remove_backing(&relay->table.ledger, backing_id);
    pthread_mutex_unlock(&relay->table.lock);
    return error;
}

uint64_t relay_unique(struct relay *relay, uint32_t opcode, uint64_t nodeid, uint32_t *flags)
{
    struct origin origin = {0};
    bool is_found = pending_search(&relay->pending, opcode, nodeid, &origin);
    *flags = is_found ? origin.flags : 0;
    return is_found ? origin.unique : 0;
}

bool relay_is_ready(struct relay *relay)
{
    return atomic_load(&relay->is_ready);
}

bool relay_is_unmounted(struct relay *relay)
{
    return atomic_load(&relay->is_unmounted);
}

void relay_counts(struct relay *relay, uint64_t *counts)
{
    for (int i = 0; i < COUNTERS; i++)
        counts[i] = atomic_load_explicit(&relay->counts[i], memory_order_relaxed);
}

int relay_operations_fd(struct relay *relay)
{
    return relay->operations_fd;
}

const uint8_t *relay_first_operation(struct relay *relay, size_t *size)
{
    const struct queued *first = queue_first(&relay->operations);
    if (first == NULL)
        return NULL;
    *size = first->size;
    return first->bytes;
}

void relay_drop_operation(struct relay *relay)
{
    queue_drop_first(&relay->operations);
}

int relay_answer(struct relay *relay, uint64_t unique, int error, const void *body,
                 size_t body_bytes)
{
    union {
        struct fuse_out_header header;
        uint8_t bytes[sizeof(struct fuse_out_header) + RELAY_ANSWER_BYTES_MAX];
    } reply;

    if (unique == 0 || unique & ABI_UNIQUE_INTERRUPT || body_bytes > RELAY_ANSWER_BYTES_MAX)
        return EINVAL;
    reply.header = (struct fuse_out_header){
        .len = (uint32_t)(sizeof reply.header + body_bytes),
        .error = -error,
        .unique = unique,
    };
    if (body_bytes > 0)
        memcpy(reply.bytes + sizeof reply.header, body, body_bytes);
    handle_reply(relay, reply.bytes, reply.header.len);
    return 0;
}

size_t relay_pending(struct relay *relay)
{
    pthread_mutex_lock(&relay->pending.lock);
    size_t requests = relay->pending.requests.count;
    pthread_mutex_unlock(&relay->pending.lock);
    return requests;
}

size_t relay_queued_bytes(struct relay *relay)
{
    return queue_bytes(&relay->requests);
}

uint32_t relay_max_write(struct relay *relay)
{
    return relay->max_write;
}

size_t relay_init_request(struct relay *relay, uint8_t *bytes, size_t room)
{
    return copy_init(relay, &ledger_of(relay)->init_request, bytes, room);
}

size_t relay_init_reply(struct relay *relay, uint8_t *bytes, size_t room)
{
    return copy_init(relay, &ledger_of(relay)->init_reply, bytes, room);
}
