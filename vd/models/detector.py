"""The detector: a BiLSTM with attention pooling, a linear path beside it, or that alone.

The recurrent path is projection, bidirectional LSTM, attention pooling, one logit. With
`--linear-path` its logit is added to that of a linear path, which reads each clip's mean
and change (`vd.models.pooling`). Then both paths see standardised features, and the
recurrent one begins as a correction of exactly 0. `--hidden-size 0` leaves the linear path
alone.

The linear path's parameters can be set by hand, here to weights of the mean:

    config = ModelConfig(linear_path=True, hidden_size=0)
    params = {
        "clip_mean": np.zeros(2 * D, np.float32),
        "clip_deviation": np.ones(2 * D, np.float32),
        "linear": {
            "kernel": np.concatenate([weight_Dx1, np.zeros((D, 1), np.float32)]),
            "bias": bias_1,
        },
    }
    logits_B = apply(Detector(config), params, features_BxTxD, mask_BxT)
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, PRNGKeyArray, Shaped

from vd.models.head import Head, Params
from vd.models.lstm import BidirectionalLSTM, dense
from vd.models.pooling import mean_and_change
from vd.models.standardise import clip_statistics


class DropoutMasks(NamedTuple):
    """A factor 0 or 1/(1 − rate) for each unit of each clip, the same at every frame.

    The detector is called with the masks of a batch; it draws those of one clip, without B.
    """

    projected_BxP: Float[Array, "B P"]
    pooled_Bx2H: Float[Array, "B 2H"]


class Detector(Head):
    """The head of `vd`: a recurrent path, a linear path, or their sum."""

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
        if not self.config.linear_path:
            return self._recurrent_path(features_BxTxD, mask_BxT, dropout)
        x_BxTxD = features_BxTxD.astype(jnp.float32)
        logit_B = self._linear_path(x_BxTxD, mask_BxT)
        if self.config.hidden_size:
            x_BxTxD = self._standardised("frame", x_BxTxD)
            logit_B += self._recurrent_path(x_BxTxD, mask_BxT, dropout)
        return logit_B

    def _linear_path(
        self, x_BxTxD: Float[Array, "B T D"], mask_BxT: Shaped[Array, "B T"]
    ) -> Float[Array, " B"]:
        """A linear map of mean and change over time, in float32 throughout."""
        pooled_Bx2D = mean_and_change(x_BxTxD, mask_BxT)
        pooled_Bx2D = self._standardised("clip", pooled_Bx2D)
        zeros, exact = nn.initializers.zeros, jax.lax.Precision.HIGHEST
        linear = nn.Dense(1, name="linear", kernel_init=zeros, precision=exact)
        return linear(pooled_Bx2D)[:, 0]

    def _recurrent_path(
        self,
        features_BxTxD: Shaped[Array, "B T D"],
        mask_BxT: Shaped[Array, "B T"],
        dropout: DropoutMasks | None,
    ) -> Float[Array, " B"]:
        """Projection, bidirectional LSTM, attention pooling, one logit."""
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
        # beside a linear path, a correction that begins at 0
        first = {"kernel_init": nn.initializers.zeros} if config.linear_path else {}
        return dense(1, "logit", **first)(pooled_Bx2H)[:, 0]

    def _standardised(self, name: str, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        """(x − mean) / deviation of the training clips; `fit_statistics` sets both."""
        size, ahead = x.shape[-1], (1,) * (x.ndim - 1)
        mean_D = self.param(f"{name}_mean", nn.initializers.zeros, (size,))
        deviation_D = self.param(f"{name}_deviation", nn.initializers.ones, (size,))
        # vectors without a gradient: AdamW neither moves nor decays them
        mean_D, deviation_D = jax.lax.stop_gradient((mean_D, deviation_D))
        return (x - mean_D.reshape(*ahead, size)) / deviation_D.reshape(*ahead, size)

    def draw_dropout(self, key: PRNGKeyArray) -> DropoutMasks | None:
        """Masks of one clip (Srivastava et al. 2014)."""
        config, keep = self.config, 1.0 - self.config.dropout_rate
        if not config.hidden_size:
            return None
        first, second = jax.random.split(key)
        projected_P = jax.random.bernoulli(first, keep, (config.projection_size,))
        pooled_2H = jax.random.bernoulli(second, keep, (2 * config.hidden_size,))
        return DropoutMasks(projected_P / keep, pooled_2H / keep)

    def fit_statistics(
        self, params: Params, clips: Iterable[Float16[np.ndarray, "F D"]]
    ) -> Params:
        """Initial parameters with the statistics of the training clips."""
        if not self.config.linear_path:
            return params
        statistics = clip_statistics(clips)
        return {name: statistics.get(name, value) for name, value in params.items()}

    def scale_updates(self, updates: Params) -> Params:
        """Updates of a step; a correction learns at its own rate."""
        config = self.config
        if not (config.linear_path and config.hidden_size):
            return updates

        def scale(update: Any) -> Any:
            return jax.tree.map(lambda leaf: config.correction_rate * leaf, update)

        return {
            name: update if name == "linear" else scale(update)
            for name, update in updates.items()
        }
