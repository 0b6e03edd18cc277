"""The sweep beside the plain way of doing it, in the same run: whole forward passes, scikit-learn's estimators.

    python benchmarks/sweep.py SHARED WORK -o docs/benchmarks/sweep.md --date 2026-11-21 cifar10_resnet20 mobilenetv2

The plain way runs the whole network once a trial, in float with fake quantizers, and takes every estimate with
scikit-learn. It does the very trials of the analysis, with its images, its rounded weights, its observers and its
directions, and its scores must be the analysis'. As it takes hours, `--every 7` has it do each seventh trial, which are
spread over layers and widths alike, and counts their seconds seven times. WORK keeps the analyses and the plain trials:
the benchmark can be stopped. What is timed is not run beside anything else.
"""

from __future__ import annotations

import functools
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import sklearn.feature_selection._mutual_info as reference
from clock import Clock
from page import models_parser, versions

from infoq_onnx import analyze
from infoq_onnx.allocation.costs import uniform
from infoq_onnx.analyses import current, read_analysis
from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.graph.editing import set_initializers
from infoq_onnx.graph.extract import cut, extract
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.session import open_session, processors
from infoq_onnx.preparation import calibration_again, encode_inputs, prepare_again
from infoq_onnx.quantize.codes import load_codes
from infoq_onnx.quantize.grid import dequantize_weight
from infoq_onnx.quantize.table import load_table
from infoq_onnx.schema import BASELINE_BITS, Analysis, Trial, tensor_of
from infoq_onnx.sensitivity.estimators import (
    jitter,
    prepare,
    smi_discrete_from_projections,
    smi_from_prepared,
    standardize,
)
from infoq_onnx.sensitivity.estimators.sliced import directions
from infoq_onnx.sensitivity.observers import candidates
from infoq_onnx.sensitivity.projection import add_projections, projection_name
from infoq_onnx.sensitivity.targets import groups, has_classmates
from infoq_onnx.simulate.equalization.equalize import equalized
from infoq_onnx.simulate.quantizers.insert import grid_of_group, quantize_group
from infoq_onnx.simulate.quantizers.placement import place
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.running.batching import batch_size, logits_of
from infoq_onnx.simulate.running.divergence import kl_divergence
from infoq_onnx.simulate.running.prefix import Prefix
from infoq_onnx.simulate.running.streams import Stream
from infoq_onnx.simulate.simulation import layer_codes

# scikit-learn cuts estimates off at 0, which no difference of two estimates survives
reference.max = lambda low, value: value  # type: ignore[attr-defined]  # noqa: ARG005
# of classes smaller than twice k it takes distances as √(a² − 2ab + b²), which loses half of the digits, and neighbours
reference.NearestNeighbors = functools.partial(reference.NearestNeighbors, algorithm="kd_tree")


@dataclass(frozen=True)
class Case:
    """One model with the options of its analysis."""

    images: str
    preprocessing: str
    samples: int


CASES = {
    "cifar10_resnet20": Case("cifar10", "imagenet", 1000),
    "mobilenetv2": Case("imagenet", "tf", 200),
}


