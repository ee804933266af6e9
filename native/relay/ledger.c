#define _GNU_SOURCE
#include "ledger.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

int ledger_create(void)
{
    int fd = memfd_create("agentfs-ledger", MFD_CLOEXEC);
    if (fd >= 0 && ftruncate(fd, sizeof(struct ledger_file)) != 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

/* --- rows ---------------------------------------------------------------------------------- */

static void push_row(struct ledger *ledger, struct ledger_row *row)
{
    row->next_free = ledger->free_row;
    ledger->free_row = (uint32_t)(row - ledger->file->rows) + 1;
}

struct ledger_row *ledger_take_row(struct ledger *ledger, uint64_t nodeid)
{
    struct ledger_file *file = ledger->file;
    struct ledger_row *row;

    if (ledger->free_row) {
        row = &file->rows[ledger->free_row - 1];
        ledger->free_row = row->next_free;
    } else if (file->row_end < LEDGER_ROWS_MAX) {
        row = &file->rows[file->row_end++];
    } else {
        return NULL;
    }
    *row = (struct ledger_row){0};
    atomic_store(&row->nodeid, nodeid);
    return row;
}

void ledger_free_row(struct ledger *ledger, struct ledger_row *row)
{
    atomic_store(&row->nodeid, 0);
    push_row(ledger, row);
}

uint32_t ledger_passed(const struct ledger_row *row)
{
    return row->opens[LEDGER_ANSWERED_READ] + row->opens[LEDGER_ANSWERED_WRITE] +
           row->opens[LEDGER_AMENDED_READ] + row->opens[LEDGER_AMENDED_WRITE];
}

bool ledger_row_in_use(const struct ledger_row *row)
{
    return row->ino || ledger_passed(row) || row->opens[LEDGER_PLAIN_READ] ||
           row->opens[LEDGER_PLAIN_WRITE];
}

/* --- counts and their replies -------------------------------------------------------------- */

static void set_reply(struct ledger_reply *reply, const void *bytes, size_t size)
{
    struct fuse_out_header header;
    memcpy(&header, bytes, sizeof header);
    atomic_store(&reply->unique, 0);
    memcpy(reply->bytes, bytes, size);
    reply->size = (uint32_t)size;
    atomic_store(&reply->unique, header.unique & ~ABI_UNIQUE_RESEND);
}

int ledger_count(struct ledger *ledger, struct ledger_row *row, enum ledger_kind kind, int change,
                 const void *reply, size_t size)
{
    int index = 0;
    while (index < LEDGER_SLOTS && atomic_load(&ledger->file->slots[index].state) != LEDGER_IDLE)
        index++;
    if (index == LEDGER_SLOTS || size < sizeof(struct fuse_out_header) || size > LEDGER_REPLY_BYTES)
        return -1;
    struct ledger_slot *slot = &ledger->file->slots[index];
    slot->row = (uint32_t)(row - ledger->file->rows);
    slot->kind = kind;
    slot->before = row->opens[kind];
    set_reply(&slot->reply, reply, size);
    atomic_store(&slot->state, LEDGER_COUNTING);
    row->opens[kind] += (uint32_t)change;
    atomic_store(&slot->state, LEDGER_COUNTED);
    return index;
}

void ledger_given(struct ledger *ledger, int slot)
{
    if (slot >= 0)
        atomic_store(&ledger->file->slots[slot].state, LEDGER_IDLE);
}

size_t ledger_find_reply(const struct ledger *ledger, uint64_t unique, uint8_t *bytes)
{
    for (int i = 0; i < LEDGER_REPLIES; i++) {
        const struct ledger_reply *reply = &ledger->file->replies[i];
        if (atomic_load(&reply->unique) != (unique & ~ABI_UNIQUE_RESEND))
            continue;
        memcpy(bytes, reply->bytes, reply->size);
        ((struct fuse_out_header *)(void *)bytes)->unique = unique;
        return reply->size;
    }
    return 0;
}

/* --- backing files ------------------------------------------------------------------------- */

struct backing_node {
    struct map_node node; /* first; key is the id */
    struct ledger_backing *backing;
};

static void release_node(struct map_node *node)
{
    free(node);
}

static bool index_backing(struct ledger *ledger, struct ledger_backing *backing, int32_t id)
{
    struct backing_node *node = malloc(sizeof *node);
    if (node == NULL)
        return false;
    node->backing = backing;
    map_insert(&ledger->backings, &node->node, (uint64_t)id);
    return true;
}

static void push_backing(struct ledger *ledger, struct ledger_backing *backing)
{
    backing->next_free = ledger->free_backing;
    ledger->free_backing = (uint32_t)(backing - ledger->file->backings) + 1;
}

bool ledger_add_backing(struct ledger *ledger, int32_t id, uint64_t device, uint64_t inode)
{
    struct ledger_file *file = ledger->file;
    struct ledger_backing *backing;

    if (ledger->free_backing == 0 && file->backing_end < LEDGER_BACKINGS_MAX)
        push_backing(ledger, &file->backings[file->backing_end++]);
    if (ledger->free_backing == 0)
        return false;
    backing = &file->backings[ledger->free_backing - 1];
    if (!index_backing(ledger, backing, id))
        return false;
    ledger->free_backing = backing->next_free;
    backing->device = device;
    backing->inode = inode;
    atomic_store(&backing->id, id);
    return true;
}

void ledger_remove_backing(struct ledger *ledger, int32_t id)
{
    struct backing_node *node = (void *)map_remove(&ledger->backings, (uint64_t)id);
    if (node) {
        atomic_store(&node->backing->id, 0);
        push_backing(ledger, node->backing);
        free(node);
    }
}

/* --- listings ------------------------------------------------------------------------------ */

static void push_stream(struct ledger *ledger, struct ledger_stream *stream)
{
    stream->next_free = ledger->free_stream;
    ledger->free_stream = (uint32_t)(stream - ledger->file->streams) + 1;
}

static struct ledger_stream *find_stream(const struct ledger *ledger, uint64_t handle)
{
    for (uint32_t i = 0; i < ledger->file->stream_end; i++) {
        if (atomic_load(&ledger->file->streams[i].handle) == handle)
            return &ledger->file->streams[i];
    }
    return NULL;
}

static struct ledger_stream *take_stream(struct ledger *ledger, uint64_t handle)
{
    struct ledger_file *file = ledger->file;
    struct ledger_stream *stream;

    if (ledger->free_stream) {
        stream = &file->streams[ledger->free_stream - 1];
        ledger->free_stream = stream->next_free;
    } else if (file->stream_end < LEDGER_STREAMS_MAX) {
        stream = &file->streams[file->stream_end++];
    } else {
        return NULL;
    }
    stream->places[0].position = stream->places[1].position = 0;
    atomic_store(&stream->handle, handle);
    return stream;
}

void ledger_listed(struct ledger *ledger, uint64_t handle, const struct ledger_place *place)
{
    struct ledger_stream *stream = find_stream(ledger, handle);
    if (stream == NULL)
        stream = take_stream(ledger, handle);
    if (stream == NULL)
        return;
    uint32_t oldest = !atomic_load(&stream->newest);
    stream->places[oldest] = *place;
    atomic_store(&stream->newest, oldest);
}

const struct ledger_stream *ledger_find_stream(const struct ledger *ledger, uint64_t handle)
{
    return find_stream(ledger, handle);
}

void ledger_end_stream(struct ledger *ledger, uint64_t handle)
{
    struct ledger_stream *stream = find_stream(ledger, handle);
    if (stream) {
        atomic_store(&stream->handle, 0);
        push_stream(ledger, stream);
    }
}

/* --- life ---------------------------------------------------------------------------------- */

void ledger_save_init(struct ledger_init *saved, const uint8_t *bytes, size_t size)
{
    if (size > sizeof saved->bytes)
        return;
    atomic_store(&saved->size, 0);
    memcpy(saved->bytes, bytes, size);
    atomic_store(&saved->size, (uint32_t)size);
}

bool ledger_is_inherited(const struct ledger *ledger)
{
    return ledger->file->generation > 1 && atomic_load(&ledger->file->init_reply.size) > 0;
}

/* Of each count that was being changed: as before, or with its reply kept for the next worker. */
static void settle_slots(struct ledger_file *file)
{
    for (int i = 0; i < LEDGER_SLOTS; i++) {
        struct ledger_slot *slot = &file->slots[i];
        uint32_t state = atomic_load(&slot->state);
        if (state == LEDGER_COUNTING)
            file->rows[slot->row].opens[slot->kind] = slot->before;
        if (state == LEDGER_COUNTED) {
            struct ledger_reply *kept = &file->replies[file->next_reply % LEDGER_REPLIES];
            set_reply(kept, slot->reply.bytes, slot->reply.size);
            file->next_reply++;
        }
        atomic_store(&slot->state, LEDGER_IDLE);
    }
}

/* False when out of memory. */
static bool find_free(struct ledger *ledger)
{
    struct ledger_file *file = ledger->file;
    bool is_whole = true;
    for (uint32_t i = file->row_end; i-- > 0;) {
        struct ledger_row *row = &file->rows[i];
        if (atomic_load(&row->nodeid) == 0 || !ledger_row_in_use(row))
            ledger_free_row(ledger, row);
    }
    for (uint32_t i = file->backing_end; i-- > 0;) {
        int32_t id = atomic_load(&file->backings[i].id);
        if (id == 0)
            push_backing(ledger, &file->backings[i]);
        else
            is_whole = index_backing(ledger, &file->backings[i], id) && is_whole;
    }
    for (uint32_t i = file->stream_end; i-- > 0;) {
        if (atomic_load(&file->streams[i].handle) == 0)
            push_stream(ledger, &file->streams[i]);
    }
    return is_whole;
}

static int take_over(struct ledger *ledger)
{
    struct ledger_file *file = ledger->file;
    if (file->layout != 0 && file->layout != LEDGER_LAYOUT)
        return EPROTO;
    file->layout = LEDGER_LAYOUT;
    file->generation++;
    settle_slots(file);
    return find_free(ledger) ? 0 : ENOMEM;
}

int ledger_open(struct ledger *ledger, int fd)
{
    int own = fd < 0 ? ledger_create() : -1;
    struct stat stat;
    int error = 0;

    *ledger = (struct ledger){0};
    if (fd < 0 && own < 0)
        return errno;
    if (!map_init(&ledger->backings)) {
        if (own >= 0)
            close(own);
        return ENOMEM;
    }
    fd = fd < 0 ? own : fd;
    void *file = MAP_FAILED;
    if (fstat(fd, &stat) != 0)
        error = errno;
    else if (stat.st_size != sizeof(struct ledger_file))
        error = EPROTO;
    else
        file = mmap(NULL, sizeof(struct ledger_file), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (error == 0 && file == MAP_FAILED)
        error = errno;
    if (own >= 0)
        close(own);
    if (error == 0) {
        ledger->file = file;
        error = take_over(ledger);
    }
    if (error)
        ledger_close(ledger);
    return error;
}

void ledger_close(struct ledger *ledger)
{
    if (ledger->file)
        munmap(ledger->file, sizeof(struct ledger_file));
    ledger->file = NULL;
    map_free(&ledger->backings, release_node);
}
