/*
 * What modules for Python share.
 */
#ifndef AGENTFS_BINDING_H
#define AGENTFS_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdbool.h>

/* For a PyMethodDef: a method that takes keywords. */
#define KEYWORDS(function) (PyCFunction)(void (*)(void))(function), METH_VARARGS | METH_KEYWORDS

/* Takes over the reference to item, which may be NULL; false with an exception. */
static inline bool append(PyObject *list, PyObject *item)
{
    bool is_done = item && PyList_Append(list, item) == 0;
    Py_XDECREF(item);
    return is_done;
}

/* For a return statement: None, or NULL when there is an exception. */
static inline PyObject *none_when(bool is_done)
{
    return is_done ? Py_NewRef(Py_None) : NULL;
}

#endif
