"""The detector as an ONNX graph, from the same parameters; its mask is a length a clip."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from vd.config import ModelConfig
from vd.export.graph import Graph
from vd.models.head import Params
from vd.models.pooling import SCALE

FEATURES, LENGTH = "features", "length"
_END = np.iinfo(np.int64).max  # of a slice
_LOWEST = np.float32(-1e30)  # a score whose softmax is 0
# ONNX has input, output, forget, cell; ours are input, forget, cell, output
_GATES = (0, 3, 1, 2)


def detector_graph(graph: Graph, config: ModelConfig, params: Params, x: str) -> str:
    """Append the detector from features B×T×D to logits B; returns the logits' name.

    The graph has an input `length`, int64 B: a clip's frames, the rest is padding.
    """
    x_BxTxD = graph.rounded_to_float16(x)
    present_BxTx1 = _present(graph, x_BxTxD)
    logits = []
    if "linear" in params:
        pooled = _mean_and_change(graph, x_BxTxD, present_BxTx1)
        logits.append(
            graph.dense(_standardised(graph, pooled, "clip", params), params["linear"])
        )
        x_BxTxD = _standardised(graph, x_BxTxD, "frame", params)
    if "lstm" in params:
        logits.append(_recurrent_path(graph, config, params, x_BxTxD, present_BxTx1))
    logit_Bx1 = graph.add("Add", *logits) if len(logits) > 1 else logits[0]
    return graph.add("Squeeze", logit_Bx1, graph.constant(np.array([1])))


def _present(graph: Graph, x_BxTxD: str) -> str:
    """B×T×1, whether a frame is not padding."""
    shape = graph.add("Shape", x_BxTxD)
    frames = graph.add("Gather", shape, graph.constant(np.array(1)))
    zero, one = graph.constant(np.array(0)), graph.constant(np.array(1))
    frame_T = graph.add("Range", zero, frames, one)
    length_Bx1 = graph.add("Unsqueeze", LENGTH, graph.constant(np.array([1])))
    present_BxT = graph.add("Less", frame_T, length_Bx1)
    return graph.add("Unsqueeze", present_BxT, graph.constant(np.array([2])))


def _recurrent_path(
    graph: Graph, config: ModelConfig, params: Params, x: str, present_BxTx1: str
) -> str:
    """Projection, LSTM, attention pooling: logits B×1."""
    if config.projection_size:
        x = graph.dense(x, params["projection"])
    h_BxTx2H = _lstm(graph, x, params["lstm"])
    hidden = graph.add("Tanh", graph.dense(h_BxTx2H, params["attention_hidden"]))
    score_BxTx1 = graph.dense(hidden, params["attention"])
    lowest = graph.constant(_LOWEST)
    score_BxTx1 = graph.add("Where", present_BxTx1, score_BxTx1, lowest)
    weight_BxTx1 = graph.add("Softmax", score_BxTx1, axis=1)
    weighted = graph.add("Mul", weight_BxTx1, h_BxTx2H)
    pooled_Bx2H = _sum_over_frames(graph, weighted)
    return graph.dense(pooled_Bx2H, params["logit"])


def _lstm(graph: Graph, x_BxTxP: str, params: Params) -> str:
    """Outputs of both directions side by side, B×T×2H."""
    recurrent_2xHx4H = np.asarray(params["recurrent"])
    hidden = recurrent_2xHx4H.shape[1]
    kernel, bias = params["input"]["kernel"], params["input"]["bias"]
    weights = [_in_order(part).T for part in np.split(np.asarray(kernel), 2, axis=-1)]
    biases = [_in_order(part) for part in np.split(np.asarray(bias), 2)]
    none = np.zeros(4 * hidden, np.float32)  # ONNX has a second bias
    h_TxBx2xH = graph.add(
        "LSTM",
        graph.add("Transpose", x_BxTxP, perm=[1, 0, 2]),
        graph.constant(np.stack(weights)),
        graph.constant(np.stack([_in_order(part).T for part in recurrent_2xHx4H])),
        graph.constant(np.stack([np.concatenate([part, none]) for part in biases])),
        graph.add("Cast", LENGTH, to=TensorProto.INT32),
        direction="bidirectional",
        hidden_size=hidden,
    )
    h_BxTx2xH = graph.add("Transpose", h_TxBx2xH, perm=[2, 0, 1, 3])
    return graph.add("Reshape", h_BxTx2xH, graph.constant(np.array([0, 0, 2 * hidden])))


def _in_order(gates: np.ndarray) -> np.ndarray:
    """The last axis, four gates side by side, in ONNX's order."""
    parts = np.split(gates, 4, axis=-1)
    return np.concatenate([parts[gate] for gate in _GATES], axis=-1)


