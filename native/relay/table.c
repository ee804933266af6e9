#define _GNU_SOURCE
#include "table.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

/* For how long the kernel may believe what it is told of a file just made. It looks whether the
 * program may open it, and would ask for the attributes again; that is a quarter of what making a
 * file costs. It notes what it writes to the file by itself, but not that a mapping changed it. */
enum { CREATED_VALID_NS = 1000 * 1000 };

struct attachment {
    struct map_node node; /* first; key is the nodeid */
    uint64_t serial;      /* never comes again, unlike the nodeid */
    struct backing backing;
    uint64_t writes;              /* opens for writing that the relay has answered */
    struct attachment *next_idle; /* while is_idle */
    bool is_idle;                 /* in table->idle: an event waits to be told */

    /* Attributes are believed when no change is under way and the reply that brought them was
     * asked for after the last one. */
    unsigned changing;   /* requests forwarded that change it, not yet replied */
    uint64_t changed_at; /* table->clock at the last change */
    uint64_t attached_at;
    bool is_known;
    struct fuse_attr attr;
    uint64_t valid_s;
    uint32_t valid_ns;
};

struct row_node {
    struct map_node node; /* first; key is the nodeid */
    struct ledger_row *row;
};

struct kept {
    struct map_node node; /* first; key is the nodeid */
    struct kept *newer;
    struct kept *older;
    struct fuse_attr_out out;
};

static struct attachment *find(struct table *table, uint64_t nodeid)
{
    return (struct attachment *)(void *)map_find(&table->attachments, nodeid);
}

static void close_backing(const struct backing *backing)
{
    if (backing->fd >= 0)
        close(backing->fd);
}

static void release_attachment(struct map_node *node)
{
    struct attachment *attachment = (struct attachment *)(void *)node;
    close_backing(&attachment->backing);
    free(attachment);
}

static void release_node(struct map_node *node)
{
    free(node);
}

/* --- rows of the ledger, lock held --------------------------------------------------------- */

static struct ledger_row *find_row(const struct table *table, uint64_t nodeid)
{
    const struct row_node *found = (const void *)map_find(&table->rows, nodeid);
    return found ? found->row : NULL;
}

static bool index_row(struct table *table, struct ledger_row *row)
{
    struct row_node *node = malloc(sizeof *node);
    if (node == NULL)
        return false;
    node->row = row;
    map_insert(&table->rows, &node->node, atomic_load(&row->nodeid));
    return true;
}

/* NULL when out of memory. */
static struct ledger_row *take_row(struct table *table, uint64_t nodeid)
{
    struct ledger_row *row = find_row(table, nodeid);
    if (row == NULL) {
        row = ledger_take_row(&table->ledger, nodeid);
        if (row && !index_row(table, row)) {
            ledger_free_row(&table->ledger, row);
            row = NULL;
        }
    }
    return row;
}

static void drop_row_unless_used(struct table *table, struct ledger_row *row)
{
    if (!ledger_row_in_use(row)) {
        release_node(map_remove(&table->rows, atomic_load(&row->nodeid)));
        ledger_free_row(&table->ledger, row);
    }
}

static uint32_t passed_opens(const struct table *table, uint64_t nodeid)
{
    const struct ledger_row *row = find_row(table, nodeid);
    return row ? ledger_passed(row) : 0;
}

/* 0: shown under its nodeid. */
static uint64_t shown_ino(const struct table *table, uint64_t nodeid)
{
    const struct ledger_row *row = find_row(table, nodeid);
    return row ? row->ino : 0;
}

/* The kernel knows this nodeid, or is about to. */
static void told_of(struct table *table, uint64_t nodeid)
{
    if (nodeid < LEDGER_INODES_END && nodeid > atomic_load(&table->ledger.file->highest))
        atomic_store(&table->ledger.file->highest, nodeid);
}

/* --- life ---------------------------------------------------------------------------------- */

