"""The linear probe beside every run: what it computes, what it sees, where it is shown."""

import json
import os
import shutil
import signal
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from tests.command_line import digests, train, vd
from tests.fabricated import (
    features_of,
    made_up_predictions,
    make_set,
    make_videos,
    numbers_config,
)
from vd.config import RunConfig
from vd.devices import prepare_jax
from vd.evaluation import evaluate, probe
from vd.evaluation.compare import compare
from vd.evaluation.crossval import summarise
from vd.evaluation.predictions import Member, to_rows
from vd.evaluation.probe import evaluate_probe, fit_probe
from vd.files import read_csv, write_csv
from vd.metrics.calibration import fit
from vd.report.report import report
from vd.training.refit import inner_folds

KEPT = Path(__file__).parent / "kept_run" / "run"


def frames(i):
    return 5 + i % 4


def by_hand(train, tested, frames_of):
    """Logits of `tested` by scikit-learn, from the very numbers that are stored."""

    def pooled(videos):
        plain = [
            features_of(video, frames_of[video.name])[0]
            .astype(np.float32)
            .reshape(frames_of[video.name], -1)
            for video in videos
        ]
        changes = [np.abs(np.diff(x, axis=0)).mean(axis=0) for x in plain]
        rows = zip(plain, changes, strict=True)
        return np.array([np.r_[x.mean(0), np.log(1 + d / 0.1)] for x, d in rows])

    x_train = pooled(train)
    mean, deviation = x_train.mean(axis=0), x_train.std(axis=0)
    labels = [video.label for video in train]
    regression = LogisticRegression(C=0.01).fit((x_train - mean) / deviation, labels)
    x_tested = (pooled(tested) - mean) / deviation
    return x_tested @ regression.coef_[0] + regression.intercept_[0]


def close(value):
    return pytest.approx(value, rel=1e-3, abs=1e-4)


@pytest.fixture
def sets(tmp_path):
    """Feature sets of numbers, with how many frames each clip has."""
    parts = {"train": 24, "val": 10, "test": 8}
    videos = {name: make_videos(count, name) for name, count in parts.items()}
    made = {name: make_set(tmp_path / "cache", of) for name, of in videos.items()}
    frames_of = {v.name: frames(i) for of in videos.values() for i, v in enumerate(of)}
    return made, frames_of


def test_it_is_logistic_regression_on_mean_and_change(sets):
    made, frames_of = sets
    fitted = fit_probe(made["train"], made["val"], 0)
    train_videos = made["train"].videos
    for name in ("train", "val", "test"):
        expected = by_hand(train_videos, made[name].videos, frames_of)
        assert fitted.logits(made[name]) == close(expected)
    logits = by_hand(train_videos, made["val"].videos, frames_of)
    expected = fit(logits, made["val"].labels_N.astype(int), 0.0)
    assert fitted.calibration.temperature == close(expected.temperature)
    assert fitted.calibration.threshold == close(expected.threshold)
    assert fitted.calibration.threshold_source.startswith("validation, ")


def test_without_validation_the_inner_folds_calibrate(sets):
    made, frames_of = sets
    train_set = made["train"]
    fitted = fit_probe(train_set, None, 3)
    logits = np.full(24, np.nan)
    for part in inner_folds(train_set.videos, 3):
        others = [video for video in train_set.videos if video not in part]
        places = [train_set.videos.index(video) for video in part]
        logits[places] = by_hand(others, part, frames_of)
    expected = fit(logits, train_set.labels_N.astype(int), 0.0)
    assert fitted.calibration.temperature == close(expected.temperature)
    assert fitted.calibration.threshold == close(expected.threshold)
    assert fitted.calibration.threshold_source.startswith("inner folds, ")
    everything = by_hand(train_set.videos, made["test"].videos, frames_of)
    assert fitted.logits(made["test"]) == close(everything)


def test_too_few_groups_for_inner_folds_leave_the_loss_s_own_threshold(sets):
    made, _ = sets
    train_set = made["train"]
    few = [replace(v, group=f"g{v.label}") for v in train_set.videos][:15]  # 7 violent
    fitted = fit_probe(train_set.part(few), None, 0)
    assert fitted.calibration.temperature == 1.0
    assert fitted.calibration.threshold == pytest.approx(7 / 15)
    assert fitted.calibration.threshold_source == "the loss's own threshold"


def test_inner_folds_that_the_backbone_has_seen_calibrate_nothing(sets):
    made, _ = sets
    fitted = fit_probe(made["train"], None, 3, adapted=True)
    assert fitted.calibration.temperature == 1.0
    assert fitted.calibration.threshold == 0.5
    assert fitted.calibration.threshold_source == "the loss's own threshold"
    validated = fit_probe(made["train"], made["val"], 3, adapted=True)
    assert validated.calibration.threshold_source.startswith("validation, ")


