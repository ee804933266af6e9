#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

#include "check.h"
#include "table.h"

enum { NODEID = 5, BACKING = 3 };

static struct table table;
static int event_fd;
static int file;

static void begin(void)
{
    event_fd = eventfd(0, EFD_NONBLOCK);
    file = memfd_create("backing", 0);
    CHECK(event_fd >= 0 && file >= 0 && table_init(&table, event_fd, -1) == 0);
}

static void end(void)
{
    table_free(&table);
    close(event_fd);
    close(file);
}

static int attach(int32_t id, bool writable, int64_t fresh_until_ns)
{
    struct backing backing = {id, dup(file), writable, true, false, fresh_until_ns};
    return table_attach(&table, NODEID, &backing);
}

static bool is_signalled(void)
{
    eventfd_t count;
    return eventfd_read(event_fd, &count) == 0;
}

static struct stamp forwarding(uint32_t opcode, uint64_t changes)
{
    struct request request = {.header = {.opcode = opcode, .nodeid = NODEID}};
    return table_forwarding(&table, &request, changes);
}

/* Python's reply to that request. */
static struct fuse_attr_out replies(uint32_t opcode, const struct stamp *stamp, uint32_t mode)
{
    struct {
        struct fuse_out_header header;
        struct fuse_attr_out out;
    } reply = {.out = {.attr_valid = 60, .attr = {.ino = NODEID, .mode = mode, .size = 1}}};
    CHECK(table_amend_attributes(&table, opcode, NODEID, stamp, (void *)&reply, sizeof reply));
    table_replied(&table, stamp);
    return reply.out;
}

static void fill(uint32_t mode)
{
    struct stamp stamp = forwarding(FUSE_GETATTR, 0);
    replies(FUSE_GETATTR, &stamp, mode);
}

static bool known(uint32_t mode)
{
    struct fuse_attr_out out;
    return table_answer_getattr(&table, NODEID, &out) && out.attr.mode == mode;
}

static bool opens(uint64_t nodeid, uint32_t flags, int64_t now_ns, int32_t *id)
{
    struct open_reply reply = {.header = {.len = sizeof reply, .unique = 2}};
    int slot;
    bool is_answered = table_answer_open(&table, nodeid, flags, now_ns, &reply, &slot);
    if (is_answered)
        table_given(&table, slot);
    *id = reply.out.backing_id;
    return is_answered;
}

/* True when it became passthrough. */
static bool amends(uint64_t nodeid, struct abi_open_out *out)
{
    struct open_reply reply = {.header = {.len = sizeof reply, .unique = 4}};
    int slot;
    CHECK(table_open(&table, nodeid, O_RDWR, (void *)&reply, sizeof reply, out, &slot));
    table_given(&table, slot);
    return out->fh & HANDLE_AMENDED;
}

static uint32_t writers(void)
{
    uint64_t ever;
    return table_writers(&table, NODEID, &ever);
}

static uint64_t writes(void)
{
    uint64_t ever;
    table_writers(&table, NODEID, &ever);
    return ever;
}

static void closes(uint64_t nodeid, enum ledger_kind kind)
{
    const struct fuse_out_header reply = {.len = sizeof reply, .unique = 6};
    int slot;
    table_closed(&table, nodeid, kind, &reply, &slot);
    table_given(&table, slot);
}

static void an_open_file_is_not_detached(void)
{
    int32_t id = 0;
    begin();
    CHECK(!opens(NODEID, O_RDONLY, 0, &id));
    CHECK(attach(BACKING, false, 1000) == 0);
    CHECK(!opens(NODEID, O_RDONLY, 1000, &id)); /* no longer fresh */
    CHECK(!opens(NODEID, O_RDWR, 0, &id));
    CHECK(!opens(NODEID, O_WRONLY, 0, &id));
    CHECK(!opens(NODEID, O_RDONLY | O_TRUNC, 0, &id));
    CHECK(opens(NODEID, O_RDONLY | O_CLOEXEC, 999, &id) && id == BACKING);
    struct abi_open_out out = {.fh = 1};
    CHECK(amends(NODEID, &out) && table_opens(&table, NODEID) == 2);
    CHECK(!table_detach(&table, NODEID));
    CHECK(attach(BACKING + 1, false, 0) == EBUSY && attach(BACKING, true, 1000) == 0);
    closes(NODEID, LEDGER_ANSWERED_READ);
    CHECK(!table_detach(&table, NODEID));
    closes(NODEID, LEDGER_AMENDED_WRITE);
    CHECK(table_detach(&table, NODEID) && table_detach(&table, NODEID));
    closes(NODEID, LEDGER_ANSWERED_READ); /* a late one does no harm */
    CHECK(!opens(NODEID, O_RDONLY, 0, &id));
    out = (struct abi_open_out){.fh = 1};
    CHECK(!amends(NODEID, &out) && table_opens(&table, NODEID) == 0);
    end();
}

