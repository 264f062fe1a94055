"""The read-out of several networks: a mean of logits, each over its own temperature."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tests.fabricated import DIM, make_set, make_videos
from vd.features.sampling import window_length, windows_of
from vd.metrics.calibration import fit
from vd.models.detector import Detector
from vd.models.scoring import score
from vd.training.readout import READ_OUT, Linear, read_together
from vd.training.refit import InnerFolds, inner_folds

FIRST = Linear(
    np.linspace(-1, 2, DIM), np.linspace(1, -1, DIM), 0.5
)  # of an adapted network
SETS = {"train": make_videos(24), "val": make_videos(16, "val")}


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    return {name: make_set(cache, videos) for name, videos in SETS.items()}


def pooled(frames_FxD):
    """Mean and change of the features of the frozen network."""
    return mean_and_change(frames_FxD[:, DIM:])


def mean_and_change(frames_FxD):
    x_FxD = frames_FxD.astype(np.float64)
    change_D = np.abs(np.diff(x_FxD, axis=0)).mean(0)
    return np.concatenate([x_FxD.mean(0), np.log(1 + change_D / 0.1)])


def logit_of(linear, frames_FxD):
    """Of the features of an adapted network, by its own weights."""
    weights = np.concatenate([linear.mean_D, linear.change_D])
    return mean_and_change(frames_FxD) @ weights + linear.bias


def first_logit(frames_FxD):
    return logit_of(FIRST, frames_FxD[:, :DIM])


def frozen_logit(data, chosen_N):
    """The logit of frames by a probe of some clips, with scikit-learn alone."""
    x_NxP = np.stack([pooled(data.read(n, 0)) for n in range(len(data))])
    scaler = StandardScaler().fit(x_NxP[chosen_N])
    probe = LogisticRegression(C=0.01, max_iter=1000)
    probe.fit(scaler.transform(x_NxP[chosen_N]), data.labels_N[chosen_N])
    return lambda frames: probe.decision_function(
        scaler.transform(pooled(frames)[None])
    )[0]


def folds_of(data):
    return inner_folds(data.videos, 0)


def clips_of(data):
    return [data.read(n, 0) for n in range(len(data))]


def windows_by_clip(data):
    """The sliding windows of each clip."""
    length = window_length(data.seconds_N, READ_OUT.clip_frames)
    frames = READ_OUT.clip_frames
    return [windows_of(video, length, 0.25, frames) for video in data.in_time()]


def made_up_inner(data, folds=True):
    """Inner logits of the adapted part: far too sure, as those of few clips are."""
    rng = np.random.default_rng(5)
    windows = [
        np.array([9 * rng.normal() + 6 * label for _ in own])
        for own, label in zip(windows_by_clip(data), data.labels_N, strict=True)
    ]
    if not folds:
        return InnerFolds(8, {}, np.zeros(0, int), np.zeros(0), np.zeros(0))
    logit_N = np.array([logit_W.mean() for logit_W in windows])
    fold_N = np.zeros(len(data), int)
    return InnerFolds(8, {}, fold_N, logit_N, np.zeros(len(data)), windows)


def scored(read_out, data):
    return score(Detector(READ_OUT), read_out.linear.params(), data.in_order())


def test_the_logit_is_the_mean_of_the_parts_over_their_inner_temperatures(sets):
    train, val = sets["train"], sets["val"]
    labels_N = train.labels_N.astype(int)
    inner = made_up_inner(train)
    read_out = read_together([FIRST], [inner], {"train": train}, folds_of(train))

    held, windows = np.zeros(24), [None] * 24
    names = [video.name for video in train.videos]
    parts = folds_of(train)
    assert len(parts) == 4
    for part in parts:
        places = [names.index(video.name) for video in part]
        others = np.setdiff1d(np.arange(24), places)
        logit_of = frozen_logit(train, others)
        for n in places:
            held[n] = logit_of(train.read(n, 0))
            windows[n] = np.array([logit_of(w) for w in windows_by_clip(train)[n]])
    temperatures = [fit(x, labels_N).temperature for x in (inner.logit_N, held)]
    assert temperatures[0] > 2 > temperatures[1]

    by_all = frozen_logit(train, np.arange(24))
    expected = [
        (first_logit(x) / temperatures[0] + by_all(x) / temperatures[1]) / 2
        for x in clips_of(val)
    ]
    np.testing.assert_allclose(scored(read_out, val), expected, atol=2e-3)
    assert read_out.scale == pytest.approx(np.mean(1 / np.array(temperatures)), 1e-3)

    found = read_out.inner
    first, second = (1 / (2 * t) for t in temperatures)
    np.testing.assert_allclose(
        found.logit_N, first * inner.logit_N + second * held, atol=2e-3
    )
    peaks = [
        (first * a + second * b).max()
        for a, b in zip(inner.windows, windows, strict=True)
    ]
    np.testing.assert_allclose(found.peak_logit_N, peaks, atol=2e-3)


def test_two_adapted_networks_read_their_own_features(sets):
    second = Linear(np.linspace(3, -1, DIM), np.linspace(0, 2, DIM), -1.0)
    train = sets["train"]
    inner = made_up_inner(train)
    read_out = read_together([FIRST, second], [inner, inner], {"train": train}, [])
    temperature = fit(inner.logit_N, train.labels_N.astype(int)).temperature
    expected = [
        (first_logit(x) + logit_of(second, x[:, DIM:])) / (2 * temperature)
        for x in clips_of(train)
    ]
    np.testing.assert_allclose(scored(read_out, train), expected, atol=1e-5)
    np.testing.assert_allclose(read_out.inner.logit_N, inner.logit_N / temperature)


def test_one_network_alone_is_read_out_as_it_is(sets):
    train, whole = sets["train"], Linear(np.ones(2 * DIM), np.full(2 * DIM, 3.0), 0.25)
    inner = made_up_inner(train)
    read_out = read_together([whole], [inner], {"train": train}, [])
    params = read_out.linear.params()
    assert params["linear"]["bias"] == 0.25
    kernel = params["linear"]["kernel"][:, 0]
    np.testing.assert_array_equal(kernel, np.repeat([1, 3], 2 * DIM))
    np.testing.assert_array_equal(read_out.inner.logit_N, inner.logit_N)
    assert read_out.scale == 1


def test_without_inner_folds_every_temperature_is_1(tmp_path, sets):
    few = make_set(tmp_path, make_videos(8))
    none = made_up_inner(few, folds=False)
    read_out = read_together([FIRST], [none], {"train": few}, folds_of(few))
    assert len(read_out.inner.logit_N) == 0
    by_all = frozen_logit(few, np.arange(8))
    expected = [(first_logit(x) + by_all(x)) / 2 for x in clips_of(sets["val"])]
    np.testing.assert_allclose(scored(read_out, sets["val"]), expected, atol=2e-3)
    assert read_out.scale == 1


def test_with_a_validation_part_temperatures_are_fitted_on_it(sets):
    read_out = read_together([FIRST], None, sets, [])
    train, val = sets["train"], sets["val"]
    by_all = frozen_logit(train, np.arange(24))
    both = np.array([(first_logit(x), by_all(x)) for x in clips_of(val)])
    labels_N = val.labels_N.astype(int)
    temperatures = [fit(logit_N, labels_N).temperature for logit_N in both.T]
    expected = (both / temperatures).mean(axis=1)
    np.testing.assert_allclose(scored(read_out, val), expected, atol=2e-3)
    assert read_out.inner is None
