/*
 * agentfs.chunks._native: the chunk store for Python; Store is in store_type.c.
 */
#define _GNU_SOURCE
#include "store_type.h"
#include "training.h"

#include <errno.h>
#include <fcntl.h>

#include "crc32c.h"
#include "cutter.h"
#include "format.h"
#include "store.h"

static struct module_state *state_of(PyObject *module)
{
    return PyModule_GetState(module);
}

/* --- cutting and checksums ---------------------------------------------------------------------
 */

static PyObject *module_params_for_size(PyObject *module, PyObject *arg)
{
    (void)module;
    unsigned long long size = PyLong_AsUnsignedLongLong(arg);
    if (size == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    return PyLong_FromUnsignedLong(cutter_params_for_size(size)->id);
}

static PyObject *module_cut(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"data", "params", NULL};
    Py_buffer data;
    unsigned int id;
    PyObject *lengths = NULL;

    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "y*I:cut", names, &data, &id))
        return NULL;
    const struct cutter_params *params = cutter_params(id);
    if (params == NULL) {
        PyErr_Format(PyExc_ValueError, "no parameter set %u", id);
        goto release;
    }
    size_t most = cutter_most_chunks(params, (size_t)data.len) * sizeof(uint32_t);
    lengths = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)most);
    if (lengths == NULL)
        goto release;
    uint32_t *out = (uint32_t *)(void *)PyBytes_AS_STRING(lengths);
    size_t count;
    Py_BEGIN_ALLOW_THREADS
        count = cutter_cut(params, data.buf, (size_t)data.len, out);
    Py_END_ALLOW_THREADS
    _PyBytes_Resize(&lengths, (Py_ssize_t)(count * sizeof(uint32_t)));

release:
    PyBuffer_Release(&data);
    return lengths;
}

/* os has posix_fallocate() only, which neither punches holes nor leaves the size alone. */
static PyObject *module_fallocate(PyObject *module, PyObject *args)
{
    int fd;
    int mode;
    long long offset;
    long long length;
    int result;

    (void)module;
    if (!PyArg_ParseTuple(args, "iiLL:fallocate", &fd, &mode, &offset, &length))
        return NULL;
    do {
        Py_BEGIN_ALLOW_THREADS
            result = fallocate(fd, mode, offset, length);
        Py_END_ALLOW_THREADS
    } while (result != 0 && errno == EINTR && PyErr_CheckSignals() == 0);
    if (result != 0)
        return PyErr_Occurred() ? NULL : PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *module_crc32c(PyObject *module, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"data", "crc", NULL};
    Py_buffer data;
    unsigned int crc = 0;

    (void)module;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "y*|I:crc32c", names, &data, &crc))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
        crc = crc32c(crc, data.buf, (size_t)data.len);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(crc);
}

/* --- what help() shows -------------------------------------------------------------------------
 */

PyDoc_STRVAR(
    params_for_size_doc,
    "params_for_size($module, size_bytes, /)\n--\n\n"
    "Number of the parameter set for a file of *size_bytes*.\n\n"
    "A file that grows over a threshold (16 MiB, 1 GiB) is cut anew and shares no chunks with\n"
    "what it was; docs/FORMAT.md, \"Cutting\".");

PyDoc_STRVAR(
    cut_doc,
    "cut($module, /, data, params)\n--\n\n"
    "Lengths in bytes of the chunks of *data*, as packed native uint32.\n\n"
    "memoryview(result).cast('I') is a sequence of them; they add up to len(data). Cutting from "
    "any\n"
    "boundary on gives the same cuts as cutting the whole. Drops the GIL; about 3 GB/s.\n"
    "FastCDC: Xia et al., USENIX ATC 2016; what differs is in docs/FORMAT.md, \"Cutting\".\n\n"
    ":param params: a key of PARAMETER_SETS; another one raises ValueError");

PyDoc_STRVAR(fallocate_doc, "fallocate($module, fd, mode, offset, length, /)\n--\n\n"
                            "fallocate(2), without the GIL.");

