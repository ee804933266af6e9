/* Whole reads and writes at an offset: EINTR and short transfers are dealt with here. */
#ifndef AGENTFS_IO_H
#define AGENTFS_IO_H

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/* Each returns 0 or an errno. A read that meets the end of the file is EIO-free: *got says how far
 * it came. */
int io_read(int fd, void *into, size_t size, uint64_t offset, size_t *got);

/* Writes all parts or fails; the parts are consumed. */
int io_write(int fd, struct iovec *parts, int count, uint64_t offset);

int io_size(int fd, uint64_t *size);

#endif