static void without_a_backing_file_the_kernel_keeps_its_pages(void)
{
    struct open_reply reply = {.header = {.len = sizeof reply, .unique = 2}};
    struct backing none = {.fd = -1, .fresh_until_ns = 100};
    struct abi_open_out out = {.fh = 7, .open_flags = FOPEN_DIRECT_IO};
    int32_t id;
    int slot;

    begin();
    CHECK(table_attach(&table, NODEID, &none) == 0);
    CHECK(table_answer_open(&table, NODEID, O_RDONLY, 99, &reply, &slot));
    table_given(&table, slot);
    CHECK(reply.out.open_flags == (FOPEN_NOFLUSH | FOPEN_KEEP_CACHE) && reply.out.backing_id == 0);
    CHECK(!table_detach(&table, NODEID) && table_opens(&table, NODEID) == 1);
    none.fresh_until_ns = 0;
    CHECK(table_attach(&table, NODEID, &none) == 0 && !opens(NODEID, O_RDONLY, 99, &id));
    CHECK(!amends(NODEID, &out) && out.open_flags == FOPEN_DIRECT_IO);
    CHECK(table_opens(&table, NODEID) == 1); /* what Python opens it counts */
    closes(NODEID, LEDGER_ANSWERED_READ);
    CHECK(is_signalled() && table_detach(&table, NODEID));
    end();
}

static void what_is_kept_open_for_writing_is_opened_for_it(void)
{
    struct backing backing = {BACKING, -1, true, true, true, 1000};
    uint64_t nodeid;
    int32_t id = 0;
    bool last;
    begin();
    backing.fd = dup(file);
    CHECK(table_attach(&table, NODEID, &backing) == 0);
    CHECK(!opens(NODEID, O_RDWR, 0, &id)); /* a mapping changes bytes without a trace */
    CHECK(!opens(NODEID, O_WRONLY | O_TRUNC, 0, &id));
    CHECK(opens(NODEID, O_RDONLY, 0, &id) && writers() == 0);
    CHECK(opens(NODEID, O_WRONLY | O_APPEND, 0, &id) && id == BACKING);
    CHECK(opens(NODEID, O_WRONLY, 2000, &id) && writers() == 2);
    CHECK(!opens(NODEID, O_RDONLY, 0, &id)); /* it has changed since it was read */
    CHECK(table_opens(&table, NODEID) == 3 && !table_detach(&table, NODEID));
    closes(NODEID, LEDGER_ANSWERED_WRITE);
    closes(NODEID, LEDGER_ANSWERED_READ);
    CHECK(!is_signalled() && writers() == 1);

    CHECK(attach(BACKING, true, 0) == 0); /* no more from now on */
    CHECK(!opens(NODEID, O_WRONLY, 0, &id) && writers() == 1);
    closes(NODEID, LEDGER_ANSWERED_WRITE);
    CHECK(is_signalled() && table_next_event(&table, &nodeid, &last) && last);
    CHECK(writers() == 0 && writes() == 2);

    backing.fd = dup(file);
    CHECK(table_attach(&table, NODEID, &backing) == 0);
    struct stamp change = forwarding(FUSE_SETATTR, NODEID);
    CHECK(!opens(NODEID, O_WRONLY, 0, &id)); /* its mode may be another one soon */
    table_replied(&table, &change);
    CHECK(!opens(NODEID, O_WRONLY, 0, &id) && table_detach(&table, NODEID));
    end();
}

