"""Several processes at the same cases: each case in one pair of hands, and in new ones when those are dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nnunet_ssl.corpus.left_out import FILE, read_left_out
from nnunet_ssl.planners import shards
from nnunet_ssl.planners.distribution import Distribution
from nnunet_ssl.planners.finished import SUFFIXES
from nnunet_ssl.planners.shards import CLAIMS, MAX_DEATHS, PRESENT, Shard, alone, is_alive
from nnunet_ssl.planners.workers import Died, Task, work_off


@pytest.fixture
def dead() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write(path: Path, content: object, age: float = 0.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    stamp = path.stat().st_mtime - age
    os.utime(path, (stamp, stamp))
    return path


def test_who_lives(tmp_path: Path, dead: int) -> None:
    here = shards._place()
    assert is_alive(str(write(tmp_path / "me", {"place": here, "pid": os.getpid()})))
    assert not is_alive(str(write(tmp_path / "gone", {"place": here, "pid": dead})))
    assert not is_alive(str(write(tmp_path / "reused", {"place": here, "pid": os.getpid()}, shards.SILENCE + 1)))
    assert is_alive(str(write(tmp_path / "far", {"place": "elsewhere", "pid": dead}, shards.SILENCE / 2)))
    assert not is_alive(str(write(tmp_path / "silent", {"place": "elsewhere", "pid": dead}, shards.SILENCE + 1)))
    assert not is_alive(str(tmp_path / "none"))


def test_a_living_process_gives_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "BEAT", 0.01)
    beaten = threading.Event()
    utime = os.utime
    monkeypatch.setattr(os, "utime", lambda *a, **k: (utime(*a, **k), beaten.set()))
    with Shard(str(tmp_path)):
        assert beaten.wait(5)
    assert list((tmp_path / PRESENT).iterdir()) == list((tmp_path / CLAIMS).iterdir()) == []


def test_a_case_is_in_one_pair_of_hands(tmp_path: Path) -> None:
    with Shard(str(tmp_path)) as one, Shard(str(tmp_path)) as other:
        assert one.others() == [other.name]
        assert one.claim("a") == 0
        assert other.claim("a") is None
        assert other.claim("b") == 0
        one.release("a")
        assert other.claim("a") == 0
    with Shard(str(tmp_path)) as third:
        assert third.claim("a") == third.claim("b") == 0  # given back at the end


def test_what_the_dead_held_is_taken_over_and_counted(tmp_path: Path, dead: int) -> None:
    state = tmp_path / "state"
    write(state / PRESENT / "ghost", {"place": shards._place(), "pid": dead})
    (state / "work" / "ghost").mkdir(parents=True)
    write(state / CLAIMS / "a", {"owner": "ghost", "deaths": 0})
    write(state / CLAIMS / "b", {"owner": "long gone", "deaths": MAX_DEATHS - 1})
    (state / CLAIMS / "c").touch()  # being written at this moment
    with Shard(str(state)) as shard:
        assert [p.name for p in (state / "work").iterdir()] == [shard.name]
        assert shard.claim("a") == 1
        assert shard.claim("c") is None
        cases = {"b": {"images": [str(write(tmp_path / "b.nii", 0))], "label": None}}
        distribution = Distribution(shard, str(tmp_path / "out"), str(tmp_path), cases, ["b"], "preprocessing x")
        assert list(distribution) == []
    assert read_left_out(str(tmp_path))["b"]["reason"] == f"{MAX_DEATHS} processes died while they worked on it"


def test_locks_wait_for_the_living_only(tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(shards, "POLL", 0.01)
    lock = write(tmp_path / "lock", {"place": shards._place(), "pid": dead})
    order: list[str] = []
    waiting = threading.Event()
    monkeypatch.setattr(shards.time, "sleep", lambda _: waiting.set())

    def second() -> None:
        with alone(str(lock), "planning"):
            order.append("second")

    with alone(str(lock), "planning"):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(5)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
    assert capsys.readouterr().out.count("Waiting for another process that is planning") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_distribution_skips_what_others_did_and_waits_for_what_they_do(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    cases = {c: {"images": [str(write(tmp_path / f"{c}.nii", 0))], "label": None} for c in "abcd"}
    with Shard(str(out / "state")) as me, Shard(str(out / "state")) as other:
        assert other.claim("a") == other.claim("b") == other.claim("c") == 0
        mine = Distribution(me, str(out), str(tmp_path), cases, list("abcd"), "preprocessing x")
        theirs = Distribution(other, str(out), str(tmp_path), cases, [], "preprocessing x")
        source = iter(mine)
        task = next(source)
        assert isinstance(task, Task)
        assert (task.case, task.arguments[1:]) == ("d", (cases["d"]["images"], None, None))
        assert next(source) is None  # a, b and c are in other hands
        for suffix in SUFFIXES:
            (out / f"a{suffix}").touch()
        other.release("a")
        theirs.refuse("b", "empty")
        other.release("c")
        assert [t.case for t in source if t is not None] == ["c"]
        assert mine.by_others == 2
    assert set(json.loads((tmp_path / FILE).read_text())) == {"b"}


def fail_on(word: str, *_: object) -> str:
    if word == "memory":
        raise MemoryError
    if word == "disk":
        raise OSError(28, "No space left on device")
    return word.upper()


def test_in_this_process_too_little_memory_is_no_end() -> None:
    tasks = (Task(w, (w,)) for w in ("a", "memory", "b"))
    results = dict(work_off(fail_on, tasks, 1, ("shared",)))
    assert (results["a"], results["b"]) == ("A", "B")
    assert isinstance(results["memory"], Died)
    assert "memory" in results["memory"].reason
    with pytest.raises(OSError, match="No space left"):
        list(work_off(fail_on, iter([Task("disk", ("disk",))]), 1, ()))
