"""What of a machine matters to a mount: what it is, what that costs or gains, what to do."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from agentfs.config import GIB, KIB, MIB
from agentfs.machine import tune
from agentfs.machine.reading import CAP_SYS_ADMIN, FUSE_DEVICE, LATENCY_DEVICE, Machine
from agentfs.units import size

PASSTHROUGH_KERNEL = (6, 9)
_DESCRIPTORS_ENOUGH = 65_536
_SHARE = 4
"""The default budget is this part of RAM."""


class Status(enum.StrEnum):
    """How good what was found is."""

    OK = "ok"
    WARN = "warn"
    """It works, with less."""
    FAIL = "fail"
    """It cannot be mounted."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: Status
    found: str
    """What it is."""
    effect: str
    """What that costs or gains."""
    advice: str | None = None
    """What to do about it."""

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


Probe = Callable[[], str | None]
"""Tries whether the kernel passes reads and writes through: what keeps it from that, or None."""


def examine(machine: Machine, probe: Probe | None = None) -> list[Finding]:
    """Look at everything. Nothing is changed, and nothing needs root.

    :param probe: asked, where it may be, instead of concluding from version and rights
    """
    return [
        _kernel(machine),
        _fuse(machine),
        _device(machine),
        _rights(machine),
        *_helper(machine),
        *_others(machine),
        _passthrough(machine, probe),
        _descriptors(machine),
        _memory(machine),
        _tmpfs(machine),
        *_huge_pages(machine),
        _pressure(machine),
        _swap(machine),
        *_zswap(machine),
        *_swappiness(machine),
        *_idle(machine),
    ]


def _kernel(machine: Machine) -> Finding:
    version = machine.kernel_version
    if version is not None and version >= PASSTHROUGH_KERNEL:
        return Finding("kernel", Status.OK, f"Linux {machine.kernel}", "has FUSE passthrough")
    return Finding(
        "kernel",
        Status.WARN,
        f"Linux {machine.kernel}",
        "plain mode only: the daemon serves each read and write, and files of equal content "
        "take memory each",
        "Linux 6.9 or later has FUSE passthrough",
    )


def _fuse(machine: Machine) -> Finding:
    built = machine.kernel_option("FUSE_FS")
    known = (machine.text("/proc/filesystems") or "").split()
    if "fuse" in known:
        return Finding("FUSE", Status.OK, "in the kernel", "mounts are possible")
    if built == "m":
        advice = "modprobe fuse; for each boot: echo fuse > /etc/modules-load.d/fuse.conf"
        found, effect = "a module that is not loaded", "nothing can be mounted"
        return Finding("FUSE", Status.FAIL, found, effect, advice)
    return Finding(
        "FUSE",
        Status.FAIL,
        "not in this kernel" if built == "n" else "not loaded",
        "nothing can be mounted",
        "modprobe fuse, or a kernel with CONFIG_FUSE_FS",
    )


def _device(machine: Machine) -> Finding:
    if not machine.exists(FUSE_DEVICE):
        return Finding(
            FUSE_DEVICE,
            Status.FAIL,
            "missing",
            "nothing can be mounted",
            "modprobe fuse; in a container: docker run --device /dev/fuse --cap-add SYS_ADMIN",
        )
    if not machine.may_use(FUSE_DEVICE):
        return Finding(
            FUSE_DEVICE,
            Status.FAIL,
            "may not be opened",
            "nothing can be mounted",
            f"as root: chmod 666 {FUSE_DEVICE}",
        )
    return Finding(FUSE_DEVICE, Status.OK, "may be opened", "mounts are possible")


def _rights(machine: Machine) -> Finding:
    if not machine.is_root:
        return Finding(
            "rights",
            Status.WARN,
            f"user {machine.uid}",
            "plain mode only: programs that map one content have a copy in memory for each file",
            "as root agentfs mounts in relay mode",
        )
    if machine.has_capability(CAP_SYS_ADMIN):
        return Finding("rights", Status.OK, "root, CAP_SYS_ADMIN", "mounts in relay mode")
    return Finding(
        "rights",
        Status.FAIL,
        "root without CAP_SYS_ADMIN",
        "nothing can be mounted",
        "docker run --cap-add SYS_ADMIN, or mount on the host and hand the directory in",
    )


