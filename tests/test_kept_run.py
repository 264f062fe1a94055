"""A finished run that is kept: every later version predicts and evaluates it.

`kept_run/run` is what `python -m tests.keep_run` wrote, `kept_run/clips` has its test clips.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest

from tests.command_line import vd
from vd.errors import VdError
from vd.training.run_folder import (
    FORMAT,
    check_identity,
    read_settings,
    settings_identity,
)

KEPT = Path(__file__).parent / "kept_run"
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


@pytest.mark.parametrize(
    "command", [["predict", CLIPS / "test/violent/clip_0.mp4"], ["evaluate"]]
)
def test_a_run_of_another_format_is_refused_in_a_sentence(run_dir, command):
    path = run_dir / "config.json"
    assert '"format": 3' in path.read_text()  # an older one that is still read
    path.write_text(path.read_text().replace('"format": 3', '"format": 2'))
    done = vd(*command, "--checkpoint-dir", run_dir, code=2)
    (line,) = done.stderr.splitlines()
    assert f"{path} has format 2" in line
    assert "train again" in line
    assert done.stdout == ""


def test_a_run_of_an_older_format_is_not_gone_on_with(run_dir):
    command = settings_identity(read_settings(run_dir))
    with pytest.raises(VdError, match=f"format was 3, now {FORMAT}"):
        check_identity(run_dir, command)
