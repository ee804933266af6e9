/* Python's side: the first byte chooses the opcode, the rest is the reply, amended as relay_pump()
 * does. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "message.h"
#include "table.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct table *attached_table(void)
{
    static struct table table;
    if (table.attachments.buckets == NULL) {
        if (table_init(&table, -1, -1) != 0)
            abort();
        for (uint64_t nodeid = 1; nodeid < 4; nodeid++) {
            struct backing backing = {
                1, open("/dev/null", O_RDONLY), nodeid & 1, true, nodeid & 1, INT64_MAX};
            if (table_attach(&table, nodeid, &backing) != 0 || !table_set_ino(&table, nodeid, 99))
                abort();
        }
    }
    return &table;
}

static void amend(struct table *table, uint32_t opcode, uint8_t *bytes, size_t size)
{
    const struct fuse_init_in offered = {.flags = FUSE_INIT_EXT | FUSE_MAX_PAGES,
                                         .flags2 = ABI_INIT2_PASSTHROUGH};
    struct init_wishes wishes = {&offered, MESSAGE_DATA_MAX, 4096, true};
    struct fuse_rename2_in body = {.newdir = 2}; /* of what has one that is looked at */
    struct request request = {.header = {.opcode = opcode, .nodeid = 1},
                              .body = (void *)&body,
                              .body_bytes = sizeof body};
    struct attributes created;
    uint64_t nodeid = 1;
    bool asked;

    if (!message_reply_valid(opcode, bytes, size))
        return;
    if (opcode == FUSE_INIT) {
        uint8_t *reply = calloc(1, sizeof(struct fuse_out_header) + sizeof(struct abi_init_out));
        if (reply == NULL)
            return;
        memcpy(reply, bytes, size);
        size = message_amend_init(reply, size, &wishes, &asked);
        if (!message_reply_valid(opcode, reply, size))
            abort();
        free(reply);
        return;
    }
    struct stamp stamp = table_forwarding(table, &request, opcode == FUSE_SETATTR ? 1 : 0);
    table_amend_attributes(table, opcode, 1, &stamp, bytes, size);
    struct abi_open_out *out = message_open_out(opcode, bytes);
    if (message_one_attributes(opcode, nodeid, bytes, &created))
        nodeid = created.nodeid;
    struct ledger_place place;
    const char *name;
    if (opcode == FUSE_READDIR || opcode == FUSE_READDIRPLUS)
        message_last_entry(opcode, bytes, size, &place.position, &name, &place.length);
    int slot;
    if (out && !(out->fh & HANDLE_OURS) &&
        table_open(table, nodeid, O_RDWR, bytes, size, out, &slot)) {
        table_given(table, slot);
        if (out->fh & HANDLE_AMENDED &&
            (out->open_flags & (FOPEN_DIRECT_IO | FOPEN_KEEP_CACHE) || out->backing_id != 1))
            abort();
        table_not_opened(table, nodeid, table_kind(out->fh, O_RDWR));
    }
    table_replied(table, &stamp);
    if (!message_reply_valid(opcode, bytes, size))
        abort(); /* amending keeps it so */
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    uint32_t opcode = data[0] % 53;
    data++;
    size--;
    uint8_t *bytes = malloc(size ? size : 1); /* of the exact size, so that one byte more is seen */
    if (bytes == NULL)
        return 0;
    if (size > 0)
        memcpy(bytes, data, size);
    /* A right length makes all that follows reachable. */
    if (size >= sizeof(struct fuse_out_header) && data[0] & 1)
        ((struct fuse_out_header *)(void *)bytes)->len = (uint32_t)size;
    amend(attached_table(), opcode, bytes, size);
    free(bytes);
    return 0;
}
