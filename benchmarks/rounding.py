"""What each step of the rounding is worth, on images that nothing was fitted to and that are no test images.

    python benchmarks/rounding.py SHARED cifar10_resnet20 -o page.md --date 2026-11-22 --samples 500

SHARED is the folder with the real models and images. Calibration takes `--samples` of the calibration images; of the
rest of them, up to `--compared` are what the steps are compared on, so that no choice is made on the test images. The
measure is the KL divergence of the quantized model's predictions from the float model's, which needs no labels.

The table has the default, the default without each of its steps, what was tried and is no step, and what would be lost
if a part of the network stayed in float: where the loss comes from.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx
from page import versions

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.editing import set_initializers
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import open_session
from infoq_onnx.preparation import PreparedModel, load_samples, prepare, with_splits
from infoq_onnx.quantize import damping, least_squares, rounding
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.schema import BASELINE_BITS, Bits
from infoq_onnx.simulate.equalization.channel_absmax import reach
from infoq_onnx.simulate.equalization.channel_splitting import find_splits
from infoq_onnx.simulate.equalization.equalize import equalized, find_factors
from infoq_onnx.simulate.quantizers.calibrate import calibrate, quantizers_of
from infoq_onnx.simulate.quantizers.insert import insert_quantizers
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.rounding import gather
from infoq_onnx.simulate.rounding import sequential as reconstruction
from infoq_onnx.simulate.rounding.layerwise import round_layerwise
from infoq_onnx.simulate.rounding.sequential import round_sequential
from infoq_onnx.simulate.running.batching import batch_size, logits_of
from infoq_onnx.simulate.running.divergence import kl_divergence
from infoq_onnx.simulate.simulation import LayerCodes, layer_codes, simulation

MODELS = {
    "cifar10_resnet20": ("cifar10", "imagenet"),
    "mobilenetv2": ("imagenet", "tf"),
    "squeezenet1_1": ("imagenet", "imagenet"),
    "vit_tiny": ("imagenet", "tf"),
}
QUANTIZED = ("/group/values", "/storage/values")
"""What a tensor's name has behind it where its quantized values are read."""

SHARES = {"even 0.3": 0.3, "even 0.5": 0.5}
"""Ways that let normalisation and weights share their unevenness, with the share of the former."""

Codes = dict[str, LayerCodes]


def quiet(*_: Any) -> None:
    """Report nothing."""


@dataclasses.dataclass(frozen=True)
class Model:
    """A model with its calibration images and grids."""

    prepared: PreparedModel
    dataset: Dataset
    table: GridTable

    @property
    def of(self) -> Quantizable:
        prepared = self.prepared
        return Quantizable(prepared.graph, prepared.network, prepared.placement, self.table)

    def bits(self, weights: int, activations: int) -> Bits:
        network = self.prepared.network
        return Bits(
            {layer.name: weights for layer in network.layers if layer.weight is not None},
            {group.name: activations for group in network.groups},
        )

    def nearest(self, bits: Bits) -> Codes:
        return layer_codes(self.of, bits)

    def alone(self, bits: Bits) -> Codes:
        graph, network = self.prepared.graph, self.prepared.network
        widths = sorted(set(bits[0].values()))
        return layer_codes(self.of, bits, round_layerwise(graph, network, self.dataset, widths, quiet))

    def repaired(self, bits: Bits) -> Codes:
        return round_sequential(self.of, bits, self.dataset, quiet)

    def repaired_with_last_wide(self, bits: Bits) -> Codes:
        return self.repaired(Bits({**bits[0], list(bits[0])[-1]: BASELINE_BITS}, bits[1]))

    def simulated(self, bits: Bits, codes: Codes | None) -> onnx.ModelProto:
        """The network with these codes; with float weights where there are none."""
        prepared = self.prepared
        network = (prepared.graph, prepared.network, prepared.placement)
        if codes is None:
            return insert_quantizers(*network, quantizers_of(self.table, prepared.placement, bits[1]))
        return simulation(self.of, bits, codes=codes)

    def tensors(self) -> list[str]:
        """What there is a quantizer for."""
        return [*self.prepared.placement.storage, *self.prepared.placement.inherited]

    def made_by(self, tensor: str) -> str:
        """Operator that makes what a quantizer sees."""
        producer = self.prepared.graph.producer.get(self.prepared.placement.root(tensor))
        return "the input" if producer is None else producer.op_type


def let_through(model: onnx.ModelProto, tensors: list[str]) -> None:
    """Have tensors read as they are before their quantizer, in place."""
    before = {tensor + end: tensor for tensor in tensors for end in QUANTIZED}
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = before.get(name, name)


