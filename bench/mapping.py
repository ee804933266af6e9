"""Processes that map files and touch all of them, each with no memory but that.

They are C: a forked CPython copies the pages of all objects that it counts references to, and how
many those are depends on what it runs: 100 KiB more or less for each process.
"""

import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from bench.common import compile_client

_CLIENT = r"""
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

struct mapped { const volatile char *bytes; size_t size; };

static struct mapped map(const char *path)
{
    struct stat status;
    int fd = open(path, O_RDONLY);
    if (fd < 0 || fstat(fd, &status) < 0) { perror(path); exit(1); }
    void *bytes = mmap(NULL, (size_t)status.st_size, PROT_READ, MAP_SHARED, fd, 0);
    if (bytes == MAP_FAILED) { perror(path); exit(1); }
    close(fd);
    return (struct mapped){bytes, (size_t)status.st_size};
}

int main(int count, char **paths)
{
    struct mapped *all = calloc((size_t)count, sizeof *all);
    long page = sysconf(_SC_PAGESIZE);
    if (all == NULL) return 1;
    for (int i = 1; i < count; i++)
        all[i] = map(paths[i]);
    for (int i = 1; i < count; i++)
        for (size_t at = 0; at < all[i].size; at += (size_t)page)
            (void)all[i].bytes[at];
    if (write(STDOUT_FILENO, "k", 1) != 1) return 1;
    for (;;)
        pause();
}
"""


class Mapped(NamedTuple):
    """The processes, and how long it took from the start of the first."""

    pids: list[int]
    seconds: float


@contextmanager
def mappers(shares: Sequence[Sequence[Path]]) -> Iterator[Mapped]:
    """A process for each share, which has mapped its files and read a byte of each page.

    :raises RuntimeError: one has not
    """
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        client = compile_client(_CLIENT, directory)
        started, began_s = [], time.perf_counter()
        for share in shares:
            process = subprocess.Popen([client, *share], stdout=subprocess.PIPE)
            stack.enter_context(process)
            stack.callback(process.kill)
            started.append(process)
        for process in started:
            assert process.stdout is not None, "it is a pipe"
            if process.stdout.read(1) != b"k":
                raise RuntimeError(f"process {process.pid} ended before it had mapped its files")
        seconds = time.perf_counter() - began_s
        yield Mapped([process.pid for process in started], seconds)
