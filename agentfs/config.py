"""What a mount is configured by: the profile (TOML) and the mount's own paths.

A profile is read once, checked as a whole and never changes afterwards. Every
key has one reader; a key nobody reads does not belong here.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentfs.errors import ProfileInvalid

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
TIB = 1024 * GIB

MODES = ("auto", "relay", "plain")
DEFAULT_MODE = "auto"

DEFAULT_MOUNTPOINT = Path("/agentmem")

_SIZE = re.compile(r"(\d{1,15}) ?(B|KiB|MiB|GiB|TiB)?", re.ASCII)
_UNIT_BYTES = {"B": 1, "KiB": KIB, "MiB": MIB, "GiB": GIB, "TiB": TIB}


def _key(default: float, low: float, high: float) -> Any:
    """Declare a key: its default, and the bounds its value must be within."""
    return field(default=default, metadata={"low": low, "high": high})


def _choice(default: str, *others: str) -> Any:
    """Declare a key that takes one of a few words."""
    return field(default=default, metadata={"choices": (default, *others)})


def _patterns(*default: str) -> Any:
    """Declare a key that takes a list of patterns, as policy/kinds.py describes them."""
    return field(default=default)


@dataclass(frozen=True, slots=True)
class Seal:
    """When a written file is cut, deduplicated and compressed."""

    rest_s: float = _key(5.0, 0.0, 86400.0)
    """A closed file is sealed after it was left alone this long (seconds)."""

    open_rest_s: float = _key(30.0, 0.0, 86400.0)
    """A file that is held open is sealed after it was dirty this long (seconds)."""


@dataclass(frozen=True, slots=True)
class Store:
    """How the chunk store packs bytes."""

    level: int = _key(5, 1, 22)
    """zstd level of a block."""

    block_bytes: int = _key(MIB, 64 * KIB, 8 * MIB)
    """Raw bytes of chunks in one zstd frame."""

    segment_bytes: int = _key(64 * MIB, MIB, GIB)
    """A segment that has grown to this is closed and a new one begun."""

    cache_bytes: int = _key(32 * MIB, 0, TIB)
    """Decompressed blocks kept in the daemon's memory; 0 keeps none."""

    gc_garbage_share: float = _key(0.2, 0.01, 1.0)
    """gc rewrites a segment when at least this share of its bytes is garbage."""

    compact_level: int = _key(19, 1, 22)
    """zstd level of a block that compaction writes."""

    compact_block_bytes: int = _key(8 * MIB, 64 * KIB, 8 * MIB)
    """Raw bytes of chunks in a block that compaction writes."""

    background_cpu: float = _key(0.5, 0.0, 64.0)
    """Cores that compaction may take by itself; 0: it runs only when asked for."""

    dedup: str = _choice("all", "user")
    """Among whose files equal bytes are kept once: everybody's, or those of each user alone."""

    acl: str = _choice("keep", "refuse")
    """Whether files may get access lists. A store that has any keeps them in any case."""


@dataclass(frozen=True, slots=True)
class Hot:
    """What is kept uncompressed on tmpfs."""

    bytes: int = _key(0, 0, 64 * TIB)
    """Budget of staged files and resident images; 0 is a quarter of RAM."""

    @property
    def budget_bytes(self) -> int:
        """The budget with 0 resolved against this machine's RAM."""
        if self.bytes:
            return self.bytes
        return ram_bytes() // 4


@dataclass(frozen=True, slots=True)
class Kinds:
    """What files are, by path: patterns for each kind. Those of the first kinds are asked first."""

    system_prompt: tuple[str, ...] = _patterns(
        "prompts/", "*.prompt", "*.prompt.md", "CLAUDE.md", "AGENTS.md", "GEMINI.md"
    )
    """What an agent is told before anything else."""

    tool_definition: tuple[str, ...] = _patterns("tools/", "*.tool.json", "*.tools.json")
    """What an agent is told of its tools."""

    conversation: tuple[str, ...] = _patterns(
        "conversations/", ".claude/projects/", ".codex/sessions/", "*.traj", "*.traj.json"
    )
    """Turns, appended one after the other."""

    tool_result: tuple[str, ...] = _patterns("results/", "tool-results/")
    """What tools answered."""