static void the_last_close_is_told_once(void)
{
    uint64_t nodeid;
    int32_t id;
    bool last;
    begin();
    CHECK(attach(BACKING, false, 1000) == 0);
    for (int i = 0; i < 3; i++) {
        CHECK(opens(NODEID, O_RDONLY, 0, &id));
        closes(NODEID, LEDGER_ANSWERED_READ);
    }
    CHECK(is_signalled() && !is_signalled());
    CHECK(opens(NODEID, O_RDONLY, 0, &id));
    CHECK(table_next_event(&table, &nodeid, &last) && nodeid == NODEID && !last);
    CHECK(!table_next_event(&table, &nodeid, &last));
    closes(NODEID, LEDGER_ANSWERED_READ);
    CHECK(is_signalled());
    CHECK(table_next_event(&table, &nodeid, &last) && last);
    CHECK(opens(NODEID, O_RDONLY, 0, &id));
    closes(NODEID, LEDGER_ANSWERED_READ);
    CHECK(table_detach(&table, NODEID)); /* takes its event along */
    CHECK(!table_next_event(&table, &nodeid, &last));
    end();
}

static void a_close_that_python_sees_is_no_event(void)
{
    struct abi_open_out out = {.fh = 1};
    uint64_t nodeid;
    int32_t id;
    bool last;
    begin();
    CHECK(attach(BACKING, false, 1000) == 0);
    CHECK(amends(NODEID, &out));
    closes(NODEID, LEDGER_AMENDED_WRITE);
    CHECK(table_opens(&table, NODEID) == 0 && !is_signalled());
    CHECK(!table_next_event(&table, &nodeid, &last));
    CHECK(opens(NODEID, O_RDONLY, 0, &id));
    CHECK(amends(NODEID, &out));
    closes(NODEID, LEDGER_AMENDED_WRITE);
    closes(NODEID, LEDGER_ANSWERED_READ);
    CHECK(is_signalled() && table_next_event(&table, &nodeid, &last) && last);
    end();
}

static void attributes_are_known_until_something_changes_them(void)
{
    begin();
    CHECK(!known(1) && attach(BACKING, false, 0) == 0 && !known(1));
    fill(1);
    CHECK(known(1));
    table_attr_changed(&table, NODEID);
    CHECK(!known(1));
    fill(2);
    struct stamp stamp = forwarding(FUSE_SETXATTR, NODEID);
    CHECK(!known(2));
    fill(3); /* computed while it changes */
    CHECK(!known(3));
    table_replied(&table, &stamp);
    CHECK(!known(3));
    fill(4);
    CHECK(known(4));
    end();
}

static void an_answer_older_than_the_change_is_not_believed(void)
{
    begin();
    CHECK(attach(BACKING, false, 0) == 0);
    struct stamp old = forwarding(FUSE_GETATTR, 0);
    table_attr_changed(&table, NODEID);
    replies(FUSE_GETATTR, &old, 1);
    CHECK(!known(1));

    old = forwarding(FUSE_GETATTR, 0);
    struct stamp change = forwarding(FUSE_SETATTR, NODEID);
    struct stamp during = forwarding(FUSE_GETATTR, 0);
    replies(FUSE_SETATTR, &change, 2);
    CHECK(known(2));
    replies(FUSE_GETATTR, &old, 1);
    replies(FUSE_GETATTR, &during, 1);
    CHECK(known(2));

    change = forwarding(FUSE_SETATTR, NODEID);
    table_attr_changed(&table, NODEID);
    replies(FUSE_SETATTR, &change, 3);
    CHECK(!known(3));
    end();
}

static void a_change_is_of_the_attachment_it_began_with(void)
{
    begin();
    CHECK(attach(BACKING, false, 0) == 0);
    struct stamp change = forwarding(FUSE_WRITE, NODEID);
    CHECK(table_detach(&table, NODEID) && attach(BACKING, false, 0) == 0);
    fill(1);
    CHECK(known(1));
    table_replied(&table, &change);
    CHECK(known(1));
    end();
}

static void size_and_times_of_a_writable_file_are_those_of_its_backing(void)
{
    struct fuse_attr_out out;
    begin();
    CHECK(attach(BACKING, true, 0) == 0 && ftruncate(file, 1234) == 0);
    struct stamp stamp = forwarding(FUSE_GETATTR, 0);
    out = replies(FUSE_GETATTR, &stamp, 6);
    CHECK(out.attr.size == 1234 && out.attr_valid == 0 && out.attr.mtime != 0);
    CHECK(ftruncate(file, 99) == 0 && table_answer_getattr(&table, NODEID, &out));
    CHECK(out.attr.size == 99 && out.attr_valid == 0 && out.attr.mode == 6);
    CHECK(attach(BACKING, false, 0) == 0);
    fill(7);
    CHECK(table_answer_getattr(&table, NODEID, &out) && out.attr.size == 1 && out.attr_valid == 60);
    end();
}