def run_beside(folder, sets, refit=False):
    """Evaluate a probe in a run folder whose model has made-up test predictions."""
    run = folder / "run"
    run.mkdir(parents=True)
    for name in ("config.json", "metrics.jsonl"):
        shutil.copy(KEPT / name, run / name)
    (run / "evaluation_test.json").write_text('{"threshold": 0.5}')
    videos = sets["test"].videos
    scores = np.linspace(0.2, 0.9, len(videos))
    names, labels = zip(*((v.name, v.label) for v in videos), strict=True)
    write_csv(
        run / "predictions_test.csv",
        to_rows(made_up_predictions(names, labels, scores)),
    )
    config = replace(numbers_config(folder, 1), run=RunConfig(checkpoint_dir=run))
    used = {name: of for name, of in sets.items() if not (refit and name == "val")}
    return run, evaluate_probe(config, used)


def test_its_files_are_those_of_an_evaluation(sets, tmp_path):
    made, _ = sets
    run, result = run_beside(tmp_path, made)
    assert result == json.loads((run / "evaluation_probe.json").read_text())
    rows = read_csv(run / "predictions_probe.csv")
    labels = made["test"].labels_N
    own = [float(row["probability"]) for row in rows]
    assert [row["path"] for row in rows] == [v.name for v in made["test"].videos]
    assert result["accuracy"] == np.mean((np.array(own) >= result["threshold"]) == labels)  # fmt: skip
    assert result["roc_auc"] == pytest.approx(roc_auc_score(labels, own))
    theirs = roc_auc_score(labels, np.arange(8))
    assert result["roc_auc_difference"] == pytest.approx(theirs - result["roc_auc"])
    low, high = result["roc_auc_difference_ci95"]
    assert low <= result["roc_auc_difference"] <= high


@pytest.mark.parametrize("refit", [False, True])
def test_no_test_clip_takes_part(sets, tmp_path, monkeypatch, refit):
    """Noise in place of the test clips, and the other labels: the same bits."""
    made, _ = sets
    fitted = []

    def keep(*arguments):
        fitted.append(fit_probe(*arguments))
        return fitted[-1]

    monkeypatch.setattr(probe, "fit_probe", keep)
    _, result = run_beside(tmp_path / "a", made, refit)
    others = [replace(v, label=1 - v.label) for v in make_videos(8, "noise")]
    noise = make_set(tmp_path / "noise", others, signal=0.0)
    _, other = run_beside(tmp_path / "b", {**made, "test": noise}, refit)
    assert result["roc_auc"] != other["roc_auc"]
    for name in ("threshold", "temperature", "threshold_source"):
        assert result[name] == other[name]
    one, two = fitted
    assert one.calibration == two.calibration
    for a, b in zip(one.regression, two.regression, strict=True):
        for name, value in vars(a).items():
            assert np.array_equal(value, vars(b)[name]), name


def test_more_clips_than_it_holds_have_no_probe(sets, tmp_path, monkeypatch, capfd):
    made, _ = sets
    values = (24 + 10 + 8) * 2 * 12  # mean and deviation of two streams of six
    monkeypatch.setattr(probe, "_MOST_VALUES", values - 1)
    run, result = run_beside(tmp_path / "a", made)
    assert result is None
    assert not (run / "evaluation_probe.json").exists()
    assert f"these clips have {values:,}" in capfd.readouterr().err
    monkeypatch.setattr(probe, "_MOST_VALUES", values)
    assert run_beside(tmp_path / "b", made)[1] is not None


def test_every_run_has_one_and_says_it(trained):
    run = trained[0] / "run"
    result = json.loads((run / "evaluation_probe.json").read_text())
    said = f"a linear probe on the same features: accuracy {100 * result['accuracy']:.1f} %"
    assert trained[1].stderr.count(said) == 1
    tested = [
        [
            (row["path"], row["label"])
            for row in read_csv(run / f"predictions_{name}.csv")
        ]
        for name in ("test", "probe")
    ]
    assert tested[0] == tested[1]
    assert result["threshold_source"].startswith("validation")


