"""`agentfs fsck`: check a store, mounted or not, and repair one that is not."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from agentfs.cli import output
from agentfs.cli.mounts import Target, find_target
from agentfs.control import client, lock
from agentfs.errors import DamageFound

_SHOWN = 20


def fsck_command(arguments: argparse.Namespace) -> int:
    """Print what is damaged; with --repair what is left of it."""
    target = find_target(arguments.target)
    with output.progress() as on_progress:
        if arguments.repair:
            report = _repair(target.store, on_progress)
        else:
            report = _check(target, on_progress)
    report = {"store": str(target.store)} | report
    output.answer(arguments.json, report, _text(target, report))
    return 0 if report["clean"] else DamageFound.exit_code


def _check(target: Target, on_progress: client.ProgressFn) -> dict[str, Any]:
    if lock.holder(target.store) is not None:
        return client.call(target.store, "fsck", on_progress=on_progress)
    from agentfs.filesystem.fsck import check

    held = lock.hold(target.store)
    try:
        return check(target.store, on_progress).as_dict()
    finally:
        os.close(held)


def _repair(store: Path, on_progress: client.ProgressFn) -> dict[str, Any]:
    from agentfs.filesystem.repair import repair

    held = lock.hold(store)
    try:
        return repair(store, on_progress).as_dict()
    finally:
        os.close(held)


def _text(target: Target, report: dict[str, Any]) -> str:
    totals = report["totals"]
    checked = (
        f"{report['blocks_checked']:,} blocks ({output.size(report['bytes_checked'])}), "
        f"{report['contents_checked']:,} contents"
    )
    lines = [f"agentfs: repaired: {text}" for text in report.get("repaired", ())]
    if report["clean"]:
        return "\n".join([*lines, f"agentfs: {target.store} is whole ({checked} checked)"])
    lines += _listed(report["findings"], totals["findings"], "more findings")
    lines += (
        f"the header of segment {number} is damaged; no file needs it"
        for number in report["damaged_segment_headers"]
    )
    lines += (
        f"one of the two copies of dictionary {number} is damaged; the other serves"
        for number in report["damaged_dictionaries"]
    )
    lines += (
        f"copy {number} of the namespace does not hold" for number in report["damaged_copies"]
    )
    blocks = [
        f"segment {block['segment']}, offset {block['offset_bytes']}: {block['reason']}"
        for block in report["damaged_blocks"]
    ]
    lines += _listed(blocks, totals["damaged_blocks"], "more damaged blocks")
    if totals["damaged_chunks"]:
        lines.append(f"{totals['damaged_chunks']:,} chunks are not where the index says")
    files = [
        f"  {file['path']}: {output.size(file['lost_bytes'])} lost at "
        + ", ".join(str(offset) for offset, _ in file["ranges"])
        for file in report["files"]
    ]
    lines += _listed(files, totals["files"], "more files")
    advice = "" if "repaired" in report else "; agentfs fsck --repair makes the rest usable"
    lost = "no file is known to have lost bytes"
    if totals["files"]:
        lost = f"{totals['files']:,} files have lost bytes, which are EIO until they are written"
    where = f"agentfs: {target.store} is damaged ({checked} checked)"
    return "\n".join([*lines, f"{where}: {lost}{advice}"])


def _listed(texts: list[str], total: int, rest: str) -> list[str]:
    shown = texts[:_SHOWN]
    return [*shown, f"  ... and {total - len(shown):,} {rest}"] if total > len(shown) else shown
