#include "message.h"

#include <string.h>

static const uint32_t SPLICE = FUSE_SPLICE_WRITE | FUSE_SPLICE_MOVE | FUSE_SPLICE_READ;

static const struct fuse_out_header *out_header(const uint8_t *bytes)
{
    return (const void *)bytes;
}

static void *out_body(uint8_t *bytes)
{
    return bytes + sizeof(struct fuse_out_header);
}

/* --- requests ------------------------------------------------------------------------------ */

/* What must follow the header before the relay looks at it. */
static size_t body_least(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_INIT:
        return offsetof(struct fuse_init_in, flags2);
    case FUSE_OPEN:
        return sizeof(struct fuse_open_in);
    case FUSE_CREATE:
    case FUSE_TMPFILE:
        return sizeof(struct fuse_create_in);
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
        return sizeof(struct fuse_release_in);
    case FUSE_GETATTR:
        return sizeof(struct fuse_getattr_in);
    case FUSE_SETATTR:
        return sizeof(struct fuse_setattr_in);
    case FUSE_GETXATTR:
        return sizeof(struct fuse_getxattr_in) + 1;
    case FUSE_SETXATTR:
        return FUSE_COMPAT_SETXATTR_IN_SIZE;
    case FUSE_LINK:
        return sizeof(struct fuse_link_in);
    case FUSE_MKDIR:
        return sizeof(struct fuse_mkdir_in);
    case FUSE_RENAME:
        return sizeof(struct fuse_rename_in);
    case FUSE_RENAME2:
        return sizeof(struct fuse_rename2_in);
    case FUSE_READ:
    case FUSE_READDIR:
    case FUSE_READDIRPLUS:
        return sizeof(struct fuse_read_in);
    case FUSE_WRITE:
        return sizeof(struct fuse_write_in);
    case FUSE_FSYNC:
    case FUSE_FSYNCDIR:
        return sizeof(struct fuse_fsync_in);
    case FUSE_FLUSH:
        return sizeof(struct fuse_flush_in);
    case FUSE_GETLK:
    case FUSE_SETLK:
    case FUSE_SETLKW:
        return sizeof(struct fuse_lk_in);
    case FUSE_IOCTL:
        return sizeof(struct fuse_ioctl_in);
    case FUSE_POLL:
        return sizeof(struct fuse_poll_in);
    case FUSE_FALLOCATE:
        return sizeof(struct fuse_fallocate_in);
    case FUSE_LSEEK:
        return sizeof(struct fuse_lseek_in);
    case FUSE_COPY_FILE_RANGE:
    case ABI_COPY_FILE_RANGE_64:
        return sizeof(struct fuse_copy_file_range_in);
    case FUSE_FORGET:
        return sizeof(struct fuse_forget_in);
    case FUSE_BATCH_FORGET:
        return sizeof(struct fuse_batch_forget_in);
    case FUSE_INTERRUPT:
        return sizeof(struct fuse_interrupt_in);
    default:
        return 0;
    }
}

/* Whether what follows the fixed part of a request is as long as that says. */
static bool is_whole(const struct request *request)
{
    const void *body = request->body;
    size_t rest = request->body_bytes - body_least(request->header.opcode);
    switch (request->header.opcode) {
    case FUSE_GETXATTR: /* with the zero byte of a name */
        return memchr(request->body + sizeof(struct fuse_getxattr_in), 0, rest + 1) != NULL;
    case FUSE_WRITE:
        return rest == ((const struct fuse_write_in *)body)->size;
    case FUSE_BATCH_FORGET:
        return rest == (uint64_t)((const struct fuse_batch_forget_in *)body)->count *
                           sizeof(struct fuse_forget_one);
    default:
        return true;
    }
}

enum request_state message_request(uint8_t *bytes, size_t size, struct request *request)
{
    if (size < sizeof request->header)
        return REQUEST_HOPELESS;
    memcpy(&request->header, bytes, sizeof request->header);
    request->body = bytes + sizeof request->header;
    request->body_bytes = size - sizeof request->header;
    if (request->header.len != size || request->header.unique == 0)
        return REQUEST_BAD;
    if (request->body_bytes < body_least(request->header.opcode))
        return REQUEST_BAD;
    return is_whole(request) ? REQUEST_OK : REQUEST_BAD;
}

