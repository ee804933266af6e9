#define _GNU_SOURCE
#include "relay_state.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "device.h"

/* Several whole messages; the kernel takes memory for what is under way only. */
enum { SOCKET_BYTES = 8 * 1024 * 1024 };

/* Beyond these the kernel counts memory per message, not only its bytes. */
enum { SOCKET_OVERHEAD_BYTES = 4096 };

/* How long a stopped thread may sleep before it is woken again: a signal that comes just before a
 * system call does not interrupt it. */
enum { KICK_NS = 1000 * 1000 };

const char *const relay_counter_names[COUNTERS] = {
#define RELAY_COUNTER(name) #name,
    RELAY_COUNTERS(RELAY_COUNTER)
#undef RELAY_COUNTER
};

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
    pthread_cond_init(&attention->changed, &monotonic);
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

    if (setup->threads < 0 || setup->threads > RELAY_THREADS_MAX)
        return EINVAL;
    struct relay *relay = calloc(1, sizeof *relay);
    if (relay == NULL)
        return ENOMEM;
    relay->event_fd = setup->event_fd;
    relay->asks_for_passthrough = setup->asks_for_passthrough;
    relay->operations_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (relay->operations_fd < 0) {
        error = errno;
        free(relay);
        return error;
    }
    atomic_flag_clear(&relay->is_lingering);
    init_attention(&relay->attention);
    watch_init(&relay->watch);
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
    relay->watch.latency_fd = setup->latency_fd;
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
    watch_free(&relay->watch);
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
    size_t size = relay_copy_init(relay, &ledger_of(relay)->init_request, message.bytes,
                                  sizeof message.bytes);
    struct origin origin = {.unique = message.header.unique, .opcode = FUSE_INIT, .device = -1};

    pending_add(&relay->pending, &origin);
    relay_give_python(relay, message.bytes, message_hide_init(message.bytes, size));
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
        error = start_thread(relay, relay_reader, relay->devices[i]);
    if (error == 0)
        error = start_thread(relay, relay_notifier, -1);
    if (error == 0)
        error = start_thread(relay, relay_forwarder, -1);
    if (error == 0 && relay->watch.latency_fd >= 0)
        error = start_thread(relay, relay_guard, -1);
    if (error == 0)
        watch_start(&relay->watch); /* readers may call each other from now on */
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return error;
}

void relay_kick(const struct thread *thread)
{
    pthread_kill(thread->id, kick_signal());
}

static void end_thread(const struct thread *thread)
{
    const struct timespec pause = {.tv_nsec = KICK_NS};
    while (thread->is_started && !atomic_load(&thread->has_ended)) {
        relay_kick(thread);
        nanosleep(&pause, NULL);
    }
}

static void join(struct thread *thread)
{
    end_thread(thread);
    if (thread->is_started)
        pthread_join(thread->id, NULL);
    thread->is_started = false;
}

static void join_readers(struct relay *relay)
{
    for (int i = 0; i < relay->readers; i++)
        end_thread(&relay->threads[i]); /* all of them first: they kick each other */
    for (int i = 0; i < relay->readers; i++)
        join(&relay->threads[i]);
}

/* Who rests, stands by or guards looks whether it is to stop. */
static void wake_who_rests(struct relay *relay)
{
    relay_end_attention(relay);
    watch_wake(&relay->watch);
}

bool relay_has_taken_over(struct relay *relay)
{
    return relay->has_taken_over;
}

void relay_retire(struct relay *relay)
{
    atomic_store(&relay->are_readers_stopping, true);
    queue_wake(&relay->requests);
    wake_who_rests(relay);
    join_readers(relay);
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
    wake_who_rests(relay);
    relay_fail_pending(relay);
    for (int i = relay->readers; i < relay->thread_count; i++)
        join(&relay->threads[i]);
    atomic_store(&relay->are_readers_stopping, true);
    wake_who_rests(relay);
    join_readers(relay);
    relay_fail_pending(relay);
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
    watch_free(&relay->watch);
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

void relay_set_acl_free(struct relay *relay, bool is_free)
{
    atomic_store(&relay->is_acl_free, is_free);
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
