"""Augmentation of features inside the step: frame dropping, noise, mixup.

Each is a function of (seed, step, index in the global batch) through a key for each clip,
as dropout is. So neither a resumed run nor another number of devices changes a draw.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from vd.config import TrainingConfig

if TYPE_CHECKING:
    from vd.training.step import Batch

Keys = Shaped[Array, " B"]
_LARGEST = 2**32 - 1  # purposes count down from it; no step has such a number


def augment(
    batch: "Batch",
    config: TrainingConfig,
    step: Int[Array, ""],
    axis: str | None,
    own: Callable[..., Any] | None = None,
) -> "Batch":
    """The batch after each augmentation that is on, and a user's own; `axis`: of devices."""
    for purpose, (setting, function) in enumerate(AUGMENTATIONS.items()):
        if config.augmentation and (strength := getattr(config, setting)):
            keys_B = clip_keys(config.seed, step, batch.index_B, _LARGEST - purpose)
            batch = function(batch, keys_B, strength, axis)
    if config.augmentation and own is not None:
        keys_B = clip_keys(config.seed, step, batch.index_B, _LARGEST - 1000)
        batch = own(batch, keys_B)
    return batch


def clip_keys(
    seed: Any, step: Int[Array, ""], index_B: Any, purpose: int | None = None
) -> Keys:
    """A key for each clip, from (seed, purpose, step, index in the global batch)."""
    key = jax.random.key(seed, impl="threefry2x32")
    if purpose is not None:
        key = jax.random.fold_in(key, purpose)
    key = jax.random.fold_in(key, step)
    return jax.vmap(lambda index: jax.random.fold_in(key, index))(index_B)


def drop_frames(batch: "Batch", keys_B: Keys, rate: float, axis: str | None) -> "Batch":
    """Mask a share `rate` of each clip's frames; one frame at least stays."""

    def draw(key: Array, mask_T: Array) -> Array:
        draw_T = jnp.where(mask_T > 0, jax.random.uniform(key, mask_T.shape), -1.0)
        return mask_T * ((draw_T >= rate) | (draw_T == draw_T.max()))

    return batch._replace(mask_BxT=jax.vmap(draw)(keys_B, batch.mask_BxT))


def add_noise(batch: "Batch", keys_B: Keys, share: float, axis: str | None) -> "Batch":
    """Add Gaussian noise of `share` of the deviation of each clip's features."""

    def draw(key: Array, features_TxD: Array, mask_T: Array) -> Array:
        features_TxD = features_TxD.astype(jnp.float32)
        present_Tx1 = mask_T[:, None] > 0
        deviation = jnp.std(features_TxD, where=present_Tx1)
        noise_TxD = jax.random.normal(key, features_TxD.shape)
        return features_TxD + share * deviation * noise_TxD

    features_BxTxD = jax.vmap(draw)(keys_B, batch.features_BxTxD, batch.mask_BxT)
    return batch._replace(features_BxTxD=features_BxTxD)


def mix_clips(batch: "Batch", keys_B: Keys, alpha: float, axis: str | None) -> "Batch":
    """Mixup (Zhang et al. 2018): each clip with another of the global batch, labels too.

    The share of the clip itself is drawn from Beta(alpha, alpha). Frames that only one of
    two clips has are of that one alone.
    """
    clips = batch.features_BxTxD, batch.mask_BxT, batch.labels_B
    if axis is not None:  # the partner may lie on another device
        clips = jax.lax.all_gather(clips, axis, tiled=True)
    count = clips[2].shape[0]

    def draw(key: Array, index: Array) -> tuple[Array, Array]:
        first, second = jax.random.split(key)
        other = (index + jax.random.randint(first, (), 1, max(count, 2))) % count
        return other, jax.random.beta(second, alpha, alpha)

    other_B, share_B = jax.vmap(draw)(keys_B, batch.index_B)
    features_BxTxD, mask_BxT, labels_B = (array[other_B] for array in clips)
    own_BxT = share_B[:, None] * batch.mask_BxT
    others_BxT = (1 - share_B)[:, None] * mask_BxT
    weight_BxT = own_BxT / jnp.maximum(
        own_BxT + others_BxT, jnp.finfo(jnp.float32).tiny
    )
    weight_BxTx1 = weight_BxT[..., None]
    return batch._replace(
        features_BxTxD=weight_BxTx1 * batch.features_BxTxD.astype(jnp.float32)
        + (1 - weight_BxTx1) * features_BxTxD.astype(jnp.float32),
        mask_BxT=jnp.maximum(batch.mask_BxT, mask_BxT),
        labels_B=share_B * batch.labels_B + (1 - share_B) * labels_B,
    )


# by setting, in the order in which they are applied; 0 turns one off
AUGMENTATIONS: dict[str, Callable[["Batch", Keys, float, str | None], "Batch"]] = {
    "frame_dropping_rate": drop_frames,
    "feature_noise": add_noise,
    "mixup_alpha": mix_clips,
}
