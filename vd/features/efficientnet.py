"""EfficientNet-Lite 0, 1 and 2: one architecture table → ONNX graph, 8-bit graph.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"
(2019); the Lite variants have no squeeze-excite and ReLU6 instead of swish.
`efficientnet_flax` builds the Flax module from the same table; this module imports no jax.

The 8-bit graph follows Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference" (2018): int8 weights with a scale per filter,
uint8 activations with a scale per tensor. Tensors after ReLU6 have the range 0 to 6; the
ranges of the others were measured (`experiments/quantize.py`). Integer sums are exact, so
its features are bit-identical in any batch.
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from vd.features.weights import backbone_file, load_tensors

if TYPE_CHECKING:
    import onnx

FEATURES = 1280
MEAN, SCALE = 127.0, 128.0  # the network takes (pixel − MEAN) / SCALE
QUANTIZED = {"efficientnet-lite0-int8": "efficientnet-lite0"}  # variant by name
RANGES_FILE = Path(__file__).with_name("efficientnet_ranges.json")
_STEM_FILTERS = 32
_NORM_EPSILON = 1e-3
_RELU6 = (0.0, 6.0)

Parameters = dict[str, Float32[np.ndarray, "..."]]


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


def onnx_model(variant: str) -> "onnx.ModelProto":
    """The network as an ONNX graph: "images", uint8 B×H×W×3, to "features", B×1280."""
    from onnx import TensorProto

    graph, parameters = _Graph(), folded_parameters(variant)
    mean, scale, zero, six = (
        graph.constant(np.float32(value)) for value in (MEAN, SCALE, *_RELU6)
    )
    x = graph.add("Transpose", "images", perm=[0, 3, 1, 2])
    x = graph.add("Cast", x, to=TensorProto.FLOAT)
    x = graph.add("Div", graph.add("Sub", x, mean), scale)
    for block in architecture(variant):
        shortcut = x
        for conv in block.convs:
            kernel = graph.constant(parameters[f"{conv.name}.kernel"])
            bias = graph.constant(parameters[f"{conv.name}.bias"])
            x = graph.convolution(x, conv, kernel, bias)
            x = graph.add("Clip", x, zero, six) if conv.relu6 else x
        x = graph.add("Add", x, shortcut) if block.residual else x
    return graph.model(variant, x)


def quantized_model(variant: str) -> "onnx.ModelProto":
    """The network like `onnx_model`, in 8-bit integers."""
    graph, parameters = _Graph(), folded_parameters(variant)
    ranges = known_ranges(variant)
    x = graph.add("Transpose", "images", perm=[0, 3, 1, 2])
    scale = 1 / SCALE
    x = graph.dequantized(x, scale, np.uint8(MEAN))  # the normalisation, exactly
    for block in architecture(variant):
        shortcut = x
        for conv in block.convs:
            kernel = parameters[f"{conv.name}.kernel"]
            bias = parameters[f"{conv.name}.bias"]
            x = _quantized_convolution(graph, x, scale, conv, kernel, bias)
            x, scale = graph.rounded(x, *ranges.get(conv.name, _RELU6))
        if block.residual:
            low, high = ranges[f"{block.convs[0].name.split('_')[0]}_sum"]
            x, scale = graph.rounded(graph.add("Add", x, shortcut), low, high)
    return graph.model(variant, x)


def known_ranges(variant: str) -> dict[str, list[float]]:
    """The smallest and largest measured value of each of a variant's tensors without ReLU6.

    By the name of its convolution, or of its block and "_sum" after a residual addition.
    """
    return json.loads(RANGES_FILE.read_text())[variant]


def _quantized_convolution(
    graph: "_Graph",
    x: str,
    scale: float,
    conv: Conv,
    kernel: Float32[np.ndarray, "O I H W"],
    bias: Float32[np.ndarray, " O"],
) -> str:
    """A convolution with int8 kernels and int32 biases; `rounded` then bounds it."""
    steps_O = np.abs(kernel).max((1, 2, 3)) / 127
    # a filter of zeros with a bias needs a step too
    steps_O = np.maximum(steps_O, np.abs(bias) / (scale * 2**30)).clip(1e-12)
    integers = np.round(kernel / steps_O[:, None, None, None]).astype(np.int8)
    biases_O = np.round(bias / (steps_O * scale)).astype(np.int32)
    zeros_O = np.zeros(len(bias), np.int32)
    weights = graph.dequantized(
        graph.constant(integers), steps_O, zeros_O.astype(np.int8), axis=0
    )
    offsets = graph.dequantized(
        graph.constant(biases_O), steps_O * scale, zeros_O, axis=0
    )
    return graph.convolution(x, conv, weights, offsets)


class _Graph:
    """Nodes and constants of an ONNX graph under construction."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        from onnx import helper

        output = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        """Append a constant; returns its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def convolution(self, x: str, conv: Conv, kernel: str, bias: str) -> str:
        """Append a convolution with TensorFlow's SAME padding."""
        padded = {"auto_pad": "SAME_UPPER", "strides": [conv.stride, conv.stride]}
        return self.add("Conv", x, kernel, bias, group=conv.groups, **padded)

    def dequantized(self, x: str, scale: Any, zero: Any, axis: int = 1) -> str:
        """(x − zero) · scale of an integer tensor; `zero` has its type."""
        scales = self.constant(np.asarray(scale, np.float32))
        return self.add("DequantizeLinear", x, scales, self.constant(zero), axis=axis)

    def rounded(self, x: str, low: float, high: float) -> tuple[str, float]:
        """x rounded to uint8 over [low, high] and back; and the step between two values."""
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / 255
        zero = np.uint8(round(-low / step))
        scale, point = self.constant(np.float32(step)), self.constant(zero)
        integers = self.add("QuantizeLinear", x, scale, point)
        return self.dequantized(integers, step, zero), step

    def model(self, variant: str, x: str) -> "onnx.ModelProto":
        """The model from "images" to "features", the spatial mean of `x`."""
        from onnx import TensorProto, helper

        x = self.add("GlobalAveragePool", x)
        self.nodes.append(helper.make_node("Flatten", [x], ["features"]))
        side = VARIANTS[variant].resolution
        tensor = helper.make_tensor_value_info
        images = tensor("images", TensorProto.UINT8, ["B", side, side, 3])
        features = tensor("features", TensorProto.FLOAT, ["B", FEATURES])
        graph = helper.make_graph(
            self.nodes, variant, [images], [features], self.constants
        )
        opset = helper.make_opsetid("", 13)
        return helper.make_model(graph, opset_imports=[opset], ir_version=8)