@dataclass(frozen=True, slots=True)
class Tiers:
    """How long what stays where. The weights of policy/placement.py, in doublings."""

    cool_s: float = _key(300.0, 0.0, 31_536_000.0)
    """After so long without use a conversation need not stay on tmpfs (seconds)."""

    cold_s: float = _key(3600.0, 0.0, 31_536_000.0)
    """After so long it is cold, and leaves tmpfs (seconds)."""

    idle_s: float = _key(900.0, 0.0, 31_536_000.0)
    """An agent is idle that used no file for so long (seconds)."""

    half_life_s: float = _key(300.0, 1.0, 31_536_000.0)
    """Without use, after which half as many opens are expected (seconds)."""

    system_prompt: float = _key(4.0, -64.0, 64.0)
    """Weight of the kind."""

    tool_definition: float = _key(3.0, -64.0, 64.0)
    """Weight of the kind."""

    conversation: float = _key(0.0, -64.0, 64.0)
    """Weight of the kind."""

    tool_result: float = _key(-1.0, -64.0, 64.0)
    """Weight of the kind."""

    other: float = _key(0.0, -64.0, 64.0)
    """Weight of files that are of no kind."""

    idle: float = _key(-2.0, -64.0, 64.0)
    """Weight of an idle agent's files, an active one's being 0."""

    paused: float = _key(-6.0, -64.0, 64.0)
    """Weight of a paused agent's files."""

    importance: float = _key(2.0, 0.0, 64.0)
    """Weight of an importance of 100; 0 weighs as much less, 50 nothing."""

    sharing: float = _key(1.0, 0.0, 64.0)
    """Weight of each doubling of the files that have a content."""


