"""What is wrong with an index or left over in a store, by the product's own count."""

from __future__ import annotations

import shutil
from typing import Any

from agentfs.index import Index
from agentfs.index.audit import findings

SEGMENT_HEADER_BYTES = 32


def miscounts(index: Index) -> list[str]:
    """What is wrong with an index, a sentence each; empty: nothing."""
    return [finding.text for finding in findings(index)]


def assert_no_orphans(mounted: Any) -> None:
    """Every reference counts right, and when the last file has gone so has all that was kept."""
    mounted.agentfs("gc", mounted.store)
    mounted.agentfs("fsck", mounted.store)  # fails on findings
    for path in mounted.path.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    mounted.remount()  # nothing is open any more, and staged files have been dealt with
    mounted.agentfs("gc", mounted.store)
    mounted.agentfs("fsck", mounted.store)
    stats = mounted.stats()
    assert stats["logical_bytes"] == stats["unique_bytes"] == stats["garbage_bytes"] == 0
    assert stats["staged_files"] == stats["resident_bytes"] == 0
    assert stats["segment_bytes"] <= SEGMENT_HEADER_BYTES
