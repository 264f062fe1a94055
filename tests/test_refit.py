"""Inner folds choose length, temperature and threshold; then all clips are trained on."""

import json
import os
import signal
from dataclasses import replace
from multiprocessing import get_context

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.command_line import SMALL, digests, vd
from tests.command_line import train as train_command
from tests.fabricated import make_set, make_videos, numbers_config, same_leaves
from vd.config import Config, DataConfig, TrainingConfig
from vd.devices import prepare_jax
from vd.errors import VdError
from vd.files import read_csv
from vd.metrics.calibration import Calibration, false_alarm_threshold
from vd.models.plugins import BUILT_IN
from vd.models.scoring import score
from vd.training import refit
from vd.training.log import read_metrics
from vd.training.loop import Phase, train
from vd.training.refit import (
    inner_folds,
    read_logits,
    refits,
    train_with_inner_folds,
    write_logits,
)


def how():
    """Devices, batch size and plugins; a process sets its number of devices first."""
    return jax.local_devices()[:2], 4, BUILT_IN


def grouped(groups, clips=2):
    """Videos of so many groups of `clips` clips, each group of one class, in turns."""
    return [
        replace(video, label=n // clips % 2, group=f"g{n // clips}")
        for n, video in enumerate(make_videos(groups * clips))
    ]


def run_folder(folder, name="run"):
    (folder / name).mkdir()
    return folder / name


@settings(max_examples=30, deadline=None)
@given(groups=st.integers(2, 40), clips=st.integers(1, 4), seed=st.integers(0, 5))
def test_inner_folds_keep_groups_whole_and_have_both_classes(groups, clips, seed):
    videos = grouped(groups, clips)
    parts = inner_folds(videos, seed)
    assert len(parts) == 0 or len(parts) >= 2
    assert len(parts) <= min(5, groups // 2 // 3)
    assert sorted(v.name for p in parts for v in p) == sorted(
        v.name for v in videos * bool(parts)
    )
    for part in parts:
        assert {video.label for video in part} == {0, 1}
    names = [{video.group for video in part} for part in parts]
    assert sum(map(len, names)) == len(set().union(*names))


def test_a_camera_with_one_class_is_no_inner_fold():
    camera = [replace(v, label=0, group="camera") for v in make_videos(12, "calm")]
    others = grouped(12, 1)
    for part in inner_folds(camera + others, 0):
        assert {video.label for video in part} == {0, 1}


def test_few_clips_or_groups_take_inner_folds_by_themselves():
    config = Config(DataConfig("."), training=TrainingConfig(refit_if_few=True))
    one_each = make_videos(2000)
    assert not refits(config, one_each)
    assert refits(config, one_each[1:])
    assert refits(config, [replace(v, group=v.id[-1]) for v in one_each])
    assert not refits(Config(DataConfig(".")), one_each[:30])


def test_logits_of_other_clips_are_refused(tmp_path):
    path, videos = tmp_path / "logits.csv", make_videos(2)
    write_logits(path, videos, np.array([1.0, 2.0]), [np.array([3.0, 4.0])] * 2)
    assert read_logits(path, videos).tolist() == [[1, 2], [4, 4]]
    with pytest.raises(VdError, match="logits of other clips"):
        read_logits(path, videos[::-1])


@pytest.mark.slow
def test_inner_folds_are_trained_apart_and_then_all_clips(tmp_path, monkeypatch):
    monkeypatch.setattr(refit, "_LENGTHS", (1, 2))
    config = numbers_config(tmp_path, 3)
    clips = make_set(tmp_path / "cache", make_videos(18))
    params, inner = train_with_inner_folds(config, clips, run_folder(tmp_path), *how())

    losses = {}
    held = inner_folds(clips.videos, 0)
    for epochs in (1, 2):
        logit_N = np.zeros(18)
        for number, part in enumerate(held):
            others = [video for video in clips.videos if video not in part]
            one = replace(config, training=replace(config.training, epochs=epochs))
            folder = run_folder(tmp_path, f"{epochs}-{number}")
            sets = clips.part(others), clips.part(part)
            model = train(one, *sets, folder, *how(), Phase("alone"))
            logits = score(BUILT_IN.make_head(one.model), model, sets[1].in_order())
            logit_N[[clips.videos.index(video) for video in part]] = logits
        # the focal loss of alpha 0.25 and gamma 2 with targets 0.95 and 0.05
        p, y = 1 / (1 + np.exp(-logit_N)), 0.05 + 0.9 * clips.labels_N
        at = y * p + (1 - y) * (1 - p)
        cross = -y * np.log(p) - (1 - y) * np.log(1 - p)
        weight = 0.25 * y + 0.75 * (1 - y)
        losses[epochs] = np.mean(weight * (1 - at) ** 2 * cross)
        if epochs == inner.epochs:
            assert np.array_equal(inner.logit_N, logit_N)
    assert inner.losses == pytest.approx(losses, rel=1e-5)
    assert inner.epochs == min(losses, key=losses.get)
    chosen = replace(config, training=replace(config.training, epochs=inner.epochs))
    folder = run_folder(tmp_path, "all")
    alone = train(chosen, clips, None, folder, *how(), Phase("alone"))
    assert same_leaves(params, alone)
    rows = read_metrics(tmp_path / "run", every_phase=True)
    assert len(rows) == len(held) * (1 + 2) + inner.epochs
    last = read_metrics(tmp_path / "run")
    assert [row["phase"] for row in last] == ["final"] * inner.epochs
    assert last[-1]["learning_rate"] < 0.2 * config.training.learning_rate


def test_too_few_groups_take_a_fixed_length(tmp_path):
    config = numbers_config(tmp_path, 2)
    clips = make_set(tmp_path / "cache", make_videos(8))
    _, inner = train_with_inner_folds(config, clips, run_folder(tmp_path), *how())
    assert (inner.epochs, len(inner.logit_N)) == (2, 0)


def _train_until(folder, place):
    """In a process: train, and end it by SIGKILL once a file is there."""
    prepare_jax(cpu_devices=2)
    original = refit.write_csv

    def write_and_die(path, rows):
        original(path, rows)
        if path.parent.name == place:
            os.kill(os.getpid(), signal.SIGKILL)

    refit.write_csv = write_and_die
    _train(folder)


def _train(folder):
    config = numbers_config(folder, 2)
    clips = make_set(folder / "cache", make_videos(18))
    (folder / "run").mkdir(exist_ok=True)
    return train_with_inner_folds(config, clips, folder / "run", *how())


@pytest.mark.slow
@pytest.mark.parametrize("fold", [0, 2])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, fold):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    params, inner = _train(tmp_path / "whole")
    arguments = tmp_path / "killed", f"fold-{fold}_epochs-2"
    process = get_context("spawn").Process(target=_train_until, args=arguments)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    again, same = _train(tmp_path / "killed")
    assert same_leaves(again, params)
    assert np.array_equal(same.logit_N, inner.logit_N)


@pytest.fixture(scope="module")
def refitted(tmp_path_factory, clips, backbone):
    folder = tmp_path_factory.mktemp("refitted")
    return folder, train_command(clips, backbone, folder, "--refit")


@pytest.mark.slow
def test_validation_figures_are_those_of_the_inner_folds(refitted):
    run = refitted[0] / "run"
    result = json.loads((run / "evaluation_val.json").read_text())
    rows = read_csv(run / "predictions_val.csv")
    assert (result["inner_folds"], result["epochs"], result["n"]) == (4, 3, 24)
    assert any("other inner folds" in warning for warning in result["warnings"])
    test = json.loads((run / "evaluation_test.json").read_text())
    assert test["threshold_source"].startswith("inner folds")
    logits = (run / "inner").rglob("logits.csv")
    kept = {row["path"]: row for path in logits for row in read_csv(path)}
    assert [row["logit"] for row in rows] == [kept[r["path"]]["logit"] for r in rows]
    fitted = Calibration(**json.loads((run / "calibration.json").read_text()))
    peak_N = np.array([float(kept[row["path"]]["peak"]) for row in rows])
    labels_N = np.array([row["label"] == "violent" for row in rows])
    reached = false_alarm_threshold(fitted.probability(peak_N), labels_N)
    assert fitted.event_threshold == reached
    assert fitted.event_threshold_source.startswith("inner folds, what 5 % of the")
    assert "4 inner folds: loss" in refitted[1].stderr
    assert "more --epochs" not in refitted[1].stderr


@pytest.mark.slow
def test_a_refitted_run_is_evaluated_and_left_as_it_is(refitted, clips, backbone):
    folder, _ = refitted
    run = folder / "run"
    before = digests(run)
    vd("evaluate", "--checkpoint-dir", run)
    train_command(clips, backbone, folder, "--refit")
    assert digests(run) == before
    refused = vd("evaluate", "--checkpoint-dir", run, "--split", "val", code=2)
    assert "trained on its validation clips" in refused.stderr
    vd("report", run, "--out", folder / "page.html", "--mistakes", 0)
    assert "a length that inner folds chose" in (folder / "page.html").read_text()


@pytest.mark.slow
def test_a_cross_validation_refits_in_each_fold(tmp_path, clips, backbone):
    vd(
        "crossval", "--dataset-path", clips, "--cache-dir", tmp_path / "cache",
        "--checkpoint-dir", tmp_path / "cv", "--backbone", backbone, "--folds", 2,
        "--no-mixed-precision", *SMALL, "--refit",
    )  # fmt: skip
    for fold in range(2):
        run = tmp_path / "cv" / f"fold-{fold}_seed-0"
        tested = {row["path"] for row in read_csv(run / "predictions_test.csv")}
        inner = {row["path"] for row in read_csv(run / "predictions_val.csv")}
        assert len(tested) + len(inner) == 32
        result = json.loads((tmp_path / "cv" / "crossval.json").read_text())
        assert result["per_fold"][fold]["n_train"] == len(inner)
        assert not tested & inner
    vd("report", tmp_path / "cv", "--mistakes", 0)
    vd("compare", tmp_path / "cv", tmp_path / "cv", "--out", tmp_path / "compared")
