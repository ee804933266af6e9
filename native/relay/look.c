#define _GNU_SOURCE
#include "look.h"

#include "clock.h"

/* How long it looks; after how many looks in vain it sleeps at once; and after how many sleeps it
 * looks again, twice as many each time up to the most. */
enum { LOOK_NS = 30 * 1000, IN_VAIN_MAX = 3, PAUSE_LEAST = 64, PAUSE_MOST = 4096 };

static int look_for_a_moment(struct pollfd *sources, nfds_t count)
{
    int64_t began_ns = monotonic_ns();
    int ready;

    do
        ready = poll(sources, count, 0);
    while (ready == 0 && monotonic_ns() - began_ns < LOOK_NS);
    return ready;
}

static void note_look(struct look *look, int ready)
{
    if (ready) {
        *look = (struct look){0};
    } else if (++look->in_vain >= IN_VAIN_MAX) {
        look->slept = 0;
        look->pause = look->pause ? 2 * look->pause : PAUSE_LEAST;
        if (look->pause > PAUSE_MOST)
            look->pause = PAUSE_MOST;
    }
}

int look_poll(struct look *look, struct pollfd *sources, nfds_t count, int timeout_ms)
{
    int ready = poll(sources, count, 0);
    if (ready != 0 || timeout_ms == 0)
        return ready;
    if (look->in_vain < IN_VAIN_MAX || ++look->slept > look->pause) {
        ready = look_for_a_moment(sources, count);
        note_look(look, ready);
    }
    return ready ? ready : poll(sources, count, timeout_ms);
}
