"""Round layer by layer, so that the quantized network reproduces the outputs of the float network.

Two streams run side by side: the float network, and the quantized network in which all layers before the current one
are rounded. Each layer is fitted to the float stream's output on the quantized stream's input and then rounded. It thus
compensates for all earlier errors, including those of quantized activations. If its output goes directly into a
residual Add, the layer is fitted to the float *sum* and also compensates for errors of the shortcut. Images are
processed in batches; only moments are kept for each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import onnx

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.errors import about
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.operators import bounds_behind, is_depthwise
from infoq_onnx.quantize.rounding import round_layer
from infoq_onnx.schema import Bits, Layer
from infoq_onnx.simulate.quantizers.calibrate import quantizers_of
from infoq_onnx.simulate.quantizers.insert import insert_quantizers
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.rounding.as_matmul import form_of, target_of
from infoq_onnx.simulate.rounding.gather import gather
from infoq_onnx.simulate.running.spill import Spill
from infoq_onnx.simulate.running.streams import Stream
from infoq_onnx.simulate.simulation import LayerCodes, fitting, layer_codes, with_bias


def round_sequential(
    of: Quantizable,
    bits: Bits,
    dataset: Dataset,
    progress: Callable[[str, int, int], None],
    spill: Spill | None = None,
    exact: Collection[str] = (),
) -> dict[str, LayerCodes]:
    """Round every layer in topological order; each layer compensates for the errors of earlier ones.

    Parameters
    ----------
    of : the network
    bits : bit-width of every unit
    dataset : calibration images
    progress : called as progress(layer, number of layers done, total number of layers)
    spill : where to store activations that would take too much memory
    exact : layers whose pairs of products must fit 16 bits, see `simulation.fitting`

    Returns
    -------
    dict of str to LayerCodes
        By layer. Layers that are not a plain matrix product (ConvTranspose …) have their nearest codes.
    """
    graph, network = of.graph, of.network
    codes = layer_codes(of, bits)
    quantizers = quantizers_of(of.grids, of.placement, bits.activations)
    reference = Stream(graph, dataset, integer=True, spill=spill)
    quantized = Graph(insert_quantizers(graph, network, of.placement, quantizers))
    student = Stream(quantized, dataset, integer=False, spill=spill)
    layers = [layer for layer in network.layers if layer.name in codes]
    for done, layer in enumerate(layers):
        progress(layer.name, done, len(layers))
        form = form_of(graph, layer)
        if form is not None:
            shortcut = _shortcut(graph, layer)
            target = target_of(graph, layer) if shortcut is None else shortcut.output[0]
            bounds = bounds_behind(graph, target) if _feels_shifts(graph, layer, target) else None
            seen = gather(reference, student, layer, form, shortcut, bounds)
            has_bias = layer.bias is not None
            with about(f"layer {layer.name}"):
                rounded = round_layer(
                    form.rows(), seen.moments, bits.weights[layer.name], has_bias=has_bias, clipped=seen.clipped
                )
            held = form.rounded(rounded)
            if layer.name in exact:
                held = fitting(layer, held)
            codes[layer.name] = with_bias(layer, held, of.grids, bits.activations)
        student.fix(layer, codes[layer.name])
        reference.advance(layer)
        student.advance(layer)
    progress("", len(layers), len(layers))
    return codes


def _feels_shifts(graph: Graph, layer: Layer, target: str) -> bool:
    """Return whether a layer, or a reader of the activation after it, is depthwise.

    A dense reader compensates for a shifted mean when it is rounded itself. A depthwise one cannot, because its zero
    padding does not shift; see `quantize.bias_correction`.
    """
    readers = [reader for node in graph.consumers.get(target, []) for reader in graph.consumers.get(node.output[0], [])]
    padded = [behind for node in readers if node.op_type == "Pad" for behind in graph.consumers[node.output[0]]]
    return any(is_depthwise(graph, node) for node in (graph.producer[layer.output], *readers, *padded))


def _shortcut(graph: Graph, layer: Layer) -> onnx.NodeProto | None:
    """Return the residual Add that is the only reader of a layer's output.

    None if there is no such Add, or if its other operand is not computed before the layer's output.
    """
    target = target_of(graph, layer)
    readers = graph.consumers.get(target, [])
    if len(readers) != 1 or readers[0].op_type != "Add" or target in graph.outputs:
        return None
    others = [name for name in readers[0].input if name != target]
    if len(others) != 1 or others[0] in graph.initializers or others[0] not in graph.shapes:
        return None
    if graph.shapes[others[0]] != graph.shapes[target]:
        return None
    order = {tensor: index for index, node in enumerate(graph.nodes) for tensor in node.output}
    return readers[0] if order.get(others[0], -1) < order[target] else None
