"""What there is to quantize in a model."""

from __future__ import annotations

from dataclasses import dataclass

from infoq_onnx.schema.bits import Unit


@dataclass(frozen=True)
class Layer:
    """A quantizable node: Conv, ConvTranspose, Gemm, MatMul with a constant side, or MatMul of two activations."""

    name: str
    op_type: str
    groups: tuple[str, ...]
    """The activation groups (tensor names) that feed it: one, or two for a MatMul of two activations."""
    weight: str | None
    """Its weight initializer; None for a MatMul of two activations."""
    weight_shape: tuple[int, ...]
    channel_axis: int | None
    """Axis of the weight that counts output channels: one scale for each index along it."""
    bias: str | None
    output: str
    """The tensor the node writes."""
    observed: str
    """Where the layer's effect is observed: its output after the activation function (and residual Add) behind it."""
    output_shape: tuple[int, ...]
    parameters: int
    """Weight elements; biases are not counted (they stay in float or int32)."""
    macs: int


@dataclass(frozen=True)
class ActivationGroup:
    """The layers fed by one tensor. They share one activation quantizer, hence one bit-width."""

    name: str
    """The tensor."""
    layers: tuple[str, ...]
    shape: tuple[int, ...]
    elements: int


@dataclass(frozen=True)
class SkippedNode:
    """A node that has weights or multiplies, and that is left in float, with the reason."""

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True)
class Network:
    """What there is to quantize in a normalised graph, in topological order."""

    input: str
    input_shape: tuple[int, ...]
    output: str
    classes: int
    batch: int | None
    """The batch size the graph is fixed to; None when it is free."""
    opset: int
    layers: tuple[Layer, ...]
    groups: tuple[ActivationGroup, ...]
    skipped: tuple[SkippedNode, ...]
    repeated: int = 0
    """Weight elements that the model as it was given does not have: those of channels read in parts (`Split`)."""


def units_of(network: Network, *, weight_only: bool = False) -> tuple[Unit, ...]:
    """List the weights of every layer that has some, then every activation group, in topological order."""
    weights = tuple(Unit("weight", layer.name) for layer in network.layers if layer.weight is not None)
    return weights if weight_only else (*weights, *(Unit("activation", group.name) for group in network.groups))


def tensor_of(network: Network, unit: Unit) -> str:
    """Return the tensor that a unit's bits decide: a layer's weight initializer, or the tensor of a group."""
    if unit.kind == "activation":
        return unit.name
    weight = next(layer.weight for layer in network.layers if layer.name == unit.name)
    if weight is None:
        raise ValueError(f"{unit.name} has no weight")
    return weight


@dataclass(frozen=True)
class Split:
    """A channel that dwarfs the others of its tensor, and is read in parts.

    See `simulate.equalization.channel_splitting`.
    """

    tensor: str
    channel: int
    parts: int
