"""The lock: one holder at a time whatever happens, none that is dead, nothing left behind."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nnunet_ssl.files import heartbeat, locks
from nnunet_ssl.files.locks import Lock
from nnunet_ssl.files.mounts import VARIABLE, trustworthy

FORK = multiprocessing.get_context("fork")
HOLD = """
import sys, time
from nnunet_ssl.files.locks import Lock
lock = Lock(sys.argv[1], "testing")
assert lock.try_acquire()
print(lock.deaths, flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(params=["kernel", "heartbeat"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv(VARIABLE, request.param)
    return str(request.param)


@pytest.fixture
def holder(tmp_path: Path, kind: str):
    """Starts processes that hold tmp_path/lock; none outlives the test."""
    started = []

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path / "lock"), "60"]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        assert started[-1].stdout.readline()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def test_one_holder_in_one_process_and_in_two(tmp_path: Path, kind: str) -> None:
    one, other = Lock(tmp_path / "lock", "planning"), Lock(tmp_path / "lock", "planning")
    assert one.owner() is None
    assert one.try_acquire()
    assert not one.try_acquire()
    assert not other.try_acquire()
    owner = other.owner()
    assert owner is not None
    assert (owner.pid, owner.doing) == (os.getpid(), "planning")
    assert f"process {os.getpid()} on " in str(owner)
    assert subprocess.run([sys.executable, "-c", HOLD, str(one.path), "0"], stderr=subprocess.DEVNULL).returncode == 1
    one.release()
    one.release()
    assert one.owner() is None
    assert other.try_acquire()
    assert other.deaths == 0
    other.release()
    assert kind == "heartbeat" or list(tmp_path.iterdir()) == []


def test_who_was_killed_holds_nothing_and_is_counted(
    tmp_path: Path, holder: Callable[[], subprocess.Popen[str]]
) -> None:
    lock = Lock(tmp_path / "lock", "testing")
    for _ in range(2):
        process = holder()
        assert not lock.try_acquire()
        process.kill()
        process.wait()
    for deaths in (2, 0):  # at once; who lets it go ends the count
        assert lock.try_acquire()
        assert lock.deaths == deaths
        lock.release()


def test_stamps_mean_nothing(tmp_path: Path, kind: str, holder: Callable[[], subprocess.Popen[str]]) -> None:
    process, lock = holder(), Lock(tmp_path / "lock", "testing")
    for stamp in (0, 4e9):
        for path in (tmp_path / "lock", *(tmp_path / "lock").glob("*")):
            os.utime(path, (stamp, stamp))
        assert not lock.try_acquire()
    process.kill()
    process.wait()
    assert lock.try_acquire()
    lock.release()


def test_a_forked_child_keeps_nothing(tmp_path: Path, kind: str) -> None:
    lock, go_on = Lock(tmp_path / "lock", "testing"), FORK.Event()

    def child() -> None:
        lock.release()  # not its own
        go_on.wait(60)

    assert lock.try_acquire()
    process = FORK.Process(target=child)
    process.start()
    other = Lock(lock.path, "testing")
    assert not other.try_acquire()
    lock.release()
    assert other.try_acquire()
    go_on.set()
    process.join()
    assert not Lock(lock.path, "testing").try_acquire()
    other.release()


def increment(lock: str, counter: str, times: int) -> None:
    for _ in range(times):
        with Lock(lock, "counting").waiting():
            value = int(Path(counter).read_text())
            time.sleep(0.0002)
            Path(counter).write_text(str(value + 1))


def test_waiting_processes_and_threads_lose_no_count(tmp_path: Path, kind: str) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    arguments = (str(tmp_path / "lock"), str(counter), 15)
    workers = [FORK.Process(target=increment, args=arguments) for _ in range(3)]
    workers += [threading.Thread(target=increment, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert counter.read_text() == str(15 * len(workers))
    assert kind == "heartbeat" or [p.name for p in tmp_path.iterdir()] == ["counter"]


def race(barrier, folder: str, rounds: int, holders) -> None:
    for number in range(rounds):
        lock = Lock(f"{folder}/{number}", "racing")
        barrier.wait(60)
        while not lock.try_acquire():
            if os.path.exists(f"{folder}/{number}.done"):
                break
            time.sleep(0.001)
        else:
            with holders.get_lock():
                holders.value += 1
                alone = holders.value == 1
            Path(f"{folder}/{number}.done").touch()
            time.sleep(0.002)
            with holders.get_lock():
                holders.value -= 1
            lock.release()
            if not alone:
                os._exit(3)


def test_sixty_races_of_eight_for_the_lock_of_a_dead_process(tmp_path: Path, kind: str) -> None:
    dead = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "0"), "60"], stdout=subprocess.PIPE)
    dead.stdout.readline()
    dead.send_signal(signal.SIGKILL)
    dead.communicate()
    for number in range(1, 60):
        if kind == "kernel":
            (tmp_path / str(number)).write_bytes((tmp_path / "0").read_bytes())
        else:
            (tmp_path / str(number)).mkdir()
            (tmp_path / str(number) / "1").write_bytes((tmp_path / "0" / "1").read_bytes())
    barrier, holders = FORK.Barrier(8), FORK.Value("i", 0)
    racers = [FORK.Process(target=race, args=(barrier, str(tmp_path), 60, holders)) for _ in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(120)
    assert [racer.exitcode for racer in racers] == [0] * 8
    assert len(list(tmp_path.glob("*.done"))) == 60


def test_another_machine_is_dead_when_it_stopped_counting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "heartbeat")
    clock = [1000.0]
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock[0])
    folder = tmp_path / "lock"
    folder.mkdir()
    far = {"host": "far", "pid": 1, "started": "2099", "doing": "x", "place": "there", "born": "1", "deaths": 1}
    (folder / "7").write_text(json.dumps({**far, "beat": 0}))
    lock = Lock(folder, "testing")
    assert not lock.try_acquire()
    clock[0] += heartbeat.SILENCE + 1
    (folder / "7").write_text(json.dumps({**far, "beat": 1}))  # it lives
    assert not lock.try_acquire()
    clock[0] += heartbeat.SILENCE - 1
    assert not lock.try_acquire()
    assert lock.owner().host == "far"
    clock[0] += 2
    assert lock.try_acquire()
    assert lock.deaths == 2
    assert [p.name for p in folder.iterdir()] == ["8"]
    (folder / "8").unlink()
    lock.release()