int table_init(struct table *table, int event_fd, int ledger_fd)
{
    *table = (struct table){.lock = PTHREAD_MUTEX_INITIALIZER, .next_serial = 1};
    table->event_fd = event_fd;
    int error = ledger_open(&table->ledger, ledger_fd);
    if (error)
        return error;
    bool is_whole =
        map_init(&table->attachments) && map_init(&table->rows) && map_init(&table->kept);
    for (uint32_t i = 0; is_whole && i < table->ledger.file->row_end; i++) {
        struct ledger_row *row = &table->ledger.file->rows[i];
        is_whole = atomic_load(&row->nodeid) == 0 || index_row(table, row);
    }
    if (!is_whole)
        table_free(table);
    return is_whole ? 0 : ENOMEM;
}

void table_free(struct table *table)
{
    map_free(&table->attachments, release_attachment);
    map_free(&table->rows, release_node);
    map_free(&table->kept, release_node);
    ledger_close(&table->ledger);
    pthread_mutex_destroy(&table->lock);
}

/* --- opens and events, lock held ----------------------------------------------------------- */

/* Nobody has it open any more, and Python does not see the RELEASE. */
static void became_idle(struct table *table, struct attachment *attachment)
{
    if (attachment->is_idle)
        return;
    if (table->idle == NULL)
        eventfd_write(table->event_fd, 1);
    attachment->next_idle = table->idle;
    attachment->is_idle = true;
    table->idle = attachment;
}

static void unlink_idle(struct table *table, struct attachment *attachment)
{
    struct attachment **at = &table->idle;
    if (!attachment->is_idle)
        return;
    while (*at != attachment)
        at = &(*at)->next_idle;
    *at = attachment->next_idle;
    attachment->is_idle = false;
}

static void changed(struct table *table, struct attachment *attachment)
{
    attachment->is_known = false;
    attachment->changed_at = ++table->clock;
}

/* --- attributes put by Python, lock held --------------------------------------------------- */

static struct kept *find_kept(struct table *table, uint64_t nodeid)
{
    return (struct kept *)(void *)map_find(&table->kept, nodeid);
}

static void link_newest(struct table *table, struct kept *kept)
{
    kept->newer = NULL;
    kept->older = table->newest;
    *(table->newest ? &table->newest->newer : &table->oldest) = kept;
    table->newest = kept;
}

static void unlink_kept(struct table *table, struct kept *kept)
{
    *(kept->newer ? &kept->newer->older : &table->newest) = kept->older;
    *(kept->older ? &kept->older->newer : &table->oldest) = kept->newer;
}

static void drop_kept(struct table *table, uint64_t nodeid)
{
    struct kept *kept = (struct kept *)(void *)map_remove(&table->kept, nodeid);
    if (kept) {
        unlink_kept(table, kept);
        free(kept);
    }
}

static bool keep(struct table *table, uint64_t nodeid, const struct fuse_attr_out *attributes)
{
    struct kept *kept = find_kept(table, nodeid);
    if (kept) {
        unlink_kept(table, kept);
    } else {
        kept = calloc(1, sizeof *kept);
        if (kept == NULL)
            return false;
        if (table->kept.count == TABLE_KEPT_MAX)
            drop_kept(table, table->oldest->node.key);
        map_insert(&table->kept, &kept->node, nodeid);
    }
    kept->out = *attributes;
    link_newest(table, kept);
    return true;
}

/* --- for Python ---------------------------------------------------------------------------- */

static int attach_locked(struct table *table, uint64_t nodeid, const struct backing *backing)
{
    struct attachment *attachment = find(table, nodeid);
    const struct ledger_row *row = find_row(table, nodeid);
    if (row && ledger_passed(row) > 0 && row->backing_id != backing->id)
        return EBUSY;
    if (attachment) {
        close_backing(&attachment->backing);
        attachment->backing = *backing;
        changed(table, attachment);
        return 0;
    }
    attachment = calloc(1, sizeof *attachment);
    if (attachment == NULL)
        return ENOMEM;
    drop_kept(table, nodeid);
    attachment->backing = *backing;
    attachment->serial = table->next_serial++;
    changed(table, attachment);
    attachment->attached_at = attachment->changed_at;
    map_insert(&table->attachments, &attachment->node, nodeid);
    return 0;
}

int table_attach(struct table *table, uint64_t nodeid, const struct backing *backing)
{
    pthread_mutex_lock(&table->lock);
    int error = attach_locked(table, nodeid, backing);
    pthread_mutex_unlock(&table->lock);
    if (error)
        close_backing(backing);
    return error;
}

