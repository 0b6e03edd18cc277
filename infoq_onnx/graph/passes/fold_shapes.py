"""Replace shape arithmetic that has a known result by that result.

Integer tensors are evaluated entry by entry. An entry is a number, the name of a free dimension (the batch), or
unknown. ``Shape(x)`` of ``[batch, 64, 8, 8]`` is ``("batch", 64, 8, 8)``; Gather, Slice, Concat, … propagate the
entries. There are two replacements:

- A tensor whose entries are all numbers becomes an initializer.
- A Reshape whose target is computed at run time, and whose output has exactly one axis that is not a number, gets a
  constant target with −1 for that axis. The element count of the input determines that axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from infoq_onnx.graph.editing import (
    Dimension,
    attribute,
    infer,
    initializers_of,
    output_names,
    remove_nodes,
    to_array,
)
from infoq_onnx.graph.editor import Editor

_INTEGERS = (TensorProto.INT64, TensorProto.INT32)
_LONGEST_SHAPE = 64
"""Largest number of entries of an integer constant that is considered part of shape arithmetic."""

Values = NDArray[Any]
Shapes = dict[str, tuple[Dimension, ...]]


def fold_shapes(model: ModelProto) -> int:
    """Replace known shape arithmetic by constants.

    Returns
    -------
    int
        Number of nodes replaced and Reshape targets made constant.
    """
    total = 0
    # the shape behind one Reshape may be what the target of the next is computed from
    while changes := _fold_once(model):
        total += changes
    return total


def _fold_once(model: ModelProto) -> int:
    if not any(node.op_type in ("Shape", "Size") for node in model.graph.node):
        return 0
    shapes, types = infer(model)
    values = _evaluate(model.graph, shapes)
    return _replace_known(model.graph, values, types) + _fix_reshapes(model.graph, shapes, values)


def _replace_known(graph: GraphProto, values: dict[str, Values], types: dict[str, int]) -> int:
    outputs, constants = output_names(graph), initializers_of(graph)
    known = [
        node
        for node in graph.node
        if node.output[0] in values
        and node.output[0] not in constants
        and node.output[0] not in outputs
        and types.get(node.output[0]) in _INTEGERS
        and all(isinstance(entry, int) for entry in values[node.output[0]].flat)
    ]
    for node in known:
        name = node.output[0]
        array = values[name].astype(helper.tensor_dtype_to_np_dtype(types[name]))
        graph.initializer.append(numpy_helper.from_array(array, name))
    remove_nodes(graph, known)
    return len(known)


def _fix_reshapes(graph: GraphProto, shapes: Shapes, values: dict[str, Values]) -> int:
    editor = Editor(graph)
    changes = 0
    for node in editor.nodes:
        if node.op_type != "Reshape" or node.domain or node.input[1] in editor.constants:
            continue
        target = _resolve(node, shapes, values)
        if target is not None:
            editor.set_input(node, 1, editor.add_constant(f"{node.output[0]}_shape", target))
            changes += 1
    return changes


def _resolve(node: NodeProto, shapes: Shapes, values: dict[str, Values]) -> NDArray[np.int64] | None:
    source, target = shapes.get(node.input[0]), values.get(node.input[1])
    inferred = shapes.get(node.output[0])
    resolved = inferred
    if source is not None and target is not None:
        copied = attribute(node, "allowzero", 0) == 0
        resolved = tuple(
            source[axis] if entry == 0 and copied and axis < len(source) else entry
            for axis, entry in enumerate(target.tolist())
        )
        resolved = _solve_remainder(source, resolved)
        if inferred is not None and len(inferred) == len(resolved):
            resolved = tuple(b if isinstance(b, int) else a for a, b in zip(resolved, inferred, strict=True))
    if resolved is None:
        return None
    known = [entry for entry in resolved if isinstance(entry, int) and entry > 0]
    if len(known) != len(resolved) - 1:
        return None
    return np.array([entry if isinstance(entry, int) and entry > 0 else -1 for entry in resolved], dtype=np.int64)


def _solve_remainder(source: tuple[Dimension, ...], target: tuple[Dimension, ...]) -> tuple[Dimension, ...]:
    """Replace the −1 in a Reshape target by its value, if the value is known.

    The value is the element count of the source divided by the product of the other axes. Free axes must cancel out.
    """
    others = [entry for entry in target if entry != -1]
    free_source = sorted(str(entry) for entry in source if not isinstance(entry, int))
    free_others = sorted(str(entry) for entry in others if not isinstance(entry, int))
    if len(others) != len(target) - 1 or free_source != free_others or None in source or None in others:
        return target
    total = math.prod(entry for entry in source if isinstance(entry, int))
    part = math.prod(entry for entry in others if isinstance(entry, int))
    if part == 0 or total % part:
        return target
    return tuple(total // part if entry == -1 else entry for entry in target)


# ---------------------------------------------------------------------------------------------------------- evaluation


def _evaluate(graph: GraphProto, shapes: Shapes) -> dict[str, Values]:
    values: dict[str, Values] = {}
    for name, tensor in initializers_of(graph).items():
        if tensor.data_type in _INTEGERS and math.prod(tensor.dims) <= _LONGEST_SHAPE:
            values[name] = _objects(to_array(tensor).tolist())
    for node in graph.node:
        result = _value_of(node, shapes, values)
        if result is not None:
            values[node.output[0]] = result
    return values


def _value_of(node: NodeProto, shapes: Shapes, values: dict[str, Values]) -> Values | None:
    if node.domain:
        return None
    if node.op_type == "Shape":
        return _shape(node, shapes)
    if node.op_type == "Size":
        return _size(node, shapes)
    rule = _RULES.get(node.op_type)
    inputs = [values.get(name) for name in node.input]
    if rule is None or not inputs or any(value is None for value in inputs):
        return None
    return rule(node, [value for value in inputs if value is not None])


def _objects(entries: object) -> Values:
    return np.array(entries, dtype=object)


def _shape(node: NodeProto, shapes: Shapes) -> Values | None:
    shape = shapes.get(node.input[0])
    if shape is None:
        return None
    return _objects(list(shape[attribute(node, "start", 0) : attribute(node, "end", None)]))


def _size(node: NodeProto, shapes: Shapes) -> Values | None:
    shape = shapes.get(node.input[0])
    if shape is None:
        return None
    sizes = [entry for entry in shape if isinstance(entry, int)]
    return _objects(math.prod(sizes)) if len(sizes) == len(shape) else None


def _numbers(value: Values) -> list[int] | None:
    entries = [entry for entry in value.flat if isinstance(entry, int)]
    return entries if len(entries) == value.size else None


def _cast(node: NodeProto, inputs: list[Values]) -> Values | None:
    return inputs[0] if attribute(node, "to") in _INTEGERS else None


def _gather(_: NodeProto, inputs: list[Values]) -> Values | None:
    indices = _numbers(inputs[1])
    if indices is None or inputs[0].ndim != 1 or any(abs(index) >= inputs[0].size + (index < 0) for index in indices):
        return None
    taken = [inputs[0][index] for index in indices]
    return _objects(taken).reshape(inputs[1].shape)


def _slice(_: NodeProto, inputs: list[Values]) -> Values | None:
    bounds = [_numbers(value) for value in inputs[1:]]
    if inputs[0].ndim != 1 or any(bound is None or len(bound) != 1 for bound in bounds):
        return None
    start, stop, *rest = [bound[0] for bound in bounds if bound is not None]
    step = rest[1] if len(rest) == 2 else 1
    size = inputs[0].size
    if step < 0 and stop < -size:  # in ONNX, a very negative end means "down to and including the first entry"
        return inputs[0][start::step]
    return inputs[0][start:stop:step]


def _squeeze(_: NodeProto, inputs: list[Values]) -> Values | None:
    return inputs[0].reshape(()) if inputs[0].size == 1 and inputs[0].ndim == 1 else None


def _unsqueeze(_: NodeProto, inputs: list[Values]) -> Values | None:
    return inputs[0].reshape(1) if inputs[0].ndim == 0 else None


def _concat(_: NodeProto, inputs: list[Values]) -> Values | None:
    return np.concatenate(inputs) if all(value.ndim == 1 for value in inputs) else None


def _arithmetic(function: Callable[[int, int], Dimension]) -> Callable[[NodeProto, list[Values]], Values | None]:
    def rule(_: NodeProto, inputs: list[Values]) -> Values | None:
        left, right = np.broadcast_arrays(*inputs)
        entries = [
            function(a, b) if isinstance(a, int) and isinstance(b, int) else None
            for a, b in zip(left.flat, right.flat, strict=True)
        ]
        return _objects(entries).reshape(left.shape)

    return rule


def _divide(a: int, b: int) -> Dimension:
    # ONNX integer division truncates towards zero, as in C
    return None if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


_RULES: dict[str, Callable[[NodeProto, list[Values]], Values | None]] = {
    "Identity": lambda _, inputs: inputs[0],
    "Cast": _cast,
    "Gather": _gather,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Add": _arithmetic(lambda a, b: a + b),
    "Sub": _arithmetic(lambda a, b: a - b),
    "Mul": _arithmetic(lambda a, b: a * b),
    "Div": _arithmetic(_divide),
}
