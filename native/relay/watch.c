#define _GNU_SOURCE
#include "watch.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "clock.h"

/* The kernel's documentation, power/pm_qos_interface: what is written there holds while it is open,
 * in microseconds; 0: idle processors look for work, and need not be interrupted to be woken. */
static const char LATENCY[] = "/dev/cpu_dma_latency";
enum { LATENCY_NONE_US = 0, LATENCY_ANY_US = 2000 * 1000 * 1000 };

/* The keeper has lost its processor, or takes long over something: another one reads as well. */
enum { LOST_NS = 500 * 1000 };

int watch_open_latency(void)
{
    return open(LATENCY, O_WRONLY | O_CLOEXEC);
}

void watch_init(struct watch *watch)
{
    pthread_mutex_init(&watch->lock, NULL);
    watch->latency_fd = -1;
    atomic_init(&watch->keeper, NULL);
    atomic_init(&watch->seen_ns, 0);
}

void watch_start(struct watch *watch, int latency_fd)
{
    pthread_mutex_lock(&watch->lock);
    watch->latency_fd = latency_fd;
    pthread_mutex_unlock(&watch->lock);
}

void watch_free(struct watch *watch)
{
    if (watch->latency_fd >= 0)
        close(watch->latency_fd);
    pthread_mutex_destroy(&watch->lock);
}

static bool ask_for(struct watch *watch, int32_t latency_us)
{
    return write(watch->latency_fd, &latency_us, sizeof latency_us) == sizeof latency_us;
}

bool watch_begin(struct watch *watch, const void *who)
{
    bool begins;

    pthread_mutex_lock(&watch->lock);
    begins = watch->latency_fd >= 0 && atomic_load(&watch->keeper) == NULL &&
             ask_for(watch, LATENCY_NONE_US);
    if (begins) {
        watch_seen(watch);
        atomic_store(&watch->keeper, who);
    }
    pthread_mutex_unlock(&watch->lock);
    return begins;
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
    if (!watch_is_kept_by(watch, who))
        return;
    pthread_mutex_lock(&watch->lock);
    if (watch_is_kept_by(watch, who)) {
        atomic_store(&watch->keeper, NULL);
        ask_for(watch, LATENCY_ANY_US);
    }
    pthread_mutex_unlock(&watch->lock);
}

static const void *other_keeper(struct watch *watch, const void *who)
{
    const void *keeper = atomic_load(&watch->keeper);
    return keeper == who ? NULL : keeper;
}

void watch_stand_by(struct watch *watch, const void *who, const atomic_bool *is_over)
{
    const struct timespec pause = {.tv_nsec = LOST_NS};
    const void *keeper;

    while ((keeper = other_keeper(watch, who)) != NULL && !atomic_load(is_over)) {
        nanosleep(&pause, NULL);
        if (monotonic_ns() - atomic_load(&watch->seen_ns) > LOST_NS)
            watch_end(watch, keeper);
    }
}
