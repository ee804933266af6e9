/*
 * While requests that need no Python follow each other, one reader takes them all; Python's thread
 * does with those that it answers. Another that
 * sleeps in read() would be woken for each, in vain, and a processor that falls asleep between two
 * of them takes longer to wake than the request to answer. So the other one stands by: it keeps a
 * processor awake that nobody wants, and looks after the one that keeps watch.
 */
#ifndef AGENTFS_RELAY_WATCH_H
#define AGENTFS_RELAY_WATCH_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct watch {
    pthread_mutex_t lock; /* held while the other reader is called, so that it is still there */
    atomic_bool is_on;    /* there is one who can stand by, and may change its policy */
    _Atomic(const void *) keeper; /* NULL: nobody */
    _Atomic int64_t seen_ns;      /* the keeper's last sign of life */
    atomic_int processor;         /* the keeper's, when it began */
};

void watch_init(struct watch *watch);
void watch_free(struct watch *watch);

/* Threads may give up their right to a processor and take it back: not without CAP_SYS_NICE. */
bool watch_is_possible(void);

/* True: who keeps it now, and has not before, is to call the other one. Never with one processor.
 */
bool watch_begin(struct watch *watch, const void *who);
bool watch_is_kept_by(struct watch *watch, const void *who);
void watch_seen(struct watch *watch);
void watch_end(struct watch *watch, const void *who);

/* Returns when nobody else keeps watch, or *is_over. */
void watch_stand_by(struct watch *watch, const void *who, const atomic_bool *is_over);

#endif
