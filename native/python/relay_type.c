/*
 * agentfs.fuse._relay.Relay. Its threads never take the GIL; what is called here holds it, except
 * while waiting for requests, unmounting and joining threads.
 */
#include "relay_type.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "attributes.h"
#include "device.h"
#include "relay.h"
#include "watch.h"

/* Backing files take descriptors from here on: however many programs write, the daemon can go on
 * opening what it needs to seal them. Half of what there may be, where that is less. */
enum { RESERVED_FDS = 1024 };

/* A descriptor beyond those reserved, or -1 with errno: ENFILE when there are no more. */
static int duplicate_backing(int fd)
{
    int duplicate = fcntl(fd, F_DUPFD_CLOEXEC, RESERVED_FDS);
    struct rlimit limit;

    if (duplicate < 0 && errno != EBADF && getrlimit(RLIMIT_NOFILE, &limit) == 0 &&
        limit.rlim_cur / 2 < RESERVED_FDS)
        duplicate = fcntl(fd, F_DUPFD_CLOEXEC, (int)(limit.rlim_cur / 2));
    if (duplicate < 0 && errno == EMFILE)
        errno = ENFILE;
    return duplicate;
}

struct relay_object {
    PyObject_HEAD struct relay *relay; /* guarded by the GIL; owned; NULL when closed */
    PyObject *mountpoint;              /* owned; bytes */
    int python_fd;    /* owned, but libfuse closes it, too: see close_python_fd() */
    ino_t python_ino; /* of that socket */
    int event_fd;     /* owned */
    bool is_started;
    bool was_unmounted; /* what the relay said when it was closed */
};

PyObject *raise_errno(int error, PyObject *filename)
{
    errno = error;
    return PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, filename);
}

PyObject *unmount(PyObject *mountpoint, bool lazy)
{
    int error;
    Py_BEGIN_ALLOW_THREADS
        error = device_unmount(PyBytes_AS_STRING(mountpoint), lazy);
    Py_END_ALLOW_THREADS
    PyObject *result = error ? raise_errno(error, mountpoint) : Py_NewRef(Py_None);
    Py_DECREF(mountpoint);
    return result;
}

/* NULL with ValueError when closed. */
static struct relay *relay_of(PyObject *object)
{
    struct relay *relay = ((struct relay_object *)object)->relay;
    if (relay == NULL)
        PyErr_SetString(PyExc_ValueError, "the relay is closed");
    return relay;
}

/* The same, and a number from Python: a nodeid or a handle. */
static struct relay *relay_and_number(PyObject *object, PyObject *argument, uint64_t *number)
{
    struct relay *relay = relay_of(object);
    if (relay == NULL)
        return NULL;
    *number = PyLong_AsUnsignedLongLong(argument);
    return *number == (uint64_t)-1 && PyErr_Occurred() ? NULL : relay;
}

/* NULL for a return statement when there was an error, else None. */
static PyObject *none_or_errno(int error)
{
    return error ? raise_errno(error, NULL) : Py_NewRef(Py_None);
}

/* --- life --------------------------------------------------------------------------------------
 */

/* libfuse closes the descriptor that it was given as /dev/fd/N; by now the number may be someone
 * else's. */
static void close_python_fd(struct relay_object *self)
{
    struct stat stat;
    if (self->python_fd >= 0 && fstat(self->python_fd, &stat) == 0 && S_ISSOCK(stat.st_mode) &&
        stat.st_ino == self->python_ino)
        close(self->python_fd);
    self->python_fd = -1;
}

/* How many readers those descriptors are for; -1 with an exception. */
static int take_devices(PyObject *given, int devices[RELAY_THREADS_MAX + 1])
{
    PyObject *items = PySequence_Fast(given, "devices: a sequence");
    if (items == NULL)
        return -1;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(items);
    int readers = count >= 1 && count <= RELAY_THREADS_MAX + 1 ? (int)count - 1 : -1;
    if (readers < 0)
        PyErr_SetString(PyExc_ValueError, "devices: 1 to 17");
    for (Py_ssize_t i = 0; readers >= 0 && i < count; i++) {
        devices[i] = PyObject_AsFileDescriptor(PySequence_Fast_GET_ITEM(items, i));
        if (devices[i] < 0)
            readers = -1;
    }
    Py_DECREF(items);
    return readers;
}

