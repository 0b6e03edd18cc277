"""The quantizable parts of a model."""

from __future__ import annotations

from dataclasses import dataclass

from infoq_onnx.schema.bits import Unit


@dataclass(frozen=True)
class Layer:
    """A quantizable node: Conv, ConvTranspose, Gemm, MatMul with a constant side, or MatMul of two activations."""

    name: str
    op_type: str
    groups: tuple[str, ...]
    """The activation groups (tensor names) that feed the layer: one, or two for a MatMul of two activations."""
    weight: str | None
    """The weight initializer; None for a MatMul of two activations."""
    weight_shape: tuple[int, ...]
    channel_axis: int | None
    """Output-channel axis of the weight. Each index along it has its own scale."""
    bias: str | None
    output: str
    """The output tensor of the node."""
    observed: str
    """The tensor at which the layer is observed: its output after activation function and residual Add."""
    output_shape: tuple[int, ...]
    parameters: int
    """Number of weight elements, without biases (which stay in float or int32)."""
    macs: int

    @property
    def channels(self) -> int | None:
        """Number of output channels of the weight; None without a weight."""
        return None if self.channel_axis is None else self.weight_shape[self.channel_axis]


@dataclass(frozen=True)
class ActivationGroup:
    """The layers fed by one tensor. They share one activation quantizer and therefore one bit-width."""

    name: str
    """Name of the tensor."""
    layers: tuple[str, ...]
    shape: tuple[int, ...]
    elements: int


@dataclass(frozen=True)
class SkippedNode:
    """A node with weights or a multiplication that stays in float, with the reason."""

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class Network:
    """The quantizable parts of a normalised graph, in topological order."""

    input: str
    input_shape: tuple[int, ...]
    output: str
    classes: int
    batch: int | None
    """Fixed batch size of the graph; None if the batch size is free."""
    opset: int
    layers: tuple[Layer, ...]
    groups: tuple[ActivationGroup, ...]
    skipped: tuple[SkippedNode, ...]
    repeated: int = 0
    """Weight elements that splitting channels into parts added to the given model (`Split`)."""


def units_of(network: Network, *, weight_only: bool = False) -> tuple[Unit, ...]:
    """Return all units: the weights of every layer that has weights, then every activation group, in topological order.

    With `weight_only`, activation groups are omitted.
    """
    weights = tuple(Unit("weight", layer.name) for layer in network.layers if layer.weight is not None)
    return weights if weight_only else (*weights, *(Unit("activation", group.name) for group in network.groups))


def tensor_of(network: Network, unit: Unit) -> str:
    """Return the tensor that a unit quantizes: the weight initializer of a layer, or the tensor of a group."""
    if unit.kind == "activation":
        return unit.name
    weight = next(layer.weight for layer in network.layers if layer.name == unit.name)
    if weight is None:
        raise ValueError(f"{unit.name} has no weight")
    return weight


@dataclass(frozen=True)
class Split:
    """A channel that is much larger than the others of its tensor and is therefore read in parts.

    See `simulate.equalization.channel_splitting`.
    """

    tensor: str
    channel: int
    parts: int
