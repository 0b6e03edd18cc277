"""Layer by layer, make the quantized network compute what the float network computes.

Two streams run side by side: the float network, and the quantized one with every layer before the present one rounded.
Each layer is fitted to the float stream's output on the quantized stream's input and then rounded, so it mends what was
lost before it, activations included. Where its output goes straight into a residual Add, it is fitted to the float
*sum*, and so mends what the shortcut lost too.

Images stream in batches, and of a layer only moments are kept. Behind each layer both streams keep what the rest of the
network reads, where that fits memory, so that the next layer need not run them from the images again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.editing import attribute, input_at, reads
from infoq_onnx.graph.extract import extract
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import open_session
from infoq_onnx.quantize.columns import (
    Windows,
    conv_columns,
    conv_outputs,
    from_rows,
    matrix_columns,
    to_rows,
)
from infoq_onnx.quantize.gptq import Moments, round_layer
from infoq_onnx.quantize.grid import bias_scales, dequantize_bias, dequantize_weight, quantize_bias
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import Layer, Network
from infoq_onnx.simulate.batching import batch_size, padded
from infoq_onnx.simulate.calibrate import quantizers_of
from infoq_onnx.simulate.insert import insert_quantizers
from infoq_onnx.simulate.placement import Placement
from infoq_onnx.simulate.simulation import LayerCodes, layer_codes, set_initializers

Float32 = npt.NDArray[np.float32]
_COLUMN_BYTES = 128 * 2**20
"""What the columns of one batch may take."""
_KEPT_BYTES = 512 * 2**20
"""What one stream may keep of all images between two layers."""
_POSITIONS = 256
"""Output positions of an image that enter the moments: neighbours say much the same."""


@dataclass(frozen=True)
class _Form:
    """A layer as a matrix product."""

    groups: int
    windows: Windows | None
    """None for a matrix product."""

    def columns(self, values: Float32) -> Float32:
        return matrix_columns(values) if self.windows is None else conv_columns(values, self.windows)

    def outputs(self, values: Float32) -> Float32:
        return matrix_columns(values) if self.windows is None else conv_outputs(values, self.groups)


def reconstruct(
    graph: Graph,
    network: Network,
    placement: Placement,
    table: GridTable,
    weight_bits: Mapping[str, int],
    activation_bits: Mapping[str, int],
    dataset: Dataset,
    progress: Callable[[str, int, int], None],
) -> dict[str, LayerCodes]:
    """Round every layer in topological order, each to mend what was lost before it.

    Parameters
    ----------
    graph, network, placement, table : the network and its activation grids
    weight_bits, activation_bits : the allocation
    dataset : calibration images
    progress : called as progress(layer, layers done, layers in all)

    Returns
    -------
    dict of str to LayerCodes
        By layer. Layers that are no plain matrix product (ConvTranspose …) have their nearest codes.
    """
    codes = layer_codes(graph, network, table, weight_bits, activation_bits)
    quantizers = quantizers_of(table, placement, dict(activation_bits))
    reference = _Stream(graph, dataset, integer=True)
    student = _Stream(Graph(insert_quantizers(graph, network, placement, quantizers)), dataset, integer=False)
    layers = [layer for layer in network.layers if layer.name in codes]
    for done, layer in enumerate(layers):
        progress(layer.name, done, len(layers))
        form = _form(graph, layer)
        if form is not None:
            moments = _moments(reference, student, layer, form)
            group = layer.groups[0]
            scale = table.activations[group][activation_bits[group]].scale
            codes[layer.name] = _rounded(graph, layer, form, moments, weight_bits[layer.name], scale)
        student.fix(layer, codes[layer.name])
        reference.advance(layer)
        student.advance(layer)
    progress("", len(layers), len(layers))
    return codes


class _Stream:
    """One of the two networks, as far as it has been run."""

    def __init__(self, graph: Graph, dataset: Dataset, *, integer: bool) -> None:
        self.graph = graph
        self.node = {node.name: node for node in graph.nodes}
        self.size = batch_size(graph)
        self._dataset, self._integer = dataset, integer
        self._index = {node.name: index for index, node in enumerate(graph.nodes)}
        self._fixed: dict[str, Float32] = {}
        self._kept: dict[str, Float32] | None = None
        """What the rest of the network reads, of all images; None: only the images themselves."""

    def fix(self, layer: Layer, codes: LayerCodes) -> None:
        """Give a layer its rounded constants."""
        if layer.weight is not None and layer.channel_axis is not None:
            self._fixed[layer.weight] = dequantize_weight(codes.weight, codes.scales, layer.channel_axis)
        if layer.bias is not None and codes.bias is not None and codes.bias_scales is not None:
            self._fixed[layer.bias] = dequantize_bias(codes.bias, codes.bias_scales)

    def run(self, tensors: Sequence[str], size: int) -> Iterator[list[Float32]]:
        """Yield some tensors of each batch, [n, …]; whole, where their leading axis is not the batch."""
        fixed = self.graph.batch
        batches = self._dataset.batches(fixed or size) if self._kept is None else self._stored(fixed or size)
        session = None
        for batch in batches:
            feeds = {self.graph.input: batch} if isinstance(batch, np.ndarray) else batch
            count = len(next(iter(feeds.values())))
            computed = [tensor for tensor in tensors if tensor not in feeds]
            if session is None and computed:
                part = extract(self.graph, list(feeds), computed)
                set_initializers(part, self._fixed)
                session = open_session(part, integer_kernels=self._integer)
            values = {name: padded(value, fixed) for name, value in feeds.items()}
            if session is not None:
                values.update(zip(computed, session.run(computed, values), strict=True))
            yield [values[name][:count] if name in self.graph.batched else values[name] for name in tensors]

    def advance(self, layer: Layer) -> None:
        """Keep what is read behind a layer, if that fits memory; else go on from where the stream was."""
        cut = self._index[layer.name]
        written = {self.graph.input, *(name for node in self.graph.nodes[: cut + 1] for name in node.output)}
        later = dict.fromkeys(name for node in self.graph.nodes[cut + 1 :] for name in reads(node))
        tensors = [name for name in later if name in written]
        if not tensors or not all(self._storable(name) for name in tensors):
            return
        if 4 * sum(math.prod(self.graph.shapes[name]) for name in tensors) * len(self._dataset) > _KEPT_BYTES:
            return
        parts = list(self.run(tensors, self.size))
        self._kept = {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(tensors)}

    def _storable(self, name: str) -> bool:
        return name in self.graph.batched and self.graph.dtypes[name] == np.float32

    def _stored(self, size: int) -> Iterator[dict[str, Float32]]:
        kept = self._kept or {}
        for start in range(0, len(self._dataset), size):
            yield {name: values[start : start + size] for name, values in kept.items()}


def _rounded(graph: Graph, layer: Layer, form: _Form, moments: Moments, bits: int, input_scale: float) -> LayerCodes:
    weight, axis = _weight(graph, layer)
    rows = to_rows(weight, axis, form.groups)
    rounded = round_layer(rows, moments, bits, has_bias=layer.bias is not None)
    scales = rounded.scales.reshape(-1)
    codes = from_rows(rounded.codes, weight.shape, axis).astype(np.int8)
    if rounded.bias is None:
        return LayerCodes(codes, scales, None, None)
    units = bias_scales(input_scale, scales)
    return LayerCodes(codes, scales, quantize_bias(rounded.bias.reshape(-1), units), units)


def _moments(reference: _Stream, student: _Stream, layer: Layer, form: _Form) -> Moments:
    """Run both networks up to a layer and sum the moments of its quantized input with its target."""
    graph = reference.graph
    node, shortcut = student.node[layer.name], _shortcut(graph, layer)
    wanted = [next(name for name in node.input if name in student.graph.shapes)]
    target = layer.output
    if shortcut is not None:
        target = shortcut.output[0]
        side = 1 - list(shortcut.input).index(layer.output)
        wanted.append(student.node[shortcut.name].input[side])
    weight, axis = _weight(graph, layer)
    groups, rows, width = to_rows(weight, axis, form.groups).shape
    moments = Moments(groups, width, rows)
    positions = math.prod(layer.output_shape) // (groups * rows)
    size = int(np.clip(_COLUMN_BYTES // (4 * groups * width * positions), 1, reference.size))
    draw = np.random.default_rng(0)
    for (targets,), inputs in zip(reference.run([target], size), student.run(wanted, size), strict=True):
        if shortcut is not None:
            targets = targets - inputs[1]
        columns, outputs = form.columns(inputs[0]), form.outputs(targets)
        if positions > _POSITIONS:
            share = columns.shape[1] * _POSITIONS // positions
            chosen = np.sort(draw.choice(columns.shape[1], share, replace=False))
            columns, outputs = columns[:, chosen], outputs[:, chosen]
        moments.add(columns, outputs)
    return moments


def _weight(graph: Graph, layer: Layer) -> tuple[npt.NDArray[np.float32], int]:
    if layer.weight is None or layer.channel_axis is None:
        raise ValueError(f"{layer.name} has no weight")
    return graph.constant(layer.weight), layer.channel_axis


def _shortcut(graph: Graph, layer: Layer) -> onnx.NodeProto | None:
    """Return the residual Add that is the only reader of a layer's output, where its other side comes before it."""
    readers = graph.consumers.get(layer.output, [])
    if len(readers) != 1 or readers[0].op_type != "Add" or layer.output in graph.outputs:
        return None
    others = [name for name in readers[0].input if name != layer.output]
    if len(others) != 1 or others[0] in graph.initializers or others[0] not in graph.shapes:
        return None
    if graph.shapes[others[0]] != graph.shapes[layer.output]:
        return None
    order = {tensor: index for index, node in enumerate(graph.nodes) for tensor in node.output}
    return readers[0] if order.get(others[0], -1) < order[layer.output] else None