bool message_is_operation(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_COPY_FILE_RANGE:
    case ABI_COPY_FILE_RANGE_64:
    case FUSE_FALLOCATE:
    case FUSE_LSEEK:
    case FUSE_TMPFILE:
        return true;
    default:
        return false;
    }
}

bool message_is_brief(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_LOOKUP:
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_GETATTR:
    case FUSE_MKDIR:
    case FUSE_UNLINK:
    case FUSE_RMDIR:
    case FUSE_RENAME:
    case FUSE_CREATE:
    case FUSE_OPEN:
    case FUSE_READ:
    case FUSE_WRITE:
    case FUSE_RELEASE:
    case FUSE_GETXATTR:
    case FUSE_OPENDIR:
    case FUSE_READDIRPLUS:
    case FUSE_RELEASEDIR:
        return true;
    default:
        return false;
    }
}

bool message_wants_reply(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
    case FUSE_NOTIFY_REPLY:
        return false;
    default:
        return true;
    }
}

size_t message_hide_init(uint8_t *bytes, size_t size)
{
    struct fuse_in_header *header = (void *)bytes;
    struct fuse_init_in *init = (void *)(bytes + sizeof *header);
    size_t kept = sizeof *header + offsetof(struct fuse_init_in, flags2);

    init->flags &= ~(SPLICE | (uint32_t)FUSE_INIT_EXT);
    if (size > kept)
        size = kept;
    header->len = (uint32_t)size;
    return size;
}

uint64_t message_changes(const struct request *request)
{
    switch (request->header.opcode) {
    case FUSE_SETATTR:
    case FUSE_SETXATTR:
    case FUSE_REMOVEXATTR:
    case FUSE_WRITE:
    case FUSE_FALLOCATE:
        return request->header.nodeid;
    case FUSE_LINK:
        return ((const struct fuse_link_in *)(const void *)request->body)->oldnodeid;
    case FUSE_COPY_FILE_RANGE:
    case ABI_COPY_FILE_RANGE_64:
        return ((const struct fuse_copy_file_range_in *)(const void *)request->body)->nodeid_out;
    default:
        return 0;
    }
}

unsigned message_parents(const struct request *request, uint64_t nodeids[MESSAGE_PARENTS_MAX])
{
    nodeids[0] = request->header.nodeid;
    switch (request->header.opcode) {
    case FUSE_CREATE:
    case FUSE_MKNOD:
    case FUSE_MKDIR:
    case FUSE_SYMLINK:
    case FUSE_LINK:
    case FUSE_TMPFILE:
    case FUSE_UNLINK:
    case FUSE_RMDIR:
        return 1;
    case FUSE_RENAME:
        nodeids[1] = ((const struct fuse_rename_in *)(const void *)request->body)->newdir;
        return 2;
    case FUSE_RENAME2:
        nodeids[1] = ((const struct fuse_rename2_in *)(const void *)request->body)->newdir;
        return 2;
    default:
        return 0;
    }
}

static bool clear(uint64_t *handle)
{
    bool had = (*handle & HANDLE_OURS) == HANDLE_AMENDED;
    if (had)
        *handle &= ~HANDLE_AMENDED;
    return had;
}

bool message_clear_handles(struct request *request)
{
    void *body = request->body;
    switch (request->header.opcode) {
    case FUSE_GETATTR: {
        struct fuse_getattr_in *in = body;
        return in->getattr_flags & FUSE_GETATTR_FH && clear(&in->fh);
    }
    case FUSE_SETATTR: {
        struct fuse_setattr_in *in = body;
        return in->valid & FATTR_FH && clear(&in->fh);
    }
    case FUSE_COPY_FILE_RANGE:
    case ABI_COPY_FILE_RANGE_64: {
        struct fuse_copy_file_range_in *in = body;
        bool from = clear(&in->fh_in);
        bool to = clear(&in->fh_out);
        return from || to;
    }
    /* In these the handle comes first. */
    case FUSE_READ:
    case FUSE_WRITE:
    case FUSE_RELEASE:
    case FUSE_FSYNC:
    case FUSE_FLUSH:
    case FUSE_GETLK:
    case FUSE_SETLK:
    case FUSE_SETLKW:
    case FUSE_IOCTL:
    case FUSE_POLL:
    case FUSE_FALLOCATE:
    case FUSE_LSEEK:
        return clear(body);
    default:
        return false;
    }
}