static int relay_init(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"mountpoint", "devices", "ledger", "passthrough", NULL};
    struct relay_object *self = (struct relay_object *)object;
    int devices[RELAY_THREADS_MAX + 1];
    struct relay_setup setup = {.clones = devices + 1, .ledger_fd = -1};
    struct relay *relay = NULL;
    PyObject *mountpoint;
    PyObject *given;
    struct stat stat;
    int passthrough = true;
    int error;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O&O|$ip:Relay", names, PyUnicode_FSConverter,
                                     &mountpoint, &given, &setup.ledger_fd, &passthrough))
        return -1;
    if (self->mountpoint != NULL) {
        PyErr_SetString(PyExc_ValueError, "a relay is made once");
        Py_DECREF(mountpoint);
        return -1;
    }
    setup.threads = take_devices(given, devices);
    if (setup.threads < 0) {
        Py_DECREF(mountpoint);
        return -1;
    }
    setup.device = devices[0];
    setup.asks_for_passthrough = passthrough;
    setup.latency_fd = watch_open_latency();
    self->mountpoint = mountpoint;
    self->python_fd = self->event_fd = setup.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    self->python_fd = -1;
    if (self->event_fd < 0)
        goto failed;
    error = relay_new(&setup, &relay, &self->python_fd);
    if (error) {
        errno = error;
        goto failed;
    }
    self->relay = relay;
    if (fstat(self->python_fd, &stat) == 0)
        self->python_ino = stat.st_ino;
    return 0;

failed:
    raise_errno(errno, mountpoint);
    if (setup.latency_fd >= 0)
        close(setup.latency_fd);
    return -1;
}

static PyObject *relay_start_method(PyObject *object, PyObject *unused)
{
    struct relay_object *self = (struct relay_object *)object;
    struct relay *relay = relay_of(object);

    (void)unused;
    if (relay == NULL)
        return NULL;
    if (self->is_started) {
        PyErr_SetString(PyExc_ValueError, "the relay runs already");
        return NULL;
    }
    self->is_started = true;
    return none_or_errno(relay_start(relay));
}

static PyObject *relay_close_method(PyObject *object, PyObject *unused)
{
    struct relay_object *self = (struct relay_object *)object;
    struct relay *relay = self->relay;

    (void)unused;
    if (relay != NULL) {
        self->was_unmounted = relay_is_unmounted(relay);
        self->relay = NULL;
        Py_BEGIN_ALLOW_THREADS
            relay_stop(relay);
            relay_free(relay);
        Py_END_ALLOW_THREADS
        close_python_fd(self);
        close(self->event_fd);
        self->event_fd = -1;
    }
    Py_RETURN_NONE;
}

static void relay_dealloc(PyObject *object)
{
    struct relay_object *self = (struct relay_object *)object;
    PyTypeObject *type = Py_TYPE(object);

    Py_XDECREF(relay_close_method(object, NULL));
    if (self->mountpoint != NULL && self->event_fd >= 0)
        close(self->event_fd);
    Py_XDECREF(self->mountpoint);
    type->tp_free(object);
    Py_DECREF(type);
}

static PyObject *relay_unmount_method(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"lazy", NULL};
    struct relay_object *self = (struct relay_object *)object;
    int lazy;

    if (!PyArg_ParseTupleAndKeywords(args, keywords, "p:unmount", names, &lazy))
        return NULL;
    return unmount(Py_NewRef(self->mountpoint), lazy);
}

/* --- backing files -----------------------------------------------------------------------------
 */

static PyObject *relay_register_method(PyObject *object, PyObject *argument)
{
    struct relay *relay = relay_of(object);
    if (relay == NULL)
        return NULL;
    int fd = PyObject_AsFileDescriptor(argument);
    if (fd < 0)
        return NULL;
    int32_t id;
    int error = relay_register(relay, fd, &id);
    return error ? raise_errno(error, NULL) : PyLong_FromLong(id);
}

static PyObject *relay_unregister_method(PyObject *object, PyObject *argument)
{
    struct relay *relay = relay_of(object);
    if (relay == NULL)
        return NULL;
    long id = PyLong_AsLong(argument);
    if (id == -1 && PyErr_Occurred())
        return NULL;
    if (id < 1 || id > INT32_MAX)
        return raise_errno(EINVAL, NULL);
    return none_or_errno(relay_unregister(relay, (int32_t)id));
}

