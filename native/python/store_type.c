/*
 * agentfs.chunks.Store. Each method takes its buffers, drops the GIL, makes one call into
 * native/chunkstore, takes the GIL and gives the buffers back.
 */
#include "store_type.h"

#include <errno.h>
#include <stdlib.h>
#include <zstd.h>

#include "pace.h"
#include "store.h"

/* --- errors ------------------------------------------------------------------------------------
 */

/* CorruptBlock and NewerFormat carry where and why as attributes. */
static void raise_damage(PyObject *class, enum status status, const struct evidence *evidence)
{
    const char *reason = status_reason(status);
    PyObject *error = NULL;
    PyObject *segment = PyLong_FromUnsignedLongLong(evidence->segment);
    PyObject *offset = PyLong_FromUnsignedLongLong(evidence->offset);
    PyObject *text = PyUnicode_FromString(reason);

    if (segment == NULL || offset == NULL || text == NULL)
        goto done;
    PyObject *message = PyUnicode_FromFormat("segment %S, offset %S: %U", segment, offset, text);
    if (message == NULL)
        goto done;
    error = PyObject_CallOneArg(class, message);
    Py_DECREF(message);
    if (error && PyObject_SetAttrString(error, "segment", segment) == 0 &&
        PyObject_SetAttrString(error, "offset_bytes", offset) == 0 &&
        PyObject_SetAttrString(error, "reason", text) == 0)
        PyErr_SetObject(class, error);

done:
    Py_XDECREF(error);
    Py_XDECREF(text);
    Py_XDECREF(offset);
    Py_XDECREF(segment);
}

/* filename may be NULL. */
static void raise_status(struct module_state *state, enum status status,
                         const struct evidence *evidence, PyObject *filename)
{
    switch (status) {
    case STATUS_ERRNO:
        errno = evidence->error;
        PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, filename);
        break;
    case STATUS_NO_MEMORY:
        PyErr_NoMemory();
        break;
    case STATUS_STOPPED:
        errno = ECANCELED;
        PyErr_SetFromErrno(PyExc_OSError);
        break;
    case STATUS_NEWER:
        raise_damage(state->newer_format, status, evidence);
        break;
    default:
        raise_damage(state->corrupt_block, status, evidence);
        break;
    }
}

/* --- life --------------------------------------------------------------------------------------
 */

struct store_object {
    PyObject_HEAD struct store *store; /* guarded by the GIL; owned; NULL when closed */
    Py_ssize_t calls;                  /* guarded by the GIL: under way in store without the GIL */
    bool closing;                      /* guarded by the GIL: the last call closes the store */
};

static void close_store(struct store_object *self)
{
    struct store *store = self->store;
    self->store = NULL;
    if (store == NULL)
        return;
    Py_BEGIN_ALLOW_THREADS
        store_close(store);
    Py_END_ALLOW_THREADS
}

/* One call into the store: begin, set status, end. The GIL is dropped in between. */
struct call {
    struct store *store;
    PyThreadState *thread;
    enum status status;
    struct evidence evidence;
};

/* False with ValueError when closed; else the store stays open until the end. */
static bool call_begin(struct store_object *self, struct call *call)
{
    if (self->store == NULL || self->closing) {
        PyErr_SetString(PyExc_ValueError, "the store is closed");
        return false;
    }
    self->calls++;
    call->store = self->store;
    call->status = STATUS_OK;
    call->thread = PyEval_SaveThread();
    return true;
}

/* Whether it went well; STATUS_NOT_CACHED alone is no exception. */
static bool call_end(struct store_object *self, struct call *call)
{
    PyEval_RestoreThread(call->thread);
    self->calls--;
    if (self->closing && self->calls == 0)
        close_store(self);
    if (call->status != STATUS_OK && call->status != STATUS_NOT_CACHED)
        raise_status(PyType_GetModuleState(Py_TYPE(self)), call->status, &call->evidence, NULL);
    return call->status == STATUS_OK;
}

