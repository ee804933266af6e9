/*
 * What the files of the relay share: its state, and what they ask of each other.
 */
#ifndef AGENTFS_RELAY_STATE_H
#define AGENTFS_RELAY_STATE_H

#include <pthread.h>
#include <stdatomic.h>

#include "look.h"
#include "message.h"
#include "pending.h"
#include "queue.h"
#include "relay.h"
#include "watch.h"

enum { THREADS_MAX = RELAY_THREADS_MAX + 3 }; /* readers; notifier, forwarder, guard */

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
    pthread_cond_t changed;     /* it has ended */
    bool is_given;              /* guarded by lock */
    _Atomic int64_t busy_since; /* monotonic ns; 0: in relay_take() */
    unsigned in_a_row;          /* of the thread in relay_take(); as well: */
    unsigned soon_in_a_row;     /* requests that came within SOON_NS */
    unsigned reads_left;        /* before it looks whether anything else has come */
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
    struct watch watch;
    struct look look;  /* of the thread in relay_take() */
    int socket;        /* owned; the relay's end */
    int event_fd;      /* borrowed */
    int operations_fd; /* owned; an eventfd, readable when operations has something */
    bool asks_for_passthrough;
    uint32_t max_write;
    uint32_t page_bytes;
    uint8_t *buffer;   /* owned; MESSAGE_BYTES_MAX; of relay_pump(), relay_take(), relay_answer() */
    size_t kept_bytes; /* in buffer, of the request that relay_take() has kept */

    struct thread threads[THREADS_MAX]; /* readers first */
    int thread_count;

    atomic_bool is_stopping; /* threads other than readers */
    atomic_bool are_readers_stopping;
    atomic_bool is_python_gone;
    atomic_bool is_ready; /* the kernel took the INIT reply */
    atomic_bool is_unmounted;
    atomic_bool is_acl_free;  /* no inode has an access list */
    atomic_flag is_lingering; /* one thread at a time */
    _Atomic uint64_t counts[COUNTERS];

    pthread_mutex_t init_lock; /* guards the two messages in the ledger */
    bool has_taken_over;
};

static inline void count(struct relay *relay, enum relay_counter counter)
{
    atomic_fetch_add_explicit(&relay->counts[counter], 1, memory_order_relaxed);
}

static inline struct ledger_file *ledger_of(struct relay *relay)
{
    return relay->table.ledger.file;
}

/* To the kernel: delivery.c */

/* False when the kernel did not take it: the request was aborted or the mount is gone. */
bool relay_give_kernel(struct relay *relay, int device, const void *bytes, size_t size);

/* error is an errno, 0 for success. */
bool relay_give_answer(struct relay *relay, int device, uint64_t unique, int error,
                       const void *body, size_t body_bytes);

/* Ends a request that Python will not answer any more. */
void relay_fail(struct relay *relay, const struct origin *origin, int error);
void relay_fail_pending(struct relay *relay);
void relay_python_is_gone(struct relay *relay);
void relay_mount_is_gone(struct relay *relay);

/* To Python: delivery.c */

/* What a failed send means. */
enum delivery { DELIVERED, DELIVERY_LATER, DELIVERY_NEVER, DELIVERY_PYTHON_GONE };

/* Never blocks: what does not fit waits in the queue, and behind it all that follows. */
enum delivery relay_give_python(struct relay *relay, const uint8_t *bytes, size_t size);

/* Remembers a request until its reply; false, and its sender has an error, when out of memory. */
bool relay_note(struct relay *relay, int device, const struct request *request);
void relay_forward(struct relay *relay, const struct fuse_in_header *header, const uint8_t *bytes,
                   size_t size);

/* Drains the queue; ends with it. */
void *relay_forwarder(void *thread);

/* From the kernel: requests.c, readers.c */

enum handled { HANDLED_HERE, HANDLED_BY_PYTHON, HANDLED_NEVER, HANDLED_KEPT };

/* may_keep: the caller gives it to Python, if that is how its kind is answered. */
enum handled relay_handle_request(struct relay *relay, int device, uint8_t *bytes, size_t size,
                                  bool may_keep);
void relay_save_init(struct relay *relay, struct ledger_init *saved, const uint8_t *bytes,
                     size_t size);
size_t relay_copy_init(struct relay *relay, const struct ledger_init *saved, uint8_t *bytes,
                       size_t room);
void *relay_reader(void *thread);

void relay_end_attention(struct relay *relay);

/* Looks after who keeps watch. */
void *relay_guard(void *thread);

/* From Python: replies.c */

/* The kernel may make a notification wait for an operation whose reply is still to come. */
void *relay_notifier(void *thread);

/* Ends the system call that a thread is in. */
void relay_kick(const struct thread *thread);

#endif
