"""What is set before JAX first runs, the devices, and settings that change no number."""

import os
import platform
import subprocess
import sys

import jax
import numpy as np
import pytest

from tests.fabricated import same_leaves, train_on_numbers
from vd.devices import training_devices
from vd.training.loop import Validation

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


def test_settings_of_jax_change_no_number_and_damage_no_checkpoint(
    tmp_path, monkeypatch
):
    plain = train_on_numbers(tmp_path / "plain", 4)
    metrics, stop = Validation.metrics, iter([False, False, True])

    def two_epochs(*arguments):
        if next(stop):
            raise InterruptedError
        return metrics(*arguments)

    monkeypatch.setattr(Validation, "metrics", two_epochs)
    with pytest.raises(InterruptedError):
        train_on_numbers(tmp_path / "set", 4)
    monkeypatch.undo()
    with (
        jax.enable_x64(True),
        jax.default_matmul_precision("bfloat16"),
        jax.default_prng_impl("rbg"),
    ):
        resumed = train_on_numbers(tmp_path / "set", 4)
        assert jax.numpy.zeros(1).dtype == np.float64  # a notebook's own setting stays
    assert same_leaves(plain, resumed)
    assert not list((tmp_path / "set" / "run" / "checkpoints").glob("damaged-*"))


@pytest.mark.parametrize("name", ["cuda", "nonsense"])
def test_a_device_that_is_not_here_is_one_sentence(name):
    code = (
        "from vd.cli import run_command\n"
        "from vd.devices import prepare_jax\n"
        "run_command(prepare_jax)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env=os.environ | {"JAX_PLATFORMS": name},
        capture_output=True,
        text=True,
    )
    if done.returncode == 0:
        pytest.skip(f"JAX finds {name} here")
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"vd: JAX_PLATFORMS={name} names a device")


@pytest.mark.parametrize(("before", "count"), [(None, 2), (1, 1), (2, 2), (8, 2)])
def test_a_run_goes_on_with_the_devices_that_it_began_on(before, count):
    assert len(training_devices(None, 8, before=before)) == count
