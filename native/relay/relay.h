/*
 * The relay: stands between /dev/fuse and a FUSE library, answers what it can and forwards the
 * rest. docs/RELAY.md says which messages, threads and locks there are.
 */
#ifndef AGENTFS_RELAY_H
#define AGENTFS_RELAY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "table.h"

enum { RELAY_THREADS_MAX = 16 };

/* X(name): one counter each. */
#define RELAY_COUNTERS(X)                                                                          \
    X(requests)      /* read from the kernel */                                                    \
    X(forwarded)     /* given to Python */                                                         \
    X(kept)          /* the same, without pyfuse3, unless passed on: those count twice */          \
    X(operations)    /* of these, those that pyfuse3 cannot carry */                               \
    X(replied)       /* replies of Python given to the kernel */                                   \
    X(answered_open) /* answered in C, by kind */                                                  \
    X(answered_release)                                                                            \
    X(answered_getattr)                                                                            \
    X(answered_getxattr)                                                                           \
    X(answered_flush)                                                                              \
    X(answered_ioctl)                                                                              \
    X(answered_copy)                                                                               \
    X(answered_again) /* with the reply that an earlier worker had ready */                        \
    X(amended_init)   /* replies of Python that were changed, by kind */                           \
    X(amended_open)                                                                                \
    X(interrupts)    /* forwarded */                                                               \
    X(forgets)       /* forwarded, batches count once */                                           \
    X(notifies)      /* given to the kernel */                                                     \
    X(notify_errors) /* refused by it: mostly ENOENT, what it does not know */                     \
    X(queued)        /* had to wait for room in the socket */                                      \
    X(failed)        /* answered with an error for want of Python or memory */                     \
    X(malformed_requests)                                                                          \
    X(malformed_replies)                                                                           \
    X(unknown_replies) /* to no pending request */                                                 \
    X(write_errors)    /* answers the kernel did not take: aborted or gone */                      \
    X(read_errors)     /* other than interrupted, aborted and gone */

enum relay_counter {
#define RELAY_COUNTER(name) COUNTER_##name,
    RELAY_COUNTERS(RELAY_COUNTER)
#undef RELAY_COUNTER
        COUNTERS
};

extern const char *const relay_counter_names[COUNTERS];

struct relay;

struct relay_setup {
    int device;   /* taken over: an open and mounted /dev/fuse */
    int event_fd; /* borrowed: an eventfd, readable when there are events or the mount is gone */
    int threads;  /* readers, 0..RELAY_THREADS_MAX; without any, relay_take() alone reads device */
    /* Further descriptors of the connection, taken over; NULL: cloned from device. */
    const int *clones; /* threads; the last is for relay_take() */
    bool asks_for_passthrough;
    /* Where the kernel is asked to let no processor sleep, taken over; -1: nowhere. */
    int latency_fd;
    /* Borrowed, from ledger_create(); -1: none, nobody shall take over. If another relay has served
     * the connection, this one goes on where it was. */
    int ledger_fd;
};

/* 0 or an errno (EPROTO: the ledger is of another version); on failure nothing was taken over.
 * *python_fd is the library's end, the caller's to close. No thread runs before relay_start(). */
int relay_new(const struct relay_setup *setup, struct relay **relay, int *python_fd);

/* 0 or an errno. Once. */
int relay_start(struct relay *relay);

/* Waits until the library's end has a request to read, or for that long. An operation ends it as
 * well, so that whoever takes those gets its turn. For the thread that calls relay_pump(). Where
 * requests for it follow each other, it reads them from the kernel itself meanwhile, instead of
 * being woken by a reader for each; one that Python can answer at once it keeps (TAKEN_REQUEST).
 * TAKEN_TURN: it has answered others for so long that something else should have its turn; call it
 * again. */
enum taken { TAKEN_NOTHING, TAKEN_READABLE, TAKEN_REQUEST, TAKEN_TURN };
enum taken relay_take(struct relay *relay, int python_fd, int timeout_ms);

/* The request that relay_take() has kept, as the kernel sent it; until the next call of
 * relay_take() or relay_pump(). It is answered with relay_answer(), or passed on to the library. */
const uint8_t *relay_taken(struct relay *relay, size_t *size);
void relay_pass_on(struct relay *relay);

/* Gives the kernel all replies that the library has written to its end. One thread at a time: the
 * one that has just written them, which spares them the way through a thread of the relay. */
void relay_pump(struct relay *relay);

/* Readable when there is something to pump, borrowed; -1 after relay_stop(). */
int relay_replies_fd(struct relay *relay);

/* Another relay served this connection before. */
bool relay_has_taken_over(struct relay *relay);

/* Reads no more requests; what was read is answered as before. For whoever is to be replaced. */
void relay_retire(struct relay *relay);

/* Stops and joins the threads: what is pending gets ENOTCONN. Closes the descriptors. */
void relay_stop(struct relay *relay);

/* After relay_stop(). */
void relay_free(struct relay *relay);

struct table *relay_table(struct relay *relay);

/* The kernel took the INIT reply: backing files can be registered. */
bool relay_is_ready(struct relay *relay);

/* The kernel said that the mount is gone. */
bool relay_is_unmounted(struct relay *relay);

/* An eventfd, readable when an operation has come, borrowed. */
int relay_operations_fd(struct relay *relay);

/* The oldest request that waits for Python by another way than pyfuse3, as the kernel sent it; NULL
 * when there is none. It stays where it is until relay_drop_operation(): one thread only may do
 * these two. */
const uint8_t *relay_first_operation(struct relay *relay, size_t *size);
void relay_drop_operation(struct relay *relay);

/* As if pyfuse3 had replied; for the thread that calls relay_take(), whose kept request this ends.
 * error is an errno, 0 for success. EINVAL when that cannot be the reply to a request; one that is
 * pending no more is dropped. */
int relay_answer(struct relay *relay, uint64_t unique, int error, const void *body,
                 size_t body_bytes);

/* Whether no inode has an access list: then the relay says so, whatever the inode. False at first;
 * to be false again before one is set. */
void relay_set_acl_free(struct relay *relay, bool is_free);

/* counts has COUNTERS places. */
void relay_counts(struct relay *relay, uint64_t *counts);
size_t relay_pending(struct relay *relay);

/* The unique of a request that Python has and must answer; 0: there is none. With ABI_UNIQUE_RESEND
 * when an earlier worker had it, too, and may have done what it asks for. flags: of OPEN, CREATE
 * and SETXATTR. */
uint64_t relay_unique(struct relay *relay, uint32_t opcode, uint64_t nodeid, uint32_t *flags);

/* The kernel's backing files: 0 or an errno. */
int relay_register(struct relay *relay, int fd, int32_t *backing_id);
int relay_unregister(struct relay *relay, int32_t backing_id);
size_t relay_queued_bytes(struct relay *relay);
uint32_t relay_max_write(struct relay *relay);

#endif
