"""What a file is for: by its attribute or a directory's, its path, or what it looks like."""

from __future__ import annotations

import errno
import json
import os

import pytest

from agentfs.config import Kinds
from agentfs.filesystem.description import Described, check
from agentfs.filesystem.namespace import RENAME_EXCHANGE
from agentfs.index import Index
from agentfs.model import Kind
from agentfs.policy.kinds import Rules, rules_of, sniff
from fakes.volumes import Machine, Shell

RULES = rules_of(Kinds())


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("agents/a/prompts/system.md", Kind.SYSTEM_PROMPT),
        ("agents/a/prompts/deep/er/x", Kind.SYSTEM_PROMPT),
        ("work/CLAUDE.md", Kind.SYSTEM_PROMPT),
        ("agents/a/tools/read.json", Kind.TOOL_DEFINITION),
        ("agents/a/conversations/1.jsonl", Kind.CONVERSATION),
        ("home/.claude/projects/-work/1f.jsonl", Kind.CONVERSATION),
        ("home/.codex/sessions/2026/11/21/rollout-1.jsonl", Kind.CONVERSATION),
        ("agents/a/results/001.txt", Kind.TOOL_RESULT),
        ("prompts/tools/x", Kind.TOOL_DEFINITION),
        ("conversations/CLAUDE.md", Kind.SYSTEM_PROMPT),
        ("prompts", None),
        ("prompts.md", None),
        ("home/projects/x", None),
        ("x/.claude/other/projects/y", None),
    ],
)
def test_the_pattern_that_fits_deepest_decides(path: str, kind: Kind | None) -> None:
    assert RULES.kind(path.encode().split(b"/")) == kind


def test_patterns_may_have_wildcards_and_more_names_than_one() -> None:
    rules = Rules({Kind.TOOL_RESULT: ["run-*/out/", "logs/*.txt"]})
    assert rules.kind([b"run-7", b"out", b"x"]) == Kind.TOOL_RESULT
    assert rules.kind([b"run-7", b"in", b"x"]) is None
    assert rules.kind([b"a", b"logs", b"x.txt"]) == Kind.TOOL_RESULT
    assert rules.kind([b"a", b"logs", b"b", b"x.txt"]) is None


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b'{"role": "user", "content": "hello"}\n', Kind.CONVERSATION),
        (b'[{"role":"system","content":"You are"}]', Kind.CONVERSATION),
        (b'{"type":"user","message":{"role":"user"}}', Kind.CONVERSATION),
        (b'{"timestamp":"2026","type":"session_meta","payload":{}}', Kind.CONVERSATION),
        (b'{"name":"read","input_schema":{"type":"object"}}', Kind.TOOL_DEFINITION),
        (b' {"name": "x", "parameters": {"type": "object"}}', Kind.TOOL_DEFINITION),
        (b'[{"type":"function","function":{"name":"x"}}]', Kind.TOOL_DEFINITION),
        (b"# Rules\n\nYou are a careful agent.", Kind.SYSTEM_PROMPT),
        (b'{"role": {"type": "string"}}', Kind.OTHER),
        (b"I said: You are late", Kind.OTHER),
        (b'plain text with "role": "user" in it', Kind.OTHER),
        (b"\x7fELF\0\0", Kind.OTHER),
        (b"", Kind.OTHER),
    ],
)
def test_a_file_is_what_it_looks_like(head: bytes, kind: Kind) -> None:
    assert sniff(head) == kind


async def test_what_it_looks_like_is_noted_when_it_is_sealed(shell: Shell) -> None:
    turn = json.dumps({"role": "user", "content": "hello"}).encode() + b"\n"
    await shell.write("/log", turn)
    assert shell.describe("/log", "kind") == "other", "nothing is read before"
    await shell.sync()
    assert shell.describe("/log", "kind") == "conversation"
    await shell.write("/large", turn + bytes(20 << 20) + os.urandom(100))
    await shell.sync()
    assert shell.describe("/large", "kind") == "conversation"