def _helper(machine: Machine) -> Iterator[Finding]:
    if machine.is_root:
        return  # who may mount needs no helper
    program = machine.program("fusermount3")
    if program is None:
        found, advice = "missing", "apt-get install fuse3"
    elif not machine.is_setuid(program):
        found, advice = "not setuid root", f"as root: chmod u+s {program}"
    else:
        yield Finding("fusermount3", Status.OK, "setuid root", "mounts for users")
        return
    yield Finding("fusermount3", Status.FAIL, found, "users cannot mount", advice)


def _others(machine: Machine) -> Iterator[Finding]:
    if machine.is_root:
        return  # root's mounts are open to all
    if machine.users_may_allow_other:
        yield Finding(
            "user_allow_other", Status.OK, "set", "mount -o allow_other lets agents of others in"
        )
    else:
        yield Finding(
            "user_allow_other",
            Status.WARN,
            "not set",
            "only agents of this user can use what it mounts",
            "as root: echo user_allow_other >> /etc/fuse.conf; root's mounts need none",
        )


def _passthrough(machine: Machine, probe: Probe | None) -> Finding:
    gain = "equal content is one copy in memory, read and written without the daemon"
    obstacle = probe() if probe is not None and machine.is_root else _obstacle(machine)
    if obstacle is None:
        how = "tried: works" if probe is not None and machine.is_root else "should work"
        return Finding("passthrough", Status.OK, how, gain)
    return Finding(
        "passthrough",
        Status.WARN,
        obstacle,
        "plain mode, in which the daemon serves reads and writes",
        "relay mode takes root, Linux 6.9 and CONFIG_FUSE_PASSTHROUGH",
    )


def _obstacle(machine: Machine) -> str | None:
    """What the kernel's version, its configuration and our rights say of passthrough."""
    if (machine.kernel_version or (0, 0)) < PASSTHROUGH_KERNEL:
        return "the kernel has none"
    if machine.kernel_option("FUSE_PASSTHROUGH") == "n":
        return "the kernel is built without CONFIG_FUSE_PASSTHROUGH"
    return None if machine.is_root else "there, but for root only"


def _descriptors(machine: Machine) -> Finding:
    limit = machine.descriptor_limit()
    if limit is None:
        return Finding("open files", Status.WARN, "unknown", "the limit cannot be read")
    found = f"{limit:,} at most"
    if limit >= _DESCRIPTORS_ENOUGH:
        return Finding("open files", Status.OK, found, "each file in use takes two at most")
    where = "/proc/sys/fs/nr_open" if machine.is_root else "/etc/security/limits.conf"
    return Finding(
        "open files",
        Status.WARN,
        found,
        "files in use take up to two each: opening fails with EMFILE beyond that",
        f"raise it to {_DESCRIPTORS_ENOUGH:,} or more in {where}",
    )


def _memory(machine: Machine) -> Finding:
    total = machine.memory().get("MemTotal", 0)
    budget = total // _SHARE
    limit = machine.cgroup_limit_bytes()
    if not total:
        return Finding("memory", Status.WARN, "unknown", "/proc/meminfo cannot be read")
    if limit is not None and limit < 2 * budget:
        return Finding(
            "memory",
            Status.WARN,
            f"{size(limit)} for this control group, of {size(total)}",
            f"what is hot counts there, and may be {size(budget)} by default: "
            "the kernel would kill for want of memory",
            f"agentfs mount --hot-bytes {max(limit // _SHARE // MIB, 1)}MiB",
        )
    return Finding(
        "memory",
        Status.OK,
        f"{size(total)}",
        f"what is hot may take {size(budget)} of it by default (--hot-bytes)",
    )


def _tmpfs(machine: Machine) -> Finding:
    total = machine.memory().get("MemTotal", 0)
    if machine.is_root:
        return Finding(
            "tmpfs",
            Status.OK,
            f"one for each store, of {size(total // 2)} or more",
            "only root can enter it, and it has huge pages",
        )
    shared = machine.mount_at("/dev/shm")
    if shared is None or shared.fstype != "tmpfs":
        return Finding(
            "tmpfs",
            Status.WARN,
            "/dev/shm is none",
            "files that are being written lie on the store's disk",
            "as root: mount -t tmpfs tmpfs /dev/shm",
        )
    given = next((o.removeprefix("size=") for o in shared.options if o.startswith("size=")), None)
    room = _bytes_of(given) if given is not None else total // 2
    budget = total // _SHARE
    if room < budget:
        return Finding(
            "tmpfs",
            Status.WARN,
            f"/dev/shm of {size(room)}",
            f"less than what may be hot by default ({size(budget)}): what does not fit is staged "
            "on the store's disk",
            "as root: mount -o remount,size=50% /dev/shm; docker run --shm-size",
        )
    return Finding("tmpfs", Status.OK, f"/dev/shm of {size(room)}", "what is written lies there")


