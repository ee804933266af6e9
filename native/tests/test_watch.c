/* Who keeps watch asks the kernel to let no processor sleep, and takes that back. */
#define _GNU_SOURCE
#include "watch.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"

enum { AWAKE_US = 0, ANY_US = 2000 * 1000 * 1000 };

static struct watch watch;
static int asked; /* what the kernel would have been told */
static const int one, other;

static void opened(void)
{
    asked = memfd_create("latency", 0);
    watch_init(&watch);
    watch.latency_fd = fcntl(asked, F_DUPFD_CLOEXEC, 0);
    watch_start(&watch);
}

static void closed(void)
{
    watch_free(&watch);
    close(asked);
}

/* The last of so many messages; -1: there are not so many. */
static int32_t told(int messages)
{
    int32_t latency_us;
    off_t size = messages * (off_t)sizeof latency_us;
    if (lseek(asked, 0, SEEK_END) != size)
        return -1;
    CHECK(pread(asked, &latency_us, sizeof latency_us, size - (off_t)sizeof latency_us) > 0);
    return latency_us;
}

static void one_at_a_time(void)
{
    opened();
    CHECK(watch_begin(&watch, &one));
    CHECK(told(1) == AWAKE_US);
    CHECK(!watch_begin(&watch, &one) && !watch_begin(&watch, &other));
    watch_end(&watch, &other);
    CHECK(watch_is_kept_by(&watch, &one) && told(1) == AWAKE_US);
    watch_end(&watch, &one);
    watch_end(&watch, &one);
    CHECK(!watch_is_kept_by(&watch, &one) && told(2) == ANY_US);
    CHECK(watch_begin(&watch, &other) && told(3) == AWAKE_US);
    closed();
}

static void not_where_the_kernel_cannot_be_asked(void)
{
    watch_init(&watch);
    watch_start(&watch);
    CHECK(!watch_begin(&watch, &one));
    watch_free(&watch);
}

static void not_where_the_kernel_refuses(void)
{
    watch_init(&watch);
    watch.latency_fd = open("/dev/full", O_WRONLY);
    watch_start(&watch);
    CHECK(!watch_begin(&watch, &one));
    CHECK(watch_is_kept_by(&watch, NULL));
    watch_free(&watch);
}

static atomic_bool is_over;

static void *guard(void *unused)
{
    (void)unused;
    watch_guard(&watch, &is_over);
    return NULL;
}

static void who_gives_no_sign_of_life_is_relieved(void)
{
    pthread_t thread;

    opened();
    atomic_store(&is_over, false);
    CHECK(pthread_create(&thread, NULL, guard, NULL) == 0);
    watch_stand_by(&watch, &other, &is_over); /* nobody keeps it */
    for (int messages = 2; messages < 20; messages += 2) {
        CHECK(watch_begin(&watch, &one));
        watch_stand_by(&watch, &one, &is_over); /* not for oneself */
        watch_stand_by(&watch, &other, &is_over);
        CHECK(watch_is_kept_by(&watch, NULL) && told(messages) == ANY_US);
    }
    atomic_store(&is_over, true);
    watch_wake(&watch);
    pthread_join(thread, NULL);
    closed();
}

static void *stand_by(void *unused)
{
    (void)unused;
    watch_stand_by(&watch, &other, &is_over);
    return NULL;
}

static void standing_by_ends_when_told(void)
{
    pthread_t thread;

    opened();
    atomic_store(&is_over, false);
    CHECK(watch_begin(&watch, &one));
    CHECK(pthread_create(&thread, NULL, stand_by, NULL) == 0);
    atomic_store(&is_over, true);
    watch_wake(&watch);
    pthread_join(thread, NULL);
    CHECK(watch_is_kept_by(&watch, &one));
    closed();
}

int main(void)
{
    RUN(one_at_a_time);
    RUN(not_where_the_kernel_cannot_be_asked);
    RUN(not_where_the_kernel_refuses);
    RUN(who_gives_no_sign_of_life_is_relieved);
    RUN(standing_by_ends_when_told);
    return 0;
}