static int store_init(struct store_object *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"directory", "cache_bytes", "segment_bytes", "read_only", NULL};
    PyObject *directory;
    Py_ssize_t cache_bytes = 32 << 20;
    Py_ssize_t segment_bytes = 32 << 20;
    int read_only = 0;
    struct evidence evidence;
    struct store *store;
    enum status status;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O&|$nnp:Store", names, PyUnicode_FSConverter,
                                     &directory, &cache_bytes, &segment_bytes, &read_only))
        return -1;
    if (self->store) {
        PyErr_SetString(PyExc_RuntimeError, "the store is open already");
        goto fail;
    }
    if (cache_bytes < 0 || segment_bytes <= 0) {
        PyErr_SetString(PyExc_ValueError, "cache_bytes must be >= 0 and segment_bytes > 0");
        goto fail;
    }
    struct store_options options = {
        .cache_bytes = (uint64_t)cache_bytes,
        .segment_bytes = (uint64_t)segment_bytes,
        .read_only = read_only,
    };
    Py_BEGIN_ALLOW_THREADS
        status = store_open(PyBytes_AS_STRING(directory), &options, &evidence, &store);
    Py_END_ALLOW_THREADS
    if (status != STATUS_OK) {
        raise_status(PyType_GetModuleState(Py_TYPE(self)), status, &evidence, directory);
        goto fail;
    }
    self->store = store;
    self->closing = false;
    Py_DECREF(directory);
    return 0;

fail:
    Py_DECREF(directory);
    return -1;
}

static void store_dealloc(struct store_object *self)
{
    PyTypeObject *type = Py_TYPE(self);
    close_store(self); /* each call holds a reference, so none is under way */
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *store_close_method(struct store_object *self, PyObject *unused)
{
    (void)unused;
    self->closing = true;
    if (self->calls == 0)
        close_store(self);
    Py_RETURN_NONE;
}

/* --- blocks ------------------------------------------------------------------------------------
 */

/* Buffers of a sequence, held while the GIL is dropped. */
struct held_chunks {
    Py_ssize_t count;
    Py_buffer *buffers;         /* owned */
    struct store_chunk *chunks; /* owned */
};

static void held_release(struct held_chunks *held)
{
    for (Py_ssize_t i = 0; i < held->count; i++)
        PyBuffer_Release(&held->buffers[i]);
    PyMem_Free(held->buffers);
    PyMem_Free(held->chunks);
}

static bool held_acquire(PyObject *sequence, struct held_chunks *held)
{
    *held = (struct held_chunks){0};
    /* A tuple of our own: acquiring a buffer may run code that changes a list. */
    PyObject *items = PySequence_Tuple(sequence);
    if (items == NULL)
        return false;
    Py_ssize_t count = PyTuple_GET_SIZE(items);
    if (count == 0) {
        PyErr_SetString(PyExc_ValueError, "a block needs at least one chunk");
        goto fail;
    }
    held->buffers = PyMem_New(Py_buffer, count);
    held->chunks = PyMem_New(struct store_chunk, count);
    if (held->buffers == NULL || held->chunks == NULL) {
        PyErr_NoMemory();
        goto fail;
    }
    Py_ssize_t total = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_buffer *buffer = &held->buffers[i];
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(items, i), buffer, PyBUF_SIMPLE) != 0)
            goto fail;
        held->count++;
        if (buffer->len == 0) {
            PyErr_SetString(PyExc_ValueError, "a chunk is empty");
            goto fail;
        }
        if (buffer->len > BLOCK_RAW_MAX - total) {
            PyErr_Format(PyExc_ValueError, "a block has at most %d raw bytes", BLOCK_RAW_MAX);
            goto fail;
        }
        total += buffer->len;
        held->chunks[i] = (struct store_chunk){buffer->buf, (size_t)buffer->len};
    }
    Py_DECREF(items);
    return true;

fail:
    held_release(held);
    Py_DECREF(items);
    return false;
}

