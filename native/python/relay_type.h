/*
 * agentfs.fuse._relay.Relay, and what its module shares with it.
 */
#ifndef AGENTFS_RELAY_TYPE_H
#define AGENTFS_RELAY_TYPE_H

#include "binding.h"

extern PyType_Spec relay_spec;

/* Always NULL, for a return statement. filename may be NULL. */
PyObject *raise_errno(int error, PyObject *filename);

/* Takes over the reference to mountpoint, which is bytes. */
PyObject *unmount(PyObject *mountpoint, bool lazy);

#endif
