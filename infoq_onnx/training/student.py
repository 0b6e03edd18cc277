"""The quantized network in torch, with everything in it that learns."""

from __future__ import annotations

import dataclasses
from collections.abc import Container, Iterator, Mapping

import numpy as np
import onnx
import torch
from onnx import helper
from torch import Tensor

from infoq_onnx.graph.editing import with_initializers
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.operators import clip_bounds
from infoq_onnx.quantize.codes import RoundedWeight
from infoq_onnx.quantize.grid import LARGEST_BIAS, clips_alike, per_channel, weight_code_limits
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import BASELINE_BITS, Bits, FinetuneMode, Layer, Quantizer
from infoq_onnx.simulate.quantizers.calibrate import quantizers_of
from infoq_onnx.simulate.quantizers.insert import insert_quantizers
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.simulation import LayerCodes, with_bias
from infoq_onnx.torch_graph.attributes import Attributes
from infoq_onnx.torch_graph.graph_module import GraphModule, escaped
from infoq_onnx.torch_graph.operators import OPERATORS
from infoq_onnx.training import learned
from infoq_onnx.training.learned import Learned
from infoq_onnx.training.quantizers import (
    codes_of,
    fake_quantize,
    gradient_scale,
    quantize_weight,
    scaled_gradient,
    straight_through,
)

