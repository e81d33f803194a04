"""Signals: remembered by the process that trains, deadly for its children, and forgotten afterwards."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from nnunet_ssl.trainers.interruption import Interruption

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="POSIX signals")


@pytest.mark.parametrize("number", Interruption.SIGNALS)
def test_is_remembered_until_told_to_ignore(number):
    before = signal.getsignal(number)
    interruption = Interruption()
    interruption.listen()
    try:
        assert interruption.requested is None
        signal.raise_signal(number)
        assert interruption.requested is number
    finally:
        interruption.ignore()
    assert signal.getsignal(number) is before


def test_forked_children_still_die_of_it():
    """nnU-Net ends its pools with SIGTERM: children that only remembered it would hang them for ever."""
    interruption = Interruption()
    interruption.listen()
    try:
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        child.start()
        time.sleep(0.3)
        os.kill(child.pid, signal.SIGTERM)
        child.join(timeout=10)
        assert child.exitcode == -signal.SIGTERM
        assert interruption.requested is None
    finally:
        child.kill()
        interruption.ignore()
