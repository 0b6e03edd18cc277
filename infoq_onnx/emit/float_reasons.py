"""Reasons why onnxruntime runs a layer of a quantized model in float: unmet requirements of integer kernels."""

from __future__ import annotations

import onnx
import onnxruntime as ort
from onnx import NodeProto, TensorProto

from infoq_onnx.graph.editing import consumers_of, initializers_of, input_at, producers_of, reads
from infoq_onnx.graph.float_only import float_reason
from infoq_onnx.graph.operators import CONVOLUTIONS

INTEGER_KERNELS = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "QGemm",
        "QLinearConv",
        "QLinearConvTranspose",
        "QLinearMatMul",
    }
)
"""Integer operators by which onnxruntime replaces a quantized layer."""
_BYTES = (TensorProto.UINT8, TensorProto.INT8)


class FloatReasons:
    """A graph, searched for requirements of integer kernels that it does not meet."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._producer = producers_of(graph)
        self._consumers = consumers_of(graph)
        self._initializers = initializers_of(graph)
        self._outputs = {value.name for value in graph.output}
        self._constant = _constants(graph)
        self._types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}

    def of(self, node: NodeProto, runs: str) -> str:
        """Return the reason why a layer runs in float; empty for an integer kernel.

        Parameters
        ----------
        node : the layer
        runs : the operator that onnxruntime runs for it
        """
        if runs in INTEGER_KERNELS:
            return ""
        if reason := float_reason(node, self._initializers):
            return reason
        data, weight = input_at(node, 0), input_at(node, 1)
        if (added := self._fused_row(node, runs)) is not None:
            return (
                f"onnxruntime makes a float Gemm of it and of the Add behind it (MatMulAddFusion): give the constant "
                f"{added} two axes, [1, N] instead of [N]"
            )
        for tensor, what in ((data, "input"), (weight, "weight")):
            found = self._not_quantized(tensor, what)
            if found:
                return found
        narrow = self._code_type(weight)
        if narrow is not None and narrow not in _BYTES:
            name = TensorProto.DataType.Name(narrow)
            return f"weights are {name}: DequantizeLinear must read INT8 or UINT8 (put a Cast in between)"
        codes = self._code_type(data)
        if codes is not None and codes not in _BYTES:
            return f"activations are {TensorProto.DataType.Name(codes)}: integer kernels take bytes"
        if node.op_type in CONVOLUTIONS:
            found = self._output_not_quantized(node)
            if found:
                return found
        if data in self._constant:
            return (
                f"its weight {data} is on the left: integer kernels take it on the right; export W·x as the transpose "
                "of xᵀ·Wᵀ"
            )
        tensor = node.output[0]
        quantized = [reader.op_type == "QuantizeLinear" for reader in self._consumers.get(tensor, [])]
        if any(quantized) and (tensor in self._outputs or not all(quantized)):
            return f"its output {tensor} is wanted both quantized and in float: integer kernels give one of them"
        behind = self._consumers.get(tensor, [])
        if len(behind) == 1 and behind[0].op_type in ("Relu", "Clip") and tensor not in self._outputs:
            clipped = self._consumers.get(behind[0].output[0], [])
            if not clipped or any(reader.op_type != "QuantizeLinear" for reader in clipped):
                return (
                    f"a {behind[0].op_type} is behind it with no QuantizeLinear straight behind that: onnxruntime "
                    "leaves both in float; put QuantizeLinear and DequantizeLinear behind, or clip with Max and Min"
                )
        if codes == TensorProto.INT8:
            return "activations are INT8: onnxruntime's fast kernels want UINT8"
        bias = input_at(node, 2)
        if bias and self._code_type(bias) == TensorProto.INT32:
            return "the bias may not be in units of input scale × weight scale"
        return f"onnxruntime {ort.__version__} has no integer kernel for this; it runs {runs}"

    def _fused_row(self, node: NodeProto, runs: str) -> str | None:
        """Return the name of the constant [N] that made onnxruntime fuse a MatMul with the following Add, else None."""
        if node.op_type != "MatMul" or runs != "Gemm":
            return None
        for reader in self._consumers.get(node.output[0], []):
            for name in reader.input:
                if reader.op_type == "Add" and name in self._initializers and len(self._initializers[name].dims) == 1:
                    return str(name)
        return None

    def _not_quantized(self, tensor: str, what: str) -> str:
        node = self._producer.get(tensor)
        if node is not None and node.op_type == "DequantizeLinear":
            return ""
        if node is None:
            where = "a float constant" if tensor in self._initializers else "the float input of the graph"
            return f"{what} {tensor} is {where}: no DequantizeLinear in front"
        return f"{what} {tensor} comes from {node.op_type} in float: no QuantizeLinear and DequantizeLinear between"

    def _output_not_quantized(self, node: NodeProto) -> str:
        tensor = node.output[0]
        if tensor in self._outputs:
            return f"its output {tensor} is an output of the graph: nothing quantizes it"
        readers = self._consumers.get(tensor, [])
        if any(reader.op_type != "QuantizeLinear" for reader in readers):
            kinds = ", ".join(sorted({reader.op_type for reader in readers if reader.op_type != "QuantizeLinear"}))
            return f"its output {tensor} is read by {kinds} in float: no QuantizeLinear straight behind"
        if len(readers) != 1:
            return f"its output {tensor} has {len(readers)} QuantizeLinear behind it: one is needed"
        return ""

    def _code_type(self, tensor: str) -> int | None:
        """Return the type of the codes that a DequantizeLinear reads; None if the graph does not determine it."""
        node = self._producer.get(tensor)
        if node is None or node.op_type != "DequantizeLinear":
            return None
        codes = node.input[0]
        for name in (codes, input_at(node, 2)):
            if name in self._initializers:
                return int(self._initializers[name].data_type)
        writer = self._producer.get(codes)
        if writer is not None and writer.op_type == "Cast":
            return next((int(attribute.i) for attribute in writer.attribute if attribute.name == "to"), None)
        return self._types.get(codes)


def _constants(graph: onnx.GraphProto) -> set[str]:
    """Find the tensors that do not depend on the input: however weights are stored, they are among these."""
    found = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if found.issuperset(reads(node)):
            found.update(node.output)
    return found
