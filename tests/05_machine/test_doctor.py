"""What is wrong with a machine is found, and what is right is not complained of."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from agentfs.cli import doctor
from agentfs.errors import MachineUnfit
from agentfs.machine.doctor import Finding, Status, examine
from agentfs.machine.reading import Machine
from fakes.machine import KERNEL, FakeMachine

ZSWAP = "/sys/module/zswap/parameters"
SHMEM = "/sys/kernel/mm/transparent_hugepage/shmem_enabled"
CONFIG = f"/boot/config-{KERNEL}"


def bad(machine: Machine, obstacle: str | None = None) -> dict[str, Finding]:
    """What is not ok, by name."""
    found = {finding.name: finding for finding in examine(machine, lambda: obstacle)}
    return {name: finding for name, finding in found.items() if finding.status is not Status.OK}


def test_a_good_machine_has_nothing_to_be_improved(machine: FakeMachine) -> None:
    assert bad(machine) == {}


def test_a_user_of_a_good_machine_lacks_relay_mode_only(machine: FakeMachine) -> None:
    found = bad(machine.as_user())
    assert set(found) == {"rights", "passthrough"}
    assert {finding.status for finding in found.values()} == {Status.WARN}


def test_everything_found_says_what_it_costs_or_gains(machine: FakeMachine) -> None:
    for finding in [*examine(machine, lambda: None), *examine(machine.as_user())]:
        assert all((finding.name, finding.found, finding.effect))


def test_what_is_not_ok_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree with nothing in it: each reading is missing, and none of that is an exception."""
    monkeypatch.setenv("PATH", "/usr/bin")
    for uid in (0, 1000):
        found = bad(Machine(tmp_path, uid=uid), "nothing is there")
        assert found["/dev/fuse"].status is Status.FAIL
        unreadable = {"open files", "memory"}  # of which nobody knows why
        assert {name for name, finding in found.items() if not finding.advice} <= unreadable


@pytest.mark.parametrize("release", ["6.8.12-debian", "5.10.0", "4.19", "unheard-of"])
def test_a_kernel_before_passthrough(machine: FakeMachine, release: str) -> None:
    machine.set("/proc/sys/kernel/osrelease", release)
    found = bad(machine, "the kernel has no FUSE passthrough")
    assert set(found) == {"kernel", "passthrough"}
    assert release in found["kernel"].found


def test_root_believes_the_trial_not_the_version(machine: FakeMachine) -> None:
    assert bad(machine, "tmpfs is stacked")["passthrough"].found == "tmpfs is stacked"


def test_a_user_is_told_of_a_kernel_built_without_passthrough(machine: FakeMachine) -> None:
    machine.set(CONFIG, "CONFIG_FUSE_FS=y\n# CONFIG_FUSE_PASSTHROUGH is not set")
    assert "CONFIG_FUSE_PASSTHROUGH" in bad(machine.as_user())["passthrough"].found


def test_fuse_is_a_module_that_is_not_loaded(machine: FakeMachine) -> None:
    machine.set("/proc/filesystems", "\text4")
    machine.set(CONFIG, "CONFIG_FUSE_FS=m")
    machine.remove("/dev/fuse")
    found = bad(machine)
    assert "modprobe" in str(found["FUSE"].advice)
    assert {found["FUSE"].status, found["/dev/fuse"].status} == {Status.FAIL}


def test_fuse_is_not_in_the_kernel(machine: FakeMachine) -> None:
    machine.set("/proc/filesystems", "\text4")
    machine.set(CONFIG, "CONFIG_EXT4_FS=y")
    assert bad(machine)["FUSE"].found == "not in this kernel"


def test_the_device_may_not_be_opened(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Machine, "may_use", lambda *_: False)
    assert "chmod" in str(bad(machine)["/dev/fuse"].advice)