static void a_created_file_is_known_from_its_reply(void)
{
    struct {
        struct fuse_out_header header;
        struct fuse_entry_out entry;
        struct abi_open_out open;
    } reply = {.entry = {.nodeid = NODEID, .attr = {.mode = 8}}};
    begin();
    struct stamp stamp = forwarding(FUSE_CREATE, 0);
    CHECK(attach(BACKING, true, 0) == 0);
    CHECK(table_amend_attributes(&table, FUSE_CREATE, 1, &stamp, (void *)&reply, sizeof reply));
    CHECK(known(8));
    end();
}

static void a_file_may_appear_under_another_number(void)
{
    begin();
    CHECK(table_set_ino(&table, NODEID, 70) && table_set_ino(&table, NODEID, 77));
    struct stamp stamp = forwarding(FUSE_GETATTR, 0);
    CHECK(replies(FUSE_GETATTR, &stamp, 1).attr.ino == 77);
    table_forget_ino(&table, NODEID);
    table_forget_ino(&table, NODEID);
    CHECK(replies(FUSE_GETATTR, &stamp, 1).attr.ino == NODEID);
    end();
}

static void a_capability_may_come_with_any_xattr(void)
{
    begin();
    CHECK(!table_capability_free(&table, NODEID) && attach(BACKING, false, 0) == 0);
    CHECK(table_capability_free(&table, NODEID));
    struct stamp stamp = forwarding(FUSE_SETXATTR, NODEID);
    CHECK(!table_capability_free(&table, NODEID));
    table_replied(&table, &stamp);
    CHECK(!table_capability_free(&table, NODEID));
    end();
}

static void many_nodeids_are_found_again(void)
{
    enum { MANY = 3000 };
    struct backing backing = {.id = BACKING};
    int32_t id;
    begin();
    for (uint64_t nodeid = 1; nodeid <= MANY; nodeid++) {
        backing.fd = -1;
        backing.fresh_until_ns = 1;
        CHECK(table_attach(&table, nodeid << 20, &backing) == 0);
    }
    CHECK(table_attached(&table) == MANY);
    for (uint64_t nodeid = 1; nodeid <= MANY; nodeid++) {
        CHECK(opens(nodeid << 20, O_RDONLY, 0, &id));
        if (nodeid % 2) {
            closes(nodeid << 20, LEDGER_ANSWERED_READ);
            CHECK(table_detach(&table, nodeid << 20));
        }
    }
    CHECK(table_attached(&table) == MANY / 2);
    end();
}

static void put(uint64_t nodeid, uint32_t mode)
{
    struct fuse_attr_out out = {.attr_valid = 7, .attr = {.ino = nodeid, .mode = mode}};
    CHECK(table_put_attr(&table, nodeid, &out));
}

static bool known_of(uint64_t nodeid, uint32_t mode)
{
    struct fuse_attr_out out;
    return table_answer_getattr(&table, nodeid, &out) && out.attr.mode == mode &&
           out.attr_valid == 7;
}

static void put_attributes_answer_until_a_change_passes_by(void)
{
    const uint32_t names[] = {FUSE_CREATE,  FUSE_MKNOD,  FUSE_MKDIR, FUSE_SYMLINK,
                              FUSE_TMPFILE, FUSE_UNLINK, FUSE_RMDIR};
    const uint32_t own[] = {FUSE_SETATTR, FUSE_SETXATTR, FUSE_REMOVEXATTR, FUSE_WRITE,
                            FUSE_FALLOCATE};
    begin();
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        put(NODEID, 1);
        CHECK(known_of(NODEID, 1));
        struct stamp stamp = forwarding(names[i], 0);
        CHECK(!known_of(NODEID, 1));
        put(NODEID, 2); /* in the handler */
        table_replied(&table, &stamp);
        CHECK(known_of(NODEID, 2));
    }
    for (size_t i = 0; i < sizeof own / sizeof *own; i++) {
        put(NODEID, 3);
        forwarding(own[i], NODEID);
        CHECK(!known_of(NODEID, 3));
    }
    put(NODEID, 4);
    forwarding(FUSE_GETATTR, 0);
    forwarding(FUSE_LOOKUP, 0);
    CHECK(known_of(NODEID, 4));
    table_attr_changed(&table, NODEID);
    CHECK(!known_of(NODEID, 4));
    end();
}

