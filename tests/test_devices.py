"""What is set before JAX first runs."""

import ctypes
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import pytest

from vd.devices import prepare_jax

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


PAGES = 10 * 50 * 2**20 // 4096


def faults(how, **environment):
    """Pages asked for by a thread that takes and frees an array ten times."""
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    run = [sys.executable, "-c", ALLOCATING, how]
    done = subprocess.run(run, env=plain | environment, capture_output=True, check=True)
    return int(done.stdout)


def _keeps():
    name, version = platform.libc_ver()
    return name == "glibc" and tuple(map(int, version.split("."))) >= (2, 35)


@pytest.mark.skipif(not _keeps(), reason="glibc's since 2.35")
def test_freed_memory_is_kept_for_the_next_step():
    assert faults("prepared") < PAGES / 50
    assert faults("not") > PAGES / 50  # else this shows nothing here


@pytest.mark.skipif(not _keeps(), reason="glibc's since 2.35")
def test_a_users_own_settings_of_memory_stay():
    assert faults("prepared", MALLOC_MMAP_THRESHOLD_="1000000") > PAGES / 50


@pytest.mark.parametrize("old", [True, False])
def test_a_c_library_that_keeps_less_is_left_as_it_is(old, monkeypatch):
    asked = []

    def mallopt(name, value):
        asked.append((name, value))
        return 0  # as glibc before 2.35 refuses so large a threshold

    library = SimpleNamespace(mallopt=mallopt) if old else SimpleNamespace()
    for name in [n for n in os.environ if n.startswith(("MALLOC_", "GLIBC_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    prepare_jax()
    assert len(asked) == old
