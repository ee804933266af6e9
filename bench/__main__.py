"""Every benchmark in one go, and one table of the figures that agentfs promises to keep.

    python -m bench --json bench.json --corpus corpus.tar.zst --s3ql-bin DIR
    python -m bench --quick                                        a few minutes, smaller sizes

A benchmark that cannot run is named with its reason; the rest run.
"""

import argparse
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import agents, bigfile, corpus, metadata, overhead, scale
from bench.common import Results, err, finish, parser, shown, table
from bench.targets import FAILURES, Agentfs

CALLS = ("create", "open_read", "stat_uncached", "readdir_stat", "rename", "unlink", "append")
RATES = (("agentfs/bare", 0.6), ("agentfs/s3ql", 3.0))
"""What a call must reach: its rate (calls per second) over that of the other."""


@dataclass(frozen=True)
class Line:
    """One figure of the summary and the bound that it should keep."""

    what: str
    value: float | None
    bound: float
    at_least: bool

    @property
    def verdict(self) -> str:
        """yes, NO, or a dash when it was not measured."""
        if self.value is None:
            return "-"
        kept = self.value >= self.bound if self.at_least else self.value <= self.bound
        return "yes" if kept else "NO"


def arguments() -> argparse.ArgumentParser:
    """The command line; the benchmarks' own options keep their defaults."""
    made = parser("bench", __doc__)
    made.prog = "python -m bench"
    made.add_argument(
        "--corpus", type=Path, metavar="TAR_OR_DIR", help="for bench.corpus and bench.agents"
    )
    made.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    return made


def lines(results: Results) -> Iterator[Line]:
    """The summary: what the measured benchmarks say against their bounds."""
    pairs = results.get("metadata", {}).get("ratios", {})
    for pair, bound in RATES:
        for call in CALLS:
            times = pairs.get(pair, {}).get(call)
            yield Line(f"{call}: {pair}, rate", 1 / times if times else None, bound, True)
    yield from _corpus_lines(results.get("corpus", {}).get("targets", {}))
    big = results.get("bigfile", {}).get("targets", {}).get(Agentfs.name, {})
    yield Line("big file sealed, MB/s", big.get("seal_mb_per_second"), 80, True)
    yield Line("big file cold, MB/s", big.get("cold_mb_per_second"), 150, True)
    yield Line("big file hot: agentfs/ext4, rate", big.get("hot/ext4"), 0.9, True)
    grown = results.get("scale", {}).get(Agentfs.name, {})
    worst = max(grown.get("large/small", {}).values(), default=None)
    yield Line("scale: worst large/small, time", worst, 1.5, False)
    kib = max(grown.get("rss_kib", {}).values(), default=None)
    yield Line("scale: daemon's memory, MB", None if kib is None else kib * 1024 / 1e6, 200, False)
    yield from _agents_lines(results.get("agents", {}).get("steps", []))
    for name, one in results.get("overhead", {}).items():
        yield Line(f"{name}: 200 agents at work, % of a core", one["percent"], 5, False)


def _agents_lines(steps: list[Results]) -> Iterator[Line]:
    counted = {step["agents"]: step for step in steps if step["target"] == Agentfs.name}
    for count, bound in agents.TARGETS_GB.items():
        gigabytes = counted.get(count, {}).get("ram_bytes")
        value = None if gigabytes is None else gigabytes / 1e9
        yield Line(f"{count} agents: RAM, GB", value, bound, False)


def _corpus_lines(targets: Results) -> Iterator[Line]:
    own, peer = targets.get(Agentfs.name, {}), targets.get("s3ql", {})
    for what, key, bound in (
        ("corpus in, files/s", "files_per_second", 3),
        ("corpus cold out, files/s", "cold_files_per_second", 5),
    ):
        yield Line(f"{what}: agentfs/s3ql", _over(own, peer, key), bound, True)
    yield Line("corpus: raw over stored bytes", own.get("reduction"), 6.5, True)
    yield Line("corpus: the same, compacted", own.get("compacted_reduction"), 8, True)
    cold = own.get("cold_small_ms", {}).get("p99")
    yield Line("compacted: cold small file, p99 ms", cold, 10, False)
    yield Line("second copy: new chunks", own.get("second_chunks_added"), 0, False)
    yield Line("second copy: bytes a file", own.get("second_bytes_per_file"), 250, False)
    identical = own.get("identical")
    yield Line("corpus: identical", None if identical is None else float(identical), 1, True)


def _over(own: Results, other: Results, key: str) -> float | None:
    if own.get(key) is None or not other.get(key):
        return None
    return float(own[key]) / float(other[key])


def _shared(chosen: argparse.Namespace) -> list[str]:
    """The options that go to every benchmark."""
    words = ["--agentfs", shlex.join(chosen.agentfs), "--s3ql-compress", chosen.s3ql_compress]
    for option in ("work", "s3ql_bin", "pin"):
        if (value := getattr(chosen, option)) is not None:
            words += [f"--{option.replace('_', '-')}", str(value)]
    return words


def main() -> int:
    """Run all, show all. 1 when a bound is missed, 2 when nothing ran."""
    chosen = arguments().parse_args()
    quick = chosen.quick
    plan: list[tuple[str, list[str]]] = [
        ("metadata", ["--files", "500", "--rounds", "3"] if quick else []),
        ("scale", ["--large", "10000", "--rounds", "3"] if quick else []),
        ("bigfile", ["--megabytes", "200"] if quick else []),
        ("overhead", ["--seconds", "30", "--rest", "5"] if quick else []),
    ]
    if chosen.corpus:
        given = ["--corpus", str(chosen.corpus)]
        plan.append(("corpus", given))
        plan.append(("agents", [*given, "--agents", "10"] if quick else given))
    else:
        err.print("skipped corpus and agents: no --corpus")
    modules = {
        "metadata": metadata,
        "scale": scale,
        "bigfile": bigfile,
        "corpus": corpus,
        "agents": agents,
        "overhead": overhead,
    }
    results: Results = {}
    for name, extra in plan:
        module = modules[name]
        try:
            measured = module.measure(module.arguments().parse_args(_shared(chosen) + extra))
        except FAILURES as problem:
            err.print(f"{name} failed: {problem}", markup=False)
            continue
        module.show(measured)
        results[name] = measured
    if not results:
        print("no benchmark could run", file=sys.stderr)
        return 2
    summary = list(lines(results))
    table(
        "Summary",
        ["figure", "measured", "bound", "kept"],
        [
            [
                line.what,
                shown(line.value, 2),
                f"{'>=' if line.at_least else '<='} {line.bound:g}",
                line.verdict,
            ]
            for line in summary
        ],
    )
    results["summary"] = [
        {"figure": line.what, "value": line.value, "bound": line.bound, "kept": line.verdict}
        for line in summary
    ]
    finish("all", chosen, results)
    return 1 if any(line.verdict == "NO" for line in summary) else 0


if __name__ == "__main__":
    sys.exit(main())