static PyObject *relay_attach_method(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"nodeid",         "backing_id",      "fd",           "writable",
                            "fresh_until_ns", "capability_free", "opens_writes", NULL};
    struct relay *relay = relay_of(object);
    unsigned long long nodeid;
    long long fresh_until_ns = 0;
    struct backing backing;
    int writable = false;
    int capability_free = false;
    int opens_writes = false;
    int fd = -1;

    if (relay == NULL)
        return NULL;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "Ki|i$pLpp:attach", names, &nodeid,
                                     &backing.id, &fd, &writable, &fresh_until_ns, &capability_free,
                                     &opens_writes))
        return NULL;
    if (backing.id < 0 || nodeid == 0 || (backing.id == 0 && (writable || opens_writes)))
        return raise_errno(EINVAL, NULL);
    backing.opens_writes = opens_writes;
    backing.writable = writable;
    backing.capability_free = capability_free;
    backing.fresh_until_ns = fresh_until_ns;
    backing.fd = writable ? duplicate_backing(fd) : -1;
    if (writable && backing.fd < 0)
        return raise_errno(errno, NULL);
    return none_or_errno(table_attach(relay_table(relay), nodeid, &backing));
}

/* (unique, opcode, nodeid, uid, gid, body) of a request as the kernel sent it. */
static PyObject *described(const uint8_t *bytes, size_t size)
{
    struct fuse_in_header header;
    memcpy(&header, bytes, sizeof header);
    return Py_BuildValue("KkKkky#", (unsigned long long)header.unique, (unsigned long)header.opcode,
                         (unsigned long long)header.nodeid, (unsigned long)header.uid,
                         (unsigned long)header.gid, (const char *)bytes + sizeof header,
                         (Py_ssize_t)(size - sizeof header));
}

static PyObject *relay_take_method(PyObject *object, PyObject *args)
{
    struct relay *relay = relay_of(object);
    int fd;
    int timeout_ms;
    enum taken taken;
    size_t size;

    if (relay == NULL || !PyArg_ParseTuple(args, "ii:take", &fd, &timeout_ms))
        return NULL;
    if (timeout_ms < 0)
        return raise_errno(EINVAL, NULL);
    Py_BEGIN_ALLOW_THREADS
        taken = relay_take(relay, fd, timeout_ms);
    Py_END_ALLOW_THREADS
    if (taken == TAKEN_REQUEST) {
        const uint8_t *bytes = relay_taken(relay, &size);
        return described(bytes, size);
    }
    if (taken == TAKEN_TURN)
        Py_RETURN_NONE;
    return PyBool_FromLong(taken == TAKEN_READABLE);
}

static PyObject *relay_pass_on_method(PyObject *object, PyObject *unused)
{
    struct relay *relay = relay_of(object);
    (void)unused;
    if (relay == NULL)
        return NULL;
    relay_pass_on(relay);
    Py_RETURN_NONE;
}

static PyObject *relay_pump_method(PyObject *object, PyObject *unused)
{
    struct relay *relay = relay_of(object);
    (void)unused;
    if (relay == NULL)
        return NULL;
    relay_pump(relay); /* with the GIL: nothing in it waits, and taking it anew may */
    Py_RETURN_NONE;
}

static PyObject *relay_detach_method(PyObject *object, PyObject *argument)
{
    uint64_t nodeid;
    struct relay *relay = relay_and_number(object, argument, &nodeid);
    return relay ? PyBool_FromLong(table_detach(relay_table(relay), nodeid)) : NULL;
}

static PyObject *relay_opens_method(PyObject *object, PyObject *argument)
{
    uint64_t nodeid;
    struct relay *relay = relay_and_number(object, argument, &nodeid);
    return relay ? PyLong_FromLongLong(table_opens(relay_table(relay), nodeid)) : NULL;
}

static PyObject *relay_writers_method(PyObject *object, PyObject *argument)
{
    uint64_t nodeid;
    uint64_t ever;
    struct relay *relay = relay_and_number(object, argument, &nodeid);
    if (relay == NULL)
        return NULL;
    uint32_t writers = table_writers(relay_table(relay), nodeid, &ever);
    return Py_BuildValue("IK", writers, (unsigned long long)ever);
}

static PyObject *relay_measured_method(PyObject *object, PyObject *argument)
{
    uint64_t nodeid;
    struct stat stat;
    struct relay *relay = relay_and_number(object, argument, &nodeid);
    if (relay == NULL)
        return NULL;
    if (!table_measure(relay_table(relay), nodeid, &stat))
        Py_RETURN_NONE;
    return Py_BuildValue("LLL", (long long)stat.st_size, (long long)stat.st_blocks,
                         stat.st_mtim.tv_sec * 1000000000LL + stat.st_mtim.tv_nsec);
}

