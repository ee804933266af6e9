"""A short tour: twenty agents at work in a mount, with real files (examples/agents/).

    python examples/tour.py [MOUNTPOINT]

Mounts agentfs if it is not mounted there, has the agents write, seals, shows
`agentfs stats` and leaves the mount up. It uses nothing of agentfs but the
command: what the agents do is mkdir, open, append and copy.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent / "agents"
FOLDER = "agents"  # each directory in it is an agent's
PREFIX = "tour-"
AGENTS = 18
FORKS = 2
AGENTS_ON_THE_NEWEST_PROMPT = 12  # a fleet never runs one version only

# -P: the agentfs that is installed, not the one that happens to lie in the working directory.
AGENTFS = [sys.executable, "-P", "-m", "agentfs.cli"]


def main(argv: list[str]) -> int:
    """Run the tour in the mountpoint that *argv* names; returns an exit code."""
    mountpoint = Path(argv[0] if argv else _default_mountpoint()).absolute()
    if os.path.ismount(mountpoint):
        if not _is_agentfs(mountpoint):
            print(
                f"tour: {mountpoint} is mounted, but not by agentfs; name another directory",
                file=sys.stderr,
            )
            return 1
    else:
        if os.geteuid() != 0 or mountpoint != Path("/agentmem"):
            mountpoint.mkdir(exist_ok=True)
        command = "mount" if mountpoint == Path("/agentmem") else f"mount {mountpoint}"
        if _agentfs(*command.split(" ", 1)) != 0:
            return 1
    folder = mountpoint / FOLDER
    last = sorted(folder.glob(f"{PREFIX}*"))
    if last:
        print(f"removing {len(last)} agents of the last tour")
    for home in last:
        shutil.rmtree(home)
    _write(folder)
    print()
    if _agentfs("sync", str(mountpoint)) != 0 or _agentfs("stats", str(mountpoint)) != 0:
        return 1
    print()
    print(f"{mountpoint} stays mounted: write there with any program.")
    print(f"To see who has what: {_command()} agents {mountpoint}")
    print(f"To stop: {_command()} umount {mountpoint}")
    return 0


def _is_agentfs(mountpoint: Path) -> bool:
    done = subprocess.run(
        [*AGENTFS, "stats", mountpoint, "--json"], capture_output=True, text=True, check=False
    )
    # It takes a store as well, which may have a filesystem of its own.
    mounted = json.loads(done.stdout)["mountpoint"] if done.returncode == 0 else None
    return mounted is not None and os.path.samefile(mounted, mountpoint)


def _write(folder: Path) -> None:
    started = time.monotonic()
    conversations = list(_conversations())
    newest, *older = sorted((EXAMPLES / "prompts").rglob("*.md"), reverse=True)
    for number, (conversation, results) in enumerate(conversations):
        prompt = newest
        if number >= AGENTS_ON_THE_NEWEST_PROMPT:
            prompt = older[number % len(older)]
        _start(_home(folder, number), prompt)
        _converse(_home(folder, number), conversation, results)
    for number in range(FORKS):
        # A fork is a plain copy that goes its own way: here with another one's last words.
        fork = _home(folder, AGENTS + number)
        shutil.copytree(_home(folder, number), fork)
        _converse(fork, conversations[number + FORKS][0][-6:], [])
    files = [path for path in folder.glob(f"{PREFIX}*/**/*") if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    print(
        f"{len(conversations)} agents and {FORKS} forks of them wrote {len(files)} files, "
        f"{size / 2**20:.1f} MiB, in {time.monotonic() - started:.1f} s:"
    )
    print("  each has a system prompt and its tool definitions, and appends message by message")


def _start(home: Path, prompt: Path) -> None:
    """Give an agent what it starts with: its prompt and the definitions of its tools."""
    home.mkdir(parents=True)
    shutil.copyfile(prompt, home / "system_prompt.md")
    tools = sorted((EXAMPLES / "tools").rglob("*.snap"))
    (home / "tools.json").write_text(
        json.dumps([json.loads(tool.read_text()) for tool in tools], indent=2)
    )


def _converse(home: Path, messages: list[dict[str, Any]], results: list[Path]) -> None:
    """Append the messages one by one, as a harness does, and keep the tools' results."""
    for message in messages:
        with (home / "conversation.jsonl").open("a", encoding="utf-8") as log:
            log.write(json.dumps(message, ensure_ascii=False) + "\n")
    for result in results:
        (home / "results").mkdir(exist_ok=True)
        shutil.copyfile(result, home / "results" / result.name)


def _conversations() -> Iterator[tuple[list[dict[str, Any]], list[Path]]]:
    """Yield eighteen conversations, each with tool results, none twice."""
    results = [
        sorted(path.iterdir()) for path in sorted((EXAMPLES / "results/mini-swe-agent").iterdir())
    ] + [[path] for path in sorted((EXAMPLES / "results/vexp-swe-bench").iterdir())]
    files = sorted((EXAMPLES / "conversations").rglob("*.json"))[:AGENTS]
    for number, path in enumerate(files):
        content = json.loads(path.read_text(encoding="utf-8"))
        messages = content["messages"] if isinstance(content, dict) else content
        yield messages, results[number] if number < len(results) else []


def _home(folder: Path, number: int) -> Path:
    return folder / f"{PREFIX}{number + 1:02}"


def _default_mountpoint() -> str:
    return "/agentmem" if os.geteuid() == 0 else "agentmem"


def _agentfs(*arguments: str) -> int:
    sys.stdout.flush()
    return subprocess.run([*AGENTFS, *arguments], check=False).returncode


def _command() -> str:
    """How a person calls agentfs: by name, or by path if it is not on PATH."""
    script = Path(sys.executable).with_name("agentfs")
    return "agentfs" if shutil.which("agentfs") or not script.exists() else str(script)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
