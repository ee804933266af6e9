#include "pace.h"

#include <time.h>

enum { NAP_NS = 10 * 1000 * 1000 };

uint64_t pace_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

bool pace_keep(const struct pace *pace, uint64_t since_ns)
{
    uint64_t worked = pace_now_ns() - since_ns;
    uint64_t rested = 0;

    for (;;) {
        int permille = atomic_load_explicit(&pace->permille, memory_order_relaxed);
        if (permille < 0)
            return false;
        uint64_t nap = NAP_NS;
        if (permille != PACE_REST) {
            uint64_t owed = worked * (uint64_t)(PACE_FULL - permille) / (uint64_t)permille;
            if (rested >= owed)
                return true;
            if (owed - rested < nap)
                nap = owed - rested;
        }
        /* Interrupted early or not: what was asked for counts as rested. */
        nanosleep(&(struct timespec){.tv_nsec = (long)nap}, NULL);
        rested += nap;
    }
}
