#include <string.h>

#include "check.h"
#include "message.h"

static union {
    uint8_t bytes[4096];
    uint64_t aligned;
} message;

static struct request parsed;

/* A request with that body; its size. */
static size_t make_request(uint32_t opcode, const void *body, size_t body_bytes)
{
    struct fuse_in_header header = {
        .len = (uint32_t)(sizeof header + body_bytes), .opcode = opcode, .unique = 2, .nodeid = 7};
    memcpy(message.bytes, &header, sizeof header);
    memcpy(message.bytes + sizeof header, body, body_bytes);
    return header.len;
}

static size_t make_reply(int32_t error, const void *body, size_t body_bytes)
{
    struct fuse_out_header header = {
        .len = (uint32_t)(sizeof header + body_bytes), .error = error, .unique = 2};
    memset(&message, 0, sizeof message);
    memcpy(message.bytes, &header, sizeof header);
    if (body_bytes > 0)
        memcpy(message.bytes + sizeof header, body, body_bytes);
    return header.len;
}

static void a_request_shorter_than_its_opcode_demands_is_bad(void)
{
    struct fuse_release_in release = {.fh = 1};
    size_t size = make_request(FUSE_RELEASE, &release, sizeof release);
    CHECK(message_request(message.bytes, size, &parsed) == REQUEST_OK);
    CHECK(parsed.header.nodeid == 7 && parsed.body_bytes == sizeof release);
    CHECK(message_request(message.bytes, size - 1, &parsed) == REQUEST_BAD);
    size = make_request(FUSE_RELEASE, &release, sizeof release - 1);
    CHECK(message_request(message.bytes, size, &parsed) == REQUEST_BAD);
    CHECK(message_request(message.bytes, sizeof(struct fuse_in_header) - 1, &parsed) ==
          REQUEST_HOPELESS);
    CHECK(message_request(message.bytes, 0, &parsed) == REQUEST_HOPELESS);
}

static void what_follows_must_be_as_long_as_was_said(void)
{
    struct {
        struct fuse_write_in in;
        uint8_t data[104];
    } write = {.in = {.size = 104}};
    struct {
        struct fuse_batch_forget_in in;
        struct fuse_forget_one each[3];
    } forget = {.in = {.count = 3}};

    size_t size = make_request(FUSE_WRITE, &write, sizeof write);
    CHECK(message_request(message.bytes, size, &parsed) == REQUEST_OK);
    write.in.size = 105;
    size = make_request(FUSE_WRITE, &write, sizeof write);
    CHECK(message_request(message.bytes, size, &parsed) == REQUEST_BAD);
    size = make_request(FUSE_BATCH_FORGET, &forget, sizeof forget);
    CHECK(message_request(message.bytes, size, &parsed) == REQUEST_OK);
    size = make_request(FUSE_BATCH_FORGET, &forget, sizeof forget - sizeof *forget.each);
    CHECK(message_request(message.bytes, size, &parsed) == REQUEST_BAD);
    size = make_request(FUSE_BATCH_FORGET, &forget, sizeof forget - 1);
    CHECK(message_request(message.bytes, size, &parsed) == REQUEST_BAD);
}

static void the_name_of_an_xattr_must_end(void)
{
    uint8_t body[sizeof(struct fuse_getxattr_in) + 3] = {0};
    memcpy(body + sizeof(struct fuse_getxattr_in), "abc", 3);
    size_t size = make_request(FUSE_GETXATTR, body, sizeof body);
    CHECK(message_request(message.bytes, size, &parsed) == REQUEST_BAD);
    body[sizeof body - 1] = 0;
    size = make_request(FUSE_GETXATTR, body, sizeof body);
    CHECK(message_request(message.bytes, size, &parsed) == REQUEST_OK);
}