static PyObject *relay_set_acl_free_method(PyObject *object, PyObject *argument)
{
    struct relay *relay = relay_of(object);
    int is_free = relay == NULL ? -1 : PyObject_IsTrue(argument);
    if (is_free < 0)
        return NULL;
    relay_set_acl_free(relay, is_free);
    Py_RETURN_NONE;
}

static PyObject *relay_attr_changed_method(PyObject *object, PyObject *argument)
{
    uint64_t nodeid;
    struct relay *relay = relay_and_number(object, argument, &nodeid);
    if (relay == NULL)
        return NULL;
    table_attr_changed(relay_table(relay), nodeid);
    Py_RETURN_NONE;
}

static PyObject *relay_put_attr_method(PyObject *object, PyObject *args)
{
    struct relay *relay = relay_of(object);
    const struct inode_fields *fields = PyType_GetModuleState(Py_TYPE(object));
    struct fuse_attr_out out;
    unsigned long long nodeid;
    unsigned long long valid_s;
    PyObject *inode;

    if (relay == NULL || !PyArg_ParseTuple(args, "KOK:put_attr", &nodeid, &inode, &valid_s))
        return NULL;
    if (nodeid == 0)
        return raise_errno(EINVAL, NULL);
    if (!read_attributes(fields, inode, nodeid, valid_s, &out))
        return NULL;
    if (!table_put_attr(relay_table(relay), nodeid, &out))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *relay_set_ino_method(PyObject *object, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"nodeid", "ino", NULL};
    struct relay *relay = relay_of(object);
    unsigned long long nodeid;
    unsigned long long ino;

    if (relay == NULL ||
        !PyArg_ParseTupleAndKeywords(args, keywords, "KK:set_ino", names, &nodeid, &ino))
        return NULL;
    if (!table_set_ino(relay_table(relay), nodeid, ino))
        return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static PyObject *relay_forget_ino_method(PyObject *object, PyObject *argument)
{
    uint64_t nodeid;
    struct relay *relay = relay_and_number(object, argument, &nodeid);
    if (relay == NULL)
        return NULL;
    table_forget_ino(relay_table(relay), nodeid);
    Py_RETURN_NONE;
}

/* --- taking over -------------------------------------------------------------------------------
 */

static bool add_row(void *list, const struct ledger_row *row)
{
    const uint32_t *opens = row->opens;
    uint32_t answered = opens[LEDGER_ANSWERED_WRITE];
    uint32_t writers = opens[LEDGER_AMENDED_WRITE] + opens[LEDGER_PLAIN_WRITE];
    uint32_t handles = opens[LEDGER_AMENDED_READ] + opens[LEDGER_PLAIN_READ] + writers;
    unsigned long long nodeid = atomic_load(&row->nodeid);
    unsigned long long ino = row->ino ? row->ino : nodeid;
    unsigned passed = ledger_passed(row);

    return append(list, Py_BuildValue("KKiIIII", nodeid, ino, passed ? (int)row->backing_id : 0,
                                      passed, handles, writers, answered));
}

static PyObject *relay_rows_method(PyObject *object, PyObject *unused)
{
    struct relay *relay = relay_of(object);
    (void)unused;
    if (relay == NULL)
        return NULL;
    PyObject *rows = PyList_New(0);
    if (rows)
        table_visit_rows(relay_table(relay), add_row, rows);
    if (PyErr_Occurred())
        Py_CLEAR(rows);
    return rows;
}

static PyObject *relay_backings_method(PyObject *object, PyObject *unused)
{
    struct relay *relay = relay_of(object);
    (void)unused;
    if (relay == NULL)
        return NULL;
    PyObject *backings = PyList_New(0);
    const struct ledger_file *file = relay_table(relay)->ledger.file;
    for (uint32_t i = 0; backings && i < file->backing_end; i++) {
        const struct ledger_backing *backing = &file->backings[i];
        int id = atomic_load(&backing->id);
        if (id != 0 &&
            !append(backings, Py_BuildValue("iKK", id, (unsigned long long)backing->device,
                                            (unsigned long long)backing->inode)))
            Py_CLEAR(backings);
    }
    return backings;
}

static PyObject *relay_places_method(PyObject *object, PyObject *argument)
{
    struct ledger_place places[2];
    uint64_t handle;
    struct relay *relay = relay_and_number(object, argument, &handle);

    if (relay == NULL)
        return NULL;
    int count = table_places(relay_table(relay), handle, places);
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < count; i++) {
        PyObject *place = Py_BuildValue("Ky#", (unsigned long long)places[i].position,
                                        places[i].name, (Py_ssize_t)places[i].length);
        if (!append(list, place))
            Py_CLEAR(list);
    }
    return list;
}