/* dictionary is NULL for background work, which uses none. */
static PyObject *append_chunks(struct store_object *self, PyObject *sequence, int level,
                               const unsigned int *dictionary)
{
    struct held_chunks held;
    struct store_place place;
    struct call call;

    if (level < ZSTD_minCLevel() || level > ZSTD_maxCLevel())
        return PyErr_Format(PyExc_ValueError, "level must be %d .. %d", ZSTD_minCLevel(),
                            ZSTD_maxCLevel());
    if (!held_acquire(sequence, &held))
        return NULL;
    bool is_done = call_begin(self, &call);
    if (is_done) {
        if (dictionary)
            call.status = store_put(call.store, held.chunks, (size_t)held.count, level, *dictionary,
                                    &call.evidence, &place);
        else
            call.status = store_pack(call.store, held.chunks, (size_t)held.count, level,
                                     &call.evidence, &place);
        is_done = call_end(self, &call);
    }
    held_release(&held);
    if (!is_done)
        return NULL;
    return Py_BuildValue("KKI", (unsigned long long)place.segment, (unsigned long long)place.offset,
                         (unsigned int)place.stored_bytes);
}

static PyObject *store_put_method(struct store_object *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"chunks", "level", "dictionary", NULL};
    PyObject *sequence;
    unsigned int dictionary = 0;
    int level;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "Oi|I:put", names, &sequence, &level,
                                     &dictionary))
        return NULL;
    return append_chunks(self, sequence, level, &dictionary);
}

static PyObject *store_pack_method(struct store_object *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"chunks", "level", NULL};
    PyObject *sequence;
    int level;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "Oi:pack", names, &sequence, &level))
        return NULL;
    return append_chunks(self, sequence, level, NULL);
}

static PyObject *store_set_pace_method(struct store_object *self, PyObject *arg)
{
    long permille = PyLong_AsLong(arg);
    if (permille == -1 && PyErr_Occurred())
        return NULL;
    if (permille < PACE_STOP || permille > PACE_FULL)
        return PyErr_Format(PyExc_ValueError, "a pace is %d .. %d", PACE_STOP, PACE_FULL);
    struct call call;
    if (!call_begin(self, &call))
        return NULL;
    store_set_pace(call.store, (int)permille);
    return none_when(call_end(self, &call));
}

/* PyMem_Free() it. NULL with an exception, or the pieces, their count and the sum of their lengths.
 */
static struct store_piece *parse_pieces(PyObject *sequence, size_t *count, Py_ssize_t *total)
{
    PyObject *items = PySequence_Tuple(sequence);
    if (items == NULL)
        return NULL;
    *count = (size_t)PyTuple_GET_SIZE(items);
    *total = 0;
    struct store_piece *pieces = PyMem_New(struct store_piece, *count ? *count : 1);
    if (pieces == NULL) {
        PyErr_NoMemory();
        goto fail;
    }
    for (size_t i = 0; i < *count; i++) {
        long long field[4];
        PyObject *item = PyTuple_GET_ITEM(items, (Py_ssize_t)i);
        if (!PyTuple_Check(item)) {
            PyErr_SetString(PyExc_TypeError, "a piece is (segment, offset, start, length)");
            goto fail;
        }
        if (!PyArg_ParseTuple(item, "LLLL;a piece is (segment, offset, start, length)", &field[0],
                              &field[1], &field[2], &field[3]))
            goto fail;
        if (field[0] < 0 || field[1] < 0 || field[2] < 0 || field[3] < 0 ||
            field[2] > BLOCK_RAW_MAX || field[3] > BLOCK_RAW_MAX ||
            *total > PY_SSIZE_T_MAX - (Py_ssize_t)field[3]) {
            PyErr_SetString(PyExc_ValueError, "a piece is outside of any possible block");
            goto fail;
        }
        pieces[i] = (struct store_piece){(uint64_t)field[0], (uint64_t)field[1], (uint32_t)field[2],
                                         (uint32_t)field[3]};
        *total += (Py_ssize_t)field[3];
    }
    Py_DECREF(items);
    return pieces;

fail:
    PyMem_Free(pieces);
    Py_DECREF(items);
    return NULL;
}

