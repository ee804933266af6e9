/*
 * While requests that need no Python follow each other, one reader takes them all; Python's thread
 * does with those that it answers. A processor that falls asleep between two of them takes longer
 * to wake than the request to answer, in a virtual machine by way of its host. So the kernel is
 * asked, by its power management's quality of service, to let none sleep meanwhile.
 */
#ifndef AGENTFS_RELAY_WATCH_H
#define AGENTFS_RELAY_WATCH_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct watch {
    pthread_mutex_t lock;
    pthread_cond_t changed;       /* another keeper, or it is over */
    int latency_fd;               /* owned; -1: nobody may keep watch */
    bool is_on;                   /* guarded by lock */
    _Atomic(const void *) keeper; /* NULL: nobody; changed with lock held */
    _Atomic int64_t seen_ns;      /* the keeper's last sign of life */
};

/* Where the kernel is asked; -1: not by us. */
int watch_open_latency(void);

/* Nobody keeps watch before watch_start(). */
void watch_init(struct watch *watch);
void watch_start(struct watch *watch);
void watch_free(struct watch *watch);

/* True: who keeps it now, and has not before. */
bool watch_begin(struct watch *watch, const void *who);
bool watch_is_kept_by(struct watch *watch, const void *who);
void watch_seen(struct watch *watch);
void watch_end(struct watch *watch, const void *who);

/* Returns when nobody else keeps watch, or *is_over and watch_wake() was called. */
void watch_stand_by(struct watch *watch, const void *who, const atomic_bool *is_over);

/* Ends the watch of a keeper that gives no sign of life: it has lost its processor, or takes long
 * over something. Returns as above. */
void watch_guard(struct watch *watch, const atomic_bool *is_over);
void watch_wake(struct watch *watch);

#endif
