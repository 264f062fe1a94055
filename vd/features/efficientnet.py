"""EfficientNet-Lite 0, 1 and 2: one architecture table, its parameters, its ONNX graph.

Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks"
(2019). The Lite variants have no squeeze-excite, ReLU6 for swish, and a stem, a head
and first and last stages that scaling leaves alone. `efficientnet_flax` walks the same
table with the same parameters, so that this module stays free of jax.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from vd.errors import VdError
from vd.features.weights import backbone_file, load_tensors

if TYPE_CHECKING:
    import onnx

FEATURES = 1280
MEAN, SCALE = 127.0, 128.0  # the network takes (pixel − MEAN) / SCALE
_STEM_FILTERS = 32
_NORM_EPSILON = 1e-3

Parameters = dict[str, Float32[np.ndarray, "..."]]


class Variant(NamedTuple):
    """Compound scaling of a variant; `resolution` is its side of image in pixels."""

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
    """A convolution with TensorFlow's SAME padding, then ReLU6 where `relu6` says so.

    `torch_names` are the convolution and its BatchNorm in the pretrained state dict.
    """

    name: str
    torch_names: tuple[str, str]
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
    """All convolutions of `variant`, from the stem to the head, in order.

    Global average pooling follows. Raises `VdError` for an unknown variant.
    """
    if variant not in VARIANTS:
        known = ", ".join(VARIANTS)
        raise VdError(f"--backbone {variant}: unknown network; choose one of {known}")
    scaling = VARIANTS[variant]
    stem = Conv("stem", ("_conv_stem", "_bn0"), _STEM_FILTERS, kernel=3, stride=2)
    head = Conv("head", ("_conv_head", "_bn1"), FEATURES)
    blocks = [Block((stem,))]
    inputs = _STEM_FILTERS
    for stage in _STAGES:
        repeats = stage.repeats
        if stage not in (_STAGES[0], _STAGES[-1]):
            repeats = math.ceil(repeats * scaling.depth)
        filters = _scaled_filters(stage.filters, scaling.width)
        for repeat in range(repeats):
            stride = stage.stride if repeat == 0 else 1
            convs = _bottleneck(len(blocks) - 1, stage, stride, inputs, filters)
            blocks.append(Block(convs, residual=stride == 1 and inputs == filters))
            inputs = filters
    return [*blocks, Block((head,))]


def _scaled_filters(filters: int, width: float) -> int:
    """The multiple of 8 nearest to `filters · width`, but at least 90 % of it."""
    scaled = max(8, int(filters * width + 4) // 8 * 8)
    return scaled if scaled >= 0.9 * filters * width else scaled + 8


def _bottleneck(
    index: int, stage: Stage, stride: int, inputs: int, filters: int
) -> tuple[Conv, ...]:
    """Expand (unless the factor is 1), filter each channel alone, project."""
    name, prefix = f"block{index}", f"_blocks.{index}."
    hidden = inputs * stage.expansion
    expand = Conv(f"{name}_expand", (f"{prefix}_expand_conv", f"{prefix}_bn0"), hidden)
    depthwise = Conv(
        f"{name}_depthwise",
        (f"{prefix}_depthwise_conv", f"{prefix}_bn1"),
        hidden,
        kernel=stage.kernel,
        stride=stride,
        groups=hidden,
    )
    project = Conv(
        f"{name}_project",
        (f"{prefix}_project_conv", f"{prefix}_bn2"),
        filters,
        relu6=False,
    )
    convs = (expand, depthwise, project)
    return convs if stage.expansion > 1 else convs[1:]


def folded_parameters(variant: str) -> Parameters:
    """Pretrained kernels and biases of `variant` with BatchNorm folded into them.

    For a convolution named N: "N.kernel", O×I/groups×H×W, and "N.bias", O, float32.
    Raises `VdError` for an unknown variant or weights that are not installed.
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
    """The network as an ONNX graph: "images", uint8 B×H×W×3, to "features", B×1280.

    H and W are the variant's resolution, B is free; features are float32. Raises
    `VdError` as `folded_parameters` does.
    """
    from onnx import TensorProto, helper, numpy_helper

    constants: dict[str, np.ndarray] = {
        **folded_parameters(variant),
        "mean": np.array(MEAN, np.float32),
        "scale": np.array(SCALE, np.float32),
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
    }
    nodes: list[onnx.NodeProto] = []

    def add(operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"{operator}_{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    x = add("Transpose", "images", perm=[0, 3, 1, 2])
    x = add("Cast", x, to=TensorProto.FLOAT)
    x = add("Div", add("Sub", x, "mean"), "scale")
    for block in architecture(variant):
        shortcut = x
        for conv in block.convs:
            x = add(
                "Conv",
                *(x, f"{conv.name}.kernel", f"{conv.name}.bias"),
                auto_pad="SAME_UPPER",
                strides=[conv.stride, conv.stride],
                group=conv.groups,
            )
            x = add("Clip", x, "zero", "six") if conv.relu6 else x
        x = add("Add", x, shortcut) if block.residual else x
    x = add("GlobalAveragePool", x)
    nodes.append(helper.make_node("Flatten", [x], ["features"]))

    initializers = [numpy_helper.from_array(v, k) for k, v in constants.items()]
    return network_model(variant, nodes, initializers)


def network_model(
    variant: str,
    nodes: Sequence["onnx.NodeProto"],
    initializers: Sequence["onnx.TensorProto"],
) -> "onnx.ModelProto":
    """The graph of these nodes, from "images" to "features" as `onnx_model` says."""
    from onnx import TensorProto, helper

    side = VARIANTS[variant].resolution
    images = helper.make_tensor_value_info(
        "images", TensorProto.UINT8, ["B", side, side, 3]
    )
    features = helper.make_tensor_value_info(
        "features", TensorProto.FLOAT, ["B", FEATURES]
    )
    graph = helper.make_graph(nodes, variant, [images], [features], initializers)
    opset = helper.make_opsetid("", 13)
    return helper.make_model(graph, opset_imports=[opset], ir_version=8)