static PyObject *store_get_method(struct store_object *self, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"", "cached_only", "whole_file", NULL};
    PyObject *sequence;
    int cached_only = 0;
    int whole_file = 0;
    struct call call;
    size_t count;
    Py_ssize_t total;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O|$pp:get", names, &sequence, &cached_only,
                                     &whole_file))
        return NULL;
    struct store_piece *pieces = parse_pieces(sequence, &count, &total);
    if (pieces == NULL)
        return NULL;
    PyObject *result = PyBytes_FromStringAndSize(NULL, total);
    uint8_t *into = result ? (uint8_t *)PyBytes_AS_STRING(result) : NULL;
    if (result && !call_begin(self, &call)) {
        Py_CLEAR(result);
    } else if (result) {
        enum store_reading reading = cached_only  ? STORE_READ_CACHED
                                     : whole_file ? STORE_READ_WHOLE_FILE
                                                  : STORE_READ;
        call.status = store_get(call.store, pieces, count, reading, &call.evidence, into);
        if (!call_end(self, &call))
            Py_SETREF(result, call.status == STATUS_NOT_CACHED ? Py_NewRef(Py_None) : NULL);
    }
    PyMem_Free(pieces);
    return result;
}

static PyObject *store_sync_method(struct store_object *self, PyObject *unused)
{
    struct call call;

    (void)unused;
    if (!call_begin(self, &call))
        return NULL;
    call.status = store_sync(call.store, &call.evidence);
    return none_when(call_end(self, &call));
}

/* --- segments ----------------------------------------------------------------------------------
 */

/* False with an exception. */
static bool parse_segment(PyObject *arg, uint64_t *segment)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(arg);
    if (number == (unsigned long long)-1 && PyErr_Occurred())
        return false;
    *segment = number;
    return true;
}

struct block_row {
    uint64_t offset;
    uint32_t raw_bytes;
    uint32_t stored_bytes;
    uint32_t chunks;
    uint32_t dictionary;
};

struct block_list {
    struct block_row *rows; /* owned; PyMem_RawFree(), as it grows without the GIL */
    size_t used;
    size_t room;
};

static enum status collect_block(void *context, uint64_t offset, const struct block_header *header,
                                 const uint8_t *payload)
{
    struct block_list *list = context;

    (void)payload;
    if (list->used == list->room) {
        size_t room = list->room ? 2 * list->room : 64;
        struct block_row *grown = PyMem_RawRealloc(list->rows, room * sizeof *grown);
        if (grown == NULL)
            return STATUS_NO_MEMORY;
        list->rows = grown;
        list->room = room;
    }
    list->rows[list->used++] =
        (struct block_row){offset, header->raw_bytes, BLOCK_HEADER_BYTES + header->stored_bytes,
                           header->chunks, header->dictionary};
    return STATUS_OK;
}

static PyObject *list_of_blocks(const struct block_list *list)
{
    PyObject *result = PyList_New(0);
    for (size_t i = 0; result && i < list->used; i++) {
        const struct block_row *row = &list->rows[i];
        if (!append(result,
                    Py_BuildValue("KIIII", (unsigned long long)row->offset,
                                  (unsigned int)row->raw_bytes, (unsigned int)row->stored_bytes,
                                  (unsigned int)row->chunks, (unsigned int)row->dictionary)))
            Py_CLEAR(result);
    }
    return result;
}

static PyObject *store_blocks_method(struct store_object *self, PyObject *arg)
{
    struct block_list list = {0};
    struct call call;
    uint64_t segment;

    if (!parse_segment(arg, &segment) || !call_begin(self, &call))
        return NULL;
    call.status = store_walk(call.store, segment, collect_block, &list, &call.evidence);
    PyObject *result = call_end(self, &call) ? list_of_blocks(&list) : NULL;
    PyMem_RawFree(list.rows);
    return result;
}

