"""`Head`: what a run trains, the detector of `vd` or a user's own (docs/extending.md).

A head draws no random number:
dropout masks come in as arguments, so that a training step depends on (seed, step, index in
the batch) alone and on no number of devices.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from vd.config import ModelConfig

Params = Any  # Flax's nested dictionary of float32 arrays


class Head(nn.Module):
    """What a run trains: features of clips' frames to logits of violence.

    A subclass defines `__call__`, and `draw_dropout` if it drops anything. It may use the
    settings in `config` or none of them.
    """

    config: ModelConfig

    def __call__(
        self, features_BxTxD: Any, mask_BxT: Any, dropout: Any = None
    ) -> Float[Array, " B"]:
        """Returns float32 logits; frames whose mask is 0 must change nothing.

        `dropout` holds what `draw_dropout` drew for each clip, or is None when scoring.
        """
        raise NotImplementedError

    def draw_dropout(self, key: PRNGKeyArray) -> Any:
        """Dropout masks of one clip, any tree of arrays, from the key of this step's clip."""
        return None


def init_params(head: Head, dim: int, key: PRNGKeyArray) -> Params:
    """Initial float32 parameters for features of `dim` values a frame."""
    frames = head.config.clip_frames
    features_1xTxD = jnp.zeros((1, frames, dim), jnp.float32)
    mask_1xT = jnp.ones((1, frames), jnp.float32)
    # compiled: op by op it takes seconds
    return jax.jit(head.init)(key, features_1xTxD, mask_1xT)["params"]


def apply(
    head: Head,
    params: Params,
    features_BxTxD: Any,
    mask_BxT: Any,
    dropout: Any = None,
) -> Float[Array, " B"]:
    """The head's float32 logits under `params`; arrays as `Head.__call__` has them."""
    logits_B: Array = head.apply({"params": params}, features_BxTxD, mask_BxT, dropout)  # type: ignore[assignment]  # Linen's apply may also return mutated variables
    return logits_B


def draw_dropout(head: Head, keys_B: Shaped[PRNGKeyArray, " B"]) -> Any:
    """Dropout masks of a batch from one key a clip."""
    return jax.vmap(head.draw_dropout)(keys_B)
