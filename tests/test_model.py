"""Model, scoring and the training step: padding, devices, overfitting."""

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.fabricated import make_set, make_videos
from vd.config import Config, DataConfig, ModelConfig, TrainingConfig
from vd.models.detector import Detector
from vd.models.head import apply, init_params
from vd.models.scoring import SCORING_BATCH, score
from vd.training import feature_set, loop
from vd.training.batches import training_batches
from vd.training.loop import Validation
from vd.training.optimizer import learning_rates, make_optimizer
from vd.training.step import TrainState, make_train_step, step_numbers

SMALL = ModelConfig(
    clip_frames=8, projection_size=16, hidden_size=8, mixed_precision=False
)
HEAD = Detector(SMALL)
D = 12


@pytest.fixture(scope="module")
def params():
    return init_params(HEAD, D, jax.random.key(0))


def clips(count, seed=0, frames=None):
    rng = np.random.default_rng(seed)
    lengths = frames or [3 + i % 6 for i in range(count)]
    return [rng.normal(size=(length, D)).astype(np.float16) for length in lengths]


@pytest.mark.parametrize("mixed_precision", [False, True])
def test_padding_changes_nothing(params, mixed_precision):
    head = Detector(ModelConfig(8, 16, 8, 0.3, mixed_precision))
    clip = clips(1, frames=[5])[0]
    padded = np.concatenate([clip, np.full((3, D), 7, np.float16)])
    alone = apply(head, params, clip[None], np.ones((1, 5), np.float32))
    mask = np.array([[1, 1, 1, 1, 1, 0, 0, 0]], np.float32)
    np.testing.assert_allclose(
        apply(head, params, padded[None], mask), alone, rtol=1e-5
    )


def test_without_a_projection_features_go_straight_into_the_lstm():
    head = Detector(ModelConfig(8, 0, 8, 0.3, False))
    direct = init_params(head, D, jax.random.key(0))
    assert "projection" not in direct
    assert direct["lstm"]["input"]["kernel"].shape == (D, 64)
    clip = clips(1, frames=[5])[0][None]
    masks = jax.vmap(head.draw_dropout)(jax.random.split(jax.random.key(1), 1))
    assert apply(head, direct, clip, np.ones((1, 5)), masks).shape == (1,)


def test_parameter_count(params):
    projection = D * 16 + 16
    lstm = 16 * 64 + 64 + 2 * 8 * 32
    attention = 16 * 8 + 8 + 8 + 1
    logit = 16 + 1
    counted = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert counted == projection + lstm + attention + logit


def test_score_is_the_same_bits_in_any_company(params):
    videos = clips(SCORING_BATCH * 2 + 5)
    together = score(HEAD, params, [[clip] for clip in videos])
    alone = [score(HEAD, params, [[clip]])[0] for clip in videos]
    assert together.tolist() == alone
    shuffled = score(HEAD, params, [[clip] for clip in videos[::-1]])
    assert shuffled.tolist() == alone[::-1]


def test_a_long_video_is_the_mean_of_its_windows(params):
    video = clips(1, frames=[20])[0]
    windows = [video[start : start + 8] for start in (0, 8, 12)]
    first, second, last = score(HEAD, params, [[window] for window in windows])
    assert score(HEAD, params, [[video]])[0] == (first + second + last) / 3


def test_views_are_averaged(params):
    first, second = clips(2, frames=[6, 6])
    both = score(HEAD, params, [[first, second]])[0]
    each = score(HEAD, params, [[first], [second]])
    assert both == pytest.approx(each.mean(), abs=1e-7)


def test_dropout_keeps_the_mean_and_its_own_share():
    keys = jax.random.split(jax.random.key(1), 400)
    head = Detector(ModelConfig(dropout_rate=0.3))
    masks = jax.vmap(head.draw_dropout)(keys)
    kept = np.asarray(masks.projected_BxP) > 0
    assert kept.mean() == pytest.approx(0.7, abs=0.01)
    assert np.asarray(masks.pooled_Bx2H).mean() == pytest.approx(1.0, abs=0.02)
    one = jax.vmap(head.draw_dropout)(keys[5:6])
    np.testing.assert_array_equal(one.projected_BxP[0], masks.projected_BxP[5])


def make_training(tmp_path, devices, model=SMALL, **settings):
    training = TrainingConfig(
        **{
            "epochs": 20,
            "batch_size": 8,
            "warmup_epochs": 1,
            "learning_rate": 0.01,
            **settings,
        }
    )
    config = Config(data=DataConfig(tmp_path), model=model, training=training)
    devices_held = jax.local_devices()[:devices]
    data = make_set(tmp_path, make_videos(24), devices=devices_held)
    rates = learning_rates(training, 3)
    train_step = make_train_step(config, devices_held)
    numbers = step_numbers(config, devices_held)
    params = init_params(Detector(model), data.dim, jax.random.key(0))
    opt_state = make_optimizer(training).init(params)
    state = TrainState(np.zeros((), np.int32), params, opt_state)

    def step(state, batch):
        rate = rates[int(state.step)]
        return train_step(state, batch, numbers._replace(learning_rate=rate))

    frames = SMALL.clip_frames
    return step, state, training_batches(data, training, frames, 8, 0, devices)


