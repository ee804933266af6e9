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

/* How long a keeper may give no sign of life, and how often the guard looks, which takes 30 us each
 * time of who works: that often it would take a sixteenth. */
enum { LOST_NS = 500 * 1000, LOOK_NS = 2000 * 1000 };

int watch_open_latency(void)
{
    return open(LATENCY, O_WRONLY | O_CLOEXEC);
}

void watch_init(struct watch *watch)
{
    pthread_mutex_init(&watch->lock, NULL);
    pthread_cond_init(&watch->changed, NULL);
    watch->latency_fd = -1;
    watch->is_on = false;
    atomic_init(&watch->keeper, NULL);
    atomic_init(&watch->seen_ns, 0);
}

void watch_start(struct watch *watch)
{
    pthread_mutex_lock(&watch->lock);
    watch->is_on = watch->latency_fd >= 0;
    pthread_mutex_unlock(&watch->lock);
}

void watch_free(struct watch *watch)
{
    if (watch->latency_fd >= 0)
        close(watch->latency_fd);
    pthread_cond_destroy(&watch->changed);
    pthread_mutex_destroy(&watch->lock);
}

static bool ask_for(struct watch *watch, int32_t latency_us)
{
    return write(watch->latency_fd, &latency_us, sizeof latency_us) == sizeof latency_us;
}

/* With lock held. */
static void set_keeper(struct watch *watch, const void *who)
{
    atomic_store(&watch->keeper, who);
    pthread_cond_broadcast(&watch->changed);
}

static void relieve(struct watch *watch)
{
    ask_for(watch, LATENCY_ANY_US);
    set_keeper(watch, NULL);
}

bool watch_begin(struct watch *watch, const void *who)
{
    if (atomic_load(&watch->keeper) != NULL)
        return false;
    pthread_mutex_lock(&watch->lock);
    bool begins = watch->is_on && atomic_load(&watch->keeper) == NULL;
    begins = begins && ask_for(watch, LATENCY_NONE_US);
    if (begins) {
        watch_seen(watch);
        set_keeper(watch, who);
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
    if (watch_is_kept_by(watch, who))
        relieve(watch);
    pthread_mutex_unlock(&watch->lock);
}

static bool is_kept_by_another(struct watch *watch, const void *who)
{
    const void *keeper = atomic_load(&watch->keeper);
    return keeper != NULL && keeper != who;
}

void watch_stand_by(struct watch *watch, const void *who, const atomic_bool *is_over)
{
    if (!is_kept_by_another(watch, who))
        return;
    pthread_mutex_lock(&watch->lock);
    while (is_kept_by_another(watch, who) && !atomic_load(is_over))
        pthread_cond_wait(&watch->changed, &watch->lock);
    pthread_mutex_unlock(&watch->lock);
}

void watch_guard(struct watch *watch, const atomic_bool *is_over)
{
    const struct timespec pause = {.tv_nsec = LOOK_NS};

    pthread_mutex_lock(&watch->lock);
    while (!atomic_load(is_over)) {
        if (atomic_load(&watch->keeper) == NULL) {
            pthread_cond_wait(&watch->changed, &watch->lock);
            continue;
        }
        pthread_mutex_unlock(&watch->lock);
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&watch->lock);
        bool is_lost = monotonic_ns() - atomic_load(&watch->seen_ns) > LOST_NS;
        if (is_lost && atomic_load(&watch->keeper) != NULL)
            relieve(watch);
    }
    pthread_mutex_unlock(&watch->lock);
}

void watch_wake(struct watch *watch)
{
    pthread_mutex_lock(&watch->lock);
    pthread_cond_broadcast(&watch->changed);
    pthread_mutex_unlock(&watch->lock);
}
