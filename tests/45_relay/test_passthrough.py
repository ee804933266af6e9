"""Bytes go past the daemon, and what it says of a file stays true."""

import mmap
import os
import subprocess

import pytest

MIB = 1 << 20


def test_reading_and_mapping_give_the_bytes_of_the_backing_file(served):
    content = served.fill("image", 4 * MIB + 17)
    served.ask("fs.add('f', fs.image('image'))")
    with open(served.path / "f", "rb") as file:
        assert file.read() == content
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == content
    assert served.ask("fs.count('read')") == 0


def test_writing_and_shared_mapping_reach_the_backing_file(served):
    served.ask("fs.add('f', fs.image('image'), writable=True)")
    content = os.urandom(3 * MIB)
    with open(served.path / "f", "r+b", buffering=0) as file:
        assert file.write(content) == len(content)
        with mmap.mmap(file.fileno(), 0) as mapped:
            mapped[5:9] = b"mmap"
        assert os.pread(file.fileno(), 4, 5) == b"mmap"
    assert (served.backing / "image").read_bytes() == content[:5] + b"mmap" + content[9:]
    assert served.ask("fs.count('write')") == 0


def test_a_created_file_is_passthrough_from_the_start(served):
    with open(served.path / "new", "wb") as file:
        file.write(b"x" * MIB)
        file.flush()
        assert os.fstat(file.fileno()).st_size == MIB
        assert served.ask("fs.relay.opens(fs.nodeid('new'))") == 1
    served.eventually("fs.relay.opens(fs.nodeid('new'))", 0)
    assert served.ask("fs.count('write')") == 0
    stats = served.stats()
    assert stats["amended_open"] == 1
    served.eventually("fs.count('release')", 1)
    assert served.ask("fs.relay.drain()") == [], "Python saw the RELEASE"
    assert stats["answered_getxattr"] > 0, "security.capability before the first write"
    assert stats["answered_flush"] == 0, "FOPEN_NOFLUSH"


def test_100_inodes_over_one_backing_file_take_its_memory_once(served):
    size = 8 * MIB
    content = served.fill("image", size)
    served.ask("fs.add_many('f%d', 'image', 100)")
    script = (
        "import mmap, sys, pathlib\n"
        "maps = []\n"
        "for path in sys.argv[1:]:\n"
        "    with open(path, 'rb') as file:\n"
        "        maps.append(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))\n"
        "total = sum(m[i] for m in maps for i in range(0, len(m), 4096))\n"
        "text = pathlib.Path('/proc/self/smaps_rollup').read_text()\n"
        "print(total, *(line.split()[1] for line in text.splitlines()\n"
        "               if line.startswith(('Rss', 'Pss:'))))\n"
    )
    paths = [served.path / f"f{number}" for number in range(100)]
    done = subprocess.run(
        ["python3", "-c", script, *paths], capture_output=True, text=True, check=True, timeout=50
    )
    total, rss_kib, pss_kib = map(int, done.stdout.split())
    assert total == 100 * sum(content[::4096])
    assert rss_kib * 1024 > 100 * size
    assert pss_kib * 1024 < 4 * size, "the pages of one, and an interpreter"


def test_stat_of_a_growing_file_follows_it(served):
    served.ask("fs.add('log', fs.image('image'), writable=True)")
    path = served.path / "log"
    with open(path, "ab", buffering=0) as log:
        before = path.stat()
        for line in range(1, 50):
            log.write(b"x" * 100)
            now = path.stat()
            assert now.st_size == os.fstat(log.fileno()).st_size == line * 100
            assert now.st_mtime_ns >= before.st_mtime_ns
            before = now
    assert served.ask("fs.count('getattr')") <= 2, "answered in C"
    with open(served.backing / "image", "ab", buffering=0) as behind:
        behind.write(b"y")
    assert path.stat().st_size == 4901


