"""EfficientNet-Lite as a Flax module, for accelerators; table and weights are shared."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, UInt8

from vd.features.efficientnet import MEAN, SCALE, Parameters, architecture


class EfficientNetLite(nn.Module):
    """Backbone without classifier; `variant` is for example "efficientnet-lite0".

    Products are in full float32 (an accelerator's default would be TF32 or bfloat16),
    for the features to agree with the ONNX graph within 1e-4.
    """

    variant: str

    @nn.compact
    def __call__(
        self, images_BxHxWx3: UInt8[Array, "B H W 3"]
    ) -> Float32[Array, "B 1280"]:
        """Features after the head's ReLU6 and global average pooling."""
        x = (images_BxHxWx3.astype(jnp.float32) - MEAN) / SCALE
        for block in architecture(self.variant):
            shortcut = x
            for conv in block.convs:
                x = nn.Conv(
                    conv.filters,
                    (conv.kernel, conv.kernel),
                    strides=conv.stride,
                    padding="SAME",
                    feature_group_count=conv.groups,
                    precision=jax.lax.Precision.HIGHEST,
                    name=conv.name,
                )(x)
                x = nn.relu6(x) if conv.relu6 else x
            x = x + shortcut if block.residual else x
        return x.mean(axis=(1, 2))


def flax_parameters(parameters: Parameters) -> dict[str, Any]:
    """`folded_parameters` as the variables of `EfficientNetLite`, kernels HWIO."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    for key, value in parameters.items():
        module, kind = key.split(".")
        value = value.transpose(2, 3, 1, 0) if kind == "kernel" else value
        modules.setdefault(module, {})[kind] = value
    return {"params": modules}
