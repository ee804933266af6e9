/* The whole relay over a kernel of our own: the other ends of socket pairs in place of /dev/fuse.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "message.h"
#include "relay.h"

enum { READERS = 3, NODES = 4, ROUNDS = 400, LIMIT_MS = 20000 };

static struct relay *relay;
static int kernel[READERS + 1]; /* what would be inside the kernel */
static int python_fd;
static int event_fd;
static int file;
static int latency;        /* what the kernel is asked through it */
static int ledger_fd = -1; /* of a relay that another one takes over from */

static void start(struct relay_setup *setup)
{
    event_fd = setup->event_fd = eventfd(0, EFD_NONBLOCK);
    file = memfd_create("backing", 0);
    latency = memfd_create("latency", 0);
    setup->latency_fd = dup(latency);
    CHECK(relay_new(setup, &relay, &python_fd) == 0);
    CHECK(relay_start(relay) == 0);
}

static void begin(void)
{
    int clones[READERS];
    struct relay_setup setup = {
        .threads = READERS, .clones = clones, .ledger_fd = ledger_fd, .asks_for_passthrough = true};

    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i <= READERS; i++) {
        int ends[2];
        CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
        kernel[i] = ends[0];
        if (i == 0)
            setup.device = ends[1];
        else
            clones[i - 1] = ends[1];
    }
    start(&setup);
}

static void end(void)
{
    relay_stop(relay);
    relay_stop(relay);
    relay_free(relay);
    for (int i = 0; i <= READERS; i++)
        close(kernel[i]);
    close(python_fd);
    close(event_fd);
    close(file);
    close(latency);
}

/* A message that comes within the limit; its size. */
static size_t receive(int fd, void *bytes, size_t room)
{
    struct pollfd readable = {.fd = fd, .events = POLLIN};
    CHECK(poll(&readable, 1, LIMIT_MS) == 1);
    ssize_t size = recv(fd, bytes, room, 0);
    CHECK(size >= 0);
    return (size_t)size;
}

static void ask(int device, uint32_t opcode, uint64_t unique, uint64_t nodeid, const void *body,
                size_t body_bytes)
{
    struct {
        struct fuse_in_header header;
        uint8_t body[256];
    } message = {.header = {(uint32_t)(sizeof message.header + body_bytes), opcode, unique, nodeid,
                            0, 0, 0, 0, 0}};
    if (body_bytes > 0)
        memcpy(message.body, body, body_bytes);
    CHECK(send(kernel[device], &message, message.header.len, 0) > 0);
}

struct answer {
    struct fuse_out_header header;
    union {
        struct abi_open_out open;
        struct fuse_attr_out attr;
        uint8_t bytes[256];
    } body;
};

static struct answer answered(int device)
{
    struct answer answer = {0};
    CHECK(receive(kernel[device], &answer, sizeof answer) >= sizeof answer.header);
    return answer;
}

static void reply(uint64_t unique, int error, const void *body, size_t body_bytes)
{
    struct answer answer = {
        .header = {(uint32_t)(sizeof answer.header + body_bytes), error, unique}};
    if (body_bytes > 0)
        memcpy(&answer.body, body, body_bytes);
    CHECK(send(python_fd, &answer, answer.header.len, 0) > 0);
    relay_pump(relay);
}

static uint64_t counted(enum relay_counter counter)
{
    uint64_t counts[COUNTERS];
    relay_counts(relay, counts);
    return counts[counter];
}

static void attach(uint64_t nodeid, int64_t fresh_until_ns)
{
    struct backing backing = {1, dup(file), true, true, false, fresh_until_ns};
    CHECK(table_attach(relay_table(relay), nodeid, &backing) == 0);
}

/* --- one thing after the other ------------------------------------------------------------- */

static void replies_go_back_where_their_request_came_from(void)
{
    uint8_t bytes[512];
    begin();
    for (uint64_t i = 0; i < READERS; i++)
        ask((int)i, FUSE_STATFS, 2 + 2 * i, 1, NULL, 0);
    for (int i = 0; i < READERS; i++)
        CHECK(receive(python_fd, bytes, sizeof bytes) == sizeof(struct fuse_in_header));
    for (int i = READERS - 1; i >= 0; i--)
        reply(2 + 2 * (uint64_t)i, -ENOENT, NULL, 0);
    for (int i = 0; i < READERS; i++) {
        struct answer answer = answered(i);
        CHECK(answer.header.unique == 2 + 2 * (uint64_t)i && answer.header.error == -ENOENT);
    }
    end();
}

static void malformed_messages_become_eio_or_nothing(void)
{
    uint8_t bytes[512];
    begin();
    ask(0, FUSE_OPEN, 2, 5, NULL, 0);
    CHECK(answered(0).header.error == -EIO);
    CHECK(send(kernel[0], "short", 5, 0) == 5);
    ask(0, FUSE_FORGET, 4, 5, NULL, 0); /* wants no answer, gets none */

    ask(0, FUSE_LOOKUP, 6, 1, "a", 2);
    CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
    reply(6, 0, "too short", 9);
    CHECK(answered(0).header.error == -EIO);
    CHECK(send(python_fd, "short", 5, 0) == 5);
    relay_pump(relay);
    reply(1000, 0, NULL, 0);
    struct fuse_open_in in = {.flags = O_RDWR};
    struct abi_open_out out = {.fh = HANDLE_RELAY};
    ask(0, FUSE_OPEN, 8, 5, &in, sizeof in);
    CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
    reply(8, 0, &out, sizeof out);
    CHECK(answered(0).header.error == -EIO);
    CHECK(counted(COUNTER_malformed_requests) == 3 && counted(COUNTER_malformed_replies) == 3);
    CHECK(counted(COUNTER_unknown_replies) == 1);
    end();
}

