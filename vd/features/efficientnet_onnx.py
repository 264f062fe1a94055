"""A network of the EfficientNet-Lite family as an ONNX graph, in floats or in 8 bits.

The 8-bit graph follows Jacob et al., "Quantization and Training of Neural Networks for
Efficient Integer-Arithmetic-Only Inference" (2018): int8 weights with a scale per filter,
uint8 activations with a scale per tensor. Tensors after ReLU6 have the range 0 to 6; the
ranges of the others are measured on images. Integer sums are exact, so its features are
bit-identical in any batch.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32, UInt8

from vd.features.efficientnet import (
    FEATURES,
    MEAN,
    SCALE,
    Conv,
    Ranges,
    architecture,
)
from vd.features.network import Network
from vd.features.onnx_graph import IR_VERSION, OPSET, OnnxGraph

if TYPE_CHECKING:
    import onnx

_RELU6 = (0.0, 6.0)
_TAIL = 1e-4  # share of a tensor's values that its range leaves out at either end


def network_model(network: Network) -> "onnx.ModelProto":
    """The network as it computes: `quantized_model` or `onnx_model`."""
    return quantized_model(network) if network.quantized else onnx_model(network)


def onnx_model(network: Network) -> "onnx.ModelProto":
    """The network as an ONNX graph: "images", uint8 B×H×W×3, to "features", B×1280."""
    return _float_model(network)[0]


def _float_model(network: Network) -> tuple["onnx.ModelProto", dict[str, str]]:
    """The graph in floats, and its names of the `unbounded_tensors`."""
    from onnx import TensorProto

    graph, parameters = _Graph(), network.parameters
    unbounded = {}
    mean, scale, zero, six = (
        graph.constant(np.float32(value)) for value in (MEAN, SCALE, *_RELU6)
    )
    x = graph.add("Transpose", "images", perm=[0, 3, 1, 2])
    x = graph.add("Cast", x, to=TensorProto.FLOAT)
    x = graph.add("Div", graph.add("Sub", x, mean), scale)
    for block in architecture(network.variant):
        shortcut = x
        for conv in block.convs:
            kernel = graph.constant(parameters[f"{conv.name}.kernel"])
            bias = graph.constant(parameters[f"{conv.name}.bias"])
            x = graph.convolution(x, conv, kernel, bias)
            if conv.relu6:
                x = graph.add("Clip", x, zero, six)
            else:
                unbounded[conv.name] = x
        if block.residual:
            x = unbounded[block.sum_name] = graph.add("Add", x, shortcut)
    return graph.model(network, x), unbounded


def quantized_model(network: Network) -> "onnx.ModelProto":
    """The network like `onnx_model`, in 8-bit integers over its own ranges.

    Raises `ValueError` when it has none.
    """
    graph, parameters, ranges = _Graph(), network.parameters, network.ranges
    if ranges is None:
        raise ValueError("no ranges; measure them with measured_ranges")
    x = graph.add("Transpose", "images", perm=[0, 3, 1, 2])
    scale = 1 / SCALE
    x = graph.dequantized(x, scale, np.uint8(MEAN))  # the normalisation, exactly
    for block in architecture(network.variant):
        shortcut = x
        for conv in block.convs:
            kernel = parameters[f"{conv.name}.kernel"]
            bias = parameters[f"{conv.name}.bias"]
            x = _quantized_convolution(graph, x, scale, conv, kernel, bias)
            x, scale = graph.rounded(x, *ranges.get(conv.name, _RELU6))
        if block.residual:
            low, high = ranges[block.sum_name]
            x, scale = graph.rounded(graph.add("Add", x, shortcut), low, high)
    return graph.model(network, x)


def measured_ranges(
    network: Network, images_NxHxWx3: UInt8[np.ndarray, "N H W 3"]
) -> Ranges:
    """Ranges of the network's unbounded tensors over images of its size.

    Of a tensor's values over all images, one in ten thousand at either end is left out.
    """
    import onnxruntime
    from onnx import TensorProto, helper

    model, unbounded = _float_model(network)
    for tensor in unbounded.values():
        model.graph.output.append(
            helper.make_tensor_value_info(tensor, TensorProto.FLOAT, None)
        )
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    tails = {name: _Tails(len(images_NxHxWx3)) for name in unbounded}
    for image_HxWx3 in images_NxHxWx3:
        values = session.run(list(unbounded.values()), {"images": image_HxWx3[None]})
        for name, value in zip(unbounded, values, strict=True):
            tails[name].add(value)
    return {name: tail.range() for name, tail in tails.items()}


class _Tails:
    """The `_TAIL` percentiles of as many arrays of one size, from their extremes alone."""

    def __init__(self, arrays: int) -> None:
        self._arrays, self._position = arrays, 0.0
        self._ends = np.zeros(0, np.float32)  # the least, then the greatest, in order

    def add(self, values: Float32[np.ndarray, "..."]) -> None:
        """Keep what may still be beside a percentile."""
        self._position = _TAIL * (values.size * self._arrays - 1)
        keep = int(self._position) + 2
        ends = np.sort(np.concatenate([self._ends, values.ravel()]))
        if len(ends) > 2 * keep:
            ends = np.concatenate([ends[:keep], ends[-keep:]])
        self._ends = ends

    def range(self) -> list[float]:
        """Both percentiles, between two values by proportion."""
        places = np.arange(len(self._ends))
        ends = self._ends, self._ends[::-1]
        return [round(float(np.interp(self._position, places, e)), 4) for e in ends]


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


class _Graph(OnnxGraph):
    """The graph of a network, in floats or in 8 bits."""

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

    def model(self, network: Network, x: str) -> "onnx.ModelProto":
        """The model from "images" to "features", the spatial mean of `x`."""
        from onnx import TensorProto, helper

        x = self.add("GlobalAveragePool", x)
        self.nodes.append(helper.make_node("Flatten", [x], ["features"]))
        tensor = helper.make_tensor_value_info
        images = tensor("images", TensorProto.UINT8, ["B", *[network.size] * 2, 3])
        features = tensor("features", TensorProto.FLOAT, ["B", FEATURES])
        graph = helper.make_graph(
            self.nodes, network.variant, [images], [features], self.constants
        )
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
