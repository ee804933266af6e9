#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "ledger.h"

enum { NODEID = 5, KILLS = 300, UNIQUES = 1 << 23 };

static struct ledger ledger;
static int fd;

static void begin(void)
{
    fd = ledger_create();
    CHECK(fd >= 0 && ledger_open(&ledger, fd) == 0);
}

/* What another worker does. */
static void take_over(void)
{
    ledger_close(&ledger);
    CHECK(ledger_open(&ledger, fd) == 0);
}

static void end(void)
{
    ledger_close(&ledger);
    close(fd);
}

static int count(struct ledger_row *row, enum ledger_kind kind, int change, uint64_t unique)
{
    const struct fuse_out_header reply = {.len = sizeof reply, .unique = unique};
    return ledger_count(&ledger, row, kind, change, &reply, sizeof reply);
}

static struct ledger_row *only_row(void)
{
    struct ledger_row *found = NULL;
    for (uint32_t i = 0; i < ledger.file->row_end; i++) {
        if (atomic_load(&ledger.file->rows[i].nodeid) != 0) {
            CHECK(found == NULL);
            found = &ledger.file->rows[i];
        }
    }
    return found;
}

static bool has_reply(uint64_t unique)
{
    uint8_t bytes[LEDGER_REPLY_BYTES];
    size_t size = ledger_find_reply(&ledger, unique, bytes);
    CHECK(size == 0 || ((struct fuse_out_header *)(void *)bytes)->unique == unique);
    return size != 0;
}

/* --- one thing after the other ------------------------------------------------------------- */

static void what_is_open_stays_so(void)
{
    begin();
    CHECK(!ledger_is_inherited(&ledger) && ledger.file->generation == 1);
    struct ledger_row *row = ledger_take_row(&ledger, NODEID);
    row->backing_id = 3;
    ledger_given(&ledger, count(row, LEDGER_ANSWERED_READ, 1, 2));
    ledger_given(&ledger, count(row, LEDGER_AMENDED_WRITE, 1, 4));
    ledger_given(&ledger, count(row, LEDGER_ANSWERED_READ, 1, 6));
    ledger_given(&ledger, count(row, LEDGER_ANSWERED_READ, -1, 8));
    take_over();
    row = only_row();
    CHECK(row && row->backing_id == 3 && ledger_passed(row) == 2 && ledger.file->generation == 2);
    CHECK(!has_reply(2) && !has_reply(8)); /* the kernel has them */
    end();
}

static void a_reply_that_was_not_given_is_found_by_every_later_worker(void)
{
    begin();
    struct ledger_row *row = ledger_take_row(&ledger, NODEID);
    CHECK(count(row, LEDGER_ANSWERED_READ, 1, 2) >= 0);
    for (int i = 0; i < 3; i++) {
        take_over();
        row = only_row();
        CHECK(ledger_passed(row) == 1 && has_reply(2) && has_reply(2 | ABI_UNIQUE_RESEND));
    }
    end();
}

static void a_count_that_was_being_changed_is_as_before(void)
{
    begin();
    struct ledger_row *row = ledger_take_row(&ledger, NODEID);
    ledger_given(&ledger, count(row, LEDGER_PLAIN_READ, 1, 2));
    int slot = count(row, LEDGER_PLAIN_READ, 1, 4);
    atomic_store(&ledger.file->slots[slot].state, LEDGER_COUNTING);
    take_over();
    row = only_row();
    CHECK(row->opens[LEDGER_PLAIN_READ] == 1 && !has_reply(4));
    slot = count(row, LEDGER_PLAIN_READ, -1, 6);
    atomic_store(&ledger.file->slots[slot].state, LEDGER_COUNTING);
    take_over();
    CHECK(only_row()->opens[LEDGER_PLAIN_READ] == 1);
    end();
}

