"""A signal sets a flag; work stops where it asks, with one sentence and 128 + its number."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.command_line import VD
from vd import console

SCRIPT = """
import os, signal, sys, time
from concurrent.futures import Future
from vd.cli import run_command
from vd.console import check_interrupt, holding_interrupts, interrupted, result_of, track

def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)

def echoed():
    send(signal.SIGTERM)
    send(signal.SIGTERM)
    print("not yet")
    check_interrupt()

def impatient():
    send(signal.SIGTERM)
    time.sleep(1.2)
    send(signal.SIGHUP)
    print("still here")

def between_items():
    with track("work", 3, "items") as ticker:
        ticker.advance()
        send(signal.SIGINT)
        print("item 2 is done")
        ticker.advance()
        print("item 3 is done")

def waiting():
    send(signal.SIGINT)
    result_of(Future())

def held():
    with holding_interrupts():
        send(signal.SIGINT)
        check_interrupt()
        print("held", int(interrupted()))
    check_interrupt()

def finished():
    send(signal.SIGINT)
    return 0

def ignored():
    send(signal.SIGHUP)
    check_interrupt()
    return 0

signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv[1] == "ignored" else signal.SIG_DFL)
run_command(globals()[sys.argv[1]])
"""


@pytest.mark.parametrize(
    ("what", "code", "printed"),
    [
        ("echoed", 143, "not yet\n"),
        ("impatient", 129, ""),
        ("between_items", 130, "item 2 is done\n"),
        ("waiting", 130, ""),
        ("held", 130, "held 2\n"),
        ("finished", 0, ""),
        ("ignored", 0, ""),
    ],
)
def test_a_signal_ends_a_command_where_it_asks(what, code, printed, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "script", what], cwd=tmp_path, capture_output=True,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert done.stdout == printed
    assert "Traceback" not in done.stderr
    interrupted = code > 0 and what != "impatient"
    assert ("vd: interrupted; finished work is kept" in done.stderr) == interrupted


def test_outside_the_command_line_ctrl_c_is_pythons_own():
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert not console.interrupted()
    console.check_interrupt()


def interrupt(command, begun, seconds=0.0):
    """Run a command, send SIGINT when a line of it begins so; its code, text and delay."""
    arguments = [*VD, *map(str, command)]
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        lines = []
        for line in process.stderr:
            lines.append(line)
            if line.startswith(begun):
                time.sleep(seconds)
                process.send_signal(signal.SIGINT)
                break
        sent = time.monotonic()
        lines += process.stderr.readlines()
        process.wait()
        return process.returncode, "".join(lines), time.monotonic() - sent
