"""Every benchmark in one go, and one table of the figures that agentfs promises to keep.

    python -m bench --json bench.json --corpus corpus.tar.zst --s3ql-bin DIR
    python -m bench --quick                                        a few minutes, smaller sizes

A benchmark that cannot run is named with its reason; the rest run.
"""

import argparse
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import bigfile, corpus, metadata, scale
from bench.common import Results, err, fail, finish, parser, shown, table
from bench.targets import FAILURES, Agentfs

# Micro-operations whose worst ratio stands for all of them in the summary.
CALLS = ("create", "create_write", "append", "stat_uncached", "open_read", "rename", "unlink")


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
    made.add_argument("--corpus", type=Path, metavar="TAR_OR_DIR", help="for bench.corpus")
    made.add_argument("--quick", action="store_true", help="small sizes, few rounds")
    return made


def lines(results: Results) -> Iterator[Line]:
    """The summary: what the measured benchmarks say against their bounds."""
    pairs = results.get("metadata", {}).get("ratios", {})
    for pair, bound in (("agentfs/bare", 1.5), ("agentfs/s3ql", 1.0)):
        for call in CALLS:
            yield Line(f"{call}: {pair}, time", pairs.get(pair, {}).get(call), bound, False)
    grown = results.get("scale", {}).get(Agentfs.name, {}).get("large/small", {})
    yield Line("scale: worst large/small, time", max(grown.values(), default=None), 1.5, False)
    files = results.get("corpus", {})
    own = files.get("targets", {}).get(Agentfs.name, {})
    for peer in ("s3ql", "btrfs"):
        other = files.get("targets", {}).get(peer, {})
        for key, what in (
            ("reduction", "corpus: reduction"),
            ("files_per_second", "corpus in, files/s"),
            ("cold_files_per_second", "corpus cold out, files/s"),
        ):
            yield Line(f"{what}: agentfs/{peer}", _over(own, other, key), 1.0, True)
    for name, other in files.get("archivers", {}).items():
        share = _over(own, other, "reduction")
        yield Line(f"corpus: reduction: agentfs/{name}", share, 0.8, True)
    identical = own.get("identical")
    yield Line("corpus: identical", None if identical is None else float(identical), 1.0, True)
    big = results.get("bigfile", {}).get("targets", {}).get(Agentfs.name, {})
    yield Line("big file, hot read: agentfs/ext4, speed", big.get("hot/ext4"), 0.9, True)


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
    ]
    if chosen.corpus:
        plan.append(("corpus", ["--corpus", str(chosen.corpus)]))
    else:
        err.print("skipped corpus: no --corpus")
    modules = {"metadata": metadata, "scale": scale, "bigfile": bigfile, "corpus": corpus}
    results: Results = {}
    for name, extra in plan:
        module = modules[name]
        try:
            measured = module.measure(module.arguments().parse_args(_shared(chosen) + extra))
        except FAILURES as problem:
            err.print(f"{name} failed: {problem}", markup=False)
            continue
        _guarded(module.show, measured)
        results[name] = measured
    if not results:
        return fail("no benchmark could run")
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


def _guarded(show: Callable[[Results], None], measured: Results) -> None:
    """Show results; empty ones (no target could run) have nothing to show."""
    if any(measured.values()):
        show(measured)


if __name__ == "__main__":
    sys.exit(main())