static void a_row_of_nothing_is_dropped_and_used_again(void)
{
    begin();
    struct ledger_row *row = ledger_take_row(&ledger, NODEID);
    CHECK(only_row() == row);
    take_over();
    CHECK(only_row() == NULL);
    row = ledger_take_row(&ledger, NODEID + 1);
    row->ino = 77; /* shown under another number: is something */
    CHECK(ledger.file->row_end == 1);
    take_over();
    CHECK(only_row() && only_row()->ino == 77);
    end();
}

static void more_changes_than_slots_are_refused(void)
{
    begin();
    struct ledger_row *row = ledger_take_row(&ledger, NODEID);
    for (uint64_t i = 0; i < LEDGER_SLOTS; i++)
        CHECK(count(row, LEDGER_ANSWERED_READ, 1, 2 + 2 * i) == (int)i);
    CHECK(count(row, LEDGER_ANSWERED_READ, 1, 1000) == -1 && ledger_passed(row) == LEDGER_SLOTS);
    ledger_given(&ledger, 7);
    CHECK(count(row, LEDGER_ANSWERED_READ, 1, 1002) == 7);
    end();
}

static void backing_files_are_listed_until_they_are_removed(void)
{
    begin();
    for (int32_t id = 1; id <= 1000; id++)
        CHECK(ledger_add_backing(&ledger, id, 9, (uint64_t)id * 10));
    for (int32_t id = 1; id <= 1000; id += 2)
        ledger_remove_backing(&ledger, id);
    ledger_remove_backing(&ledger, 4000);
    take_over();
    for (int32_t id = 2; id <= 1000; id += 4)
        ledger_remove_backing(&ledger, id);
    uint32_t listed = 0;
    for (uint32_t i = 0; i < ledger.file->backing_end; i++) {
        const struct ledger_backing *backing = &ledger.file->backings[i];
        int32_t id = atomic_load(&backing->id);
        CHECK(id == 0 || (id % 4 == 0 && backing->inode == (uint64_t)id * 10));
        listed += id != 0;
    }
    CHECK(listed == 250);
    for (int32_t id = 2001; id <= 2750; id++)
        CHECK(ledger_add_backing(&ledger, id, 9, 1));
    CHECK(ledger.file->backing_end == 1000);
    end();
}

static void listings_keep_their_last_two_ends(void)
{
    struct ledger_place place = {.position = 10, .length = 3, .name = "abc"};
    begin();
    for (int i = 0; i < 3; i++) {
        ledger_listed(&ledger, 99, &place);
        place.position += 10;
        place.name[0]++;
    }
    take_over();
    const struct ledger_stream *stream = ledger_find_stream(&ledger, 99);
    CHECK(stream && stream->places[0].position + stream->places[1].position == 50);
    CHECK(ledger_find_stream(&ledger, 98) == NULL);
    ledger_end_stream(&ledger, 99);
    ledger_end_stream(&ledger, 99);
    CHECK(ledger_find_stream(&ledger, 99) == NULL);
    ledger_listed(&ledger, 98, &place);
    stream = ledger_find_stream(&ledger, 98);
    CHECK(ledger.file->stream_end == 1 &&
          stream->places[0].position + stream->places[1].position == place.position);
    end();
}

static void another_layout_is_refused(void)
{
    begin();
    ledger.file->layout = LEDGER_LAYOUT + 1;
    ledger_close(&ledger);
    CHECK(ledger_open(&ledger, fd) == EPROTO);
    CHECK(ftruncate(fd, 4096) == 0 && ledger_open(&ledger, fd) == EPROTO);
    close(fd);
}

/* --- killed at any instruction ------------------------------------------------------------- */

/* What the kernel knows, in memory that outlives the worker. By unique / 2. */
static struct {
    _Atomic uint64_t next;
    _Atomic int8_t asked[UNIQUES]; /* nodeid to open, or minus that: to close */
    _Atomic bool told[UNIQUES];    /* has its reply */
} * kernel;

