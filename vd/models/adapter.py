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

_READOUT = "readout"


class Adapter(Head):
    """The network on each image, the mean over a clip's frames, a linear read-out.

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
        dropout: Float32[Array, "B 1280"] | None = None,
    ) -> Float[Array, " B"]:
        """Returns float32 logits; frames whose mask is 0 change nothing.

        Without `dropout`, as in scoring, one clip is computed after the other: a batch of
        them takes gigabytes.
        """
        parameters = {
            name: self.param(
                _flax_name(name), lambda _, value=value: jnp.asarray(value)
            )
            for name, value in _pretrained(self.variant).items()
            if not is_fixed(name, self.variant, self.fixed_blocks)
        }
        zeros = nn.initializers.zeros
        kernel_D = self.param(f"{_READOUT}_kernel", zeros, (FEATURES,))
        bias = self.param(f"{_READOUT}_bias", zeros, ())
        side = image_side(features_BxTxD.shape[-1])
        all_of_them = {**_pretrained(self.variant), **parameters}
        network = partial(
            image_features, self.variant, all_of_them, fixed_blocks=self.fixed_blocks
        )

        def pooled(features_TxD: Any, mask_T: Any) -> Array:
            features_TxC = network(features_TxD.reshape(-1, side, side, 3))
            return (mask_T @ features_TxC) / mask_T.sum()

        if dropout is None:
            pooled_BxC = jax.lax.map(
                lambda clip: pooled(*clip), (features_BxTxD, mask_BxT)
            )
        else:
            flat = features_BxTxD.reshape(-1, side, side, 3)
            features_BxTxC = network(flat).reshape(*mask_BxT.shape, FEATURES)
            sum_BxC = jnp.einsum("bt,btc->bc", mask_BxT, features_BxTxC)
            pooled_BxC = dropout * sum_BxC / mask_BxT.sum(1, keepdims=True)
        return pooled_BxC @ kernel_D + bias

    def draw_dropout(self, key: PRNGKeyArray) -> Float32[Array, " 1280"]:
        """A factor 0 or 1/(1 − rate) for each pooled feature of one clip."""
        keep = 1.0 - self.config.dropout_rate
        return jax.random.bernoulli(key, keep, (FEATURES,)) / keep


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


def readout(params: Params) -> tuple[Float32[np.ndarray, " 1280"], float]:
    """Weights of the mean over frames, and the bias."""
    return np.asarray(params[f"{_READOUT}_kernel"]), float(params[f"{_READOUT}_bias"])


def _flax_name(name: str) -> str:
    return name.replace(".", "_")  # a dot separates names in orbax's index


@cache
def _pretrained(variant: str) -> JaxParameters:
    return jax_parameters(folded_parameters(variant))