static void init_hides_splice_and_what_came_later(void)
{
    struct fuse_init_in init = {.major = 7, .minor = 45, .flags = UINT32_MAX, .flags2 = UINT32_MAX};
    size_t size = make_request(FUSE_INIT, &init, sizeof init);
    size = message_hide_init(message.bytes, size);
    CHECK(message_request(message.bytes, size, &parsed) == REQUEST_OK);
    CHECK(parsed.body_bytes == offsetof(struct fuse_init_in, flags2));
    memcpy(&init, parsed.body, parsed.body_bytes);
    CHECK(init.minor == 45 && !(init.flags & FUSE_INIT_EXT));
    CHECK(!(init.flags & (FUSE_SPLICE_READ | FUSE_SPLICE_WRITE | FUSE_SPLICE_MOVE)));
    CHECK(init.flags & FUSE_PARALLEL_DIROPS);
}

static void init_asks_for_passthrough_only_when_it_was_offered(void)
{
    struct fuse_init_in offered = {.flags =
                                       FUSE_INIT_EXT | FUSE_MAX_PAGES | FUSE_HANDLE_KILLPRIV_V2,
                                   .flags2 = ABI_INIT2_PASSTHROUGH};
    struct init_wishes wishes = {&offered, 1 << 20, 4096, true};
    struct abi_init_out out = {.major = 7,
                               .minor = 38,
                               .flags = FUSE_WRITEBACK_CACHE | FUSE_ATOMIC_O_TRUNC,
                               .max_write = 2 << 20};
    bool asked;

    size_t size = make_reply(0, &out, 24); /* as short as older libraries answer */
    CHECK(message_reply_valid(FUSE_INIT, message.bytes, size));
    size = message_amend_init(message.bytes, size, &wishes, &asked);
    CHECK(asked && size == 80 && message_reply_valid(FUSE_INIT, message.bytes, size));
    memcpy(&out, message.bytes + sizeof(struct fuse_out_header), sizeof out);
    CHECK(out.flags ==
          (FUSE_INIT_EXT | FUSE_MAX_PAGES | FUSE_ATOMIC_O_TRUNC | FUSE_HANDLE_KILLPRIV_V2));
    CHECK(out.flags2 == ABI_INIT2_PASSTHROUGH && out.max_stack_depth == 1);
    CHECK(out.max_write == 1 << 20 && out.max_pages == 256 && out.minor == 38);

    for (int i = 0; i < 2; i++) { /* it is not offered, or not wished for */
        offered.flags2 = i == 0 ? 0 : ABI_INIT2_PASSTHROUGH;
        wishes.passthrough = i == 0;
        size = make_reply(0, &out, sizeof out);
        size = message_amend_init(message.bytes, size, &wishes, &asked);
        memcpy(&out, message.bytes + sizeof(struct fuse_out_header), sizeof out);
        CHECK(!asked && !(out.flags & FUSE_INIT_EXT));
        CHECK(out.flags2 == 0 && out.max_stack_depth == 0);
    }

    size = make_reply(-5, NULL, 0);
    CHECK(message_amend_init(message.bytes, size, &wishes, &asked) == size && !asked);
}

static void init_asks_for_modes_as_programs_gave_them_when_that_was_offered(void)
{
    struct fuse_init_in offered = {.flags = FUSE_DONT_MASK | FUSE_POSIX_ACL};
    struct init_wishes wishes = {&offered, 1 << 20, 4096, false};
    const struct abi_init_out plain = {.major = 7, .flags = FUSE_POSIX_ACL, .max_write = 1 << 20};
    struct abi_init_out out;
    bool asked;

    for (int i = 0; i < 2; i++) {
        size_t size = make_reply(0, &plain, sizeof plain);
        size = message_amend_init(message.bytes, size, &wishes, &asked);
        memcpy(&out, message.bytes + sizeof(struct fuse_out_header), sizeof out);
        CHECK(out.flags == (offered.flags | FUSE_POSIX_ACL));
        offered.flags = 0;
    }
}