PyDoc_STRVAR(crc32c_doc, "crc32c($module, /, data, crc=0)\n--\n\n"
                         "CRC32C (Castagnoli) of *data*, continued from *crc*. Drops the GIL.");

/* --- the module --------------------------------------------------------------------------------
 */

static PyObject *parameter_sets(void)
{
    PyObject *sets = PyDict_New();
    for (size_t i = 0; sets && i < cutter_set_count; i++) {
        const struct cutter_params *set = &cutter_sets[i];
        PyObject *key = PyLong_FromUnsignedLong(set->id);
        PyObject *value = Py_BuildValue("III", (unsigned int)set->min_bytes,
                                        (unsigned int)set->avg_bytes, (unsigned int)set->max_bytes);
        if (key == NULL || value == NULL || PyDict_SetItem(sets, key, value) != 0)
            Py_CLEAR(sets);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return sets;
}

/* Takes over the reference to value, which may be NULL with an exception. */
static int add(PyObject *module, const char *name, PyObject *value)
{
    int result = value ? PyModule_AddObjectRef(module, name, value) : -1;
    Py_XDECREF(value);
    return result;
}

static int module_exec(PyObject *module)
{
    struct module_state *state = state_of(module);

    state->corrupt_block = PyErr_NewExceptionWithDoc(
        "agentfs.chunks.CorruptBlock",
        "Stored bytes are damaged. Attributes: segment, offset_bytes, reason.", NULL, NULL);
    state->newer_format = PyErr_NewExceptionWithDoc(
        "agentfs.chunks.NewerFormat",
        "Written by a newer agentfs. Attributes: segment, offset_bytes, reason.", NULL, NULL);
    if (add(module, "CorruptBlock", Py_XNewRef(state->corrupt_block)) != 0 ||
        add(module, "NewerFormat", Py_XNewRef(state->newer_format)) != 0 ||
        add(module, "Store", PyType_FromModuleAndSpec(module, &store_spec, NULL)) != 0 ||
        add(module, "PARAMETER_SETS", parameter_sets()) != 0 ||
        PyModule_AddIntConstant(module, "CUT_SMALL", CUTTER_SMALL) != 0 ||
        PyModule_AddIntConstant(module, "CUT_LARGE", CUTTER_LARGE) != 0 ||
        PyModule_AddIntConstant(module, "CUT_HUGE", CUTTER_HUGE) != 0 ||
        PyModule_AddIntConstant(module, "AHEAD_BYTES", STORE_AHEAD_BYTES) != 0 ||
        PyModule_AddIntConstant(module, "BLOCK_RAW_MAX", BLOCK_RAW_MAX) != 0 ||
        PyModule_AddIntConstant(module, "BLOCK_HEADER_BYTES", BLOCK_HEADER_BYTES) != 0 ||
        PyModule_AddIntConstant(module, "DICTIONARY_MAX", DICTIONARY_MAX) != 0)
        return -1;
    return 0;
}

static int module_traverse(PyObject *module, visitproc visit, void *arg)
{
    struct module_state *state = state_of(module);
    Py_VISIT(state->corrupt_block);
    Py_VISIT(state->newer_format);
    return 0;
}

static int module_clear(PyObject *module)
{
    struct module_state *state = state_of(module);
    Py_CLEAR(state->corrupt_block);
    Py_CLEAR(state->newer_format);
    return 0;
}

static PyMethodDef module_methods[] = {
    {"params_for_size", module_params_for_size, METH_O, params_for_size_doc},
    {"cut", KEYWORDS(module_cut), cut_doc},
    {"crc32c", KEYWORDS(module_crc32c), crc32c_doc},
    {"train_dictionary", training_train, METH_VARARGS, training_train_doc},
    {"compressed_bytes", training_measure, METH_VARARGS, training_measure_doc},
    {"fallocate", module_fallocate, METH_VARARGS, fallocate_doc},
    {0},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "agentfs.chunks._native",
    .m_doc = "The chunk store in C; agentfs.chunks is its face.",
    .m_size = sizeof(struct module_state),
    .m_methods = module_methods,
    .m_slots = module_slots,
    .m_traverse = module_traverse,
    .m_clear = module_clear,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