def _bytes_of(option: str) -> int:
    """Bytes of a size as tmpfs has it in its options."""
    units = {"k": KIB, "m": MIB, "g": GIB}
    digits, unit = option.rstrip("kmg"), option[-1:]
    return int(digits) * units.get(unit, 1) if digits.isdecimal() else 0


def _huge_pages(machine: Machine) -> Iterator[Finding]:
    if not machine.is_root:
        return  # images lie on root's tmpfs
    setting = machine.setting(tune.HUGE_SHMEM)
    cost = "1,000 mappings of a 50 MB prompt take 97 MB of page tables instead of 1 MB"
    if setting is None:
        advice = "a kernel with CONFIG_TRANSPARENT_HUGEPAGE"
        yield Finding("huge pages", Status.WARN, "not in this kernel", cost, advice)
    elif setting == "deny":
        yield Finding("huge pages", Status.WARN, "denied", cost, "agentfs tune --apply")
    else:
        yield Finding(
            "huge pages",
            Status.OK,
            "on tmpfs that asks for them, as ours does",
            "1,000 mappings of a 50 MB prompt take 1 MB of page tables instead of 97 MB",
        )


def _pressure(machine: Machine) -> Finding:
    if machine.text("/proc/pressure/memory") is not None:
        return Finding("pressure", Status.OK, "measured (PSI)", "want of memory is seen in time")
    return Finding(
        "pressure",
        Status.WARN,
        "not measured",
        "want of memory is seen by what is free only, which is later",
        "boot with psi=1, or a kernel with CONFIG_PSI",
    )


def _swap(machine: Machine) -> Finding:
    swaps = machine.swaps()
    if swaps:
        names = ", ".join(name for name, _ in swaps)
        return Finding(
            "swap",
            Status.OK,
            f"{size(sum(room for _, room in swaps))} ({names})",
            "programs of agents that wait can leave RAM",
        )
    return Finding(
        "swap",
        Status.WARN,
        "none",
        "programs of agents that wait stay in RAM, and so does all that is on a tmpfs",
        "fallocate -l 16G /swapfile && chmod 600 /swapfile && mkswap /swapfile && swapon /swapfile",
    )


def _zswap(machine: Machine) -> Iterator[Finding]:
    enabled = machine.setting(f"{tune.ZSWAP}/enabled")
    compressor = machine.setting(f"{tune.ZSWAP}/compressor")
    if not machine.swaps() or machine.swaps_to_ram:
        return  # without a disk to swap to there is nothing for it to do
    if enabled is None:
        found, effect = "not in this kernel", "what is swapped goes to the disk"
        yield Finding("zswap", Status.WARN, found, effect, "a kernel with CONFIG_ZSWAP, or zram")
    elif enabled != "Y":
        yield Finding(
            "zswap",
            Status.WARN,
            "off",
            "what is swapped goes to the disk, though it would be smaller in RAM",
            "agentfs tune --apply",
        )
    else:
        gain = "what is swapped stays in RAM, compressed"
        yield Finding("zswap", Status.OK, f"on ({compressor})", gain)


def _swappiness(machine: Machine) -> Iterator[Finding]:
    proposal = next((p for p in tune.proposals(machine) if p.path == tune.SWAPPINESS), None)
    if proposal is None or not machine.swaps():
        return
    if proposal.is_met:
        yield Finding("swappiness", Status.OK, proposal.now, "waiting agents leave RAM in time")
    else:
        yield Finding(
            "swappiness",
            Status.WARN,
            proposal.now,
            "files that are read leave the cache before agents that wait leave RAM",
            "agentfs tune --apply",
        )


def _idle(machine: Machine) -> Iterator[Finding]:
    polls = tune.polls_when_idle(machine)
    if polls is None:
        return
    if polls:
        gain = "who opens a file is answered without a way through the host"
        yield Finding("idle processors", Status.OK, "poll before they halt", gain)
    elif machine.may_use(LATENCY_DEVICE):
        gain = "while requests follow each other, your mounts ask them to wait awake"
        yield Finding("idle processors", Status.OK, "halt at once", gain)
    else:
        yield Finding(
            "idle processors",
            Status.WARN,
            "halt at once",
            "opening takes 10 us more, making a file 80: the host wakes who waits",
            "agentfs tune --apply",
        )