class Plain:
    """Trials of a finished analysis, the plain way."""

    def __init__(self, folder: Path) -> None:
        found = read_analysis(folder)
        prepared = prepare_again(found, None)
        self.dataset = calibration_again(found, prepared, None)
        self.table = load_table(current(folder).grids)
        self.codes = load_codes(current(folder).codes)
        self.network, self.settings = prepared.network, found.settings
        self.graph = equalized(prepared.graph, self.network, self.table.factors)
        logits = logits_of(open_session(prepared.graph.model), self.graph, self.dataset, batch_size(self.graph))
        self.labels = logits.argmax(axis=1) if self.dataset.labels is None else self.dataset.labels
        self.targets = self.labels if has_classmates(self.labels, self.settings.neighbours) else groups(logits)
        seed, count = self.settings.seed, self.settings.projections
        encoded = encode_inputs(self.settings.encoder, prepared, self.dataset)
        x_noise, self.y_noise, self.class_noise = _noises(seed)
        matrix = directions(encoded.shape[1], count, np.random.SeedSequence((seed, 0, 0)))
        self.x = jitter(standardize(encoded @ matrix), x_noise)
        model = onnx.ModelProto()
        model.CopyFrom(self.graph.model)
        for layer in self.network.layers:
            if layer.weight is not None:
                set_initializers(model, self.constants(layer.name, BASELINE_BITS))
        self.tensors = candidates(self.graph, self.network)
        self.observed = Graph(add_projections(model, self.graph, self.tensors, count, seed))
        self.before = self.outputs(self.observed.model, {}, self.tensors)
        self.estimates = {
            tensor: [estimate(self.before[tensor]) for estimate in (self.xl, self.ly)] for tensor in self.tensors
        }
        self.prefix = Prefix(self.observed, self.network, self.dataset)
        self.stream = Stream(Graph(model), self.dataset, integer=False)

    def constants(self, name: str, bits: int) -> dict[str, Any]:
        layer = next(layer for layer in self.network.layers if layer.name == name)
        held = self.codes[name][bits]
        values = {str(layer.weight): dequantize_weight(held.codes, held.scales, int(layer.channel_axis or 0))}
        return values if held.bias is None else {**values, str(layer.bias): held.bias.astype(np.float32)}

    def outputs(self, model: onnx.ModelProto, fed: dict[str, Any], tensors: list[str]) -> dict[str, Any]:
        """Logits, under "", and projections, of all images."""
        session = open_session(model, integer_kernels=False)
        names = [self.graph.output, *map(projection_name, tensors)]
        batches = self.dataset.batches(batch_size(self.graph))
        parts = [session.run(names, {self.graph.input: batch, **fed}) for batch in batches]
        joined = (np.concatenate(column).astype(np.float64) for column in zip(*parts, strict=True))
        return dict(zip(["", *tensors], joined, strict=True))

    def xl(self, projections: Any) -> Any:
        """SMI with X, by projection."""
        y, k = jitter(standardize(projections), self.y_noise), self.settings.neighbours
        columns = range(y.shape[1])
        return np.array([reference._compute_mi_cc(self.x[:, j].copy(), y[:, j].copy(), k) for j in columns])

    def ly(self, projections: Any) -> Any:
        """SMI with Y, by projection."""
        z, k = jitter(standardize(projections), self.class_noise), self.settings.neighbours
        return np.array([reference._compute_mi_cd(z[:, j].copy(), self.targets, k) for j in range(z.shape[1])])

    def run(self, trial: Trial) -> dict[str, Any]:
        """Do a trial; return its KL divergence, and the differences at its observers."""
        tensors = sorted(trial.deltas)
        graph, unit = self.observed, trial.unit.name
        if trial.unit.kind == "weight":
            unit = str(next(layer.weight for layer in self.network.layers if layer.name == trial.unit.name))
            fed = self.constants(trial.unit.name, trial.bits)
        else:
            fed = grid_of_group(unit, self.table.activations[unit][trial.bits])
        # onnxruntime fuses no nodes across an output, as it fuses none across a cut: sums are taken in the same order
        before = self.network.layers[: self.prefix.position(unit)]
        kept = [tensor for layer in before for tensor in self.stream.kept_behind(layer)]
        shown = [tensor for tensor in dict.fromkeys((*kept, *cut(graph, [unit]))) if tensor != graph.input]
        # a constant weight's products are summed in another order than those of one that is fed
        inputs = [graph.input, *(name for name in fed if name in graph.initializers)]
        model = extract(graph, inputs, [graph.output, *map(projection_name, tensors), *shown])
        if trial.unit.kind == "activation":
            quantize_group(model, self.network, unit)
        found = self.outputs(model, fed, tensors)
        deltas: dict[str, list[float | None]] = {}
        for tensor in tensors:
            wanted = (trial.deltas[tensor].xl, trial.deltas[tensor].ly)
            deltas[tensor] = [
                None if value is None else float(np.mean(at_first - estimate(found[tensor])))
                for value, at_first, estimate in zip(wanted, self.estimates[tensor], (self.xl, self.ly), strict=True)
            ]
        return {"kl": float(np.mean(kl_divergence(self.before[""], found[""]))), "deltas": deltas}