def test_root_in_a_container_without_the_capability(machine: FakeMachine) -> None:
    machine.set("/proc/self/status", "CapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb")
    assert bad(machine, "mounting needs CAP_SYS_ADMIN")["rights"].status is Status.FAIL


def test_users_need_fusermount3_and_root_does_not(machine: FakeMachine) -> None:
    machine.remove("/usr/bin/fusermount3")
    assert bad(machine) == {}
    assert "apt-get" in str(bad(machine.as_user())["fusermount3"].advice)


def test_a_path_that_may_not_be_searched_is_passed_over(
    machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    unusable = "/" + "x" * 300  # ENAMETOOLONG, as EACCES is nothing to root
    monkeypatch.setenv("PATH", f"{unusable}:/usr/bin")
    assert "fusermount3" not in bad(machine.as_user())


def test_fusermount3_without_its_setuid_bit(machine: FakeMachine) -> None:
    machine.path("/usr/bin/fusermount3").chmod(0o755)
    assert bad(machine.as_user())["fusermount3"].status is Status.FAIL


@pytest.mark.parametrize("text", ["", "#user_allow_other", "mount_max = 5"])
def test_users_may_not_allow_other(machine: FakeMachine, text: str) -> None:
    machine.set("/etc/fuse.conf", text)
    assert bad(machine) == {}
    assert bad(machine.as_user())["user_allow_other"].status is Status.WARN


def test_few_descriptors(machine: FakeMachine) -> None:
    machine.set("/proc/self/limits", "Max open files            1024                 4096  files")
    assert bad(machine) == {}, "root raises its own"
    assert "4,096" in bad(machine.as_user())["open files"].found
    machine.set("/proc/sys/fs/nr_open", "20000")
    assert "20,000" in bad(machine.as_user(0))["open files"].found


@pytest.mark.parametrize("place", ["system.slice/agentfs@default.service", "system.slice", "."])
def test_a_control_group_with_little_memory(machine: FakeMachine, place: str) -> None:
    machine.set(f"/sys/fs/cgroup/{place}/memory.max", str(2 << 30))
    found = bad(machine)["memory"]
    assert found.found.startswith("2.00 GiB")
    assert found.advice == "agentfs mount --hot-bytes 512MiB"


def test_a_control_group_of_version_1(machine: FakeMachine) -> None:
    machine.set("/proc/self/cgroup", "5:cpu:/x\n4:memory:/docker/12\n0::/")
    machine.set(
        "/proc/self/mountinfo",
        "31 24 0:27 /docker/12 /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
        "32 24 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu",
    )
    machine.set("/sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    assert bad(machine) == {}
    machine.set("/sys/fs/cgroup/memory/memory.limit_in_bytes", str(1 << 30))
    assert bad(machine)["memory"].found.startswith("1.00 GiB")


def test_a_users_tmpfs_is_small_as_dockers_is(machine: FakeMachine) -> None:
    mounts = machine.text("/proc/self/mountinfo") or ""
    machine.set("/proc/self/mountinfo", mounts.replace("rw,inode64", "rw,size=65536k,inode64"))
    assert bad(machine) == {}, "root has its own"
    assert "64" in bad(machine.as_user())["tmpfs"].found


def test_no_tmpfs_for_users(machine: FakeMachine) -> None:
    machine.set("/proc/self/mountinfo", "24 1 8:1 / / rw - ext4 /dev/sda1 rw")
    assert bad(machine.as_user())["tmpfs"].status is Status.WARN


def test_huge_pages_are_denied_or_missing(machine: FakeMachine) -> None:
    machine.set(SHMEM, "always within_size advise never [deny] force")
    assert bad(machine)["huge pages"].advice == "agentfs tune --apply"
    machine.remove(SHMEM)
    assert "CONFIG_TRANSPARENT_HUGEPAGE" in str(bad(machine)["huge pages"].advice)


def test_pressure_is_not_measured(machine: FakeMachine) -> None:
    machine.remove("/proc/pressure/memory")
    assert set(bad(machine)) == {"pressure"}


def test_no_swap(machine: FakeMachine) -> None:
    machine.set("/proc/swaps", "Filename\tType\tSize\tUsed\tPriority")
    machine.set(f"{ZSWAP}/enabled", "N")
    machine.set("/proc/sys/vm/swappiness", "60")
    assert set(bad(machine)) == {"swap"}, "zswap has nothing to do then"


def test_zswap_is_off_or_missing(machine: FakeMachine) -> None:
    machine.set(f"{ZSWAP}/enabled", "N")
    assert bad(machine)["zswap"].advice == "agentfs tune --apply"
    for name in ("enabled", "compressor", "shrinker_enabled"):
        machine.remove(f"{ZSWAP}/{name}")
    assert "CONFIG_ZSWAP" in str(bad(machine)["zswap"].advice)


def test_swap_in_compressed_ram_needs_no_zswap(machine: FakeMachine) -> None:
    machine.set(f"{ZSWAP}/enabled", "N")
    machine.set("/proc/swaps", "Filename Type Size Used Priority\n/dev/zram0 partition 819200 0 5")
    assert bad(machine) == {}


def test_processors_of_a_virtual_machine_that_halt_at_once(machine: FakeMachine) -> None:
    machine.set("/sys/module/haltpoll/parameters/guest_halt_poll_ns", "0")
    assert "tune" in str(bad(machine)["idle processors"].advice)
    machine.set("/dev/cpu_dma_latency", "")
    assert bad(machine) == {}, "mounts of whoever may write there ask for it themselves"
    machine.remove("/dev/cpu_dma_latency")
    machine.set("/sys/devices/system/cpu/cpuidle/current_governor", "menu")
    assert bad(machine) == {}


def test_swappiness(machine: FakeMachine) -> None:
    machine.set("/proc/sys/vm/swappiness", "60")
    assert bad(machine)["swappiness"].found == "60"


def test_a_compressed_configuration_is_read(machine: FakeMachine) -> None:
    machine.remove(CONFIG)
    assert machine.kernel_option("FUSE_PASSTHROUGH") is None
    machine.set("/proc/config.gz", "")
    machine.path("/proc/config.gz").write_bytes(gzip.compress(b"CONFIG_FUSE_PASSTHROUGH=y\n"))
    machine.__dict__.pop("_kernel_config", None)
    assert machine.kernel_option("FUSE_PASSTHROUGH") == "y"
    assert machine.kernel_option("ZSWAP") == "n"


def test_a_damaged_configuration_is_as_none(machine: FakeMachine) -> None:
    machine.remove(CONFIG)
    machine.set("/proc/config.gz", "not gzip")
    assert machine.kernel_option("FUSE_PASSTHROUGH") is None


def test_looking_changes_nothing(machine: FakeMachine) -> None:
    before = machine.tree()
    examine(machine, lambda: None)
    assert machine.tree() == before


def test_the_exit_code_says_whether_a_mount_is_possible(
    machine: FakeMachine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.report(examine(machine.as_user()), as_json=False) == 0
    assert "agentfs can mount here" in capsys.readouterr().out
    machine.remove("/dev/fuse")
    assert doctor.report(examine(machine), as_json=False) == MachineUnfit.exit_code
    text = capsys.readouterr().out
    assert "agentfs cannot mount here: 1 to be mended" in text
    assert "-> modprobe fuse" in text
    assert "\x1b" not in text


def test_json_has_all_of_it(machine: FakeMachine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.remove("/proc/pressure/memory")
    assert doctor.report(examine(machine), as_json=True) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["warn"], answer["fail"]) == (1, 0)
    found = {finding["name"]: finding for finding in answer["findings"]}
    assert set(found["pressure"]) == {"name", "status", "found", "effect", "advice"}
    assert found["pressure"]["status"] == "warn"
    assert answer["ok"] + answer["warn"] == len(answer["findings"])
