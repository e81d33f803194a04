"""Ctrl-C and its kin end a command in one line that says how to go on; a second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="POSIX signals")
COMMAND = """
import time
from nnunet_ssl.cli.errors import one_line_errors
with one_line_errors("nnUNetv2_thing", "The half of it is kept."):
    try:
        print("working", flush=True)
        time.sleep(60)
    finally:
        print("cleaning up", flush=True)
        time.sleep(CLEANING)
"""


@pytest.fixture
def command():
    """Function (seconds of cleaning up) -> the command at work."""
    started = []

    def start(cleaning: float) -> subprocess.Popen[str]:
        code = COMMAND.replace("CLEANING", str(cleaning))
        pipe = subprocess.PIPE
        started.append(subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True))
        assert started[-1].stdout.readline() == "working\n"
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_one_line_says_what_is_kept(name, command):
    process = command(0)
    number = getattr(signal, name)
    process.send_signal(number)
    process.send_signal(number)  # as `timeout` does
    output, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert output == "cleaning up\n"
    assert errors == f"\nnnUNetv2_thing: stopped by {name}. The half of it is kept.\n"


def test_second_ctrl_c_ends_at_once(command):
    process = command(60)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "cleaning up\n"
    time.sleep(0.7)
    process.send_signal(signal.SIGTERM)  # asked once already
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGINT
    assert "Traceback" not in errors