async def test_an_attribute_decides_and_holds_for_all_below_a_directory(shell: Shell) -> None:
    for path in ("/a", "/a/prompts", "/a/prompts/deep"):
        shell.mkdir(path)
    await shell.write("/a/prompts/deep/x", b"x")
    assert shell.describe("/a/prompts/deep/x", "kind") == "system_prompt"
    shell.set_xattr("/a", b"user.agentfs.kind", b"tool_result")
    assert shell.describe("/a/prompts/deep/x", "kind") == "tool_result"
    shell.set_xattr("/a/prompts/deep", b"user.agentfs.kind", b"conversation")
    assert shell.describe("/a/prompts/deep/x", "kind") == "conversation"
    shell.set_xattr("/a/prompts/deep/x", b"user.agentfs.kind", b"other")
    assert shell.describe("/a/prompts/deep/x", "kind") == "other"


async def test_a_kind_follows_its_file_through_renames_and_links(shell: Shell) -> None:
    for path in ("/prompts", "/tools", "/tools/sub"):
        shell.mkdir(path)
    await shell.write("/prompts/x", b"x")
    await shell.sync()
    assert shell.describe("/prompts/x", "kind") == "system_prompt"
    shell.rename("/prompts/x", "/tools/sub/x")
    assert shell.describe("/tools/sub/x", "kind") == "tool_definition"
    shell.rename("/tools", "/results")
    assert shell.describe("/results/sub/x", "kind") == "tool_result"
    shell.link("/results/sub/x", "/prompts/y")
    shell.unlink("/results/sub/x")
    assert shell.describe("/prompts/y", "kind") == "system_prompt"


async def test_where_a_file_lies_is_known_after_a_remount(shell: Shell, machine: Machine) -> None:
    shell.mkdir("/prompts")
    shell.mkdir("/tools")
    await shell.write("/prompts/x", b"x")
    await shell.write("/tools/y", b"y")
    shell.rename("/prompts/x", "/tools/y", RENAME_EXCHANGE)
    await machine.unmount()
    shell = machine.open()
    assert shell.describe("/prompts/x", "kind") == "system_prompt"
    assert shell.describe("/tools/y", "kind") == "tool_definition"
    for name, directory in (("/prompts/x", "/prompts"), ("/tools/y", "/tools")):
        assert shell.inode(name).parent == shell.inode(directory).id


async def test_where_a_cloned_file_lies_is_known(shell: Shell) -> None:
    shell.mkdir("/prompts")
    await shell.write("/prompts/x", b"x")
    await shell.sync()
    shell.mkdir("/agents")
    await shell.clone("/prompts", "/agents/new")
    assert shell.inode("/agents/new/x").parent == shell.inode("/agents/new").id
    await shell.clone("/prompts/x", "/agents/y")
    assert shell.inode("/agents/y").parent == shell.inode("/agents").id
    assert shell.describe("/agents/new/x", "agent") == "new"


async def test_an_unlinked_file_that_is_open_stays_unlinked(shell: Shell) -> None:
    await shell.write("/x", b"x")
    handle = shell.open("/x")
    shell.unlink("/x")
    assert handle.file.inode.is_doomed
    row = shell.volume.index.inodes.get(handle.file.inode.id)
    assert row is not None
    assert row.is_doomed
    shell.close(handle)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        (b"kind", b"prompt", errno.EINVAL),
        (b"kind", b"\xff", errno.EINVAL),
        (b"agent", b"", errno.EINVAL),
        (b"agent", b"a/b", errno.EINVAL),
        (b"importance", b"101", errno.EINVAL),
        (b"importance", b"-1", errno.EINVAL),
        (b"state", b"asleep", errno.EINVAL),
        (b"tier", b"hot", errno.EPERM),
        (b"digest", b"00", errno.EPERM),
        (b"reduction", b"9", errno.EPERM),
        (b"unheard-of", b"1", errno.EINVAL),
    ],
)
async def test_an_attribute_of_ours_takes_what_it_means(
    shell: Shell, name: bytes, value: bytes, error: int
) -> None:
    shell.mkdir("/d")
    with pytest.raises(OSError) as caught:  # noqa: PT011
        check(shell.inode("/d"), b"user.agentfs." + name, value)
    assert caught.value.errno == error


