"""An ONNX graph under construction."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 13, 8


class Graph:
    """Nodes and constants; every name begins with the prefix, so that graphs can be joined."""

    def __init__(self, prefix: str) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._prefix = prefix

    def add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; returns the name of its output."""
        output = f"{self._prefix}{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, value: Any) -> str:
        """Append a constant; returns its name."""
        name = f"{self._prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def name(self, tensor: str, name: str) -> None:
        """Give a tensor another name, as that of an output."""
        self.nodes.append(helper.make_node("Identity", [tensor], [name]))

    def dense(self, x: str, layer: Mapping[str, Any]) -> str:
        """x · kernel + bias over the last axis."""
        kernel, bias = self.constant(layer["kernel"]), self.constant(layer["bias"])
        return self.add("Add", self.add("MatMul", x, kernel), bias)

    def rounded_to_float16(self, x: str) -> str:
        """The nearest float16 of each value, as float32: features as `vd` keeps them."""
        half = self.add("Cast", x, to=TensorProto.FLOAT16)
        return self.add("Cast", half, to=TensorProto.FLOAT)

    def append(self, model: onnx.ModelProto) -> None:
        """Append another model's graph, whose names must be others."""
        self.nodes += model.graph.node
        self.constants += model.graph.initializer

    def model(
        self,
        name: str,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        metadata: Mapping[str, str],
        opsets: Sequence[onnx.OperatorSetIdProto] = (),
        ir_version: int = IR_VERSION,
    ) -> onnx.ModelProto:
        """The whole model, checked."""
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.constants)
        opsets = list(opsets) or [helper.make_opsetid("", OPSET)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=ir_version, producer_name="vd"
        )
        helper.set_model_props(model, dict(metadata))
        onnx.checker.check_model(model, full_check=True)
        return model