static PyObject *store_verify_method(struct store_object *self, PyObject *arg)
{
    struct call call;
    uint64_t segment;
    uint64_t blocks;

    if (!parse_segment(arg, &segment) || !call_begin(self, &call))
        return NULL;
    call.status = store_verify(call.store, segment, &call.evidence, &blocks);
    return call_end(self, &call) ? PyLong_FromUnsignedLongLong(blocks) : NULL;
}

static PyObject *store_segments_method(struct store_object *self, PyObject *unused)
{
    struct store_segment *segments;
    struct call call;
    size_t count;

    (void)unused;
    if (!call_begin(self, &call))
        return NULL;
    call.status = store_segments(call.store, &call.evidence, &segments, &count);
    if (!call_end(self, &call))
        return NULL;
    PyObject *result = PyList_New(0);
    for (size_t i = 0; result && i < count; i++) {
        if (!append(result, Py_BuildValue("KK", (unsigned long long)segments[i].number,
                                          (unsigned long long)segments[i].file_bytes)))
            Py_CLEAR(result);
    }
    free(segments);
    return result;
}

static PyObject *store_remove_method(struct store_object *self, PyObject *arg)
{
    struct call call;
    uint64_t segment;

    if (!parse_segment(arg, &segment) || !call_begin(self, &call))
        return NULL;
    call.status = store_remove(call.store, segment, &call.evidence);
    return none_when(call_end(self, &call));
}

static PyObject *store_roll_method(struct store_object *self, PyObject *unused)
{
    struct call call;
    uint64_t segment;

    (void)unused;
    if (!call_begin(self, &call))
        return NULL;
    call.status = store_roll(call.store, &call.evidence, &segment);
    return call_end(self, &call) ? PyLong_FromUnsignedLongLong(segment) : NULL;
}

/* --- dictionaries ------------------------------------------------------------------------------
 */

static PyObject *store_dictionaries_method(struct store_object *self, PyObject *unused)
{
    struct dictionary_facts *list;
    struct call call;
    size_t count;

    (void)unused;
    if (!call_begin(self, &call))
        return NULL;
    call.status = store_dictionaries(call.store, &call.evidence, &list, &count);
    if (!call_end(self, &call))
        return NULL;
    PyObject *result = PyList_New(0);
    for (size_t i = 0; result && i < count; i++) {
        const struct dictionary_facts *one = &list[i];
        if (!append(result, Py_BuildValue("IIIK", (unsigned int)one->number,
                                          (unsigned int)one->kind, (unsigned int)one->good_copies,
                                          (unsigned long long)one->file_bytes)))
            Py_CLEAR(result);
    }
    free(list);
    return result;
}

static PyObject *store_dictionary_method(struct store_object *self, PyObject *args)
{
    unsigned int number;
    uint8_t *bytes;
    size_t size;
    struct call call;

    if (!PyArg_ParseTuple(args, "I:dictionary", &number) || !call_begin(self, &call))
        return NULL;
    call.status = store_dictionary(call.store, number, &call.evidence, &bytes, &size);
    if (!call_end(self, &call))
        return NULL;
    PyObject *result = PyBytes_FromStringAndSize((const char *)bytes, (Py_ssize_t)size);
    free(bytes);
    return result;
}

static PyObject *store_add_dictionary_method(struct store_object *self, PyObject *args)
{
    unsigned char kind;
    uint32_t number;
    Py_buffer bytes;
    struct call call;

    if (!PyArg_ParseTuple(args, "by*:add_dictionary", &kind, &bytes))
        return NULL;
    bool is_done = call_begin(self, &call);
    if (is_done) {
        call.status = store_add_dictionary(call.store, kind, bytes.buf, (size_t)bytes.len,
                                           &call.evidence, &number);
        is_done = call_end(self, &call);
    }
    PyBuffer_Release(&bytes);
    return is_done ? PyLong_FromUnsignedLong(number) : NULL;
}

