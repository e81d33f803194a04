"""What processes hold, batches in shared memory included."""

from __future__ import annotations

import multiprocessing
import platform
import subprocess
import sys

import pytest
import torch

from nnunet_ssl.trainers.device.memory import held_by, held_by_workers, shared_by

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
MIB = 1 << 20


def in_a_process_of_its_own(program: str) -> list[int]:
    """The numbers that a program prints; where it runs, no earlier test has left memory to malloc."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return list(map(int, done.stdout.split()))


OWN_AND_SHARED = """
import os, torch
from nnunet_ssl.trainers.device.memory import held_by, shared_by

def held():
    return held_by([os.getpid()]), sum(shared_by([os.getpid()]).values())

before = held()
own, shared = torch.ones(64 << 20, dtype=torch.uint8), torch.ones(32 << 20, dtype=torch.uint8).share_memory_()
after = held()
print(after[0] - before[0], after[1] - before[1], own.sum().item() + shared.sum().item())
"""


def test_memory_of_its_own_and_shared_files_are_told_apart():
    own, shared, together = in_a_process_of_its_own(OWN_AND_SHARED)
    assert 60 * MIB < own < 80 * MIB
    assert shared == pytest.approx(32 * MIB, rel=0.01)
    assert together == 96 * MIB


def test_processes_that_have_ended_hold_nothing():
    assert held_by([2**22 - 1]) is None
    assert shared_by([2**22 - 1]) == {}


def hold(queue, told):
    """Send a batch of 32 MiB and keep 64 MiB.

    In one thread, as torch's loader has its workers compute: forked from a process whose OpenMP has had several, more would wait
    for those that are not there.
    """
    torch.set_num_threads(1)
    own = torch.ones(64 * MIB, dtype=torch.uint8)
    queue.put(torch.ones(32 * MIB, dtype=torch.uint8))
    told.wait(60)
    assert own[0] == 1


def test_a_batch_in_the_queue_counts_until_it_is_fetched():
    """Nobody has mapped it: it is in no process' resident memory."""
    context = torch.multiprocessing.get_context("fork")
    queue, told = context.Queue(), multiprocessing.Event()
    child = context.Process(target=hold, args=(queue, told))
    child.start()
    try:
        assert queue._reader.poll(60)  # until it has been sent
        waiting = held_by_workers()
        batch = queue.get(timeout=60)
        fetched = held_by_workers()
    finally:
        told.set()
        child.join()
    assert waiting is not None
    assert fetched is not None
    assert waiting - fetched == pytest.approx(32 * MIB, rel=0.1)
    assert fetched > 60 * MIB
    assert batch.sum() == 32 * MIB


PAGE_FAULTS = """
import resource, torch
from nnunet_ssl.trainers.device.devices import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(64 << 20, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

usual = faults()
keep_freed_memory(torch.device("cuda"))
beside_a_gpu = faults()
keep_freed_memory(torch.device("cpu"))
faults()
print(usual, beside_a_gpu, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to keep freed memory")
def test_freed_memory_is_kept_on_a_cpu():
    usual, beside_a_gpu, kept = in_a_process_of_its_own(PAGE_FAULTS)
    assert min(usual, beside_a_gpu) > 50 * kept + 1000
