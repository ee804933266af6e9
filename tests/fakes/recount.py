"""What is wrong with an index, by the product's own count."""

from __future__ import annotations

from agentfs.index import Index
from agentfs.index.audit import findings


def miscounts(index: Index) -> list[str]:
    """What is wrong with an index, a sentence each; empty: nothing."""
    return [finding.text for finding in findings(index)]
