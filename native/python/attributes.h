/*
 * Inodes of Python (agentfs.model.Inode, or a tuple that begins with its fields) as the kernel
 * wants to be told of them: linux/fuse.h.
 */
#ifndef AGENTFS_ATTRIBUTES_H
#define AGENTFS_ATTRIBUTES_H

#include "binding.h"

#include <linux/fuse.h>
#include <stdint.h>

/* In the order of the fields of Inode, which is that of the columns of its row. */
#define INODE_FIELDS(X)                                                                            \
    X(id)                                                                                          \
    X(mode)                                                                                        \
    X(uid)                                                                                         \
    X(gid)                                                                                         \
    X(nlink)                                                                                       \
    X(size)                                                                                        \
    X(atime_ns)                                                                                    \
    X(mtime_ns)                                                                                    \
    X(ctime_ns)                                                                                    \
    X(content)                                                                                     \
    X(holes)                                                                                       \
    X(rdev)

enum inode_field {
#define INODE_FIELD(name) FIELD_##name,
    INODE_FIELDS(INODE_FIELD)
#undef INODE_FIELD
        FIELDS
};

/* The names of their attributes, interned; owned. The state of a module. */
struct inode_fields {
    PyObject *names[FIELDS];
};

/* False with an exception. */
bool inode_fields_init(struct inode_fields *fields);
void inode_fields_clear(struct inode_fields *fields);

/* What an inode says now. False with an exception. */
bool read_attributes(const struct inode_fields *fields, PyObject *inode, uint64_t nodeid,
                     uint64_t valid_s, struct fuse_attr_out *out);

/* Functions of a module whose state is a struct inode_fields; its documentation has their
 * arguments. */
PyObject *pack_entry(PyObject *module, PyObject *args);
PyObject *pack_attributes(PyObject *module, PyObject *args);
PyObject *pack_listing(PyObject *module, PyObject *args);

#endif
