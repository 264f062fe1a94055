"""The detector: projection, bidirectional LSTM, attention pooling, one logit a clip.

A user's own head may stand in its place (docs/extending.md). A head draws no random number:
dropout masks come in as arguments, so that a training step depends on (seed, step, index in
the batch) alone and on no number of devices.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from vd.config import ModelConfig
from vd.dense import dense
from vd.lstm import BidirectionalLSTM

Params = Any  # Flax's nested dictionary of float32 arrays


class DropoutMasks(NamedTuple):
    """Factors 0 or 1/(1 − rate): one a unit and clip, the same at every frame.

    The detector is called with those of a batch, and draws those of one clip, without B.
    """

    projected_BxP: Float[Array, "B P"]
    pooled_Bx2H: Float[Array, "B 2H"]


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


class Detector(Head):
    """The head of `vd`: projection, bidirectional LSTM, attention pooling."""

    @nn.compact
    def __call__(
        self,
        features_BxTxD: Shaped[Array, "B T D"],
        mask_BxT: Shaped[Array, "B T"],
        dropout: DropoutMasks | None = None,
    ) -> Float[Array, " B"]:
        """Returns float32 logits; frames whose mask is 0 change nothing.

        Each clip must have at least one frame; `dropout` None means none (scoring).
        """
        config = self.config
        dtype = jnp.bfloat16 if config.mixed_precision else jnp.float32
        x_BxTxP = features_BxTxD.astype(dtype)
        if config.projection_size:
            x_BxTxP = dense(config.projection_size, "projection", dtype)(x_BxTxP)
            if dropout is not None:
                x_BxTxP = x_BxTxP * dropout.projected_BxP[:, None].astype(dtype)
        h_BxTx2H = BidirectionalLSTM(config.hidden_size, dtype, name="lstm")(
            x_BxTxP, mask_BxT
        )
        hidden_BxTxH = dense(config.hidden_size, "attention_hidden", dtype)(
            h_BxTx2H.astype(dtype)
        )
        score_BxTx1 = dense(1, "attention")(jnp.tanh(hidden_BxTxH.astype(jnp.float32)))
        present_BxTx1 = mask_BxT[..., None] > 0
        weight_BxTx1 = jax.nn.softmax(score_BxTx1, axis=1, where=present_BxTx1)
        pooled_Bx2H = jnp.sum(weight_BxTx1 * h_BxTx2H, axis=1)
        if dropout is not None:
            pooled_Bx2H = pooled_Bx2H * dropout.pooled_Bx2H
        return dense(1, "logit")(pooled_Bx2H)[:, 0]

    def draw_dropout(self, key: PRNGKeyArray) -> DropoutMasks:
        """Masks of one clip (Srivastava et al. 2014)."""
        config, keep = self.config, 1.0 - self.config.dropout_rate
        first, second = jax.random.split(key)
        projected_P = jax.random.bernoulli(first, keep, (config.projection_size,))
        pooled_2H = jax.random.bernoulli(second, keep, (2 * config.hidden_size,))
        return DropoutMasks(projected_P / keep, pooled_2H / keep)


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
