"""A read-only view of a normalised model: who writes and reads what, constants, and the shape of every tensor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, ValueInfoProto, helper

from infoq_onnx.errors import ModelError
from infoq_onnx.graph.editing import consumers_of, expose, initializers_of, producers_of, reads, to_array
from infoq_onnx.graph.ort import ORT_ERRORS, first_line, run_session
from infoq_onnx.graph.session import open_session


class _Trace(NamedTuple):
    """What a run at one batch size, or two, shows of the activations."""

    batch: int | None
    shapes: dict[str, tuple[int, ...]]
    """Full shapes at the smaller batch size."""
    dtypes: dict[str, np.dtype[Any]]
    varying: dict[str, frozenset[int]]
    """Axes that grow with the batch."""


class Graph:
    """The graph of a normalised model.

    Parameters
    ----------
    model : ModelProto
        As `normalize` returns it. It must not be changed afterwards.

    Attributes
    ----------
    model : ModelProto
        The model.
    nodes : tuple of NodeProto
        In topological order.
    producer : dict of str to NodeProto
        The node that writes a tensor.
    consumers : dict of str to list of NodeProto
        The nodes that read a tensor, in topological order, each once; a tensor nobody reads has no entry.
    initializers : dict of str to TensorProto
        The constants.
    input : str
        The one graph input.
    output : str
        The first graph output: the logits.
    outputs : tuple of str
        All graph outputs.

    Raises
    ------
    ModelError
        The input has free dimensions besides the batch; the message names them.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes: tuple[NodeProto, ...] = tuple(model.graph.node)
        self.producer: dict[str, NodeProto] = producers_of(model.graph)
        self.consumers: dict[str, list[NodeProto]] = consumers_of(model.graph)
        self.initializers: dict[str, TensorProto] = initializers_of(model.graph)
        self.input: str = model.graph.input[0].name
        self.outputs: tuple[str, ...] = tuple(value.name for value in model.graph.output)
        self.output: str = self.outputs[0]
        self._input_shape = _input_shape(model.graph.input[0])

    def __reduce__(self) -> tuple[type[Graph], tuple[onnx.ModelProto]]:
        """Pickle the model alone: the rest follows from it."""
        return Graph, (self.model,)

    def constant(self, name: str) -> NDArray[Any]:
        """Values of an initializer.

        Raises
        ------
        KeyError
            No initializer is called so.
        """
        return to_array(self.initializers[name])

    @property
    def batch(self) -> int | None:
        """The batch size the graph is fixed to; None when it runs at any.

        A graph whose input leaves the batch free, but which has 1 built into a Reshape, is fixed to 1.
        """
        return self._trace.batch

    @property
    def dtypes(self) -> dict[str, np.dtype[Any]]:
        """Element type of every activation tensor."""
        return self._trace.dtypes

    @cached_property
    def batched(self) -> frozenset[str]:
        """Activation tensors whose leading axis is the batch.

        Of a graph with a fixed batch: those whose leading axis has that size, which alone cannot prove what it means.
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

        Without the batch axis for tensors in `batched`; the others (shape arithmetic, or the batch folded into
        another axis) have their full shape at batch size 1, or at the size the graph is fixed to.
        """
        return {name: shape[name in self.batched :] for name, shape in self._trace.shapes.items()}

    def elements(self, name: str) -> int:
        """Elements of an activation tensor that belong to one image."""
        total = math.prod(self._trace.shapes[name])
        return total // self._batch_size if name in self._behind_input else total

    def value_info(self, name: str) -> ValueInfoProto:
        """Type and shape of an activation tensor, to declare it as the input or output of a model.

        Axes that grow with the batch stay free, the batch axis under the name it has at the graph input.
        """
        symbol = self.model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
        varying = self._trace.varying[name]
        dims = [
            (symbol if name in self.batched else None) if axis in varying else size
            for axis, size in enumerate(self._trace.shapes[name])
        ]
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(self.dtypes[name]), dims)

    def descendants(self, tensors: Iterable[str]) -> set[str]:
        """Return every tensor computed from any of `tensors`, which are included."""
        found = set(tensors)
        for node, needed in zip(self.nodes, self._reads, strict=True):
            if not found.isdisjoint(needed):
                found.update(name for name in node.output if name)
        return found

    def ancestors(self, tensor: str) -> set[str]:
        """Return every tensor, constants included, that `tensor` is computed from, and itself."""
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
            # a free batch axis in front of a graph that only runs at 1, as exports with a Reshape to [1, …] have it
            return _Trace(1, shapes, dtypes, still)
        varying = {name: _differing_axes(shapes[name], second[name].shape) for name in shapes}
        if second[self.output].shape[:1] != (2,):
            return _Trace(1, shapes, dtypes, still)
        return _Trace(None, shapes, dtypes, varying)

    def _observe(self, session: Any, names: list[str], batch: int) -> dict[str, NDArray[Any]]:
        images = np.random.default_rng(0).standard_normal((batch, *self._input_shape[1:]), dtype=np.float32)
        values = run_session(session, {self.input: images}, names)
        return {name: value for name, value in zip(names, values, strict=True) if isinstance(value, np.ndarray)}


def _input_shape(value: ValueInfoProto) -> tuple[Any, ...]:
    """Shape with None for a free batch."""
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
            "with python -m onnxruntime.tools.make_dynamic_shape_fixed"
        )
    return (dims[0].dim_value or None, *(dim.dim_value for dim in dims[1:]))


def _differing_axes(first: tuple[int, ...], second: tuple[int, ...]) -> frozenset[int]:
    if len(first) != len(second):
        # a Squeeze without axes drops the batch axis when it is 1
        return frozenset(range(len(first)))
    return frozenset(axis for axis, (a, b) in enumerate(zip(first, second, strict=True)) if a != b)