bool table_detach(struct table *table, uint64_t nodeid)
{
    pthread_mutex_lock(&table->lock);
    struct attachment *attachment = find(table, nodeid);
    bool may = attachment == NULL || passed_opens(table, nodeid) == 0;
    if (attachment && may) {
        map_remove(&table->attachments, nodeid);
        unlink_idle(table, attachment);
    }
    pthread_mutex_unlock(&table->lock);
    if (attachment && may)
        release_attachment(&attachment->node);
    return may;
}

int64_t table_opens(struct table *table, uint64_t nodeid)
{
    pthread_mutex_lock(&table->lock);
    int64_t opens = passed_opens(table, nodeid);
    pthread_mutex_unlock(&table->lock);
    return opens;
}

uint32_t table_writers(struct table *table, uint64_t nodeid, uint64_t *ever)
{
    pthread_mutex_lock(&table->lock);
    const struct ledger_row *row = find_row(table, nodeid);
    const struct attachment *attachment = find(table, nodeid);
    uint32_t writers = row ? row->opens[LEDGER_ANSWERED_WRITE] : 0;
    *ever = attachment ? attachment->writes : 0;
    pthread_mutex_unlock(&table->lock);
    return writers;
}

bool table_measure(struct table *table, uint64_t nodeid, struct stat *stat)
{
    pthread_mutex_lock(&table->lock);
    const struct attachment *attachment = find(table, nodeid);
    bool is_measured =
        attachment && attachment->backing.writable && fstat(attachment->backing.fd, stat) == 0;
    pthread_mutex_unlock(&table->lock);
    return is_measured;
}

void table_attr_changed(struct table *table, uint64_t nodeid)
{
    pthread_mutex_lock(&table->lock);
    struct attachment *attachment = find(table, nodeid);
    if (attachment)
        changed(table, attachment);
    drop_kept(table, nodeid);
    pthread_mutex_unlock(&table->lock);
}

static bool put_locked(struct table *table, uint64_t nodeid, const struct fuse_attr_out *attributes)
{
    uint64_t ino = shown_ino(table, nodeid);
    struct fuse_attr_out out = *attributes;
    struct attachment *attachment = find(table, nodeid);

    if (ino)
        out.attr.ino = ino;
    if (attachment == NULL)
        return keep(table, nodeid, &out);
    if (attachment->changing > 0)
        return true;            /* the reply to the change brings them */
    changed(table, attachment); /* replies asked for before this come too late */
    attachment->attr = out.attr;
    attachment->valid_s = out.attr_valid;
    attachment->valid_ns = out.attr_valid_nsec;
    attachment->is_known = true;
    return true;
}

bool table_put_attr(struct table *table, uint64_t nodeid, const struct fuse_attr_out *attributes)
{
    pthread_mutex_lock(&table->lock);
    bool is_kept = put_locked(table, nodeid, attributes);
    pthread_mutex_unlock(&table->lock);
    return is_kept;
}

bool table_set_ino(struct table *table, uint64_t nodeid, uint64_t number)
{
    pthread_mutex_lock(&table->lock);
    struct ledger_row *row = take_row(table, nodeid);
    if (row)
        row->ino = number;
    told_of(table, nodeid);
    drop_kept(table, nodeid);
    struct attachment *attachment = find(table, nodeid);
    if (attachment)
        changed(table, attachment);
    pthread_mutex_unlock(&table->lock);
    return row != NULL;
}

void table_forget_ino(struct table *table, uint64_t nodeid)
{
    pthread_mutex_lock(&table->lock);
    struct ledger_row *row = find_row(table, nodeid);
    if (row) {
        row->ino = 0;
        drop_row_unless_used(table, row);
    }
    drop_kept(table, nodeid);
    struct attachment *attachment = find(table, nodeid);
    if (attachment)
        changed(table, attachment);
    pthread_mutex_unlock(&table->lock);
}

void table_visit_rows(struct table *table,
                      bool (*visit)(void *context, const struct ledger_row *row), void *context)
{
    bool goes_on = true;
    pthread_mutex_lock(&table->lock);
    for (uint32_t i = 0; goes_on && i < table->ledger.file->row_end; i++) {
        const struct ledger_row *row = &table->ledger.file->rows[i];
        if (atomic_load(&row->nodeid) != 0)
            goes_on = visit(context, row);
    }
    pthread_mutex_unlock(&table->lock);
}

