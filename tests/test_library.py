"""A finished run from its folder: its weights, and prediction in scripts of all kinds."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.command_line import vd
from tests.fabricated import same_leaves
from vd.errors import VdError
from vd.evaluation.restore import restore
from vd.predict.predictor import load

ROOT = Path(__file__).parent.parent
UNNEEDED = (
    "scipy", "sklearn", "matplotlib", "tensorflow_datasets", "array_record", "grain", "orbax",
    "tensorboardX", "faiss", "jinja2",
)  # fmt: skip
SCRIPT = """
import sys, vd
for prediction in vd.load(sys.argv[1]).predict(sys.argv[2]):
    print(prediction.probability)
"""
LISTED = """
import sys
from vd.cli import main
try:
    main()
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), file=sys.stderr)
"""


@pytest.fixture
def run_dir(trained, tmp_path):
    return shutil.copytree(trained[0] / "run", tmp_path / "run")


@pytest.fixture
def clip(clips):
    return next(clips.glob("test/violent/*.mp4"))


def python(*arguments, source=None, code=0):
    """What a Python process of its own printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        input=source, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False,
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done


def test_the_weights_are_those_of_the_best_checkpoint(run_dir):
    weights = restore(run_dir).params
    (run_dir / "weights.npz").unlink()  # as of an older run
    checkpoint = restore(run_dir).params
    assert jax.tree.structure(weights) == jax.tree.structure(checkpoint)
    assert same_leaves(weights, checkpoint)
    assert {leaf.dtype for leaf in jax.tree.leaves(weights)} == {np.dtype(np.float32)}


def test_a_run_predicts_without_its_checkpoints(run_dir, clip):
    (whole,) = vd("predict", clip, "--checkpoint-dir", run_dir).stdout.splitlines()
    shutil.rmtree(run_dir / "checkpoints")
    (alone,) = vd("predict", clip, "--checkpoint-dir", run_dir).stdout.splitlines()
    assert alone == whole


def test_a_flipped_byte_of_the_weights_is_found(run_dir):
    path = run_dir / "weights.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(VdError, match=r"weights\.npz is damaged .*; delete it, and"):
        restore(run_dir)


def test_prediction_imports_nothing_that_it_does_not_need(run_dir, clip):
    arguments = "predict", clip, "--checkpoint-dir", run_dir
    done = python("-c", LISTED, *arguments)
    imported = done.stderr.splitlines()[-1].split()
    assert {"jax", "flax", "onnxruntime", "numpy"} <= set(imported)
    assert set(UNNEEDED) & set(imported) == set()
    assert json.loads(done.stdout)["outcome"] == "used"


@pytest.mark.slow
def test_a_script_without_a_guard_and_one_from_standard_input_predict(
    run_dir, clip, tmp_path
):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    expected = json.loads(vd("predict", clip, "--checkpoint-dir", run_dir).stdout)
    for done in (
        python(script, run_dir, clip),
        python("-", run_dir, clip, source=SCRIPT),
        python("-i", "-", run_dir, clip, source=SCRIPT + "\n"),  # as typed
    ):
        assert [float(line) for line in done.stdout.split()] == [
            expected["probability"]
        ]


@pytest.mark.parametrize(
    ("name", "run", "said"),
    [
        ("no.mp4", "run", "no.mp4 does not exist"),
        ("", "none", "none holds no config.json"),
    ],
)
def test_what_is_missing_is_said_before_anything_slow_is_imported(
    run_dir, clip, name, run, said
):
    arguments = name or clip, "--checkpoint-dir", run_dir.with_name(run)
    done = python("-c", LISTED, "predict", *arguments, code=2)
    assert said in done.stderr
    imported = done.stderr.splitlines()[-1].split()
    assert {"jax", "flax", "onnxruntime", "cv2", "filelock"} & set(imported) == set()


def test_an_unfinished_run_is_refused_at_once(run_dir):
    (run_dir / "calibration.json").unlink()
    with pytest.raises(VdError, match="its training has not ended"):
        load(run_dir)
