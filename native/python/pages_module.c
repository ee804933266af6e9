/* agentfs.index._pages: the VFS of native/pages, made known to the SQLite that Python uses. */
#define _GNU_SOURCE
#include "binding.h"

#include <dlfcn.h>

#include "log.h"
#include "packed.h"
#include "pages.h"

PyDoc_STRVAR(register_doc, "register_vfs(library, /)\n--\n\n"
                           "Make the VFS known to the SQLite that *library* uses, the path of an "
                           "extension module that is\n"
                           "loaded; None: the SQLite that is part of the interpreter. OSError: "
                           "there is none to be found.");

static PyObject *module_register(PyObject *module, PyObject *argument)
{
    PyObject *path = NULL;

    (void)module;
    if (argument != Py_None && !PyUnicode_FSConverter(argument, &path))
        return NULL;
    void *library = dlopen(path ? PyBytes_AS_STRING(path) : NULL, RTLD_LAZY | RTLD_NOLOAD);
    Py_XDECREF(path);
    if (library == NULL)
        return PyErr_Format(PyExc_OSError, "it is not loaded: %s", dlerror());
    struct pages_sqlite sqlite;
    *(void **)&sqlite.vfs_find = dlsym(library, "sqlite3_vfs_find");
    *(void **)&sqlite.vfs_register = dlsym(library, "sqlite3_vfs_register");
    *(void **)&sqlite.mprintf = dlsym(library, "sqlite3_mprintf");
    int result = SQLITE_NOTFOUND;
    if (sqlite.vfs_find && sqlite.vfs_register && sqlite.mprintf)
        result = pages_register(&sqlite);
    dlclose(library); /* RTLD_NOLOAD counted it once more; Python never unloads it */
    if (result != SQLITE_OK)
        return PyErr_Format(PyExc_OSError, "its SQLite cannot be extended (%d)", result);
    Py_RETURN_NONE;
}

PyDoc_STRVAR(
    damaged_doc,
    "damaged(data, first, packed, /)\n--\n\n"
    "The numbers of the pages in *data* whose checksum fails; *first* is the number of the "
    "first.\nBytes after the last whole page count as one that fails. *packed* is the path of the "
    "file that may\nhave those that are packed.");

static PyObject *numbers_of_damaged(const Py_buffer *data, uint32_t first, struct packed *packed)
{
    uint8_t raw[PAGES_BYTES];
    size_t count = ((size_t)data->len + PAGES_BYTES - 1) / PAGES_BYTES;
    PyObject *found = PyList_New(0);

    for (size_t i = 0; found && i < count; i++) {
        const uint8_t *page = (const uint8_t *)data->buf + i * PAGES_BYTES;
        uint32_t number = first + (uint32_t)i;
        bool is_whole = (i + 1) * PAGES_BYTES <= (size_t)data->len;
        if (is_whole && pages_is_good(page, number))
            continue;
        if (is_whole && packed && pages_is_blank(page) && packed_read(packed, number, raw) == 0)
            continue;
        if (!append(found, PyLong_FromUnsignedLong(number)))
            Py_CLEAR(found);
    }
    return found;
}

static PyObject *module_damaged(PyObject *module, PyObject *arguments)
{
    Py_buffer data;
    unsigned int first;
    PyObject *path;
    struct packed *packed = NULL;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "y*IO&:damaged", &data, &first, PyUnicode_FSConverter, &path))
        return NULL;
    packed_open(PyBytes_AS_STRING(path), true, &packed); /* else what is in it is damaged */
    PyObject *found = numbers_of_damaged(&data, first, packed);
    packed_close(packed);
    Py_DECREF(path);
    PyBuffer_Release(&data);
    return found;
}

PyDoc_STRVAR(commits_behind_end_doc,
             "commits_behind_end(fd, /)\n--\n\n"
             "How many transactions a write-ahead log holds behind a damaged entry, where SQLite "
             "takes it to end.\nOSError: it cannot be read.");

static PyObject *module_commits_behind_end(PyObject *module, PyObject *argument)
{
    size_t lost;
    int result;

    (void)module;
    int fd = PyObject_AsFileDescriptor(argument);
    if (fd < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
        ;
        result = log_commits_behind_end(fd, &lost);
    Py_END_ALLOW_THREADS;
    if (result != 0) {
        errno = result;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return PyLong_FromSize_t(lost);
}

static PyMethodDef module_methods[] = {
    {"register_vfs", module_register, METH_O, register_doc},
    {"damaged", module_damaged, METH_VARARGS, damaged_doc},
    {"commits_behind_end", module_commits_behind_end, METH_O, commits_behind_end_doc},
    {0},
};

static int module_exec(PyObject *module)
{
    if (PyModule_AddStringConstant(module, "VFS", PAGES_VFS) != 0 ||
        PyModule_AddStringConstant(module, "PACKED_SUFFIX", PACKED_SUFFIX) != 0 ||
        PyModule_AddIntConstant(module, "PAGE_BYTES", PAGES_BYTES) != 0 ||
        PyModule_AddIntConstant(module, "RESERVED", PAGES_RESERVED) != 0 ||
        PyModule_AddIntConstant(module, "RESERVED_AT", PAGES_RESERVED_AT) != 0)
        return -1;
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "agentfs.index._pages",
    .m_doc = "Pages of the index that carry a checksum.",
    .m_methods = module_methods,
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__pages(void)
{
    return PyModuleDef_Init(&definition);
}
