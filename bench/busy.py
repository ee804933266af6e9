"""One busy program: it does everything a program can do with files, and knows what must come of it.

    python bench/busy.py DIR SECONDS SEED

Works in DIR, which it makes, and says in the end, as JSON, how many operations it did, which of
them failed or gave something wrong, and how long the longest took.
"""

import ctypes
import json
import mmap
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

FILES_MAX = 60
BYTES_MAX = 40_000
ERRORS_SHOWN = 20
RENAME_EXCHANGE = 2
AT_FDCWD = -100

_libc = ctypes.CDLL(None, use_errno=True)


def difference(found: bytes, wanted: bytes) -> str:
    """Where the first wrong byte is, of how many."""
    pairs = enumerate(zip(found, wanted, strict=False))
    first = next((at for at, (one, other) in pairs if one != other), min(len(found), len(wanted)))
    return f"{len(found)} bytes, not {len(wanted)}; other from {first} on"


class Busy:
    """The program, and what it believes of its directory."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.files: dict[str, bytes] = {}
        self.others: set[str] = {"journal"}
        self.made = 0
        self.operations = 0
        self.longest_s = 0.0
        self.longest = ""
        self.errors: list[str] = []
        folder.mkdir()
        self.journal = (folder / "journal").open("a+b", buffering=0)
        self.written = b""

    def run(self, seconds: float) -> None:
        """Do one thing after another, then look at everything once more."""
        steps: list[Callable[[], None]] = [
            self.create,
            self.create,
            self.append,
            self.read,
            self.read_mapped,
            self.write_mapped,
            self.rename,
            self.replace,
            self.exchange,
            self.unlink,
            self.link,
            self.make_directory,
            self.list,
            self.truncate,
            self.set_attribute,
            self.keep_journal,
            self.sync,
        ]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.step(self.random.choice(steps))
        for name in list(self.files):
            self.step(lambda name=name: self.compare(name))
        self.step(self.list)
        self.step(self.compare_journal)

    def step(self, do: Callable[[], None]) -> None:
        """One operation, timed; what is wrong with it is noted."""
        start = time.monotonic()
        try:
            do()
        except (OSError, AssertionError) as error:
            self.errors.append(f"{getattr(do, '__name__', 'compare')}: {error!r}")
        took = time.monotonic() - start
        self.operations += 1
        if took > self.longest_s:
            self.longest_s, self.longest = took, getattr(do, "__name__", "compare")

    def any(self) -> str:
        """A file that there is."""
        if not self.files:
            self.create()
        return self.random.choice(list(self.files))

    def fresh(self) -> str:
        """A name that nothing has."""
        self.made += 1
        return f"{self.random.randrange(1000):03}-{self.made}"

    def path(self, name: str) -> str:
        return f"{self.folder}/{name}"

    def bytes(self) -> bytes:
        return self.random.randbytes(self.random.randrange(1, BYTES_MAX))

    # What it does

    def create(self) -> None:
        if len(self.files) > FILES_MAX:
            self.unlink()
        name, data = self.fresh(), self.bytes()
        self.files[name] = b""
        with open(self.path(name), "xb", buffering=0) as file:
            self.files[name] = data
            assert file.write(data) == len(data), "short write"
        assert os.stat(self.path(name)).st_size == len(data), f"size of {name}"

    def append(self) -> None:
        """A few turns of a conversation."""
        name = self.any()
        for _ in range(self.random.randrange(1, 7)):
            data = self.bytes()
            with open(self.path(name), "ab", buffering=0) as file:
                self.files[name] += data
                file.write(data)
        if len(self.files[name]) > 10 * BYTES_MAX:
            self.truncate(name)

    def compare(self, name: str) -> None:
        with open(self.path(name), "rb", buffering=0) as file:
            found = file.read()
        assert found == self.files[name], f"{name}: {difference(found, self.files[name])}"

    def read(self) -> None:
        self.compare(self.any())

    def read_mapped(self) -> None:
        name = self.any()
        if self.files[name]:
            with (
                open(self.path(name), "rb") as file,
                mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped,
            ):
                assert mapped[:] == self.files[name], f"{name} mapped"

    def write_mapped(self) -> None:
        name = self.any()
        if self.files[name]:
            with (
                open(self.path(name), "r+b", buffering=0) as file,
                mmap.mmap(file.fileno(), 0) as mapped,
            ):
                byte = bytes([self.random.randrange(256)])
                self.files[name] = byte + self.files[name][1:]
                mapped[0:1] = byte
                mapped.flush()
            self.compare(name)

    def rename(self) -> None:
        name, to = self.any(), self.fresh()
        self.files[to] = self.files.pop(name)
        os.rename(self.path(name), self.path(to))
        self.compare(to)

    def replace(self) -> None:
        name, to = self.any(), self.any()
        if name != to:
            self.files[to] = self.files.pop(name)
            os.rename(self.path(name), self.path(to))
            self.compare(to)

    def exchange(self) -> None:
        one, other = self.any(), self.any()
        if one != other:
            self.files[one], self.files[other] = self.files[other], self.files[one]
            paths = (os.fsencode(self.path(one)), os.fsencode(self.path(other)))
            if _libc.renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], RENAME_EXCHANGE) != 0:
                raise OSError(ctypes.get_errno(), "renameat2")
            self.compare(one)

    def unlink(self) -> None:
        """Half of the time while it is open."""
        name = self.any()
        data = self.files.pop(name)
        if self.random.random() < 0.5:
            os.unlink(self.path(name))
        else:
            with open(self.path(name), "rb", buffering=0) as file:
                os.unlink(self.path(name))
                assert file.read() == data, f"{name} after unlink"
                assert os.fstat(file.fileno()).st_nlink == 0, f"links of {name}"
        assert not os.path.exists(self.path(name)), f"{name} is still there"

    def link(self) -> None:
        name, to = self.any(), self.fresh()
        os.link(self.path(name), self.path(to))
        assert os.stat(self.path(to)).st_nlink == 2, f"links of {name}"
        os.unlink(self.path(to))
        os.symlink(name, self.path(to))
        assert os.readlink(self.path(to)) == name
        os.unlink(self.path(to))

    def make_directory(self) -> None:
        """With a file in it, moved, and removed again."""
        name, to = self.fresh(), self.fresh()
        os.mkdir(self.path(name))
        with open(f"{self.path(name)}/inside", "xb") as file:
            file.write(b"inside")
        os.rename(self.path(name), self.path(to))
        assert os.listdir(self.path(to)) == ["inside"]
        os.unlink(f"{self.path(to)}/inside")
        os.rmdir(self.path(to))

    def list(self) -> None:
        found = sorted(os.listdir(self.folder))
        wanted = sorted([*self.files, *self.others])
        assert found == wanted, f"listing: {set(found) ^ set(wanted)}"

    def truncate(self, name: str = "") -> None:
        name = name or self.any()
        self.files[name] = self.files[name][: len(self.files[name]) // 2]
        os.truncate(self.path(name), len(self.files[name]))
        assert os.stat(self.path(name)).st_size == len(self.files[name]), f"size of {name}"

    def set_attribute(self) -> None:
        name = self.any()
        os.chmod(self.path(name), 0o600)
        os.setxattr(self.path(name), "user.seed", b"1")
        assert os.getxattr(self.path(name), "user.seed") == b"1"
        os.removexattr(self.path(name), "user.seed")
        os.utime(self.path(name), ns=(10**18, 10**18 + 5))
        assert os.stat(self.path(name)).st_mtime_ns == 10**18 + 5, f"times of {name}"

    def keep_journal(self) -> None:
        """Append to a file that stays open."""
        data = self.random.randbytes(100)
        self.written += data
        self.journal.write(data)
        assert os.fstat(self.journal.fileno()).st_size == len(self.written), "size of the journal"

    def compare_journal(self) -> None:
        assert (self.folder / "journal").read_bytes() == self.written, "the journal"

    def sync(self) -> None:
        os.fsync(self.journal.fileno())


def main() -> None:
    """Be busy; print what came of it."""
    busy = Busy(Path(sys.argv[1]), int(sys.argv[3]))
    busy.run(float(sys.argv[2]))
    answer = {
        "operations": busy.operations,
        "failed": len(busy.errors),
        "errors": busy.errors[:ERRORS_SHOWN],
        "longest_s": busy.longest_s,
        "longest": busy.longest,
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
