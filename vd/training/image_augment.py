"""Augmentation of clips of images: frames, crop, mirror; time and gain of a difference."""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from vd.models.adapter import image_side

if TYPE_CHECKING:
    from vd.training.augment import Keys
    from vd.training.step import Batch

PAIRS = 3  # of successive frames, of a clip in a step
_SMALLEST_CROP = 0.8  # of the image's side
_GAIN = 0.3  # largest logarithm of the factor of a difference
_NO_MOTION = 127.0


def augment_rgb(batch: "Batch", keys_B: "Keys") -> "Batch":
    """Draw PAIRS pairs of successive frames of each clip; all have one crop and one mirror."""
    return _augment(batch, keys_B, motion=False)


def augment_motion(batch: "Batch", keys_B: "Keys") -> "Batch":
    """`augment_rgb`, then for each clip the direction of time and the gain of differences."""
    return _augment(batch, keys_B, motion=True)


def _augment(batch: "Batch", keys_B: "Keys", motion: bool) -> "Batch":
    side = image_side(batch.features_BxTxD.shape[-1])

    def draw(key: Array, features_TxD: Array, mask_T: Array) -> Array:
        frames, crop, time, gain = jax.random.split(key, 4)
        # a pair begins in each third of the clip
        place_P = (jnp.arange(PAIRS) + jax.random.uniform(frames, (PAIRS,))) / PAIRS
        last = mask_T.sum() - 1
        first_P = jnp.floor(place_P * last)
        index_K = jnp.stack([first_P, jnp.minimum(first_P + 1, last)], 1).ravel()
        images = features_TxD[index_K.astype(int)].reshape(-1, side, side, 3)
        images = _crop(images.astype(jnp.float32), crop)
        if motion:
            # the difference of two frames in the other order, as 8 bits hold it
            reverse = jax.random.bernoulli(time)
            images = jnp.where(reverse, 254 - jnp.minimum(images, 254), images)
            factor = jnp.exp(jax.random.uniform(gain, (), minval=-_GAIN, maxval=_GAIN))
            images = jnp.clip(_NO_MOTION + factor * (images - _NO_MOTION), 0, 255)
        return images.reshape(2 * PAIRS, -1)

    features_BxKxD = jax.vmap(draw)(keys_B, batch.features_BxTxD, batch.mask_BxT)
    mask_BxK = jnp.ones(features_BxKxD.shape[:2], jnp.float32)
    return batch._replace(features_BxTxD=features_BxKxD, mask_BxT=mask_BxK)


def _crop(
    images_KxHxWx3: Shaped[Array, "K H W 3"], key: Array
) -> Float[Array, "K H W 3"]:
    """A random square of the images at their size, mirrored half of the time."""
    side = images_KxHxWx3.shape[1]
    size, top, left, mirror = jax.random.split(key, 4)
    share = jax.random.uniform(size, (), minval=_SMALLEST_CROP, maxval=1.0)
    rows = _resampling(side, share, jax.random.uniform(top), False)
    columns = _resampling(
        side, share, jax.random.uniform(left), jax.random.bernoulli(mirror)
    )
    images = jnp.einsum("ih,khwc->kiwc", rows, images_KxHxWx3)
    return jnp.einsum("jw,kiwc->kijc", columns, images)


def _resampling(side: int, share: Any, place: Any, mirror: Any) -> Float[Array, "I H"]:
    """The matrix that stretches a share of a line to its whole length, linearly.

    `place` in 0 to 1 says which share; with `mirror` the result is reversed.
    """
    middle_I = (jnp.arange(side) + 0.5) * share + place * (1 - share) * side - 0.5
    middle_I = jnp.clip(middle_I, 0, side - 1)
    middle_I = jnp.where(mirror, middle_I[::-1], middle_I)
    return jnp.maximum(1 - jnp.abs(middle_I[:, None] - jnp.arange(side)[None]), 0)
