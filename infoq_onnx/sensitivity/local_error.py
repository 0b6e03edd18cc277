"""Local errors: how much a unit at fewer bits changes the outputs of its own layers.

They need no pass through the rest of the network, and a few images give thousands of positions. So they are cheap and
nearly free of noise, at every bit-width. They do not tell how much the network depends on a layer: that is what trials
measure. `criteria.pooled` combines both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from infoq_onnx.graph.extract import extract
from infoq_onnx.graph.session import open_session
from infoq_onnx.schema import LocalError, Unit, tensor_of, units_of
from infoq_onnx.sensitivity.trials import Problem, baseline_graph, variant_of
from infoq_onnx.simulate.running.batching import padded
from infoq_onnx.simulate.running.prefix import Prefix
from infoq_onnx.simulate.running.spill import Spill
from infoq_onnx.simulate.running.suffix import Suffix

IMAGES = 16
"""Number of images that are run: enough, since every position of a layer's output counts."""


def local_errors(problem: Problem, bits: Sequence[int], spill: Spill | None = None) -> tuple[LocalError, ...]:
    """Measure the local error of every unit at some bit-widths.

    Parameters
    ----------
    problem : the network, the images and the rounded weights
    bits : bit-widths below the baseline's
    spill : where to store activations that would take too much memory

    Returns
    -------
    tuple of LocalError
        By unit, then by bit-width: squared errors, relative to the variance of each output. Of a unit whose layers all
        have constant outputs, the squared errors themselves: only ratios between the bit-widths of a unit matter.
    """
    network = problem.network
    graph = baseline_graph(problem)
    images = problem.dataset.part(np.arange(min(IMAGES, len(problem.dataset))))
    prefix = Prefix(graph, network, images, spill)
    units = units_of(network, weight_only=problem.settings.weight_only)
    found: dict[Unit, list[LocalError]] = {}
    for unit in sorted(units, key=lambda unit: prefix.position(tensor_of(network, unit))):
        tensor = tensor_of(network, unit)
        outputs = _outputs(problem, unit)
        variants = [variant_of(problem, unit, b) for b in bits]
        fed = [name for name in variants[0] if name in graph.initializers]
        changed = Suffix(graph, network, tensor, outputs, fed)
        unchanged = open_session(extract(graph, list(changed.kept), outputs), integer_kernels=False)
        errors = np.zeros((len(bits), len(outputs)))
        moments = np.zeros((3, len(outputs)))
        for count, kept in prefix.batches(tensor, changed.kept):
            feeds = {
                name: padded(value, graph.batch) if name in graph.batched else value for name, value in kept.items()
            }
            expected = [output[:count].astype(np.float64) for output in unchanged.run(outputs, feeds)]
            moments += [[f(output) for output in expected] for f in (np.size, np.sum, _squares)]
            for index, results in enumerate(changed.run(count, kept, variants)):
                errors[index] += [_squares(one - other) for one, other in zip(results, expected, strict=True)]
        number, total, squares = moments
        varying = squares * number > total**2 * (1 + 1e-9)
        power = squares[varying] - total[varying] ** 2 / number[varying]
        values = (errors[:, varying] / power if varying.any() else errors).sum(axis=1)
        found[unit] = [LocalError(unit, b, float(value)) for b, value in zip(bits, values, strict=True)]
    return tuple(error for unit in units for error in found[unit])


def interpolated(errors: Sequence[LocalError], bits: Sequence[int]) -> tuple[LocalError, ...]:
    """Estimate local errors at bit-widths that were not measured.

    Parameters
    ----------
    errors : measured local errors
    bits : bit-widths of the result

    Returns
    -------
    tuple of LocalError
        By unit, then by bit-width. Measured errors are unchanged. Between two measured widths, the logarithm is
        interpolated; beyond them, each bit more divides the error by 4, as halving a uniform step does.
    """
    by_unit: dict[Unit, dict[int, float]] = {}
    for error in errors:
        by_unit.setdefault(error.unit, {})[error.bits] = error.value
    return tuple(
        LocalError(unit, b, known[b] if b in known else _between(known, b))
        for unit, known in by_unit.items()
        for b in bits
    )


def _between(known: Mapping[int, float], bits: int) -> float:
    if not all(known.values()):
        return 0.0
    widths = sorted(known)
    nearest = min(max(bits, widths[0]), widths[-1])
    logarithm = float(np.interp(nearest, widths, np.log([known[b] for b in widths])))
    return math.exp(logarithm) * 4.0 ** (nearest - bits)


def _outputs(problem: Problem, unit: Unit) -> list[str]:
    """Return the outputs of the layers that read a unit."""
    layers = problem.network.layers
    if unit.kind == "weight":
        return [layer.output for layer in layers if layer.name == unit.name]
    return [layer.output for layer in layers if unit.name in layer.groups]


def _squares(values: npt.NDArray[np.float64]) -> float:
    return float(np.square(values, dtype=np.float64).sum())
