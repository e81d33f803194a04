"""Several processes at the same cases: each case in one pair of hands, and in new ones when those are dead."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunet_ssl.corpus.left_out import FILE, read_left_out
from nnunet_ssl.files.mounts import VARIABLE
from nnunet_ssl.files.participants import CLAIMS, MAX_DEATHS, PRESENT, Participant
from nnunet_ssl.planners.sharing.distribution import Distribution
from nnunet_ssl.planners.sharing.finished import SUFFIXES
from nnunet_ssl.planners.sharing.workers import Died, Task, work_off

DIE = """
import os, sys, time
from nnunet_ssl.files.participants import Participant
participant = Participant(sys.argv[1]).__enter__()
print([participant.claim(case) for case in sys.argv[2:]], flush=True)
open(os.path.join(participant.work, "half"), "w").close()
time.sleep(60)
"""


def die_with(folder: Path, *cases: str) -> str:
    """A process claims cases and is killed; what `claim` said."""
    process = subprocess.Popen([sys.executable, "-c", DIE, str(folder), *cases], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = process.stdout.readline().strip()
    while not list((folder / "work").glob("*/half")):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    return said


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_a_case_is_in_one_pair_of_hands(tmp_path: Path) -> None:
    with Participant(str(tmp_path)) as one, Participant(str(tmp_path)) as other:
        assert one.others() == [other.name]
        assert one.claim("a") == 0
        assert other.claim("a") is None
        assert other.claim("b") == 0
        one.release("a")
        assert other.claim("a") == 0
    with Participant(str(tmp_path)) as third:
        assert third.claim("a") == third.claim("b") == 0  # given back at the end


@pytest.mark.parametrize("kind", ["kernel", "heartbeat"])
def test_what_the_dead_held_is_taken_over_and_counted(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, kind)
    state = tmp_path / "state"
    assert die_with(state, "a", "b") == "[0, 0]"
    for deaths in range(1, MAX_DEATHS):
        assert die_with(state, "b", "finished") == f"[{deaths}, {deaths - 1}]"
    with Participant(str(state)) as participant:
        assert [p.name for p in (state / "work").iterdir()] == [participant.name]
        assert participant.others() == []
        participant.forget_claims(but={"a", "b"})
        assert kind == "heartbeat" or {p.name for p in (state / CLAIMS).iterdir()} == {"a", "b"}
        assert participant.claim("a") == 1
        cases = {"b": {"images": [str(write(tmp_path / "b.nii", 0))], "label": None}}
        distribution = Distribution(participant, str(tmp_path / "out"), str(tmp_path), cases, ["b"], "preprocessing x")
        assert list(distribution) == []
    assert read_left_out(str(tmp_path))["b"]["reason"] == f"{MAX_DEATHS} processes died while they worked on it"
    assert list((state / PRESENT).iterdir()) == list((state / "work").iterdir()) == []
    assert kind == "heartbeat" or list((state / CLAIMS).iterdir()) == []


def test_a_distribution_skips_what_others_did_and_waits_for_what_they_do(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    cases = {c: {"images": [str(write(tmp_path / f"{c}.nii", 0))], "label": None} for c in "abcd"}
    with Participant(str(out / "state")) as me, Participant(str(out / "state")) as other:
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
    results = dict(work_off(fail_on, tasks, 0, ("shared",)))
    assert (results["a"], results["b"]) == ("A", "B")
    assert isinstance(results["memory"], Died)
    assert "memory" in results["memory"].reason
    with pytest.raises(OSError, match="No space left"):
        list(work_off(fail_on, iter([Task("disk", ("disk",))]), 0, ()))


@pytest.mark.parametrize("kind", ["kernel", "heartbeat"])
def test_the_drill_with_kills(kind: str) -> None:
    drill = Path(__file__).parents[1] / "drills" / "claims.py"
    command = [sys.executable, str(drill), "--cases", "200", "--processes", "4", "--kills", "25", "--locks", kind]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