static PyObject *store_remove_dictionary_method(struct store_object *self, PyObject *args)
{
    unsigned int number;
    struct call call;

    if (!PyArg_ParseTuple(args, "I:remove_dictionary", &number) || !call_begin(self, &call))
        return NULL;
    call.status = store_remove_dictionary(call.store, number, &call.evidence);
    return none_when(call_end(self, &call));
}

static PyObject *do_to(struct store_object *self, void (*act)(struct store *store))
{
    struct call call;

    if (!call_begin(self, &call))
        return NULL;
    act(call.store);
    return none_when(call_end(self, &call));
}

static PyObject *store_drop_cache_method(struct store_object *self, PyObject *args)
{
    PyObject *sequence = NULL;
    struct call call;
    size_t count;
    Py_ssize_t total;

    if (!PyArg_ParseTuple(args, "|O:drop_cache", &sequence))
        return NULL;
    if (sequence == NULL)
        return do_to(self, store_drop_cache);
    struct store_piece *pieces = parse_pieces(sequence, &count, &total);
    if (pieces == NULL)
        return NULL;
    bool is_done = call_begin(self, &call);
    if (is_done) {
        store_drop_pieces(call.store, pieces, count);
        is_done = call_end(self, &call);
    }
    PyMem_Free(pieces);
    return none_when(is_done);
}

static PyObject *store_give_back_method(struct store_object *self, PyObject *unused)
{
    (void)unused;
    return do_to(self, store_give_back);
}

static PyObject *store_limit_cache_method(struct store_object *self, PyObject *limit)
{
    struct call call;
    unsigned long long cache_bytes = PyLong_AsUnsignedLongLong(limit);

    if (PyErr_Occurred() || !call_begin(self, &call))
        return NULL;
    store_limit_cache(call.store, cache_bytes);
    return none_when(call_end(self, &call));
}

static PyObject *store_stats_method(struct store_object *self, PyObject *unused)
{
    struct store_stats stats;
    struct call call;

    (void)unused;
    if (!call_begin(self, &call))
        return NULL;
    store_stats(call.store, &stats);
    if (!call_end(self, &call))
        return NULL;
    return Py_BuildValue(
        "{sKsKsKsKsKsKsK}", "cache_hits", (unsigned long long)stats.cache_hits, "cache_misses",
        (unsigned long long)stats.cache_misses, "cache_bytes",
        (unsigned long long)stats.cache_bytes, "bytes_put", (unsigned long long)stats.bytes_put,
        "raw_bytes_put", (unsigned long long)stats.raw_bytes_put, "bytes_read",
        (unsigned long long)stats.bytes_read, "blocks_put", (unsigned long long)stats.blocks_put);
}

/* --- what help() shows -------------------------------------------------------------------------
 */

PyDoc_STRVAR(
    store_doc,
    "Store(directory, *, cache_bytes=33554432, segment_bytes=33554432, read_only=False)\n--\n\n"
    "A directory of segments: blocks of chunks go in at the end and come out by place.\n\n"
    "Every method may be called from several threads at once and drops the GIL while it works. A\n"
    "closed store raises ValueError. Damage raises CorruptBlock, a format from the future\n"
    "NewerFormat, and a failed system call OSError; a block or segment that is not there is\n"
    "FileNotFoundError. The store does not sync by itself, not even when closed.\n\n"
    ":param directory: must exist; one writer at a time, a second one gets BlockingIOError\n"
    ":param cache_bytes: decompressed blocks to keep; those in use come on top\n"
    ":param segment_bytes: no segment grows beyond it, unless by its only block\n"
    ":param read_only: takes no lock; what writes gets EROFS. Beside a writer, blocks() and "
    "verify()\n"
    "    of the last segment may meet a block that is just being written and call it truncated");

