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

# a page of memory that the C library returned to the system is asked for again
ALLOCATING = """
import resource
from vd.devices import prepare_jax

prepare_jax()
bytearray(50 * 2**20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    bytearray(50 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 10 * 50 * 2**20 // 4096


@pytest.mark.skipif(
    platform.libc_ver() < ("glibc", "2.35"), reason="glibc's since 2.35"
)
@pytest.mark.parametrize("own", [{}, {"MALLOC_MMAP_THRESHOLD_": "1000000"}])
def test_freed_memory_is_kept_unless_a_user_set_something_else(own):
    plain = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    run = [sys.executable, "-c", ALLOCATING]
    done = subprocess.run(run, env=plain | own, capture_output=True, check=True)
    assert (int(done.stdout) < PAGES / 50) == (not own)


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


def test_a_device_that_is_not_here_is_one_sentence():
    code = (
        "from vd.cli import run_command\n"
        "from vd.devices import prepare_jax\n"
        "run_command(prepare_jax)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "nonsense"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("vd: JAX_PLATFORMS=nonsense names a device")


@pytest.mark.parametrize(("before", "count"), [(None, 2), (1, 1), (2, 2), (8, 2)])
def test_a_run_goes_on_with_the_devices_that_it_began_on(before, count):
    assert len(training_devices(None, 8, before=before)) == count
