"""`agentfs doctor`: what of this machine matters to agentfs, and what to do about it."""

from __future__ import annotations

import argparse
from collections import Counter
from typing import TYPE_CHECKING, Any

from agentfs.cli import output
from agentfs.errors import MachineUnfit
from agentfs.machine.doctor import Finding, Status, examine
from agentfs.machine.reading import Machine

if TYPE_CHECKING:
    from rich.table import Table

_STYLES = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}


def doctor_command(arguments: argparse.Namespace) -> int:
    """Print what was found; the exit code says whether a mount is possible."""
    from agentfs.fuse import _relay

    return report(examine(Machine(), _relay.passthrough_available), as_json=arguments.json)


def report(findings: list[Finding], *, as_json: bool) -> int:
    """Print *findings*; returns an exit code."""
    counts = Counter(finding.status for finding in findings)
    if as_json:
        answer: dict[str, Any] = {status.value: counts[status] for status in Status}
        output.print_json(answer | {"findings": [finding.as_dict() for finding in findings]})
    else:
        console = output.console()
        console.print(_table(findings))
        console.print(_verdict(counts), markup=False)
    return MachineUnfit.exit_code if counts[Status.FAIL] else 0


def _table(findings: list[Finding]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for finding in findings:
        text = Text(finding.found)
        text.append(f"\n{finding.effect}", "dim")
        if finding.advice is not None:
            text.append(f"\n-> {finding.advice}")
        table.add_row(Text(finding.status, _STYLES[finding.status]), finding.name, text)
    return table


def _verdict(counts: Counter[Status]) -> str:
    said = f"{counts[Status.OK]} ok, {counts[Status.WARN]} could be better"
    if counts[Status.FAIL]:
        return f"\nagentfs cannot mount here: {counts[Status.FAIL]} to be mended; {said}"
    return f"\nagentfs can mount here: {said}"
