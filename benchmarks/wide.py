"""What wide layers cost and lose that keep their inputs instead of moments of all pairs of these.

    python benchmarks/wide.py SHARED WORK -o docs/benchmarks/wide.md --date 2026-11-26

Layers: a classifier's head, spread over the map that is pooled in front of it, is a Gemm behind a Flatten that computes
the same. It is rounded in both ways where both fit, each in a process of its own, and compared on calibration images
that rounding has not seen. Networks: of random weights, from the command line, with all memory counted that the tool's
processes have resident. WORK keeps models and figures; what is there is not done again.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from memory_use import Memory
from page import page_parser, versions

from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.session import open_session
from infoq_onnx.memory import peak, resident
from infoq_onnx.preparation import load_samples, prepare
from infoq_onnx.quantize.moments import Moments
from infoq_onnx.quantize.rounding import round_layer
from infoq_onnx.quantize.wide import Columns
from infoq_onnx.simulate.running.batching import batch_size, run_batches

Float32 = npt.NDArray[np.float32]

RUN = "--layer"
HELD_OUT = 500
"""Images that layers are compared on."""
LEVELS = 255
"""Steps of the 8-bit grid that a layer's input is on."""


@dataclass(frozen=True)
class Head:
    """A classifier whose head becomes a wide layer."""

    model: str
    images: str
    preprocessing: str
    samples: int
    channels: int
    rows: int
    bits: tuple[int, ...]
    kinds: tuple[str, ...] = ("moments", "inputs")

    @property
    def name(self) -> str:
        return f"{self.model} {self.channels} {self.rows}"


HEADS = (
    Head("cifar10_resnet20", "cifar10", "imagenet", 1000, 64, 10, (2, 3, 4)),
    Head("mobilenetv1_025", "imagenet", "tf", 400, 128, 1000, (2, 4)),
    Head("mobilenetv2", "imagenet", "tf", 400, 512, 16, (2, 4), ("inputs",)),
    Head("mobilenetv2", "imagenet", "tf", 400, 512, 1000, (4,), ("inputs",)),
)


@dataclass(frozen=True)
class Whole:
    """A network of random weights, and how the tool is run on it."""

    title: str
    memory: str
    images: int
    shape: tuple[int, int, int]
    classes: int
    analyze: tuple[str, ...] = ()


WHOLES = {
    "flat": Whole("Conv → Flatten → Gemm of 25,088 inputs, 16 outputs", "2GiB", 400, (3, 14, 14), 16),
    "vgg11": Whole(
        "VGG11 at 224×224",
        "6GiB",
        16,
        (3, 224, 224),
        1000,
        ("--bits", "4,8", "--projections", "8", "--weight-only", "--trial-rounding", "nearest"),
    ),
}


def head_of(shared: Path, head: Head) -> tuple[Float32, Float32]:
    """Maps in front of the pooling [n, d], and weights of the head spread over them [R, d]."""
    prepared = prepare(shared / "models" / f"{head.model}.onnx")
    graph = prepared.graph
    last = prepared.network.layers[-1]
    tensor = last.groups[0]
    while len(graph.shapes[tensor]) != 3 or graph.shapes[tensor][-1] == 1:
        tensor = graph.producer[tensor].input[0]
    images = shared / "data" / head.images
    classes = images / "classes.txt" if (images / "classes.txt").exists() else None
    dataset = load_samples(prepared, images / "calib", classes, head.preprocessing, head.samples + HELD_OUT, 0)
    session = open_session(expose(graph.model, [tensor]))
    batches = run_batches(session, graph, [tensor], dataset, batch_size(graph))
    maps = np.concatenate([values[:, : head.channels] for _, (values,) in batches])
    weight = graph.constant(str(last.weight))
    rows = np.moveaxis(weight, int(last.channel_axis or 0), 0).reshape(weight.shape[int(last.channel_axis or 0)], -1)
    positions = maps[0, 0].size
    spread = np.repeat(rows[: head.rows, : head.channels], positions, axis=1) / positions
    return maps.reshape(len(maps), -1), spread.astype(np.float32)


