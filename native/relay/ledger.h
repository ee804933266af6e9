/*
 * What the next worker must know of this one: which inodes are open and how, which backing files
 * the kernel holds, where directory listings have got to, the INIT exchange. It lies in a memfd
 * that the keeper holds, so it is whole after SIGKILL at any instruction; docs/RELAY.md says why.
 * No locks: the table's lock guards all of it but the INIT messages, which the relay's init_lock
 * does.
 */
#ifndef AGENTFS_RELAY_LEDGER_H
#define AGENTFS_RELAY_LEDGER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "abi.h"
#include "map.h"

/* A worker takes over from one with the same layout only. Count up with any change below, and of
 * what was agreed upon with the kernel in the INIT exchange. */
enum { LEDGER_LAYOUT = 3 };

enum {
    LEDGER_ROWS_MAX = 1 << 22, /* open inodes; sparse */
    LEDGER_BACKINGS_MAX = 1 << 20,
    LEDGER_STREAMS_MAX = 1 << 16, /* open directories; of more, listings start again */
    LEDGER_SLOTS = 32,            /* more than there are threads */
    LEDGER_REPLIES = 256,
    LEDGER_REPLY_BYTES = 160, /* the longest is that to CREATE */
    LEDGER_INIT_BYTES = 256,
    LEDGER_NAME_BYTES = 255,
};

/* How a file is open, as its handle and its flags say. */
enum ledger_kind {
    LEDGER_ANSWERED_READ, /* passthrough, by the relay */
    LEDGER_ANSWERED_WRITE,
    LEDGER_AMENDED_READ, /* passthrough, by Python */
    LEDGER_AMENDED_WRITE,
    LEDGER_PLAIN_READ, /* served by Python */
    LEDGER_PLAIN_WRITE,
    LEDGER_KINDS
};

/* An inode that is open, or shown under another number. */
struct ledger_row {
    _Atomic uint64_t nodeid; /* 0: free; set last, cleared first */
    uint64_t ino;            /* as table_set_ino() says; 0: the nodeid */
    int32_t backing_id;      /* while it is open by passthrough */
    uint32_t padding;
    uint32_t opens[LEDGER_KINDS];
    uint32_t next_free; /* while free: index + 1 of the next, 0: none */
    uint64_t unused;
};

struct ledger_backing {
    _Atomic int32_t id; /* 0: free; set last, cleared first */
    uint32_t next_free;
    uint64_t device; /* which file it is, by fstat */
    uint64_t inode;
};

/* A position of a listing, and the name before it. */
struct ledger_place {
    uint64_t position; /* 0: none */
    uint32_t length;
    char name[LEDGER_NAME_BYTES + 1];
};

/* An open directory: the end of its last listing and of the one before, as the last may be asked
 * for again. */
struct ledger_stream {
    _Atomic uint64_t handle; /* 0: free */
    uint32_t next_free;
    _Atomic uint32_t newest; /* of places */
    struct ledger_place places[2];
};

/* A reply that says a count has changed. */
struct ledger_reply {
    _Atomic uint64_t unique; /* 0: none; set last, cleared first */
    uint32_t size;
    uint32_t padding;
    uint8_t bytes[LEDGER_REPLY_BYTES];
};

enum ledger_state { LEDGER_IDLE, LEDGER_COUNTING, LEDGER_COUNTED };

/* A change of a count from before it is made until its reply is with the kernel. */
struct ledger_slot {
    _Atomic uint32_t state;
    uint32_t row;
    uint32_t kind;
    uint32_t before; /* LEDGER_COUNTING: what the count was */
    struct ledger_reply reply;
};

struct ledger_init {
    _Atomic uint32_t size; /* 0: has not been seen */
    uint32_t padding;
    uint8_t bytes[LEDGER_INIT_BYTES];
};

/* Nodeids of inodes are lower. Those from here on mean something by themselves (VIEW_FIRST in
 * agentfs/model.py), so none of them is to be skipped when inodes are numbered on. */
#define LEDGER_INODES_END (UINT64_C(1) << 39)

struct ledger_file {
    uint32_t layout;
    uint32_t generation;      /* how many workers there have been */
    _Atomic uint64_t highest; /* no nodeid of an inode that the kernel knows is higher */
    struct ledger_init init_request;
    struct ledger_init init_reply;
    _Atomic uint32_t registering; /* the kernel may have given out last_backing + 1 */
    int32_t last_backing;
    uint32_t row_end; /* rows from here on were never used; likewise the next two */
    uint32_t backing_end;
    uint32_t stream_end;
    uint32_t next_reply; /* of replies, a ring */
    struct ledger_slot slots[LEDGER_SLOTS];
    struct ledger_reply replies[LEDGER_REPLIES]; /* of earlier workers, perhaps not given */
    struct ledger_row rows[LEDGER_ROWS_MAX];
    struct ledger_backing backings[LEDGER_BACKINGS_MAX];
    struct ledger_stream streams[LEDGER_STREAMS_MAX];
};

static_assert(sizeof(struct ledger_row) == 64, "a row is a cache line");

struct ledger {
    struct ledger_file *file; /* mapped; owned */
    uint32_t free_row;        /* index + 1, 0: none; likewise the next two */
    uint32_t free_backing;
    uint32_t free_stream;
    struct map backings; /* by id; owned */
};

/* A descriptor of an empty one, or -1 with errno. */
int ledger_create(void);

/* 0 or an errno; EPROTO: it has another layout. fd is borrowed; -1: one of our own. What the last
 * worker left half done is undone, what is of no use any more is dropped. */
int ledger_open(struct ledger *ledger, int fd);
void ledger_close(struct ledger *ledger);

/* There was a worker before, and the kernel may have its INIT reply. */
bool ledger_is_inherited(const struct ledger *ledger);

/* NULL when full. */
struct ledger_row *ledger_take_row(struct ledger *ledger, uint64_t nodeid);
void ledger_free_row(struct ledger *ledger, struct ledger_row *row);

/* Open, or shown under another number. */
bool ledger_row_in_use(const struct ledger_row *row);
uint32_t ledger_passed(const struct ledger_row *row);

/* Changes a count and remembers the reply that says so, both or neither. Returns a slot for
 * ledger_given(), or -1 when all are taken. */
int ledger_count(struct ledger *ledger, struct ledger_row *row, enum ledger_kind kind, int change,
                 const void *reply, size_t size);

/* The reply is with the kernel. */
void ledger_given(struct ledger *ledger, int slot);

/* The reply that an earlier worker had for this request, with its unique; 0: none. reply has
 * LEDGER_REPLY_BYTES. */
size_t ledger_find_reply(const struct ledger *ledger, uint64_t unique, uint8_t *reply);

/* False when full or out of memory. */
bool ledger_add_backing(struct ledger *ledger, int32_t id, uint64_t device, uint64_t inode);
void ledger_remove_backing(struct ledger *ledger, int32_t id);

/* How far a listing has got. */
void ledger_listed(struct ledger *ledger, uint64_t handle, const struct ledger_place *place);
const struct ledger_stream *ledger_find_stream(const struct ledger *ledger, uint64_t handle);
void ledger_end_stream(struct ledger *ledger, uint64_t handle);

void ledger_save_init(struct ledger_init *saved, const uint8_t *bytes, size_t size);

#endif
