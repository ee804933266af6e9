"""The command line's grammar, with the help that people see."""

from __future__ import annotations

import argparse
import functools
import importlib
from collections.abc import Callable

from agentfs import errors
from agentfs.cli import live
from agentfs.config import DEFAULT_MODE, DEFAULT_MOUNTPOINT, MODES

Command = Callable[[argparse.Namespace], int]

SORT_KEYS = {
    "name": "name",
    "state": "state",
    "importance": "importance",
    "files": "files",
    "logical": "logical_bytes",
    "shared": "shared_bytes",
    "own": "exclusive_bytes",
    "hot": "hot_bytes",
    "used": "last_used_ns",
}
"""What `agentfs agents --sort` takes, and what that is of an agent."""

_TARGET = "MOUNTPOINT|STORE"
_TARGET_HELP = (
    f"what to work on (default: {DEFAULT_MOUNTPOINT} if mounted, else the only agentfs mount)"
)


def exit_codes() -> dict[int, str]:
    """Every exit code with its meaning in one sentence, ascending."""
    meanings = {0: "Done.", 1: "Something unexpected went wrong."}
    for kind in errors.AgentfsError.__subclasses__():
        meanings[kind.exit_code] = (kind.__doc__ or "").splitlines()[0]
    meanings[130] = "Interrupted by SIGINT."
    return dict(sorted(meanings.items()))


