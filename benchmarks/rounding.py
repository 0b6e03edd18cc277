"""What each step of the rounding is worth, on images that nothing was fitted to and that are no test images.

    python benchmarks/rounding.py SHARED cifar10_resnet20 -o docs/benchmarks/rounding.md --date 2026-11-21

SHARED is the folder with the real models and images. Calibration takes `--samples` of the calibration images; the rest
of them, up to 2000, is what the steps are compared on, so that no choice is made on the test images. The measure is
the KL divergence of the quantized model's predictions from the float model's, which needs no labels.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from infoq_onnx.data.dataset import Dataset
from infoq_onnx.graph.session import open_session
from infoq_onnx.inputs import PreparedModel, load_samples, prepare
from infoq_onnx.quantize import fit, rounding
from infoq_onnx.quantize.table import GridTable
from infoq_onnx.simulate import reconstruct as reconstruction
from infoq_onnx.simulate.alone import round_alone
from infoq_onnx.simulate.batching import batch_size, logits_of
from infoq_onnx.simulate.calibrate import calibrate
from infoq_onnx.simulate.divergence import kl_divergence
from infoq_onnx.simulate.equalize import equalized, find_factors
from infoq_onnx.simulate.reconstruct import reconstruct
from infoq_onnx.simulate.simulation import LayerCodes, layer_codes, simulation

MODELS = {"cifar10_resnet20": ("cifar10", "imagenet"), "mobilenetv2": ("imagenet", "tf")}
COMPARED = 2000

Codes = dict[str, LayerCodes]
Bits = tuple[dict[str, int], dict[str, int]]


def quiet(*_: Any) -> None:
    """Report nothing."""


@dataclasses.dataclass
class Model:
    """A model with its calibration images and grids."""

    prepared: PreparedModel
    dataset: Dataset
    table: GridTable

    def nearest(self, bits: Bits) -> Codes:
        return layer_codes(self.prepared.graph, self.prepared.network, self.table, *bits)

    def alone(self, bits: Bits) -> Codes:
        graph, network = self.prepared.graph, self.prepared.network
        widths = sorted(set(bits[0].values()))
        return layer_codes(graph, network, self.table, *bits, round_alone(graph, network, self.dataset, widths, quiet))

    def repaired(self, bits: Bits) -> Codes:
        prepared = self.prepared
        return reconstruct(prepared.graph, prepared.network, prepared.placement, self.table, *bits, self.dataset, quiet)


@contextlib.contextmanager
def without(*names: str) -> Iterator[None]:
    """Leave steps out."""
    changes: dict[str, Callable[[], Any]] = {
        "descent": lambda: mock.patch.object(rounding, "descend", lambda *given: given[2:4]),
        "own levels": lambda: mock.patch.object(rounding, "SHIFTED_BITS", 0),
        "means behind": lambda: mock.patch.object(reconstruction, "bounds_behind", return_value=None),
        "means in front": lambda: mock.patch.object(reconstruction, "_feels_shifts", return_value=True),
        "choice of damping": lambda: mock.patch.object(fit, "_CANDIDATES", (fit.DAMPING,)),
        "sums": lambda: mock.patch.object(reconstruction, "_shortcut", return_value=None),
    }
    with contextlib.ExitStack() as stack:
        for name in names:
            stack.enter_context(changes[name]())
        yield


def main() -> None:
    """Run every variant and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--date", required=True)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--only", default="", help="run the variants whose name holds one of these, comma-separated")
    parser.add_argument("--bits", default="3/8,2/8,4/4,3/3")
    arguments = parser.parse_args()
    data, preprocess = MODELS[arguments.model]
    prepared = prepare(arguments.shared / "models" / f"{arguments.model}.onnx")
    folder = arguments.shared / "data" / data
    classes = folder / "classes.txt" if (folder / "classes.txt").exists() else None
    samples, everything = (
        load_samples(prepared, folder / "calib", classes, preprocess, count, 0) for count in (arguments.samples, None)
    )
    compared = rest_of(everything, samples)
    expected = logits_of(open_session(prepared.graph.model), prepared.graph, compared, batch_size(prepared.graph))
    configurations = [tuple(map(int, text.split("/"))) for text in arguments.bits.split(",")]
    widths = sorted({b for pair in configurations for b in pair})

    def made(equalize: bool) -> Model:
        graph = prepared.graph
        if equalize:
            graph = equalized(graph, prepared.network, find_factors(graph, prepared.network, samples, quiet))
        table = calibrate(graph, prepared.network, prepared.placement, samples, widths, quiet)
        return Model(dataclasses.replace(prepared, graph=graph), samples, table)

    model, plain = made(equalize=True), made(equalize=False)
    variants: list[tuple[str, Model, Callable[[Model, Bits], Codes], tuple[str, ...]]] = [
        ("nearest", model, Model.nearest, ()),
        ("gptq, no descent, each layer alone", model, Model.alone, ("descent",)),
        ("gptq, each layer alone (`--no-repair`)", model, Model.alone, ()),
        ("repaired, without descent", model, Model.repaired, ("descent",)),
        ("repaired, λ = 0.01 throughout", model, Model.repaired, ("choice of damping",)),
        ("repaired, with the usual levels (two's complement)", model, Model.repaired, ("own levels",)),
        ("repaired, with means in front of all activations", model, Model.repaired, ("means behind",)),
        ("repaired, with means behind all activations", model, Model.repaired, ("means in front",)),
        ("repaired, without the float sums of residual branches", model, Model.repaired, ("sums",)),
        ("repaired, without equalisation", plain, Model.repaired, ()),
        ("repaired: all of it, the default", model, Model.repaired, ()),
    ]
    lines = [
        "# What each step of the rounding is worth",
        "",
        f"{arguments.date}; infoq-onnx {importlib.metadata.version('infoq-onnx')}; made by",
        f"`python benchmarks/rounding.py SHARED {arguments.model} --samples {arguments.samples}`.",
        f"{arguments.model}, uniform bits, {len(samples)} calibration images (seed 0). KL divergence from the float",
        f"model's predictions (and share of equal predictions, %) on {len(compared)} other calibration images;",
        "the test images played no part.",
        "",
        f"| rounding | {' | '.join(f'{w}/{a}' for w, a in configurations)} | seconds |",
        f"|---|{'---|' * len(configurations)}---|",
    ]
    only = arguments.only.split(",")
    for name, of, rounded, left_out in variants:
        if not any(part in name for part in only):
            continue
        if of is plain and not model.table.activations.keys() - plain.table.activations.keys() and same(model, plain):
            continue
        cells, start = [], time.monotonic()
        for weights, activations in configurations:
            network = of.prepared.network
            bits = (
                {layer.name: weights for layer in network.layers if layer.weight is not None},
                {group.name: activations for group in network.groups},
            )
            with without(*left_out):
                codes = rounded(of, bits)
            graph = of.prepared.graph
            simulated = simulation(graph, network, of.prepared.placement, of.table, *bits, codes=codes)
            found = logits_of(open_session(simulated, integer_kernels=False), graph, compared, batch_size(graph))
            cells.append(difference(expected, found))
            print(name, f"{weights}/{activations}", cells[-1], flush=True)
        seconds = (time.monotonic() - start) / len(configurations)
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |")
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def same(one: Model, other: Model) -> bool:
    """Whether equalisation found nothing to do."""
    return bool(one.prepared.graph.model == other.prepared.graph.model)


def rest_of(everything: Dataset, samples: Dataset) -> Dataset:
    """The samples that were not drawn, up to `COMPARED` of them."""
    left = np.setdiff1d(everything.indices, samples.indices)
    chosen = left[:: max(1, len(left) // COMPARED)]
    positions = np.searchsorted(everything.indices, chosen)
    read = everything._read

    def some(start: int, stop: int) -> Any:
        return np.concatenate([read(int(i), int(i) + 1) for i in positions[start:stop]])

    labels = None if everything.labels is None else everything.labels[positions]
    return dataclasses.replace(everything, indices=chosen, labels=labels, _read=some)


def difference(expected: Any, found: Any) -> str:
    """KL divergence and share of equal predictions."""
    divergence = np.mean(kl_divergence(expected, found))
    agreement = np.mean(expected.argmax(axis=1) == found.argmax(axis=1))
    return f"{divergence:.4f} ({100 * agreement:.1f})"


if __name__ == "__main__":
    main()