PyDoc_STRVAR(
    put_doc,
    "put($self, /, chunks, level, dictionary=0)\n--\n\n"
    "Append one block of *chunks*, one behind the other.\n\n"
    "Returns (segment, offset of the block, bytes the segment grew by). The block can be read at "
    "once\n"
    "but is not durable before a later sync(). When writing fails the segment is as it was "
    "before.\n\n"
    ":param chunks: buffers, none empty, at most BLOCK_RAW_MAX bytes together\n"
    ":param level: of zstd; 0 stores as is, as does every level when it would not shrink by 1/32\n"
    ":param dictionary: number of one to compress with, if it can be had; 0: none");

PyDoc_STRVAR(
    pack_doc,
    "pack($self, /, chunks, level)\n--\n\n"
    "put() as background work: no faster than set_pace() allows.\n\n"
    "When told to stop it raises OSError with ECANCELED within 100 ms, and nothing is appended.");

PyDoc_STRVAR(
    set_pace_doc,
    "set_pace($self, permille, /)\n--\n\n"
    "What each thread in pack() may take of a core, obeyed within 50 ms: 1000 is all (and so at\n"
    "first), 0 is to wait, -1 to give up.");

PyDoc_STRVAR(
    get_doc,
    "get($self, pieces, /, *, cached_only=False, whole_file=False)\n--\n\n"
    "The concatenated bytes of *pieces*: (segment, offset of the block, start in its raw bytes,\n"
    "length). Segment 0 stands for zeros. Each block is looked for in the cache once. With\n"
    "*cached_only* nothing is read: None if a block is not in the cache. With *whole_file* a "
    "block\n"
    "of which little is wanted is decompressed as far as that, and not kept.\n\n"
    "A piece that reaches beyond its block raises CorruptBlock.");

PyDoc_STRVAR(
    sync_doc,
    "sync($self, /)\n--\n\n"
    "Make durable every block whose put() returned before this call.\n\n"
    "One fdatasync per segment appended to since the last time; concurrent callers share it. Once "
    "it has\n"
    "failed, nobody knows what the disk holds: each later sync() raises the same OSError until\n"
    "the segment is removed or the store reopened.");

PyDoc_STRVAR(blocks_doc, "blocks($self, segment, /)\n--\n\n"
                         "(offset, raw bytes, stored bytes with header, chunks, dictionary or 0) "
                         "of each block, from the\n"
                         "headers alone.");

PyDoc_STRVAR(
    verify_doc,
    "verify($self, segment, /)\n--\n\n"
    "Read, check and decompress every block, past the cache; returns how many there are.\n\n"
    "Raises CorruptBlock at the first bad one. A torn tail left by a crash is damage to this "
    "method:\n"
    "whether anyone refers to it is known to the index.");

PyDoc_STRVAR(segments_doc, "segments($self, /)\n--\n\n"
                           "(segment, bytes of its file) of each, in order.");

PyDoc_STRVAR(
    remove_doc,
    "remove($self, segment, /)\n--\n\n"
    "Delete a segment. A get() in the middle of it goes on undisturbed, later ones raise\n"
    "FileNotFoundError. Its number never comes again: the last segment is removed only behind a\n"
    "new one, which needs a free block on the disk. The next sync() makes the removal durable.");

PyDoc_STRVAR(
    roll_doc,
    "roll($self, /)\n--\n\n"
    "End the segment being appended to. Returns the number of the one the next put() starts.");

PyDoc_STRVAR(
    dictionaries_doc,
    "dictionaries($self, /)\n--\n\n"
    "(number, kind, good copies, bytes of the files) of each dictionary, in order; both copies "
    "are\n"
    "read. A store that may write mends a damaged copy from the other one; of 0 good copies the\n"
    "kind means nothing, and get() of blocks that need it raises CorruptBlock.");

PyDoc_STRVAR(dictionary_doc, "dictionary($self, number, /)\n--\n\n"
                             "The bytes of a dictionary, as train_dictionary() made it.");

