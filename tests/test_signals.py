"""The first signal ends a command, wherever Python is when it comes."""

import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, os, signal, sys, time
from vd.cli import run_command
signal.signal(signal.SIGHUP, signal.SIG_DFL)

class Loud:
    def __del__(self):  # what is raised here Python drops
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)

def dropped():
    Loud()
    for _ in range(100):
        time.sleep(0.05)
    return 0

def echoed():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    finally:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
        print("cleaned up")

def impatient():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    finally:
        time.sleep(1.2)
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(5)

def swallowed():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    except KeyboardInterrupt as interrupt:  # as a library does that is being imported
        raise ImportError("initialization failed") from interrupt

def in_c():
    run = ctypes.pythonapi.PyRun_String
    run.restype, run.argtypes = ctypes.py_object, [ctypes.c_char_p, ctypes.c_int, *[ctypes.py_object] * 2]
    code = b"import os, time; os.kill(os.getpid(), 15); time.sleep(5)"
    run(code, 257, {}, {})

run_command(globals()[sys.argv[1]])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "code", "printed"),
    [
        ("dropped", 143, ""),
        ("echoed", 143, "cleaned up\n"),
        ("impatient", 129, ""),
        ("swallowed", 143, ""),
        ("in_c", 143, ""),
    ],
)
def test_one_signal_ends_a_command_once(what, code, printed, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-m", "script", what],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert done.stdout == printed
    assert "Traceback" not in done.stderr