static void replies_have_the_lengths_of_their_opcodes(void)
{
    uint8_t body[200] = {0};
    CHECK(message_reply_valid(FUSE_GETATTR, message.bytes, make_reply(0, body, 104)));
    CHECK(!message_reply_valid(FUSE_GETATTR, message.bytes, make_reply(0, body, 103)));
    CHECK(!message_reply_valid(FUSE_GETATTR, message.bytes, make_reply(0, body, 0)));
    CHECK(message_reply_valid(FUSE_CREATE, message.bytes, make_reply(0, body, 144)));
    CHECK(!message_reply_valid(FUSE_CREATE, message.bytes, make_reply(0, body, 128)));
    CHECK(message_reply_valid(FUSE_OPEN, message.bytes, make_reply(-2, body, 0)));
    CHECK(!message_reply_valid(FUSE_OPEN, message.bytes, make_reply(-2, body, 16)));
    CHECK(!message_reply_valid(FUSE_OPEN, message.bytes, make_reply(2, body, 0)));
    CHECK(!message_reply_valid(FUSE_OPEN, message.bytes, make_reply(-512, body, 0)));
    CHECK(message_reply_valid(FUSE_READ, message.bytes, make_reply(0, body, 17)));
    CHECK(message_reply_valid(FUSE_FALLOCATE, message.bytes, make_reply(0, body, 0)));
    CHECK(!message_reply_valid(FUSE_FALLOCATE, message.bytes, make_reply(0, body, 8)));
    CHECK(message_reply_valid(FUSE_LSEEK, message.bytes, make_reply(0, body, 8)));
    CHECK(!message_reply_valid(FUSE_COPY_FILE_RANGE, message.bytes, make_reply(0, body, 4)));
    CHECK(!message_reply_valid(ABI_COPY_FILE_RANGE_64, message.bytes, make_reply(0, body, 16)));
    size_t size = make_reply(0, body, 16);
    CHECK(!message_reply_valid(FUSE_OPEN, message.bytes, size + 8));
    CHECK(!message_reply_valid(FUSE_OPEN, message.bytes, 15));
}

static void an_amended_open_has_only_flags_that_go_with_passthrough(void)
{
    struct abi_open_out out = {.fh = 5, .open_flags = FOPEN_KEEP_CACHE | FOPEN_DIRECT_IO};
    make_reply(0, &out, sizeof out);
    struct abi_open_out *in_place = message_open_out(FUSE_OPEN, message.bytes);
    message_amend_open(in_place, 3);
    CHECK(in_place->open_flags == (ABI_FOPEN_PASSTHROUGH | FOPEN_NOFLUSH));
    CHECK(in_place->backing_id == 3 && in_place->fh == (HANDLE_AMENDED | 5));
    make_reply(-2, NULL, 0);
    CHECK(message_open_out(FUSE_OPEN, message.bytes) == NULL);
}