PyDoc_STRVAR(add_dictionary_doc,
             "add_dictionary($self, kind, bytes, /)\n--\n\n"
             "Keep two copies of a dictionary of train_dictionary(), durably; its number.\n\n"
             ":param kind: 0 to 255, what it is for");

PyDoc_STRVAR(
    remove_dictionary_doc,
    "remove_dictionary($self, number, /)\n--\n\n"
    "Delete a dictionary. No block may refer to it, and no put() may be about to. The highest\n"
    "stays, with EBUSY: a number never comes again.");

PyDoc_STRVAR(drop_cache_doc, "drop_cache($self, pieces=..., /)\n--\n\n"
                             "Forget the decompressed blocks of *pieces*, as get() takes them, or "
                             "all.");

PyDoc_STRVAR(give_back_doc, "give_back($self, /)\n--\n\n"
                            "Free what is kept for those who compress and read next.");

PyDoc_STRVAR(limit_cache_doc,
             "limit_cache($self, cache_bytes, /)\n--\n\n"
             "Keep so many bytes of decompressed blocks from now on; the oldest of the others go.");

PyDoc_STRVAR(stats_doc, "stats($self, /)\n--\n\n"
                        "Counters since opening: cache_hits, cache_misses, blocks_put, bytes_put "
                        "(stored, with headers),\n"
                        "raw_bytes_put, bytes_read (stored, cache misses only); and cache_bytes, "
                        "raw bytes cached now.");

PyDoc_STRVAR(close_doc,
             "close($self, /)\n--\n\n"
             "Close; calls under way finish first. Does not sync. Closing twice is fine.");

/* --- the type ----------------------------------------------------------------------------------
 */

static PyMethodDef store_methods[] = {
    {"put", KEYWORDS(store_put_method), put_doc},
    {"pack", KEYWORDS(store_pack_method), pack_doc},
    {"set_pace", (PyCFunction)store_set_pace_method, METH_O, set_pace_doc},
    {"get", KEYWORDS(store_get_method), get_doc},
    {"sync", (PyCFunction)store_sync_method, METH_NOARGS, sync_doc},
    {"blocks", (PyCFunction)store_blocks_method, METH_O, blocks_doc},
    {"verify", (PyCFunction)store_verify_method, METH_O, verify_doc},
    {"segments", (PyCFunction)store_segments_method, METH_NOARGS, segments_doc},
    {"remove", (PyCFunction)store_remove_method, METH_O, remove_doc},
    {"roll", (PyCFunction)store_roll_method, METH_NOARGS, roll_doc},
    {"dictionaries", (PyCFunction)store_dictionaries_method, METH_NOARGS, dictionaries_doc},
    {"dictionary", (PyCFunction)store_dictionary_method, METH_VARARGS, dictionary_doc},
    {"add_dictionary", (PyCFunction)store_add_dictionary_method, METH_VARARGS, add_dictionary_doc},
    {"remove_dictionary", (PyCFunction)store_remove_dictionary_method, METH_VARARGS,
     remove_dictionary_doc},
    {"drop_cache", (PyCFunction)store_drop_cache_method, METH_VARARGS, drop_cache_doc},
    {"give_back", (PyCFunction)store_give_back_method, METH_NOARGS, give_back_doc},
    {"limit_cache", (PyCFunction)store_limit_cache_method, METH_O, limit_cache_doc},
    {"stats", (PyCFunction)store_stats_method, METH_NOARGS, stats_doc},
    {"close", (PyCFunction)store_close_method, METH_NOARGS, close_doc},
    {0},
};

static PyType_Slot store_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)store_doc},
    {Py_tp_init, store_init},
    {Py_tp_dealloc, store_dealloc},
    {Py_tp_methods, store_methods},
    {0, NULL},
};

PyType_Spec store_spec = {
    .name = "agentfs.chunks._native.Store",
    .basicsize = sizeof(struct store_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = store_slots,
};
