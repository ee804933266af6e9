"""What files mean to agents: their kind, their agent, their tier; asked for, never kept up to date.

Nothing of this is worked out when a file is made, opened or written. What a content looks
like is noted with it when it is sealed; all else follows from where the file lies, and is
found when somebody asks. Attributes of a directory hold for all below it, down to those
of a nearer one.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from agentfs.filesystem.livefile import InodeTable
from agentfs.filesystem.namespace import Namespace
from agentfs.index import Index
from agentfs.index.agents import AGENTS_DIRECTORY
from agentfs.model import AGENT_ATTRIBUTE, KINDS, NAME_BYTES_MAX, ROOT_INODE, Inode, Kind
from agentfs.policy.kinds import Rules
from agentfs.policy.placement import IMPORTANCE_MAX, PAUSED

OWN_ATTRIBUTES: Final = b"user.agentfs."
"""Extended attributes that begin so are ours: some are kept, some computed, others refused."""

KIND_ATTRIBUTE: Final = OWN_ATTRIBUTES + b"kind"
IMPORTANCE_ATTRIBUTE: Final = OWN_ATTRIBUTES + b"importance"

PIN_ATTRIBUTE: Final = OWN_ATTRIBUTES + b"pin"

_TELLING = {b"tier", b"reduction"}
"""Attributes that depend on who else has, or has opened, a file of the same bytes."""

_NAMES_KEPT = 16_384


@dataclass(slots=True, frozen=True)
class Described:
    """One file as `agentfs ls` shows it."""

    name: str
    type: str
    """As in `ls -l`: - for a regular file, d for a directory."""
    size: int
    mtime_ns: int
    kind: str | None
    agent: str | None
    tier: str | None
    """hot: it stays on tmpfs; warm: on disk, and perhaps still on tmpfs; cold: the same, compacted.
    None: it has no bytes."""
    reduction: float | None
    """How many times smaller its part of the store is; None: it is not sealed, or not asked for."""


class Paths:
    """The names that lead to an inode."""

    def __init__(self, index: Index, table: InodeTable) -> None:
        self._dentries = index.dentries
        self._table = table
        self._names: dict[int, bytes] = {}
        """Of directories, looked at again each time they are used."""

    def above(self, inode: Inode) -> list[Inode]:
        """The directories that hold it, from the root on; empty: it has no name."""
        way: list[Inode] = []
        while inode.id != ROOT_INODE:
            if inode.parent is None:
                return []
            try:
                inode = self._table.get(inode.parent)
            except OSError:
                return []
            way.insert(0, inode)
        return way

    def names(self, way: Iterable[Inode]) -> list[bytes]:
        """Of directories that follow each other from the root on; the root has none."""
        return [self._directory_name(one) for one in way if one.id != ROOT_INODE]

    def _directory_name(self, directory: Inode) -> bytes:
        assert directory.parent is not None, "only the root has no directory above it"
        name = self._names.get(directory.id)
        if name is not None and self._dentries.means(directory.parent, name, directory.id):
            return name
        name = self._dentries.name_in(directory.parent, directory.id) or b""
        if len(self._names) >= _NAMES_KEPT:
            del self._names[next(iter(self._names))]
        self._names[directory.id] = name
        return name

    def place(self, inode: Inode) -> tuple[list[Inode], bytes]:
        """The directories above one of its names, and the name.

        Reads names: of its directory or, where that has none, all there are.
        """
        live = self._table.live(inode.id)
        if live is not None and live.name[1] and self._dentries.means(*live.name, inode.id):
            inode.parent = live.name[0]
            return self.above(inode), live.name[1]
        name = None if inode.parent is None else self._dentries.name_in(inode.parent, inode.id)
        if name is None:
            for parent, name in self._dentries.names_of(inode.id):
                inode.parent = parent
                return self.above(inode), name
        return self.above(inode), name or b""


class Describer:
    """Says what files mean."""

    def __init__(
        self,
        index: Index,
        table: InodeTable,
        namespace: Namespace,
        rules: Rules,
        *,
        is_hot: Callable[[int], bool],
    ) -> None:
        """:param is_hot: whether a content lies on tmpfs and is to stay"""
        self._index = index
        self._table = table
        self._namespace = namespace
        self._rules = rules
        self.is_hot = is_hot
        self.paths = Paths(index, table)

    # One inode, by the directories above it from the root on

    def kind(self, inode: Inode, way: list[Inode], name: bytes) -> Kind:
        """By its own attribute or a directory's, by its path, by what it looks like."""
        said = self.nearest([*way, inode], KIND_ATTRIBUTE)
        if said is not None:
            return self.kind_named(said)
        found = self._rules.kind([*self.paths.names(way), name])
        if found is None and inode.content is not None and inode.id not in self._index.loans:
            found = self._index.contents.kind(inode.content)
        return found or Kind.OTHER

    @staticmethod
    def kind_named(said: bytes) -> Kind:
        """That of an attribute's value."""
        return KINDS.get(said.decode(errors="replace"), Kind.OTHER)

    def kind_by_path(self, names: list[bytes]) -> Kind | None:
        """What patterns say; None: nothing."""
        return self._rules.kind(names)

    def agent_at(self, way: list[Inode]) -> int | None:
        """Which of these directories makes all below it an agent's; None: none."""
        for place in range(len(way) - 1, -1, -1):
            if self._index.xattrs.get(way[place].id, AGENT_ATTRIBUTE) is not None:
                return place
            if place == 2 and self.paths.names(way[1:2]) == [AGENTS_DIRECTORY]:
                return place
        return None

    def agent(self, way: list[Inode]) -> bytes | None:
        """The name of the agent that the last of these directories is, or is in."""
        place = self.agent_at(way)
        if place is None:
            return None
        said = self._index.xattrs.get(way[place].id, AGENT_ATTRIBUTE)
        return self.paths.names([way[place]])[0] if said is None else said

    def nearest(self, way: Iterable[Inode], attribute: bytes) -> bytes | None:
        """What the last of these says that has the attribute."""
        if not self._index.xattrs.any:
            return None
        values = [self._index.xattrs.get(one.id, attribute) for one in way]
        return next((value for value in reversed(values) if value is not None), None)

    def tier(self, inode: Inode) -> str | None:
        """Where the bytes of a regular file belong, and are."""
        live = self._table.live(inode.id)
        if live is not None and live.staged is not None:
            return "hot"
        if inode.content is None:
            return None
        if self.is_hot(inode.content):
            return "hot"
        return "cold" if self._index.contents.cost(inode.content)[1] > 0.5 else "warm"

    def _reduction(self, inode: Inode) -> float | None:
        live = self._table.live(inode.id)
        if inode.content is None or (live is not None and live.is_dirty):
            return None
        stored, _ = self._index.contents.cost(inode.content)
        return round(inode.size / stored, 2) if stored else None

    # For people

    def listing(self, path: bytes) -> Iterator[Described]:
        """A file, or what is in a directory, by name. Each is looked at when it is asked for.

        :raises OSError: ENOENT or ENOTDIR
        """
        way = self._namespace.walk(path)
        if not way[-1].is_directory:
            yield self._described(way[-1], way[:-1], path.rstrip(b"/").rpartition(b"/")[2])
            return
        after = b""
        while rows := self._namespace.rows_after(way[-1].id, after, 128):
            for row in rows:
                yield self._described(self._namespace.inode_of(row), way, row[-1])
            after = rows[-1][-1]

    def _described(self, inode: Inode, way: list[Inode], name: bytes) -> Described:
        agent = self.agent([*way, inode] if inode.is_directory else way)
        kind = self.kind(inode, way, name) if inode.is_regular else Kind.OTHER
        return Described(
            name.decode(errors="surrogateescape"),
            inode.type_letter,
            inode.size,
            inode.mtime_ns,
            kind.label if inode.is_regular else None,
            None if agent is None else agent.decode(errors="surrogateescape"),
            self.tier(inode) if inode.is_regular else None,
            self._reduction(inode) if inode.is_regular else None,
        )

    # As extended attributes

    def attribute(self, inode: Inode, name: bytes, *, is_told_all: bool) -> bytes:
        """The value of an attribute of ours, whether it is kept or computed.

        :param is_told_all: who asks may know what files of others have in common with this one
        :raises OSError: ENODATA
        """
        what = name.removeprefix(OWN_ATTRIBUTES)
        value = self._index.xattrs.get(inode.id, name)
        if value is None and (is_told_all or what not in _TELLING):
            value = self._computed(inode, what)
        if value is None:
            raise OSError(errno.ENODATA, "no such attribute")
        return value

    def _computed(self, inode: Inode, what: bytes) -> bytes | None:
        if what == b"agent" and inode.is_directory:
            return self.agent([*self.paths.above(inode), inode])
        if what == b"agent":
            return self.agent(self.paths.place(inode)[0])
        if not inode.is_regular:
            return None
        if what == b"kind":
            return self.kind(inode, *self.paths.place(inode)).label.encode()
        if what == b"tier":
            return _encoded(self.tier(inode))
        if what == b"reduction":
            return _encoded(self._reduction(inode))
        live = self._table.live(inode.id)
        if what == b"digest" and inode.content is not None and not (live and live.is_dirty):
            return self._index.contents.get(inode.content)[0].hex().encode()
        return None