def evened(graph: Graph, prepared: PreparedModel, dataset: Dataset, share: float) -> Graph:
    """Let what a LayerNormalization makes and the weights that read it share their unevenness (arXiv 2211.10438)."""
    layer_of = {layer.name: layer for layer in prepared.network.layers}
    nodes = [
        node
        for node in graph.nodes
        if node.op_type == "LayerNormalization"
        and all(reader.name in layer_of for reader in graph.consumers[node.output[0]])
    ]
    reached = reach(graph, {node.output[0]: -1 for node in nodes}, dataset, quiet)
    changed = {}
    for node in nodes:
        readers = [layer_of[reader.name] for reader in graph.consumers[node.output[0]]]
        weights = {layer.weight: (graph.constant(str(layer.weight)), int(layer.channel_axis or 0)) for layer in readers}
        largest = np.max([np.abs(values).max(axis=axis) for values, axis in weights.values()], axis=0)
        factors = reached[node.output[0]] ** share / largest ** (1 - share)
        factors = (factors / np.exp(np.mean(np.log(factors)))).astype(np.float32)
        for name in node.input[1:3]:
            changed[name] = graph.constant(name) / factors
        for name, (values, axis) in weights.items():
            changed[str(name)] = values * np.expand_dims(factors, axis)
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    set_initializers(model, changed)
    return Graph(model)


def mirrored(dataset: Dataset) -> Dataset:
    """Each image once more, mirrored."""
    read, count = dataset._read, len(dataset)

    def both(positions: Any) -> Any:
        values = read(positions % count)
        return np.where((positions < count).reshape(-1, *[1] * (values.ndim - 1)), values, values[:, :, ::-1])

    return dataclasses.replace(dataset, indices=np.tile(dataset.indices, 2), labels=None, _read=both)


class Models:
    """One model, made ready in several ways, each when it is first asked for; None where a way changes nothing."""

    def __init__(self, prepared: PreparedModel, samples: Dataset, widths: list[int]) -> None:
        self.prepared, self.samples, self.widths = prepared, samples, widths
        self._made: dict[str, Model | None] = {}

    def __call__(self, way: str) -> Model | None:
        if way not in self._made:
            self._made[way] = self._make(way)
        return self._made[way]

    def _make(self, way: str) -> Model | None:
        prepared, samples = self.prepared, self.samples
        splits = find_splits(prepared.graph, prepared.network, prepared.placement, samples, quiet)
        if way != "unsplit":
            prepared = with_splits(prepared, splits)
        factors = find_factors(prepared.graph, prepared.network, samples, quiet)
        graph = prepared.graph
        normalizes = any(node.op_type == "LayerNormalization" for node in graph.nodes)
        changes = {"unsplit": bool(splits), "unequalised": bool(factors), **dict.fromkeys(SHARES, normalizes)}
        if not changes.get(way, True):
            return None
        if way != "unequalised":
            graph = equalized(graph, prepared.network, factors)
        if way in SHARES:
            graph = evened(graph, prepared, samples, SHARES[way])
        table = calibrate(graph, prepared.network, prepared.placement, samples, self.widths, quiet)
        rounded_with = mirrored(samples) if way == "mirrored" else samples
        return Model(dataclasses.replace(prepared, graph=graph), rounded_with, table)


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Leave steps out."""
    changes: dict[str, Callable[[], Any]] = {
        "descent": lambda: mock.patch.object(rounding, "descend", lambda *given: given[2:4]),
        "own levels": lambda: mock.patch.object(rounding, "SHIFTED_BITS", 0),
        "means behind": lambda: mock.patch.object(reconstruction, "bounds_behind", return_value=None),
        "means in front": lambda: mock.patch.object(reconstruction, "_feels_shifts", return_value=True),
        "choice of damping": lambda: mock.patch.object(least_squares, "CANDIDATES", (damping.DAMPING,)),
        "sums": lambda: mock.patch.object(reconstruction, "_shortcut", return_value=None),
        "weights of tokens": lambda: mock.patch.object(gather, "_normalizer", return_value=None),
    }
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(changes[name]())
        yield


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row."""

    name: str
    way: str = "default"
    """Of making the model ready, see `Models`."""
    rounded: Callable[[Model, Bits], Codes] | None = Model.repaired
    """None leaves weights in float."""
    left_out: tuple[str, ...] = ()
    quantized: frozenset[str] | None = None
    """Only what these operators make is; None: all."""


