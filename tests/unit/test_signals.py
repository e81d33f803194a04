"""Children that work for a parent: signals to the group leave them alone, and they end when the parent wants it or is gone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nnunet_ssl.signals import SIGNALS, children_hold_back, guarded_forks, obey

pytestmark = pytest.mark.skipif(not hasattr(signal, "sigtimedwait"), reason="signals as on Linux")


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(holds, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return False


def nap(parent: int) -> None:
    obey(parent)
    time.sleep(60)


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_signals_of_others_pass_by_and_the_parent_is_obeyed(way):
    context = multiprocessing.get_context(way)
    with guarded_forks() if way == "fork" else children_hold_back():
        child = (
            context.Process(target=time.sleep, args=(60,))
            if way == "fork"
            else context.Process(target=nap, args=(os.getpid(),))
        )
        child.start()
    try:
        # From the first instant on: nothing is waited for.
        sender = f"import os, time\nfor s in {[int(s) for s in SIGNALS]} * 3: os.kill({child.pid}, s); time.sleep(0.1)"
        subprocess.run([sys.executable, "-c", sender], check=True)
        time.sleep(1.5)
        assert lives(child.pid)
        child.terminate()
        child.join(timeout=20)
        assert child.exitcode is not None
    finally:
        child.kill()


def test_children_forked_while_a_command_listens_die_of_the_first_signal():
    """As a pool ends its workers, also those that have not run yet: Python forgets what comes before it knows it is a child."""
    script = """
import os, signal, sys, time
from nnunet_ssl.signals import Stopped, stopping_on_signals
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # on one core a child runs only after its parent has sent the signal
with stopping_on_signals():
    children = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        os.kill(child, signal.SIGTERM)
        children.append(child)
    end = time.monotonic() + 10
    died = 0
    while children and time.monotonic() < end:
        for child in list(children):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                children.remove(child)
                died += os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
        time.sleep(0.01)
    for child in children:
        os.kill(child, signal.SIGKILL)
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    except Stopped as stopped:
        print(died, stopped.number)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["20", str(int(signal.SIGTERM))]


@pytest.mark.parametrize("full", [False, True], ids=["waiting", "with a full pipe"])
def test_whose_parent_was_killed_ends(full, tmp_path):
    """A reading process whose batches nobody takes hangs in its pipe, which its brothers keep open."""
    size = 1 << 20 if full else 1
    script = f"""
import os, sys, time, torch
from torch.utils.data import DataLoader, Dataset
from functools import partial
from nnunet_ssl.signals import guarded_forks
from nnunet_ssl.trainers.data.batches import begin_to_read
class Images(Dataset):
    def __len__(self): return 1000
    def __getitem__(self, i): return bytes({size})
loader = DataLoader(Images(), batch_size=None, num_workers=2, worker_init_fn=partial(begin_to_read, os.getpid()))
with guarded_forks():
    batches = iter(loader)
next(batches)
print(*[w.pid for w in batches._workers], flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    try:
        assert len(workers) == 2
        time.sleep(0.5)
        parent.kill()
        parent.wait()
        assert wait_until(lambda: not any(map(lives, workers)))
    finally:
        parent.kill()
        for pid in filter(lives, workers):
            os.kill(pid, signal.SIGKILL)
