"""A store's figures in the text format of Prometheus, version 0.0.4."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentfs.model import AgentUse

# (key of the figures, name, type, help)
_FIGURES = (
    ("files", "files", "gauge", "Regular files."),
    ("logical_bytes", "logical_bytes", "gauge", "What files say they hold."),
    ("unique_bytes", "unique_bytes", "gauge", "What is left after deduplication."),
    ("stored_bytes", "stored_bytes", "gauge", "Segments, index and its copies on disk."),
    ("garbage_bytes", "garbage_bytes", "gauge", "Of the segments, what no file needs."),
    ("young_bytes", "young_bytes", "gauge", "Of the unique bytes, those not compacted."),
    ("staged_files", "staged_files", "gauge", "Files that are not sealed."),
    ("staged_bytes", "staged_bytes", "gauge", "What they hold."),
    ("resident_bytes", "resident_bytes", "gauge", "Uncompressed on tmpfs."),
    ("resident_budget_bytes", "resident_budget_bytes", "gauge", "What may lie on tmpfs."),
    ("pressure_step", "pressure_step", "gauge", "What is given up for memory: 0 to 4."),
    ("evicted_bytes", "evicted_bytes_total", "counter", "Resident content that was dropped."),
    ("writer_waits", "writer_waits_total", "counter", "Times a program waited to write."),
    ("chunks", "chunks", "gauge", "Units of deduplication."),
    ("blocks", "blocks", "gauge", "Units of compression."),
    ("damaged_blocks", "damaged_blocks", "gauge", "Blocks that files need and cannot be read."),
    ("segments", "segments", "gauge", "Files of blocks."),
    ("cache_hits", "cache_hits_total", "counter", "Blocks read that were decompressed already."),
    ("cache_misses", "cache_misses_total", "counter", "Blocks read that were not."),
    ("prefetched", "prefetched_total", "counter", "Files brought before they were asked for."),
    ("prefetch_used", "prefetch_used_total", "counter", "Of these, files used soon after."),
    ("prefetch_wasted", "prefetch_wasted_total", "counter", "Of these, files not used."),
    ("rss_bytes", "process_resident_bytes", "gauge", "Memory of the daemon's process."),
    ("uptime_s", "uptime_seconds", "gauge", "Since the daemon, or its last worker, began."),
)
_LABELS = ("version", "mode", "profile", "store", "mountpoint")
_STATES = ("active", "idle", "paused")


def exposition(figures: Mapping[str, Any], agents: Sequence[AgentUse]) -> bytes:
    """All metrics. Of agents only how many there are: their names are not everybody's."""
    return "".join(_metrics(figures, agents)).encode()


def _metrics(figures: Mapping[str, Any], agents: Sequence[AgentUse]) -> Iterator[str]:
    labels = ",".join(f'{label}="{_escaped(str(figures[label]))}"' for label in _LABELS)
    yield _family("info", "gauge", "Always 1; the labels say what answers.", {f"{{{labels}}}": 1})
    for key, name, kind, meaning in _FIGURES:
        yield _family(name, kind, meaning, {"": figures[key]})
    states = Counter(use.state for use in agents)
    samples = {f'{{state="{state}"}}': states[state] for state in _STATES}
    yield _family("agents", "gauge", "Agents, by what they are doing.", samples)


def _family(name: str, kind: str, meaning: str, samples: Mapping[str, float]) -> str:
    lines = "".join(f"agentfs_{name}{labels} {value}\n" for labels, value in samples.items())
    return f"# HELP agentfs_{name} {meaning}\n# TYPE agentfs_{name} {kind}\n{lines}"


def _escaped(value: str) -> str:
    """As a label's value; bytes of a path that are no text are shown as escapes."""
    shown = value.encode(errors="surrogateescape").decode(errors="backslashreplace")
    return shown.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
