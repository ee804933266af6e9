"""Agents are directories: what is theirs, what they share, and whether they are at work."""

from __future__ import annotations

import os

import pytest

from agentfs.model import AgentUse
from fakes.recount import miscounts
from fakes.volumes import Shell

PROMPT = os.urandom(300_000)


async def uses(shell: Shell) -> dict[str, AgentUse]:
    return {use.name: use for use in await shell.volume.agents.uses()}


async def two_agents(shell: Shell) -> None:
    shell.mkdir("/agents")
    for name in ("one", "two"):
        shell.mkdir(f"/agents/{name}")
        await shell.write(f"/agents/{name}/prompt.md", PROMPT)
    await shell.write("/agents/one/own.md", os.urandom(5000))
    await shell.sync()


async def test_what_agents_share_and_what_is_their_own_add_up(shell: Shell) -> None:
    await two_agents(shell)
    found = await uses(shell)
    assert found["one"].logical_bytes == 305_000
    assert (found["one"].shared_bytes, found["one"].exclusive_bytes) == (300_000, 5000)
    assert (found["two"].shared_bytes, found["two"].exclusive_bytes) == (300_000, 0)
    assert found["one"].files == 2
    assert found["one"].directories == ("/agents/one",)


async def test_a_fork_owns_only_the_chunks_that_it_added(shell: Shell) -> None:
    await two_agents(shell)
    turn = os.urandom(20_000)
    await shell.append("/agents/two/prompt.md", turn)
    await shell.sync()
    found = await uses(shell)
    assert found["two"].shared_bytes + found["two"].exclusive_bytes == 320_000
    assert len(turn) <= found["two"].exclusive_bytes < len(turn) + 2 * 16_384
    assert found["one"].shared_bytes == found["two"].shared_bytes


async def test_bytes_that_an_agent_has_twice_are_its_own_once(shell: Shell) -> None:
    shell.mkdir("/agents")
    shell.mkdir("/agents/one")
    for name in ("a", "b"):
        await shell.write(f"/agents/one/{name}", PROMPT)
    await shell.sync()
    found = await uses(shell)
    assert (found["one"].logical_bytes, found["one"].exclusive_bytes) == (600_000, 300_000)
    assert found["one"].shared_bytes == 0


async def test_a_file_that_is_no_agents_shares_as_well(shell: Shell) -> None:
    await two_agents(shell)
    await shell.write("/copy", PROMPT + os.urandom(100))
    shell.unlink("/agents/two/prompt.md")
    await shell.sync()
    found = await uses(shell)
    assert found["one"].shared_bytes > 300_000 - 2 * 16_384
    await shell.write("/copy", b"x", 0)
    shell.unlink("/copy")
    assert (await uses(shell))["one"].exclusive_bytes == 305_000


async def test_any_directory_is_an_agents_that_says_so(shell: Shell) -> None:
    await two_agents(shell)
    for path in ("/team", "/team/deep", "/agents/one/inner"):
        shell.mkdir(path)
    shell.set_xattr("/team/deep", b"user.agentfs.agent", b"three")
    shell.set_xattr("/agents/one/inner", b"user.agentfs.agent", b"two")
    await shell.write("/team/deep/a", b"a" * 10)
    await shell.write("/agents/one/inner/b", b"b" * 20)
    found = await uses(shell)
    assert found["three"].directories == ("/team/deep",)
    assert found["three"].logical_bytes == 10
    assert found["one"].files == 2, "what lies below another agent's directory is that one's"
    assert set(found["two"].directories) == {"/agents/two", "/agents/one/inner"}
    assert found["two"].logical_bytes == 300_020


async def test_what_is_staged_is_hot_and_its_agents_own(shell: Shell) -> None:
    shell.mkdir("/agents")
    shell.mkdir("/agents/one")
    await shell.write("/agents/one/a", b"x" * 1000)
    use = (await uses(shell))["one"]
    assert (use.hot_bytes, use.exclusive_bytes, use.shared_bytes) == (1000, 1000, 0)


