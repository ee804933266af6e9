"""Settings are set, and set back to what they were before the first time."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from agentfs.cli import tune as command
from agentfs.errors import NothingApplied, NotPermitted, SettingRefused, SettingsUnknown
from agentfs.machine import tune
from fakes.machine import FakeMachine

ENABLED = f"{tune.ZSWAP}/enabled"
COMPRESSOR = f"{tune.ZSWAP}/compressor"


@pytest.fixture
def untuned(machine: FakeMachine) -> FakeMachine:
    """As a distribution leaves it."""
    machine.set(ENABLED, "N")
    machine.set(COMPRESSOR, "lzo")
    machine.set(f"{tune.ZSWAP}/shrinker_enabled", "N")
    machine.set(tune.SWAPPINESS, "60")
    machine.set(tune.HALT_POLL, "0")
    return machine


def values(machine: FakeMachine) -> dict[str, str | None]:
    names = ("enabled", "compressor", "shrinker_enabled")
    paths = [f"{tune.ZSWAP}/{name}" for name in names] + [
        tune.SWAPPINESS,
        tune.HUGE_SHMEM,
        tune.HALT_POLL,
    ]
    return {path: machine.setting(path) for path in paths}


def test_a_tuned_machine_is_left_alone(machine: FakeMachine) -> None:
    before = machine.tree()
    assert tune.apply(machine) == []
    assert machine.tree() == before


def test_showing_changes_nothing(untuned: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    before = untuned.tree()
    assert command.show(untuned.as_user(), as_json=False) == 0
    assert untuned.tree() == before
    assert f"{tune.SWAPPINESS} is 60, should be 100" in capsys.readouterr().out


def test_what_is_applied_is_set_and_undo_sets_it_back(untuned: FakeMachine) -> None:
    before = untuned.tree()
    assert all(change.problem is None for change in tune.apply(untuned))
    assert all(proposal.is_met for proposal in tune.proposals(untuned))
    assert untuned.setting(COMPRESSOR) == "zstd"
    tune.undo(untuned)
    changed = {
        path for path, data in untuned.tree().items() if data.strip() != before[path].strip()
    }
    assert changed == set()
    assert not untuned.path(tune.STATE).exists()


def test_applying_twice_keeps_the_first_values(untuned: FakeMachine) -> None:
    before = values(untuned)
    tune.apply(untuned)
    untuned.set(tune.SWAPPINESS, "10")  # somebody else's; and ours again
    tune.apply(untuned)
    tune.apply(untuned)
    tune.undo(untuned)
    assert values(untuned) == before


def test_only_what_differs_is_noted_and_set_back(untuned: FakeMachine) -> None:
    untuned.set(tune.SWAPPINESS, "100")
    tune.apply(untuned)
    untuned.set(tune.SWAPPINESS, "133")  # never ours
    tune.undo(untuned)
    assert untuned.setting(tune.SWAPPINESS) == "133"
    assert untuned.setting(ENABLED) == "N"


def test_what_somebody_has_set_since_stays(untuned: FakeMachine) -> None:
    tune.apply(untuned)
    untuned.set(tune.SWAPPINESS, "1")
    (problem,) = (change for change in tune.undo(untuned) if change.problem is not None)
    assert problem.path == tune.SWAPPINESS
    assert "60" in str(problem.problem), "what it was is said, as it is not kept any more"
    assert untuned.setting(tune.SWAPPINESS) == "1"
    assert untuned.setting(ENABLED) == "N"
    with pytest.raises(NothingApplied):
        tune.undo(untuned)


@pytest.mark.parametrize("polled", ["1", "50000", "1000000"])
def test_processors_that_poll_when_idle_poll_as_long_as_somebody_has_said(
    untuned: FakeMachine, polled: str
) -> None:
    untuned.set(tune.HALT_POLL, polled)
    tune.apply(untuned)
    assert untuned.setting(tune.HALT_POLL) == polled


def test_how_long_to_poll_means_nothing_to_another_governor(untuned: FakeMachine) -> None:
    untuned.set(tune.IDLE_GOVERNOR, "menu")
    tune.apply(untuned)
    assert untuned.setting(tune.HALT_POLL) == "0"


def test_undo_without_apply_says_so(untuned: FakeMachine) -> None:
    before = values(untuned)
    with pytest.raises(NothingApplied, match="nothing"):
        tune.undo(untuned)
    assert values(untuned) == before


def test_zswap_is_switched_on_last_and_off_first(
    untuned: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    write = Path.write_text

    def write_text(path: Path, text: str) -> int:
        order.append(path.name)
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", write_text)
    tune.apply(untuned)
    tune.undo(untuned)
    assert order.index("compressor") < order.index("enabled")
    assert order[::-1].index("compressor") < order[::-1].index("enabled")


def test_after_a_boot_the_settings_are_the_kernels_again(untuned: FakeMachine) -> None:
    tune.apply(untuned)
    untuned.set("/proc/sys/kernel/random/boot_id", "another")
    for path in (ENABLED, f"{tune.ZSWAP}/shrinker_enabled"):
        untuned.set(path, "N")
    untuned.set(COMPRESSOR, "lzo")
    untuned.set(tune.SWAPPINESS, "70")  # the new /etc/sysctl.conf
    with pytest.raises(NothingApplied):
        tune.undo(untuned)
    tune.apply(untuned)
    tune.undo(untuned)
    assert untuned.setting(tune.SWAPPINESS) == "70"


class Killed(BaseException):
    pass


@pytest.mark.parametrize("written", range(4))
def test_a_kill_at_any_step_loses_no_value(
    untuned: FakeMachine, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    before = values(untuned)
    left = [written]

    def write_text(path: Path, text: str) -> int:
        if not left[0]:
            raise Killed
        left[0] -= 1
        return write(path, text)

    write = Path.write_text
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_text)
        with pytest.raises(Killed):
            tune.apply(untuned)
    tune.undo(untuned)
    assert values(untuned) == before


def test_a_kill_while_the_values_are_noted_changes_nothing(
    untuned: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = values(untuned)

    def fsync(fd: int) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(Killed):
            tune.apply(untuned)
    assert values(untuned) == before
    assert not untuned.path(tune.STATE).exists()


def test_values_that_cannot_be_noted_are_not_changed(untuned: FakeMachine) -> None:
    before = values(untuned)
    untuned.path(tune.STATE).mkdir(parents=True)
    with pytest.raises(SettingsUnknown, match=r"tune\.json"):
        tune.apply(untuned)
    assert values(untuned) == before


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", '{"boot": 1', '{"settings": {}}', '{"boot": BOOT, "settings": {"a": 3}}'],
)
def test_a_file_that_is_not_ours_is_left_alone(untuned: FakeMachine, text: str) -> None:
    untuned.set(tune.STATE, text.replace("BOOT", json.dumps(untuned.boot)))
    before = untuned.tree()
    for action in (tune.apply, tune.undo):
        with pytest.raises(SettingsUnknown, match="nothing was changed"):
            action(untuned)
    assert untuned.tree() == before


def test_settings_are_roots(untuned: FakeMachine) -> None:
    before = untuned.tree()
    for action in (tune.apply, tune.undo):
        with pytest.raises(NotPermitted, match="root"):
            action(untuned.as_user())
    assert untuned.tree() == before


def refuse(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write = Path.write_text

    def write_text(path: Path, text: str) -> int:
        if path.name == name:
            raise OSError(22, "Invalid argument")
        return write(path, text)

    monkeypatch.setattr(Path, "write_text", write_text)


def test_what_the_kernel_refuses_is_named_and_the_rest_is_set(
    untuned: FakeMachine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = values(untuned)
    refuse(monkeypatch, "compressor")
    changes = tune.apply(untuned)
    assert command.report(changes, untuned, as_json=False) == SettingRefused.exit_code
    text = capsys.readouterr().out
    assert f"{COMPRESSOR} stays lzo: the kernel refuses zstd: Invalid argument" in text
    assert untuned.setting(ENABLED) == "Y"
    tune.undo(untuned)
    assert values(untuned) == before


def test_what_cannot_be_set_back_can_be_later(
    untuned: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = values(untuned)
    tune.apply(untuned)
    with monkeypatch.context() as patch:
        refuse(patch, "swappiness")
        assert [c.path for c in tune.undo(untuned) if c.problem] == [tune.SWAPPINESS]
    tune.undo(untuned)
    assert values(untuned) == before


def test_a_compressor_that_the_kernel_lacks_is_not_asked_for(untuned: FakeMachine) -> None:
    untuned.set(f"/boot/config-{untuned.kernel}", "# CONFIG_CRYPTO_ZSTD is not set")
    tune.apply(untuned)
    assert untuned.setting(COMPRESSOR) == "lzo"


def test_settings_that_the_kernel_lacks_are_left_out(untuned: FakeMachine) -> None:
    for name in ("enabled", "compressor", "shrinker_enabled"):
        untuned.remove(f"{tune.ZSWAP}/{name}")
    untuned.remove(tune.HALT_POLL)
    assert [p.path for p in tune.proposals(untuned)] == [tune.HUGE_SHMEM]
    assert tune.apply(untuned) == [], "swappiness suits the disk as it is"


def test_swap_in_ram_has_no_zswap_above_it(untuned: FakeMachine) -> None:
    untuned.set("/proc/swaps", "Filename Type Size Used Priority\n/dev/zram0 partition 819200 0 5")
    changed = {change.path for change in tune.apply(untuned)}
    assert tune.SWAPPINESS in changed
    assert not any(path.startswith(tune.ZSWAP) for path in changed)


def test_huge_pages_that_were_denied_are_left_to_each_mount(untuned: FakeMachine) -> None:
    untuned.set(tune.HUGE_SHMEM, "always within_size advise never [deny] force")
    assert tune.HUGE_SHMEM in {change.path for change in tune.apply(untuned)}
    assert untuned.setting(tune.HUGE_SHMEM) == "advise"


def test_no_swap_is_said(untuned: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    untuned.set("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority")
    command.report(tune.apply(untuned), untuned, as_json=False)
    assert "there is no swap" in capsys.readouterr().out


def test_json_has_what_was_done(untuned: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    command.report(tune.apply(untuned), untuned, as_json=True)
    (swappiness,) = (
        change
        for change in json.loads(capsys.readouterr().out)["changes"]
        if change["path"] == tune.SWAPPINESS
    )
    assert swappiness == {"path": tune.SWAPPINESS, "before": "60", "after": "100", "problem": None}
    command.show(untuned, as_json=True)
    assert all(s["is_met"] for s in json.loads(capsys.readouterr().out)["settings"])