static void hot_opens_need_no_python(void)
{
    struct fuse_open_in in = {.flags = O_RDONLY};
    struct fuse_release_in release = {.flags = in.flags};
    begin();
    attach(5, INT64_MAX);
    ask(1, FUSE_OPEN, 2, 5, &in, sizeof in);
    struct answer answer = answered(1);
    CHECK(answer.body.open.fh == (HANDLE_RELAY | 5) && answer.body.open.backing_id == 1);
    CHECK(table_opens(relay_table(relay), 5) == 1);
    release.fh = answer.body.open.fh;
    ask(2, FUSE_RELEASE, 4, 5, &release, sizeof release);
    CHECK(answered(2).header.error == 0 && table_opens(relay_table(relay), 5) == 0);
    CHECK(counted(COUNTER_forwarded) == 0);
    end();
}

static void while_there_is_no_access_list_nobody_asks_python_for_one(void)
{
    static const char *const names[] = {"system.posix_acl_access", "system.posix_acl_default",
                                        "system.posix_acl_acces", "user.other"};
    struct {
        struct fuse_getxattr_in in;
        char name[32];
    } body = {.in = {.size = 4096}};
    uint8_t bytes[512];

    begin();
    for (uint64_t turn = 0; turn < 3; turn++) {
        relay_set_acl_free(relay, turn == 1);
        for (uint64_t i = 0; i < 4; i++) {
            uint64_t unique = 2 + 2 * (4 * turn + i);
            size_t length = strlen(names[i]);
            memcpy(body.name, names[i], length + 1);
            ask(0, FUSE_GETXATTR, unique, 5, &body, sizeof body.in + length + 1);
            if (turn != 1 || i >= 2) {
                CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
                reply(unique, -EOPNOTSUPP, NULL, 0);
            }
            CHECK(answered(0).header.error == (turn == 1 && i < 2 ? -ENODATA : -EOPNOTSUPP));
        }
    }
    CHECK(counted(COUNTER_answered_getxattr) == 2);
    end();
}

static void a_release_is_counted_only_for_an_open_that_was(void)
{
    uint8_t bytes[512];
    struct fuse_open_in in = {.flags = O_RDWR};
    struct abi_open_out out = {.fh = 9};
    struct fuse_release_in release = {.fh = 8, .flags = O_RDWR}; /* opened before it was attached */
    struct {
        struct fuse_in_header header;
        struct fuse_release_in in;
    } seen;

    begin();
    ask(0, FUSE_OPEN, 2, 5, &in, sizeof in);
    CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
    attach(5, 0);
    reply(2, 0, &out, sizeof out);
    struct answer answer = answered(0);
    CHECK(answer.body.open.backing_id == 1 && table_opens(relay_table(relay), 5) == 1);
    ask(0, FUSE_RELEASE, 4, 5, &release, sizeof release);
    CHECK(answered(0).header.unique == 4); /* before Python has seen it */
    CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
    CHECK(table_opens(relay_table(relay), 5) == 1);
    release.fh = answer.body.open.fh;
    ask(0, FUSE_RELEASE, 6, 5, &release, sizeof release);
    CHECK(answered(0).header.unique == 6);
    CHECK(receive(python_fd, &seen, sizeof seen) == sizeof seen);
    CHECK(seen.in.fh == 9 && table_opens(relay_table(relay), 5) == 0);
    uint64_t nodeid;
    bool last;
    CHECK(!table_next_event(relay_table(relay), &nodeid, &last)); /* it saw the RELEASE */
    end();
}

/* A WRITE of so many bytes in all; owned. */
static uint8_t *make_write(uint32_t bytes)
{
    struct fuse_write_in in = {.size = bytes - (uint32_t)sizeof(struct fuse_in_header) -
                                       (uint32_t)sizeof in};
    uint8_t *message = calloc(1, bytes);
    memcpy(message + sizeof(struct fuse_in_header), &in, sizeof in);
    return message;
}

