/*
 * Training dictionaries, for Python.
 */
#ifndef AGENTFS_TRAINING_H
#define AGENTFS_TRAINING_H

#include "binding.h"

PyObject *training_train(PyObject *module, PyObject *args);
PyObject *training_measure(PyObject *module, PyObject *args);

extern const char training_train_doc[];
extern const char training_measure_doc[];

#endif
