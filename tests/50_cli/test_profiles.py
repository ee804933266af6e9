"""Mount profiles: the shipped ones load, and a wrong key is told with the right one."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest

from agentfs import config
from agentfs.errors import ProfileInvalid


@pytest.mark.parametrize("name", ["default", "small-machine", "archive"])
def test_every_shipped_profile_loads(name: str) -> None:
    assert name in config.shipped_profiles()
    assert config.load_profile(name).name == name


@pytest.mark.parametrize("name", config.shipped_profiles())
def test_a_shipped_profile_names_every_key(name: str) -> None:
    tables = tomllib.loads((config.profiles_dir() / f"{name}.toml").read_text())
    profile = config.load_profile(name)
    sections = {
        part.name: {key.name for key in dataclasses.fields(getattr(profile, part.name))}
        for part in dataclasses.fields(profile)
        if part.name != "name"
    }
    assert {section: set(table) for section, table in tables.items()} == sections


def test_the_default_profile_says_what_the_code_defaults_to() -> None:
    assert config.load_profile("default") == config.Profile("default")


def test_a_profile_may_be_a_path_and_leave_keys_out(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[store]\nblock_bytes = "512KiB"\n[seal]\nrest_s = 1\n')
    profile = config.load_profile(str(path))
    assert profile.name == "mine"
    assert profile.store.block_bytes == 512 * 1024
    assert profile.seal.rest_s == 1.0
    assert profile.store.level == config.Store().level


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        ({"seal": {"rest": 1}}, "unknown key seal.rest; the nearest is seal.rest_s"),
        ({"store": {"levle": 1}}, "unknown key store.levle; the nearest is store.level"),
        ({"level": 3}, "unknown key level; the nearest is store.level"),
        ({"stroe": {}}, "unknown key stroe; the nearest is store"),
        ({"seal": {"block_bytes": 1}}, "the nearest is store.block_bytes"),
        ({"seal": 3}, "seal must be a table"),
        ({"store": {"dedup": "users"}}, 'store.dedup is \'users\', must be "all" or "user"'),
        ({"store": {"dedup": 1}}, 'store.dedup is 1, must be "all" or "user"'),
        ({"store": {"level": 23}}, "store.level is 23, must be a whole number from 1 to 22"),
        ({"store": {"level": True}}, "store.level is True"),
        ({"store": {"level": 3.5}}, "store.level is 3.5"),
        ({"store": {"level": "3"}}, "store.level is '3'"),
        ({"store": {"block_bytes": "1 parsec"}}, "is not a size such as 64MiB"),
        ({"store": {"block_bytes": 1}}, "store.block_bytes is 1"),
        ({"seal": {"rest_s": float("nan")}}, "seal.rest_s is nan"),
        ({"seal": {"rest_s": -1}}, "seal.rest_s is -1"),
        ({"store": {"segment_bytes": "1MiB", "block_bytes": "2MiB"}}, "at least store.block_bytes"),
    ],
)
def test_a_wrong_profile_is_refused_in_one_line(tables: dict[str, Any], message: str) -> None:
    with pytest.raises(ProfileInvalid) as caught:
        config.parse_profile("mine", tables, origin="mine.toml")
    assert message in str(caught.value)
    assert "mine.toml" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"[seal", b"\xff\xfe", None])
def test_a_profile_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ProfileInvalid, match=r"mine\.toml"):
        config.load_profile(str(path))


def test_an_unknown_profile_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ProfileInvalid, match="archive, default, small-machine"):
        config.load_profile("defualt")


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("17", 17), ("17B", 17), ("64MiB", 64 << 20), ("1 GiB", 1 << 30), ("2TiB", 2 << 40)],
)
def test_a_size_has_binary_units(text: str, size: int) -> None:
    assert config.parse_size(text) == size


def test_no_hot_budget_means_a_quarter_of_ram() -> None:
    assert config.Hot(bytes=12345).budget_bytes == 12345
    assert config.Hot().budget_bytes > 64 << 20
