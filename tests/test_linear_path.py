"""The linear path beside the BiLSTM, or alone: its logit, its statistics, its training."""

import math
import signal
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.command_line import SMALL, script, vd
from tests.command_line import train as train_command
from tests.fabricated import (
    DIM,
    SMALL_MODEL,
    STREAMS,
    features_of,
    in_parts,
    make_set,
    make_videos,
    metrics_without_timing,
    numbers_config,
    open_store,
    same_leaves,
    train_on_numbers,
)
from vd.config import Config, DataConfig, ModelConfig
from vd.console import Interrupted
from vd.data.outcome import Outcome
from vd.errors import VdError
from vd.evaluation.restore import restore
from vd.files import read_csv, write_json
from vd.models.detector import Detector
from vd.models.head import apply, init_params
from vd.models.plugins import BUILT_IN
from vd.models.standardise import clip_statistics
from vd.training import loop
from vd.training.batches import training_batches
from vd.training.best_weights import read_best_weights, write_best_weights
from vd.training.checkpoints import Checkpoints
from vd.training.feature_set import FeatureSet
from vd.training.loop import begin, fitted
from vd.training.step import make_train_step, step_numbers

D = STREAMS * DIM
BESIDE = replace(SMALL_MODEL, linear_path=True)
ALONE = replace(SMALL_MODEL, linear_path=True, hidden_size=0)
HOW = {"weight_decay": 1.0, "mixup_alpha": 0.2}  # the same: a step is compiled once
STATISTICS = "frame_mean", "frame_deviation", "clip_mean", "clip_deviation"


def mean_and_change(column):
    """Of one feature of one clip, by plain Python."""
    steps = [abs(b - a) for a, b in pairwise(column)]
    change = math.fsum(steps) / len(steps) if steps else 0.0
    return math.fsum(column) / len(column), math.log(1 + change / 0.1)


def loop_statistics(clips):
    """The statistics, by plain loops over the frames of the clips."""
    frames = [frame for clip in clips for frame in clip.astype(np.float64)]
    both = [
        [mean_and_change(column) for column in clip.astype(np.float64).T.tolist()]
        for clip in clips
    ]
    rows = [
        [*means, *changes] for means, changes in (zip(*b, strict=True) for b in both)
    ]
    result = {}
    for name, values in (("frame", np.array(frames)), ("clip", np.array(rows))):
        mean = [math.fsum(column) / len(values) for column in values.T]
        variance = [
            math.fsum((x - m) ** 2 for x in column) / len(values)
            for column, m in zip(values.T, mean, strict=True)
        ]
        result[f"{name}_mean"] = np.array(mean)
        result[f"{name}_deviation"] = np.array([math.sqrt(v) or 1.0 for v in variance])
    return result


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_its_logit_by_hand(mixed_precision):
    """Parameters set by hand; what lies under a mask of 0 changes nothing."""
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=(frames, 3)).astype(np.float16) for frames in (5, 1, 3)]
    features, mask = np.full((3, 6, 3), 1000, np.float16), np.zeros((3, 6), np.float32)
    for i, clip in enumerate(clips):
        features[i, : len(clip)], mask[i, : len(clip)] = clip, 1
    weight, mean = rng.normal(size=6), rng.normal(size=6)
    deviation = rng.uniform(0.5, 2, size=6)
    params = {
        "clip_mean": mean.astype(np.float32),
        "clip_deviation": deviation.astype(np.float32),
        "linear": {
            "kernel": weight[:, None].astype(np.float32),
            "bias": np.array([0.25], np.float32),
        },
    }
    config = ModelConfig(
        linear_path=True, hidden_size=0, mixed_precision=mixed_precision
    )
    logits = apply(Detector(config), params, features, mask)
    for clip, logit in zip(clips, logits, strict=True):
        expected = 0.25
        for d in range(3):
            average, change = mean_and_change([float(x) for x in clip[:, d]])
            expected += weight[d] * (average - mean[d]) / deviation[d]
            expected += weight[3 + d] * (change - mean[3 + d]) / deviation[3 + d]
        assert float(logit) == pytest.approx(expected, abs=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=2, max_size=12),
    offset=st.sampled_from([0.0, 300.0]),
    seed=st.integers(0, 9),
)
def test_statistics_are_those_of_a_plain_loop(lengths, offset, seed):
    rng = np.random.default_rng(seed)
    clips = [(offset + rng.normal(size=(n, 4))).astype(np.float16) for n in lengths]
    for clip in clips:
        clip[:, 3] = 0.3  # a constant feature: deviation 1
    expected = loop_statistics(clips)
    for name, values in clip_statistics(iter(clips)).items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values[:3], expected[name][:3], rtol=1e-5, atol=1e-4)
        constant = {"frame_mean": np.float16(0.3), "frame_deviation": 1}
        if name in constant:
            assert values[3] == constant[name]


