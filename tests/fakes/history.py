"""What may be in a folder after a kill or a power cut, from what was done in it.

The contract of docs/DURABILITY.md as a program, for one folder that one program changes, one
operation after the other: `History.after_kill` and `after_cut` say what is wrong with what is
there.
"""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fakes.recorder import Op, data_of


@dataclass
class Seen:
    """A file as it is found."""

    number: int
    """Names of one inode have the same."""
    mode: int
    data: bytes


def look(folder: Path) -> dict[str, Seen]:
    """What is in a folder."""
    found = {}
    for path in folder.iterdir() if folder.exists() else ():
        status = path.stat()
        found[path.name] = Seen(status.st_ino, stat.S_IMODE(status.st_mode), path.read_bytes())
    return found


@dataclass(eq=False)
class _File:
    versions: list[bytes]
    durable: int = 0
    """The oldest version that a power cut may leave."""

    def describe(self, data: bytes) -> str:
        known = [number for number, version in enumerate(self.versions) if version == data]
        sizes = [len(version) for version in self.versions]
        return (
            f"{len(data)} bytes {data[:20]!r}..{data[-20:]!r}, versions {known} "
            f"of sizes {sizes}, durable from {self.durable}"
        )


@dataclass(frozen=True)
class _Loan:
    """What a file may show that was renamed over another while none of its bytes were durable."""

    file: _File
    mode: int
    """Who could not read the other cannot read it by this."""
    loan: _Loan | None
    """The other may show another in turn."""


@dataclass(frozen=True)
class _Name:
    """What a name means at one moment."""

    file: _File
    mode: int
    version: int
    loan: _Loan | None = None


_Moment = dict[str, _Name]
_PAGE_BYTES = 4096


def is_between(old: bytes, new: bytes, seen: bytes) -> bool:
    """Whether a part of one change makes *old* into *seen*, and the rest *seen* into *new*."""
    if seen in (old, new):
        return True
    if not min(len(old), len(new)) <= len(seen) <= max(len(old), len(new)):
        return False
    for start in range(0, len(seen), _PAGE_BYTES):
        page, before, after = (data[start : start + _PAGE_BYTES] for data in (seen, old, new))
        if page not in (before, after) and not all(
            byte in (*before[at : at + 1], *after[at : at + 1]) for at, byte in enumerate(page)
        ):
            return False
    return True