def _noises(seed: int) -> list[np.random.SeedSequence]:
    """Seeds of the jitter of X, of L beside X, and of L beside Y: those of sensitivity.estimators.sliced."""
    streams = np.random.SeedSequence(seed).spawn(4)
    return [streams[2], streams[3], streams[2]]


def analysis(shared: Path, work: Path, model: str) -> tuple[Path, float, float]:
    """Analyze with the tool, once; return the folder, and the seconds that its trials, and the whole, took."""
    case, folder, kept = CASES[model], work / f"{model}.infoq", work / f"{model}.seconds.json"
    if not kept.exists():
        images, clock, start = shared / "data" / case.images, Clock(), time.monotonic()
        classes = images / "classes.txt"
        analyze(
            shared / "models" / f"{model}.onnx",
            images / "calib",
            classes=classes if classes.exists() else None,
            preprocessing=case.preprocessing,
            samples=case.samples,
            effort="full",
            workers="auto",
            output=folder,
            reporter=clock,
        )
        whole = time.monotonic() - start
        kept.write_text(json.dumps([clock.seconds("trials"), whole]))
    trials, whole = json.loads(kept.read_text())
    return folder, trials, whole


def plain_trials(work: Path, model: str, trials: Sequence[Trial], every: int) -> list[dict[str, Any]]:
    """Do trials of an analysis the plain way; those of an earlier run are kept."""
    path = work / f"{model}.every{every}.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if len(done) < len(trials):
        plain = Plain(work / f"{model}.infoq")
        with path.open("a") as file:
            for trial in trials[len(done) :]:
                start = time.monotonic()
                result = plain.run(trial)
                result["seconds"] = time.monotonic() - start
                done.append(result)
                file.write(json.dumps(result) + "\n")
                file.flush()
                print(f"{model} {len(done)}/{len(trials)}", flush=True)
    return done


def floor_seconds(work: Path, model: str, found: Analysis) -> tuple[float, float, float]:
    """What the suffixes alone would take, at the rate of integer kernels and in float; and the estimates alone."""
    plain = Plain(work / f"{model}.infoq")
    network, graph, count = plain.network, plain.graph, len(plain.dataset)
    bits = uniform(network, BASELINE_BITS, BASELINE_BITS)
    of = Quantizable(graph, network, place(graph, network), plain.table)
    emitted = open_session(qdq_model(of, bits, layer_codes(of, bits), STORAGES["int8"], {}))
    exact = open_session(graph.model)

    def whole_pass(session: ort.InferenceSession) -> float:
        return min(seconds(lambda: logits_of(session, graph, plain.dataset, batch_size(graph))) for _ in range(3))

    fast, slow = whole_pass(emitted), whole_pass(exact)
    macs = sum(layer.macs for layer in network.layers)
    suffixes = 0.0
    for trial in found.trials:
        reached = graph.descendants([tensor_of(network, trial.unit)])
        suffixes += sum(layer.macs for layer in network.layers if layer.output in reached) / macs
    x = prepare(plain.x)
    values = plain.before[plain.tensors[0]]
    k, seed = found.settings.neighbours, found.settings.seed
    deltas = [delta for trial in found.trials for delta in trial.deltas.values()]
    xl = statistics.median(seconds(lambda: smi_from_prepared(x, values, k, seed)) for _ in range(5))
    ly = statistics.median(seconds(lambda: smi_discrete_from_projections(values, plain.targets, k)) for _ in range(5))
    estimates = sum(xl * (delta.xl is not None) + ly * (delta.ly is not None) for delta in deltas)
    print(f"{model}: {count / fast:.0f} images/s with integer kernels, {suffixes:.0f} whole passes")
    return fast * suffixes, slow * suffixes, estimates