bool table_next_event(struct table *table, uint64_t *nodeid, bool *last)
{
    pthread_mutex_lock(&table->lock);
    struct attachment *attachment = table->idle;
    if (attachment) {
        unlink_idle(table, attachment);
        *nodeid = attachment->node.key;
        *last = passed_opens(table, *nodeid) == 0;
    }
    pthread_mutex_unlock(&table->lock);
    return attachment != NULL;
}

size_t table_attached(struct table *table)
{
    pthread_mutex_lock(&table->lock);
    size_t count = table->attachments.count;
    pthread_mutex_unlock(&table->lock);
    return count;
}

/* --- attributes, lock held ----------------------------------------------------------------- */

static bool later(uint64_t s, uint32_t ns, const struct timespec *than)
{
    uint64_t than_s = (uint64_t)than->tv_sec;
    return (int64_t)s > (int64_t)than_s || (s == than_s && ns > (uint32_t)than->tv_nsec);
}

/* What moves without the daemon while a file is open for writing. False when fstat fails. */
static bool mirror_backing(const struct attachment *attachment, struct fuse_attr *attr)
{
    struct stat stat;
    if (fstat(attachment->backing.fd, &stat) != 0)
        return false;
    attr->size = (uint64_t)stat.st_size;
    attr->blocks = (uint64_t)stat.st_blocks;
    /* Not its ctime: copying, sealing and setting times move that of the copy alone. */
    bool written = attr->mtime != (uint64_t)stat.st_mtim.tv_sec ||
                   attr->mtimensec != (uint32_t)stat.st_mtim.tv_nsec;
    attr->mtime = (uint64_t)stat.st_mtim.tv_sec;
    attr->mtimensec = (uint32_t)stat.st_mtim.tv_nsec;
    if (written && !later(attr->ctime, attr->ctimensec, &stat.st_mtim)) {
        attr->ctime = attr->mtime;
        attr->ctimensec = attr->mtimensec;
    }
    return true;
}

/* --- for requests -------------------------------------------------------------------------- */

/* Counts an open; -1: it cannot be. */
static int count_open(struct table *table, uint64_t nodeid, enum ledger_kind kind,
                      int32_t backing_id, const void *reply, size_t size)
{
    struct ledger_row *row = take_row(table, nodeid);
    if (row == NULL)
        return -1;
    if (backing_id)
        row->backing_id = backing_id;
    int slot = ledger_count(&table->ledger, row, kind, 1, reply, size);
    if (slot < 0)
        drop_row_unless_used(table, row);
    return slot;
}

void table_given(struct table *table, int slot)
{
    ledger_given(&table->ledger, slot);
}

/* Not O_RDWR: a mapping changes bytes without a trace. */
static bool may_open(const struct backing *backing, uint32_t flags, int64_t now_ns)
{
    switch (flags & O_ACCMODE) {
    case O_RDONLY:
        return now_ns < backing->fresh_until_ns;
    case O_WRONLY:
        return backing->opens_writes;
    default:
        return false;
    }
}

bool table_answer_open(struct table *table, uint64_t nodeid, uint32_t flags, int64_t now_ns,
                       struct open_reply *reply, int *slot)
{
    enum ledger_kind kind = table_kind(HANDLE_RELAY, flags);
    if (flags & O_TRUNC || nodeid & HANDLE_OURS)
        return false;
    *slot = -1;
    pthread_mutex_lock(&table->lock);
    struct attachment *attachment = find(table, nodeid);
    if (attachment && may_open(&attachment->backing, flags, now_ns)) {
        reply->out.backing_id = attachment->backing.id;
        reply->out.open_flags =
            FOPEN_NOFLUSH | (reply->out.backing_id ? ABI_FOPEN_PASSTHROUGH : FOPEN_KEEP_CACHE);
        *slot = count_open(table, nodeid, kind, reply->out.backing_id, reply, sizeof *reply);
        if (kind == LEDGER_ANSWERED_WRITE) {
            attachment->backing.fresh_until_ns = 0; /* the next read is to be recorded */
            attachment->writes++;
        }
    }
    pthread_mutex_unlock(&table->lock);
    return *slot >= 0;
}