/* --- replies ------------------------------------------------------------------------------- */

bool message_reply_valid(uint32_t opcode, const uint8_t *bytes, size_t size)
{
    if (size < sizeof(struct fuse_out_header) || out_header(bytes)->len != size)
        return false;
    size_t body = size - sizeof(struct fuse_out_header);
    int32_t error = out_header(bytes)->error;
    if (error != 0)
        return error < 0 && error > -512 && body == 0; /* the kernel's own bounds */
    switch (opcode) {
    case FUSE_INIT:
        return body >= offsetof(struct abi_init_out, time_gran) &&
               body <= sizeof(struct abi_init_out);
    case FUSE_LOOKUP:
    case FUSE_MKNOD:
    case FUSE_MKDIR:
    case FUSE_SYMLINK:
    case FUSE_LINK:
        return body == sizeof(struct fuse_entry_out);
    case FUSE_GETATTR:
    case FUSE_SETATTR:
        return body == sizeof(struct fuse_attr_out);
    case FUSE_OPEN:
    case FUSE_OPENDIR:
        return body == sizeof(struct abi_open_out);
    case FUSE_CREATE:
    case FUSE_TMPFILE:
        return body == sizeof(struct fuse_entry_out) + sizeof(struct abi_open_out);
    case FUSE_FALLOCATE:
        return body == 0;
    case FUSE_LSEEK:
        return body == sizeof(struct fuse_lseek_out);
    case FUSE_COPY_FILE_RANGE:
        return body == sizeof(struct fuse_write_out);
    case ABI_COPY_FILE_RANGE_64:
        return body == sizeof(uint64_t);
    default:
        return true; /* the kernel knows what it asked for */
    }
}

size_t message_amend_init(uint8_t *bytes, size_t size, const struct init_wishes *wishes,
                          bool *passthrough)
{
    struct fuse_out_header *header = (void *)bytes;
    struct abi_init_out *init = out_body(bytes);
    const struct fuse_init_in *offered = wishes->offered;
    const size_t whole = sizeof *header + sizeof *init;

    *passthrough = false;
    if (header->error != 0)
        return size;
    memset(bytes + size, 0, whole - size);
    header->len = (uint32_t)whole;

    init->flags &= ~SPLICE;
    init->flags |= offered->flags & FUSE_DONT_MASK; /* the umask is for Python to apply, or not */
    if (init->max_write > wishes->max_write)
        init->max_write = wishes->max_write;
    if (offered->flags & FUSE_MAX_PAGES) {
        init->flags |= FUSE_MAX_PAGES;
        init->max_pages =
            (uint16_t)((init->max_write + wishes->page_bytes - 1) / wishes->page_bytes);
    }
    /* Set-id bits and capabilities are ours to take away, and so the kernel may remember that a
     * file has none: else each write(2) is a GETXATTR first. libfuse does not know of it. */
    init->flags |= offered->flags & FUSE_HANDLE_KILLPRIV_V2;
    init->flags &= ~(uint32_t)FUSE_INIT_EXT;
    init->flags2 = 0;
    init->max_stack_depth = 0;
    if (wishes->passthrough && offered->flags & FUSE_INIT_EXT &&
        offered->flags2 & ABI_INIT2_PASSTHROUGH) {
        init->flags |= FUSE_INIT_EXT;
        init->flags &= ~(uint32_t)FUSE_WRITEBACK_CACHE; /* the two exclude each other */
        init->flags2 = ABI_INIT2_PASSTHROUGH;
        init->max_stack_depth = 1;
        *passthrough = true;
    }
    return whole;
}

struct abi_open_out *message_open_out(uint32_t opcode, uint8_t *bytes)
{
    uint8_t *body = out_body(bytes);
    if (out_header(bytes)->error != 0)
        return NULL;
    switch (opcode) {
    case FUSE_OPEN:
        return (void *)body;
    case FUSE_CREATE:
    case FUSE_TMPFILE:
        return (void *)(body + sizeof(struct fuse_entry_out));
    default:
        return NULL;
    }
}

void message_amend_open(struct abi_open_out *out, int32_t backing_id)
{
    /* The kernel refuses other flags beside PASSTHROUGH. */
    out->open_flags = ABI_FOPEN_PASSTHROUGH | FOPEN_NOFLUSH;
    out->backing_id = backing_id;
    out->fh |= HANDLE_AMENDED;
}

