"""A finished run that version 0.1 wrote: every later version predicts and evaluates it.

`run_of_0_1/run` is what `vd train` of revision 279e9dc wrote for clips as those of
`benchmarks.golden` and a tiny ONNX backbone, without pictures, report and event file.
`run_of_0_1/clips` holds its test clips: two have each other's class, so that no figure is
perfect.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.command_line import vd
from vd.models.plugins import BUILT_IN
from vd.training.run_folder import check_identity, read_settings, settings_identity

KEPT = Path(__file__).parent / "run_of_0_1"
CLIPS = KEPT / "clips"
TOLERANCE = 1e-4  # of a probability: processors differ in the last bits


@pytest.fixture
def run_dir(tmp_path):
    return shutil.copytree(KEPT / "run", tmp_path / "run")


def probabilities(run_dir):
    with (run_dir / "predictions_test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["path"]: float(row["probability"]) for row in rows}


def test_it_predicts_what_it_predicted(run_dir):
    kept = probabilities(KEPT / "run")
    paths = [CLIPS / name for name in kept]
    done = vd("predict", "--checkpoint-dir", run_dir, *paths)
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["probability"] for result in results] == pytest.approx(
        list(kept.values()), rel=0, abs=TOLERANCE
    )


def test_it_is_evaluated_with_the_same_figures(run_dir, tmp_path):
    for name in ("predictions_test.csv", "evaluation_test.json"):
        (run_dir / name).unlink()  # to be written again
    vd(
        "evaluate", "--checkpoint-dir", run_dir, "--dataset-path", CLIPS,
        "--cache-dir", tmp_path / "cache",
    )  # fmt: skip
    kept = json.loads((KEPT / "run" / "evaluation_test.json").read_text())
    result = json.loads((run_dir / "evaluation_test.json").read_text())
    assert result["n"] == kept["n"] == 8
    for name in ("accuracy", "recall_violent", "recall_nonviolent", "roc_auc"):
        assert result[name] == pytest.approx(kept[name], rel=0, abs=1e-9)
    assert probabilities(run_dir) == pytest.approx(
        probabilities(KEPT / "run"), rel=0, abs=TOLERANCE
    )


def test_its_command_goes_on_with_it(run_dir):
    """Its head and loss are those of today, under the names that they had."""
    config = read_settings(run_dir)
    check_identity(run_dir, settings_identity(config) | BUILT_IN.identity())
    hash(config)  # a compiled step is kept by its config; lists come back as tuples
