"""Who changes the bytes of a file without privilege takes its set-id bits away, as elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

USER = 1000

CHANGES = """
import stat
def report(name, status): print(name, oct(stat.S_IMODE(status.st_mode)), flush=True)
os.chdir(sys.argv[1])
os.umask(0)
for mode in (0o6777, 0o4777, 0o2777, 0o2767, 0o1777):
    def made(name):
        name = f"{mode:o} {name}"
        fd = os.open(name, os.O_CREAT | os.O_RDWR, 0o666)
        os.write(fd, b"bytes" * 1000)
        os.close(fd)
        os.chmod(name, mode)
        return name
    fd = os.open(made("written"), os.O_WRONLY)
    os.write(fd, b"x")
    report("written", os.fstat(fd))
    os.close(fd)
    name = made("appended")
    fd = os.open(name, os.O_WRONLY | os.O_APPEND)
    os.write(fd, b"x")
    report("appended", os.stat(name))
    os.close(fd)
    name = made("truncated")
    os.truncate(name, 10)
    report("truncated", os.stat(name))
    name = made("emptied")
    os.close(os.open(name, os.O_WRONLY | os.O_TRUNC))
    report("emptied", os.stat(name))
    name = made("given")
    os.chown(name, -1, os.getgid())
    report("given", os.stat(name))
    name = made("opened")
    os.close(os.open(name, os.O_WRONLY))
    report("opened", os.stat(name))
    fd = os.open(f"new {mode:o}", os.O_CREAT | os.O_WRONLY, mode)
    report("new", os.fstat(fd))
    os.write(fd, b"x")
    report("new and written", os.fstat(fd))
    os.close(fd)
    name = made("open elsewhere")
    reader, fd = os.open(name, os.O_RDONLY), os.open(name, os.O_WRONLY)
    os.write(fd, b"x")
    os.close(fd)
    report("open elsewhere", os.stat(name))
    os.close(reader)
"""


@pytest.mark.parametrize("uid", [0, USER])
def test_set_id_bits_go_when_others_write(
    mnt: Path, as_root: None, open_to_all: None, tmp_path: Path, script: Any, uid: int
) -> None:
    beside = tmp_path / "beside"
    beside.mkdir()
    answers = []
    for directory in (beside, mnt):
        directory.chmod(0o777)
        with script(CHANGES, directory, uid=uid) as program:
            answers.append(program.stdout.read())
        assert program.returncode == 0
    assert answers[1] == answers[0]