static PyObject *relay_unique_method(PyObject *object, PyObject *args)
{
    struct relay *relay = relay_of(object);
    unsigned opcode;
    unsigned long long nodeid;
    if (relay == NULL || !PyArg_ParseTuple(args, "IK:unique", &opcode, &nodeid))
        return NULL;
    uint32_t flags;
    unsigned long long unique = relay_unique(relay, opcode, nodeid, &flags);
    return Py_BuildValue("KI", unique, flags);
}

static PyObject *relay_retire_method(PyObject *object, PyObject *unused)
{
    struct relay *relay = relay_of(object);
    (void)unused;
    if (relay == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
        relay_retire(relay);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *get_has_taken_over(PyObject *object, void *unused)
{
    struct relay_object *self = (struct relay_object *)object;
    (void)unused;
    return PyBool_FromLong(self->relay && relay_has_taken_over(self->relay));
}

static PyObject *get_generation(PyObject *object, void *unused)
{
    struct relay *relay = relay_of(object);
    (void)unused;
    return relay ? PyLong_FromUnsignedLong(relay_table(relay)->ledger.file->generation) : NULL;
}

static PyObject *get_highest_nodeid(PyObject *object, void *unused)
{
    struct relay *relay = relay_of(object);
    (void)unused;
    if (relay == NULL)
        return NULL;
    return PyLong_FromUnsignedLongLong(atomic_load(&relay_table(relay)->ledger.file->highest));
}

/* --- what happened -----------------------------------------------------------------------------
 */

static PyObject *relay_drain_method(PyObject *object, PyObject *unused)
{
    struct relay_object *self = (struct relay_object *)object;
    struct relay *relay = relay_of(object);
    eventfd_t count;
    uint64_t nodeid;
    bool last;

    (void)unused;
    if (relay == NULL)
        return NULL;
    PyObject *events = PyList_New(0);
    if (events == NULL)
        return NULL;
    /* First: what comes from now on makes it readable again. */
    eventfd_read(self->event_fd, &count);
    if (relay_is_unmounted(relay))
        eventfd_write(self->event_fd, 1);
    while (events && table_next_event(relay_table(relay), &nodeid, &last)) {
        if (!append(events,
                    Py_BuildValue("KO", (unsigned long long)nodeid, last ? Py_True : Py_False)))
            Py_CLEAR(events);
    }
    return events;
}

static PyObject *relay_take_operations_method(PyObject *object, PyObject *unused)
{
    struct relay *relay = relay_of(object);
    const uint8_t *bytes;
    size_t size;
    eventfd_t count;

    (void)unused;
    if (relay == NULL)
        return NULL;
    PyObject *operations = PyList_New(0);
    if (operations == NULL)
        return NULL;
    /* First: what comes from now on makes it readable again. */
    eventfd_read(relay_operations_fd(relay), &count);
    while (operations && (bytes = relay_first_operation(relay, &size)) != NULL) {
        if (append(operations, described(bytes, size)))
            relay_drop_operation(relay);
        else
            Py_CLEAR(operations);
    }
    return operations;
}

static PyObject *relay_answer_method(PyObject *object, PyObject *args)
{
    struct relay *relay = relay_of(object);
    unsigned long long unique;
    Py_buffer body;
    int error;

    if (relay == NULL || !PyArg_ParseTuple(args, "Kiy*:answer", &unique, &error, &body))
        return NULL;
    int refused = relay_answer(relay, unique, error, body.buf, (size_t)body.len);
    PyBuffer_Release(&body);
    return none_or_errno(refused);
}

static int add_count(PyObject *counts, const char *name, unsigned long long value)
{
    PyObject *number = PyLong_FromUnsignedLongLong(value);
    int result = number ? PyDict_SetItemString(counts, name, number) : -1;
    Py_XDECREF(number);
    return result;
}

static PyObject *relay_stats_method(PyObject *object, PyObject *unused)
{
    struct relay *relay = relay_of(object);
    uint64_t values[COUNTERS];

    (void)unused;
    if (relay == NULL)
        return NULL;
    PyObject *counts = PyDict_New();
    if (counts == NULL)
        return NULL;
    relay_counts(relay, values);
    for (int i = 0; i < COUNTERS; i++) {
        if (add_count(counts, relay_counter_names[i], values[i]) != 0)
            goto failed;
    }
    if (add_count(counts, "pending", relay_pending(relay)) != 0 ||
        add_count(counts, "queued_bytes", relay_queued_bytes(relay)) != 0 ||
        add_count(counts, "attached", table_attached(relay_table(relay))) != 0 ||
        add_count(counts, "max_write", relay_max_write(relay)) != 0)
        goto failed;
    return counts;

failed:
    Py_DECREF(counts);
    return NULL;
}

static PyObject *get_python_fd(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromLong(((struct relay_object *)object)->python_fd);
}

static PyObject *get_replies_fd(PyObject *object, void *unused)
{
    struct relay *relay = relay_of(object);
    (void)unused;
    return relay ? PyLong_FromLong(relay_replies_fd(relay)) : NULL;
}

static PyObject *get_operations_fd(PyObject *object, void *unused)
{
    struct relay *relay = relay_of(object);
    (void)unused;
    return relay ? PyLong_FromLong(relay_operations_fd(relay)) : NULL;
}

static PyObject *get_event_fd(PyObject *object, void *unused)
{
    (void)unused;
    return PyLong_FromLong(((struct relay_object *)object)->event_fd);
}

static PyObject *get_ready(PyObject *object, void *unused)
{
    struct relay_object *self = (struct relay_object *)object;
    (void)unused;
    return PyBool_FromLong(self->relay && relay_is_ready(self->relay));
}

static PyObject *get_unmounted(PyObject *object, void *unused)
{
    struct relay_object *self = (struct relay_object *)object;
    (void)unused;
    return PyBool_FromLong(self->relay ? relay_is_unmounted(self->relay) : self->was_unmounted);
}

/* --- documentation -----------------------------------------------------------------------------
 */

PyDoc_STRVAR(
    relay_doc,
    "Relay(mountpoint, devices, *, ledger=-1, passthrough=True)\n--\n\n"
    "Stands between the kernel and pyfuse3; see docs/RELAY.md. start() lets requests flow.\n\n"
    ":param devices: from mount(), closed by close(); of a single one take() alone reads\n"
    ":param ledger: from create_ledger(); if it served a relay of this mount before, this one\n"
    "    takes over from that; -1: none shall take over from this one\n"
    ":param passthrough: ask the kernel to let files be attached");

PyDoc_STRVAR(
    rows_doc,
    "rows($self, /)\n--\n\n"
    "(nodeid, st_ino, backing id or 0, opens through the backing file, opens that Python\n"
    "answered, those of them for writing, opens for writing that the relay answered) of what\n"
    "is open or shown under another st_ino.");

PyDoc_STRVAR(backings_doc, "backings($self, /)\n--\n\n"
                           "(backing id, st_dev, st_ino) of each backing file the kernel has.");

PyDoc_STRVAR(places_doc,
             "places($self, handle, /)\n--\n\n"
             "(position, name before it) where listings of an open directory ended of late.");

PyDoc_STRVAR(
    unique_doc,
    "unique($self, opcode, nodeid, /)\n--\n\n"
    "(number, flags) of a request that waits for Python's reply, (0, 0) if there is none. "
    "The\n"
    "number has bit 63 if an earlier worker had the request, too; flags are those of OPEN, "
    "CREATE\n"
    "and SETXATTR.");

PyDoc_STRVAR(retire_doc, "retire($self, /)\n--\n\n"
                         "Read no more requests: another worker will.");

PyDoc_STRVAR(start_doc, "start($self, /)\n--\n\n"
                        "Start the threads. Once.");

PyDoc_STRVAR(take_doc,
             "take($self, fd, timeout_ms, /)\n--\n\n"
             "Wait until *fd*, which is python_fd, is readable, or for that long; True: it "
             "is.\n\n"
             "Where requests follow each other, this thread reads them itself: call it "
             "again soon,\n"
             "until it returns False. One that can be answered without waiting is returned "
             "as those\n"
             "of take_operations() are, to be answered, or passed on, before the next call. "
             "None: it has\n"
             "answered others for 2 ms, let other tasks have their turn.");

PyDoc_STRVAR(pass_on_doc, "pass_on($self, /)\n--\n\n"
                          "Give pyfuse3 the request that take() has returned.");

PyDoc_STRVAR(pump_doc, "pump($self, /)\n--\n\n"
                       "Give the kernel the replies that pyfuse3 has written. Call it after each.");

PyDoc_STRVAR(register_doc,
             "register($self, fd, /)\n--\n\n"
             "Give the kernel a backing file. Returns its backing id, at least 1, which any number "
             "of\n"
             "nodeids may share. The file stays open in the kernel until unregister() and the last "
             "close.");

PyDoc_STRVAR(unregister_doc, "unregister($self, backing_id, /)\n--\n\n"
                             "Take a backing id back. Files open through it stay open.");

PyDoc_STRVAR(
    attach_doc,
    "attach($self, nodeid, backing_id, fd=-1, *, writable=False, fresh_until_ns=0, "
    "capability_free=False, opens_writes=False)\n--\n\n"
    "From now on OPEN and CREATE replies for *nodeid* become passthrough to that backing file.\n\n"
    "Attaching again with the same backing id replaces the rest; with another one it raises "
    "OSError\n"
    "EBUSY while the file is open.\n\n"
    ":param backing_id: 0: there is none; an open that is answered without Python lets the kernel "
    "go on\n"
    "    using its pages\n"
    ":param fd: the backing file, for its size and times; the relay keeps a duplicate if "
    "*writable*\n"
    ":param writable: size and times are those of the backing file, in whatever reply\n"
    ":param fresh_until_ns: on CLOCK_REALTIME; until then O_RDONLY opens are answered without "
    "Python\n"
    ":param capability_free: it has no security.capability; a SETXATTR ends that\n"
    ":param opens_writes: O_WRONLY opens without O_TRUNC are answered without Python, which is to\n"
    "    take it to be open for writing meanwhile; any change of its attributes ends that");

PyDoc_STRVAR(detach_doc, "detach($self, nodeid, /)\n--\n\n"
                         "Undo attach(). False, and nothing changed, while the file is open.");

PyDoc_STRVAR(opens_doc, "opens($self, nodeid, /)\n--\n\n"
                        "How many opens through its backing file there are.");

PyDoc_STRVAR(writers_doc, "writers($self, nodeid, /)\n--\n\n"
                          "(how often it is open for writing by an OPEN that the relay answered,\n"
                          "how often it was opened so since it was attached).");

PyDoc_STRVAR(measured_doc, "measured($self, nodeid, /)\n--\n\n"
                           "(bytes, sectors of 512 bytes, time of modification in ns) of the "
                           "backing file;\n"
                           "None: it is not attached as writable.");

PyDoc_STRVAR(
    attr_changed_doc,
    "attr_changed($self, nodeid, /)\n--\n\n"
    "Forget its attributes: the next GETATTR comes to Python. For every change that is not "
    "the\n"
    "answer to a SETATTR, LINK, SETXATTR, REMOVEXATTR, WRITE or FALLOCATE: unlink and "
    "rename too.");

PyDoc_STRVAR(
    set_acl_free_doc,
    "set_acl_free($self, is_free, /)\n--\n\n"
    "Whether no inode has an access list: then GETXATTR of one needs no Python. Not so at\n"
    "first, and to be taken back before one is set.");

PyDoc_STRVAR(
    put_attr_doc,
    "put_attr($self, nodeid, inode, valid_s, /)\n--\n\n"
    "Answer GETATTR of *nodeid*, attached or not, from what *inode* (agentfs.model.Inode) says\n"
    "now, until it changes.\n\n"
    "Within the handler of a change: it is the newer. Which requests end it is in\n"
    "docs/RELAY.md; for what they do not say call attr_changed(). 4096 nodeids that are not\n"
    "attached are remembered.\n\n"
    ":param valid_s: how long the kernel need not ask again");

PyDoc_STRVAR(set_ino_doc, "set_ino($self, nodeid, ino)\n--\n\n"
                          "Show *nodeid* to programs under the st_ino *ino*.");

PyDoc_STRVAR(forget_ino_doc, "forget_ino($self, nodeid, /)\n--\n\n"
                             "Undo set_ino().");

PyDoc_STRVAR(drain_doc, "drain($self, /)\n--\n\n"
                        "(nodeid, is it still not open) of each that was closed for the last time "
                        "since the last call,\n"
                        "by a RELEASE that was answered in C: of the others Python knows.");

PyDoc_STRVAR(
    take_operations_doc,
    "take_operations($self, /)\n--\n\n"
    "(unique, opcode, nodeid, uid, gid, what follows the header) of each request that came since\n"
    "the last call and that pyfuse3 cannot carry: COPY_FILE_RANGE, FALLOCATE, LSEEK, TMPFILE. "
    "Each\n"
    "needs an answer().");

PyDoc_STRVAR(answer_doc,
             "answer($self, unique, error, body, /)\n--\n\n"
             "Answer one of take() or take_operations(), as a reply of pyfuse3 would.\n\n"
             ":param error: an errno, with no body; 0: success\n"
             ":param body: what follows the header");

PyDoc_STRVAR(stats_doc, "stats($self, /)\n--\n\n"
                        "Counters since the start; pending, queued_bytes and attached are of now.");

PyDoc_STRVAR(unmount_doc, "unmount($self, lazy)\n--\n\n"
                          "As umount(8): EBUSY while in use unless *lazy*. May block.");

PyDoc_STRVAR(
    close_doc,
    "close($self, /)\n--\n\n"
    "Stop and join the threads, close all descriptors. Does not unmount. What waits for an "
    "answer\n"
    "gets ENOTCONN. Closing twice is fine.");

/* --- the type ----------------------------------------------------------------------------------
 */

static PyMethodDef relay_methods[] = {
    {"start", relay_start_method, METH_NOARGS, start_doc},
    {"take", relay_take_method, METH_VARARGS, take_doc},
    {"pass_on", relay_pass_on_method, METH_NOARGS, pass_on_doc},
    {"pump", relay_pump_method, METH_NOARGS, pump_doc},
    {"register", relay_register_method, METH_O, register_doc},
    {"unregister", relay_unregister_method, METH_O, unregister_doc},
    {"attach", KEYWORDS(relay_attach_method), attach_doc},
    {"detach", relay_detach_method, METH_O, detach_doc},
    {"opens", relay_opens_method, METH_O, opens_doc},
    {"writers", relay_writers_method, METH_O, writers_doc},
    {"measured", relay_measured_method, METH_O, measured_doc},
    {"attr_changed", relay_attr_changed_method, METH_O, attr_changed_doc},
    {"set_acl_free", relay_set_acl_free_method, METH_O, set_acl_free_doc},
    {"put_attr", relay_put_attr_method, METH_VARARGS, put_attr_doc},
    {"set_ino", KEYWORDS(relay_set_ino_method), set_ino_doc},
    {"forget_ino", relay_forget_ino_method, METH_O, forget_ino_doc},
    {"rows", relay_rows_method, METH_NOARGS, rows_doc},
    {"backings", relay_backings_method, METH_NOARGS, backings_doc},
    {"places", relay_places_method, METH_O, places_doc},
    {"unique", relay_unique_method, METH_VARARGS, unique_doc},
    {"retire", relay_retire_method, METH_NOARGS, retire_doc},
    {"drain", relay_drain_method, METH_NOARGS, drain_doc},
    {"take_operations", relay_take_operations_method, METH_NOARGS, take_operations_doc},
    {"answer", relay_answer_method, METH_VARARGS, answer_doc},
    {"stats", relay_stats_method, METH_NOARGS, stats_doc},
    {"unmount", KEYWORDS(relay_unmount_method), unmount_doc},
    {"close", relay_close_method, METH_NOARGS, close_doc},
    {0},
};

static PyGetSetDef relay_getset[] = {
    {"python_fd", get_python_fd, NULL, "For pyfuse3, as /dev/fd/N; -1 when closed.", NULL},
    {"replies_fd", get_replies_fd, NULL, "Readable when there is something to pump().", NULL},
    {"operations_fd", get_operations_fd, NULL, "Readable when take_operations() has something.",
     NULL},
    {"event_fd", get_event_fd, NULL,
     "Readable when drain() has something, when it became ready, and when the mount is gone.",
     NULL},
    {"ready", get_ready, NULL, "INIT is over: register() works from now on.", NULL},
    {"unmounted", get_unmounted, NULL, "The kernel said that the mount is gone.", NULL},
    {"has_taken_over", get_has_taken_over, NULL, "Another relay served this mount before.", NULL},
    {"generation", get_generation, NULL, "How many relays have served it, with this one.", NULL},
    {"highest_nodeid", get_highest_nodeid, NULL,
     "No nodeid of an inode that the kernel knows is higher.", NULL},
    {0},
};

static PyType_Slot relay_slots[] = {
    {Py_tp_doc, (void *)(uintptr_t)relay_doc},
    {Py_tp_init, relay_init},
    {Py_tp_dealloc, relay_dealloc},
    {Py_tp_methods, relay_methods},
    {Py_tp_getset, relay_getset},
    {0, NULL},
};

PyType_Spec relay_spec = {
    .name = "agentfs.fuse._relay.Relay",
    .basicsize = sizeof(struct relay_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = relay_slots,
};