def _mean_and_change(graph: Graph, x_BxTxD: str, present_BxTx1: str) -> str:
    """`vd.models.pooling.mean_and_change` of clips whose padding comes last, B×2D."""
    axis, zero = graph.constant(np.array([1])), graph.constant(np.float32(0))
    first, second = graph.constant(np.array([0])), graph.constant(np.array([1]))
    last, end = graph.constant(np.array([-1])), graph.constant(np.array([_END]))

    def mean(values: str, present: str) -> str:
        """Over the frames that are present; 0 where none is."""
        kept = graph.add("Where", present, values, zero)
        ones = graph.add("Cast", present, to=TensorProto.FLOAT)
        count = graph.add("Clip", _sum_over_frames(graph, ones), one)
        return graph.add("Div", _sum_over_frames(graph, kept), count)

    one = graph.constant(np.float32(1))
    earlier = graph.add("Slice", x_BxTxD, first, last, axis)
    later = graph.add("Slice", x_BxTxD, second, end, axis)
    pairs = graph.add("Slice", present_BxTx1, second, end, axis)
    change = mean(graph.add("Abs", graph.add("Sub", later, earlier)), pairs)
    scaled = graph.add("Div", change, graph.constant(np.float32(SCALE)))
    compressed = graph.add("Log", graph.add("Add", scaled, one))
    return graph.add("Concat", mean(x_BxTxD, present_BxTx1), compressed, axis=1)


def _standardised(graph: Graph, x: str, name: str, params: Params) -> str:
    """(x − mean) / deviation, if the detector has both of that name."""
    if f"{name}_mean" not in params:
        return x
    centred = graph.add("Sub", x, graph.constant(params[f"{name}_mean"]))
    return graph.add("Div", centred, graph.constant(params[f"{name}_deviation"]))


def _sum_over_frames(graph: Graph, x_BxTxN: str) -> str:
    return graph.add("ReduceSum", x_BxTxN, graph.constant(np.array([1])), keepdims=0)


def inputs_of_head(dim: int) -> list[onnx.ValueInfoProto]:
    """`features`, float32 B×T×D, and `length`, int64 B."""
    tensor = helper.make_tensor_value_info
    return [
        tensor(FEATURES, TensorProto.FLOAT, ["B", "T", dim]),
        tensor(LENGTH, TensorProto.INT64, ["B"]),
    ]


def outputs() -> list[onnx.ValueInfoProto]:
    """`probability` and `logit`, float32 B."""
    tensor = helper.make_tensor_value_info
    return [tensor(name, TensorProto.FLOAT, ["B"]) for name in ("probability", "logit")]


def name_outputs(graph: Graph, logit: str, temperature: float) -> None:
    """Append the probability, and give both outputs their names."""
    scaled = graph.add("Div", logit, graph.constant(np.float32(temperature)))
    graph.name(graph.add("Sigmoid", scaled), "probability")
    graph.name(logit, "logit")


def head_model(
    config: ModelConfig,
    params: Params,
    dim: int,
    temperature: float,
    metadata: dict[str, str],
) -> onnx.ModelProto:
    """`features` and `length` to `probability` and `logit` of each clip."""
    graph = Graph("head/")
    logit = detector_graph(graph, config, params, FEATURES)
    name_outputs(graph, logit, temperature)
    return graph.model("head", inputs_of_head(dim), outputs(), metadata)
