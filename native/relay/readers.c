/* The threads that read requests; Python's is one of them while they follow each other. */
#define _GNU_SOURCE
#include "relay_state.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"

/* How long a reader looks for the next request before it sleeps. A program that opens, reads and
 * closes asks again within 20 us; to be woken takes as long as that. */
enum { LINGER_NS = 50 * 1000, LINGER_ON_WATCH_NS = 100 * 1000 };

/* How many requests in a row one thread must have taken before it keeps watch. */
enum { WATCH_AFTER = 16 };

/* A request that comes within that time of Python's asking comes soon: longer than a program takes
 * whose processor has to be woken for the last answer, and until this does not happen any more. */
enum { SOON_NS = 200 * 1000 };

/* How many requests in a row Python must have waited for in vain of nothing else, before it reads
 * them itself; how long one may then take it before a reader looks after the others; and how often
 * that one looks, which costs 6 us on the processor that Python has. */
enum { ATTENTION_AFTER = 4, ATTENTION_LOST_NS = 500 * 1000, ATTENTION_LOOK_NS = 1000 * 1000 };

/* How many requests Python's thread reads before it looks whether anything else has come for it:
 * where it shares a processor with the program, the next one is there once the last is answered. */
enum { READS_MAX = 16 };

/* How long Python's thread may go on with what needs no Python: others wait for their turn there.
 */
enum { TURN_NS = 2000 * 1000 };

/* What Python has not taken is left with the kernel beyond that: a thousand programs that write a
 * MiB each through the daemon would otherwise have a copy of it here. */
enum { BACKLOG_BYTES_MAX = 64 << 20 };

/* Waits for a request that long without sleeping; yields to whoever has something to do. False:
 * none has come, or another one looks. */
static bool linger(struct relay *relay, int device, int64_t linger_ns)
{
    struct pollfd readable = {.fd = device, .events = POLLIN};
    int64_t began_ns = monotonic_ns();
    int ready = 0;

    if (atomic_flag_test_and_set(&relay->is_lingering))
        return false;
    while ((ready = poll(&readable, 1, 0)) == 0 && monotonic_ns() - began_ns < linger_ns)
        sched_yield();
    atomic_flag_clear(&relay->is_lingering);
    return ready > 0;
}

enum reading { READING_ON, READING_NOTHING, READING_OVER };

/* Handles the next request of a device, and says how, but for one that it keeps for Python: then
 * *kept_bytes says how long it is. */
static enum reading read_request(struct relay *relay, int device, uint8_t *bytes,
                                 enum handled *handled, size_t *kept_bytes)
{
    ssize_t size = read(device, bytes, MESSAGE_BYTES_MAX);
    *handled = HANDLED_NEVER;
    if (size > 0) {
        *handled = relay_handle_request(relay, device, bytes, (size_t)size, kept_bytes != NULL);
        if (*handled == HANDLED_KEPT)
            *kept_bytes = (size_t)size;
        return READING_ON;
    }
    if (size == 0 || errno == ENODEV || errno == ECONNABORTED) {
        relay_mount_is_gone(relay);
        return READING_OVER;
    }
    if (errno == EINTR || errno == ENOENT || errno == EAGAIN)
        return READING_NOTHING;
    count(relay, COUNTER_read_errors);
    if (errno != EBADF && errno != EPERM && errno != EINVAL)
        return READING_NOTHING;
    relay_mount_is_gone(relay);
    return READING_OVER;
}

