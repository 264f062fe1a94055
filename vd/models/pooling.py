"""What a linear map reads of a clip: each feature's mean over the frames, and its change.

The change is the mean absolute difference between successive frames. Violence shows in how
features change: on 240 clips a linear map of these two was better than one of mean and
deviation (docs/results.md, "Mean and change").
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Float32, Shaped

SCALE = 0.1  # values below it stay in proportion, those far above it become logarithms


def mean_and_change(
    x_BxTxD: Float[Array, "B T D"], mask_BxT: Shaped[Array, "B T"]
) -> Float[Array, "B 2D"]:
    """Each clip's mean, and its `compressed` change, over its frames whose mask is not 0.

    Only frames that stand side by side make a difference; a clip without such has change 0.
    """
    present_BxTx1 = mask_BxT[..., None] > 0
    mean_BxD = jnp.mean(x_BxTxD, axis=1, where=present_BxTx1)
    pairs_BxTx1 = present_BxTx1[:, 1:] & present_BxTx1[:, :-1]
    difference_BxTxD = jnp.where(pairs_BxTx1, jnp.diff(x_BxTxD, axis=1), 0.0)
    count_Bx1 = jnp.maximum(pairs_BxTx1.sum(axis=1), 1)
    change_BxD = jnp.abs(difference_BxTxD).sum(axis=1) / count_Bx1
    return jnp.concatenate([mean_BxD, compressed(change_BxD)], axis=-1)


def mean_and_change_of(
    features_FxD: Float16[np.ndarray, "F D"],
) -> Float32[np.ndarray, " P"]:
    """The same of all frames of one clip, by NumPy; P = 2 D."""
    x_FxD = features_FxD.astype(np.float32)
    change_D = np.zeros_like(x_FxD[0])
    if len(x_FxD) > 1:
        change_D = np.abs(np.diff(x_FxD, axis=0)).mean(axis=0)
    return np.concatenate([x_FxD.mean(axis=0), compressed(change_D, np)])


def compressed(change: Any, library: Any = jnp) -> Any:
    """log(1 + change / 0.1): so that one camera that shakes does not outweigh all others.

    `library`: jax.numpy, or NumPy for its arrays.
    """
    return library.log1p(change / SCALE)
