"""What importing a module loads, and where modules that have moved are now."""

import subprocess
import sys

import pytest

HEAVY = "av pebble tensorflow_datasets array_record sklearn matplotlib".split()


def _run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )


def test_the_step_loads_no_decoder_no_store_and_no_plots():
    done = _run(
        "import sys, vd.training.step\n"
        f"print(*(name for name in {HEAVY} if name in sys.modules))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_the_former_place_of_the_head_names_the_new_one():
    with pytest.raises(ImportError, match=r"vd\.models\.head"):
        from vd.model import Head  # noqa: F401


def test_importing_the_package_loads_nothing_heavy():
    done = _run(
        "import sys, vd, vd.config, vd.cli\n"
        f"print(*(name for name in {[*HEAVY, 'jax', 'flax', 'orbax']} if name in sys.modules))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