def losses_of(tmp_path, devices, steps, **settings):
    """The losses of a training's first steps, and its state after them."""
    step, state, batches = make_training(tmp_path, devices, **settings)
    losses = []
    for batch in itertools.islice(batches, steps):
        state, metrics = step(state, batch)
        losses.append(float(metrics.loss))
    return losses, state


@pytest.mark.parametrize(
    "model", [SMALL, replace(SMALL, linear_path=True)], ids=["default", "linear path"]
)
def test_two_devices_follow_one_within_rounding(tmp_path, model):
    one, two = (losses_of(tmp_path, n, 50, model=model)[0] for n in (1, 2))
    np.testing.assert_allclose(one, two, rtol=1e-5)


def test_bfloat16_follows_float32(tmp_path):
    """Of 50 steps no loss differs by more than a hundredth, nor a logit in the end by 0.02."""
    curves, logits = [], []
    for mixed in (False, True):
        config = replace(SMALL, mixed_precision=mixed)
        losses, state = losses_of(tmp_path, 2, 50, model=config)
        curves.append(losses)
        clips_N = [[clip] for clip in clips(20)]
        logits.append(score(Detector(config), state.params, clips_N))
        for leaf in jax.tree.leaves(state.params):
            assert leaf.dtype == np.float32
    assert curves[0] != curves[1]
    np.testing.assert_allclose(curves[1], curves[0], rtol=0.01)
    np.testing.assert_allclose(logits[1], logits[0], atol=0.02)


@pytest.mark.parametrize("count", [2, SCORING_BATCH, SCORING_BATCH + 1])
def test_validation_is_exact_for_any_size(tmp_path, params, count):
    """Against each clip alone, one by one, in float64."""
    data = make_set(tmp_path, make_videos(count))
    config = Config(data=DataConfig(tmp_path), model=SMALL)
    made = Validation(config, data).metrics(params)
    logits = [float(score(HEAD, params, [[data.read(i, 0)]])[0]) for i in range(count)]
    right = [
        (logit >= 0) == video.label
        for logit, video in zip(logits, data.videos, strict=True)
    ]
    losses = []
    for logit, video in zip(logits, data.videos, strict=True):
        target, p = 0.95 if video.label else 0.05, 1 / (1 + np.exp(-logit))
        close = p * target + (1 - p) * (1 - target)
        weight = 0.25 * target + 0.75 * (1 - target)
        entropy = -target * np.log(p) - (1 - target) * np.log(1 - p)
        losses.append(weight * (1 - close) ** 2 * entropy)
    assert made["val_accuracy"] == sum(right) / count
    assert made["val_loss"] == pytest.approx(sum(losses) / count, rel=1e-5)
    violent = [ok for ok, video in zip(right, data.videos, strict=True) if video.label]
    assert made["val_recall_violent"] == sum(violent) / len(violent)


def test_one_batch_can_be_learnt_by_heart(tmp_path):
    step, state, batches = make_training(
        tmp_path, 2, augmentation=False, label_smoothing=0.0, focal_alpha=0.5
    )
    batch = next(batches)
    for _ in range(60):
        state, metrics = step(state, batch)
    assert float(metrics.accuracy) == 1.0
    assert float(metrics.loss) < 1e-2


def test_features_held_by_devices_train_as_those_of_the_host(tmp_path, monkeypatch):
    expected, _ = losses_of(tmp_path, 2, 6)
    monkeypatch.setattr(feature_set, "fits", lambda size, devices: bool(devices))
    batch = next(make_training(tmp_path, 2)[2])
    assert batch.features_BxTxD.devices() == set(jax.local_devices())
    assert losses_of(tmp_path, 2, 6)[0] == expected


def test_windows_kept_on_the_device_score_alike(tmp_path, params, monkeypatch):
    data = make_set(tmp_path, make_videos(SCORING_BATCH + 3))
    config = Config(data=DataConfig(tmp_path), model=SMALL)
    expected = Validation(config, data).metrics(params)
    sizes = []
    monkeypatch.setattr(loop, "fits", lambda size, *_: sizes.append(size) or True)
    kept = Validation(config, data)
    monkeypatch.setattr(type(data), "read", None)  # nothing is read again
    assert kept.metrics(params) == kept.metrics(params) == expected
    windows = sum(-(-frames // SMALL.clip_frames) for frames in data.frames_N)
    assert sizes == [windows * SMALL.clip_frames * data.dim * 2]