def _form(graph: Graph, layer: Layer) -> _Form | None:
    """Bring a layer into the form of a matrix product; None where that is not possible."""
    if layer.bias is None and input_at(graph.producer[layer.output], 2):
        # what is added varies, and is in the target, but is nothing that weights should make
        return None
    # the constant on the left of a MatMul, or a stack of constants, would need columns of another kind
    plain_matmul = layer.op_type == "MatMul" and len(layer.weight_shape) == 2 and layer.channel_axis == 1
    if layer.op_type == "Gemm" or plain_matmul:
        return _Form(1, None)
    if layer.op_type != "Conv":
        return None
    node = graph.producer[layer.output]
    rank = len(layer.weight_shape) - 2
    kernel = layer.weight_shape[2:]
    strides = tuple(attribute(node, "strides", [1] * rank))
    dilations = tuple(attribute(node, "dilations", [1] * rank))
    before, after = _pads(graph, node, kernel, strides, dilations)
    groups = int(attribute(node, "group", 1))
    return _Form(groups, Windows(kernel, strides, dilations, before, after, groups))


def _pads(
    graph: Graph, node: onnx.NodeProto, kernel: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    mode = attribute(node, "auto_pad", b"NOTSET")
    rank = len(kernel)
    if mode in (b"SAME_UPPER", b"SAME_LOWER"):
        before, after = [], []
        for axis, size in enumerate(graph.shapes[node.input[0]][-rank:]):
            extent = dilations[axis] * (kernel[axis] - 1) + 1
            total = max(0, (-(-size // strides[axis]) - 1) * strides[axis] + extent - size)
            small, large = total // 2, total - total // 2
            before.append(small if mode == b"SAME_UPPER" else large)
            after.append(large if mode == b"SAME_UPPER" else small)
        return tuple(before), tuple(after)
    pads = [0] * (2 * rank) if mode == b"VALID" else attribute(node, "pads", [0] * (2 * rank))
    return tuple(pads[:rank]), tuple(pads[rank:])
