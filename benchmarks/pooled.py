"""What can be done for a convolution whose output passes Relu and global average pooling: squeezenet1_1's classifier.

    python benchmarks/pooled.py SHARED --samples 500 --compared 300

The layer holds 41 % of the weights, and at 10.66× two fifths of what is lost. Only the means of its outputs behind the
Relu are read, so H need not count all positions alike. Some rows are rounded with other H, their biases set to the mean
behind the Relu; the squared error of what is pooled is measured on the images that gave H, and on others.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.session import open_session
from infoq_onnx.preparation import load_samples, prepare
from infoq_onnx.quantize.bias_correction import Clipped, bias_behind
from infoq_onnx.quantize.coordinate_descent import descend
from infoq_onnx.quantize.damping import DAMPING
from infoq_onnx.quantize.gptq import factorize, gptq
from infoq_onnx.quantize.levels import search_levels
from infoq_onnx.simulate.running.batching import batch_size, run_batches

ROWS = 48
Array = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """Inputs of the layer on some images, and its outputs in float."""

    columns: Float32
    """[N, P, d]"""
    outputs: Float32
    """[N, P, R]"""

    def pooled(self, weight: Float32, bias: Float32) -> Float32:
        return np.asarray(np.maximum(self.columns @ weight.T + bias, 0).mean(axis=1))


def second(columns: Float32, weights: Float32) -> Array:
    """Second moments of columns [n, d] about their mean, by weights [n]."""
    total = weights.sum(dtype=np.float64)
    centred = columns - (weights @ columns / total).astype(np.float32)
    return np.asarray((centred * weights[:, None]).T @ centred, dtype=np.float64) / total


def alike(seen: Seen, _: int) -> Array:
    columns = seen.columns.reshape(-1, seen.columns.shape[2])
    return second(columns, np.ones(len(columns), np.float32))


def cut_off(share: float) -> Callable[[Seen, int], Array]:
    """Positions that the Relu cuts off weigh less: one H a row."""

    def hessian(seen: Seen, row: int) -> Array:
        columns = seen.columns.reshape(-1, seen.columns.shape[2])
        return second(columns, np.where(seen.outputs[:, :, row].reshape(-1) > 0, 1, share).astype(np.float32))

    return hessian


def of_pooled(share: float) -> Callable[[Seen, int], Array]:
    """Moments of the pooled inputs, with a share of those of all positions."""

    def hessian(seen: Seen, row: int) -> Array:
        means = seen.columns.mean(axis=1)
        return second(means, np.ones(len(means), np.float32)) + share * alike(seen, row)

    return hessian


WAYS: dict[str, Callable[[Seen, int], Array]] = {
    "all positions alike": alike,
    **{f"cut-off positions weigh {share:g}": cut_off(share) for share in (0.3, 0.1, 0.03)},
    **{f"pooled inputs, and {share:g} times all positions": of_pooled(share) for share in (0.01, 0.1, 1)},
}


def rounded(seen: Seen, row: int, weight: Array, bias: float, hessian: Array, bits: int) -> tuple[Float32, Float32]:
    """A row's weights and bias."""
    damped = hessian + DAMPING * np.mean(np.diag(hessian)) * np.eye(len(hessian))
    matrix, rows = damped[None], weight[None, None]
    levels = search_levels(rows, np.diag(damped)[None], bits, shifted=True)
    steps, levels = descend(rows, matrix, gptq(rows, factorize(matrix), levels), levels)
    values = steps * levels.scales[:, :, None]
    flat = seen.columns.reshape(1, -1, len(weight))
    clipped = Clipped(flat, seen.outputs[:, :, row].reshape(1, -1, 1), None, 0, np.inf)
    return values[0].astype(np.float32), bias_behind(clipped, values, np.full((1, 1), bias))[0].astype(np.float32)


def main() -> None:
    """Round, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("--samples", type=int, default=500)
    parser.add_argument("--compared", type=int, default=300)
    parser.add_argument("--bits", type=int, default=3)
    arguments = parser.parse_args()
    prepared = prepare(arguments.shared / "models" / "squeezenet1_1.onnx")
    graph, layer = prepared.graph, prepared.network.layers[-1]
    images = arguments.shared / "data" / "imagenet"
    count = arguments.samples + arguments.compared
    dataset = load_samples(prepared, images / "calib", images / "classes.txt", "imagenet", count, 0)
    name = layer.groups[0]
    batches = run_batches(open_session(expose(graph.model, [name])), graph, [name], dataset, batch_size(graph))
    inputs = np.concatenate([values for _, (values,) in batches])
    columns = inputs.reshape(*inputs.shape[:2], -1).transpose(0, 2, 1)[np.random.default_rng(0).permutation(count)]
    weight, bias = (graph.constant(str(constant)) for constant in (layer.weight, layer.bias))
    chosen = np.random.default_rng(0).choice(len(weight), ROWS, replace=False)
    rows, offsets = weight.reshape(len(weight), -1)[chosen], bias[chosen]
    fitted, others = (
        Seen(part, part @ rows.T + offsets) for part in np.split(np.ascontiguousarray(columns), [arguments.samples])
    )
    print(f"{np.mean(fitted.outputs <= 0):.0%} of the positions are cut off")
    print(f"| H at {arguments.bits} bits | squared error, fitted images | others |\n|---|---|---|")
    for way, hessian in WAYS.items():
        errors = []
        for row, (values, offset) in enumerate(zip(rows.astype(np.float64), offsets, strict=True)):
            found = rounded(fitted, row, values, float(offset), hessian(fitted, row), arguments.bits)
            for seen in (fitted, others):
                wanted = seen.pooled(rows[row : row + 1], offsets[row : row + 1])
                errors.append(np.mean(np.square(seen.pooled(*found) - wanted, dtype=np.float64)))
        print(f"| {way} | {np.mean(errors[::2]):.4f} | {np.mean(errors[1::2]):.4f} |", flush=True)


if __name__ == "__main__":
    main()
