/*
 * What the relay knows of inodes: which have a backing file, how often they are open through it,
 * their attributes, and under which st_ino they appear. One lock guards all of it, so a detach that
 * succeeded excludes every open answered later; it is held for hash look-ups and one fstat.
 */
#ifndef AGENTFS_RELAY_TABLE_H
#define AGENTFS_RELAY_TABLE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/stat.h>

#include "ledger.h"
#include "map.h"
#include "message.h"

struct attachment;
struct kept;

/* Attributes that table_put_attr() keeps; the least recently used goes first. */
enum { TABLE_KEPT_MAX = 4096 };

struct table {
    pthread_mutex_t lock;
    struct map attachments;  /* guarded by lock; struct attachment by nodeid; owned */
    struct map rows;         /* guarded by lock; struct row_node by nodeid; owned */
    struct ledger ledger;    /* guarded by lock; how often each inode is open, and its st_ino */
    struct map kept;         /* guarded by lock; struct kept by nodeid, not attached; owned */
    struct kept *newest;     /* guarded by lock; of kept */
    struct kept *oldest;     /* guarded by lock */
    struct attachment *idle; /* guarded by lock; have an event, newest first */
    uint64_t clock;          /* guarded by lock; counts changes, requests refer to it */
    uint64_t next_serial;    /* guarded by lock */
    int event_fd;            /* borrowed; made readable when idle gets its first */
};

/* What a request must remember for its reply. */
struct stamp {
    uint64_t clock;  /* when it was forwarded */
    uint64_t nodeid; /* being changed by it, or 0 */
    uint64_t serial; /* of the attachment whose changes it holds, or 0 */
};

/* 0 or an errno. ledger_fd: borrowed, -1: a ledger of its own. */
int table_init(struct table *table, int event_fd, int ledger_fd);
void table_free(struct table *table);

/* --- for Python ---------------------------------------------------------------------------- */

struct backing {
    int32_t id; /* 0: no file; the kernel has pages, and asks Python for what it has not */
    int fd; /* taken over, also on failure; -1 unless writable: there are more files than that */
    bool writable;
    bool capability_free;
    bool opens_writes; /* may be opened for writing without Python, which takes it to be so open */
    int64_t fresh_until_ns;
};

/* 0, ENOMEM, or EBUSY when it is open under another backing id. */
int table_attach(struct table *table, uint64_t nodeid, const struct backing *backing);

bool table_detach(struct table *table, uint64_t nodeid);

/* Through its backing file, and those that the relay answered without one. */
int64_t table_opens(struct table *table, uint64_t nodeid);

/* How often it is open for writing by the relay; *ever: how often it was opened so since it was
 * attached first. */
uint32_t table_writers(struct table *table, uint64_t nodeid, uint64_t *ever);

/* What the backing file of an inode says that is attached as writable; false: it is not. */
bool table_measure(struct table *table, uint64_t nodeid, struct stat *stat);
void table_attr_changed(struct table *table, uint64_t nodeid);

/* Attributes of any nodeid, as of now: GETATTR is answered from them, valid for that long, until a
 * request that changes them is forwarded. False when out of memory. */
bool table_put_attr(struct table *table, uint64_t nodeid, const struct fuse_attr_out *attributes);

/* False when out of memory. */
bool table_set_ino(struct table *table, uint64_t nodeid, uint64_t ino);
void table_forget_ino(struct table *table, uint64_t nodeid);

/* Calls visit for each row, with the lock held: what an earlier worker left, before any request. */
void table_visit_rows(struct table *table,
                      bool (*visit)(void *context, const struct ledger_row *row), void *context);

/* One event; false when there is none. *last: still not open. */
bool table_next_event(struct table *table, uint64_t *nodeid, bool *last);
size_t table_attached(struct table *table);

/* --- for requests -------------------------------------------------------------------------- */

/* A reply that changes a count is remembered until it is with the kernel: table_given(). */
struct open_reply {
    struct fuse_out_header header;
    struct abi_open_out out;
};
void table_given(struct table *table, int slot);

/* Each answers true when the relay may answer, and then has filled its result. An open that was
 * answered is counted; undo with table_not_opened() if the answer did not reach the kernel. reply
 * has its header and its handle. */
bool table_answer_open(struct table *table, uint64_t nodeid, uint32_t flags, int64_t now_ns,
                       struct open_reply *reply, int *slot);
bool table_answer_getattr(struct table *table, uint64_t nodeid, struct fuse_attr_out *out);
bool table_capability_free(struct table *table, uint64_t nodeid);

/* A RELEASE; reply is what it will be answered. */
void table_closed(struct table *table, uint64_t nodeid, enum ledger_kind kind,
                  const struct fuse_out_header *reply, int *slot);

/* How a handle was opened. */
enum ledger_kind table_kind(uint64_t handle, uint32_t flags);
static inline bool kind_is_answered(enum ledger_kind kind)
{
    return kind == LEDGER_ANSWERED_READ || kind == LEDGER_ANSWERED_WRITE;
}

/* Before a request is forwarded; changes is its message_changes(). */
struct stamp table_forwarding(struct table *table, const struct request *request, uint64_t changes);

/* --- for replies --------------------------------------------------------------------------- */

/* Once per stamp: after the reply was seen, or when there will be none. */
void table_replied(struct table *table, const struct stamp *stamp);

/* Remembers and amends the attributes in a valid reply. False when a listing is malformed. */
bool table_amend_attributes(struct table *table, uint32_t opcode, uint64_t nodeid,
                            const struct stamp *stamp, uint8_t *bytes, size_t size);

/* Counts an open that Python answered, amended if the nodeid is attached. bytes is the reply, out
 * its part of an open. False, and nothing changed, when it cannot be counted. */
bool table_open(struct table *table, uint64_t nodeid, uint32_t flags, uint8_t *bytes, size_t size,
                struct abi_open_out *out, int *slot);

/* Undoes the count of an open whose reply did not reach the kernel: no RELEASE will come. */
void table_not_opened(struct table *table, uint64_t nodeid, enum ledger_kind kind);

/* A listing was given that far. */
void table_listed(struct table *table, uint64_t handle, const struct ledger_place *place);
void table_listing_closed(struct table *table, uint64_t handle);

/* Where it had got to for an earlier worker; returns how many places. */
int table_places(struct table *table, uint64_t handle, struct ledger_place places[2]);

#endif
