"""EfficientNet-Lite 0, 1 and 2: one architecture table, and the pretrained parameters.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"
(2019); the Lite variants have no squeeze-excite and ReLU6 instead of swish.
`efficientnet_onnx` and `efficientnet_jax` build the network from the table; this module
imports neither onnx nor jax.
"""

import json
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from vd.features.weights import backbone_file, load_tensors

FEATURES = 1280
MEAN, SCALE = 127.0, 128.0  # the network takes (pixel − MEAN) / SCALE
QUANTIZED = {"efficientnet-lite0-int8": "efficientnet-lite0"}  # variant by name
RANGES_FILE = Path(__file__).with_name("efficientnet_ranges.json")
_STEM_FILTERS = 32
_NORM_EPSILON = 1e-3

Parameters = dict[str, Float32[np.ndarray, "..."]]
Ranges = dict[str, list[float]]  # least and greatest value by name of a tensor


class Variant(NamedTuple):
    """Compound scaling of a variant; `resolution` is the side of its images in pixels."""

    width: float
    depth: float
    resolution: int


class Stage(NamedTuple):
    """Inverted bottlenecks (MBConv) in a row; only the first has the stride."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    filters: int


VARIANTS = {
    "efficientnet-lite0": Variant(width=1.0, depth=1.0, resolution=224),
    "efficientnet-lite1": Variant(width=1.0, depth=1.1, resolution=240),
    "efficientnet-lite2": Variant(width=1.1, depth=1.2, resolution=260),
}

_STAGES = (
    Stage(repeats=1, kernel=3, stride=1, expansion=1, filters=16),
    Stage(repeats=2, kernel=3, stride=2, expansion=6, filters=24),
    Stage(repeats=2, kernel=5, stride=2, expansion=6, filters=40),
    Stage(repeats=3, kernel=3, stride=2, expansion=6, filters=80),
    Stage(repeats=3, kernel=5, stride=1, expansion=6, filters=112),
    Stage(repeats=4, kernel=5, stride=2, expansion=6, filters=192),
    Stage(repeats=1, kernel=3, stride=1, expansion=6, filters=320),
)


class Conv(NamedTuple):
    """A convolution with TensorFlow's SAME padding, then ReLU6 if `relu6`."""

    name: str
    torch_names: tuple[str, str]  # in the state dict: the convolution, its BatchNorm
    filters: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    relu6: bool = True


class Block(NamedTuple):
    """Convolutions in a row, with the block's input added to the last when residual."""

    convs: tuple[Conv, ...]
    residual: bool = False

    @property
    def sum_name(self) -> str:
        """Name of the tensor after the addition."""
        return f"{self.convs[0].name.split('_')[0]}_sum"


def architecture(variant: str) -> list[Block]:
    """All convolutions of `variant` in order; global average pooling follows."""
    scaling = VARIANTS[variant]
    blocks = [Block((Conv("stem", ("_conv_stem", "_bn0"), _STEM_FILTERS, 3, 2),))]
    inputs = _STEM_FILTERS
    for stage in _STAGES:
        repeats = stage.repeats
        if stage not in (_STAGES[0], _STAGES[-1]):
            repeats = math.ceil(repeats * scaling.depth)
        filters = int(stage.filters * scaling.width + 4) // 8 * 8  # nearest multiple
        for repeat in range(repeats):
            stride = stage.stride if repeat == 0 else 1
            convs = _bottleneck(len(blocks) - 1, stage, stride, inputs, filters)
            blocks.append(Block(convs, residual=stride == 1 and inputs == filters))
            inputs = filters
    return [*blocks, Block((Conv("head", ("_conv_head", "_bn1"), FEATURES),))]


def _bottleneck(
    index: int, stage: Stage, stride: int, inputs: int, filters: int
) -> tuple[Conv, ...]:
    """Expand (unless the factor is 1), filter each channel, project."""
    name, torch = f"block{index}", f"_blocks.{index}."
    hidden = inputs * stage.expansion
    expand = Conv(f"{name}_expand", (f"{torch}_expand_conv", f"{torch}_bn0"), hidden)
    names = f"{torch}_depthwise_conv", f"{torch}_bn1"
    depthwise = Conv(
        f"{name}_depthwise", names, hidden, stage.kernel, stride, groups=hidden
    )
    names = f"{torch}_project_conv", f"{torch}_bn2"
    project = Conv(f"{name}_project", names, filters, relu6=False)
    convs = (expand, depthwise, project)
    return convs if stage.expansion > 1 else convs[1:]


def parameter_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters of `variant`, named as `folded_parameters` names them."""
    shapes: dict[str, tuple[int, ...]] = {}
    inputs = 3
    for conv in (conv for block in architecture(variant) for conv in block.convs):
        kernel = conv.filters, inputs // conv.groups, conv.kernel, conv.kernel
        shapes |= {f"{conv.name}.kernel": kernel, f"{conv.name}.bias": (conv.filters,)}
        inputs = conv.filters
    return shapes


def unbounded_tensors(variant: str) -> list[str]:
    """Names of the tensors without ReLU6, in order, as `Ranges` has them.

    That of the convolution, or of the block and "_sum" after a residual addition.
    """
    names = []
    for block in architecture(variant):
        names += [conv.name for conv in block.convs if not conv.relu6]
        names += [block.sum_name] if block.residual else []
    return names


def folded_parameters(variant: str) -> Parameters:
    """Pretrained kernels and biases of `variant` with BatchNorm folded into them.

    For a convolution named N: "N.kernel", O×I/groups×H×W, and "N.bias", O, float32.
    """
    blocks = architecture(variant)
    tensors = load_tensors(backbone_file(variant))
    parameters = {}
    for conv in (conv for block in blocks for conv in block.convs):
        weight, norm = conv.torch_names
        variance = tensors[f"{norm}.running_var"].astype(np.float64)
        scale = tensors[f"{norm}.weight"] / np.sqrt(variance + _NORM_EPSILON)
        kernel = tensors[f"{weight}.weight"] * scale[:, None, None, None]
        bias = tensors[f"{norm}.bias"] - tensors[f"{norm}.running_mean"] * scale
        parameters[f"{conv.name}.kernel"] = kernel.astype(np.float32, order="C")
        parameters[f"{conv.name}.bias"] = bias.astype(np.float32)
    return parameters


def known_ranges(variant: str) -> Ranges | None:
    """Ranges of the pretrained network's unbounded tensors; None: not measured."""
    return json.loads(RANGES_FILE.read_text()).get(variant)