def test_who_slept_since_it_looked_is_no_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "heartbeat")
    folder = tmp_path / "lock"
    holder, sleeper = Lock(folder, "testing"), Lock(folder, "testing")
    for _ in range(3):
        holder.release()
        assert holder.try_acquire()
    looks = iter([0, 3])
    monkeypatch.setattr(sleeper._heartbeat, "_top", lambda: next(looks))
    assert not sleeper.try_acquire()
    assert [p.name for p in folder.iterdir()] == ["3"]
    holder.release()


def test_signs_of_life_and_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv(VARIABLE, "heartbeat")
    lock = Lock(tmp_path / "lock", "testing")
    assert lock.try_acquire()
    before = (tmp_path / "lock" / "1").read_bytes()
    lock._heartbeat.beat()
    assert (tmp_path / "lock" / "1").read_bytes() != before
    (tmp_path / "lock" / "1").unlink()
    lock._heartbeat.beat()
    assert "another process has taken over" in capsys.readouterr().out
    lock.release()


def test_without_kernel_locks_heart_beats_take_their_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)

    def missing(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", missing)
    monkeypatch.setattr(locks, "_without", set())
    one, other = Lock(tmp_path / "lock", "testing"), Lock(tmp_path / "lock", "testing")
    assert one.try_acquire()
    assert not other.try_acquire()
    assert (tmp_path / "lock" / "1").is_file()
    one.release()
    assert other.try_acquire()
    other.release()


@pytest.mark.parametrize(
    ("kind", "options", "expected"),
    [
        ("ext4", "rw", True),
        ("nfs4", "rw,vers=4.2,local_lock=none", True),
        ("nfs", "rw,vers=3,nolock,local_lock=all", False),
        ("lustre", "rw,flock,lazystatfs", True),
        ("lustre", "rw,localflock", False),
        ("beegfs", "rw", False),
        ("fuse.sshfs", "rw", False),
    ],
)
def test_mounts_whose_locks_are_known_to_all_machines(kind: str, options: str, expected: bool) -> None:
    mounts = [["/dev/sda", "/", "ext4", "rw"], ["x", "/data", kind, options], ["y", "/data/sub\\040dir", "tmpfs", "rw"]]
    assert trustworthy(mounts, "/data/folder") is expected
    assert trustworthy(mounts, "/database") is True
    assert trustworthy(mounts, "/data/sub dir/x") is True


def test_waiting_says_once_for_whom(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(locks, "POLL", 0.02)
    first, entered = Lock(tmp_path / "lock", "planning"), threading.Event()

    def second() -> None:
        with Lock(tmp_path / "lock", "planning").waiting():
            entered.set()

    assert first.try_acquire()
    thread = threading.Thread(target=second)
    thread.start()
    assert not entered.wait(0.2)
    first.release()
    assert entered.wait(10)
    thread.join()
    assert capsys.readouterr().out.count(f"Waiting for process {os.getpid()} on ") == 1
