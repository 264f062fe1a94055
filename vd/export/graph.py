"""An ONNX graph under construction."""

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import TensorProto, helper

from vd.features.onnx_graph import IR_VERSION, OPSET, OnnxGraph


class Graph(OnnxGraph):
    """A graph with the layers of a detector."""

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