/* What a reader does while Python reads. False: it did nothing of the kind. */
static bool rest(struct relay *relay, const struct thread *thread, uint8_t *bytes)
{
    struct attention *attention = &relay->attention;
    bool looks_after = thread == relay->threads;
    struct timespec until;
    enum handled handled;

    pthread_mutex_lock(&attention->lock);
    bool rests = attention->is_given;
    pthread_mutex_unlock(&attention->lock);
    if (!rests)
        return false;
    watch_end(&relay->watch, thread);
    pthread_mutex_lock(&attention->lock);
    while (attention->is_given && !atomic_load(&relay->are_readers_stopping)) {
        if (!looks_after) {
            pthread_cond_wait(&attention->changed, &attention->lock);
            continue;
        }
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_nsec += ATTENTION_LOOK_NS;
        if (until.tv_nsec >= 1000000000) {
            until.tv_nsec -= 1000000000;
            until.tv_sec++;
        }
        pthread_cond_timedwait(&attention->changed, &attention->lock, &until);
        int64_t busy_since = atomic_load(&attention->busy_since);
        if (busy_since == 0 || monotonic_ns() - busy_since < ATTENTION_LOST_NS)
            continue;
        pthread_mutex_unlock(&attention->lock);
        int device = relay->devices[relay->readers];
        while (queue_bytes(&relay->requests) < BACKLOG_BYTES_MAX &&
               read_request(relay, device, bytes, &handled, NULL) == READING_ON)
            ;
        pthread_mutex_lock(&attention->lock);
    }
    pthread_mutex_unlock(&attention->lock);
    return true;
}

/* --- while requests that need no Python follow each other ------------------------------------ */

/* The kernel would wake one of the others for each request, in vain. */
static void keep_watch(struct relay *relay, const struct thread *thread)
{
    if (!watch_begin(&relay->watch, thread))
        return;
    for (int i = 0; i < relay->readers; i++) {
        if (thread != &relay->threads[i])
            relay_kick(&relay->threads[i]);
    }
}

/* After so many in a row that came soon and were answered here. True: there is another. */
static bool expect_more(struct relay *relay, const struct thread *thread, unsigned in_a_row)
{
    if (in_a_row > 0 && in_a_row % WATCH_AFTER == 0)
        keep_watch(relay, thread);
    if (!watch_is_kept_by(&relay->watch, thread))
        return in_a_row > 0 && linger(relay, thread->device, LINGER_NS);
    watch_seen(&relay->watch);
    bool comes = linger(relay, thread->device, LINGER_ON_WATCH_NS);
    if (!comes)
        watch_end(&relay->watch, thread);
    return comes;
}

void *relay_reader(void *argument)
{
    struct thread *thread = argument;
    struct relay *relay = thread->relay;
    uint8_t *bytes = malloc(MESSAGE_BYTES_MAX);
    unsigned in_a_row = 0;
    enum handled handled;
    enum reading reading = bytes ? READING_ON : READING_OVER;

    while (reading != READING_OVER && !atomic_load(&relay->are_readers_stopping)) {
        if (rest(relay, thread, bytes))
            continue;
        watch_stand_by(&relay->watch, thread, &relay->are_readers_stopping);
        int64_t began_ns = monotonic_ns();
        bool is_soon = expect_more(relay, thread, in_a_row);
        queue_wait_below(&relay->requests, BACKLOG_BYTES_MAX, &relay->are_readers_stopping);
        if (atomic_load(&relay->are_readers_stopping))
            break;
        reading = read_request(relay, thread->device, bytes, &handled, NULL);
        is_soon = is_soon || monotonic_ns() - began_ns < LINGER_NS;
        in_a_row = reading == READING_ON && handled == HANDLED_HERE && is_soon ? in_a_row + 1 : 0;
        if (in_a_row == 0)
            watch_end(&relay->watch, thread);
    }
    watch_end(&relay->watch, thread);
    free(bytes);
    atomic_store(&thread->has_ended, true);
    return NULL;
}

void *relay_guard(void *argument)
{
    struct thread *thread = argument;

    watch_guard(&thread->relay->watch, &thread->relay->is_stopping);
    atomic_store(&thread->has_ended, true);
    return NULL;
}

/* --- Python as a reader -------------------------------------------------------------------- */

static void give_attention(struct relay *relay)
{
    struct attention *attention = &relay->attention;
    pthread_mutex_lock(&attention->lock);
    attention->is_given = true;
    pthread_mutex_unlock(&attention->lock);
    for (int i = 0; i < relay->readers; i++)
        relay_kick(&relay->threads[i]);
}

void relay_end_attention(struct relay *relay)
{
    struct attention *attention = &relay->attention;
    watch_end(&relay->watch, attention);
    pthread_mutex_lock(&attention->lock);
    attention->is_given = false;
    pthread_cond_broadcast(&attention->changed);
    pthread_mutex_unlock(&attention->lock);
    attention->in_a_row = attention->soon_in_a_row = 0;
}

