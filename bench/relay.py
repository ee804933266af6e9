"""What the relay costs per operation, beside tmpfs, pyfuse3 alone and libfuse's passthrough.

    python -m bench.relay [--passthrough-hp PATH] [--rounds N]

The filesystem is the tests' `tests/45_relay/relayed.py`, the client is C, compiled here with cc.
Rounds go through all targets in turn, so that other load hits all alike; the figure is the median
of the rounds, each the best of five runs. Needs root.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.common import Results, benchmark, compile_client, medians, parser, shown, table

ROOT = Path(__file__).parent.parent
IMAGE_BYTES = 64 << 20
IDLE_S = 5.0

CLIENT = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 1 << 20, RUNS = 5, WRITES = 128 };
static char buffer[BUFFER];

static int checked(long result, const char *what)
{
    if (result < 0) { perror(what); exit(1); }
    return (int)result;
}

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Returns the bytes it moved. */
static long once(const char *kind, const char *path, int number)
{
    long bytes = 0;
    if (strcmp(kind, "lookup") == 0) {
        char missing[4096];
        struct stat stat_;
        snprintf(missing, sizeof missing, "%s/missing-%d-%d", path, getpid(), number);
        if (stat(missing, &stat_) == 0) exit(1);
        return 0;
    }
    int writes = strcmp(kind, "write") == 0;
    int fd = checked(open(path, writes ? O_WRONLY | O_CREAT : O_RDONLY, 0644), path);
    if (strcmp(kind, "open_read_close") == 0) {
        checked(read(fd, buffer, 4096), "read");
    } else if (strcmp(kind, "open_mmap_touch") == 0) {
        volatile char *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
        if (map == MAP_FAILED) { perror("mmap"); exit(1); }
        (void)map[0];
        munmap((void *)map, 4096);
    } else if (strcmp(kind, "read") == 0) {
        int got;
        while ((got = checked(read(fd, buffer, BUFFER), "read")) > 0) bytes += got;
    } else if (writes) {
        for (int i = 0; i < WRITES; i++) bytes += checked(write(fd, buffer, BUFFER), "write");
    }
    close(fd);
    return bytes;
}

/* kind path times: microseconds each, or GB/s where bytes are moved. */
int main(int argc, char **argv)
{
    int times = argc == 4 ? atoi(argv[3]) : 0;
    double best = 1e9;
    long bytes = 0;
    for (int run = 0, number = 0; run < RUNS; run++) {
        double start = now();
        bytes = 0;
        for (int i = 0; i < times; i++) bytes += once(argv[1], argv[2], number++);
        double taken = now() - start;
        if (taken < best) best = taken;
    }
    printf("%f\n", bytes ? (double)bytes / best / 1e9 : best / times * 1e6);
}
"""

# kind: unit, times per run
KINDS = {
    "open_close": ("us", 3000),
    "open_read_close": ("us", 3000),
    "open_mmap_touch": ("us", 2000),
    "lookup": ("us", 500),
    "read": ("GB/s", 3),
    "write": ("GB/s", 1),
}


@contextmanager
def relayed(path: Path, backing: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The tests' filesystem, with a resident file `image` and a writable one `written`."""
    process = subprocess.Popen(
        [sys.executable, ROOT / "tests/45_relay/relayed.py", path, backing, *options],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        assert "mounted" in process.stdout.readline()
        for name, more in (("image", ""), ("written", ", writable=True")):
            process.stdin.write(f"fs.add('{name}', fs.image('{name}'){more})\n")
            process.stdin.flush()
            assert "value" in process.stdout.readline()
        try:
            yield process
        finally:
            subprocess.run(["umount", "-l", path], check=True)
            process.stdin.close()


@contextmanager
def passthrough_hp(program: Path, path: Path, backing: Path) -> Iterator[None]:
    """libfuse's example that does the same, in C++."""
    process = subprocess.Popen(
        [program, "--foreground", backing, path],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    with process:
        while not path.is_mount():
            time.sleep(0.05)
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", path], check=True)
            process.terminate()


def processor_ms(process: subprocess.Popen[str]) -> float:
    """What the process and its threads have used."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    made = parser("relay", __doc__)
    made.add_argument("--passthrough-hp", type=Path, metavar="PATH", help="libfuse's, built")
    made.add_argument("--rounds", type=int, default=5, help="of all targets (default 5)")
    return made


def measure(chosen: argparse.Namespace) -> Results:
    """All are mounted at once and take turns."""
    with ExitStack() as stack:
        top = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=chosen.work)))
        backing = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/dev/shm")))
        (backing / "image").write_bytes(os.urandom(IMAGE_BYTES))
        targets = {"tmpfs": backing}
        for name in ("relay", "pyfuse3", *(["passthrough_hp"] if chosen.passthrough_hp else [])):
            targets[name] = top / name
            targets[name].mkdir()
        process = stack.enter_context(relayed(targets["relay"], backing))
        stack.enter_context(relayed(targets["pyfuse3"], backing, "--direct"))
        if chosen.passthrough_hp:
            mounting = passthrough_hp(chosen.passthrough_hp, targets["passthrough_hp"], backing)
            stack.enter_context(mounting)
        client = compile_client(CLIENT, top)
        kinds = {kind: measure_kind(client, kind, targets, chosen.rounds) for kind in KINDS}
        before = processor_ms(process)
        time.sleep(IDLE_S)
        return {"kinds": kinds, "idle_ms": processor_ms(process) - before}


def measure_kind(
    client: Path, kind: str, targets: dict[str, Path], rounds: int
) -> dict[str, float]:
    """The median of each target."""
    name = {"lookup": "", "write": "written"}.get(kind, "image")
    figures: list[dict[str, float]] = []
    for _ in range(rounds):
        commands = {
            target: [str(client), kind, str(path / name), str(KINDS[kind][1])]
            for target, path in targets.items()
        }
        figures.append({of: float(subprocess.check_output(commands[of])) for of in targets})
    return medians(figures)


def show(results: Results) -> None:
    """Kinds down, targets across."""
    targets = list(next(iter(results["kinds"].values())))
    table(
        f"Processor time of the relay, idle: {results['idle_ms']:.0f} ms in {IDLE_S:.0f} s",
        ["operation", "unit", *targets],
        [
            [kind, KINDS[kind][0], *(shown(one[target], 2) for target in targets)]
            for kind, one in results["kinds"].items()
        ],
    )


def main() -> int:
    """Measure, show, write."""
    return benchmark("relay", arguments(), measure, show)


if __name__ == "__main__":
    sys.exit(main())