@dataclass(frozen=True, slots=True)
class Pressure:
    """When memory is short. What is done then, policy/pressure.py says."""

    daemon_bytes: int = _key(0, 0, TIB)
    """Budget of the daemon's own memory; 0 is a sixteenth of RAM, at least 128 MiB."""

    horizon_s: float = _key(5.0, 0.0, 60.0)
    """How far ahead the growth of what lies on tmpfs is expected (seconds); 0: not at all."""

    available_share: float = _key(0.1, 0.0, 0.5)
    """Of RAM: with less available, caches are shrunk."""

    stalled_share: float = _key(0.1, 0.01, 1.0)
    """Of the last ten seconds: if programs waited for memory for longer, the same."""

    @property
    def daemon_budget_bytes(self) -> int:
        """The budget with 0 resolved against this machine's RAM."""
        return self.daemon_bytes or max(ram_bytes() // 16, 128 * MIB)


@dataclass(frozen=True, slots=True)
class Profile:
    """A whole mount profile; `Profile("default")` has every key at its default."""

    name: str
    seal: Seal = field(default_factory=Seal)
    store: Store = field(default_factory=Store)
    hot: Hot = field(default_factory=Hot)
    kinds: Kinds = field(default_factory=Kinds)
    tiers: Tiers = field(default_factory=Tiers)
    pressure: Pressure = field(default_factory=Pressure)


@dataclass(frozen=True, slots=True)
class MountConfig:
    """One mount, as the command line settled it. Both paths are absolute."""

    store: Path
    mountpoint: Path
    profile: Profile
    foreground: bool
    mode: str = DEFAULT_MODE
    """One of MODES: relay needs rights and a kernel that not everybody has."""
    allow_other: bool = False
    """Let other users in (the kernel checks modes). Root's mounts set it."""


_SECTIONS: dict[str, type[Seal | Store | Hot | Kinds | Tiers | Pressure]] = {
    "seal": Seal,
    "store": Store,
    "hot": Hot,
    "kinds": Kinds,
    "tiers": Tiers,
    "pressure": Pressure,
}
_KNOWN_KEYS = [
    f"{section}.{key.name}" for section, of in _SECTIONS.items() for key in dataclasses.fields(of)
]


def ram_bytes() -> int:
    """What this machine has."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def default_store() -> Path:
    """Root's store below /var/lib, everybody else's below $XDG_DATA_HOME."""
    if os.geteuid() == 0:
        return Path("/var/lib/agentfs/store")
    data_home = os.environ.get("XDG_DATA_HOME", "")
    # The XDG specification: a relative path is to be ignored.
    base = Path(data_home) if os.path.isabs(data_home) else Path.home() / ".local" / "share"
    return base / "agentfs" / "store"


def profiles_dir() -> Path:
    """Where the shipped profiles are: package data, or mountpoints/ of a source tree."""
    package = Path(__file__).resolve().parent
    installed = package / "mountpoints"
    return (installed if installed.is_dir() else package.parent / "mountpoints") / "profiles"


def shipped_profiles() -> list[str]:
    """Names that `--profile` takes, sorted."""
    return sorted(path.stem for path in profiles_dir().glob("*.toml"))


def load_profile(name: str) -> Profile:
    """Read a profile by its *name*, or by a path that ends in .toml.

    Raises ProfileInvalid with one line: the file, the key, and what was expected.
    """
    if name.endswith(".toml"):
        path = Path(name)
    elif name in shipped_profiles():
        path = profiles_dir() / f"{name}.toml"
    else:
        raise ProfileInvalid(
            f"no profile {name!r}; there are {', '.join(shipped_profiles()) or 'none'}, "
            "or give a path that ends in .toml"
        )
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except OSError as error:
        raise ProfileInvalid(f"profile {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileInvalid(f"profile {path} is not TOML: {error}") from error
    return parse_profile(path.stem, tables, origin=f"profile {path}")


def parse_profile(name: str, tables: Mapping[str, Any], *, origin: str) -> Profile:
    """Check *tables* (as tomllib gives them) and make a profile of them."""
    for section, table in tables.items():
        if section not in _SECTIONS:
            raise _unknown_key(section, origin)
        if not isinstance(table, dict):
            raise ProfileInvalid(f"{origin}: {section} must be a table: [{section}]")
        for key in table:
            if f"{section}.{key}" not in _KNOWN_KEYS:
                raise _unknown_key(f"{section}.{key}", origin)
    values = {
        section: {
            key.name: _value(tables[section][key.name], f"{section}.{key.name}", key, origin)
            for key in dataclasses.fields(of)
            if key.name in tables.get(section, {})
        }
        for section, of in _SECTIONS.items()
    }
    profile = profile_of({"name": name, **values})
    if profile.store.segment_bytes < profile.store.block_bytes:
        raise ProfileInvalid(f"{origin}: store.segment_bytes must be at least store.block_bytes")
    return profile


def profile_of(values: Mapping[str, Any]) -> Profile:
    """Undo dataclasses.asdict() of a profile, also after JSON, which knows no tuples.

    :raises TypeError: there are keys of another version
    """
    sections: dict[str, Any] = {}
    for name, of in _SECTIONS.items():
        keys: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value
            for key, value in values.get(name, {}).items()
        }
        sections[name] = of(**keys)
    return Profile(values["name"], **sections)


def with_hot_bytes(profile: Profile, text: str) -> Profile:
    """The profile with another budget, as `--hot-bytes` gives it.

    :raises ProfileInvalid: it is not a size, or out of bounds
    """
    (key,) = dataclasses.fields(Hot)
    value = int(text) if text.isdecimal() else text
    return dataclasses.replace(profile, hot=Hot(_value(value, "hot.bytes", key, "--hot-bytes")))


def parse_size(text: str) -> int:
    """Bytes of "64MiB", "64 MiB" or "67108864"; ValueError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size such as 64MiB")
    return int(match[1]) * _UNIT_BYTES[match[2] or "B"]


def _value(given: object, name: str, key: dataclasses.Field[Any], origin: str) -> Any:
    if isinstance(key.default, tuple):
        return _pattern_list(given, name, origin)
    if "choices" in key.metadata:
        return _chosen(given, key.metadata["choices"], name, origin)
    low, high = key.metadata["low"], key.metadata["high"]
    whole = isinstance(key.default, int)
    value: Any = given
    if isinstance(given, str) and key.name.endswith("bytes"):
        try:
            value = parse_size(given)
        except ValueError as error:
            raise ProfileInvalid(f"{origin}: {name}: {error}") from error
    fits = type(value) is int or (type(value) is float and not whole)  # and so no bool
    if not fits or not low <= value <= high:  # a NaN is within no bounds
        kind = "a whole number" if whole else "a number"
        raise ProfileInvalid(f"{origin}: {name} is {given!r}, must be {kind} from {low} to {high}")
    return value if whole else float(value)


def _chosen(given: object, choices: tuple[str, ...], name: str, origin: str) -> object:
    if given not in choices:
        words = " or ".join(f'"{choice}"' for choice in choices)
        raise ProfileInvalid(f"{origin}: {name} is {given!r}, must be {words}")
    return given


def _pattern_list(given: object, name: str, origin: str) -> tuple[str, ...]:
    those = given if isinstance(given, list) else [None]
    for one in those:
        names = one.removesuffix("/").split("/") if isinstance(one, str) else [""]
        if not all(names) or "\0" in names[-1]:
            raise ProfileInvalid(
                f"{origin}: {name} is {given!r}, must be a list of patterns "
                'such as "prompts/" or "*.prompt.md"'
            )
    return tuple(those)


def _unknown_key(name: str, origin: str) -> ProfileInvalid:
    known = _KNOWN_KEYS if "." in name else [*_SECTIONS, *_KNOWN_KEYS]
    # A key under the wrong section, or under none, is nearest to its full name.
    same = [key for key in _KNOWN_KEYS if key.split(".")[-1] == name.split(".")[-1]]
    nearest = (same or difflib.get_close_matches(name, known, n=1, cutoff=0.0))[0]
    return ProfileInvalid(f"{origin}: unknown key {name}; the nearest is {nearest}")