def layer(shared: Path, head: Head, bits: int, kind: str) -> dict[str, float]:
    """Round a head, and compare what it gives with what it should on images that it has not seen."""
    maps, weight = head_of(shared, head)
    targets = maps @ weight.T
    scale = float(maps.max()) / LEVELS
    inputs = (np.rint(maps / scale) * scale).astype(np.float32)
    known, unknown = slice(None, -HELD_OUT), slice(-HELD_OUT, None)
    before, start = resident(), time.monotonic()
    count, width = inputs[known].shape
    kept = Moments(1, width, len(weight)) if kind == "moments" else Columns(width, len(weight), count)
    for half, part in enumerate((slice(None, count // 2), slice(count // 2, count))):
        kept.add(inputs[None, part], targets[None, part], half)
    rounded = round_layer(weight[None], kept, bits, has_bias=True)
    seconds = time.monotonic() - start
    values = rounded.codes[0].astype(np.float32) * rounded.scales[0][:, None]
    made = inputs[unknown] @ values.T + np.asarray(rounded.bias, dtype=np.float32)
    wanted = targets[unknown]
    return {
        "inputs": width,
        "seconds": seconds,
        "taken": peak() - before,
        "error": float(np.square(made - wanted).sum() / np.square(wanted - wanted.mean(axis=0)).sum()),
        "same": float(np.mean(made.argmax(axis=1) == wanted.argmax(axis=1))),
    }


def build(name: str) -> onnx.ModelProto:
    """Build a network of random weights."""
    from tests.networks import Builder

    b, shape, classes = Builder(0), WHOLES[name].shape, WHOLES[name].classes
    if name == "flat":
        y = b.relu(b.conv("x", "conv", 3, 512, kernel=3, stride=2), "relu")
        y = b.op("Flatten", [y], "flat", axis=1)
        return b.model(b.gemm(y, "fc", 25088, classes), shape, (classes,))
    y, channels = "x", 3
    for stage, widths in enumerate([[64], [128], [256, 256], [512, 512], [512, 512]]):
        for index, width in enumerate(widths):
            y = b.relu(b.conv(y, f"conv{stage}_{index}", channels, width), f"relu{stage}_{index}")
            channels = width
        y = b.op("MaxPool", [y], f"pool{stage}", kernel_shape=[2, 2], strides=[2, 2])
    y = b.op("Flatten", [y], "flat", axis=1)
    y = b.relu(b.gemm(y, "fc1", 25088, 4096), "relu_fc1")
    y = b.relu(b.gemm(y, "fc2", 4096, 4096), "relu_fc2")
    return b.model(b.gemm(y, "fc3", 4096, classes), shape, (classes,))


def whole(work: Path, name: str) -> dict[str, Any]:
    """Analyze and allocate a network from the command line."""
    case = WHOLES[name]
    model, data = work / f"{name}.onnx", work / f"{name}.npz"
    onnx.save(build(name), model)
    random = np.random.default_rng(0)
    images = random.standard_normal((case.images, *case.shape), dtype=np.float32)
    np.savez(data, x=images, y=random.integers(0, case.classes, case.images))
    folder = work / f"{name}.infoq"
    commands = {
        "analyze": [str(model), "--calib", str(data), "--effort", "full", *case.analyze, "-o", str(folder)],
        "allocate": [str(folder), "--compression", "8", "--weight-only", "-o", str(work / f"{name}.small.onnx")],
    }
    found: dict[str, Any] = {}
    for verb, options in commands.items():
        command = ["infoq-onnx", verb, *options, "--memory", case.memory]
        start = time.monotonic()
        with subprocess.Popen(command) as process:
            memory = Memory(process.pid)
            memory.start()
        memory.over.set()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        found[verb] = {"seconds": time.monotonic() - start, "peak": memory.most}
    return found


def main() -> None:
    """Measure what is missing and write the page."""
    if RUN in sys.argv[1:2]:
        shared, index, bits, kind = sys.argv[2:]
        print(json.dumps(layer(Path(shared), HEADS[int(index)], int(bits), kind)))
        return
    parser = page_parser(__doc__)
    parser.add_argument("shared", type=Path)
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    shared, work = arguments.shared.resolve(), arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    kept = work / "wide.json"
    figures: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}

    def figure(key: str, measure: Any) -> Any:
        if key not in figures:
            figures[key] = measure()
            kept.write_text(json.dumps(figures, indent=1, sort_keys=True))
            print(key, figures[key], flush=True)
        return figures[key]

    def alone(index: int, bits: int, kind: str) -> Any:
        command = [sys.executable, __file__, RUN, str(shared), str(index), str(bits), kind]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)

    lines = [
        "# Wide layers",
        "",
        f"{arguments.date}; {versions('infoq-onnx', 'onnxruntime', 'numpy')}; made by "
        "`python benchmarks/wide.py SHARED WORK`.",
        "",
        "## One layer",
        "",
        "The layer is a classifier's head, spread over the map that is pooled before it: a Gemm after a Flatten. "
        "Inputs have 8",
        "bits. Error (as a share of the output's variance) and same (images with the same largest output as in float) "
        "are",
        f"measured on {HELD_OUT} calibration images that rounding has not seen. Memory: what rounding needs besides "
        "images and weights.",
        "",
        "| head of | images | inputs | outputs | bits | kept | error | same | seconds | memory, MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for index, head in enumerate(HEADS):
        for bits in head.bits:
            for kind in head.kinds:
                one = figure(f"{head.name} {bits} {kind}", lambda i=index, b=bits, k=kind: alone(i, b, k))
                lines.append(
                    f"| {head.model} | {head.samples} | {one['inputs']:,} | {head.rows:,} | {bits} | {kind} "
                    f"| {one['error']:.4f} | {100 * one['same']:.1f} % | {one['seconds']:.0f} "
                    f"| {one['taken'] / 2**20:,.0f} |"
                )
    lines += [
        "",
        "## Whole networks",
        "",
        "Networks with random weights, on random images: `analyze`, then `allocate --compression 8 --weight-only`, "
        "both with",
        "`--memory`. Peak: resident memory of all processes, where shared memory counts once per process.",
        "",
        "| network | images | --memory | analyze, s | peak, MiB | allocate, s | peak, MiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, case in WHOLES.items():
        one = figure(name, lambda n=name: whole(work, n))
        lines.append(
            f"| {case.title} | {case.images} | {case.memory} | "
            + " | ".join(f"{one[v]['seconds']:.0f} | {one[v]['peak'] / 2**20:,.0f}" for v in ("analyze", "allocate"))
            + " |"
        )
    lines += ["", *(f"{name}: analyze with `{' '.join(c.analyze)}`." for name, c in WHOLES.items() if c.analyze)]
    arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
