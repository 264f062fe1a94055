"""EfficientNet-Lite in JAX, a function of parameters and images: features, and gradients.

XLA's grouped convolution is ten times too slow on a CPU. There a depthwise convolution is a
sum of shifted products with a gradient of its own (docs/performance.md).
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Shaped

from vd.features.efficientnet import MEAN, SCALE, Block, Conv, Parameters, architecture

JaxParameters = dict[str, Any]  # "N.kernel", HWIO, and "N.bias" of each convolution N


def jax_parameters(parameters: Parameters) -> JaxParameters:
    """`folded_parameters` with kernels as JAX takes them, HWIO."""
    return {
        name: np.ascontiguousarray(value.transpose(2, 3, 1, 0))
        if value.ndim == 4
        else value
        for name, value in parameters.items()
    }


def onnx_parameters(parameters: JaxParameters) -> Parameters:
    """The inverse of `jax_parameters`: kernels OIHW."""
    return {
        name: np.ascontiguousarray(np.asarray(value).transpose(3, 2, 0, 1))
        if np.ndim(value) == 4
        else np.asarray(value)
        for name, value in parameters.items()
    }


def image_features(
    variant: str,
    parameters: JaxParameters,
    images_BxHxWx3: Shaped[Array, "B H W 3"],
    fixed_blocks: int = 0,
    precision: Any = jax.lax.Precision.HIGHEST,
) -> Float32[Array, "B 1280"]:
    """Features of images of 0 to 255; the first `fixed_blocks` blocks get no gradient.

    The stem counts as a block. Products are in full float32 unless `precision` says
    otherwise (an accelerator's default would be TF32 or bfloat16), for the features to
    agree with the ONNX graph within 1e-4.
    """
    blocks = architecture(variant)
    x = (images_BxHxWx3.astype(jnp.float32) - MEAN) / SCALE
    x = _run(blocks[:fixed_blocks], x, parameters, precision)
    if fixed_blocks:
        x = jax.lax.stop_gradient(x)
    return _run(blocks[fixed_blocks:], x, parameters, precision).mean(axis=(1, 2))


def _run(blocks: list[Block], x: Any, parameters: JaxParameters, precision: Any) -> Any:
    """Blocks in a row."""
    for block in blocks:
        shortcut = x
        for conv in block.convs:
            x = _convolve(x, conv, parameters, precision)
        x = x + shortcut if block.residual else x
    return x


def _convolve(x: Any, conv: Conv, parameters: JaxParameters, precision: Any) -> Any:
    """A convolution with TensorFlow's SAME padding, its bias and its ReLU6."""
    kernel = parameters[f"{conv.name}.kernel"]
    if conv.kernel == 1:
        x = jnp.tensordot(x, kernel[0, 0], 1, precision=precision)
    elif conv.groups > 1 and jax.default_backend() == "cpu":
        x = depthwise(x, kernel[:, :, 0], conv.stride)
    else:
        x = jax.lax.conv_general_dilated(
            x, kernel, (conv.stride, conv.stride), "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=conv.groups, precision=precision,
        )  # fmt: skip
    x = x + _over_channels(parameters[f"{conv.name}.bias"], x)
    return jax.nn.relu6(x) if conv.relu6 else x


def _over_channels(values_C: Any, x: Any) -> Any:
    """A value a channel, with the rank of `x`."""
    return jnp.reshape(values_C, (1,) * (x.ndim - 1) + (-1,))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def depthwise(
    x_BxHxWxC: Float32[Array, "B H W C"],
    kernel_KxKxC: Float32[Array, "K K C"],
    stride: int,
) -> Float32[Array, "B I J C"]:
    """A filter of its own for each channel of square images, with SAME padding."""
    size, kernel = x_BxHxWxC.shape[1], kernel_KxKxC.shape[0]
    low, high = same_padding(size, kernel, stride)
    padded = jnp.pad(x_BxHxWxC, ((0, 0), (low, high), (low, high), (0, 0)))
    return _shifted_sum(padded, kernel_KxKxC, stride, -(-size // stride))


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: the odd pixel at the end."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


def _shifted_sum(padded: Any, kernel_KxKxC: Any, stride: int, out: int) -> Any:
    """Sum over the kernel's places of the shifted image times the place's weights."""
    total = None
    for i in range(kernel_KxKxC.shape[0]):
        for j in range(kernel_KxKxC.shape[1]):
            image = _shifted(padded, i, j, stride, out)
            term = image * _over_channels(kernel_KxKxC[i, j], image)
            total = term if total is None else total + term
    return total


def _shifted(padded: Any, i: int, j: int, stride: int, out: int) -> Any:
    """The pixels of each image that the kernel's place (i, j) meets."""
    end = stride * (out - 1) + 1
    return padded[..., i : i + end : stride, j : j + end : stride, :]


def _depthwise_forward(x: Any, kernel: Any, stride: int) -> tuple[Any, Any]:
    return depthwise(x, kernel, stride), (x, kernel)


def _depthwise_backward(stride: int, kept: Any, grad: Any) -> tuple[Any, Any]:
    """The input's gradient by the flipped kernel; the kernel's image by image."""
    x, kernel = kept
    size, side, out = x.shape[1], kernel.shape[0], grad.shape[1]
    low, high = same_padding(size, side, stride)
    # every stride-th pixel of the gradient, with room for the flipped kernel
    spread = stride * (out - 1) + 1
    before = side - 1 - low
    after = size + side - 1 - before - spread
    edges = (before, after, stride - 1)
    dilated = jax.lax.pad(grad, jnp.float32(0), ((0, 0, 0), edges, edges, (0, 0, 0)))
    grad_x = _shifted_sum(dilated, kernel[::-1, ::-1], 1, size)

    def add_image(total: Any, image: Any) -> tuple[Any, None]:
        x, grad = image
        padded = jnp.pad(x, ((low, high), (low, high), (0, 0)))
        rows = [
            jnp.sum(_shifted(padded, i, j, stride, out) * grad, axis=(0, 1))
            for i in range(side)
            for j in range(side)
        ]
        return total + jnp.stack(rows).reshape(total.shape), None

    grad_kernel, _ = jax.lax.scan(add_image, jnp.zeros_like(kernel), (x, grad))
    return grad_x, grad_kernel


depthwise.defvjp(_depthwise_forward, _depthwise_backward)