static bool answer_kept(struct table *table, uint64_t nodeid, struct fuse_attr_out *out)
{
    struct kept *kept = find_kept(table, nodeid);
    if (kept == NULL)
        return false;
    *out = kept->out;
    unlink_kept(table, kept);
    link_newest(table, kept);
    return true;
}

bool table_answer_getattr(struct table *table, uint64_t nodeid, struct fuse_attr_out *out)
{
    pthread_mutex_lock(&table->lock);
    const struct attachment *attachment = find(table, nodeid);
    bool may = attachment && attachment->is_known && attachment->changing == 0;
    if (may) {
        *out = (struct fuse_attr_out){.attr = attachment->attr};
        if (attachment->backing.writable) {
            may = mirror_backing(attachment, &out->attr);
        } else {
            out->attr_valid = attachment->valid_s;
            out->attr_valid_nsec = attachment->valid_ns;
        }
    }
    if (attachment == NULL)
        may = answer_kept(table, nodeid, out);
    pthread_mutex_unlock(&table->lock);
    return may;
}

bool table_capability_free(struct table *table, uint64_t nodeid)
{
    pthread_mutex_lock(&table->lock);
    const struct attachment *attachment = find(table, nodeid);
    bool is_free = attachment && attachment->backing.capability_free;
    pthread_mutex_unlock(&table->lock);
    return is_free;
}

enum ledger_kind table_kind(uint64_t handle, uint32_t flags)
{
    bool writes = (flags & O_ACCMODE) != O_RDONLY;
    if (handle & HANDLE_RELAY)
        return writes ? LEDGER_ANSWERED_WRITE : LEDGER_ANSWERED_READ;
    if (handle & HANDLE_AMENDED)
        return writes ? LEDGER_AMENDED_WRITE : LEDGER_AMENDED_READ;
    return writes ? LEDGER_PLAIN_WRITE : LEDGER_PLAIN_READ;
}

static int closed(struct table *table, uint64_t nodeid, enum ledger_kind kind,
                  const struct fuse_out_header *reply)
{
    struct ledger_row *row = find_row(table, nodeid);
    if (row == NULL || row->opens[kind] == 0)
        return -1;
    int slot = ledger_count(&table->ledger, row, kind, -1, reply, sizeof *reply);
    struct attachment *attachment = find(table, nodeid);
    if (attachment && kind_is_answered(kind) && ledger_passed(row) == 0)
        became_idle(table, attachment);
    drop_row_unless_used(table, row);
    return slot;
}

void table_closed(struct table *table, uint64_t nodeid, enum ledger_kind kind,
                  const struct fuse_out_header *reply, int *slot)
{
    pthread_mutex_lock(&table->lock);
    *slot = closed(table, nodeid, kind, reply);
    pthread_mutex_unlock(&table->lock);
}

void table_not_opened(struct table *table, uint64_t nodeid, enum ledger_kind kind)
{
    pthread_mutex_lock(&table->lock);
    struct ledger_row *row = find_row(table, nodeid);
    if (row && row->opens[kind] > 0) {
        row->opens[kind]--;
        struct attachment *attachment = find(table, nodeid);
        if (attachment && ledger_passed(row) == 0)
            became_idle(table, attachment);
        drop_row_unless_used(table, row);
    }
    pthread_mutex_unlock(&table->lock);
}

struct stamp table_forwarding(struct table *table, const struct request *request, uint64_t changes)
{
    struct stamp stamp = {.nodeid = changes};
    uint64_t parents[MESSAGE_PARENTS_MAX];
    unsigned count = message_parents(request, parents);

    pthread_mutex_lock(&table->lock);
    for (unsigned i = 0; i < count; i++)
        drop_kept(table, parents[i]);
    if (changes)
        drop_kept(table, changes);
    struct attachment *attachment = changes ? find(table, changes) : NULL;
    if (attachment) {
        changed(table, attachment);
        attachment->changing++;
        stamp.serial = attachment->serial;
        if (request->header.opcode == FUSE_SETXATTR)
            attachment->backing.capability_free = false;
        attachment->backing.opens_writes = false; /* Python says anew whether it may be */
    }
    stamp.clock = table->clock;
    pthread_mutex_unlock(&table->lock);
    return stamp;
}

