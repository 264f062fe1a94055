"""Augmentation in feature space: by hand, and the same on any number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.fabricated import metrics_without_timing, train_on_numbers
from vd.config import TrainingConfig
from vd.training.augment import (
    AUGMENTATIONS,
    add_noise,
    augment,
    drop_frames,
    mix_clips,
)
from vd.training.step import AXIS, Batch

B, T, D = 8, 6, 3
LENGTHS = np.array([6, 5, 4, 3, 2, 1, 6, 1])
KEYS = jax.random.split(jax.random.key(0), B)


@pytest.fixture
def batch():
    features = np.random.default_rng(0).normal(size=(B, T, D)).astype(np.float16)
    mask = (np.arange(T) < LENGTHS[:, None]).astype(np.float32)
    return Batch(features, mask, (np.arange(B) % 2).astype(np.float32), np.arange(B))


@pytest.mark.parametrize("rate", [0.01, 0.5, 0.99])
def test_frame_dropping_leaves_each_clip_a_frame_and_adds_none(batch, rate):
    kept = []
    for seed in range(50):
        keys = jax.random.split(jax.random.key(seed), B)
        mask = np.asarray(drop_frames(batch, keys, rate, None).mask_BxT)
        assert set(np.unique(mask)) <= {0.0, 1.0}
        assert np.all(mask <= batch.mask_BxT)
        assert np.all(mask.sum(axis=1) >= 1)
        kept.append(mask.sum())
    share = np.mean(kept) / batch.mask_BxT.sum()
    # of n frames one always stays: rate^n of them would have lost all
    expected = np.sum(LENGTHS * (1 - rate) + rate**LENGTHS) / LENGTHS.sum()
    assert share == pytest.approx(expected, abs=0.03)


def test_noise_is_a_share_of_a_clips_own_deviation(batch):
    features = np.asarray(batch.features_BxTxD) * np.arange(1, B + 1)[:, None, None]
    batch = batch._replace(features_BxTxD=features.astype(np.float16))
    made = [
        add_noise(batch, jax.random.split(jax.random.key(seed), B), 0.5, None)
        for seed in range(100)
    ]
    noise = np.stack([b.features_BxTxD - batch.features_BxTxD for b in made])
    for clip, length in enumerate(LENGTHS):
        deviation = np.std(batch.features_BxTxD[clip, :length].astype(np.float32))
        assert noise[:, clip].std() == pytest.approx(0.5 * deviation, rel=0.1)
        assert abs(noise[:, clip].mean()) < 0.1 * deviation


def test_mixup_interpolates_features_and_targets_of_two_clips(batch):
    mixed = mix_clips(batch, KEYS, 0.4, None)
    features, mask = batch.features_BxTxD.astype(np.float32), batch.mask_BxT
    for i in range(B):
        fits = []
        for j in set(range(B)) - {i}:
            # the first frame is in every clip: its features show the share
            difference = features[i, 0] - features[j, 0]
            share = np.mean((mixed.features_BxTxD[i, 0] - features[j, 0]) / difference)
            label = share * batch.labels_B[i] + (1 - share) * batch.labels_B[j]
            own = share * mask[i][:, None]
            others = (1 - share) * mask[j][:, None]
            weight = own / np.maximum(own + others, 1e-30)
            expected = weight * features[i] + (1 - weight) * features[j]
            present = np.maximum(mask[i], mask[j]) > 0
            fits.append(
                np.allclose(
                    mixed.features_BxTxD[i][present], expected[present], atol=1e-4
                )
                and np.allclose(mixed.labels_B[i], label, atol=1e-3)
                and np.array_equal(mixed.mask_BxT[i], present)
                and 0 <= share <= 1
            )
        assert sum(fits) == 1, i


@pytest.mark.parametrize("setting", AUGMENTATIONS)
def test_devices_change_no_draw(batch, setting):
    config, step = TrainingConfig(**{setting: 0.5}), jnp.int32(7)
    alone = augment(batch, config, step, None)
    assert not all(
        np.array_equal(a, b) for a, b in zip(alone[:3], batch[:3], strict=True)
    )
    over = Batch(*(np.reshape(array, (2, B // 2, *array.shape[1:])) for array in batch))
    both = jax.pmap(lambda part: augment(part, config, step, AXIS), axis_name=AXIS)(
        over
    )
    for a, b in zip(alone, both, strict=True):
        np.testing.assert_allclose(np.reshape(b, np.shape(a)), a, rtol=1e-5, atol=1e-6)
    other = augment(batch, config, jnp.int32(8), None)
    assert not all(np.array_equal(a, b) for a, b in zip(alone, other, strict=True))


def test_off_changes_nothing_and_costs_nothing(batch):
    assert augment(batch, TrainingConfig(), jnp.int32(0), None) is batch
    off = TrainingConfig(augmentation=False, mixup_alpha=1.0, feature_noise=0.1)
    assert augment(batch, off, jnp.int32(0), None, lambda *_: None) is batch


@pytest.mark.slow
def test_training_with_all_of_them_learns(tmp_path):
    settings = {"frame_dropping_rate": 0.2, "feature_noise": 0.1, "mixup_alpha": 0.2}
    train_on_numbers(tmp_path, epochs=8, signal=3.0, **settings)
    losses = [row["val_loss"] for row in metrics_without_timing(tmp_path)]
    assert len(losses) == 8
    assert losses.index(min(losses)) > 1
