"""`agentfs version` and `agentfs completion`: what the program knows about itself."""

from __future__ import annotations

import argparse
import os
import sys

from agentfs import __version__
from agentfs.cli import output


def version_command(arguments: argparse.Namespace) -> int:
    """Print the version, and what it runs on."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    kernel = os.uname().release
    value = {"version": __version__, "python": python, "kernel": kernel}
    text = f"agentfs {__version__} (Python {python}, Linux {kernel})"
    return output.answer(arguments.json, value, text)


def completion_command(arguments: argparse.Namespace) -> int:
    """Print the completion script of one shell."""
    import shtab

    from agentfs.cli.arguments import build_parser

    parser = build_parser()
    _complete_paths(parser, shtab.DIRECTORY, shtab.FILE)
    script = shtab.complete(parser, shell=arguments.shell)
    return output.answer(arguments.json, {"shell": arguments.shell, "script": script}, script)


def _complete_paths(parser: argparse.ArgumentParser, directory: object, file: object) -> None:
    """Mark the arguments that are paths, in all commands, the way shtab looks for it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command, directory, file)
        elif action.dest in ("mountpoint", "store", "target"):
            action.complete = directory  # type: ignore[attr-defined]
        elif action.dest in ("out", "profile", "source", "destination", "path"):
            action.complete = file  # type: ignore[attr-defined]
