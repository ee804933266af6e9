/* /dev/fuse: opening, mounting, cloning, backing files. Everything here needs privileges. */
#ifndef AGENTFS_RELAY_DEVICE_H
#define AGENTFS_RELAY_DEVICE_H

#include <stdbool.h>
#include <stdint.h>

/* A new connection's descriptor, or -1 with errno. */
int device_open(void);

/* 0 or an errno. options: comma-separated, a backslash takes the meaning from a comma. fsname= is
 * what /proc/mounts shows as source; ro, noexec, noatime, nodiratime, relatime, strictatime, sync,
 * dirsync, suid, dev and their like become flags; the rest goes to the kernel. nosuid and nodev are
 * the default. */
int device_mount(int device, const char *mountpoint, const char *options);

/* 0 or an errno. */
int device_unmount(const char *mountpoint, bool lazy);

/* Another descriptor of the same connection, or -1 with errno. */
int device_clone(int device);

/* A backing id, or -1 with errno. */
int32_t device_backing_open(int device, int fd);

/* 0 or an errno. */
int device_backing_close(int device, int32_t backing_id);

/* Tries passthrough with a mount that is attached nowhere. NULL when it works, else why not, which
 * may refer to reason. */
const char *device_probe(char *reason, unsigned reason_bytes);

#endif