async def test_an_agent_is_active_by_use_idle_by_rest_and_paused_by_word(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two_agents(shell)
    assert {use.state for use in (await uses(shell)).values()} == {"active"}
    monkeypatch.setattr(shell.volume.agents, "_idle_s", 0.0)
    assert {use.state for use in (await uses(shell)).values()} == {"idle"}
    handle = shell.open("/agents/one/own.md")
    assert (await uses(shell))["one"].state == "active"
    assert (await uses(shell))["one"].open_files == 1
    shell.set_xattr("/agents/one", b"user.agentfs.state", b"paused")
    assert (await uses(shell))["one"].state == "paused"
    shell.close(handle)


async def test_an_agents_importance_is_half_unless_it_is_set(shell: Shell) -> None:
    await two_agents(shell)
    shell.set_xattr("/agents/two", b"user.agentfs.importance", b"90")
    found = await uses(shell)
    assert (found["one"].importance, found["two"].importance) == (50, 90)


async def test_a_store_without_agents_has_none(shell: Shell) -> None:
    assert await uses(shell) == {}
    await shell.write("/agents", b"a file of that name")
    assert await uses(shell) == {}


def chunks(shell: Shell) -> int:
    (count,) = shell.volume.index.execute("SELECT count(*) FROM chunk").fetchone()
    return int(count)


async def test_a_spawned_agent_has_all_of_its_template_and_owns_nothing(shell: Shell) -> None:
    await two_agents(shell)
    shell.set_xattr("/agents/one", b"user.agentfs.state", b"paused")
    shell.set_xattr("/agents/one", b"user.agentfs.importance", b"80")
    before = chunks(shell)
    await shell.spawn("/agents/one", "/agents/new", "new")
    await shell.sync()
    assert chunks(shell) == before
    found = await uses(shell)
    new = found["new"]
    assert (new.logical_bytes, new.shared_bytes, new.exclusive_bytes) == (305_000, 305_000, 0)
    assert (new.state, new.importance) == ("active", 80), "it begins to work"
    assert found["one"].state == "paused"
    assert not miscounts(shell.volume.index)


async def test_a_spawned_agent_is_itself_wherever_its_template_says_who_it_is(shell: Shell) -> None:
    for path in ("/team", "/team/one", "/team/one/notes", "/team/one/guest"):
        shell.mkdir(path)
    shell.set_xattr("/team/one", b"user.agentfs.agent", b"one")
    shell.set_xattr("/team/one/notes", b"user.agentfs.agent", b"one")
    shell.set_xattr("/team/one/guest", b"user.agentfs.agent", b"guest")
    await shell.write("/team/one/notes/x", b"x")
    await shell.spawn("/team/one", "/team/new", "new")
    assert shell.describe("/team/new", "agent") == "new"
    assert shell.describe("/team/new/notes/x", "agent") == "new"
    assert shell.describe("/team/new/guest", "agent") == "guest"
    assert shell.describe("/team/one/notes/x", "agent") == "one"
    shell.mkdir("/agents")
    await shell.spawn("/team/one", "/agents/other", "other")
    assert shell.describe("/agents/other/notes/x", "agent") == "other"
    shell.rename("/agents/other", "/agents/renamed")
    assert shell.describe("/agents/renamed", "agent") == "renamed"


async def test_a_plain_directory_becomes_an_agent_when_one_is_spawned_of_it(shell: Shell) -> None:
    shell.mkdir("/template")
    await shell.write("/template/prompt", b"x")
    await shell.spawn("/template", "/first", "first")
    assert shell.describe("/first/prompt", "agent") == "first"
    with pytest.raises(OSError, match="no such attribute"):
        shell.describe("/template/prompt", "agent")


async def test_an_agent_is_found_by_its_name_as_in_the_list_of_all(shell: Shell) -> None:
    await two_agents(shell)
    for path, name in (("/more", b"one"), ("/agents/other", b"one"), ("/gone", b"two")):
        shell.mkdir(path)
        shell.set_xattr(path, b"user.agentfs.agent", name)
    shell.rmdir("/gone")
    await shell.write("/agents/file", b"x")
    listed = shell.volume.index.agents.directories()
    for name in (b"one", b"two", b"other", b"file", b"nobody"):
        expected = {directory for directory, one in listed if one == name}
        found = shell.volume.agents.directories(name)
        assert set(found) == expected, name
        assert len(found) == len(expected)


async def test_what_is_set_of_an_agent_is_set_of_all_its_directories(shell: Shell) -> None:
    await two_agents(shell)
    shell.mkdir("/more")
    shell.set_xattr("/more", b"user.agentfs.agent", b"one")
    agents = shell.volume.agents
    directories = agents.directories(b"one")
    assert len(directories) == 2
    agents.set(directories, "state", "paused")
    agents.set(directories, "importance", "7")
    use = (await uses(shell))["one"]
    assert (use.state, use.importance) == ("paused", 7)
    assert shell.describe("/more", "state") == "paused"
    agents.set(directories, "state", None)
    assert (await uses(shell))["one"].state == "active"
    with pytest.raises(OSError, match="not with that value"):
        agents.set(directories, "importance", "200")


async def test_reading_is_use_though_access_times_are_seldom_kept(shell: Shell) -> None:
    await two_agents(shell)
    before = (await uses(shell))["one"].last_used_ns
    assert await shell.read("/agents/one/own.md")
    between = (await uses(shell))["one"].last_used_ns
    assert await shell.read("/agents/one/own.md")
    assert before < between < (await uses(shell))["one"].last_used_ns
