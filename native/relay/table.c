#define _GNU_SOURCE
#include "table.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

struct attachment {
    struct map_node node; /* first; key is the nodeid */
    uint64_t serial;      /* never comes again, unlike the nodeid */
    struct backing backing;
    int64_t opens;
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

struct ino {
    struct map_node node; /* first; key is the nodeid */
    uint64_t ino;
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

bool table_init(struct table *table, int event_fd)
{
    *table = (struct table){.lock = PTHREAD_MUTEX_INITIALIZER, .next_serial = 1};
    table->event_fd = event_fd;
    if (!map_init(&table->attachments))
        return false;
    if (!map_init(&table->inos))
        goto no_inos;
    if (!map_init(&table->kept))
        goto no_kept;
    return true;

no_kept:
    map_free(&table->inos, NULL);
no_inos:
    map_free(&table->attachments, NULL);
    return false;
}

void table_free(struct table *table)
{
    map_free(&table->attachments, release_attachment);
    map_free(&table->inos, release_node);
    map_free(&table->kept, release_node);
    pthread_mutex_destroy(&table->lock);
}

/* --- opens and events, lock held ----------------------------------------------------------- */

static void opened(struct attachment *attachment)
{
    attachment->opens++;
}

static void closed(struct table *table, struct attachment *attachment, enum close_told told)
{
    if (attachment->opens == 0 || --attachment->opens > 0 || attachment->is_idle)
        return;
    if (told == CLOSE_FORWARDED)
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
    if (attachment && attachment->opens > 0 && attachment->backing.id != backing->id)
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
    bool may = attachment == NULL || attachment->opens == 0;
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
    struct attachment *attachment = find(table, nodeid);
    int64_t opens = attachment ? attachment->opens : 0;
    pthread_mutex_unlock(&table->lock);
    return opens;
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
    const struct ino *ino = (const void *)map_find(&table->inos, nodeid);
    struct fuse_attr_out out = *attributes;
    struct attachment *attachment = find(table, nodeid);

    if (ino)
        out.attr.ino = ino->ino;
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
    struct ino *fresh = malloc(sizeof *fresh);
    if (fresh == NULL)
        return false;
    pthread_mutex_lock(&table->lock);
    struct ino *ino = (struct ino *)(void *)map_find(&table->inos, nodeid);
    if (ino == NULL) {
        ino = fresh;
        fresh = NULL;
        map_insert(&table->inos, &ino->node, nodeid);
    }
    ino->ino = number;
    drop_kept(table, nodeid);
    struct attachment *attachment = find(table, nodeid);
    if (attachment)
        changed(table, attachment);
    pthread_mutex_unlock(&table->lock);
    free(fresh);
    return true;
}

void table_forget_ino(struct table *table, uint64_t nodeid)
{
    pthread_mutex_lock(&table->lock);
    struct map_node *node = map_remove(&table->inos, nodeid);
    drop_kept(table, nodeid);
    struct attachment *attachment = find(table, nodeid);
    if (attachment)
        changed(table, attachment);
    pthread_mutex_unlock(&table->lock);
    free(node);
}

bool table_next_event(struct table *table, uint64_t *nodeid, bool *last)
{
    pthread_mutex_lock(&table->lock);
    struct attachment *attachment = table->idle;
    if (attachment) {
        unlink_idle(table, attachment);
        *nodeid = attachment->node.key;
        *last = attachment->opens == 0;
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

bool table_answer_open(struct table *table, uint64_t nodeid, uint32_t flags, int64_t now_ns,
                       int32_t *backing_id)
{
    if ((flags & O_ACCMODE) != O_RDONLY || flags & O_TRUNC || nodeid & HANDLE_OURS)
        return false;
    pthread_mutex_lock(&table->lock);
    struct attachment *attachment = find(table, nodeid);
    bool may = attachment && now_ns < attachment->backing.fresh_until_ns;
    if (may) {
        opened(attachment);
        *backing_id = attachment->backing.id;
    }
    pthread_mutex_unlock(&table->lock);
    return may;
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

void table_closed(struct table *table, uint64_t nodeid, enum close_told told)
{
    pthread_mutex_lock(&table->lock);
    struct attachment *attachment = find(table, nodeid);
    if (attachment)
        closed(table, attachment, told);
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

static bool believed(const struct amending *amending, const struct attachment *attachment)
{
    /* The reply to the change itself comes after the change; any other must not. */
    unsigned own = amending->stamp->serial == attachment->serial;
    if (attachment->changing != own)
        return false;
    if (attachment->changed_at <= amending->stamp->clock)
        return true;
    /* A file is attached while it is created, after its request and before its reply. */
    bool creates = amending->opcode == FUSE_CREATE || amending->opcode == FUSE_TMPFILE;
    return creates && attachment->changed_at == attachment->attached_at;
}

static void amend(void *context, const struct attributes *found)
{
    const struct amending *amending = context;
    struct table *table = amending->table;
    const struct ino *ino = (const void *)map_find(&table->inos, found->nodeid);

    if (ino && found->entry_ino)
        *found->entry_ino = ino->ino;
    if (found->attr == NULL)
        return;
    if (ino)
        found->attr->ino = ino->ino;
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
        *found->valid_ns = 0;
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

bool table_amend_open(struct table *table, uint64_t nodeid, struct abi_open_out *out)
{
    pthread_mutex_lock(&table->lock);
    struct attachment *attachment = find(table, nodeid);
    if (attachment) {
        opened(attachment);
        message_amend_open(out, attachment->backing.id);
    }
    pthread_mutex_unlock(&table->lock);
    return attachment != NULL;
}
