"""What importing a module loads, and where modules that have moved are now."""

import subprocess
import sys

import pytest

HEAVY = "av pebble tensorflow_datasets array_record sklearn matplotlib".split()


def _run(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        ("vd.training.step", HEAVY),
        ("vd.features.efficientnet_onnx", ["jax", "onnx", "onnxruntime"]),
        ("vd, vd.config, vd.cli", [*HEAVY, "jax", "flax", "orbax", "onnxruntime"]),
    ],
)
def test_an_import_loads_nothing_that_it_does_not_need(modules, heavy):
    done = _run(
        f"import sys, {modules}\n"
        f"print(*(name for name in {heavy} if name in sys.modules))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []
