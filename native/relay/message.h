/*
 * FUSE messages as bytes: parsing, checking and amending. Pure: no state, no I/O, no locks. Buffers
 * are aligned to 8 bytes, as malloc gives them. Every length is checked before it is believed.
 */
#ifndef AGENTFS_RELAY_MESSAGE_H
#define AGENTFS_RELAY_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "abi.h"

/* The most a message has beside its data: headers, names, and room for what comes to be. */
#define MESSAGE_SLACK_BYTES (64 * 1024)
#define MESSAGE_DATA_MAX    (1024 * 1024)
#define MESSAGE_BYTES_MAX   (MESSAGE_DATA_MAX + MESSAGE_SLACK_BYTES)

/*
 * The two top bits of a file handle are the relay's. HANDLE_RELAY: opened by the relay; the rest is
 * the nodeid, and Python never saw the OPEN. HANDLE_AMENDED: opened by Python and made passthrough;
 * Python never sees this bit.
 */
#define HANDLE_RELAY   (UINT64_C(1) << 63)
#define HANDLE_AMENDED (UINT64_C(1) << 62)
#define HANDLE_OURS    (HANDLE_RELAY | HANDLE_AMENDED)

/* --- requests ------------------------------------------------------------------------------ */

struct request {
    struct fuse_in_header header;
    uint8_t *body; /* borrowed from the message */
    size_t body_bytes;
};

enum request_state {
    REQUEST_OK,
    REQUEST_BAD,      /* header is valid, the rest is not: answer EIO */
    REQUEST_HOPELESS, /* not even a header */
};

enum request_state message_request(uint8_t *bytes, size_t size, struct request *request);

/* What pyfuse3 cannot carry: it goes to Python by a way of its own. */
bool message_is_operation(uint32_t opcode);

/* What Python answers often, and mostly without waiting for anything. */
bool message_is_brief(uint32_t opcode);

/* FORGET and the like get no answer. */
bool message_wants_reply(uint32_t opcode);

/* Hides from libfuse what it must not use over a socket or does not know. Returns the new size of
 * the message; the request must be an INIT that message_request() accepted. */
size_t message_hide_init(uint8_t *bytes, size_t size);

/* The nodeid whose attributes or content the request changes, or 0. */
uint64_t message_changes(const struct request *request);

/* The directories in which the request adds, removes or renames a name; returns how many. */
enum { MESSAGE_PARENTS_MAX = 2 };
unsigned message_parents(const struct request *request, uint64_t nodeids[MESSAGE_PARENTS_MAX]);

/* Takes HANDLE_AMENDED out of every file handle in the request; true when one had it. */
bool message_clear_handles(struct request *request);

/* --- replies ------------------------------------------------------------------------------- */

/* A header the kernel would accept, and a length that its opcode can have. */
bool message_reply_valid(uint32_t opcode, const uint8_t *bytes, size_t size);

struct init_wishes {
    const struct fuse_init_in *offered; /* by the kernel */
    uint32_t max_write;                 /* no more than the socket carries */
    uint32_t page_bytes;
    bool passthrough;
};

/* Amends a valid INIT reply; bytes has room for a header and abi_init_out. Returns the new size;
 * *passthrough says whether it was asked for. */
size_t message_amend_init(uint8_t *bytes, size_t size, const struct init_wishes *wishes,
                          bool *passthrough);

/* The open part of a valid reply to OPEN or CREATE (TMPFILE); NULL when it reports an error. */
struct abi_open_out *message_open_out(uint32_t opcode, uint8_t *bytes);

/* Turns an open reply into a passthrough one. */
void message_amend_open(struct abi_open_out *out, int32_t backing_id);

/* The attributes in a reply, and what goes with them; fields may be changed in place. */
struct attributes {
    uint64_t nodeid;
    struct fuse_attr *attr;
    uint64_t *valid_s;
    uint32_t *valid_ns;
    uint64_t *entry_ino; /* d_ino beside them, or NULL */
};

/* Calls visit for each set of attributes in a valid reply, and for each plain directory entry with
 * attr == NULL and nodeid == its ino. nodeid is that of the request. False when a directory listing
 * breaks its own lengths; what was visited till then stays. */
bool message_attributes(uint32_t opcode, uint64_t nodeid, uint8_t *bytes, size_t size,
                        void (*visit)(void *context, const struct attributes *attributes),
                        void *context);

/* The last entry of a directory listing: the position after it and its name, in the message. False
 * when there is none, or when the listing breaks its own lengths. */
bool message_last_entry(uint32_t opcode, uint8_t *bytes, size_t size, uint64_t *position,
                        const char **name, uint32_t *name_bytes);

/* The attributes of the one inode a reply is about; false when it has none. */
bool message_one_attributes(uint32_t opcode, uint64_t nodeid, uint8_t *bytes,
                            struct attributes *out);

#endif
