"""Latency and file size of what the tool emits, beside the float model and onnxruntime's own quantization of it.

    python benchmarks/latency.py SHARED -o docs/benchmarks/latency.md --date 2026-11-21

All models of a network are measured in one run, taking turns, so that a busy moment hits them alike. What a layer's
codes are makes no difference to its speed, so weights are rounded to nearest and 32 images are enough. ResNet18 has
random weights, as no trained one lies in SHARED.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from page import versions

from infoq_onnx.allocation.costs import uniform
from infoq_onnx.emit.kernels import find_kernels
from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.graph.session import open_session
from infoq_onnx.preparation import prepare
from infoq_onnx.schema import BITS, Bits, Network
from infoq_onnx.simulate.quantizers.calibrate import calibrate
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.simulation import layer_codes

ROOT = Path(__file__).resolve().parents[1]
REAL = ("mobilenetv2", "squeezenet1_1")
IMAGES = 32


class Images(CalibrationDataReader):  # type: ignore[misc]
    """What onnxruntime's quantizer reads its calibration images from."""

    def __init__(self, name: str, images: np.ndarray) -> None:
        self._batches: Iterator[dict[str, np.ndarray]] = iter([{name: image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def mixed(network: Network) -> Bits:
    """Bits drawn from 2 to 8 for every unit."""
    random = np.random.default_rng(0)
    bits = uniform(network, 3, 8)
    return bits._replace(activations={name: int(random.choice(BITS)) for name in bits.activations})


def made(path: Path, folder: Path) -> dict[str, Path]:
    """Write every variant of a model."""
    sys.path.insert(0, str(ROOT))
    from tests.prepared import dataset_of

    prepared = prepare(path)
    graph, network = prepared.graph, prepared.network
    images = np.random.default_rng(0).standard_normal((IMAGES, *network.input_shape), dtype=np.float32)
    table = calibrate(graph, network, prepared.placement, dataset_of(images), BITS, lambda _: None)
    of = Quantizable(graph, network, prepared.placement, table)
    found = {"float": path}
    for name, bits, storage in (
        ("3/8, packed", uniform(network, 3, 8), "packed"),
        ("3/8, native", uniform(network, 3, 8), "native"),
        ("3/8, int8", uniform(network, 3, 8), "int8"),
        ("3/mixed 2 to 8, packed", mixed(network), "packed"),
    ):
        codes = layer_codes(of, bits)
        model = qdq_model(of, bits, codes, STORAGES[storage], {})
        found[name] = folder / f"{path.stem} {name.replace('/', '-')}.onnx"
        onnx.save(model, found[name])
    ready, static = folder / "ready.onnx", folder / f"{path.stem} static.onnx"
    with contextlib.redirect_stdout(io.StringIO()):
        quant_pre_process(str(path), str(ready))
        quantize_static(
            str(ready),
            str(static),
            Images(network.input, images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    found["onnxruntime's quantize_static"] = static
    return found


def medians(paths: dict[str, Path], batch: int, rounds: int) -> dict[str, float]:
    """Milliseconds a run, every model in turn."""
    sessions = {name: open_session(path) for name, path in paths.items()}
    value = next(iter(sessions.values())).get_inputs()[0]
    images = np.random.default_rng(1).standard_normal((batch, *value.shape[1:]), dtype=np.float32)
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(rounds + 3):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(None, {value.name: images})
            if turn >= 3:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(taken) for name, taken in times.items()}


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shared", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--date", required=True)
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    from tests.networks import resnet18

    packages = ("infoq-onnx", "onnxruntime", "onnx")
    lines = [
        "# Latency",
        "",
        f"{arguments.date}; {versions(*packages)}; 2 cores;",
        "made by `python benchmarks/latency.py SHARED`. Median milliseconds per run, with the models taking turns. In",
        "parentheses: ratio to onnxruntime's quantize_static (after quant_pre_process; QDQ, uint8 activations, int8 "
        "weights",
        "per channel). `3/8` means 10.67× smaller weights with 8-bit activations. Load: seconds to open a session, "
        "once.",
    ]
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        onnx.save(resnet18(), folder / "resnet18.onnx")
        paths = [*(arguments.shared / "models" / f"{name}.onnx" for name in REAL), folder / "resnet18.onnx"]
        for path in paths:
            variants = made(path, folder)
            reference = "onnxruntime's quantize_static"
            batches: dict[int, dict[str, float]] = {b: medians(variants, b, arguments.rounds) for b in (1, 16)}
            lines += ["", f"## {path.stem}", "", "| model | batch 1 | batch 16 | integer kernels | load, s | file |"]
            lines += ["|---|---|---|---|---|---|"]
            for name, file in variants.items():
                start = time.perf_counter()
                open_session(file)
                load = time.perf_counter() - start
                cells = [f"{batches[b][name]:.2f} ({batches[b][name] / batches[b][reference]:.2f})" for b in batches]
                kernels: Any = find_kernels(onnx.load(file))
                integer = f"{sum(kernel.integer for kernel in kernels)} of {len(kernels)}"
                cells += [integer, f"{load:.2f}", f"{file.stat().st_size:,}"]
                lines.append(f"| {name} | {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
