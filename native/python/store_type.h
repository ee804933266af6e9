/*
 * agentfs.chunks.Store, and what its module keeps for it.
 */
#ifndef AGENTFS_STORE_TYPE_H
#define AGENTFS_STORE_TYPE_H

#include "binding.h"

struct module_state {
    PyObject *corrupt_block; /* owned */
    PyObject *newer_format;  /* owned */
};

extern PyType_Spec store_spec;

#endif
