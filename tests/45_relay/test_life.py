"""Opens answered in C, slow Python, interrupts, notifications, unmounting and aborting."""

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest


def test_opens_and_releases_of_8_threads_are_counted(served):
    served.fill("image", 4096)
    served.ask("fs.add_many('f%d', 'image', 8)")
    rounds = 300

    def work(number: int) -> None:
        for turn in range(rounds):
            with open(served.path / f"f{(number + turn) % 8}", "rb", buffering=0) as file:
                assert len(file.read(4096)) == 4096

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    served.eventually("sum(fs.relay.opens(fs.nodeid('f%d' % n)) for n in range(8))", 0)
    stats = served.stats()
    assert stats["answered_open"] == stats["answered_release"] == 8 * rounds
    assert served.ask("fs.count('open')") == 0
    drained = served.ask("fs.relay.drain()")
    assert sorted(drained) == [[served.ask(f"fs.nodeid('f{n}')"), True] for n in range(8)]
    assert served.ask("[fs.relay.detach(fs.nodeid('f%d' % n)) for n in range(8)]") == [True] * 8


def test_opens_past_their_freshness_come_to_python(served):
    served.fill("image", 10)
    served.ask("fs.add('f', fs.image('image'), fresh_until_ns=1)")
    assert len((served.path / "f").read_bytes()) == 10
    assert served.ask("fs.count('open')") == 1
    assert served.ask("fs.count('read')") == 0
    served.eventually("fs.count('release')", 1)
    assert served.ask("fs.relay.opens(fs.nodeid('f'))") == 0


def test_a_python_that_sleeps_delays_no_hot_open(served):
    served.fill("image", 4096)
    served.ask("fs.add('f', fs.image('image'))")
    path = served.path / "f"
    path.read_bytes()

    # A second of Python holding the GIL: nothing of Python's can run meanwhile.
    sleeping = threading.Thread(target=served.ask, args=("__import__('time').sleep(1)",))
    sleeping.start()
    time.sleep(0.1)
    longest = 0.0
    for _ in range(200):
        start = time.monotonic()
        path.read_bytes()
        longest = max(longest, time.monotonic() - start)
    assert sleeping.is_alive()
    sleeping.join()
    assert longest < 0.5


def test_a_signal_during_a_slow_request_is_passed_on(served):
    served.ask("setattr(fs, 'slow_s', 5)")
    stat = subprocess.Popen(["stat", str(served.path / "slow")], stderr=subprocess.DEVNULL)
    served.eventually("fs.count('lookup')", 1)
    stat.send_signal(signal.SIGTERM)
    assert stat.wait(10) != 0
    assert served.stats()["interrupts"] >= 1
    served.eventually("fs.relay.stats()['pending']", 0)
    assert os.listdir(served.path) == []


def test_a_notification_about_a_name_being_created_blocks_nothing(served):
    served.ask("setattr(fs, 'notify_in_create', True)")
    for number in range(3):
        (served.path / f"new{number}").write_bytes(b"x")
        assert (served.path / f"new{number}").read_bytes() == b"x"
    served.eventually("sum(map(fs.relay.stats().get, ('notifies', 'notify_errors')))", 3)


def test_forget_arrives(served):
    served.ask("fs.add_many('f%d', 'image', 50)")
    for number in range(50):
        (served.path / f"f{number}").stat()
    assert served.ask("sum(fs.lookups.values())") >= 50
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        drop.write("2")
    served.eventually("sum(fs.lookups.values())", 0)
    assert served.stats()["forgets"] >= 1


def test_a_lazy_unmount_lets_open_files_finish(served):
    content = served.fill("image", 8192)
    served.ask("fs.add('f', fs.image('image'))")
    with open(served.path / "f", "rb", buffering=0) as file:
        with pytest.raises(AssertionError, match="busy"):
            served.ask("fs.relay.unmount(lazy=False)")
        served.ask("fs.relay.unmount(lazy=True)")
        assert file.read() == content
        assert served.ask("fs.relay.unmounted") is False
    assert served.process.wait(20) == 0


def test_umount_ends_the_daemon(served):
    (served.path / "f").write_bytes(b"x")
    subprocess.run(["umount", served.path], check=True, timeout=20)
    assert served.process.wait(20) == 0


def test_an_aborted_connection_ends_the_daemon(served):
    served.fill("image", 4096)
    served.ask("fs.add('f', fs.image('image'))")
    with open(served.path / "f", "rb", buffering=0) as file:
        served.connection.abort()
        assert served.process.wait(20) == 0
        assert len(file.read()) == 4096, "what is open goes on reading"
    with pytest.raises(OSError, match="not connected"):
        (served.path / "f").stat()


def test_requests_pending_at_an_abort_return(served):
    served.ask("setattr(fs, 'slow_s', 3)")
    errors = []

    def look() -> None:
        try:
            os.stat(served.path / "slow")
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    time.sleep(0.3)
    served.connection.abort()
    thread.join(20)
    assert not thread.is_alive()
    assert len(errors) == 1


def test_when_python_stops_serving_nothing_hangs(served):
    served.fill("image", 4096)
    served.ask("fs.add('f', fs.image('image'))")
    served.process.send_signal(signal.SIGKILL)
    served.process.wait(20)
    with pytest.raises(OSError, match="not connected"):
        os.stat(served.path / "other")
    served.process.returncode = 0
    served.process.wait = lambda *_: 0