class History:
    """What one program did in one folder."""

    def __init__(
        self, before: dict[str, Seen] | None = None, *, msync_reaches_us: bool = False
    ) -> None:
        """
        :param before: what was there, and durable, at its begin
        :param msync_reaches_us: in plain mode; in relay mode the kernel syncs a file on tmpfs
        """
        files: dict[int, _File] = {}
        moment = {}
        for name, seen in (before or {}).items():
            file = files.setdefault(seen.number, _File([seen.data]))
            moment[name] = _Name(file, seen.mode, 0)
        self._moments: list[_Moment] = [moment]
        self._done = 0
        """The moment after the last operation that is known to be done."""
        self._durable = 0
        """The earliest moment whose names a power cut may leave."""
        self._syncing = ("fsync", "map") if msync_reaches_us else ("fsync",)
        self._last: Op = ()
        self.ops: list[Op] = []

    @classmethod
    def read(
        cls,
        log: Path,
        before: dict[str, Seen],
        *,
        msync_reaches_us: bool,
        power_fails_at: float = math.inf,
    ) -> History:
        """A history as a recorder wrote it down.

        :param power_fails_at: by time.monotonic(); no program hears an answer after it
        """
        history = cls(before, msync_reaches_us=msync_reaches_us)
        for line in log.read_text().splitlines() if log.exists() else ():
            if line.startswith("ok "):
                if float(line[3:]) < power_fails_at:
                    history.done()
            elif not line.startswith("#"):
                history.begin(tuple(json.loads(line)))
        return history

    def do(self, op: Op) -> None:
        """An operation that is begun and done."""
        self.begin(op)
        self.done()

    def begin(self, op: Op) -> None:
        """An operation may have an effect from now on."""
        self._last = op
        self.ops.append(op)
        moment = dict(self._moments[-1])
        getattr(self, f"_{op[0]}")(moment, *op[1:])
        self._moments.append(moment)

    def done(self) -> None:
        """The last operation has returned."""
        self._done = len(self._moments) - 1
        if self._last[0] == "fsyncdir":
            self._durable = self._done
        if self._last[0] in self._syncing:
            moment = self._moments[-1]
            file = moment[self._last[1]].file
            file.durable = len(file.versions) - 1
            self._change(moment, file, loan=None)
            self._durable = self._done

    # Operations

    def _create(self, moment: _Moment, name: str) -> None:
        moment[name] = _Name(_File([b""]), 0o644, 0)

    def _write(self, moment: _Moment, name: str, offset: int, tag: str, length: int) -> None:
        old = moment[name].file.versions[-1].ljust(offset, b"\0")
        self._set(moment, name, old[:offset] + data_of(tag, length) + old[offset + length :])

    def _map(self, moment: _Moment, name: str, tag: str) -> None:
        length = len(moment[name].file.versions[-1])
        self._set(moment, name, data_of(tag, length))

    def _truncate(self, moment: _Moment, name: str, length: int) -> None:
        old = moment[name].file.versions[-1]
        self._set(moment, name, old[:length].ljust(length, b"\0"))

    def _set(self, moment: _Moment, name: str, data: bytes) -> None:
        file = moment[name].file
        file.versions.append(data)
        self._change(moment, file, version=len(file.versions) - 1)

    @staticmethod
    def _change(moment: _Moment, file: _File, **fields: Any) -> None:
        for name, now in moment.items():
            if now.file is file:
                moment[name] = replace(now, **fields)

    def _chmod(self, moment: _Moment, name: str, mode: int) -> None:
        self._change(moment, moment[name].file, mode=mode)

    def _rename(self, moment: _Moment, old: str, new: str) -> None:
        file = moment[old].file
        victim = moment.get(new)
        if victim and victim.file is file:
            return
        moment[new] = replace(moment.pop(old), loan=None)
        # None of its bytes may be durable: then the name may go on to show what it showed.
        if victim and file.versions[-1] and not file.versions[file.durable]:
            lender = _File(victim.file.versions, victim.file.durable)
            moment[new] = replace(moment[new], loan=_Loan(lender, victim.mode, victim.loan))

    def _link(self, moment: _Moment, old: str, new: str) -> None:
        self._change(moment, moment[old].file, loan=None)
        moment[new] = moment[old]

    def _unlink(self, moment: _Moment, name: str) -> None:
        del moment[name]

    def _fsync(self, moment: _Moment, name: str) -> None:
        pass

    def _fsyncdir(self, moment: _Moment) -> None:
        pass

    # What may be there

    def after_kill(self, seen: dict[str, Seen]) -> str | None:
        """What is wrong with *seen*: it is neither before nor after the last operation."""
        moments = self._moments[self._done :]
        complaints = [self._differs(moment, seen, self._is_current) for moment in moments]
        return self._judge(complaints)

    def after_cut(self, seen: dict[str, Seen]) -> str | None:
        """What is wrong with *seen*: names of no moment since the last flush, or foreign bytes."""
        moments = self._moments[self._durable :]
        complaints = [self._differs(moment, seen, self._is_possible) for moment in moments]
        return self._judge(complaints)

    def _judge(self, complaints: list[str | None]) -> str | None:
        if None in complaints:
            return None
        closest = [text for text in complaints if text and not text.startswith("names")]
        wrong = " or ".join(sorted(set(closest or complaints)))  # type: ignore[arg-type]
        return f"{wrong}; last operations: {self.ops[-30:]}"

    @staticmethod
    def _differs(moment: _Moment, seen: dict[str, Seen], is_right: object) -> str | None:
        if set(moment) != set(seen):
            return f"names {sorted(seen)}, not {sorted(moment)}"
        numbers: dict[_File, int] = {}
        for name, now in moment.items():
            found = seen[name]
            if numbers.setdefault(now.file, found.number) != found.number:
                return f"{name} is another file than before"
            if found.mode != now.mode:
                return f"{name} has mode {found.mode:o}, not {now.mode:o}"
            if not is_right(moment, name, found.data):  # type: ignore[operator]
                return f"{name} is wrong: {now.file.describe(found.data)}"
        return None if len(set(numbers.values())) == len(numbers) else "two files became one"

    def _is_current(self, moment: _Moment, name: str, data: bytes) -> bool:
        now = moment[name]
        versions = now.file.versions
        if data == versions[now.version]:
            return True
        is_under_way = self._done < len(self._moments) - 1 and self._last[0] in _CHANGES
        if not is_under_way or self._moments[-1][self._last[1]].file is not now.file:
            return False
        return is_between(versions[-2], versions[-1], data)

    @staticmethod
    def _is_possible(moment: _Moment, name: str, data: bytes) -> bool:
        now = moment[name]
        pairs = list(_pairs(now.file))
        names = sum(other.file is now.file for other in moment.values())
        loan, mode = now.loan, now.mode
        while loan and names == 1 and not mode & ~loan.mode & 0o444:
            pairs += _pairs(loan.file)
            loan, mode = loan.loan, loan.mode
        return any(is_between(old, new, data) for old, new in pairs)


_CHANGES = ("write", "map", "truncate")


def _pairs(file: _File) -> Iterator[tuple[bytes, bytes]]:
    """Versions that may be found, with the next one: a seal during a write finds a part of it."""
    versions = file.versions[file.durable :]
    return zip(versions, versions[1:] or versions, strict=False)