async def test_only_a_directory_is_an_agents(shell: Shell) -> None:
    await shell.write("/x", b"x")
    with pytest.raises(OSError, match="no such attribute"):
        check(shell.inode("/x"), b"user.agentfs.agent", b"one")


async def test_tier_digest_and_reduction_say_where_the_bytes_are(shell: Shell) -> None:
    data = b"the same line again and again\n" * 10_000
    await shell.write("/x", data)
    assert shell.describe("/x", "tier") == "hot"
    with pytest.raises(OSError, match="no such attribute"):
        shell.describe("/x", "digest")
    await shell.sync()
    assert shell.describe("/x", "tier") == "warm"
    assert len(shell.describe("/x", "digest")) == 64
    alone = float(shell.describe("/x", "reduction"))
    assert alone > 50
    await shell.clone("/x", "/y")
    assert float(shell.describe("/x", "reduction")) == pytest.approx(2 * alone, rel=0.01)
    await shell.compact()
    assert shell.describe("/x", "tier") == "cold"
    await shell.append("/x", b"more")
    assert shell.describe("/x", "tier") == "hot"


async def test_the_parts_of_all_files_are_what_live_data_takes(shell: Shell) -> None:
    common = os.urandom(200_000)
    for number in range(5):
        await shell.write(f"/{number}", common + os.urandom(30_000))
    await shell.sync()
    await shell.clone("/0", "/copy")
    index = shell.volume.index
    parts = sum(
        index.contents.cost(inode.content)[0]
        for name in shell.names("/")
        if (inode := shell.inode(os.fsdecode(name))).content is not None
    )
    assert parts == pytest.approx(index.contents.totals()["block_stored_bytes"], rel=0.001)


async def listed(shell: Shell, path: str) -> dict[str, Described]:
    return {one.name: one for one in await shell.volume.listing(path.encode())}


async def test_a_listing_says_of_each_file_what_it_is(shell: Shell) -> None:
    for path in ("/agents", "/agents/a", "/agents/a/prompts"):
        shell.mkdir(path)
    await shell.write("/agents/a/prompts/p", b"You are" * 1000)
    await shell.sync()
    (entry,) = (await listed(shell, "/agents/a/prompts")).values()
    assert (entry.kind, entry.agent, entry.tier) == ("system_prompt", "a", "warm")
    assert (entry.type, entry.size) == ("-", 7000)
    assert (await listed(shell, "/agents/a/prompts/p"))["p"] == entry
    (directory,) = (await listed(shell, "/agents")).values()
    assert (directory.type, directory.agent, directory.kind) == ("d", "a", None)
    with pytest.raises(FileNotFoundError):
        await listed(shell, "/missing")


async def test_a_store_of_before_kinds_knows_where_its_files_lie(
    shell: Shell, machine: Machine
) -> None:
    shell.mkdir("/prompts")
    await shell.write("/prompts/x", b"x")
    await machine.unmount()
    index = Index(machine.store)
    index.execute("UPDATE inode SET parent = NULL WHERE mode & 32768")
    index.execute("DROP INDEX xattr_agent")
    index.execute("ALTER TABLE content DROP COLUMN kind")
    index.execute("DELETE FROM _sqlite_migrations WHERE name = 'kinds'")
    index.close()
    shell = machine.open()
    assert shell.inode("/prompts/x").parent == shell.inode("/prompts").id
    assert shell.describe("/prompts/x", "kind") == "system_prompt"
