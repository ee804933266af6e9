"""What an agent has a file for, by where it lies, what it is called and how it begins.

Patterns are of two sorts. One that ends in a slash means all below directories of that
name, or of those names one in the other: `.claude/projects/`. Any other means files of
that name. `*`, `?` and `[...]` stand for what they do in a shell, but never for a slash.
The pattern that fits deepest in a path decides, so `prompts/tools/x` is a tool.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from agentfs.config import Kinds
from agentfs.model import KINDS, Kind

SNIFFED_BYTES = 4096
"""Of a file's beginning; more finds little more and costs 2 us per 4 KiB when it is sealed."""

_WILD = re.compile(rb"[*?[]")

_MESSAGE = re.compile(
    rb'"role"\s*:\s*"(?:user|assistant|system|developer|tool|model)"'  # chat APIs
    rb'|"type"\s*:\s*"(?:user|assistant)"\s*,\s*"message"\s*:'  # Claude Code
    rb'|"type"\s*:\s*"(?:session_meta|response_item|event_msg)"'  # Codex
)
_TOOL = re.compile(
    rb'"(?:input_schema|inputSchema)"\s*:'  # Anthropic, MCP
    rb'|"parameters"\s*:\s*\{\s*"type"\s*:\s*"object"'  # OpenAI, Gemini
    rb'|"type"\s*:\s*"function"\s*,\s*"(?:function|name)"\s*:'
)
_PROMPT = re.compile(rb"(?:\s|#[^\n]*\n|<[^>\n]*>)*You are\b")


def sniff(head: bytes) -> Kind:
    """What a file looks like that begins with *head*; `OTHER`: like nothing in particular."""
    start = head[:64].lstrip()[:1]
    if start in (b"{", b"["):
        if _MESSAGE.search(head):
            return Kind.CONVERSATION
        return Kind.TOOL_DEFINITION if _TOOL.search(head) else Kind.OTHER
    return Kind.SYSTEM_PROMPT if _PROMPT.match(head) else Kind.OTHER


def rules_of(patterns: Kinds) -> Rules:
    """The rules of a profile."""
    those: dict[Kind, Sequence[str]] = {
        KINDS[key.name]: getattr(patterns, key.name) for key in dataclasses.fields(patterns)
    }
    return Rules(those)


class Rules:
    """Patterns of a profile, made quick to ask."""

    def __init__(self, patterns: Mapping[Kind, Sequence[str]]) -> None:
        self._plain: dict[bytes, list[tuple[Kind, list[bytes], bool]]] = {}
        """By the last name of the pattern: (kind, names, whether they are directories)."""
        self._wild: list[tuple[Kind, list[bytes], bool]] = []
        for kind, those in patterns.items():
            for pattern in map(os.fsencode, those):
                names = pattern.strip(b"/").split(b"/")
                rule = (kind, names, pattern.endswith(b"/"))
                if _WILD.search(names[-1]):
                    self._wild.append(rule)
                else:
                    self._plain.setdefault(names[-1], []).append(rule)

    def kind(self, path: Sequence[bytes]) -> Kind | None:
        """Of a file, by the names that lead to it from the root on; None: no pattern fits."""
        last = len(path) - 1
        for end in range(last, -1, -1):
            for kind, names, is_directory in [*self._plain.get(path[end], []), *self._wild]:
                start = end + 1 - len(names)
                if is_directory != (end < last) or start < 0:
                    continue
                if all(map(fnmatchcase, path[start : end + 1], names)):
                    return kind
        return None