def test_changes_through_python_are_seen_at_once(served):
    served.ask("fs.add('f', fs.image('image'), writable=True)")
    path = served.path / "f"
    path.write_bytes(b"0123456789")
    for mode in (0o600, 0o640, 0o444):
        path.chmod(mode)
        assert path.stat().st_mode & 0o777 == mode
    os.truncate(path, 4)
    assert path.stat().st_size == 4
    assert path.read_bytes() == b"0123"
    os.link(path, served.path / "g")
    assert path.stat().st_nlink == 2
    (served.path / "g").unlink()
    assert path.stat().st_nlink == 1
    with open(path, "wb"):
        assert path.stat().st_size == 0


def test_attributes_put_while_creating_answer_the_next_stat_of_the_directory(served):
    for size in (4711, 4712):
        served.ask(f"setattr(fs, 'put_in_create', {size})")
        (served.path / f"new{size}").write_bytes(b"x")
        asked = served.ask("fs.count('getattr')")
        assert served.path.stat().st_size == size
        assert served.ask("fs.count('getattr')") == asked, "answered in C"
    served.ask("setattr(fs, 'put_in_create', 0)")
    (served.path / "last").write_bytes(b"x")
    assert served.path.stat().st_size == 0, "the CREATE ended it"


def test_put_attr_checks_what_it_is_given(served):
    for nodeid, size in ((0, 0), (1, "''"), (1, 1 << 64)):
        with pytest.raises(AssertionError, match=r"OSError|TypeError|OverflowError"):
            served.ask(f"fs.relay.put_attr({nodeid}, Inode(1, 0, 0, 0, 1, {size}, 0, 0, 0), 1)")


def test_a_file_shows_the_inode_number_it_was_given(served):
    nodeid = served.ask("fs.add('f', fs.image('image'))")
    served.ask(f"fs.relay.set_ino({nodeid}, 4711)")
    assert (served.path / "f").stat().st_ino == 4711
    with open(served.path / "f", "rb") as file:
        assert os.fstat(file.fileno()).st_ino == 4711
    assert [entry.inode() for entry in os.scandir(served.path)] == [4711]
    served.ask(f"fs.relay.forget_ino({nodeid})")
    os.chmod(served.path / "f", 0o600)
    assert (served.path / "f").stat().st_ino == nodeid


def test_fsync_of_a_handle_python_never_saw_names_the_inode(served):
    nodeid = served.ask("fs.add('f', fs.image('image'))")
    with open(served.path / "f", "rb") as file:
        os.fsync(file.fileno())
    assert served.ask("fs.last_fsync") == (1 << 63 | nodeid)


def test_another_backing_file_is_refused_while_the_file_is_open(served):
    nodeid = served.ask("fs.add('f', fs.image('image'))")
    other = served.ask("fs.image('other').backing_id")
    again = (
        f"fs.relay.attach({nodeid}, {other}, 0, writable=False, fresh_until_ns=0,"
        " capability_free=False, opens_writes=False)"
    )
    with open(served.path / "f", "rb"):
        with pytest.raises(AssertionError, match="OSError"):
            served.ask(again)
        assert served.ask(f"fs.relay.detach({nodeid})") is False
    served.eventually(f"fs.relay.detach({nodeid})", True)
    served.ask(again)


def test_the_mount_looks_as_asked_for(served):
    with open("/proc/self/mounts") as mounts:
        (line,) = (line for line in mounts if str(served.path) in line)
    source, _, kind, options = line.split()[:4]
    assert (source, kind) == ("re,layed", "fuse.agentfs")
    assert {"rw", "nosuid", "nodev", "default_permissions", "allow_other"} <= set(
        options.split(",")
    )


def test_large_transfers_cross_the_socket_whole(served):
    """Not attached: READ and WRITE are forwarded, up to 1 MiB each."""
    nodeid = served.ask("fs.add('f', fs.image('image'))")
    served.ask(f"fs.relay.detach({nodeid})")
    content = os.urandom(5 * MIB + 3)
    (served.path / "f").write_bytes(content)
    assert (served.path / "f").read_bytes() == content
    writes = served.ask("fs.count('write')")
    assert writes <= 7, "of 1 MiB each"
