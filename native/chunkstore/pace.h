/* How fast background work may go: its threads ask after every step, and rest or stop. */
#ifndef AGENTFS_PACE_H
#define AGENTFS_PACE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    PACE_FULL = 1000,
    PACE_REST = 0,
    PACE_STOP = -1,
};

struct pace {
    atomic_int permille; /* of a core, for each thread; or PACE_REST, PACE_STOP */
};

/* CPU time of the calling thread. */
uint64_t pace_now_ns(void);

/*
 * Called after each step: rests as long as the pace says, given that the thread has worked since
 * since_ns. A new pace is obeyed within 10 ms. False: stop.
 */
bool pace_keep(const struct pace *pace, uint64_t since_ns);

#endif
