/*
 * poll(2) that looks for a moment before it sleeps: a request that follows the last one within
 * microseconds is there before its thread could have slept and been woken. It looks only as long as
 * that finds something: it cannot where the program that asks needs this processor.
 */
#ifndef AGENTFS_LOOK_H
#define AGENTFS_LOOK_H

#include <poll.h>

/* Of one thread; zeros at first. */
struct look {
    unsigned in_vain;
    unsigned slept; /* times since, without a look */
    unsigned pause; /* how many of these until it looks again */
};

/* As poll(2). It never yields: others might keep the processor for milliseconds. */
int look_poll(struct look *look, struct pollfd *sources, nfds_t count, int timeout_ms);

#endif