static void python_sees_its_own_handles(void)
{
    struct fuse_setattr_in setattr = {.valid = FATTR_FH, .fh = HANDLE_AMENDED | 9};
    struct fuse_setattr_in by_path = {.fh = HANDLE_AMENDED | 9};
    struct fuse_copy_file_range_in copy = {
        .fh_in = HANDLE_RELAY | 4, .fh_out = HANDLE_AMENDED | 6, .nodeid_out = 11};
    struct fuse_fsync_in fsync = {.fh = HANDLE_RELAY | 4};

    size_t size = make_request(FUSE_SETATTR, &setattr, sizeof setattr);
    CHECK(message_request(message.bytes, size, &parsed) == REQUEST_OK);
    CHECK(message_changes(&parsed) == 7 && message_clear_handles(&parsed));
    memcpy(&setattr, parsed.body, sizeof setattr);
    CHECK(setattr.fh == 9);

    size = make_request(FUSE_SETATTR, &by_path, sizeof by_path);
    CHECK(message_request(message.bytes, size, &parsed) == REQUEST_OK);
    CHECK(!message_clear_handles(&parsed));

    const uint32_t copies[] = {FUSE_COPY_FILE_RANGE, ABI_COPY_FILE_RANGE_64};
    for (size_t i = 0; i < sizeof copies / sizeof *copies; i++) {
        struct fuse_copy_file_range_in seen;
        size = make_request(copies[i], &copy, sizeof copy - 1);
        CHECK(message_request(message.bytes, size, &parsed) == REQUEST_BAD);
        size = make_request(copies[i], &copy, sizeof copy);
        CHECK(message_request(message.bytes, size, &parsed) == REQUEST_OK);
        CHECK(message_changes(&parsed) == 11 && message_clear_handles(&parsed));
        memcpy(&seen, parsed.body, sizeof seen);
        CHECK(seen.fh_in == (HANDLE_RELAY | 4) && seen.fh_out == 6);
    }

    size = make_request(FUSE_FSYNC, &fsync, sizeof fsync);
    CHECK(message_request(message.bytes, size, &parsed) == REQUEST_OK);
    CHECK(!message_clear_handles(&parsed));
}

static int visits;

static void renumber(void *context, const struct attributes *found)
{
    (void)context;
    visits++;
    if (found->entry_ino)
        *found->entry_ino = found->nodeid + 100;
}

static void listings_are_walked_to_their_end_and_not_beyond(void)
{
    struct {
        struct fuse_entry_out entry;
        struct fuse_dirent dirent;
        char name[8];
    } plus[2] = {
        {.entry = {.nodeid = 21}, .dirent = {.ino = 21, .namelen = 8}},
        {.entry = {.nodeid = 0}, .dirent = {.ino = 22, .namelen = 3}},
    };
    static_assert(sizeof plus[0] == 160, "no padding");

    size_t size = make_reply(0, plus, sizeof plus);
    visits = 0;
    CHECK(message_attributes(FUSE_READDIRPLUS, 1, message.bytes, size, renumber, NULL));
    memcpy(plus, message.bytes + sizeof(struct fuse_out_header), sizeof plus);
    CHECK(visits == 2 && plus[0].dirent.ino == 121 && plus[1].dirent.ino == 122);

    size = make_reply(0, plus, sizeof plus - 1);
    CHECK(!message_attributes(FUSE_READDIRPLUS, 1, message.bytes, size, renumber, NULL));
    plus[0].dirent.namelen = UINT32_MAX;
    size = make_reply(0, plus, sizeof plus);
    CHECK(!message_attributes(FUSE_READDIRPLUS, 1, message.bytes, size, renumber, NULL));
    size = make_reply(0, &plus[1].dirent, 32);
    CHECK(message_attributes(FUSE_READDIR, 1, message.bytes, size, renumber, NULL));
    size = make_reply(0, &plus[1].dirent, 24);
    CHECK(!message_attributes(FUSE_READDIR, 1, message.bytes, size, renumber, NULL));
    size = make_reply(0, NULL, 0);
    CHECK(message_attributes(FUSE_READDIR, 1, message.bytes, size, renumber, NULL));
}

int main(void)
{
    RUN(a_request_shorter_than_its_opcode_demands_is_bad);
    RUN(what_follows_must_be_as_long_as_was_said);
    RUN(the_name_of_an_xattr_must_end);
    RUN(init_hides_splice_and_what_came_later);
    RUN(init_asks_for_passthrough_only_when_it_was_offered);
    RUN(init_asks_for_modes_as_programs_gave_them_when_that_was_offered);
    RUN(replies_have_the_lengths_of_their_opcodes);
    RUN(an_amended_open_has_only_flags_that_go_with_passthrough);
    RUN(python_sees_its_own_handles);
    RUN(listings_are_walked_to_their_end_and_not_beyond);
    return 0;
}
