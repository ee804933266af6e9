/* poll(2) that looks before it sleeps: it answers as poll does, and looks seldom where that is in
 * vain. */
#include "look.h"

#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

static int ends[2];

static struct pollfd source(void)
{
    return (struct pollfd){.fd = ends[0], .events = POLLIN};
}

static void opened(void)
{
    CHECK(pipe(ends) == 0);
}

static void closed(void)
{
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

static void it_answers_as_poll_does(void)
{
    struct look look = {0};

    opened();
    struct pollfd readable = source();
    CHECK(look_poll(&look, &readable, 1, 0) == 0);
    CHECK(look_poll(&look, &readable, 1, 1) == 0 && readable.revents == 0);
    CHECK(write(ends[1], "x", 1) == 1);
    CHECK(look_poll(&look, &readable, 1, 0) == 1 && readable.revents == POLLIN);
    CHECK(look_poll(&look, &readable, 1, 1000) == 1);
    closed();
}

static void *write_later(void *unused)
{
    struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};

    (void)unused;
    nanosleep(&pause, NULL);
    CHECK(write(ends[1], "x", 1) == 1);
    return NULL;
}

static void it_is_woken_when_it_sleeps(void)
{
    struct look look = {0};
    pthread_t writer;

    opened();
    struct pollfd readable = source();
    CHECK(pthread_create(&writer, NULL, write_later, NULL) == 0);
    CHECK(look_poll(&look, &readable, 1, 60 * 1000) == 1);
    CHECK(pthread_join(writer, NULL) == 0);
    closed();
}

static unsigned looks_of(unsigned sleeps)
{
    struct look look = {0};
    unsigned looks = 0;

    struct pollfd readable = source();
    for (unsigned i = 0; i < sleeps; i++) {
        struct look before = look;
        CHECK(look_poll(&look, &readable, 1, 1) == 0);
        looks += look.in_vain != before.in_vain;
    }
    return looks;
}

static void it_looks_seldom_in_vain(void)
{
    opened();
    CHECK(looks_of(3) == 3);
    CHECK(looks_of(60) == 3);
    CHECK(looks_of(3 + 65 + 129) == 5);
    closed();
}

static void what_is_there_already_takes_no_look(void)
{
    struct look look = {.in_vain = 7, .slept = 64, .pause = 64};

    opened();
    struct pollfd readable = source();
    CHECK(write(ends[1], "x", 1) == 1);
    CHECK(look_poll(&look, &readable, 1, 1) == 1 && look.in_vain == 7 && look.slept == 64);
    closed();
}

int main(void)
{
    RUN(it_answers_as_poll_does);
    RUN(it_is_woken_when_it_sleeps);
    RUN(it_looks_seldom_in_vain);
    RUN(what_is_there_already_takes_no_look);
    return 0;
}