def check(inode: Inode, name: bytes, value: bytes) -> None:
    """Whether an attribute of ours may be set so.

    :raises OSError: EPERM, it is computed; EINVAL, it takes no such value, or none of this type
    """
    what = name.removeprefix(OWN_ATTRIBUTES)
    if what in (b"tier", b"digest", b"reduction"):
        raise OSError(errno.EPERM, "it is computed")
    is_right = (
        (what == b"kind" and value.decode(errors="replace") in KINDS)
        or (what == b"agent" and inode.is_directory and is_agent_name(value))
        or (what == b"state" and inode.is_directory and value == PAUSED.encode())
        or (what == b"pin" and value == b"1")
        or (what == b"importance" and inode.is_directory and is_importance(value))
    )
    if not is_right:
        raise OSError(errno.EINVAL, "no such attribute, or not with that value")


def is_agent_name(name: bytes) -> bool:
    """Whether an agent may be called that: as a directory may be."""
    return 0 < len(name) <= NAME_BYTES_MAX and not {47, 0} & set(name) and name not in (b".", b"..")


def is_importance(text: bytes) -> bool:
    """Whether it is a whole number from 0 to 100."""
    return text.isdigit() and len(text) <= 3 and int(text) <= IMPORTANCE_MAX


def _encoded(value: object) -> bytes | None:
    return None if value is None else str(value).encode()
