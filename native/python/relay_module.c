/*
 * agentfs.fuse._relay: the relay for Python, which is in relay_type.c, and what the keeper needs.
 */
#include "relay_type.h"

#include <errno.h>
#include <unistd.h>

#include "attributes.h"
#include "device.h"
#include "relay.h"

static PyObject *module_passthrough_available(PyObject *module, PyObject *unused)
{
    char reason[160];
    const char *why;

    (void)module;
    (void)unused;
    Py_BEGIN_ALLOW_THREADS
        why = device_probe(reason, sizeof reason);
    Py_END_ALLOW_THREADS
    if (why == NULL)
        Py_RETURN_NONE;
    return PyUnicode_FromString(why);
}

/* --- for the keeper ----------------------------------------------------------------------------
 */

/* A list of those descriptors; closes them when there is no memory for it. */
static PyObject *descriptors(const int *fds, int count)
{
    PyObject *list = PyList_New(0);
    for (int i = 0; list && i < count; i++) {
        if (!append(list, PyLong_FromLong(fds[i])))
            Py_CLEAR(list);
    }
    for (int i = 0; list == NULL && i < count; i++)
        close(fds[i]);
    return list;
}

static PyObject *module_mount(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"mountpoint", "options", "threads", NULL};
    int fds[RELAY_THREADS_MAX + 1];
    PyObject *mountpoint;
    PyObject *result = NULL;
    const char *options;
    int readers = 2;
    int count = 0;
    int error = 0;

    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O&s|$i:mount", names, PyUnicode_FSConverter,
                                     &mountpoint, &options, &readers))
        return NULL;
    if (readers < 1 || readers > RELAY_THREADS_MAX) {
        PyErr_SetString(PyExc_ValueError, "threads: 1 to 16");
        goto done;
    }
    Py_BEGIN_ALLOW_THREADS
        fds[count] = device_open();
        error = fds[0] < 0 ? errno : 0;
        count += error == 0;
        if (error == 0)
            error = device_mount(fds[0], PyBytes_AS_STRING(mountpoint), options);
        while (error == 0 && count <= readers) {
            fds[count] = device_clone(fds[0]);
            error = fds[count] < 0 ? errno : 0;
            count += error == 0;
        }
        if (error && count > 1)
            device_unmount(PyBytes_AS_STRING(mountpoint), true);
        while (error && count > 0)
            close(fds[--count]);
    Py_END_ALLOW_THREADS
    result = error ? raise_errno(error, mountpoint) : descriptors(fds, count);

done:
    Py_DECREF(mountpoint);
    return result;
}

static PyObject *module_unmount(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"mountpoint", "lazy", NULL};
    PyObject *mountpoint;
    int lazy;

    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O&p:unmount", names, PyUnicode_FSConverter,
                                     &mountpoint, &lazy))
        return NULL;
    return unmount(mountpoint, lazy);
}

static PyObject *module_create_ledger(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    int fd = ledger_create();
    return fd < 0 ? raise_errno(errno, NULL) : PyLong_FromLong(fd);
}

/* --- documentation -----------------------------------------------------------------------------
 */

PyDoc_STRVAR(
    passthrough_available_doc,
    "passthrough_available($module, /)\n--\n\n"
    "None when FUSE passthrough works here, else one line that says why not. Tried with a\n"
    "mount that is attached nowhere.");

PyDoc_STRVAR(
    mount_doc,
    "mount($module, mountpoint, options, *, threads=2)\n--\n\n"
    "Mount a FUSE filesystem; returns its descriptors: one for each thread that shall read "
    "requests,\n"
    "and one for Python's.\n\n"
    ":param options: as for mount(8), comma-separated; fsname= is the source in /proc/mounts");

PyDoc_STRVAR(unmount_module_doc, "unmount($module, mountpoint, lazy)\n--\n\n"
                                 "As umount(8): EBUSY while in use unless *lazy*. May block.");

PyDoc_STRVAR(create_ledger_doc,
             "create_ledger($module, /)\n--\n\n"
             "A descriptor of memory in which a relay keeps what the next one must know.");

PyDoc_STRVAR(pack_entry_doc, "pack_entry($module, inode, nodeid, valid_s, /)\n--\n\n"
                             "The fuse_entry_out of an agentfs.model.Inode, which the kernel may "
                             "believe for so long.");

PyDoc_STRVAR(pack_attributes_doc, "pack_attributes($module, inode, nodeid, valid_s, /)\n--\n\n"
                                  "Its fuse_attr_out.");

PyDoc_STRVAR(
    pack_listing_doc,
    "pack_listing($module, entries, room, renumber, valid_s, /)\n--\n\n"
    "(reply to READDIRPLUS, nodeids of which it tells) of the first entries that fit into so\n"
    "many bytes. The one that does not is the last that is asked for.\n\n"
    ":param entries: (position after it, name, inode or a tuple that begins with its fields) each\n"
    ":param renumber: says the nodeid of an inode's id; None: they are the same");

/* --- the module --------------------------------------------------------------------------------
 */

static int module_exec(PyObject *module)
{
    if (!inode_fields_init(PyModule_GetState(module)))
        return -1;
    PyObject *type = PyType_FromModuleAndSpec(module, &relay_spec, NULL);
    if (type == NULL)
        return -1;
    int result = PyModule_AddObjectRef(module, "Relay", type);
    Py_DECREF(type);
    if (result == 0)
        result = PyModule_AddIntMacro(module, LEDGER_LAYOUT);
    return result == 0 ? PyModule_AddIntMacro(module, LEDGER_INODES_END) : result;
}

static int module_clear(PyObject *module)
{
    inode_fields_clear(PyModule_GetState(module));
    return 0;
}

static PyMethodDef module_methods[] = {
    {"passthrough_available", module_passthrough_available, METH_NOARGS, passthrough_available_doc},
    {"pack_entry", pack_entry, METH_VARARGS, pack_entry_doc},
    {"pack_attributes", pack_attributes, METH_VARARGS, pack_attributes_doc},
    {"pack_listing", pack_listing, METH_VARARGS, pack_listing_doc},
    {"mount", KEYWORDS(module_mount), mount_doc},
    {"unmount", KEYWORDS(module_unmount), unmount_module_doc},
    {"create_ledger", module_create_ledger, METH_NOARGS, create_ledger_doc},
    {0},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "agentfs.fuse._relay",
    .m_doc = "The relay in C; docs/RELAY.md.",
    .m_size = sizeof(struct inode_fields),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__relay(void)
{
    return PyModuleDef_Init(&definition);
}
