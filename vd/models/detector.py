"""The detector: projection, bidirectional LSTM, attention pooling, one logit a clip."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Shaped

from vd.models.head import Head
from vd.models.lstm import BidirectionalLSTM, dense


class DropoutMasks(NamedTuple):
    """A factor 0 or 1/(1 − rate) for each unit of each clip, the same at every frame.

    The detector is called with the masks of a batch; it draws those of one clip, without B.
    """

    projected_BxP: Float[Array, "B P"]
    pooled_Bx2H: Float[Array, "B 2H"]


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
