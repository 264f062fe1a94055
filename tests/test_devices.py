"""What is said before JAX first runs."""

import platform
import subprocess
import sys

import pytest

# bytearray clears its memory, so that every page of it is touched, in another thread's arena
ALLOCATING = """
import resource, sys, threading
from vd.devices import prepare_jax

if sys.argv[1] == "prepared":
    prepare_jax()
bytearray(50 * 2**20)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def allocate():
    bytearray(50 * 2**20)
    before = faults()
    for _ in range(10):
        bytearray(50 * 2**20)
    print(faults() - before)

thread = threading.Thread(target=allocate)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's")
def test_freed_memory_is_kept_for_the_next_step():
    faults = {}
    for how in ("prepared", "not"):
        run = [sys.executable, "-c", ALLOCATING, how]
        faults[how] = int(subprocess.run(run, capture_output=True, check=True).stdout)
    pages = 10 * 50 * 2**20 // 4096
    assert faults["prepared"] < pages / 50
    assert faults["not"] > pages / 50  # else this shows nothing here