def stored(folder, noise):
    """A set of 24 clips, of which every third is held out and may be noise."""
    videos = make_videos(24)
    store = open_store(folder)
    for i, video in enumerate(videos):
        features = features_of(video, 5 + i % 4)
        if noise and i % 3 == 0:
            features = np.full_like(features, 7)
        store.add(video.id, Outcome("used"), "test", in_parts(features))
    store.finish()
    data = FeatureSet(videos, store)
    return data, [video for i, video in enumerate(videos) if i % 3]


def first_params(data, model):
    config = Config(DataConfig("."), model=model)
    head = BUILT_IN.make_head(model)
    return fitted(begin(config, D, BUILT_IN), head, data).state.params


def test_held_out_clips_leave_the_statistics_to_the_bit(tmp_path):
    results = []
    for noise in (False, True):
        data, training = stored(tmp_path / str(noise), noise)
        results.append(first_params(data.part(training), BESIDE))
        whole = first_params(data, BESIDE)
        assert not np.array_equal(whole["frame_mean"], results[-1]["frame_mean"])
    assert same_leaves(*results)
    clips = [view[0] for view in data.part(training).in_order()]
    expected = loop_statistics(clips)
    for name in STATISTICS:
        np.testing.assert_allclose(results[0][name], expected[name], rtol=1e-5)


def test_the_default_head_reads_no_statistics(tmp_path, monkeypatch):
    data, _ = stored(tmp_path, noise=False)
    monkeypatch.setattr(FeatureSet, "in_order", None)
    assert "clip_mean" not in first_params(data, SMALL_MODEL)


def test_a_correction_begins_at_exactly_the_linear_paths_logit(tmp_path):
    data = make_set(tmp_path, make_videos(12))
    params = first_params(data, BESIDE)
    rng = np.random.default_rng(0)
    params["linear"]["kernel"] = rng.normal(size=(2 * D, 1)).astype(np.float32)
    own = {name: params[name] for name in ("clip_mean", "clip_deviation", "linear")}
    features = rng.normal(size=(4, 8, D)).astype(np.float16)
    mask = (np.arange(8) < np.array([[8], [5], [1], [3]])).astype(np.float32)
    both = apply(Detector(BESIDE), params, features, mask)
    assert np.array_equal(both, apply(Detector(ALONE), own, features, mask))
    assert np.ptp(np.asarray(both)) > 1
    params["logit"]["kernel"] += 1.0
    assert not np.array_equal(apply(Detector(BESIDE), params, features, mask), both)


def test_parameters_by_setting():
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(part))
        for name, part in init_params(Detector(ALONE), D, jax.random.key(0)).items()
    }
    assert sizes == {
        "linear": 2 * D + 1,
        "clip_mean": 2 * D,
        "clip_deviation": 2 * D,
    }
    beside = init_params(Detector(BESIDE), D, jax.random.key(0))
    default = init_params(Detector(SMALL_MODEL), D, jax.random.key(0))
    assert set(beside) == {*default, *sizes, "frame_mean", "frame_deviation"}


def test_the_first_step_by_hand(tmp_path):
    """AdamW's first step is the rate times the gradient's sign, and decay of matrices."""
    data = make_set(tmp_path, make_videos(16))
    config = numbers_config(tmp_path, 1, model=BESIDE, **HOW)
    state = fitted(begin(config, D, BUILT_IN), Detector(BESIDE), data).state
    before = jax.tree.map(np.array, state.params)
    devices = jax.local_devices()[:2]
    batch = next(training_batches(data, config.training, 8, 4, 0, 2))
    step = make_train_step(config, devices)
    after = step(state, batch, step_numbers(config, devices))[0].params
    rate, share, decay = 0.01, 0.1, 1.0
    for name in STATISTICS:
        assert np.array_equal(after[name], before[name])
    for name, expected in (("linear", rate), ("logit", share * rate)):
        moved = np.abs(after[name]["kernel"] - before[name]["kernel"])
        np.testing.assert_allclose(moved, expected, rtol=0.01)
    # without a gradient, as the correction is 0
    projection = before["projection"]["kernel"] * (1 - share * rate * decay)
    np.testing.assert_allclose(after["projection"]["kernel"], projection, rtol=1e-5)


@pytest.mark.parametrize("model", [BESIDE, ALONE], ids=["beside", "alone"])
def test_training_learns_and_leaves_the_statistics(tmp_path, model):
    params = train_on_numbers(tmp_path, 6, model=model, **HOW)
    clips = [v[0] for v in make_set(tmp_path / "cache", make_videos(16)).in_order()]
    for name, values in clip_statistics(clips).items():
        if name in params:
            assert np.array_equal(params[name], values)
    rows = metrics_without_timing(tmp_path)
    assert rows[-1]["val_loss"] < 0.9 * rows[0]["val_loss"]


