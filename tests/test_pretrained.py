"""The detector that comes with vd: whole, without paths, and used where no run is named."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import vd as package
from tests.command_line import vd
from vd.config import PRETRAINED
from vd.files import read_csv, read_json
from vd.metrics.binary import shown
from vd.training.run_folder import dataset_fingerprint, read_config, videos_of


def a_clip(clips):
    return min((clips / "test" / "violent").iterdir())


def test_it_is_small_and_holds_no_absolute_path():
    files = [path for path in PRETRAINED.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 15e6
    texts = [p.read_text() for p in files if p.suffix in (".json", ".csv", ".md")]
    assert len(texts) >= 5
    assert not any(f"{start}/" in text for text in texts for start in ('"', " ", ","))


def test_the_card_has_the_figures_of_its_out_of_fold_logits():
    rows = read_csv(PRETRAINED / "predictions_val.csv")
    labels = np.array([row["label"] == "violent" for row in rows])
    probability = np.array([float(row["probability"]) for row in rows])
    threshold = read_json(PRETRAINED / "calibration.json", "")["threshold"]
    predicted = probability >= threshold
    card = (PRETRAINED / "MODEL_CARD.md").read_text()
    accuracy = shown("accuracy", float(np.mean(labels == predicted)))
    area = shown("roc_auc", float(roc_auc_score(labels, probability)))
    assert f"| accuracy | {accuracy} " in card
    assert f"| ROC AUC | {area} " in card
    videos = videos_of(PRETRAINED, Path())
    assert len(videos) == len(rows) == 240
    identity = read_config(PRETRAINED)["identity"]
    assert dataset_fingerprint(videos) == identity["dataset"]


def test_predict_uses_it_where_no_run_is_named(clips, tmp_path):
    done = vd("predict", a_clip(clips), cwd=tmp_path)
    assert "the one that comes with vd" in done.stderr
    (prediction,) = package.load().predict([a_clip(clips)])
    assert json.loads(done.stdout)["probability"] == prediction.probability
    assert "--checkpoint-dir" in vd("evaluate", code=2).stderr


@pytest.mark.slow
def test_it_is_evaluated_on_another_data_set_in_a_copy(clips, tmp_path):
    before = {path.name: path.read_bytes() for path in PRETRAINED.iterdir()}
    done = vd("evaluate", "--on", clips, "--name", "rendered", cwd=tmp_path)
    assert json.loads(done.stdout)["n"] == 32
    assert (tmp_path / "runs/pretrained/evaluation_rendered.json").exists()
    assert {path.name: path.read_bytes() for path in PRETRAINED.iterdir()} == before


@pytest.mark.slow
def test_its_export_says_that_it_has_no_test_clips(tmp_path):
    arguments = "--format", "stablehlo", "--dataset-path", tmp_path
    said = vd("export", *arguments, "--out", tmp_path / "out").stderr
    assert "the run has no test clips" in said
    assert "name the data set" not in said


@pytest.mark.slow
def test_the_wheel_holds_it(tmp_path):
    root = Path(__file__).parents[1]
    pip = [sys.executable, "-m", "pip"]
    build = [*pip, "wheel", root, "--no-deps", "--no-build-isolation", "-w", tmp_path]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    for path in PRETRAINED.iterdir():
        assert (
            target / "vd" / "pretrained" / path.name
        ).read_bytes() == path.read_bytes()