/* --- for replies --------------------------------------------------------------------------- */

void table_replied(struct table *table, const struct stamp *stamp)
{
    if (stamp->serial == 0)
        return;
    pthread_mutex_lock(&table->lock);
    struct attachment *attachment = find(table, stamp->nodeid);
    if (attachment && attachment->serial == stamp->serial)
        attachment->changing--;
    pthread_mutex_unlock(&table->lock);
}

struct amending {
    struct table *table;
    uint32_t opcode;
    const struct stamp *stamp;
};

static bool creates(uint32_t opcode)
{
    return opcode == FUSE_CREATE || opcode == FUSE_TMPFILE;
}

static bool believed(const struct amending *amending, const struct attachment *attachment)
{
    /* The reply to the change itself comes after the change; any other must not. */
    unsigned own = amending->stamp->serial == attachment->serial;
    if (attachment->changing != own)
        return false;
    if (attachment->changed_at <= amending->stamp->clock)
        return true;
    /* A file is attached while it is created, after its request and before its reply. */
    return creates(amending->opcode) && attachment->changed_at == attachment->attached_at;
}

static void amend(void *context, const struct attributes *found)
{
    const struct amending *amending = context;
    struct table *table = amending->table;
    uint64_t ino = shown_ino(table, found->nodeid);

    if (ino && found->entry_ino)
        *found->entry_ino = ino;
    if (found->attr == NULL)
        return;
    if (ino)
        found->attr->ino = ino;
    told_of(table, found->nodeid);
    struct attachment *attachment = find(table, found->nodeid);
    if (attachment == NULL)
        return;
    if (believed(amending, attachment)) {
        if (amending->stamp->serial == attachment->serial)
            changed(table, attachment); /* replies computed before this change come too late */
        attachment->attr = *found->attr;
        attachment->valid_s = *found->valid_s;
        attachment->valid_ns = *found->valid_ns;
        attachment->is_known = true;
    }
    if (attachment->backing.writable && mirror_backing(attachment, found->attr)) {
        *found->valid_s = 0;
        *found->valid_ns = creates(amending->opcode) ? CREATED_VALID_NS : 0;
    }
}

bool table_amend_attributes(struct table *table, uint32_t opcode, uint64_t nodeid,
                            const struct stamp *stamp, uint8_t *bytes, size_t size)
{
    struct amending amending = {table, opcode, stamp};
    pthread_mutex_lock(&table->lock);
    bool valid = message_attributes(opcode, nodeid, bytes, size, amend, &amending);
    pthread_mutex_unlock(&table->lock);
    return valid;
}

bool table_open(struct table *table, uint64_t nodeid, uint32_t flags, uint8_t *bytes, size_t size,
                struct abi_open_out *out, int *slot)
{
    pthread_mutex_lock(&table->lock);
    const struct attachment *attachment = find(table, nodeid);
    int32_t backing_id = attachment ? attachment->backing.id : 0;
    if (backing_id)
        message_amend_open(out, backing_id);
    enum ledger_kind kind = table_kind(out->fh, flags);
    *slot = count_open(table, nodeid, kind, backing_id, bytes, size);
    pthread_mutex_unlock(&table->lock);
    return *slot >= 0;
}

/* --- listings ------------------------------------------------------------------------------ */

void table_listed(struct table *table, uint64_t handle, const struct ledger_place *place)
{
    pthread_mutex_lock(&table->lock);
    ledger_listed(&table->ledger, handle, place);
    pthread_mutex_unlock(&table->lock);
}

void table_listing_closed(struct table *table, uint64_t handle)
{
    pthread_mutex_lock(&table->lock);
    ledger_end_stream(&table->ledger, handle);
    pthread_mutex_unlock(&table->lock);
}

int table_places(struct table *table, uint64_t handle, struct ledger_place places[2])
{
    int count = 0;
    pthread_mutex_lock(&table->lock);
    const struct ledger_stream *stream = ledger_find_stream(&table->ledger, handle);
    for (int i = 0; stream && i < 2; i++) {
        const struct ledger_place *place = &stream->places[i];
        if (place->position != 0 && place->length <= LEDGER_NAME_BYTES)
            places[count++] = *place;
    }
    pthread_mutex_unlock(&table->lock);
    return count;
}