@pytest.mark.slow
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bits(
    tmp_path, monkeypatch
):
    params = train_on_numbers(tmp_path / "whole", 2, model=BESIDE, **HOW)
    for asked in (1, 3, 2):  # of the 8 steps, and the ends of epochs
        left = iter([0] * (asked - 1))
        with monkeypatch.context() as patch:
            patch.setattr(loop, "interrupted", partial(next, left, signal.SIGTERM))
            with pytest.raises(Interrupted):
                train_on_numbers(tmp_path / "stopped", 2, model=BESIDE, **HOW)
    again = train_on_numbers(tmp_path / "stopped", 2, model=BESIDE, **HOW)
    assert same_leaves(again, params)
    lines = [metrics_without_timing(tmp_path / name) for name in ("whole", "stopped")]
    assert lines[0] == lines[1]


def test_a_restored_run_does_not_compute_its_statistics_again(tmp_path, monkeypatch):
    params = train_on_numbers(tmp_path, 1, model=ALONE, **HOW)
    monkeypatch.setattr(loop, "fitted", None)
    assert same_leaves(train_on_numbers(tmp_path, 1, model=ALONE, **HOW), params)


def former(params):
    """As a version whose linear path read mean and deviation named them."""
    return {name.replace("clip_", "pooled_"): value for name, value in params.items()}


def test_weights_of_a_linear_path_that_read_the_deviation_are_refused(tmp_path):
    like = init_params(Detector(ALONE), D, jax.random.key(0))
    write_json(tmp_path / "config.json", {"format": 4})
    write_best_weights(tmp_path, former(like))
    with pytest.raises(VdError, match=r"npz has no clip_deviation, .* or train again"):
        read_best_weights(tmp_path, like)


def test_checkpoints_of_a_linear_path_that_read_the_deviation_are_refused(tmp_path):
    params = train_on_numbers(tmp_path, 1, model=ALONE, **HOW)
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert same_leaves(checkpoints.restore_best(params)[0], params)
        with pytest.raises(VdError, match="train again with --fresh"):
            checkpoints.restore_best(former(params))


def test_neither_path_is_an_error(clips, tmp_path):
    done = vd(
        "train", "--dataset-path", clips, "--checkpoint-dir", tmp_path / "run",
        "--hidden-size", 0, code=2,
    )  # fmt: skip
    assert "--hidden-size 0 leaves a head without an LSTM" in done.stderr


@pytest.mark.slow
def test_a_run_of_the_linear_path_alone_predicts_and_evaluates(
    tmp_path, clips, backbone
):
    flags = "--linear-path", "--hidden-size", "0", "--mixup-alpha", "0.2", "--refit"
    train_command(clips, backbone, tmp_path, *flags)
    run = tmp_path / "run"
    before = (run / "predictions_test.csv").read_bytes()
    vd("evaluate", "--checkpoint-dir", run)
    assert (run / "predictions_test.csv").read_bytes() == before
    clip = next((clips / "test").rglob("*.mp4"))
    assert '"probability"' in vd("predict", clip, "--checkpoint-dir", run).stdout
    changed = train_command(
        clips, backbone, tmp_path, *flags, "--hidden-size", "4", code=2
    )
    assert "hidden_size was 0, now 4" in changed.stderr


@pytest.mark.slow
def test_recommended_and_a_sweep_have_it(tmp_path, clips, backbone):
    common = (
        "--dataset-path", clips, "--cache-dir", tmp_path / "cache", "--backbone",
        backbone, "--no-mixed-precision", *SMALL,
    )  # fmt: skip
    recommended = Path(__file__).parents[1] / "experiments" / "recommended.py"
    done = script(recommended, *common, "--checkpoint-dir", tmp_path / "run")
    assert "4 inner folds: loss" in done.stderr
    params = restore(tmp_path / "run").params
    assert {"linear", "lstm", *STATISTICS} <= set(params)
    assert np.any(params["logit"]["kernel"])
    vd(
        "sweep", *common, "--checkpoint-dir", tmp_path / "sweep", "--linear-path",
        "--set", "hidden_size=0,8", "--set", "correction_rate=0.1,1",
    )  # fmt: skip
    rows = read_csv(tmp_path / "sweep" / "sweep.csv")
    assert [(row["correction_rate"], row["hidden_size"]) for row in rows] == [
        ("0.1", "0"), ("0.1", "8"), ("1.0", "0"), ("1.0", "8"),
    ]  # fmt: skip
    assert all(float(row["accuracy"]) >= 0 for row in rows)