STEPS = (
    Variant("nearest", rounded=Model.nearest),
    Variant("gptq, no descent, each layer alone", rounded=Model.alone, left_out=("descent",)),
    Variant("gptq, each layer alone (`--no-repair`)", rounded=Model.alone),
    Variant("repaired, without descent", left_out=("descent",)),
    Variant("repaired, λ = 0.01 throughout", left_out=("choice of damping",)),
    Variant("repaired, with the usual levels (two's complement)", left_out=("own levels",)),
    Variant("repaired, with means in front of all activations", left_out=("means behind",)),
    Variant("repaired, with means behind all activations", left_out=("means in front",)),
    Variant("repaired, without the float sums of residual branches", left_out=("sums",)),
    Variant("repaired, without weights of tokens", left_out=("weights of tokens",)),
    Variant("repaired, without equalisation", way="unequalised"),
    Variant("repaired, without splitting channels", way="unsplit"),
    Variant("repaired: all of it, the default"),
    Variant("tried: LayerNormalization and weights behind it share their unevenness, α = 0.3", way="even 0.3"),
    Variant("tried: the same, α = 0.5", way="even 0.5"),
    Variant("tried: each image mirrored as well", way="mirrored"),
    Variant("limit: the default, the last layer's weights at 8 bits", rounded=Model.repaired_with_last_wide),
    Variant("limit: the default, activations in float", quantized=frozenset()),
    Variant("limit: weights in float", rounded=None),
)


def limits(model: Model) -> list[Variant]:
    """What each kind of operator loses by the quantizers behind it, with float weights."""
    name = "limit: weights in float, and all activations but what is behind"
    operators = sorted(set(map(model.made_by, model.tensors())))
    return [Variant(f"{name} {one}", rounded=None, quantized=frozenset([one])) for one in operators]


def main() -> None:
    """Run every variant and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--date", required=True)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--compared", type=int, default=2000)
    parser.add_argument("--only", default="", help="run the variants whose name holds one of these, separated by ;")
    parser.add_argument("--bits", default="3/8,2/8,4/4,3/3")
    arguments = parser.parse_args()
    data, preprocess = MODELS[arguments.model]
    prepared = prepare(arguments.shared / "models" / f"{arguments.model}.onnx")
    folder = arguments.shared / "data" / data
    classes = folder / "classes.txt" if (folder / "classes.txt").exists() else None
    samples, everything = (
        load_samples(prepared, folder / "calib", classes, preprocess, count, 0) for count in (arguments.samples, None)
    )
    compared = rest_of(everything, samples, arguments.compared)
    expected = logits_of(open_session(prepared.graph.model), prepared.graph, compared, batch_size(prepared.graph))
    configurations = [tuple(map(int, text.split("/"))) for text in arguments.bits.split(",")]
    models = Models(prepared, samples, sorted({b for pair in configurations for b in (*pair, BASELINE_BITS)}))
    default = models("default")
    assert default is not None
    lines = [
        f"## {arguments.model}",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'numpy')}; made by",
        f"`python benchmarks/rounding.py SHARED {arguments.model} --samples {arguments.samples} --bits {arguments.bits}"
        f"{f' --compared {arguments.compared}' if arguments.compared != 2000 else ''}"
        f"{f' --only {arguments.only!r}' if arguments.only else ''}`.",
        f"Uniform bits, {len(samples)} calibration images (seed 0), {len(compared)} others to compare on.",
        "",
        f"| rounding | {' | '.join(f'{w}/{a}' for w, a in configurations)} | seconds |",
        f"|---|{'---|' * len(configurations)}---|",
    ]
    only = arguments.only.split(";")
    rounded: dict[tuple[Any, ...], Codes | None] = {}
    for variant in (*STEPS, *limits(default)):
        if not any(part in variant.name for part in only):
            continue
        model = models(variant.way)
        if model is None:
            continue
        cells, start = [], time.monotonic()
        for configuration in configurations:
            bits = model.bits(*configuration)
            key = (variant.way, variant.rounded, variant.left_out, configuration)
            if key not in rounded:
                with without(*variant.left_out):
                    rounded[key] = None if variant.rounded is None else variant.rounded(model, bits)
            simulated = model.simulated(bits, rounded[key])
            graph, kept = model.prepared.graph, variant.quantized
            if kept is not None:
                let_through(simulated, [tensor for tensor in model.tensors() if model.made_by(tensor) not in kept])
            found = logits_of(open_session(simulated, integer_kernels=False), graph, compared, batch_size(graph))
            cells.append(difference(expected, found))
            print(variant.name, configuration, cells[-1], flush=True)
        seconds = (time.monotonic() - start) / len(configurations)
        lines.append(f"| {variant.name} | {' | '.join(cells)} | {seconds:.0f} |")
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def rest_of(everything: Dataset, samples: Dataset, most: int) -> Dataset:
    """The samples that were not drawn, up to `most` of them."""
    left = np.setdiff1d(everything.indices, samples.indices)
    chosen = left[:: max(1, len(left) // most)]
    return everything.part(np.searchsorted(everything.indices, chosen))


def difference(expected: Any, found: Any) -> str:
    """KL divergence and share of equal predictions."""
    divergence = np.mean(kl_divergence(expected, found))
    agreement = np.mean(expected.argmax(axis=1) == found.argmax(axis=1))
    return f"{divergence:.4f} ({100 * agreement:.1f})"


if __name__ == "__main__":
    main()
