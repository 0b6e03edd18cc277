"""The operators that can be executed: a table from the operator's name to a function.

Each function takes the node's attributes and its inputs (None where one is omitted) and returns a tensor, or a tuple of
tensors for a node with several outputs. Tensors of shapes, axes and indices are int64 on the CPU; all others are on the
device of the images.
"""

from __future__ import annotations

from collections.abc import Mapping

from infoq_onnx.torch_graph.attributes import Operator
from infoq_onnx.torch_graph.operators.elementwise import ELEMENTWISE
from infoq_onnx.torch_graph.operators.normalization import NORMALIZATION
from infoq_onnx.torch_graph.operators.pooling import POOLING
from infoq_onnx.torch_graph.operators.products import PRODUCTS
from infoq_onnx.torch_graph.operators.quantization import QUANTIZATION
from infoq_onnx.torch_graph.operators.recurrent import RECURRENT
from infoq_onnx.torch_graph.operators.reductions import REDUCTIONS
from infoq_onnx.torch_graph.operators.shapes import SHAPES

OPERATORS: Mapping[str, Operator] = {
    **ELEMENTWISE,
    **NORMALIZATION,
    **POOLING,
    **PRODUCTS,
    **QUANTIZATION,
    **RECURRENT,
    **REDUCTIONS,
    **SHAPES,
}
"""Operators of the default domain, by name."""