def seconds(work: Callable[[], object]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def row(shared: Path, work: Path, model: str, every: int) -> str:
    """One row of the table."""
    folder, took, whole = analysis(shared, work, model)
    found = read_analysis(folder)
    chosen = found.trials[::every]
    plain = plain_trials(work, model, chosen, every)
    pairs = list(zip(chosen, plain, strict=True))
    worst: dict[bool, float] = {True: 0.0, False: 0.0}
    same = 0
    for trial, result in pairs:
        # the last place of a logit tells whether every sum was taken in the same order
        alike = trial.kl == result["kl"]
        same += alike
        for tensor, two in result["deltas"].items():
            for difference, expected in zip(two, (trial.deltas[tensor].xl, trial.deltas[tensor].ly), strict=True):
                if difference is not None and expected is not None:
                    worst[alike] = max(worst[alike], abs(difference - expected))
    worst_kl = max(abs(trial.kl - result["kl"]) for trial, result in pairs)
    total = sum(result["seconds"] for result in plain) * len(found.trials) / len(plain)
    fast, slow, estimates = floor_seconds(work, model, found)
    return (
        f"| {model} | {found.settings.samples} | {len(found.trials)} | {len(plain)} | {len(found.candidates)} "
        f"| {total:,.0f} | {took:,.0f} | {total / took:.1f}× | {whole:,.0f} | {total / whole:.1f}× | {same} "
        f"| {worst[True]:.1e} | {worst[False]:.1e} | {worst_kl:.1e} | {fast:,.0f} + {estimates:,.0f} "
        f"| {took / (fast + estimates):.2f} | {slow:,.0f} + {estimates:,.0f} |"
    )


def main() -> None:
    """Run what is missing and write the page."""
    parser = models_parser(__doc__, CASES)
    parser.add_argument("--every", type=int, default=7, help="of how many trials one is done the plain way")
    arguments = parser.parse_args()
    packages = ("infoq-onnx", "onnxruntime", "numpy", "numba", "scikit-learn")
    lines = [
        "# The sweep compared with a plain implementation",
        "",
        f"{arguments.date}; {versions(*packages)}; {processors()} processors; made by",
        f"`python benchmarks/sweep.py SHARED WORK --every {arguments.every} {' '.join(arguments.models)}`.",
        "",
        "- Plain: a whole float forward pass per trial, and scikit-learn for every estimate. One trial in "
        f"{arguments.every}",
        "  was done this way, and its seconds are multiplied by that number. scikit-learn searches trees, because its",
        "  shortcut for classes smaller than twice k loses half of the digits.",
        "- Trials: the trials of `infoq-onnx analyze`.",
        "- Analyze: the whole command. It also decodes images, finds ranges and rounds at every width, which the plain",
        "  implementation does not.",
        "- Same: trials whose logits are equal to the last place. In the other trials onnxruntime fuses nodes "
        "differently, so",
        "  sums are taken in another order where a residual Add follows a cut. Estimates count neighbours, so such a "
        "difference",
        "  shows when it adds or removes a neighbour.",
        "- Floor: the network downstream of each unit, at the rate of integer kernels on the whole network, plus the "
        "estimates.",
        "  Float: the same at the rate of float kernels.",
        "",
        "| model | images | trials | done plainly | candidates | plain, s | trials, s | ratio | analyze, s | ratio "
        "| same | largest difference of an SMI among these, nats | among others | of a KL | floor, s | trials to floor "
        "| float, s |",
        f"|{'---|' * 17}",
        *(
            row(arguments.shared.resolve(), arguments.work.resolve(), model, arguments.every)
            for model in arguments.models
        ),
        "",
        *(
            f"{model}: `analyze` with `--preprocess {CASES[model].preprocessing} --samples {CASES[model].samples} "
            "--effort full`, otherwise with defaults.  "
            for model in arguments.models
        ),
    ]
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
