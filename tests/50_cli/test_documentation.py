"""What is written about the command is true: man page, help, completion, unit, README."""

from __future__ import annotations

import argparse
import configparser
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agentfs.cli.arguments import build_parser, exit_codes
from agentfs.config import shipped_profiles

Run = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).resolve().parents[2]
MAN_PAGE = (ROOT / "docs/agentfs.1").read_text()
UNIT = ROOT / "mountpoints/agentfs@.service"

# roff: \- is a minus sign, \fX and leading .XX are fonts.
MAN_TEXT = re.sub(r"\\f[A-Z]|^\.[A-Z]+ ", "", MAN_PAGE.replace(r"\-", "-"), flags=re.MULTILINE)


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = (
        action
        for action in build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    return dict(action.choices)


@pytest.mark.parametrize("name", commands())
def test_the_man_page_has_every_command_and_option(name: str) -> None:
    usage = next(line for line in MAN_TEXT.splitlines() if line.startswith(f"agentfs {name}"))
    for action in commands()[name]._actions:
        for option in action.option_strings:
            assert option in MAN_TEXT
        if action.option_strings and action.dest != "help":
            assert action.option_strings[-1] in usage


def test_the_man_page_has_every_exit_code() -> None:
    listed = re.findall(r"^\.B (\d+)\n(.+)$", MAN_PAGE, flags=re.MULTILINE)
    assert {int(code): meaning for code, meaning in listed} == exit_codes()


def test_the_man_page_has_every_profile() -> None:
    for name in shipped_profiles():
        assert name in MAN_TEXT


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_the_man_page_is_clean_roff() -> None:
    command = ["groff", "-man", "-Tutf8", "-ww", str(ROOT / "docs/agentfs.1")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_help_lists_the_exit_codes(run: Run) -> None:
    text = run("--help").stdout
    for code, meaning in exit_codes().items():
        assert f"{code:>3}  {meaning}" in text


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_script_parses(run: Run, shell: str, tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / "script"
    script.write_text(run("completion", shell).stdout)
    subprocess.run([shell, "-n", str(script)], check=True)


def test_bash_completes_commands_options_and_shells(run: Run, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(run("completion", "bash").stdout)

    def complete(line: str) -> set[str]:
        words = line.split(" ")
        test = f"""
            source {script}
            function_=$(complete -p agentfs | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
            COMP_WORDS=({" ".join(shlex.quote(word) for word in words)})
            COMP_CWORD={len(words) - 1}
            "$function_" agentfs {shlex.quote(words[-1])} x
            printf '%s\\n' "${{COMPREPLY[@]}}"
        """
        done = subprocess.run(["bash", "-c", test], capture_output=True, text=True, check=True)
        return set(done.stdout.split())

    assert {"mount", "umount", "sync", "stats", "gc", "version", "completion"} <= complete(
        "agentfs "
    )
    assert {"--store", "--profile", "--foreground", "--json"} <= complete("agentfs mount --")
    assert complete("agentfs completion z") == {"zsh"}


def test_the_completion_script_for_zsh_names_every_command(run: Run) -> None:
    script = run("completion", "zsh").stdout
    assert script.startswith("#compdef agentfs")
    for name in commands():
        assert f'    "{name}:' in script or f'"{name}"' in script or f"    {name})" in script


def test_the_unit_calls_commands_that_exist() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT)
    parser = build_parser()
    for key in ("ExecStart", "ExecReload", "ExecStop"):
        program, name, *arguments = shlex.split(unit["Service"][key])
        assert (program, name) == ("/usr/bin/env", "agentfs")
        arguments = [argument.replace("%i", "default") for argument in arguments]
        parser.parse_args(arguments)
    assert unit["Service"]["Type"] == "notify", "the keeper says when the mount is up"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    instance = tmp_path / "agentfs@default.service"
    instance.write_text(UNIT.read_text())
    done = subprocess.run(
        ["systemd-analyze", "verify", str(instance)], capture_output=True, text=True, check=False
    )
    assert "agentfs@" not in done.stderr
    assert done.returncode == 0, done.stderr


def test_version_starts_without_anything_heavy(environment: dict[str, str]) -> None:
    script = (
        "import sys; from agentfs.cli import main; main(['version']); "
        "print([m for m in ('trio', 'rich', 'pyfuse3', 'shtab', 'sqlite3') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_setup_names_to_a_user_what_is_missing(tmp_path: Path) -> None:
    """With nothing but bash on PATH everything is missing, and nothing can be installed."""
    for tool in ("bash", "dirname"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "/bin/false")
    (tmp_path / "id").write_text("#!/bin/bash\necho 1000\n")
    (tmp_path / "id").chmod(0o755)
    done = subprocess.run(
        [shutil.which("bash") or "bash", ROOT / "scripts/setup", "test"],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    _, line = done.stderr.splitlines()
    assert line.startswith("  apt-get install ")
    assert {"fuse3", "gcc", "libzstd-dev", "python3-venv"} <= set(line.split())


def test_every_test_that_the_documents_name_is_there() -> None:
    written = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    there = set(re.findall(r"def (test_\w+)", written))
    for document in (ROOT / "docs").glob("*.md"):
        named = set(re.findall(r"`(test_\w+)`", document.read_text()))
        assert named <= there, document.name


def test_every_benchmark_that_is_documented_starts() -> None:
    named = set(re.findall(r"`(bench\.\w+)[ `]", (ROOT / "bench/README.md").read_text()))
    assert {"bench.corpus", "bench.day", "bench.spawn"} <= named
    # What the tests set is not there when people start a benchmark.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    for module in sorted(named):
        command = [sys.executable, "-m", module, "--help"]
        ended = subprocess.run(
            command, cwd=ROOT, env=environment, check=False, capture_output=True, text=True
        )
        assert ended.returncode == 0, f"{module}: {ended.stderr}"
