"""A clip's mean and change: by hand, with gaps, alike in JAX and in NumPy."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from vd.models.pooling import (
    compressed,
    mean_and_change,
    mean_and_change_of,
)


def logarithm(change):
    return math.log(1 + change / 0.1)


def pooled(frames, mask):
    x_TxD = np.array(frames, np.float32)
    return mean_and_change(x_TxD[None], np.array([mask], np.float32))[0]


FRAMES = [[1.0, -2.0], [3.0, -2.0], [4.0, -5.0], [0.0, 1.0]]


def test_mean_and_change_by_hand():
    changes = (2 + 1 + 4) / 3, (0 + 3 + 6) / 3
    expected = [8 / 4, -8 / 4, *map(logarithm, changes)]
    assert expected[3] == pytest.approx(math.log(31))
    np.testing.assert_allclose(pooled(FRAMES, [1, 1, 1, 1]), expected, rtol=1e-6)
    clip = np.array(FRAMES, np.float16)
    np.testing.assert_allclose(mean_and_change_of(clip), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("mask", "mean", "change"),
    [
        ([1, 1, 0, 1], [4 / 3, -1], [2, 0]),  # not from the second to the fourth
        ([1, 1, 0, 0], [2, -2], [2, 0]),
        ([0, 1, 1, 1], [7 / 3, -2], [5 / 2, 9 / 2]),
        ([1, 0, 1, 0], [5 / 2, -7 / 2], [0, 0]),  # none stand side by side
        ([0, 0, 1, 0], [4, -5], [0, 0]),
    ],
)
def test_only_frames_side_by_side_make_a_difference(mask, mean, change):
    """Whatever lies under a mask of 0."""
    expected = [*mean, *map(logarithm, change)]
    for hidden in (0.0, 1000.0, np.nan):
        frames = np.where(np.array(mask)[:, None] > 0, FRAMES, hidden)
        np.testing.assert_allclose(pooled(frames, mask), expected, rtol=1e-6)


def test_a_clip_of_one_frame_has_no_change():
    expected = [0.5, -3.0, 0.0, 0.0]
    np.testing.assert_allclose(pooled([[0.5, -3.0]], [1]), expected, rtol=1e-6)
    clip = np.array([[0.5, -3.0]], np.float16)
    np.testing.assert_allclose(mean_and_change_of(clip), expected, rtol=1e-6)


def test_numpy_and_jax_agree():
    rng = np.random.default_rng(0)
    clips = [rng.normal(size=(n, 50)).astype(np.float16) for n in (1, 2, 9, 16)]
    x_BxTxD = np.full((4, 16, 50), 100, np.float32)
    for row, clip in zip(x_BxTxD, clips, strict=True):
        row[: len(clip)] = clip
    mask_BxT = np.arange(16) < np.array([[1], [2], [9], [16]])
    by_numpy = np.array([mean_and_change_of(clip) for clip in clips])
    by_jax = mean_and_change(x_BxTxD, mask_BxT.astype(np.float32))
    np.testing.assert_allclose(by_jax, by_numpy, rtol=1e-5, atol=1e-6)
    assert by_numpy.dtype == np.float32


@pytest.mark.parametrize("library", [np, jnp])
def test_large_values_are_drawn_together_and_small_ones_kept(library):
    x = library.asarray([0.0, 1e-5, 0.1, 9.9])
    expected = [0, 1e-4, math.log(2), math.log(100)]
    np.testing.assert_allclose(compressed(x, library), expected, rtol=1e-4)