_FAKE_QUANTIZE = "FakeQuantize"
_AFFINE = {
    "BatchNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "Add": (0, 1),
    "Mul": (0, 1),
}
"""Operator → positions of the factors and offsets per channel that learn."""
_LEAST_STEP = 0.1
"""Steps never fall below this share of their start, so that they stay above 0."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """A student as constants of the network, for emission."""

    of: Quantizable
    """The network, with the learned grids and the learned factors and offsets."""
    codes: dict[str, LayerCodes]
    """Codes of every layer."""


class Student(torch.nn.Module):
    """The quantized network.

    Parameters
    ----------
    of : the network
    bits : bit-width of every unit
    codes : codes of every layer, with which training starts
    mode : "scales": the codes of the weights stay; otherwise weights learn, too

    Raises
    ------
    ModelError
        The network has operators that torch cannot execute here.
    """

    def __init__(self, of: Quantizable, bits: Bits, codes: Mapping[str, LayerCodes], mode: FinetuneMode) -> None:
        super().__init__()
        self.of, self.bits, self._held = of, bits, dict(codes)
        quantizers = quantizers_of(of.grids, of.placement, bits.activations)
        inserted = insert_quantizers(of.graph, of.network, of.placement, quantizers)
        self._owners = _Owners(of, bits)
        graph, grids = _with_fake_quantizers(inserted, self._owners)
        self.network = GraphModule(graph, {**OPERATORS, _FAKE_QUANTIZE: _fake_quantize}, batch=of.graph.batch)
        self.steps, self.zero_points = torch.nn.ModuleDict(), torch.nn.ModuleDict()
        self._sharing = _values_of(of, grids)
        self._limits = _step_limits(of, bits, self._owners)
        for key, grid in grids.items():
            self.steps[escaped(key)] = learned.step(torch.tensor(grid.scale, dtype=torch.float32), trained=True)
            # a range that begins or ends at 0 keeps that end
            learns = 0 < grid.zero_point < (1 << grid.bits) - 1
            zero = torch.tensor(float(grid.zero_point))
            self.zero_points[escaped(key)] = Learned(zero, torch.tensor(float((1 << grid.bits) - 1)), trained=learns)
        self._grids = grids
        self.weights, self.biases = torch.nn.ModuleDict(), torch.nn.ModuleDict()
        self._layers = [layer for layer in of.network.layers if layer.name in codes]
        for layer in self._layers:
            held = codes[layer.name]
            weight = WeightQuantizer(held.rounded, int(layer.channel_axis or 0), learns=mode != "scales")
            self.weights[escaped(layer.name)] = weight
            if (bias := held.bias_values()) is not None:
                # of a tenth of the weights' norm, a bias matters to outputs even where it is 0
                least = 0.1 * float(weight.values().detach().square().sum().sqrt()) / len(bias) ** 0.5
                self.biases[escaped(layer.name)] = learned.values(torch.from_numpy(bias), least, trained=True)
        self.affine = torch.nn.ModuleDict()
        for name in _affine(of, {str(layer.bias) for layer in of.network.layers}):
            start = torch.from_numpy(of.graph.constant(name).copy())
            self.affine[escaped(name)] = learned.values(start, 1e-3, trained=True)
        self._affine_names = {escaped(name): name for name in of.graph.initializers}

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits [N, classes] of images [N, …]."""
        logits: Tensor = self.network(images, self.constants())
        return logits

    def constants(self, names: Container[str] | None = None) -> dict[str, Tensor]:
        """Return quantized constants by name, as functions of what learns.

        Parameters
        ----------
        names : the constants to return; None: all
        """
        given: dict[str, Tensor] = {}
        for key, grid in self._grids.items():
            if names is not None and _scale(key) not in names:
                continue
            largest = (1 << grid.bits) - 1
            given[_scale(key)] = scaled_gradient(
                self.steps[escaped(key)](), gradient_scale(self._sharing[key], largest)
            )
            zero = self.zero_points[escaped(key)]()
            given[_zero_point(key)] = straight_through(zero, zero.detach().round().clamp(0, largest))
        for layer in self._layers:
            if names is not None and layer.weight not in names:
                continue
            name = escaped(layer.name)
            weight: WeightQuantizer = self.weights[name]  # type: ignore[assignment]
            given[str(layer.weight)] = weight.values()
            if name in self.biases:
                bias = self.biases[name]()
                units = self._units(layer, weight).double()
                codes = torch.round(bias.detach().double() / units).clamp(-LARGEST_BIAS, LARGEST_BIAS)
                on_grid = torch.where(units > 0, codes, torch.zeros_like(codes)).float() * units.float()
                given[str(layer.bias)] = straight_through(bias, on_grid)
        for name, value in self.affine.items():
            if names is None or self._affine_names[name] in names:
                given[self._affine_names[name]] = value()
        return given

    def parameters_of(self, names: Container[str]) -> list[torch.nn.Parameter]:
        """Return what learns of the constants of these names."""
        modules: list[torch.nn.Module] = []
        for key in self._grids:
            if _scale(key) in names:
                modules += [self.steps[escaped(key)], self.zero_points[escaped(key)]]
        for layer in self._layers:
            if layer.weight in names:
                modules.append(self.weights[escaped(layer.name)])
                modules += [self.biases[escaped(layer.name)]] if escaped(layer.name) in self.biases else []
        modules += [value for name, value in self.affine.items() if self._affine_names[name] in names]
        return [one for module in modules for one in module.parameters()]

    @torch.no_grad()
    def limit(self) -> None:
        """Keep steps above 0, and zero points within their codes; call after every update."""
        for key, grid in self._grids.items():
            step, zero = self.steps[escaped(key)], self.zero_points[escaped(key)]
            step.limit(_LEAST_STEP * step.start, self._limits.get(key, torch.inf))  # type: ignore[operator]
            zero.limit(0.0, float((1 << grid.bits) - 1))  # type: ignore[operator]
        for weight in self.weights.values():
            weight.steps.limit(_LEAST_STEP * weight.steps.start)  # type: ignore[operator,union-attr]

    def groups(self) -> Iterator[tuple[str, list[torch.nn.Parameter]]]:
        """Yield what learns, by kind: "weights", "steps", "biases"."""
        weights = [w.latent.change for w in self.weights.values() if w.latent.change is not None]  # type: ignore[union-attr]
        steps = [one.change for one in (*self.steps.values(), *(w.steps for w in self.weights.values()))]  # type: ignore[union-attr]
        zeros = [one.change for one in self.zero_points.values() if one.change is not None]
        biases = [one.change for one in (*self.biases.values(), *self.affine.values())]
        yield "weights", weights  # type: ignore[misc]
        yield "steps", steps + zeros  # type: ignore[misc]
        yield "biases", biases  # type: ignore[misc]

    @torch.no_grad()
    def export(self) -> Exported:
        """Return the constants of the network as it is now."""
        activations = {tensor: dict(grids) for tensor, grids in self.of.grids.activations.items()}
        current: dict[str, Quantizer] = {}
        for key, grid in self._grids.items():
            zero = int(self.zero_points[escaped(key)]().round().clamp(0, (1 << grid.bits) - 1))
            current[key] = Quantizer(grid.bits, float(self.steps[escaped(key)]()), zero)
        for tensor, bits, key in self._owners.entries():
            if key in current:
                activations[tensor][bits] = current[key]
        grids = GridTable(activations, self.of.grids.weights, self.of.grids.factors)
        codes = {}
        for layer in self._layers:
            weight: WeightQuantizer = self.weights[escaped(layer.name)]  # type: ignore[assignment]
            bias = self.biases[escaped(layer.name)]() if escaped(layer.name) in self.biases else None
            rounded = weight.export(self._held[layer.name].rounded)
            if bias is not None:
                rounded = dataclasses.replace(rounded, bias=bias.double().numpy())
            codes[layer.name] = with_bias(layer, rounded, grids, self.bits.activations)
        changed = {self._affine_names[name]: value().numpy() for name, value in self.affine.items()}
        graph = Graph(with_initializers(self.of.graph.model, changed))
        return Exported(dataclasses.replace(self.of, graph=graph, grids=grids), codes)

    def _units(self, layer: Layer, weight: WeightQuantizer) -> Tensor:
        """Return the scales of a bias, see `quantize.grid.bias_scales`."""
        key = self._owners.of_group(layer.groups[0])
        units: Tensor = weight.steps().detach() * self.steps[escaped(key)]().detach()
        count = self.biases[escaped(layer.name)].start.numel()  # type: ignore[operator]
        return units.tile(count // len(units))


class WeightQuantizer(torch.nn.Module):
    """The quantized weight of a layer.

    The weight before rounding is kept in units of its step: w = s · θ. Rounded weights lie on the grid, where LSQ's
    gradient of the step, round(w/s) − w/s, is 0 with w held fixed, and the steps would not learn. With θ held fixed it
    is the code.

    Parameters
    ----------
    held : rounded weight
    axis : channel axis
    learns : whether the codes may change
    """

    codes: Tensor
    origins: Tensor

    def __init__(self, held: RoundedWeight, axis: int, *, learns: bool) -> None:
        super().__init__()
        self.axis, self.dims = axis, held.codes.ndim
        self.count = 1 << held.bits
        self.spacing = 1
        if held.origins is not None:
            self.spacing, origins = 2, held.origins.astype(np.float32)
        else:
            low, high = weight_code_limits(held.bits)
            self.count = high - low + 1
            origins = np.full(len(held.scales), low, np.float32)
        self.register_buffer("codes", torch.from_numpy(held.codes.astype(np.float32)), persistent=False)
        self.register_buffer("origins", torch.from_numpy(per_channel(origins, self.dims, axis)), persistent=False)
        self.steps = learned.step(torch.from_numpy(held.scales.copy()), trained=True)
        self.latent = learned.values(self.codes, 1.0, trained=learns)
        self.sharing = gradient_scale(self.codes.numel() // len(held.scales), self.spacing * (self.count - 1) // 2 or 1)

    def _spread(self, steps: Tensor) -> Tensor:
        return steps.reshape([-1 if axis == self.axis else 1 for axis in range(self.dims)])

    def values(self) -> Tensor:
        """Return the quantized values, in the weight's shape."""
        steps = self._spread(scaled_gradient(self.steps(), self.sharing))
        if self.latent.change is None:
            return steps * self.codes
        return quantize_weight(steps * self.latent(), steps, self.origins, self.spacing, self.count)

    def export(self, start: RoundedWeight) -> RoundedWeight:
        """Return the rounded weight as it is now, in place of that at the start."""
        steps = self.steps()
        codes = self.codes
        if self.latent.change is not None:
            spread = self._spread(steps)
            codes = codes_of(spread * self.latent(), spread, self.origins, self.spacing, self.count)
        return dataclasses.replace(start, codes=codes.numpy().astype(np.int8), scales=steps.numpy().copy())


class _Owners:
    """Which grid each quantizer has: quantizers that have to agree share one."""

    def __init__(self, of: Quantizable, bits: Bits) -> None:
        self._of, self._bits = of, bits

    def of_storage(self, tensor: str) -> str:
        """Return the key of the 8-bit grid of a tensor."""
        placement, grids = self._of.placement, self._of.grids.activations
        root = placement.root(tensor)
        # what only a Concat reads has the grid of its result, if it began so
        while root in placement.joined and grids[root][BASELINE_BITS] == grids[placement.joined[root]][BASELINE_BITS]:
            root = placement.joined[root]
        return f"{root}/storage"

    def of_group(self, group: str) -> str:
        """Return the key of the grid of a group."""
        return self.of_storage(group) if self._bits.activations[group] == BASELINE_BITS else f"{group}/group"

    def of_constants(self, prefix: str) -> str:
        """Return the key of a quantizer by the prefix of its constants' names, see `insert_quantizers`."""
        tensor, _, kind = prefix.rpartition("/")
        return self.of_group(tensor) if kind == "group" else self.of_storage(tensor)

    def entries(self) -> Iterator[tuple[str, int, str]]:
        """Yield every grid that a network at these bits reads: tensor, bits, key."""
        for tensor in self._of.placement.storage:
            yield tensor, BASELINE_BITS, self.of_storage(tensor)
        for group, bits in self._bits.activations.items():
            yield group, bits, self.of_group(group)


def _scale(key: str) -> str:
    return f"{key}/scale"


def _zero_point(key: str) -> str:
    return f"{key}/zero_point"


def _with_fake_quantizers(model: onnx.ModelProto, owners: _Owners) -> tuple[Graph, dict[str, Quantizer]]:
    """Replace each QuantizeLinear, Clip and DequantizeLinear by one node, and return the grids by their keys."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    readers = {name: node for node in model.graph.node for name in node.input}
    grids: dict[str, Quantizer] = {}
    nodes, dropped = [], set()
    for node in model.graph.node:
        if id(node) in dropped:
            continue
        if node.op_type != "QuantizeLinear":
            nodes.append(node)
            continue
        source, scale, zero_point = node.input
        last, bits = readers[node.output[0]], BASELINE_BITS
        if last.op_type == "Clip":
            bits = int(constants[last.input[2]]).bit_length()
            dropped.add(id(last))
            last = readers[last.output[0]]
        dropped.add(id(last))
        key = owners.of_constants(scale.removesuffix("/scale"))
        grids[key] = Quantizer(bits, float(constants[scale]), int(constants[zero_point]))
        inputs = [source, _scale(key), _zero_point(key)]
        nodes.append(
            helper.make_node(_FAKE_QUANTIZE, inputs, [last.output[0]], last.output[0], largest=(1 << bits) - 1)
        )
    fused = onnx.ModelProto()
    fused.CopyFrom(model)
    del fused.graph.node[:]
    fused.graph.node.extend(nodes)
    return Graph(fused), grids


def _fake_quantize(attributes: Attributes, x: Tensor, step: Tensor, zero_point: Tensor) -> Tensor:
    return fake_quantize(x, step, zero_point, attributes.get("largest", 255))


def _values_of(of: Quantizable, grids: Mapping[str, Quantizer]) -> dict[str, int]:
    """Return the number of values of an image that each grid quantizes."""
    return {key: of.graph.elements(key.rpartition("/")[0]) for key in grids}


def _step_limits(of: Quantizable, bits: Bits, owners: _Owners) -> dict[str, float]:
    """Return the largest steps with which a quantizer still does the clipping of a fused Relu or Clip.

    Beyond them, the emitted file would need the Clip, and onnxruntime would run its convolution in float.
    """
    limits: dict[str, float] = {}
    quantizers = quantizers_of(of.grids, of.placement, bits.activations)
    for tensor in of.placement.fused:
        direct = tensor in of.placement.direct
        grid = quantizers.groups[tensor] if direct else quantizers.storage[tensor]
        low, high = clip_bounds(of.graph, of.graph.producer[tensor])
        if np.isfinite(high) and clips_alike(grid, low, high):
            key = owners.of_group(tensor) if direct else owners.of_storage(tensor)
            limit = high / ((1 << grid.bits) - 1.5) * (1 - 1e-6)
            limits[key] = min(limits.get(key, limit), limit)
    return limits


def _affine(of: Quantizable, biases: set[str]) -> list[str]:
    """Name the factors and offsets per channel of normalisations, and of what is left of them as Mul and Add."""
    found: dict[str, None] = {}
    for node in of.graph.nodes:
        for index in _AFFINE.get(node.op_type, ()):
            name = node.input[index] if index < len(node.input) else ""
            if name not in of.graph.initializers or name in biases:
                continue
            values = of.graph.constant(name)
            if values.dtype == np.float32 and values.size > 1 and values.size == max(values.shape):
                found[name] = None
    return list(found)
