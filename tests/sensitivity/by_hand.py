"""Problems for the sweep, and trials of them made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from infoq_onnx.graph.editing import set_initializers
from infoq_onnx.graph.ort import run
from infoq_onnx.quantize.codes import CodeTable
from infoq_onnx.quantize.grid import (
    dequantize_activation,
    dequantize_weight,
    quantize_activation,
    quantize_weight,
)
from infoq_onnx.schema import MeasurementSettings, Trial
from infoq_onnx.sensitivity.estimators import (
    directions,
    paired_difference,
    smi_discrete_from_projections,
    smi_from_projections,
)
from infoq_onnx.sensitivity.journal import open_journal
from infoq_onnx.sensitivity.observers import candidates
from infoq_onnx.sensitivity.projection import add_projections, projection_name
from infoq_onnx.sensitivity.sweep import SweepResult, sweep
from infoq_onnx.sensitivity.trials import Problem
from tests.prepared import Ready

PROJECTIONS = 4
SEED = 5


def problem_of(
    of: Ready,
    bits: Sequence[int] = (2, 6, 8),
    labels: npt.NDArray[np.int64] | None = None,
    rounded: CodeTable | None = None,
) -> Problem:
    values = np.concatenate(list(of.dataset.batches(64)))
    if labels is None:
        labels = run_in_batches(of.graph.model, of, {})[of.graph.output].argmax(axis=1).astype(np.int64)
    rounding: str = "nearest" if rounded is None else "gptq"
    settings = MeasurementSettings(
        len(values), SEED, tuple(bits), "full", projections=PROJECTIONS, trial_rounding=rounding
    )
    encoded = values.reshape(len(values), -1)[:, :5].astype(np.float64)
    return Problem(of.graph, of.network, of.table, of.dataset, labels, labels % 3, encoded, settings, rounded or {})


def swept(problem: Problem, folder: Path) -> SweepResult:
    return sweep(problem, open_journal(folder / "journal.jsonl", "f"), lambda *_: None)


def run_in_batches(
    model: onnx.ModelProto, of: Ready, further: dict[str, npt.NDArray[np.float32]]
) -> dict[str, npt.NDArray[np.float32]]:
    values = np.concatenate(list(of.dataset.batches(64)))
    names = [value.name for value in model.graph.output]
    size = of.graph.batch or len(values)
    parts = [
        run(
            model,
            {
                of.graph.input: values[start : start + size],
                **{name: array[start : start + size] for name, array in further.items()},
            },
        )
        for start in range(0, len(values), size)
    ]
    return {name: np.concatenate([part[index] for part in parts]) for index, name in enumerate(names)}


class ByHand:
    """The whole network is run for every trial, and quantized in numpy."""

    def __init__(self, of: Ready, problem: Problem) -> None:
        self.of, self.problem = of, problem
        self.tensors = candidates(of.graph, of.network)
        seeds = np.random.SeedSequence((SEED, 0, 0))
        self.x = problem.encoded @ directions(problem.encoded.shape[1], PROJECTIONS, seeds)
        model = onnx.ModelProto()
        model.CopyFrom(of.graph.model)
        for layer in of.network.layers:
            if layer.weight is not None:
                set_initializers(model, self.constants(layer.name, 8))
        self.model = add_projections(model, of.graph, self.tensors, PROJECTIONS, SEED)
        self.baseline = run_in_batches(self.model, of, {})

    def constants(self, name: str, bits: int) -> dict[str, npt.NDArray[np.float32]]:
        """A layer's weight at a bit-width, and its bias where it was rounded together with one."""
        layer = next(layer for layer in self.of.network.layers if layer.name == name)
        assert layer.weight is not None
        assert layer.channel_axis is not None
        if name in self.problem.rounded:
            held = self.problem.rounded[name][bits]
            shape = [1] * held.codes.ndim
            shape[layer.channel_axis] = -1
            found = {layer.weight: held.codes.astype(np.float32) * held.scales.reshape(shape)}
            return found if held.bias is None else {**found, str(layer.bias): held.bias.astype(np.float32)}
        scales = self.of.table.weights[name][bits]
        codes = quantize_weight(self.of.graph.constant(layer.weight), scales, bits, layer.channel_axis)
        return {layer.weight: dequantize_weight(codes, scales, layer.channel_axis)}

    def outputs(self, trial: Trial) -> dict[str, npt.NDArray[np.float32]]:
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        if trial.unit.kind == "weight":
            set_initializers(model, self.constants(trial.unit.name, trial.bits))
            return run_in_batches(model, self.of, {})
        shown = onnx.ModelProto()
        shown.CopyFrom(self.model)
        if trial.unit.name == self.of.graph.input:
            values = np.concatenate(list(self.of.dataset.batches(64)))
        else:
            shown.graph.output.append(onnx.ValueInfoProto(name=trial.unit.name))
            values = run_in_batches(shown, self.of, {})[trial.unit.name]
        grid = self.of.table.activations[trial.unit.name][trial.bits]
        seen = dequantize_activation(quantize_activation(values, grid), grid)
        shape = [self.of.graph.batch or "batch", *values.shape[1:]]
        model.graph.input.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, shape))
        readers = {layer.name for layer in self.of.network.layers if trial.unit.name in layer.groups}
        for node in model.graph.node:
            if node.name in readers:
                node.input[:] = ["seen" if tensor == trial.unit.name else tensor for tensor in node.input]
        return run_in_batches(model, self.of, {"seen": seen})

    def differences(self, found: dict[str, npt.NDArray[np.float32]], tensor: str) -> tuple[float, ...]:
        name, targets = projection_name(tensor), self.problem.targets
        sides = [outputs[name].astype(np.float64) for outputs in (self.baseline, found)]
        xl = paired_difference(*(smi_from_projections(self.x, side, 3, SEED).per_projection for side in sides))
        ly = paired_difference(
            *(smi_discrete_from_projections(side, targets, 3, SEED).per_projection for side in sides)
        )
        return (*xl, *ly)