static void a_full_socket_delays_no_hot_open(void)
{
    enum { WRITES = 64, BYTES = 512 * 1024 };
    struct fuse_open_in in = {.flags = O_RDONLY};
    uint8_t *message = make_write(BYTES);
    int buffer = 4 * BYTES;

    begin();
    attach(5, INT64_MAX);
    setsockopt(kernel[0], SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
    setsockopt(kernel[0], SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    for (uint64_t i = 0; i < WRITES; i++) {
        struct fuse_in_header header = {.len = BYTES, .opcode = FUSE_WRITE, .unique = 100 + 2 * i};
        memcpy(message, &header, sizeof header);
        if (send(kernel[0], message, BYTES, 0) != BYTES) {
            CHECK(errno == EMSGSIZE); /* no right to a larger buffer */
            printf("skipped: ");
            goto done;
        }
    }
    ask(1, FUSE_OPEN, 2, 5, &in, sizeof in);
    CHECK(answered(1).header.unique == 2);
    for (uint64_t i = 0; i < WRITES; i++) {
        struct fuse_in_header header;
        CHECK(receive(python_fd, message, BYTES) == BYTES);
        memcpy(&header, message, sizeof header);
        CHECK(header.unique == 100 + 2 * i); /* in order */
    }
    CHECK(counted(COUNTER_queued) > 0);
done:
    free(message);
    end();
}

static void what_python_does_not_take_stays_with_the_kernel(void)
{
    enum { WRITES = 200, BYTES = 1024 * 1024, BACKLOG_BYTES = 64 << 20, SETTLED_MS = 1000 };
    uint8_t *message = make_write(BYTES);
    int buffer = 4 * BYTES;
    unsigned sent = 0;
    size_t taken = 0;

    begin();
    setsockopt(kernel[0], SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
    struct pollfd writable = {.fd = kernel[0], .events = POLLOUT};
    while (sent < WRITES && poll(&writable, 1, SETTLED_MS) == 1) {
        struct fuse_in_header header = {
            .len = BYTES, .opcode = FUSE_WRITE, .unique = 100 + 2 * (uint64_t)sent};
        memcpy(message, &header, sizeof header);
        if (send(kernel[0], message, BYTES, MSG_DONTWAIT) == BYTES) {
            sent++;
        } else if (errno == EMSGSIZE) { /* no right to a larger buffer */
            printf("skipped: ");
            goto done;
        }
    }
    CHECK(sent < WRITES); /* the kernel's own queue is full */
    CHECK(relay_queued_bytes(relay) >= BACKLOG_BYTES);
    CHECK(relay_queued_bytes(relay) < BACKLOG_BYTES + (READERS + 1) * BYTES);
    while (taken < sent) {
        struct fuse_in_header header;
        CHECK(receive(python_fd, message, BYTES) == BYTES);
        memcpy(&header, message, sizeof header);
        CHECK(header.unique == 100 + 2 * taken++); /* in order */
    }
done:
    free(message);
    end();
}

static void who_has_a_backlog_retires_at_once(void)
{
    enum { BYTES = 1024 * 1024, SETTLED_MS = 1000 };
    uint8_t *message = make_write(BYTES);
    int buffer = 4 * BYTES;
    struct fuse_in_header header = {.len = BYTES, .opcode = FUSE_WRITE, .unique = 2};

    begin();
    setsockopt(kernel[0], SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
    struct pollfd writable = {.fd = kernel[0], .events = POLLOUT};
    for (; poll(&writable, 1, SETTLED_MS) == 1; header.unique += 2) {
        memcpy(message, &header, sizeof header);
        if (send(kernel[0], message, BYTES, MSG_DONTWAIT) != BYTES && errno != EAGAIN)
            break;
    }
    relay_retire(relay);
    free(message);
    end();
}

static void notifications_reach_the_kernel(void)
{
    struct answer answer = {.header = {sizeof answer.header + 24, FUSE_NOTIFY_INVAL_INODE, 0}};
    begin();
    CHECK(send(python_fd, &answer, answer.header.len, 0) > 0);
    relay_pump(relay);
    CHECK(answered(0).header.error == FUSE_NOTIFY_INVAL_INODE);
    end();
}

static void an_interrupt_python_cannot_place_is_sent_again(void)
{
    uint8_t bytes[512];
    struct fuse_interrupt_in interrupt = {.unique = 2};
    begin();
    ask(2, FUSE_STATFS, 2, 1, NULL, 0);
    CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
    ask(1, FUSE_INTERRUPT, 3, 1, &interrupt, sizeof interrupt);
    CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
    reply(3, -EAGAIN, NULL, 0);
    CHECK(answered(2).header.unique == 3); /* where its request came from */
    reply(2, -EINTR, NULL, 0);
    CHECK(answered(2).header.unique == 2);
    reply(3, -EAGAIN, NULL, 0); /* too late: dropped */
    end();
}

static void without_python_nothing_hangs(void)
{
    uint8_t bytes[512];
    begin();
    ask(0, FUSE_STATFS, 2, 1, NULL, 0);
    CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
    close(python_fd);
    relay_pump(relay);
    CHECK(answered(0).header.error == -ENOTCONN);
    ask(1, FUSE_STATFS, 4, 1, NULL, 0);
    CHECK(answered(1).header.error == -ENOTCONN);
    CHECK(relay_pending(relay) == 0);
    python_fd = -1;
    end();
}

/* The next operation that comes within the limit. */
static struct fuse_in_header operation(void *body, size_t body_bytes)
{
    struct pollfd readable = {.fd = relay_operations_fd(relay), .events = POLLIN};
    struct fuse_in_header header;
    size_t size;
    eventfd_t come;
    CHECK(poll(&readable, 1, LIMIT_MS) == 1);
    eventfd_read(readable.fd, &come);
    const uint8_t *bytes = relay_first_operation(relay, &size);
    CHECK(bytes && size == sizeof header + body_bytes);
    memcpy(&header, bytes, sizeof header);
    memcpy(body, bytes + sizeof header, body_bytes);
    relay_drop_operation(relay);
    return header;
}

static void operations_reach_python_by_a_way_of_their_own(void)
{
    struct fuse_fallocate_in in = {.fh = HANDLE_AMENDED | 9};
    struct fuse_interrupt_in interrupt = {.unique = 2};
    struct fuse_in_header header;
    uint8_t bytes[512];
    size_t size;

    begin();
    ask(1, FUSE_FALLOCATE, 2, 5, &in, sizeof in);
    time_t began = time(NULL);
    CHECK(relay_take(relay, python_fd, LIMIT_MS) ==
          TAKEN_NOTHING); /* ends as soon as it has come */
    CHECK(time(NULL) - began < LIMIT_MS / 2000);
    header = operation(&in, sizeof in);
    CHECK(header.unique == 2 && header.opcode == FUSE_FALLOCATE && header.nodeid == 5);
    CHECK(in.fh == 9 && relay_first_operation(relay, &size) == NULL);
    ask(0, FUSE_INTERRUPT, 3, 5, &interrupt, sizeof interrupt);
    ask(0, FUSE_STATFS, 4, 1, NULL, 0);
    CHECK(receive(python_fd, bytes, sizeof bytes) == sizeof header);
    memcpy(&header, bytes, sizeof header);
    CHECK(header.unique == 4); /* of the other it knows nothing */

    CHECK(relay_answer(relay, 2, 0, NULL, 0) == 0);
    struct answer answer = answered(1);
    CHECK(answer.header.unique == 2 && answer.header.error == 0);
    CHECK(relay_answer(relay, 2, ENOSPC, NULL, 0) == 0 && counted(COUNTER_unknown_replies) == 1);
    CHECK(relay_answer(relay, 0, 0, NULL, 0) == EINVAL);
    CHECK(relay_answer(relay, 4 | ABI_UNIQUE_INTERRUPT, 0, NULL, 0) == EINVAL);
    CHECK(relay_answer(relay, 4, 0, bytes, MESSAGE_BYTES_MAX) == EINVAL);
    end();
}

static void a_short_copy_is_left_to_the_kernel(void)
{
    struct fuse_copy_file_range_in in = {.nodeid_out = 6, .len = 4096};
    begin();
    ask(0, ABI_COPY_FILE_RANGE_64, 2, 5, &in, sizeof in);
    CHECK(answered(0).header.error == -EOPNOTSUPP);
    in.len = 1 << 20;
    ask(0, ABI_COPY_FILE_RANGE_64, 4, 5, &in, sizeof in);
    CHECK(operation(&in, sizeof in).unique == 4);
    CHECK(counted(COUNTER_answered_copy) == 1 && counted(COUNTER_operations) == 1);
    end();
}

static void a_file_without_a_name_is_passthrough_from_the_start(void)
{
    struct fuse_create_in in = {.flags = O_RDWR | O_TMPFILE, .mode = S_IFREG};
    struct {
        struct fuse_entry_out entry;
        struct abi_open_out open;
    } out = {.entry = {.nodeid = 5, .attr = {.ino = 5}}, .open = {.fh = 9}};

    begin();
    ask(0, FUSE_TMPFILE, 2, 1, &in, sizeof in);
    operation(&in, sizeof in);
    attach(5, 0);
    CHECK(relay_answer(relay, 2, 0, &out, sizeof out - 1) == 0);
    CHECK(answered(0).header.error == -EIO);
    ask(0, FUSE_TMPFILE, 4, 1, &in, sizeof in);
    operation(&in, sizeof in);
    CHECK(relay_answer(relay, 4, 0, &out, sizeof out) == 0);
    struct answer answer = answered(0);
    memcpy(&out, &answer.body, sizeof out);
    CHECK(out.open.backing_id == 1 && out.open.fh == (HANDLE_AMENDED | 9));
    CHECK(table_opens(relay_table(relay), 5) == 1);
    end();
}

static void an_operation_that_nobody_will_answer_fails(void)
{
    struct fuse_lseek_in in = {.whence = SEEK_DATA};
    begin();
    ask(0, FUSE_LSEEK, 2, 5, &in, sizeof in);
    operation(&in, sizeof in);
    close(python_fd);
    python_fd = -1;
    relay_pump(relay);
    CHECK(answered(0).header.error == -ENOTCONN);
    ask(1, FUSE_LSEEK, 4, 5, &in, sizeof in);
    CHECK(answered(1).header.error == -ENOTCONN);
    end();

    begin();
    ask(0, FUSE_LSEEK, 2, 5, &in, sizeof in);
    operation(&in, sizeof in);
    relay_stop(relay);
    CHECK(answered(0).header.error == -ENOTCONN);
    end();
}

static void the_end_of_the_mount_is_told(void)
{
    struct pollfd readable;
    begin();
    readable = (struct pollfd){.fd = event_fd, .events = POLLIN};
    CHECK(!relay_is_unmounted(relay));
    close(kernel[1]);
    CHECK(poll(&readable, 1, LIMIT_MS) == 1 && relay_is_unmounted(relay));
    kernel[1] = -1;
    end();
}

static void an_open_the_kernel_does_not_take_is_not_counted(void)
{
    uint8_t bytes[512];
    struct fuse_open_in in = {.flags = O_RDWR};
    struct abi_open_out out = {.fh = 9};
    begin();
    attach(5, INT64_MAX);
    ask(0, FUSE_OPEN, 2, 5, &in, sizeof in);
    CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
    close(kernel[0]);
    kernel[0] = -1;
    reply(2, 0, &out, sizeof out);
    CHECK(counted(COUNTER_write_errors) == 1);
    CHECK(table_detach(relay_table(relay), 5));
    end();
}

/* Each device has a queue of its own here; the kernel has one for all. */
static void a_busy_library_reads_for_itself(void)
{
    struct fuse_open_in in = {.flags = O_RDONLY};
    uint8_t bytes[512];
    uint64_t unique = 2;
    begin();
    attach(5, INT64_MAX);
    for (int i = 0; i < 4; i++, unique += 2) {
        ask(0, FUSE_STATFS, unique, 1, NULL, 0);
        CHECK(relay_take(relay, python_fd, LIMIT_MS) == TAKEN_READABLE);
        CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
        reply(unique, 0, NULL, 0);
        CHECK(answered(0).header.unique == unique);
    }
    /* From now on it reads from the last device, and answers there what needs no library. */
    ask(READERS, FUSE_OPEN, unique, 5, &in, sizeof in);
    ask(READERS, FUSE_STATFS, unique + 2, 1, NULL, 0);
    CHECK(relay_take(relay, python_fd, LIMIT_MS) == TAKEN_READABLE);
    CHECK(answered(READERS).header.unique == unique);
    /* It has one in hand: a reader looks after the others. */
    ask(READERS, FUSE_OPEN, unique + 4, 5, &in, sizeof in);
    CHECK(answered(READERS).header.unique == unique + 4);
    CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
    reply(unique + 2, 0, NULL, 0);
    CHECK(answered(READERS).header.unique == unique + 2);
    /* Nothing comes: the readers read again. */
    CHECK(relay_take(relay, python_fd, 1) == TAKEN_NOTHING);
    ask(1, FUSE_OPEN, unique + 6, 5, &in, sizeof in);
    CHECK(answered(1).header.unique == unique + 6);
    CHECK(table_opens(relay_table(relay), 5) == 3);
    end();
}

/* What Python answers without waiting it is given as it was read, and may pass on. */
static void brief_requests_are_kept_while_the_library_reads_for_itself(void)
{
    static const uint64_t RESENT = UINT64_C(1) << 63;
    struct fuse_entry_out entry = {.nodeid = 9, .entry_valid = 1, .attr_valid = 1};
    uint8_t bytes[512];
    uint64_t unique = 2;
    size_t size;
    begin();
    for (int i = 0; i < 4; i++, unique += 2) {
        ask(0, FUSE_LOOKUP, unique, 1, "a", 2);
        CHECK(relay_take(relay, python_fd, LIMIT_MS) == TAKEN_READABLE);
        CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
        reply(unique, 0, &entry, sizeof entry);
        CHECK(answered(0).header.unique == unique);
    }
    CHECK(counted(COUNTER_kept) == 0);
    ask(READERS, FUSE_LOOKUP, unique, 1, "a", 2);
    CHECK(relay_take(relay, python_fd, LIMIT_MS) == TAKEN_REQUEST);
    const struct fuse_in_header *header = (const void *)relay_taken(relay, &size);
    CHECK(size == sizeof *header + 2 && header->len == size);
    CHECK(header->unique == unique && header->opcode == FUSE_LOOKUP);
    CHECK(relay_answer(relay, unique, 0, &entry, sizeof entry) == 0);
    CHECK(answered(READERS).header.unique == unique);
    CHECK(counted(COUNTER_kept) == 1 && counted(COUNTER_forwarded) == 4);
    CHECK(relay_answer(relay, unique, 0, &entry, sizeof entry) == 0); /* nobody waits for it */
    CHECK(counted(COUNTER_unknown_replies) == 1);

    unique += 2;
    ask(READERS, FUSE_UNLINK, unique, 1, "a", 2);
    CHECK(relay_take(relay, python_fd, LIMIT_MS) == TAKEN_REQUEST);
    relay_pass_on(relay);
    CHECK(receive(python_fd, bytes, sizeof bytes) == (ssize_t)sizeof *header + 2);
    CHECK(((const struct fuse_in_header *)(const void *)bytes)->unique == unique);
    reply(unique, 0, NULL, 0);
    CHECK(answered(READERS).header.unique == unique);

    /* pyfuse3's side knows how to answer what an earlier worker may have done. */
    unique += 2;
    ask(READERS, FUSE_UNLINK, unique | RESENT, 1, "a", 2);
    CHECK(relay_take(relay, python_fd, LIMIT_MS) == TAKEN_READABLE);
    CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
    reply(unique | RESENT, 0, NULL, 0);
    CHECK(answered(READERS).header.unique == (unique | RESENT));

    ask(READERS, FUSE_MKDIR, unique + 2, 1, "a", 2); /* shorter than it must be */
    ask(READERS, FUSE_STATFS, unique + 4, 1, NULL, 0);
    CHECK(relay_take(relay, python_fd, LIMIT_MS) == TAKEN_READABLE);
    CHECK(answered(READERS).header.error == -EIO);
    CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
    reply(unique + 4, 0, NULL, 0);
    end();
}

static void exchange_init(void)
{
    struct fuse_init_in in = {.major = FUSE_KERNEL_VERSION, .minor = 38};
    struct abi_init_out out = {.major = FUSE_KERNEL_VERSION, .minor = 38, .max_write = 4096};
    uint8_t bytes[512];
    ask(0, FUSE_INIT, 2, 0, &in, sizeof in);
    CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
    reply(2, 0, &out, sizeof out);
    CHECK(answered(0).header.unique == 2 && relay_is_ready(relay));
}

/* The descriptors of a mount read from one queue, here kernel[0]; returns the first of them. */
static int begin_with_one_queue(int readers)
{
    int clones[READERS];
    int ends[2];

    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
    for (int i = 0; i < readers; i++)
        clones[i] = dup(ends[1]);
    struct relay_setup setup = {
        .device = ends[1], .threads = readers, .clones = clones, .ledger_fd = -1};
    for (int i = 0; i <= READERS; i++)
        kernel[i] = i == 0 ? ends[0] : -1;
    start(&setup);
    return ends[1];
}

/* Without readers the library's thread reads all, and what it has kept for itself it answers. */
static void the_library_reads_alone(void)
{
    struct fuse_entry_out entry = {.nodeid = 9, .entry_valid = 1, .attr_valid = 1};
    uint8_t bytes[512];
    uint8_t *data = calloc(1, MESSAGE_DATA_MAX);
    size_t size;

    int device = begin_with_one_queue(0);
    CHECK(relay_take(relay, python_fd, 1) == TAKEN_NOTHING);
    ask(0, FUSE_LOOKUP, 2, 1, "a", 2);
    CHECK(relay_take(relay, python_fd, LIMIT_MS) == TAKEN_REQUEST);
    CHECK(relay_answer(relay, 2, 0, &entry, sizeof entry) == 0);
    CHECK(answered(0).header.unique == 2);

    ask(0, FUSE_STATFS, 4, 1, NULL, 0);
    CHECK(relay_take(relay, python_fd, LIMIT_MS) == TAKEN_READABLE);
    CHECK(receive(python_fd, bytes, sizeof bytes) == sizeof(struct fuse_in_header));
    reply(4, ENOSYS, NULL, 0);
    CHECK(answered(0).header.unique == 4);

    /* As much as a program may read at once. */
    struct fuse_read_in in = {.size = 4096};
    ask(0, FUSE_READ, 6, 9, &in, sizeof in);
    CHECK(relay_take(relay, python_fd, LIMIT_MS) == TAKEN_REQUEST);
    CHECK(relay_taken(relay, &size) != NULL && size == sizeof(struct fuse_in_header) + sizeof in);
    int room = 4 * MESSAGE_DATA_MAX;
    if (setsockopt(device, SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) == 0) {
        CHECK(relay_answer(relay, 6, 0, data, MESSAGE_DATA_MAX) == 0);
        ssize_t length = recv(kernel[0], data, MESSAGE_DATA_MAX, MSG_TRUNC);
        CHECK(length == (ssize_t)sizeof(struct fuse_out_header) + MESSAGE_DATA_MAX);
    }
    close(kernel[0]);
    kernel[0] = -1;
    CHECK(relay_take(relay, python_fd, LIMIT_MS) == TAKEN_NOTHING);
    CHECK(relay_is_unmounted(relay));
    free(data);
    end();
}

/* What the kernel was asked for last; -1: never anything. */
static int32_t asked_us(void)
{
    int32_t latency_us = -1;
    off_t end = lseek(latency, 0, SEEK_END);
    if (end > 0)
        CHECK(pread(latency, &latency_us, sizeof latency_us, end - (off_t)sizeof latency_us) > 0);
    return latency_us;
}

static bool processors_may_sleep_soon(void)
{
    for (int i = 0; i < LIMIT_MS && asked_us() <= 0; i++)
        usleep(1000);
    return asked_us() > 0;
}

/* While requests that Python answers follow each other, no processor falls asleep; but not while
 * Python is busy with something else. */
static void processors_stay_awake_while_the_library_is_busy(void)
{
    enum { BATCH = 20, TRIES = 2000 };
    struct fuse_entry_out entry = {.nodeid = 9, .entry_valid = 1, .attr_valid = 1};
    uint64_t unique = 2;

    for (int comes_back = 0; comes_back < 2; comes_back++) {
        begin_with_one_queue(0);
        CHECK(asked_us() == -1);
        for (int i = 0; i < TRIES && asked_us() != 0; i++) {
            for (int j = 0; j < BATCH; j++)
                ask(0, FUSE_LOOKUP, unique + 2 * (uint64_t)j, 1, "a", 2);
            for (int j = 0; j < BATCH; j++, unique += 2) {
                CHECK(relay_take(relay, python_fd, LIMIT_MS) == TAKEN_REQUEST);
                CHECK(relay_answer(relay, unique, 0, &entry, sizeof entry) == 0);
                CHECK(answered(0).header.unique == unique);
            }
        }
        CHECK(lseek(latency, 0, SEEK_END) > 0);
        if (comes_back)
            CHECK(relay_take(relay, python_fd, 1) == TAKEN_NOTHING);
        CHECK(processors_may_sleep_soon());
        end();
    }
}

/* The same of what readers answer; whoever kept watch last has ended it when the relay stops. */
static void processors_stay_awake_while_a_reader_is_busy(void)
{
    enum { TRIES = 20000 };
    struct fuse_open_in open_in = {.flags = O_RDONLY};
    struct fuse_release_in release_in = {.fh = HANDLE_RELAY | 5};
    uint64_t unique = 2;

    for (int readers = 1; readers <= 2; readers++) {
        for (int rests = 0; rests < 2; rests++) {
            int device = begin_with_one_queue(readers);
            CHECK(fcntl(device, F_SETFL, 0) == 0); /* they share it with the library's thread */
            attach(5, INT64_MAX);
            for (int i = 0; i < TRIES && asked_us() != 0; i++, unique += 4) {
                ask(0, FUSE_OPEN, unique, 5, &open_in, sizeof open_in);
                CHECK(answered(0).header.unique == unique);
                ask(0, FUSE_RELEASE, unique + 2, 5, &release_in, sizeof release_in);
                CHECK(answered(0).header.unique == unique + 2);
            }
            CHECK(lseek(latency, 0, SEEK_END) > 0);
            if (rests)
                CHECK(processors_may_sleep_soon());
            relay_stop(relay);
            CHECK(asked_us() > 0);
            end();
        }
    }
}

static void one_reader_takes_what_follows_each_other(void)
{
    struct fuse_open_in open_in = {.flags = O_RDONLY};
    struct fuse_release_in release_in = {.fh = HANDLE_RELAY | 5};
    struct fuse_in_header seen;

    begin_with_one_queue(2);
    attach(5, INT64_MAX);
    for (uint64_t unique = 2; unique < 6000; unique += 6) {
        ask(0, FUSE_OPEN, unique, 5, &open_in, sizeof open_in);
        CHECK(answered(0).header.unique == unique);
        ask(0, FUSE_RELEASE, unique + 2, 5, &release_in, sizeof release_in);
        CHECK(answered(0).header.unique == unique + 2);
        if (unique % 1000 == 2)
            usleep(2000); /* longer than anybody waits for more */
        if (unique % 500 == 2) {
            ask(0, FUSE_STATFS, unique + 4, 1, NULL, 0);
            CHECK(receive(python_fd, &seen, sizeof seen) > 0 && seen.unique == unique + 4);
            reply(unique + 4, ENOSYS, NULL, 0);
            CHECK(answered(0).header.unique == unique + 4);
        }
    }
    CHECK(table_opens(relay_table(relay), 5) == 0);
    for (int i = 0; i < 20; i++) { /* and stops in the midst of it */
        ask(0, FUSE_OPEN, 10000 + 2 * (uint64_t)i, 5, &open_in, sizeof open_in);
        CHECK(answered(0).header.error == 0);
    }
    end();
}

static void another_relay_goes_on_where_one_was(void)
{
    struct fuse_open_in in = {.flags = O_RDONLY};
    struct fuse_release_in release = {.fh = HANDLE_RELAY | 5};
    struct open_reply not_given = {.header = {sizeof not_given, 0, 8}, .out = {.fh = 77}};
    struct abi_init_out init = {.major = FUSE_KERNEL_VERSION};
    struct abi_open_out out = {.fh = 9};
    struct fuse_in_header seen;
    uint8_t bytes[512];
    uint32_t flags;
    int slot;

    ledger_fd = ledger_create();
    begin();
    CHECK(!relay_has_taken_over(relay));
    exchange_init();
    attach(5, INT64_MAX);
    ask(1, FUSE_OPEN, 4, 5, &in, sizeof in);
    CHECK(answered(1).header.error == 0);
    ask(1, FUSE_OPEN, 6, 7, &in, sizeof in);
    CHECK(receive(python_fd, bytes, sizeof bytes) > 0); /* and it dies */
    CHECK(table_answer_open(relay_table(relay), 5, O_RDONLY, 0, &not_given, &slot));
    end();

    begin();
    struct answer resend = answered(0);
    CHECK(resend.header.unique == 0 && resend.header.error == ABI_NOTIFY_RESEND);
    CHECK(relay_has_taken_over(relay) && relay_is_ready(relay));
    CHECK(receive(python_fd, &seen, sizeof seen) > 0 && seen.opcode == FUSE_INIT);
    reply(2, 0, &init, sizeof init); /* the kernel has had one */
    CHECK(counted(COUNTER_replied) == 0 && relay_pending(relay) == 0);

    struct backing other = {2, -1, false, true, false, 0};
    CHECK(table_opens(relay_table(relay), 5) == 2);
    CHECK(table_attach(relay_table(relay), 5, &other) == EBUSY);
    attach(5, INT64_MAX);
    ask(1, FUSE_OPEN, 8 | ABI_UNIQUE_RESEND, 5, &in, sizeof in);
    struct answer again = answered(1);
    CHECK(again.header.unique == (8 | ABI_UNIQUE_RESEND) && again.body.open.fh == 77);
    CHECK(again.body.open.backing_id == 1 && counted(COUNTER_answered_again) == 1);
    CHECK(table_opens(relay_table(relay), 5) == 2);
    ask(2, FUSE_RELEASE, 10, 5, &release, sizeof release);
    CHECK(answered(2).header.error == 0 && table_opens(relay_table(relay), 5) == 1);

    ask(0, FUSE_OPEN, 6 | ABI_UNIQUE_RESEND, 7, &in, sizeof in);
    CHECK(receive(python_fd, &seen, sizeof seen) > 0);
    CHECK(seen.unique == (6 | ABI_UNIQUE_RESEND));
    CHECK(relay_unique(relay, FUSE_OPEN, 7, &flags) == seen.unique && flags == in.flags);
    CHECK(relay_unique(relay, FUSE_OPEN, 8, &flags) == 0);
    reply(seen.unique, 0, &out, sizeof out);
    CHECK(answered(0).header.unique == seen.unique);
    CHECK(relay_unique(relay, FUSE_OPEN, 7, &flags) == 0);
    end();
    close(ledger_fd);
    ledger_fd = -1;
}

static void who_retires_reads_no_more_and_answers_what_it_has(void)
{
    uint8_t bytes[512];
    begin();
    ask(0, FUSE_STATFS, 2, 1, NULL, 0);
    CHECK(receive(python_fd, bytes, sizeof bytes) > 0);
    relay_retire(relay);
    ask(0, FUSE_STATFS, 4, 1, NULL, 0);
    CHECK(relay_take(relay, python_fd, 20) == TAKEN_NOTHING);
    reply(2, 0, NULL, 0);
    CHECK(answered(0).header.unique == 2 && relay_pending(relay) == 0);
    end();
}

/* --- all at once --------------------------------------------------------------------------- */

static atomic_bool is_over;
static atomic_int
    kernels_open[NODES + 1]; /* as the kernel sees it: between OPEN's reply and RELEASE */

/* Answers like a daemon: every OPEN, every GETATTR. */
static void *python(void *unused)
{
    (void)unused;
    while (!atomic_load(&is_over)) {
        struct {
            struct fuse_in_header header;
            uint8_t body[256];
        } request;
        struct pollfd readable[] = {{.fd = python_fd, .events = POLLIN},
                                    {.fd = relay_operations_fd(relay), .events = POLLIN}};
        const uint8_t *operation;
        eventfd_t come;
        size_t size;
        if (poll(readable, 2, 10) < 1) /* not relay_take(): see above */
            continue;
        if (readable[1].revents)
            eventfd_read(relay_operations_fd(relay), &come);
        while ((operation = relay_first_operation(relay, &size)) != NULL) {
            memcpy(&request.header, operation, sizeof request.header);
            relay_drop_operation(relay);
            CHECK(relay_answer(relay, request.header.unique, 0, NULL, 0) == 0);
        }
        if (readable[0].revents == 0)
            continue;
        CHECK(recv(python_fd, &request, sizeof request, 0) > 0);
        struct abi_open_out open = {.fh = 17};
        struct fuse_attr_out attr = {.attr = {.mode = 1}};
        switch (request.header.opcode) {
        case FUSE_OPEN:
            reply(request.header.unique, 0, &open, sizeof open);
            break;
        case FUSE_GETATTR:
        case FUSE_SETATTR:
            reply(request.header.unique, 0, &attr, sizeof attr);
            break;
        default:
            reply(request.header.unique, 0, NULL, 0);
        }
    }
    return NULL;
}

/* Attaches and detaches; a detach that succeeds must find the file closed in the kernel. */
static void *policy(void *unused)
{
    uint64_t seed = 1;
    uint64_t nodeid;
    bool last;
    (void)unused;
    while (!atomic_load(&is_over)) {
        uint64_t node = 1 + check_random(&seed) % NODES;
        if (check_random(&seed) % 2) {
            attach(node, check_random(&seed) % 2 ? INT64_MAX : 0);
        } else {
            table_detach(relay_table(relay), node);
        }
        table_attr_changed(relay_table(relay), node);
        table_put_attr(relay_table(relay), node,
                       &(struct fuse_attr_out){.attr = {.ino = node, .mode = 1}});
        while (table_next_event(relay_table(relay), &nodeid, &last))
            CHECK(nodeid >= 1 && nodeid <= NODES);
        table_set_ino(relay_table(relay), node, 1000 + node);
        table_forget_ino(relay_table(relay), node);
    }
    return NULL;
}

/* A program: open, stat, close on a descriptor of its own. */
static void *program(void *argument)
{
    int device = *(int *)argument;
    uint64_t seed = (uint64_t)device + 7;
    uint64_t unique = 1000000 * ((uint64_t)device + 1);

    for (int round = 0; round < ROUNDS; round++) {
        uint64_t node = 1 + check_random(&seed) % NODES;
        struct fuse_open_in in = {.flags = check_random(&seed) % 4 ? O_RDONLY : O_RDWR};
        struct fuse_getattr_in getattr = {0};
        struct fuse_setattr_in setattr = {0};
        struct fuse_fallocate_in fallocate = {0};
        struct fuse_release_in release = {.flags = in.flags};

        ask(device, FUSE_OPEN, unique += 2, node, &in, sizeof in);
        struct answer answer = answered(device);
        CHECK(answer.header.unique == unique && answer.header.error == 0);
        bool is_passthrough = answer.body.open.open_flags & ABI_FOPEN_PASSTHROUGH;
        CHECK(is_passthrough == ((answer.body.open.fh & HANDLE_OURS) != 0));
        if (is_passthrough) {
            atomic_fetch_add(&kernels_open[node], 1);
            CHECK(table_opens(relay_table(relay), node) > 0);
            CHECK(!table_detach(relay_table(relay), node));
        }
        if (round % 3 == 0)
            ask(device, FUSE_SETATTR, unique += 2, node, &setattr, sizeof setattr);
        else
            ask(device, FUSE_GETATTR, unique += 2, node, &getattr, sizeof getattr);
        struct answer attributes = answered(device);
        CHECK(attributes.header.unique == unique && attributes.body.attr.attr.mode == 1);
        ask(device, FUSE_FALLOCATE, unique += 2, node, &fallocate, sizeof fallocate);
        CHECK(answered(device).header.unique == unique);
        release.fh = answer.body.open.fh;
        if (is_passthrough)
            atomic_fetch_sub(&kernels_open[node], 1);
        ask(device, FUSE_RELEASE, unique += 2, node, &release, sizeof release);
        CHECK(answered(device).header.unique == unique);
    }
    return NULL;
}

static void counts_hold_while_all_happens_at_once(void)
{
    pthread_t others[2];
    pthread_t programs[READERS];
    int devices[READERS];

    begin();
    atomic_store(&is_over, false);
    CHECK(pthread_create(&others[0], NULL, python, NULL) == 0);
    CHECK(pthread_create(&others[1], NULL, policy, NULL) == 0);
    for (int i = 0; i < READERS; i++) {
        devices[i] = i;
        CHECK(pthread_create(&programs[i], NULL, program, &devices[i]) == 0);
    }
    for (int i = 0; i < READERS; i++)
        pthread_join(programs[i], NULL);
    while (relay_pending(relay) != 0) /* RELEASEs, which nobody waits for */
        poll(NULL, 0, 1);
    atomic_store(&is_over, true);
    for (int i = 0; i < 2; i++)
        pthread_join(others[i], NULL);
    for (uint64_t node = 1; node <= NODES; node++) {
        CHECK(table_opens(relay_table(relay), node) == 0 && kernels_open[node] == 0);
        CHECK(table_detach(relay_table(relay), node));
    }
    CHECK(counted(COUNTER_malformed_replies) == 0);
    CHECK(counted(COUNTER_answered_open) > 0 && counted(COUNTER_amended_open) > 0);
    end();
}

int main(void)
{
    RUN(replies_go_back_where_their_request_came_from);
    RUN(malformed_messages_become_eio_or_nothing);
    RUN(hot_opens_need_no_python);
    RUN(while_there_is_no_access_list_nobody_asks_python_for_one);
    RUN(a_release_is_counted_only_for_an_open_that_was);
    RUN(a_full_socket_delays_no_hot_open);
    RUN(what_python_does_not_take_stays_with_the_kernel);
    RUN(who_has_a_backlog_retires_at_once);
    RUN(notifications_reach_the_kernel);
    RUN(an_interrupt_python_cannot_place_is_sent_again);
    RUN(without_python_nothing_hangs);
    RUN(operations_reach_python_by_a_way_of_their_own);
    RUN(a_short_copy_is_left_to_the_kernel);
    RUN(a_file_without_a_name_is_passthrough_from_the_start);
    RUN(an_operation_that_nobody_will_answer_fails);
    RUN(the_end_of_the_mount_is_told);
    RUN(an_open_the_kernel_does_not_take_is_not_counted);
    RUN(a_busy_library_reads_for_itself);
    RUN(brief_requests_are_kept_while_the_library_reads_for_itself);
    RUN(the_library_reads_alone);
    RUN(processors_stay_awake_while_the_library_is_busy);
    RUN(processors_stay_awake_while_a_reader_is_busy);
    RUN(one_reader_takes_what_follows_each_other);
    RUN(another_relay_goes_on_where_one_was);
    RUN(who_retires_reads_no_more_and_answers_what_it_has);
    RUN(counts_hold_while_all_happens_at_once);
    return 0;
}
