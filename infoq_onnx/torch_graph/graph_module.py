"""A torch module that executes an ONNX graph node by node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor

from infoq_onnx.errors import ModelError
from infoq_onnx.graph.editing import attribute, input_at, is_standard, opset_of, subgraphs, to_array
from infoq_onnx.graph.graph import Graph
from infoq_onnx.torch_graph.attributes import Attributes, Operator
from infoq_onnx.torch_graph.operators import OPERATORS
from infoq_onnx.torch_graph.operators.elementwise import ELEMENTWISE

_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "BatchNormalization": {"training_mode": 0},
    "DequantizeLinear": {"block_size": 0},
    "GRU": {"activations": None, "clip": None, "layout": 0},
    "LSTM": {"activations": None, "clip": None, "input_forget": 0, "layout": 0},
    "QuantizeLinear": {"block_size": 0},
    "Resize": {"antialias": 0, "exclude_outside": 0, "keep_aspect_ratio_policy": b"stretch"},
}
"""Operator → attributes that are implemented for these values only."""
_INPUTS = {"GRU": 4, "LSTM": 4}
"""Operator → position of an input that has to be omitted: `sequence_lens`."""
_PEEPHOLES = 7
_COMPUTING = frozenset({*ELEMENTWISE, "Concat", "ScatterElements", "ScatterND"})
_OUTPUTS = {"MaxPool": 1}
"""Operator → number of its outputs that are implemented."""
_DEFAULT_ACTIVATIONS = {"GRU": ["Sigmoid", "Tanh"], "LSTM": ["Sigmoid", "Tanh", "Tanh"]}


class _Step(NamedTuple):
    """One node."""

    function: Operator
    attributes: Attributes
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    computes: bool
    """Whether it computes with the values of all inputs, which then have to be on one device."""


def require_executable(graph: Graph, operators: Mapping[str, Operator] = OPERATORS) -> None:
    """Refuse a graph with operators that torch cannot execute here.

    Raises
    ------
    ModelError
        The message names the operators.
    """
    refused: dict[str, str] = {}
    for node in graph.nodes:
        reason = obstacle(node, operators)
        if reason:
            refused.setdefault(reason, node.name)
    if refused:
        named = ", ".join(f"{reason} (node {node!r})" for reason, node in list(refused.items())[:3])
        raise ModelError(f"fine-tuning cannot run {named}; export the model without, or keep the result of allocate")


def obstacle(node: onnx.NodeProto, operators: Mapping[str, Operator] = OPERATORS) -> str:
    """Return what cannot be executed of a node, in words; empty: it can."""
    kind = node.op_type
    if not is_standard(node.domain):
        return f"{kind} of {node.domain}"
    if kind not in operators or any(True for _ in subgraphs(node)):
        return kind
    for name, default in _DEFAULTS.get(kind, {}).items():
        value = attribute(node, name, default)
        if name == "activations" and value is not None:
            usual = _DEFAULT_ACTIVATIONS[kind]
            value = None if [each.decode() for each in value] == usual * (len(value) // len(usual)) else value
        if value != default:
            return f"{kind} with {name}"
    if kind == "Resize" and attribute(node, "coordinate_transformation_mode") == b"tf_crop_and_resize":
        return "Resize with tf_crop_and_resize"
    if kind in _INPUTS and input_at(node, _INPUTS[kind]):
        return f"{kind} with sequence lengths"
    if kind == "LSTM" and input_at(node, _PEEPHOLES):
        return "LSTM with peepholes"
    if sum(map(bool, node.output)) > _OUTPUTS.get(kind, len(node.output)):
        return f"{kind} with indices"
    return ""


def escaped(name: str) -> str:
    """Return the name of what torch holds for a tensor or a layer.

    torch allows no dots in names, nor names that modules have already, such as `half`.
    """
    return ":" + name.replace("%", "%25").replace(".", "%2E")


def _on_one_device(inputs: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Move constants that stayed on the CPU to where the others are."""
    places = {one.device for one in inputs if one is not None and one.device.type != "cpu"}
    if not places:
        return inputs
    return [None if one is None else one.to(next(iter(places))) for one in inputs]


