"""The backbone as it was trained with, and backbone and detector as one ONNX graph."""

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, compose, helper

from vd.config import ModelConfig
from vd.errors import VdError
from vd.export.detector_onnx import LENGTH, detector_graph, name_outputs, outputs
from vd.export.graph import Graph
from vd.features.backbone import Backbone
from vd.features.efficientnet_onnx import network_model
from vd.features.onnx_graph import OPSET
from vd.models.head import Params

IMAGES = "images"
_PREFIX = "backbone/"


def backbone_model(backbone: Backbone, dim: int) -> onnx.ModelProto:
    """`images`, uint8 N×side×side×3, to `features`, float32 N×`dim`.

    Of several networks the images are those of frames, N×S×side×side×3, and the features are
    those of frames, N×K·`dim`. Raises `VdError` for a user's network that takes batches of
    one size only, or whose operators are older than the detector's.
    """
    if len(backbone.networks) > 1:
        return _side_by_side(backbone, dim)
    if backbone.networks:
        return network_model(backbone.networks[0])
    network = onnx.load_from_string(backbone.content)
    weights = {tensor.name for tensor in network.graph.initializer}
    (source,) = [value for value in network.graph.input if value.name not in weights]
    _check(backbone, network, source)
    graph = Graph("input/")
    x = _as_it_takes(graph, backbone, source)
    network = compose.add_prefix(network, _PREFIX)
    graph.nodes.append(helper.make_node("Identity", [x], [_PREFIX + source.name]))
    graph.append(network)
    graph.name(network.graph.output[0].name, "features")
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", dim])
    return graph.model(
        "backbone", [_images(["N"], backbone)], [features], {},
        network.opset_import, network.ir_version,
    )  # fmt: skip


def _side_by_side(backbone: Backbone, dim: int) -> onnx.ModelProto:
    """Several networks of ours, each on its streams of a frame."""
    graph, side = Graph("frames/"), backbone.size
    one_by_one = graph.constant(np.array([-1, side, side, 3]))
    parts = []
    for number, network in enumerate(backbone.networks):
        places, prefix = np.array(backbone.places[number]), f"network{number}/"
        chosen = graph.add("Gather", IMAGES, graph.constant(places), axis=1)
        flat = graph.add("Reshape", chosen, one_by_one)
        graph.nodes.append(helper.make_node("Identity", [flat], [prefix + IMAGES]))
        graph.append(compose.add_prefix(network_model(network), prefix))
        by_frame = graph.constant(np.array([-1, len(places) * dim]))
        parts.append(graph.add("Reshape", f"{prefix}features", by_frame))
    graph.name(graph.add("Concat", *parts, axis=1), "features")
    size = backbone.vectors * dim
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", size])
    images = _images(["N", len(backbone.streams)], backbone)
    return graph.model("backbone", [images], [features], {})


def _check(
    backbone: Backbone, network: onnx.ModelProto, source: onnx.ValueInfoProto
) -> None:
    """Raise `VdError` when the detector cannot be joined to a user's network."""
    if source.type.tensor_type.shape.dim[0].dim_value:
        raise VdError(
            f"{backbone.name} takes batches of "
            f"{source.type.tensor_type.shape.dim[0].dim_value} only, and an export needs "
            "them of any size; export the network with a free first dimension."
        )
    opset = _opset(network)
    if opset < OPSET:
        raise VdError(
            f"{backbone.name} is of ONNX opset {opset}, and the detector needs {OPSET}; "
            f"export the network for opset {OPSET} or a newer one."
        )


def _opset(model: onnx.ModelProto) -> int:
    return next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))


def _as_it_takes(graph: Graph, backbone: Backbone, source: onnx.ValueInfoProto) -> str:
    """The images in the type and order of axes that a user's network takes."""
    x, kind = IMAGES, source.type.tensor_type
    if kind.elem_type != TensorProto.UINT8:
        x = graph.add("Cast", x, to=TensorProto.FLOAT)
        x = graph.add("Sub", x, graph.constant(np.float32(backbone.mean)))
        x = graph.add("Div", x, graph.constant(np.float32(backbone.std)))
    if kind.shape.dim[1].dim_value == 3:
        x = graph.add("Transpose", x, perm=[0, 3, 1, 2])
    return x


def joined_model(
    backbone: Backbone,
    network: onnx.ModelProto,
    config: ModelConfig,
    params: Params,
    dim: int,
    temperature: float,
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """`images`, uint8 B×T×S×side×side×3, and `length` to `probability` and `logit`, B."""
    graph, side = Graph("joined/"), backbone.size
    network = compose.add_prefix(network, _PREFIX)
    # several networks take frames, one takes images
    streams = [len(backbone.streams)] if len(backbone.networks) > 1 else []
    one_by_one = graph.constant(np.array([-1, *streams, side, side, 3]))
    flat = graph.add("Reshape", IMAGES, one_by_one)
    graph.nodes.append(helper.make_node("Identity", [flat], [_PREFIX + IMAGES]))
    graph.append(network)
    sizes = graph.add("Shape", IMAGES)
    axis = graph.constant(np.array([0]))
    batch_frames = graph.add("Slice", sizes, axis, graph.constant(np.array([2])), axis)
    size = graph.constant(np.array([dim]))
    shape = graph.add("Concat", batch_frames, size, axis=0)
    features_BxTxD = graph.add("Reshape", f"{_PREFIX}features", shape)
    logit = detector_graph(graph, config, params, features_BxTxD)
    name_outputs(graph, logit, temperature)
    tensor = helper.make_tensor_value_info
    inputs = [
        _images(["B", "T", len(backbone.streams)], backbone),
        tensor(LENGTH, TensorProto.INT64, ["B"]),
    ]
    return graph.model(
        "violence",
        inputs,
        outputs(),
        metadata,
        network.opset_import,
        network.ir_version,
    )


def _images(shape: list[str | int], backbone: Backbone) -> onnx.ValueInfoProto:
    size = [backbone.size, backbone.size, 3]
    return helper.make_tensor_value_info(IMAGES, TensorProto.UINT8, [*shape, *size])
