#define _GNU_SOURCE
#include "io.h"

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

int io_read(int fd, void *into, size_t size, uint64_t offset, size_t *got)
{
    *got = 0;
    while (*got < size) {
        ssize_t n = pread(fd, (char *)into + *got, size - *got, (off_t)(offset + *got));
        if (n == 0)
            break;
        if (n > 0)
            *got += (size_t)n;
        else if (errno != EINTR)
            return errno;
    }
    return 0;
}

int io_write(int fd, struct iovec *parts, int count, uint64_t offset)
{
    while (count > 0) {
        ssize_t n = pwritev(fd, parts, count, (off_t)offset);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return errno;
        }
        if (n == 0)
            return EIO;
        offset += (uint64_t)n;
        while (count > 0 && (size_t)n >= parts->iov_len) {
            n -= (ssize_t)parts->iov_len;
            parts++;
            count--;
        }
        if (count > 0) {
            parts->iov_base = (char *)parts->iov_base + n;
            parts->iov_len -= (size_t)n;
        }
    }
    return 0;
}

int io_size(int fd, uint64_t *size)
{
    struct stat facts;
    if (fstat(fd, &facts) != 0)
        return errno;
    *size = (uint64_t)facts.st_size;
    return 0;
}