static struct ledger_row *row_of(uint64_t nodeid)
{
    for (uint32_t i = 0; i < ledger.file->row_end; i++) {
        if (atomic_load(&ledger.file->rows[i].nodeid) == nodeid)
            return &ledger.file->rows[i];
    }
    return ledger_take_row(&ledger, nodeid);
}

/* Opens and closes two inodes for ever. */
static _Noreturn void worker(void)
{
    uint64_t number = atomic_load(&kernel->next);
    uint64_t seed = number;
    for (take_over(); number < UNIQUES; number++) {
        uint64_t nodeid = 1 + check_random(&seed) % 2;
        struct ledger_row *row = row_of(nodeid);
        bool closes = row->opens[LEDGER_ANSWERED_READ] > 0 && check_random(&seed) % 2;
        atomic_store(&kernel->asked[number], (int8_t)(closes ? -(int)nodeid : (int)nodeid));
        atomic_store(&kernel->next, number + 1);
        int slot = count(row, LEDGER_ANSWERED_READ, closes ? -1 : 1, 2 * number);
        CHECK(slot >= 0);
        atomic_store(&kernel->told[number], true);
        ledger_given(&ledger, slot);
        if (!ledger_row_in_use(row))
            ledger_free_row(&ledger, row);
    }
    for (;;)
        pause();
}

/* What was counted the kernel has been told, or will be when it asks again: neither less nor more.
 */
static void check_counts(uint64_t from, int64_t opens[3])
{
    for (uint64_t number = from; number < atomic_load(&kernel->next); number++) {
        int asked = atomic_load(&kernel->asked[number]);
        bool is_told = atomic_load(&kernel->told[number]);
        CHECK(is_told || number + 1 == atomic_load(&kernel->next));
        if (is_told || has_reply(2 * number))
            opens[asked < 0 ? -asked : asked] += asked < 0 ? -1 : 1;
    }
    for (uint64_t nodeid = 1; nodeid <= 2; nodeid++) {
        int64_t counted = 0;
        for (uint32_t i = 0; i < ledger.file->row_end; i++) {
            const struct ledger_row *row = &ledger.file->rows[i];
            if (atomic_load(&row->nodeid) == nodeid)
                counted += row->opens[LEDGER_ANSWERED_READ];
        }
        CHECK(counted == opens[nodeid]);
    }
}

static void counts_survive_a_kill_at_any_instruction(void)
{
    int64_t opens[3] = {0};
    uint64_t seed = 1;
    begin();
    kernel = mmap(NULL, sizeof *kernel, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(kernel != MAP_FAILED);
    atomic_store(&kernel->next, 1);
    for (int i = 0; i < KILLS; i++) {
        const struct timespec delay = {.tv_nsec = (long)(check_random(&seed) % 200000)};
        uint64_t from = atomic_load(&kernel->next);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0)
            worker();
        while (i % 2 && atomic_load(&kernel->next) < from + 3 && from + 3 < UNIQUES)
            sched_yield(); /* every other one counts, however slow the machine */
        nanosleep(&delay, NULL);
        kill(child, SIGKILL);
        CHECK(waitpid(child, NULL, 0) == child);
        take_over();
        check_counts(from, opens);
    }
    CHECK(atomic_load(&kernel->next) > KILLS);
    munmap(kernel, sizeof *kernel);
    end();
}

int main(void)
{
    RUN(what_is_open_stays_so);
    RUN(a_reply_that_was_not_given_is_found_by_every_later_worker);
    RUN(a_count_that_was_being_changed_is_as_before);
    RUN(a_row_of_nothing_is_dropped_and_used_again);
    RUN(more_changes_than_slots_are_refused);
    RUN(backing_files_are_listed_until_they_are_removed);
    RUN(listings_keep_their_last_two_ends);
    RUN(another_layout_is_refused);
    RUN(counts_survive_a_kill_at_any_instruction);
    return 0;
}
