/*
 * The functions of agentfs.chunks._native that train dictionaries.
 */
#include "training.h"

#include <zstd.h>

#include "format.h"
#include "trainer.h"

/* The lengths of bytes objects in a sequence; PyMem_Free() them. NULL with an exception. */
static size_t *lengths_of(PyObject *samples, size_t *count)
{
    *count = (size_t)PyTuple_GET_SIZE(samples);
    size_t *sizes = PyMem_New(size_t, *count ? *count : 1);
    if (sizes == NULL)
        PyErr_NoMemory();
    for (size_t i = 0; sizes && i < *count; i++) {
        PyObject *item = PyTuple_GET_ITEM(samples, (Py_ssize_t)i);
        if (!PyBytes_Check(item)) {
            PyErr_SetString(PyExc_TypeError, "a sample is bytes");
            PyMem_Free(sizes);
            return NULL;
        }
        sizes[i] = (size_t)PyBytes_GET_SIZE(item);
    }
    return sizes;
}

/* Samples one behind the other, as zstd wants them. */
struct joined {
    PyObject *bytes; /* owned */
    size_t *sizes;   /* owned */
    size_t count;
};

static void joined_free(struct joined *joined)
{
    Py_XDECREF(joined->bytes);
    PyMem_Free(joined->sizes);
}

/* False with an exception. */
static bool join(PyObject *sequence, struct joined *joined)
{
    *joined = (struct joined){0};
    PyObject *samples = PySequence_Tuple(sequence);
    PyObject *nothing = PyBytes_FromStringAndSize(NULL, 0);
    if (samples && nothing)
        joined->sizes = lengths_of(samples, &joined->count);
    if (joined->sizes)
        joined->bytes = PyObject_CallMethod(nothing, "join", "(O)", samples);
    Py_XDECREF(nothing);
    Py_XDECREF(samples);
    if (joined->bytes == NULL)
        joined_free(joined);
    return joined->bytes != NULL;
}

static const uint8_t *start_of(const struct joined *joined)
{
    return (const uint8_t *)PyBytes_AS_STRING(joined->bytes);
}

const char training_train_doc[] =
    "train_dictionary($module, samples, size_bytes, /)\n--\n\n"
    "A dictionary of at most *size_bytes* for what is like *samples*; empty when they make "
    "none.\n\n"
    "Drops the GIL; some 100 ms of CPU a MiB of samples, in one go.\n\n"
    ":param samples: bytes objects\n"
    ":param size_bytes: 256 to DICTIONARY_MAX";

PyObject *training_train(PyObject *module, PyObject *args)
{
    PyObject *sequence;
    Py_ssize_t capacity;
    struct joined joined;
    enum status status;
    size_t size;

    (void)module;
    if (!PyArg_ParseTuple(args, "On:train_dictionary", &sequence, &capacity))
        return NULL;
    if (capacity < 256 || capacity > DICTIONARY_MAX)
        return PyErr_Format(PyExc_ValueError, "size_bytes must be 256 .. %d", DICTIONARY_MAX);
    if (!join(sequence, &joined))
        return NULL;
    PyObject *result = PyBytes_FromStringAndSize(NULL, capacity);
    if (result) {
        uint8_t *into = (uint8_t *)PyBytes_AS_STRING(result);
        Py_BEGIN_ALLOW_THREADS
            status = trainer_train(start_of(&joined), joined.sizes, joined.count, into,
                                   (size_t)capacity, &size);
        Py_END_ALLOW_THREADS
        if (status == STATUS_OK) {
            _PyBytes_Resize(&result, (Py_ssize_t)size);
        } else {
            Py_CLEAR(result);
            PyErr_NoMemory();
        }
    }
    joined_free(&joined);
    return result;
}

const char training_measure_doc[] =
    "compressed_bytes($module, samples, level, dictionary=None, /)\n--\n\n"
    "What *samples* (bytes objects) take in all, each compressed by itself. Drops the GIL.";

PyObject *training_measure(PyObject *module, PyObject *args)
{
    PyObject *sequence;
    Py_buffer dictionary = {0};
    struct joined joined;
    enum status status;
    uint64_t stored;
    int level;

    (void)module;
    if (!PyArg_ParseTuple(args, "Oi|z*:compressed_bytes", &sequence, &level, &dictionary))
        return NULL;
    bool is_done = join(sequence, &joined);
    if (is_done) {
        Py_BEGIN_ALLOW_THREADS
            status = trainer_measure(start_of(&joined), joined.sizes, joined.count, level,
                                     dictionary.buf, (size_t)dictionary.len, &stored);
        Py_END_ALLOW_THREADS
        joined_free(&joined);
        is_done = status == STATUS_OK;
        if (!is_done)
            PyErr_NoMemory();
    }
    if (dictionary.obj)
        PyBuffer_Release(&dictionary);
    return is_done ? PyLong_FromUnsignedLongLong(stored) : NULL;
}