def test_a_run_that_is_below_it_is_told_so_first_and_last(trained, tmp_path):
    run = shutil.copytree(trained[0] / "run", tmp_path / "run")
    path = run / "evaluation_probe.json"
    values = json.loads(path.read_text())
    for gain, ends, words in (
        (
            -0.0414,
            [-0.09, 0.0123],
            "better by 0.041 of ROC AUC (95 % interval -0.012 to 0.090):",
        ),
        (-0.02, None, "better by 0.020 of ROC AUC: the head"),
        (0.02, [0.01, 0.03], None),
        (None, None, None),
    ):
        change = {"roc_auc_difference": gain, "roc_auc_difference_ci95": ends}
        path.write_text(json.dumps(values | change))
        page = report(run, tmp_path / "page.html", 0).read_text()
        limits = page[page.index("Before you trust") : page.index('id="figures"')]
        assert ("a linear probe" in limits) == (words is not None)
        assert words is None or words in limits
        assert '<th class="number">linear probe, test</th>' in page
    path.unlink()
    assert "linear probe" not in report(run, tmp_path / "page.html", 0).read_text()


def members(labels, probability):
    """Members of a cross-validation, each with so many clips of its own."""
    made = []
    for fold, of in enumerate(zip(labels, probability, strict=True)):
        paths = [f"{fold}-{i}" for i in range(len(of[0]))]
        predictions = made_up_predictions(paths, *of, fold=fold)
        made.append(Member(Path(f"cv/fold-{fold}"), fold, 0, 0.5, 10, predictions))
    return made


def test_a_cross_validation_pools_it_as_it_pools_the_model():
    labels = [[0, 1, 1, 0], [1, 0, 1, 0]]
    models = [[0.1, 0.9, 0.2, 0.4], [0.05, 0.6, 0.7, 0.1]]
    probes = [[0.2, 0.9, 0.6, 0.3], [0.9, 0.95, 0.7, 0.1]]
    result = summarise(members(labels, models), members(labels, probes))
    row, y = result["probe"], np.concatenate(labels)
    area = roc_auc_score(y, np.concatenate(probes))
    assert row["over_seeds"]["roc_auc"]["mean"] == pytest.approx(area)
    assert row["over_seeds"]["accuracy"]["mean"] == 7 / 8
    each = [roc_auc_score(*pair) for pair in zip(labels, probes, strict=True)]
    assert row["over_folds"]["roc_auc"]["mean"] == pytest.approx(np.mean(each))
    gain = roc_auc_score(y, np.concatenate(models)) - area
    assert gain < 0
    assert row["roc_auc_difference"] == pytest.approx(gain)
    (sentence,) = (text for text in result["warnings"] if "linear probe" in text)
    assert f"better by {-gain:.3f} of ROC AUC" in sentence
    alone = summarise(members(labels, models))
    assert alone["probe"] is None
    assert alone["over_seeds"] == result["over_seeds"]


def test_one_run_is_compared_with_its_probe(trained, tmp_path):
    run, out = trained[0] / "run", tmp_path / "out"
    (pair,) = compare([run], out)["comparisons"]
    assert (pair["a"], pair["b"]) == ("the linear probe", "run")
    for side, name in (("a", "probe"), ("b", "test")):
        values = json.loads((run / f"evaluation_{name}.json").read_text())
        assert pair[f"accuracy_{side}"] == values["accuracy"]
        assert pair[f"roc_auc_{side}"] == pytest.approx(values["roc_auc"])
    assert {row["run"] for row in read_csv(out / "curves.csv")} == {"run"}
    without = shutil.copytree(run, tmp_path / "run")
    (without / "evaluation_probe.json").unlink()
    refused = vd("compare", without, code=2).stderr
    assert "was trained without a linear probe" in refused


def _train_and_die(arguments):
    """In a process: train, and end by SIGKILL when the probe's predictions are written."""
    prepare_jax(cpu_devices=2)
    original = evaluate.write_csv

    def write_and_die(path, rows):
        original(path, rows)
        if path.name == "predictions_probe.csv":
            os.kill(os.getpid(), signal.SIGKILL)

    evaluate.write_csv = write_and_die
    train(*arguments)


@pytest.mark.slow
def test_a_run_killed_at_its_probe_ends_with_the_same_bytes(
    trained, clips, backbone, tmp_path
):
    shutil.copytree(trained[0] / "cache", tmp_path / "cache")
    shutil.copytree(trained[0] / "run", tmp_path / "run")
    for name in ("evaluation_probe.json", "predictions_probe.csv", "report.html"):
        (tmp_path / "run" / name).unlink()
    arguments = (clips, backbone, tmp_path)
    process = get_context("spawn").Process(target=_train_and_die, args=(arguments,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "run" / "predictions_probe.csv").exists()
    assert not (tmp_path / "run" / "evaluation_probe.json").exists()
    train(*arguments)
    whole, resumed = (digests(folder / "run") for folder in (trained[0], tmp_path))
    for name in ("evaluation_probe.json", "predictions_probe.csv", "evaluation_test.json"):  # fmt: skip
        assert resumed[name] == whole[name]
