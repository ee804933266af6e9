#include "attributes.h"

#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

enum { BLOCK_BYTES = 4096, SECTOR_BYTES = 512 };

bool inode_fields_init(struct inode_fields *fields)
{
    static const char *const names[FIELDS] = {
#define INODE_FIELD(name) #name,
        INODE_FIELDS(INODE_FIELD)
#undef INODE_FIELD
    };
    for (int i = 0; i < FIELDS; i++) {
        fields->names[i] = PyUnicode_InternFromString(names[i]);
        if (fields->names[i] == NULL)
            return false;
    }
    return true;
}

void inode_fields_clear(struct inode_fields *fields)
{
    for (int i = 0; i < FIELDS; i++)
        Py_CLEAR(fields->names[i]);
}

/* A new reference; NULL with an exception. */
static PyObject *field_of(const struct inode_fields *fields, PyObject *inode, int field)
{
    if (!PyTuple_Check(inode))
        return PyObject_GetAttr(inode, fields->names[field]);
    if (PyTuple_GET_SIZE(inode) < FIELDS) {
        PyErr_SetString(PyExc_TypeError, "a row with fewer columns than an inode has fields");
        return NULL;
    }
    return Py_NewRef(PyTuple_GET_ITEM(inode, field));
}

/* None is 0. False with an exception. */
static bool read_fields(const struct inode_fields *fields, PyObject *inode, long long *values)
{
    for (int i = 0; i < FIELDS; i++) {
        PyObject *value = field_of(fields, inode, i);
        if (value == NULL)
            return false;
        values[i] = value == Py_None ? 0 : PyLong_AsLongLong(value);
        Py_DECREF(value);
        if (values[i] == -1 && PyErr_Occurred())
            return false;
    }
    return true;
}

/* As Inode.sectors. */
static uint64_t count_sectors(const long long *values)
{
    long long taken = values[FIELD_size] - values[FIELD_holes];
    return taken > 0 ? ((uint64_t)taken + SECTOR_BYTES - 1) / SECTOR_BYTES : 0;
}

/* Seconds, rounded down, and what is left. */
static void split_ns(long long ns, uint64_t *s, uint32_t *rest_ns)
{
    enum { NS_PER_S = 1000000000 };
    long long floor = ns / NS_PER_S - (ns % NS_PER_S < 0);
    *s = (uint64_t)floor;
    *rest_ns = (uint32_t)(ns - floor * NS_PER_S);
}

static void fill_attr(const long long *values, uint64_t nodeid, struct fuse_attr *attr)
{
    *attr = (struct fuse_attr){
        .ino = nodeid,
        .size = (uint64_t)values[FIELD_size],
        .blocks = count_sectors(values),
        .mode = (uint32_t)values[FIELD_mode],
        .nlink = (uint32_t)values[FIELD_nlink],
        .uid = (uint32_t)values[FIELD_uid],
        .gid = (uint32_t)values[FIELD_gid],
        .rdev = (uint32_t)values[FIELD_rdev],
        .blksize = BLOCK_BYTES,
    };
    split_ns(values[FIELD_atime_ns], &attr->atime, &attr->atimensec);
    split_ns(values[FIELD_mtime_ns], &attr->mtime, &attr->mtimensec);
    split_ns(values[FIELD_ctime_ns], &attr->ctime, &attr->ctimensec);
}

static void fill_entry(const long long *values, uint64_t nodeid, uint64_t valid_s,
                       struct fuse_entry_out *entry)
{
    *entry =
        (struct fuse_entry_out){.nodeid = nodeid, .entry_valid = valid_s, .attr_valid = valid_s};
    fill_attr(values, nodeid, &entry->attr);
}

bool read_attributes(const struct inode_fields *fields, PyObject *inode, uint64_t nodeid,
                     uint64_t valid_s, struct fuse_attr_out *out)
{
    long long values[FIELDS];

    if (!read_fields(fields, inode, values))
        return false;
    *out = (struct fuse_attr_out){.attr_valid = valid_s};
    fill_attr(values, nodeid, &out->attr);
    return true;
}

PyObject *pack_entry(PyObject *module, PyObject *args)
{
    const struct inode_fields *fields = PyModule_GetState(module);
    PyObject *inode;
    unsigned long long nodeid;
    unsigned long long valid_s;
    long long values[FIELDS];
    struct fuse_entry_out entry;

    if (!PyArg_ParseTuple(args, "OKK:pack_entry", &inode, &nodeid, &valid_s) ||
        !read_fields(fields, inode, values))
        return NULL;
    fill_entry(values, nodeid, valid_s, &entry);
    return PyBytes_FromStringAndSize((const char *)&entry, sizeof entry);
}

