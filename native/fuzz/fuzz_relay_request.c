/* The kernel's side: any bytes as a request, parsed and amended as a reader does. */
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
            if (table_attach(&table, nodeid, &backing) != 0)
                abort();
        }
    }
    return &table;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct table *table = attached_table();
    struct request request;
    struct fuse_attr_out attr;
    struct open_reply reply = {.header = {.len = sizeof reply, .unique = 2}};
    uint32_t flags;
    int slot;
    uint8_t *bytes = malloc(size ? size : 1); /* of the exact size, so that one byte more is seen */
    if (bytes == NULL)
        return 0;
    if (size > 0)
        memcpy(bytes, data, size);
    if (message_request(bytes, size, &request) != REQUEST_OK)
        goto done;
    const struct fuse_in_header *header = &request.header;
    if (header->len != size || request.body + request.body_bytes != bytes + size)
        abort();
    message_clear_handles(&request);
    if (message_clear_handles(&request))
        abort(); /* once is enough */
    uint64_t parents[MESSAGE_PARENTS_MAX];
    unsigned count = message_parents(&request, parents);
    for (unsigned i = 0; i < count; i++)
        if (!table_put_attr(table, parents[i], &(struct fuse_attr_out){0}))
            abort();
    struct stamp stamp = table_forwarding(table, &request, message_changes(&request));
    table_replied(table, &stamp);
    switch (header->opcode) {
    case FUSE_INIT:
        size = message_hide_init(bytes, size);
        if (message_request(bytes, size, &request) != REQUEST_OK)
            abort();
        break;
    case FUSE_OPEN:
        flags = ((const struct fuse_open_in *)(void *)request.body)->flags;
        if (table_answer_open(table, header->nodeid, flags, 0, &reply, &slot)) {
            table_given(table, slot);
            table_not_opened(table, header->nodeid, table_kind(HANDLE_RELAY, flags));
        }
        break;
    case FUSE_GETATTR:
        table_answer_getattr(table, header->nodeid, &attr);
        break;
    case FUSE_GETXATTR:
        if (strlen((const char *)request.body + sizeof(struct fuse_getxattr_in)) > size)
            abort();
        break;
    default:
        break;
    }

done:
    free(bytes);
    return 0;
}
