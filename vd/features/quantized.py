"""EfficientNet-Lite in 8-bit integers: post-training quantisation of the same parameters.

Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference" (2018): weights are symmetric int8 with a scale a filter,
activations uint8 with a scale a tensor, sums int32. The input needs no rounding, since
(pixel − 127) / 128 is an affine map of a byte; what ReLU6 bounds has the range 0 to 6; the
ranges of the other tensors were measured (`experiments/quantize.py`) and are kept beside
this file. Integer sums are exact, so the features are bit-identical in any batch.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from vd.features.efficientnet import (
    MEAN,
    SCALE,
    Conv,
    architecture,
    folded_parameters,
    network_model,
)

if TYPE_CHECKING:
    import onnx

QUANTIZED = {"efficientnet-lite0-int8": "efficientnet-lite0"}  # variant by name
RANGES_FILE = Path(__file__).with_name("efficientnet_ranges.json")
_RELU6 = (0.0, 6.0)


def quantized_model(variant: str, ranges: dict[str, list[float]]) -> "onnx.ModelProto":
    """The network as `onnx_model` has it, in 8-bit integers; "features" are float32.

    `ranges` are the least and greatest value of each tensor that ReLU6 does not bound, by
    the name of its convolution, or of its block and "_sum" after a residual addition.
    """
    from onnx import helper

    graph = _Graph()
    x = graph.add("Transpose", "images", perm=[0, 3, 1, 2])
    x = graph.dequantized(x, 1 / SCALE, int(MEAN))
    parameters = folded_parameters(variant)
    scale = 1 / SCALE
    for block in architecture(variant):
        shortcut = x
        for conv in block.convs:
            kernel = parameters[f"{conv.name}.kernel"]
            bias = parameters[f"{conv.name}.bias"]
            x = graph.convolution(x, scale, conv, kernel, bias)
            low, high = ranges.get(conv.name, _RELU6)
            x, scale = graph.rounded(x, low, high)
        if block.residual:
            low, high = ranges[f"{block.convs[0].name.split('_')[0]}_sum"]
            x, scale = graph.rounded(graph.add("Add", x, shortcut), low, high)
    x = graph.add("GlobalAveragePool", x)
    graph.nodes.append(helper.make_node("Flatten", [x], ["features"]))
    return network_model(variant, graph.nodes, graph.constants)


def known_ranges(variant: str) -> dict[str, list[float]]:
    """The measured ranges of a variant's tensors."""
    made: dict[str, list[float]] = json.loads(RANGES_FILE.read_text())[variant]
    return made


class _Graph:
    """Nodes and constants of a graph in the making."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        from onnx import helper

        output = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, value: np.ndarray) -> str:
        """Append a constant; returns its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def dequantized(self, x: str, scale: Any, zero: Any, axis: int = 1) -> str:
        """(x − zero) · scale of an integer tensor; `zero` is an int, or zeros of x's type."""
        point = np.uint8(zero) if isinstance(zero, int) else zero
        return self.add(
            "DequantizeLinear", x, self.constant(np.array(scale, np.float32)),
            self.constant(np.array(point)), axis=axis,
        )  # fmt: skip

    def rounded(self, x: str, low: float, high: float) -> tuple[str, float]:
        """x rounded to uint8 over [low, high] and back; and the step between two values."""
        low, high = min(low, 0.0), max(high, 0.0)
        step = (high - low) / 255
        zero = round(-low / step)
        integers = self.add(
            "QuantizeLinear", x, self.constant(np.array(step, np.float32)),
            self.constant(np.array(zero, np.uint8)),
        )  # fmt: skip
        return self.dequantized(integers, step, zero), step

    def convolution(
        self,
        x: str,
        scale: float,
        conv: Conv,
        kernel: Float32[np.ndarray, "O I H W"],
        bias: Float32[np.ndarray, " O"],
    ) -> str:
        """A convolution of int8 kernels and int32 biases; ReLU6 is the rounding's bounds."""
        steps_O = np.abs(kernel).max((1, 2, 3)) / 127
        # a filter that is nothing but its bias needs a step all the same
        steps_O = np.maximum(steps_O, np.abs(bias) / (scale * 2**30)).clip(1e-12)
        integers = np.round(kernel / steps_O[:, None, None, None]).astype(np.int8)
        biases_O = np.round(bias / (steps_O * scale)).astype(np.int32)
        weights = self.dequantized(
            self.constant(integers), steps_O, np.zeros(len(steps_O), np.int8), axis=0
        )
        offsets = self.dequantized(
            self.constant(biases_O), steps_O * scale, np.zeros(len(steps_O), np.int32), axis=0
        )  # fmt: skip
        return self.add(
            "Conv", x, weights, offsets, auto_pad="SAME_UPPER",
            strides=[conv.stride, conv.stride], group=conv.groups,
        )  # fmt: skip