def build_parser() -> argparse.ArgumentParser:
    """Build the whole grammar; a parsed command has `run`, which imports its function."""
    parser = argparse.ArgumentParser(
        prog="agentfs",
        description="Mount a directory for AI agents' files, where equal content is kept once.",
        epilog="exit codes:\n" + "\n".join(f"  {n:>3}  {m}" for n, m in exit_codes().items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, module: str, summary: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=summary, description=summary.capitalize() + ".", allow_abbrev=False
        )
        command.add_argument(
            "--json", action="store_true", help="answer with one JSON object on stdout"
        )
        command.set_defaults(run=functools.partial(_load, module, f"{name}_command"))
        return command

    mount = add("mount", "mounting", "mount a store, making it if there is none")
    mount.add_argument(
        "mountpoint",
        nargs="?",
        metavar="MOUNTPOINT",
        help=f"an existing directory (default: {DEFAULT_MOUNTPOINT})",
    )
    mount.add_argument(
        "--store",
        metavar="DIR",
        help="where the bytes are kept (default: /var/lib/agentfs/store for root, "
        "$XDG_DATA_HOME/agentfs/store for others)",
    )
    mount.add_argument(
        "--profile",
        metavar="NAME",
        default="default",
        help="a shipped mount profile, or a path ending in .toml (default: default)",
    )
    mount.add_argument(
        "--mode",
        choices=MODES,
        default=DEFAULT_MODE,
        help="relay: the kernel reads and writes on tmpfs itself, and equal content is one copy in "
        "memory (root, Linux 6.9); plain: the daemon serves reads and writes; auto: relay where "
        "possible (default)",
    )
    mount.add_argument(
        "--hot-bytes",
        metavar="SIZE",
        help="what may lie on tmpfs at once, such as 4GiB (default: as the profile says, "
        "a quarter of RAM)",
    )
    mount.add_argument(
        "--foreground", action="store_true", help="stay in the foreground and log to stderr"
    )

    clone = add("clone", "clone", "make a copy of a file or a tree that shares all its bytes")
    clone.add_argument("source", metavar="SOURCE", help="a file or directory in an agentfs mount")
    clone.add_argument("destination", metavar="DESTINATION", help="its new name, in the same mount")
    clone.add_argument(
        "--force", action="store_true", help="replace what is at DESTINATION, at one moment"
    )

    listing = add("ls", "listing", "list files with their kind, agent, tier and reduction")
    listing.add_argument(
        "path", nargs="?", default=".", metavar="PATH", help="in an agentfs mount (default: .)"
    )
    listing.add_argument(
        "-l",
        "--long",
        action="store_true",
        help="type, kind, agent, tier, size and reduction of each",
    )

    agents = add("agents", "agents", "list the agents with what their files take and share")
    agents.add_argument("target", nargs="?", metavar=_TARGET, help=_TARGET_HELP)
    agents.add_argument(
        "--sort",
        choices=SORT_KEYS,
        default="name",
        metavar="KEY",
        help=f"by {', '.join(SORT_KEYS)} (default: name)",
    )
    _add_agent_actions(add("agent", "agents", "pause, resume or weigh an agent, or spawn one"))

    for name, summary in (
        ("pin", "keep a file, or all below a directory, uncompressed on tmpfs"),
        ("unpin", "let go of what was pinned"),
        ("warm", "bring a file, or all below a directory, to tmpfs now"),
    ):
        add(name, "tiers", summary).add_argument("path", metavar="PATH", help="in an agentfs mount")

    for name, module, summary in (
        ("umount", "mounting", "seal everything, unmount and wait until the store is free"),
        ("sync", "maintenance", "seal all files now and wait until they are on disk"),
        ("restart", "restart", "replace the daemon's worker, by the version installed now"),
        ("gc", "maintenance", "give space of deleted content back to the disk"),
        ("compact", "maintenance", "pack everything as small as it gets, on idle cores"),
    ):
        add(name, module, summary).add_argument(
            "target", nargs="?", metavar=_TARGET, help=_TARGET_HELP
        )

    stats = add("stats", "stats", "show what a store holds and saves, mounted or not")
    stats.add_argument("target", nargs="?", metavar=_TARGET, help=_TARGET_HELP)
    stats.add_argument(
        "--watch",
        nargs="?",
        type=live.interval,
        const=live.DEFAULT_INTERVAL_S,
        metavar="SECONDS",
        help=f"show it anew every SECONDS (default: {live.DEFAULT_INTERVAL_S:g}) until q or Ctrl-C",
    )

    top = add("top", "top", "show agents and tiers, live, until q or Ctrl-C")
    top.add_argument("target", nargs="?", metavar=_TARGET, help=_TARGET_HELP)
    top.add_argument(
        "--sort",
        choices=SORT_KEYS,
        default="hot",
        metavar="KEY",
        help=f"which agents come first: by {', '.join(SORT_KEYS)} (default: hot)",
    )
    top.add_argument(
        "--interval",
        type=live.interval,
        default=live.DEFAULT_INTERVAL_S,
        metavar="SECONDS",
        help=f"how often to look (default: {live.DEFAULT_INTERVAL_S:g})",
    )

    report = add("report", "report", "draw where the bytes are and what was saved, as a web page")
    report.add_argument("out", metavar="OUT.html", help="the page, one file that needs no other")
    report.add_argument("target", nargs="?", metavar=_TARGET, help=_TARGET_HELP)

    fsck = add("fsck", "fsck", "check all of a store, mounted or not, and repair one that is not")
    fsck.add_argument("target", nargs="?", metavar=_TARGET, help=_TARGET_HELP)
    fsck.add_argument(
        "--repair",
        action="store_true",
        help="make a store that is not mounted usable again, and say what is lost",
    )

    add("doctor", "doctor", "check what of this machine matters, and say what to do about it")
    tune = add("tune", "tune", "show kernel settings that suit agents, set them, or set them back")
    which = tune.add_mutually_exclusive_group()
    which.add_argument("--apply", action="store_true", help="set them, noting what they were")
    which.add_argument("--undo", action="store_true", help="set back what --apply has set")

    add("version", "about", "show the version")
    completion = add("completion", "about", "print a script that completes agentfs commands")
    completion.add_argument("shell", choices=("bash", "zsh"), help="the shell to write it for")
    return parser


def _add_agent_actions(agent: argparse.ArgumentParser) -> None:
    actions = agent.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (
        ("pause", "say that an agent rests: its files give way first"),
        ("resume", "let what it does show again whether an agent is at work"),
        ("importance", "say how much an agent matters, 50 being usual"),
        ("spawn", "make a new agent of another, sharing all its bytes"),
    ):
        action = actions.add_parser(
            name, help=summary, description=summary.capitalize() + ".", allow_abbrev=False
        )
        action.add_argument(
            "--json",
            action="store_true",
            default=argparse.SUPPRESS,
            help="answer with one JSON object on stdout",
        )
        action.add_argument("name", metavar="NAME", help="of the agent")
        if name == "importance":
            action.add_argument(
                "importance", type=_importance, metavar="N", help="from 0 to 100, the most"
            )
        if name == "spawn":
            action.add_argument(
                "--from",
                dest="template",
                required=True,
                metavar="TEMPLATE",
                help="an agent's name, or the path of a directory",
            )
        action.add_argument("target", nargs="?", metavar=_TARGET, help=_TARGET_HELP)


def _importance(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) <= 100):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to 100")
    return int(text)


def _load(module: str, function: str) -> Command:
    command: Command = getattr(importlib.import_module(f"agentfs.cli.{module}"), function)
    return command
