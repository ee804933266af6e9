"""Equal bytes of different users, where each user's are kept by themselves (`dedup = "user"`)."""

from __future__ import annotations

import random

import pytest
from blake3 import blake3

from agentfs.filesystem.fsck import Report, check
from agentfs.filesystem.namespace import Caller
from agentfs.filesystem.repair import repair
from agentfs.index import Index
from fakes.damage import damage_block, is_lost, place_of
from fakes.recount import miscounts
from fakes.volumes import KIB, MIB, Machine, Shell, profile

ONE, OTHER = 1001, 1002

BY_USER = profile(dedup="user", block_bytes=64 * KIB)
FOR_ALL = profile(dedup="all", block_bytes=64 * KIB)


def noise(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def as_user(shell: Shell, uid: int) -> Shell:
    return Shell(shell.volume, Caller(uid, uid))


def still(what: str, done: int, total: int) -> None:
    """Progress nobody looks at."""


def checked(machine: Machine) -> Report:
    return check(machine.store, still)


def content(shell: Shell, path: str) -> int:
    found = shell.inode(path).content
    assert found is not None
    return found


def domain(shell: Shell, path: str) -> int | None:
    return shell.volume.index.contents.get(content(shell, path))[3]


def digest(shell: Shell, path: str) -> bytes:
    return shell.volume.index.contents.get(content(shell, path))[0]


def domains_by_block(index: Index) -> list[int]:
    """How many domains the chunks of each block are of."""
    rows = index.execute("SELECT count(DISTINCT ifnull(domain, -1)) FROM chunk GROUP BY block")
    return [row[0] for row in rows]


async def written_by_both(shell: Shell, data: bytes, name: str = "file") -> tuple[str, str]:
    """The same bytes in a file of each user, sealed together."""
    paths = f"/{name}-one", f"/{name}-other"
    for uid, path in zip((ONE, OTHER), paths, strict=True):
        await as_user(shell, uid).write(path, data)
    await shell.seal(*paths)
    return paths


@pytest.fixture
def apart(machine: Machine) -> Shell:
    return machine.open(BY_USER)


@pytest.mark.parametrize("size", [5, 200_000, 17 * MIB])
async def test_equal_files_of_two_users_share_nothing(apart: Shell, size: int) -> None:
    data = noise(1, size)
    one, other = await written_by_both(apart, data)
    assert digest(apart, one) != digest(apart, other)
    assert blake3(data).digest() not in (digest(apart, one), digest(apart, other))
    assert not set(apart.recipe(one)) & set(apart.recipe(other))
    assert apart.segment_bytes() > 2 * size
    assert (domain(apart, one), domain(apart, other)) == (ONE, OTHER)
    for path in (one, other):
        assert await apart.read(path) == data


@pytest.mark.parametrize("size", [5, 200_000, 17 * MIB])
async def test_equal_files_of_one_user_are_kept_once(apart: Shell, size: int) -> None:
    data = noise(1, size)
    user = as_user(apart, ONE)
    await user.write("/first", data)
    await user.seal("/first")
    before = apart.segment_bytes()
    await user.write("/second", data)
    await user.write("/longer", data + b"and more")
    await user.seal("/second", "/longer")
    assert content(apart, "/first") == content(apart, "/second")
    assert set(apart.recipe("/first")[:-1]) <= set(apart.recipe("/longer"))
    assert apart.segment_bytes() - before < 40 * KIB + size / 8


async def test_a_block_holds_bytes_of_one_user(apart: Shell) -> None:
    for number in range(20):
        uid = ONE if number % 2 else OTHER
        await as_user(apart, uid).write(f"/{number}", noise(number, 3000))
    await apart.sync()
    assert domains_by_block(apart.volume.index) == [1, 1]


async def test_compaction_and_gc_keep_users_apart(machine: Machine, apart: Shell) -> None:
    files = {}
    for number in range(40):
        path = f"/{number:02}"
        files[path] = noise(number // 2, 20_000)
        await as_user(apart, ONE if number % 2 else OTHER).write(path, files[path])
        if number % 4 == 3:
            await apart.sync()
    for path in list(files)[::5]:
        apart.unlink(path)
        del files[path]
    for step in (apart.collect, apart.compact):
        await step()
        assert set(domains_by_block(apart.volume.index)) == {1}
        assert not miscounts(apart.volume.index)
        for path, data in files.items():
            assert await apart.read(path) == data
    await machine.unmount()
    assert checked(machine).is_clean


@pytest.mark.parametrize("sparse", [False, True])
async def test_a_write_into_a_sealed_file_begins_with_its_checked_bytes(
    apart: Shell, sparse: bool
) -> None:
    data = noise(1, 300_000)
    one, other = await written_by_both(apart, data)
    if sparse:
        await as_user(apart, ONE).truncate(one, 8 * MIB)
        await apart.seal(one)
        assert apart.inode(one).holes
        data += bytes(8 * MIB - len(data))
    await apart.write(one, b"new", 10)
    assert await apart.read(one) == data[:10] + b"new" + data[13:]
    assert await apart.read(other) == noise(1, 300_000)


async def test_bytes_that_pass_for_another_users_are_not_believed(apart: Shell) -> None:
    one, _ = await written_by_both(apart, noise(1, 30_000))
    apart.volume.index.execute("UPDATE content SET domain = ? WHERE domain = ?", (OTHER, ONE))
    with pytest.raises(OSError, match="should have BLAKE3"):
        await apart.write(one, b"x")


async def test_a_mount_with_the_other_setting_reads_and_checks_what_is_there(
    machine: Machine, apart: Shell
) -> None:
    data = noise(1, 100_000)
    one, other = await written_by_both(apart, data)
    await machine.unmount()
    shell = machine.open(FOR_ALL)
    shared = await written_by_both(shell, data, "shared")
    assert [domain(shell, path) for path in (one, other, *shared)] == [ONE, OTHER, None, None]
    assert content(shell, shared[0]) == content(shell, shared[1])
    assert digest(shell, shared[0]) == blake3(data).digest()
    await machine.unmount()
    shell = machine.open(BY_USER)
    again = await written_by_both(shell, data, "again")
    assert [content(shell, path) for path in again] == [content(shell, one), content(shell, other)]
    await shell.compact()
    assert set(domains_by_block(shell.volume.index)) == {1}
    for path in (one, other, *shared, *again):
        await shell.write(path, b"x", 5)
        assert await shell.read(path) == data[:5] + b"x" + data[6:]
    await machine.unmount()
    assert checked(machine).is_clean


async def test_a_file_given_away_keeps_its_domain_until_it_is_sealed_again(apart: Shell) -> None:
    data = noise(1, 50_000)
    one, other = await written_by_both(apart, data)
    apart.change(one, uid=OTHER, gid=OTHER)
    assert domain(apart, one) == ONE
    await as_user(apart, OTHER).write(one, data[:1])
    assert await apart.read(one) == data
    await apart.seal(one)
    assert content(apart, one) == content(apart, other)


async def test_a_clone_shares_and_is_its_owners_once_it_changes(apart: Shell) -> None:
    data = noise(1, 50_000)
    one, _ = await written_by_both(apart, data)
    await apart.clone(one, "/clone")
    apart.change("/clone", uid=OTHER, gid=OTHER)
    assert content(apart, "/clone") == content(apart, one)
    await apart.append("/clone", b"more")
    await apart.seal("/clone")
    assert domain(apart, "/clone") == OTHER
    assert not set(apart.recipe("/clone")) & set(apart.recipe(one))
    assert await apart.read(one) == data


async def test_damage_to_one_users_bytes_is_not_healed_by_another(apart: Shell) -> None:
    data = noise(1, 30_000)
    one, other = await written_by_both(apart, data)
    damage_block(apart.volume.path, place_of(apart, one))
    assert await is_lost(apart, one)
    await as_user(apart, OTHER).write("/third", data)
    await apart.seal("/third")
    assert await is_lost(apart, one)
    assert await apart.read(other) == data
    await as_user(apart, ONE).write("/fourth", data)
    await apart.seal("/fourth")
    assert await apart.read(one) == data
    assert not miscounts(apart.volume.index)


@pytest.mark.parametrize("secret_is", ["in the copy", "lost"])
async def test_an_index_made_of_a_copy_knows_the_domains(
    machine: Machine, apart: Shell, secret_is: str
) -> None:
    data = noise(1, 100_000)
    one, other = await written_by_both(apart, data)
    before = [digest(apart, path) for path in (one, other)]
    if secret_is == "lost":
        apart.volume.index.execute("DELETE FROM setting WHERE name = 'secret'")
    await machine.unmount()
    (machine.store / "index.db").write_bytes(b"nothing of it is left" * 1000)
    result = repair(machine.store, still)
    assert not result.report.files
    shell = machine.open(BY_USER)
    after = [digest(shell, path) for path in (one, other)]
    assert (after == before) == (secret_is == "in the copy")
    assert list(shell.volume.index.execute("SELECT DISTINCT domain FROM chunk ORDER BY 1")) == [
        (ONE,),
        (OTHER,),
    ]
    await as_user(shell, ONE).write("/longer", data + b"and more")
    await shell.seal("/longer")
    assert set(shell.recipe(one)[:-1]) <= set(shell.recipe("/longer")), "chunks are found again"
    again = await written_by_both(shell, data, "again")
    assert [content(shell, path) for path in again] == [content(shell, one), content(shell, other)]
    assert await shell.read(one) == data
    await machine.unmount()
    assert checked(machine).is_clean


def test_a_store_keeps_its_secret_and_no_two_have_the_same(machine: Machine) -> None:
    secrets = []
    for _ in range(2):
        secrets.append(machine.open(BY_USER).volume.index.secret)
        machine.close()
    (machine.store / "index.db").unlink()
    secrets.append(machine.open(BY_USER).volume.index.secret)
    assert secrets[0] == secrets[1] != secrets[2]
    assert len(secrets[0]) == 32
