"""Read-only view of a normalised model: producers and consumers, constants, and the shape of every tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, TensorShapeProto, ValueInfoProto, helper

from infoq_onnx.errors import ModelError
from infoq_onnx.graph.editing import consumers_of, expose, initializers_of, producers_of, reads, to_array, walk
from infoq_onnx.graph.ort import ORT_ERRORS, first_line, run_session
from infoq_onnx.graph.session import open_session

LOGITS_KEY = "infoq_onnx.logits"
"""Key of the metadata entry that names the output with the class scores, where it is not the first."""


_MOST_ELEMENTS = 2**30
"""Elements of a batch, above which a shape is a mistake."""
_LOOP_SECONDS = 5.0
"""How long one or two images may take a model with loops, whose number of turns nobody knows."""


class _Trace(NamedTuple):
    """Shapes and element types of the activations, observed in runs at one or two batch sizes."""

    batch: int | None
    """Fixed batch size; None if the batch is free."""
    shapes: dict[str, tuple[int, ...]]
    """Full shapes at the fixed batch size, or at batch size 1."""
    dtypes: dict[str, np.dtype[Any]]
    varying: dict[str, frozenset[int]]
    """Axes whose size depends on the batch size."""


class Graph:
    """The graph of a normalised model.

    Parameters
    ----------
    model : ModelProto
        A model returned by `normalize`. Do not change it afterwards.

    Attributes
    ----------
    model : ModelProto
        The model.
    nodes : tuple of NodeProto
        The nodes in topological order.
    producer : dict of str to NodeProto
        The node that writes each tensor.
    consumers : dict of str to list of NodeProto
        The nodes that read each tensor, in topological order without duplicates. Unread tensors have no entry.
    initializers : dict of str to TensorProto
        The constants.
    input : str
        Name of the only graph input.
    output : str
        The output with the class scores: the first one, unless the metadata name another.
    outputs : tuple of str
        Names of all graph outputs.

    Raises
    ------
    ModelError
        The input has fewer than two dimensions, or free dimensions other than the batch; the message names them.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: tuple[NodeProto, ...] = tuple(model.graph.node)
        self.producer: dict[str, NodeProto] = producers_of(model.graph)
        self.consumers: dict[str, list[NodeProto]] = consumers_of(model.graph)
        self.initializers: dict[str, TensorProto] = initializers_of(model.graph)
        self.input: str = model.graph.input[0].name
        self.outputs: tuple[str, ...] = tuple(value.name for value in model.graph.output)
        named = next((entry.value for entry in model.metadata_props if entry.key == LOGITS_KEY), "")
        self.output: str = named if named in self.outputs else self.outputs[0]
        self._input_shape = _input_shape(model.graph.input[0])

    def __reduce__(self) -> tuple[type[Graph], tuple[onnx.ModelProto]]:
        """Pickle only the model; all other attributes are derived from it."""
        return Graph, (self.model,)

    def constant(self, name: str) -> NDArray[Any]:
        """Return the values of an initializer.

        Raises
        ------
        KeyError
            No initializer has this name.
        """
        return to_array(self.initializers[name])

    @property
    def batch(self) -> int | None:
        """Fixed batch size of the graph; None if it runs at any batch size.

        If the input's batch axis is free but a Reshape in the graph requires batch size 1, the batch size is 1.
        """
        return self._trace.batch

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """Element type of every activation tensor."""
        return self._trace.dtypes

    @cached_property
    def batched(self) -> frozenset[str]:
        """Activation tensors whose leading axis is the batch.

        If the batch size is fixed, these are the tensors whose leading axis has that size. The size alone does not
        prove that the axis is the batch.
        """
        size = self._batch_size
        free = self.batch is None
        return frozenset(
            name
            for name, shape in self._trace.shapes.items()
            if shape and shape[0] == size and (not free or self._trace.varying[name] == {0})
        )

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every activation tensor for one image.

        Tensors in `batched` have their shape without the batch axis. All others (shape arithmetic, or tensors whose
        batch is folded into another axis) have their full shape at the fixed batch size, or at batch size 1.
        """
        return {name: shape[name in self.batched :] for name, shape in self._trace.shapes.items()}

    def elements(self, name: str) -> int:
        """Return the number of elements of an activation tensor per image."""
        total = math.prod(self._trace.shapes[name])
        return total // self._batch_size if name in self._behind_input else total

    def value_info(self, name: str) -> ValueInfoProto:
        """Return the type and shape of an activation tensor, as needed to declare a model input or output.

        Axes that vary with the batch size are free. The batch axis has the same name as at the graph input.
        """
        symbol = self.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        varying = self._trace.varying[name]
        dims = [
            (symbol if name in self.batched else None) if axis in varying else size
            for axis, size in enumerate(self._trace.shapes[name])
        ]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(self.dtypes[name]), dims)

    def descendants(self, tensors: Iterable[str]) -> set[str]:
        """Return `tensors` and every tensor computed from any of them."""
        found = set(tensors)
        for node, needed in zip(self.nodes, self._reads, strict=True):
            if not found.isdisjoint(needed):
                found.update(name for name in node.output if name)
        return found

    def ancestors(self, tensor: str) -> set[str]:
        """Return `tensor` and every tensor it is computed from, including constants."""
        found = {tensor}
        for node, needed in zip(reversed(self.nodes), reversed(self._reads), strict=True):
            if not found.isdisjoint(node.output):
                found.update(needed)
        return found

    @cached_property
    def _reads(self) -> list[list[str]]:
        return [reads(node) for node in self.nodes]

    @cached_property
    def _behind_input(self) -> set[str]:
        return self.descendants([self.input])

    @property
    def _batch_size(self) -> int:
        return self.batch or 1

    @cached_property
    def _trace(self) -> _Trace:
        written = (name for node in self.nodes for name in node.output if name)
        names = list(dict.fromkeys((self.input, *written, *self.outputs)))
        fixed = self._input_shape[0]
        try:
            session = open_session(expose(self.model, names), optimize=False)
            first = self._observe(session, names, fixed or 1)
        except ORT_ERRORS as error:
            raise ModelError(f"onnxruntime cannot run the model: {first_line(error)}; export it again") from error
        shapes = {name: value.shape for name, value in first.items()}
        dtypes = {name: value.dtype for name, value in first.items()}
        still: dict[str, frozenset[int]] = {name: frozenset() for name in shapes}
        if fixed is not None:
            return _Trace(fixed, shapes, dtypes, still)
        try:
            second = self._observe(session, names, 2)
        except ORT_ERRORS:
            # the batch axis is declared free but the graph only runs at batch size 1, e.g. with a Reshape to [1, …]
            return _Trace(1, shapes, dtypes, still)
        varying = {name: _differing_axes(shapes[name], second[name].shape) for name in shapes}
        scores = [self.output] if self.output in second else list(second)
        if not any(second[name].shape[:1] == (2,) for name in scores):
            return _Trace(1, shapes, dtypes, still)
        return _Trace(None, shapes, dtypes, varying)

    def _observe(self, session: Any, names: list[str], batch: int) -> dict[str, NDArray[Any]]:
        images = np.random.default_rng(0).standard_normal((batch, *self._input_shape[1:]), dtype=np.float32)
        loops = any(node.op_type in ("Loop", "Scan") for node in walk(self.nodes))
        try:
            values = run_session(session, {self.input: images}, names, seconds=_LOOP_SECONDS if loops else None)
        except TimeoutError as error:
            raise ModelError(
                f"{batch} image{'s take' if batch > 1 else ' takes'} it more than {_LOOP_SECONDS:g} seconds; export "
                "the model without endless loops"
            ) from error
        return {name: value for name, value in zip(names, values, strict=True) if isinstance(value, np.ndarray)}


def _example(dims: Sequence[TensorShapeProto.Dimension]) -> str:
    """Return a shape for one image, with a size that is common for free axes."""
    sizes = [dim.dim_value if dim.dim_value > 0 else (1 if axis == 0 else 224) for axis, dim in enumerate(dims)]
    return ",".join(map(str, sizes))


def _input_shape(value: ValueInfoProto) -> tuple[Any, ...]:
    """Return the shape of the graph input, with None for a free batch axis."""
    dims = value.type.tensor_type.shape.dim
    if len(dims) < 2:
        raise ModelError(
            f"input {value.name!r} has {len(dims)} dimension{'s' * (len(dims) != 1)}, not a batch of images; give the "
            "model an input shape such as [batch, 3, 224, 224]"
        )
    free = [dim.dim_param or f"axis {axis}" for axis, dim in enumerate(dims) if axis > 0 and dim.dim_value <= 0]
    if free:
        raise ModelError(
            f"input {value.name!r} has free dimensions besides the batch ({', '.join(free)}); fix them, for example "
            "with python -m onnxruntime.tools.make_dynamic_shape_fixed --input_name "
            f"{value.name} --input_shape {_example(dims)} MODEL FIXED"
        )
    batch = dims[0].dim_value if dims[0].dim_value > 0 else None
    shape = tuple(dim.dim_value for dim in dims[1:])
    if math.prod(shape) * (batch or 1) > _MOST_ELEMENTS:
        sizes = " × ".join(map(str, (batch or "batch", *shape)))
        raise ModelError(
            f"input {value.name!r} has {sizes} elements, more than {_MOST_ELEMENTS:,}; export the model for images of "
            "the size you use, and with a free batch"
        )
    return (batch, *shape)


def _differing_axes(first: tuple[int, ...], second: tuple[int, ...]) -> frozenset[int]:
    if len(first) != len(second):
        # a Squeeze without axes drops the batch axis at batch size 1
        return frozenset(range(len(first)))
    return frozenset(axis for axis, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
