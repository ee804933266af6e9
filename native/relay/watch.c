#define _GNU_SOURCE
#include "watch.h"

#include <sched.h>

#include "clock.h"

/* The keeper has lost its processor, or takes long over something: another one reads as well. */
enum { LOST_NS = 500 * 1000 };

static bool set_policy(int policy)
{
    const struct sched_param parameter = {0};
    return sched_setscheduler(0, policy, &parameter) == 0;
}

static void *try_policies(void *is_possible)
{
    *(bool *)is_possible = set_policy(SCHED_IDLE) && set_policy(SCHED_OTHER);
    return NULL;
}

bool watch_is_possible(void)
{
    bool is_possible = false;
    pthread_t thread; /* that may keep what it cannot change back */
    if (pthread_create(&thread, NULL, try_policies, &is_possible) != 0)
        return false;
    pthread_join(thread, NULL);
    return is_possible;
}

void watch_init(struct watch *watch)
{
    pthread_mutex_init(&watch->lock, NULL);
    atomic_init(&watch->is_on, false);
    atomic_init(&watch->keeper, NULL);
    atomic_init(&watch->seen_ns, 0);
    atomic_init(&watch->processor, -1);
}

void watch_free(struct watch *watch)
{
    pthread_mutex_destroy(&watch->lock);
}

static bool has_processors(void)
{
    cpu_set_t processors;
    return sched_getaffinity(0, sizeof processors, &processors) == 0 && CPU_COUNT(&processors) > 1;
}

bool watch_begin(struct watch *watch, const void *who)
{
    const void *nobody = NULL;
    if (!atomic_load(&watch->is_on) || !has_processors())
        return false;
    watch_seen(watch);
    atomic_store(&watch->processor, sched_getcpu());
    return atomic_compare_exchange_strong(&watch->keeper, &nobody, who);
}

void watch_seen(struct watch *watch)
{
    atomic_store_explicit(&watch->seen_ns, monotonic_ns(), memory_order_relaxed);
}

bool watch_is_kept_by(struct watch *watch, const void *who)
{
    return atomic_load(&watch->keeper) == who;
}

void watch_end(struct watch *watch, const void *who)
{
    atomic_compare_exchange_strong(&watch->keeper, &who, NULL);
}

static const void *other_keeper(struct watch *watch, const void *who)
{
    const void *keeper = atomic_load(&watch->keeper);
    return keeper == who ? NULL : keeper;
}

/* Not on the keeper's processor, which is awake; there is another. */
static bool leave(int processor, cpu_set_t *before)
{
    if (processor < 0 || sched_getaffinity(0, sizeof *before, before) != 0)
        return false;
    cpu_set_t others = *before;
    CPU_CLR((unsigned)processor, &others);
    return sched_setaffinity(0, sizeof others, &others) == 0;
}

void watch_stand_by(struct watch *watch, const void *who, const atomic_bool *is_over)
{
    const void *keeper = other_keeper(watch, who);
    cpu_set_t before;
    if (keeper == NULL || !set_policy(SCHED_IDLE))
        return;
    bool has_left = leave(atomic_load(&watch->processor), &before);
    while ((keeper = other_keeper(watch, who)) != NULL && !atomic_load(is_over)) {
        if (monotonic_ns() - atomic_load(&watch->seen_ns) > LOST_NS)
            watch_end(watch, keeper);
    }
    if (has_left)
        sched_setaffinity(0, sizeof before, &before);
    set_policy(SCHED_OTHER);
}
