"""What processes hold, batches in shared memory included."""

from __future__ import annotations

import multiprocessing
import os
import sys

import pytest
import torch

from nnunet_ssl.trainers.memory import held_by, held_by_workers, shared_by

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells")
MIB = 1 << 20


def test_memory_of_its_own_and_shared_files_are_told_apart():
    me = [os.getpid()]
    before = held_by(me), sum(shared_by(me).values())
    own, shared = torch.ones(64 * MIB, dtype=torch.uint8), torch.ones(32 * MIB, dtype=torch.uint8).share_memory_()
    after = held_by(me), sum(shared_by(me).values())
    assert 60 * MIB < after[0] - before[0] < 80 * MIB
    assert after[1] - before[1] == pytest.approx(32 * MIB, rel=0.01)
    assert own.sum() + shared.sum() == 96 * MIB


def test_processes_that_have_ended_hold_nothing():
    assert held_by([2**22 - 1]) is None
    assert shared_by([2**22 - 1]) == {}


def hold(queue, told):
    """Send a batch of 32 MiB and keep 64 MiB."""
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
