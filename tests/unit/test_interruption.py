"""Signals: remembered by the process that trains, deadly for its children, and forgotten afterwards."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest

from nnunet_ssl.signals import AFTER_EPOCH, AT_ONCE, SIGNALS
from nnunet_ssl.trainers.loop import interruption as module
from nnunet_ssl.trainers.loop.interruption import Interruption

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="POSIX signals")


@pytest.fixture
def interruption():
    listening = Interruption()
    listening.listen()
    yield listening
    listening.ignore()


@pytest.mark.parametrize("number", SIGNALS)
def test_is_remembered_until_told_to_ignore(number):
    before = signal.getsignal(number)
    interruption = Interruption()
    interruption.listen()
    try:
        assert interruption.requested is interruption.finishing is None
        signal.raise_signal(number)
        found = interruption.requested if number in AT_ONCE else interruption.finishing
        assert found is number
        assert (interruption.requested is None) is (number in AFTER_EPOCH)
    finally:
        interruption.ignore()
    assert signal.getsignal(number) is before


def test_the_first_signal_counts(interruption):
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.raise_signal(number)
    assert interruption.requested is signal.SIGUSR1


def test_handlers_of_others_do_not_stay(interruption):
    """nnU-Net will install one of its own for SIGUSR1 when a training begins."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    interruption.insist()
    signal.raise_signal(signal.SIGUSR1)
    assert interruption.requested is signal.SIGUSR1


def test_second_ctrl_c_ends_at_once_unless_it_is_the_same_touch(interruption, monkeypatch, capfd):
    ended: list[int] = []
    monkeypatch.setattr(module.os, "_exit", ended.append)
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)  # so does `timeout -s INT`
    assert interruption.requested is signal.SIGINT
    assert not ended
    monkeypatch.setattr(module, "SAME_TOUCH", -1.0)
    signal.raise_signal(signal.SIGTERM)
    assert not ended
    signal.raise_signal(signal.SIGINT)
    assert ended == [130]
    lines = capfd.readouterr().err.split("\n")
    assert [line for line in lines if line] == [
        "SIGINT: saving after this iteration. Ctrl-C again ends at once, without saving.",
        "SIGINT: ended at once, nothing was saved since the last checkpoint.",
    ]


def test_whose_torchrun_agent_is_gone_was_asked_to_stop(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    interruption = Interruption()
    assert interruption.requested is None
    monkeypatch.setattr(module.os, "getppid", lambda: 1)
    assert interruption.requested is signal.SIGTERM


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