PyObject *pack_attributes(PyObject *module, PyObject *args)
{
    const struct inode_fields *fields = PyModule_GetState(module);
    PyObject *inode;
    unsigned long long nodeid;
    unsigned long long valid_s;
    struct fuse_attr_out out;

    if (!PyArg_ParseTuple(args, "OKK:pack_attributes", &inode, &nodeid, &valid_s) ||
        !read_attributes(fields, inode, nodeid, valid_s, &out))
        return NULL;
    return PyBytes_FromStringAndSize((const char *)&out, sizeof out);
}

/* --- listings ------------------------------------------------------------------------------ */

struct listing {
    const struct inode_fields *fields;
    PyObject *renumber; /* borrowed; None: nodeids are the numbers of inodes */
    PyObject *told;     /* borrowed; a list */
    uint64_t valid_s;
    uint8_t *bytes;
    size_t room;
    size_t used;
};

static bool find_nodeid(const struct listing *listing, long long inode_id, uint64_t *nodeid)
{
    *nodeid = (uint64_t)inode_id;
    if (listing->renumber == Py_None)
        return true;
    PyObject *number = PyObject_CallFunction(listing->renumber, "L", inode_id);
    if (number == NULL)
        return false;
    *nodeid = PyLong_AsUnsignedLongLong(number);
    Py_DECREF(number);
    return !PyErr_Occurred();
}

/* The kernel does not count "." and "..". */
static bool note_told(const struct listing *listing, uint64_t nodeid, const char *name,
                      size_t name_bytes)
{
    if (name[0] == '.' && (name_bytes == 1 || (name_bytes == 2 && name[1] == '.')))
        return true;
    return append(listing->told, PyLong_FromUnsignedLongLong(nodeid));
}

enum added { ADDED, ADDED_NOT_FOR_WANT_OF_ROOM, ADDED_FAILED };

/* item is (position after it, name, inode or its row). */
static enum added add_entry(struct listing *listing, PyObject *item)
{
    struct fuse_direntplus entry = {0};
    unsigned long long position;
    long long values[FIELDS];
    const char *name;
    Py_ssize_t name_bytes;
    PyObject *inode;
    uint64_t nodeid;

    if (!PyTuple_Check(item)) {
        PyErr_SetString(PyExc_TypeError, "entries: of tuples");
        return ADDED_FAILED;
    }
    if (!PyArg_ParseTuple(item, "Ky#O:entry", &position, &name, &name_bytes, &inode))
        return ADDED_FAILED;
    size_t end = FUSE_NAME_OFFSET_DIRENTPLUS + (size_t)name_bytes;
    size_t whole = FUSE_DIRENT_ALIGN(end);
    if (whole > listing->room - listing->used)
        return ADDED_NOT_FOR_WANT_OF_ROOM;
    if (!read_fields(listing->fields, inode, values) ||
        !find_nodeid(listing, values[FIELD_id], &nodeid) ||
        !note_told(listing, nodeid, name, (size_t)name_bytes))
        return ADDED_FAILED;
    fill_entry(values, nodeid, listing->valid_s, &entry.entry_out);
    entry.dirent.ino = nodeid;
    entry.dirent.off = position;
    entry.dirent.namelen = (uint32_t)name_bytes;
    entry.dirent.type = (uint32_t)(values[FIELD_mode] & S_IFMT) >> 12;
    uint8_t *at = listing->bytes + listing->used;
    memcpy(at, &entry, FUSE_NAME_OFFSET_DIRENTPLUS);
    memcpy(at + FUSE_NAME_OFFSET_DIRENTPLUS, name, (size_t)name_bytes);
    memset(at + end, 0, whole - end);
    listing->used += whole;
    return ADDED;
}

/* False with an exception. */
static bool add_entries(struct listing *listing, PyObject *entries)
{
    enum added added = ADDED;
    PyObject *item = NULL;

    while (added == ADDED && (item = PyIter_Next(entries)) != NULL) {
        added = add_entry(listing, item);
        Py_DECREF(item);
    }
    return added != ADDED_FAILED && !PyErr_Occurred();
}

PyObject *pack_listing(PyObject *module, PyObject *args)
{
    const struct inode_fields *fields = PyModule_GetState(module);
    struct listing listing = {.fields = fields};
    unsigned long long valid_s;
    unsigned room;
    PyObject *entries;
    PyObject *result = NULL;

    if (!PyArg_ParseTuple(args, "OIOK:pack_listing", &entries, &room, &listing.renumber, &valid_s))
        return NULL;
    if (!PyIter_Check(entries)) {
        PyErr_SetString(PyExc_TypeError, "entries: an iterator");
        return NULL;
    }
    listing.room = room;
    listing.valid_s = valid_s;
    listing.told = PyList_New(0);
    listing.bytes = PyMem_Malloc(room);
    if (listing.bytes == NULL)
        PyErr_NoMemory();
    if (listing.told && listing.bytes && add_entries(&listing, entries))
        result = Py_BuildValue("y#O", (const char *)listing.bytes, (Py_ssize_t)listing.used,
                               listing.told);
    PyMem_Free(listing.bytes);
    Py_XDECREF(listing.told);
    return result;
}