static void both_directories_of_a_rename_change(void)
{
    struct fuse_rename2_in to = {.newdir = NODEID + 1};
    struct fuse_link_in link = {.oldnodeid = NODEID + 1};
    struct request request = {.header = {.opcode = FUSE_RENAME, .nodeid = NODEID},
                              .body = (void *)&to};
    begin();
    for (int i = 0; i < 3; i++) {
        put(NODEID, 1);
        put(NODEID + 1, 1);
        put(NODEID + 2, 1);
        table_forwarding(&table, &request, message_changes(&request));
        CHECK(!known_of(NODEID, 1) && !known_of(NODEID + 1, 1) && known_of(NODEID + 2, 1));
        request.header.opcode = i == 0 ? FUSE_RENAME2 : FUSE_LINK;
        if (i == 1)
            request.body = (void *)&link;
    }
    end();
}

static void attributes_put_for_an_attached_file_are_its_own(void)
{
    begin();
    put(NODEID, 1);
    CHECK(attach(BACKING, false, 0) == 0 && !known_of(NODEID, 1));
    struct stamp old = forwarding(FUSE_GETATTR, 0);
    put(NODEID, 2);
    CHECK(known_of(NODEID, 2));
    replies(FUSE_GETATTR, &old, 3);
    CHECK(known_of(NODEID, 2));
    struct stamp change = forwarding(FUSE_SETATTR, NODEID);
    put(NODEID, 4);
    CHECK(!known_of(NODEID, 4)); /* its reply is still to come */
    replies(FUSE_SETATTR, &change, 5);
    CHECK(known(5));
    CHECK(table_detach(&table, NODEID) && !known_of(NODEID, 4));
    CHECK(table_set_ino(&table, NODEID, 77));
    put(NODEID, 5);
    struct fuse_attr_out out;
    CHECK(table_answer_getattr(&table, NODEID, &out) && out.attr.ino == 77);
    table_forget_ino(&table, NODEID);
    CHECK(!known_of(NODEID, 5));
    end();
}

static void the_least_recently_used_of_the_put_attributes_goes(void)
{
    begin();
    for (uint64_t nodeid = 1; nodeid <= TABLE_KEPT_MAX; nodeid++)
        put(nodeid, 1);
    CHECK(known_of(1, 1)); /* used */
    put(2, 2);             /* put again */
    put(TABLE_KEPT_MAX + 1, 1);
    put(TABLE_KEPT_MAX + 2, 1);
    CHECK(known_of(1, 1) && known_of(2, 2) && !known_of(3, 1) && !known_of(4, 1));
    CHECK(known_of(5, 1) && known_of(TABLE_KEPT_MAX + 2, 1));
    CHECK(table.kept.count == TABLE_KEPT_MAX);
    end();
}

static void the_highest_nodeid_is_that_of_an_inode(void)
{
    const uint64_t told[][2] = {/* nodeid, highest after it */
                                {70, 70},
                                {LEDGER_INODES_END, 70},
                                {LEDGER_INODES_END + 1, 70},
                                {60, 70},
                                {LEDGER_INODES_END - 1, LEDGER_INODES_END - 1}};
    begin();
    for (size_t i = 0; i < sizeof told / sizeof *told; i++) {
        table_set_ino(&table, told[i][0], told[i][0]);
        CHECK(atomic_load(&table.ledger.file->highest) == told[i][1]);
    }
    end();
}

int main(void)
{
    RUN(an_open_file_is_not_detached);
    RUN(without_a_backing_file_the_kernel_keeps_its_pages);
    RUN(what_is_kept_open_for_writing_is_opened_for_it);
    RUN(the_last_close_is_told_once);
    RUN(a_close_that_python_sees_is_no_event);
    RUN(attributes_are_known_until_something_changes_them);
    RUN(an_answer_older_than_the_change_is_not_believed);
    RUN(a_change_is_of_the_attachment_it_began_with);
    RUN(size_and_times_of_a_writable_file_are_those_of_its_backing);
    RUN(a_created_file_is_known_from_its_reply);
    RUN(a_file_may_appear_under_another_number);
    RUN(a_capability_may_come_with_any_xattr);
    RUN(many_nodeids_are_found_again);
    RUN(put_attributes_answer_until_a_change_passes_by);
    RUN(both_directories_of_a_rename_change);
    RUN(attributes_put_for_an_attached_file_are_its_own);
    RUN(the_least_recently_used_of_the_put_attributes_goes);
    RUN(the_highest_nodeid_is_that_of_an_inode);
    return 0;
}