static void note_taken(struct relay *relay, bool is_soon)
{
    struct attention *attention = &relay->attention;

    attention->soon_in_a_row = is_soon ? attention->soon_in_a_row + 1 : 0;
    if (attention->soon_in_a_row == 0)
        watch_end(&relay->watch, attention);
    else if (watch_is_kept_by(&relay->watch, attention))
        watch_seen(&relay->watch);
    else if (attention->soon_in_a_row % WATCH_AFTER == 0)
        watch_begin(&relay->watch, attention);
}

/* Waits like poll() for what there is to read. TAKEN_REQUEST: the device, before anything else. */
static enum taken look_around(struct relay *relay, int python_fd, int timeout_ms)
{
    struct pollfd sources[] = {{.fd = python_fd, .events = POLLIN},
                               {.fd = relay->operations_fd, .events = POLLIN},
                               {.fd = relay->devices[relay->readers], .events = POLLIN}};
    int ready = look_poll(&relay->look, sources, 3, timeout_ms);

    if (ready == 0 || (ready > 0 && sources[1].revents))
        return TAKEN_NOTHING;
    relay->attention.reads_left = READS_MAX;
    return ready > 0 && sources[0].revents ? TAKEN_READABLE : TAKEN_REQUEST;
}

/* Waits like poll(); what can be answered without Python is. */
static enum taken wait_attentively(struct relay *relay, int python_fd, int timeout_ms)
{
    struct attention *attention = &relay->attention;
    int device = relay->devices[relay->readers];
    int64_t began_ns = monotonic_ns();
    int64_t turn_ends_ns = began_ns + TURN_NS;
    enum handled handled = HANDLED_NEVER;

    while (began_ns < turn_ends_ns) {
        enum taken next =
            attention->reads_left > 0 ? TAKEN_REQUEST : look_around(relay, python_fd, timeout_ms);
        if (next == TAKEN_NOTHING || atomic_load(&relay->is_unmounted))
            return TAKEN_NOTHING;
        if (next == TAKEN_REQUEST && read_request(relay, device, relay->buffer, &handled,
                                                  &relay->kept_bytes) != READING_ON) {
            attention->reads_left = 0;
            continue;
        }
        attention->reads_left--;
        if (next == TAKEN_READABLE || handled == HANDLED_BY_PYTHON)
            attention->reads_left = 0; /* there is something else */
        int64_t now_ns = monotonic_ns();
        note_taken(relay, now_ns - began_ns < SOON_NS);
        began_ns = now_ns;
        if (next == TAKEN_READABLE || handled == HANDLED_KEPT)
            return next;
    }
    return TAKEN_TURN;
}

enum taken relay_take(struct relay *relay, int python_fd, int timeout_ms)
{
    struct attention *attention = &relay->attention;
    struct pollfd sources[] = {{.fd = python_fd, .events = POLLIN},
                               {.fd = relay->operations_fd, .events = POLLIN}};
    enum taken taken;

    atomic_store(&attention->busy_since, 0);
    bool is_attentive = relay->readers == 0 || attention->in_a_row >= ATTENTION_AFTER;
    if (is_attentive && !atomic_load(&relay->are_readers_stopping)) {
        if (attention->in_a_row++ == ATTENTION_AFTER)
            give_attention(relay);
        taken = wait_attentively(relay, python_fd, timeout_ms);
        if (taken == TAKEN_NOTHING)
            relay_end_attention(relay);
    } else {
        bool is_ready = poll(sources, 2, timeout_ms) > 0 && sources[1].revents == 0;
        taken = is_ready ? TAKEN_READABLE : TAKEN_NOTHING;
        attention->in_a_row = is_ready ? attention->in_a_row + 1 : 0;
    }
    if (taken != TAKEN_NOTHING)
        atomic_store(&attention->busy_since, monotonic_ns());
    return taken;
}

const uint8_t *relay_taken(struct relay *relay, size_t *size)
{
    *size = relay->kept_bytes;
    return relay->buffer;
}

void relay_pass_on(struct relay *relay)
{
    struct fuse_in_header header;
    memcpy(&header, relay->buffer, sizeof header);
    relay->attention.reads_left = 0;
    relay_forward(relay, &header, relay->buffer, relay->kept_bytes);
}
