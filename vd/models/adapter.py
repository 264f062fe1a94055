"""The backbone's upper blocks as something to train: images in, a logit a clip out."""

from functools import cache, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, PRNGKeyArray, Shaped

from vd.features.efficientnet import FEATURES, architecture, folded_parameters
from vd.features.efficientnet_jax import (
    JaxParameters,
    image_features,
    jax_parameters,
)
from vd.models.head import Head, Params
from vd.models.pooling import in_pairs, mean_and_change

_READOUT = "readout"


class Adapter(Head):
    """The network on each image, a clip's `mean_and_change`, a linear read-out.

    A frame's features are the pixels of one image, 0 to 255. The parameters are the
    convolutions from block `fixed_blocks` on (the stem is block 0), which begin as the
    pretrained ones, and the read-out, which begins at 0; the blocks below stay as they are.
    """

    variant: str = "efficientnet-lite0"
    fixed_blocks: int = 6

    @nn.compact
    def __call__(
        self,
        features_BxTxD: Shaped[Array, "B T D"],
        mask_BxT: Shaped[Array, "B T"],
        dropout: Float32[Array, "B 2560"] | None = None,
    ) -> Float[Array, " B"]:
        """Returns float32 logits; frames whose mask is 0 change nothing.

        With `dropout`, as in training, frames are pairs of successive ones: 0 and 1, 2 and
        3, and so on. Without it, as in scoring, one clip is computed after the other: a
        batch of them takes gigabytes.
        """
        parameters = {
            name: self.param(
                _flax_name(name), lambda _, value=value: jnp.asarray(value)
            )
            for name, value in _pretrained(self.variant).items()
            if not is_fixed(name, self.variant, self.fixed_blocks)
        }
        zeros = nn.initializers.zeros
        kernel_2C = self.param(f"{_READOUT}_kernel", zeros, (2 * FEATURES,))
        bias = self.param(f"{_READOUT}_bias", zeros, ())
        side = image_side(features_BxTxD.shape[-1])
        all_of_them = {**_pretrained(self.variant), **parameters}
        network = partial(
            image_features, self.variant, all_of_them, fixed_blocks=self.fixed_blocks
        )

        def pooled(features_TxD: Any, mask_T: Any) -> Array:
            features_TxC = network(features_TxD.reshape(-1, side, side, 3))
            return mean_and_change(features_TxC[None], mask_T[None])[0]

        if dropout is None:
            pooled_Bx2C = jax.lax.map(
                lambda clip: pooled(*clip), (features_BxTxD, mask_BxT)
            )
        else:
            flat = features_BxTxD.reshape(-1, side, side, 3)
            features_BxTxC = network(flat).reshape(*mask_BxT.shape, FEATURES)
            pooled_Bx2C = dropout * mean_and_change(*in_pairs(features_BxTxC, mask_BxT))
        return pooled_Bx2C @ kernel_2C + bias

    def draw_dropout(self, key: PRNGKeyArray) -> Float32[Array, " 2560"]:
        """A factor 0 or 1/(1 − rate) for each pooled value of one clip."""
        keep = 1.0 - self.config.dropout_rate
        return jax.random.bernoulli(key, keep, (2 * FEATURES,)) / keep


def image_side(values: int) -> int:
    """The side of a square RGB image of so many values."""
    return int(np.sqrt(values // 3))


def is_fixed(name: str, variant: str, fixed_blocks: int) -> bool:
    """Whether a parameter, for example "stem.kernel", is one of the fixed blocks'."""
    return name.split(".")[0] in {
        conv.name
        for block in architecture(variant)[:fixed_blocks]
        for conv in block.convs
    }


def adapted_parameters(head: Adapter, params: Params) -> JaxParameters:
    """All convolutions of the network after training, as `image_features` takes them."""
    pretrained = _pretrained(head.variant)
    return {
        name: np.asarray(params.get(_flax_name(name), value))
        for name, value in pretrained.items()
    }


def readout(params: Params) -> tuple[Float32[np.ndarray, " 2560"], float]:
    """Weights of a clip's `mean_and_change`, and the bias."""
    return np.asarray(params[f"{_READOUT}_kernel"]), float(params[f"{_READOUT}_bias"])


def _flax_name(name: str) -> str:
    return name.replace(".", "_")  # a dot separates names in orbax's index


@cache
def _pretrained(variant: str) -> JaxParameters:
    return jax_parameters(folded_parameters(variant))