class GraphModule(torch.nn.Module):
    """Executes a graph in torch, differentiably.

    Parameters
    ----------
    graph : Graph
        A normalised graph, also one with inserted quantizers.
    operators : mapping of str to function
        The operators, by name.
    batch : int or None
        Number of images that the graph runs with; None: any number. Other numbers of images are cut into batches.

    Attributes
    ----------
    constants : torch.nn.ParameterDict
        The float32 initializers, by `escaped` name. None of them requires a gradient until one asks for it.

    Raises
    ------
    ModelError
        An operator cannot be executed; see `require_executable`.

    Notes
    -----
    Integer constants and shapes stay on the CPU, wherever the module is moved, as torch needs their values there.
    """

    def __init__(
        self, graph: Graph, operators: Mapping[str, Operator] = OPERATORS, *, batch: int | None = None
    ) -> None:
        super().__init__()
        self.batch = batch
        require_executable(graph, operators)
        opset = opset_of(graph.model)
        self.input, self.output = graph.input, graph.output
        self.constants = torch.nn.ParameterDict()
        self._others: dict[str, Tensor] = {}
        for name, tensor in graph.initializers.items():
            values = torch.from_numpy(np.array(to_array(tensor)))
            if values.dtype == torch.float32:
                self.constants[escaped(name)] = torch.nn.Parameter(values, requires_grad=False)
            else:
                self._others[name] = values
        self._constant_names = {name: escaped(name) for name in graph.initializers if name not in self._others}
        self._steps = tuple(
            _Step(
                operators[node.op_type],
                Attributes(node, opset),
                tuple(node.input),
                tuple(node.output),
                node.op_type in _COMPUTING,
            )
            for node in graph.nodes
        )
        self._plans: dict[tuple[frozenset[str], tuple[str, ...]], list[tuple[_Step, tuple[str, ...]]]] = {}

    def parameter(self, name: str) -> torch.nn.Parameter:
        """Return the parameter that holds a float32 initializer."""
        found: torch.nn.Parameter = self.constants[self._constant_names[name]]
        return found

    def forward(self, images: Tensor, given: Mapping[str, Tensor] | None = None) -> Tensor:
        """Compute the logits.

        Parameters
        ----------
        images : float32 tensor [N, …]
        given : values that replace constants or inner tensors of these names

        Returns
        -------
        Tensor
            [N, classes].
        """
        if self.batch is None:
            return self._logits(images, given)
        parts = []
        for part in torch.split(images, self.batch):
            # the last batch is filled up with copies of its last image
            full = torch.cat([part, part[-1:].expand(self.batch - len(part), *part.shape[1:])])
            parts.append(self._logits(full, given)[: len(part)])
        return torch.cat(parts)

    def _logits(self, images: Tensor, given: Mapping[str, Tensor] | None) -> Tensor:
        return self.values({self.input: images, **(given or {})}, (self.output,))[self.output].flatten(1)

    def values(self, given: Mapping[str, Tensor], wanted: Sequence[str]) -> dict[str, Tensor]:
        """Compute tensors of the graph from other tensors, by the nodes between them.

        Parameters
        ----------
        given : tensors by name: the graph's input, inner tensors, or values that replace constants
        wanted : names of the tensors to compute

        Returns
        -------
        dict of str to Tensor
        """
        key = (frozenset(given), tuple(wanted))
        if key not in self._plans:
            self._plans[key] = self._plan(given, wanted)
        held: dict[str, Tensor] = dict(given)
        for step, done in self._plans[key]:
            inputs = [self._value(held, name) for name in step.inputs]
            found: Any = step.function(step.attributes, *(_on_one_device(inputs) if step.computes else inputs))
            results = found if isinstance(found, tuple) else (found,)
            held.update((name, value) for name, value in zip(step.outputs, results, strict=False) if name)
            for name in done:
                held.pop(name, None)
        return {name: self._required(held, name) for name in wanted}

    def reads(self, given: Iterable[str], wanted: Sequence[str]) -> set[str]:
        """Return the names of all tensors that the nodes between given and wanted tensors read; see `values`."""
        return {name for step, _ in self._plan(given, wanted) for name in step.inputs if name}

    def _value(self, held: Mapping[str, Tensor], name: str) -> Tensor | None:
        return self._required(held, name) if name else None

    def _required(self, held: Mapping[str, Tensor], name: str) -> Tensor:
        if name in held:
            return held[name]
        if name in self._others:
            return self._others[name]
        return self.parameter(name)

    def _plan(self, given: Iterable[str], wanted: Sequence[str]) -> list[tuple[_Step, tuple[str, ...]]]:
        """List the nodes to run, each with the tensors that no later node reads."""
        have, needed, last = set(given), set(wanted), set(wanted)
        plan: list[tuple[_Step, tuple[str, ...]]] = []
        for step in reversed(self._steps):
            if needed.isdisjoint(set(step.outputs) - have):
                continue
            # read for the last time here, seen from the end
            done = tuple(name for name in dict.fromkeys(step.inputs) if name and name not in last)
            last.update(done)
            needed.update(name for name in step.inputs if name and name not in have)
            plan.append((step, done))
        return plan[::-1]