static struct attributes of_entry(struct fuse_entry_out *entry)
{
    return (struct attributes){
        .nodeid = entry->nodeid,
        .attr = &entry->attr,
        .valid_s = &entry->attr_valid,
        .valid_ns = &entry->attr_valid_nsec,
    };
}

bool message_one_attributes(uint32_t opcode, uint64_t nodeid, uint8_t *bytes,
                            struct attributes *out)
{
    if (out_header(bytes)->error != 0)
        return false;
    switch (opcode) {
    case FUSE_LOOKUP:
    case FUSE_MKNOD:
    case FUSE_MKDIR:
    case FUSE_SYMLINK:
    case FUSE_LINK:
    case FUSE_CREATE:
    case FUSE_TMPFILE:
        *out = of_entry(out_body(bytes));
        return out->nodeid != 0;
    case FUSE_GETATTR:
    case FUSE_SETATTR: {
        struct fuse_attr_out *reply = out_body(bytes);
        *out = (struct attributes){
            .nodeid = nodeid,
            .attr = &reply->attr,
            .valid_s = &reply->attr_valid,
            .valid_ns = &reply->attr_valid_nsec,
        };
        return true;
    }
    default:
        return false;
    }
}

/* How many bytes the entry at the start of these takes, or 0 when it does not fit. */
static size_t entry_bytes(const struct fuse_dirent *entry, size_t name_offset, size_t left)
{
    if (left < name_offset || entry->namelen > left - name_offset)
        return 0;
    size_t bytes = FUSE_REC_ALIGN(name_offset + entry->namelen);
    return bytes <= left ? bytes : 0;
}

bool message_attributes(uint32_t opcode, uint64_t nodeid, uint8_t *bytes, size_t size,
                        void (*visit)(void *context, const struct attributes *attributes),
                        void *context)
{
    struct attributes one;
    uint8_t *at = out_body(bytes);
    size_t left = size - sizeof(struct fuse_out_header);

    if (message_one_attributes(opcode, nodeid, bytes, &one)) {
        visit(context, &one);
        return true;
    }
    if (opcode == FUSE_READDIR) {
        while (left > 0) {
            struct fuse_dirent *entry = (void *)at;
            size_t taken = left < FUSE_NAME_OFFSET ? 0 : entry_bytes(entry, FUSE_NAME_OFFSET, left);
            if (taken == 0)
                return false;
            visit(context, &(struct attributes){.nodeid = entry->ino, .entry_ino = &entry->ino});
            at += taken;
            left -= taken;
        }
    } else if (opcode == FUSE_READDIRPLUS) {
        while (left > 0) {
            struct fuse_direntplus *entry = (void *)at;
            size_t taken = left < FUSE_NAME_OFFSET_DIRENTPLUS
                               ? 0
                               : entry_bytes(&entry->dirent, FUSE_NAME_OFFSET_DIRENTPLUS, left);
            if (taken == 0)
                return false;
            one = of_entry(&entry->entry_out);
            if (one.nodeid == 0) /* the kernel is told a name only; pyfuse3's ino is the nodeid */
                one.nodeid = entry->dirent.ino;
            one.entry_ino = &entry->dirent.ino;
            visit(context, &one);
            at += taken;
            left -= taken;
        }
    }
    return true;
}

bool message_last_entry(uint32_t opcode, uint8_t *bytes, size_t size, uint64_t *position,
                        const char **name, uint32_t *name_bytes)
{
    size_t before = opcode == FUSE_READDIRPLUS ? sizeof(struct fuse_entry_out) : 0;
    size_t name_offset = before + FUSE_NAME_OFFSET;
    uint8_t *at = out_body(bytes);
    size_t left = size - sizeof(struct fuse_out_header);
    const struct fuse_dirent *last = NULL;

    if (out_header(bytes)->error != 0)
        return false;
    while (left > 0) {
        last = (const void *)(at + before);
        size_t taken = left < name_offset ? 0 : entry_bytes(last, name_offset, left);
        if (taken == 0)
            return false;
        at += taken;
        left -= taken;
    }
    if (last) {
        *position = last->off;
        *name = last->name;
        *name_bytes = last->namelen;
    }
    return last != NULL;
}
