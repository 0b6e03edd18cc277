"""Round every layer on its own: its input is the float network's, so its codes do not depend on other layers' bits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.operators import bounds_behind
from infoq_onnx.quantize.codes import CodeTable
from infoq_onnx.quantize.rounding import round_widths
from infoq_onnx.schema import Network
from infoq_onnx.simulate.forms import form_of, target_of
from infoq_onnx.simulate.gather import gather
from infoq_onnx.simulate.spill import Spill
from infoq_onnx.simulate.streams import Stream


def round_alone(
    graph: Graph,
    network: Network,
    dataset: Dataset,
    bits: Sequence[int],
    progress: Callable[[str, int, int], None],
    spill: Spill | None = None,
    kept: CodeTable | None = None,
    keep: Callable[[CodeTable], None] = lambda _: None,
) -> CodeTable:
    """Round every layer that is a plain matrix product, at several bit-widths.

    Parameters
    ----------
    graph, network : the float network
    dataset : calibration images
    bits : widths wanted
    progress : called as progress(layer, layers done, layers in all)
    spill : where activations go that would take too much memory
    kept : layers that are rounded already
    keep : called with all that are after each
    """
    stream = Stream(graph, dataset, integer=True, spill=spill)
    table: CodeTable = dict(kept or {})
    for done, layer in enumerate(network.layers):
        progress(layer.name, done, len(network.layers))
        form = None if layer.name in table else form_of(graph, layer)
        if form is not None:
            seen = gather(stream, stream, layer, form, bounds=bounds_behind(graph, target_of(graph, layer)))
            widths = round_widths(
                form.rows(),
                seen.moments,
                bits,
                has_bias=layer.bias is not None,
                exact_input=True,
                clipped=seen.clipped,
            )
            table[layer.name] = {b: form.rounded(rounded) for b, rounded in widths.items()}
            keep(table)
        stream.advance(layer)
    progress("", len(network.layers), len(network.layers))
    return table
