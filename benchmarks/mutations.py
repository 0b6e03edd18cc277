"""Damaged and hostile input, thousands of times: part of docs/benchmarks/robustness.md.

    python benchmarks/mutations.py WORK [--count 10000] [--images 200] [--seed 0] [--only TARGET]

Each target is one command on one kind of file: a model (`inspect`, and all the way for some that pass), an analysis
(`allocate`), an allocation that lies where `allocate` writes, a list of images, single images (`evaluate`). A mutation
changes bytes (bits, blocks, cuts, insertions) or structure (values of JSON, arrays, nodes and attributes). What is
counted: exit codes, tracebacks, hangs (over 10 s), crashes, files left where none belong, and results that differ
although the damage was not told. Mutations are numbered; each follows from its number and the seed. Workers are
processes of their own, with 8 GiB of address space each; one that hangs or dies is replaced.
"""

from __future__ import annotations

import abc
import argparse
import collections
import contextlib
import io
import json
import os
import resource
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from click.testing import CliRunner
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from infoq_onnx import analyses
from infoq_onnx.cli import main as command_line
from tests.networks import residual_convnet

HANG = 10.0
SPACE = 8 << 30
QUICK = (
    "--projections",
    "2",
    "--observers",
    "selected",
    "--bits",
    "4,8",
    "--trial-rounding",
    "nearest",
    "--workers",
    "1",
)
ALLOCATE = ("--compression", "5", "--weight-only", "--rounding", "nearest")
ODD: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e308, -1e308, float("nan"), float("inf"), 10**30, -(10**30), 2**31, 2**62, 0.5),
    *("", "x" * 5000, "../../etc/passwd", "\x00", "é模", "nan", [], {}, [[]], [None], {"": None}, [1] * 3000),
)

Random = np.random.Generator

# ----------------------------------------------------------------------------------------------------------- mutations


def bytes_mutated(content: bytes, random: Random) -> bytes:
    """Change bytes at one to four places."""
    data = bytearray(content)
    for _ in range(random.integers(1, 5)):
        size = len(data)
        at = int(random.integers(0, size + 1))
        length = int(min(random.geometric(0.05), 4096))
        kind = random.integers(0, 8)
        if kind == 0 and size:
            data[at % size] ^= 1 << int(random.integers(0, 8))
        elif kind == 1 and size:
            data[at % size] = int(random.integers(0, 256))
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length]
        elif kind == 4:
            data[at:at] = random.bytes(length)
        elif kind == 5:
            data[at : at + length] = bytes(len(data[at : at + length]))
        elif kind == 6 and random.integers(0, 4) == 0:
            del data[at:]
        elif kind == 7:
            other = int(random.integers(0, size + 1))
            data[at : at + length] = data[other : other + length]
    return bytes(data)


def json_mutated(text: str, random: Random) -> str:
    """Replace, remove or add a value somewhere in a JSON document, or a line of JSON lines."""
    lines = text.splitlines() if text.count("\n{") > 1 and not text.startswith("{\n") else [text]
    index = int(random.integers(0, len(lines)))
    document = json.loads(lines[index])
    places = list(_places(document))
    if places:
        holder, key = places[int(random.integers(0, len(places)))]
        kind = random.integers(0, 6)
        if kind == 0:
            del holder[key]
        elif kind == 1 and isinstance(holder, dict):
            holder["unknown"] = holder[key]
        elif kind == 2 and isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[key] = ODD[int(random.integers(0, len(ODD)))]
    lines[index] = json.dumps(document)
    return "\n".join(lines) + "\n" * text.endswith("\n")


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    keys = document.keys() if isinstance(document, dict) else range(len(document)) if isinstance(document, list) else ()
    for key in list(keys):
        yield document, key
        yield from _places(document[key])


def lines_mutated(text: str, random: Random) -> str:
    """Replace a path or a label of a list, or a whole line."""
    lines = text.splitlines()
    index = int(random.integers(0, len(lines)))
    path, label = lines[index].split(",")
    odd = (
        *("", " ", "-1", "9", "10", "1e3", "0x1", "٣", "999999999999", "nan", '"', '"a"b', "../images/1.png", "."),
        *(
            "/dev/zero",
            "/dev/stdin",
            "images",
            "images/../images/1.png",
            "\x00",
            "é",
            ",",
            "\ufeff",
            "x" * 300,
            "list.csv",
        ),
    )
    value = odd[int(random.integers(0, len(odd)))]
    lines[index] = (f"{value},{label}", f"{path},{value}", path, value, f"{path},{label},{value}")[
        random.integers(0, 5)
    ]
    if random.integers(0, 4) == 0:
        lines.insert(int(random.integers(0, len(lines))), ("", " ", "\r", "# comment")[random.integers(0, 4)])
    return ("\n", "\r\n", "\r")[random.integers(0, 3)].join(lines)


def arrays_mutated(content: bytes, random: Random) -> bytes:
    """Replace an array of an .npz file by an odd one."""
    with np.load(io.BytesIO(content)) as archive:
        arrays = dict(archive)
    name = list(arrays)[int(random.integers(0, len(arrays)))]
    array = arrays[name]
    kind = random.integers(0, 8)
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[name] = array.reshape(-1)[:1].reshape(()) if array.size else np.float64(0)
    elif kind == 2:
        arrays[name] = np.concatenate([array.reshape(-1), array.reshape(-1)])
    elif kind == 3:
        arrays[name] = array[None]
    elif kind == 4:
        others = ["S8", "U1"] if array.dtype.kind == "U" else [np.float64, np.int64, np.complex128, "U8"]
        arrays[name] = array.astype(others[random.integers(0, len(others))])
    elif array.dtype.kind in "if" and array.size:
        changed = array.copy().reshape(-1)
        with np.errstate(all="ignore"):
            value = np.array([np.nan, np.inf, -np.inf, 0, -1, 1e-40, 1e38, 300][random.integers(0, 8)])
            changed[random.integers(0, changed.size)] = value.astype(array.dtype)
        arrays[name] = changed.reshape(array.shape)
    else:
        arrays[name] = np.zeros((0, *array.shape), array.dtype)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def graph_mutated(content: bytes, random: Random) -> bytes:
    """Change the structure of a model at one or two places."""
    model = onnx.load_from_string(content)
    graph = model.graph

    def some(values: Any) -> Any:
        return values[int(random.integers(0, len(values)))]

    names = [name for node in graph.node for name in (*node.input, *node.output)] or ["x"]
    for _ in range(random.integers(1, 3)):
        kind = random.integers(0, 16)
        node = some(graph.node) if len(graph.node) else graph.node.add()
        if kind == 0:
            graph.node.remove(node)
        elif kind == 1:
            graph.node.add().CopyFrom(node)
        elif kind == 2 and node.input:
            node.input[int(random.integers(0, len(node.input)))] = some([*names, "", "nowhere"])
        elif kind == 3 and node.output:
            node.output[int(random.integers(0, len(node.output)))] = some([*names, "", "elsewhere"])
        elif kind == 4:
            node.op_type = some(["Conv", "Gemm", "MatMul", "Relu", "Loop", "If", "Nothing", "", "Shape", "Softmax"])
        elif kind == 5:
            node.domain = some(["", "ai.onnx.ml", "com.microsoft", "nowhere"])
        elif kind == 6 and node.attribute:
            attribute = some(node.attribute)
            attribute.ints[:] = some([[], [0], [-1, -1], [2**62] * 2, [1] * 64])
            attribute.i, attribute.f = int(some([0, -1, 2**62, 7])), float(some([0.0, -1.0, np.nan, np.inf]))
        elif kind == 7 and node.attribute:
            some(node.attribute).type = int(random.integers(0, 15))
        elif kind == 8:
            node.attribute.append(
                helper.make_attribute(some(["axis", "group", "perm", "value", "to"]), some([0, -9, 1.5]))
            )
        elif kind == 9 and len(graph.initializer):
            tensor = some(graph.initializer)
            tensor.dims[:] = some([[], [0], [-1], [2**31], [2**40, 2**40], [1, 1, 1]])
        elif kind == 10 and len(graph.initializer):
            some(graph.initializer).data_type = int(random.integers(-1, 30))
        elif kind == 11 and len(graph.initializer):
            tensor = some(graph.initializer)
            try:
                values = numpy_helper.to_array(tensor).copy().reshape(-1)
            except (ValueError, TypeError, OSError):
                # an earlier mutation broke it
                continue
            if values.size and values.dtype.kind == "f":
                values[int(random.integers(0, values.size))] = some([np.nan, np.inf, 1e38, -1e38, 1e-45, 0])
                shape = list(tensor.dims)
                tensor.CopyFrom(numpy_helper.from_array(values.reshape(shape), tensor.name))
        elif kind == 12:
            dims = some([graph.input, graph.output])[0].type.tensor_type.shape.dim
            if len(dims):
                some(dims).dim_value = some([0, -1, 1, 7, 2**31, 2**62])
        elif kind == 13:
            some([graph.input, graph.output])[0].type.tensor_type.elem_type = int(random.integers(0, 25))
        elif kind == 14:
            model.opset_import[0].version = int(some([-1, 0, 1, 6, 11, 13, 18, 21, 99, 2**62]))
        elif kind == 15:
            tensor = TensorProto(name=some(["stem_w", "fc_b", "new"]), data_type=1, data_location=TensorProto.EXTERNAL)
            tensor.dims[:] = [8, 3, 3, 3]
            for key, value in (("location", some(["../x", "/etc/passwd", "x" * 999, ""])), ("offset", "-1")):
                entry = tensor.external_data.add()
                entry.key, entry.value = key, value
            graph.initializer.append(tensor)
        for attribute in (one for each in graph.node for one in each.attribute):
            if attribute.type == AttributeProto.UNDEFINED:
                attribute.type = AttributeProto.INT
    return bytes(model.SerializeToString())


# ------------------------------------------------------------------------------------------------------------- targets


def run(*arguments: str) -> tuple[int | None, str, str]:
    """Run a command in this process: its exit code, or None for a traceback; stdout; what it told."""
    result = CliRunner().invoke(command_line, list(arguments), prog_name="infoq-onnx")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return None, result.stdout, f"{type(result.exception).__name__}: {result.exception}"
    return result.exit_code, result.stdout, result.stderr


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


class Target(abc.ABC):
    """One kind of input, and the command that reads it."""

    def __init__(self, template: Path) -> None:
        self.template = template

    @abc.abstractmethod
    def mutate(self, folder: Path, random: Random) -> str:
        """Change the input in a folder; a word on what was changed."""

    @abc.abstractmethod
    def check(self) -> tuple[str, str]:
        """Run the command in the working folder; the outcome, and what was told."""


def told(code: int | None, stderr: str) -> tuple[str, str]:
    if code is None:
        return "traceback", stderr
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    if code and (len(lines) != 1 or not stderr.rstrip("\n").endswith(lines[-1])):
        return f"exit code {code} without one line", stderr
    return f"exit code {code}", stderr


class Model(Target):
    """A model file."""

    def mutate(self, folder: Path, random: Random) -> str:
        content = (self.template / "model.onnx").read_bytes()
        structure = random.integers(0, 2) == 1
        (folder / "m.onnx").write_bytes((graph_mutated if structure else bytes_mutated)(content, random))
        shutil.copy(self.template / "data.npz", folder)
        self.whole = random.integers(0, 20) == 0
        return "structure" if structure else "bytes"

    def check(self) -> tuple[str, str]:
        code, _, stderr = run("inspect", "m.onnx", "--json")
        if code == 0 and self.whole:
            code, _, stderr = run("analyze", "m.onnx", "--calib", "data.npz", *QUICK, "-o", "m.infoq")
            if code == 0:
                code, _, stderr = run("allocate", "m.infoq", *ALLOCATE, "-o", "out.onnx")
        return told(code, stderr)


class Analysis(Target):
    """The files of an analysis, half of the time with checksums that fit what was changed."""

    def mutate(self, folder: Path, random: Random) -> str:
        for name in ("model.onnx", "data.npz"):
            (folder / name).symlink_to(self.template / name)
        shutil.copytree(self.template / "model.infoq", folder / "model.infoq")
        files = sorted(path for path in (folder / "model.infoq").rglob("*") if path.is_file() and path.name != ".lock")
        path = files[int(random.integers(0, len(files)))]
        content = path.read_bytes()
        structure = random.integers(0, 2) == 1
        if structure and path.suffix in (".json", ".jsonl"):
            path.write_text(json_mutated(content.decode(), random))
        elif structure and path.suffix == ".npz":
            path.write_bytes(arrays_mutated(content, random))
        else:
            path.write_bytes(bytes_mutated(content, random))
        self.sealed = random.integers(0, 2) == 1 and path.name not in ("SHA256SUMS", "current")
        if self.sealed:
            measurement = next(one for one in (folder / "model.infoq").iterdir() if one.is_dir())
            with contextlib.suppress(Exception):
                analyses.Measurement(measurement).seal()
        return f"{path.name}{', sealed' if self.sealed else ''}"

    def check(self) -> tuple[str, str]:
        code, _, stderr = run("allocate", "model.infoq", *ALLOCATE, "-o", "out.onnx")
        outcome = told(code, stderr)
        if code == 0 and not self.sealed:
            same = Path("out.onnx").read_bytes() == (self.template / "out.onnx").read_bytes()
            return outcome if same else ("result changed silently", stderr)
        return outcome


class AllocationFile(Target):
    """An allocation that lies where another is to be written."""

    def mutate(self, folder: Path, random: Random) -> str:
        for name in ("model.onnx", "data.npz", "model.infoq"):
            (folder / name).symlink_to(self.template / name)
        shutil.copy(self.template / "out.onnx", folder)
        text = (self.template / "out.json").read_text()
        structure = random.integers(0, 2) == 1
        changed = json_mutated(text, random).encode() if structure else bytes_mutated(text.encode(), random)
        (folder / "out.json").write_bytes(changed)
        self.before = changed
        return "structure" if structure else "bytes"

    def check(self) -> tuple[str, str]:
        code, _, stderr = run("allocate", "model.infoq", *ALLOCATE, "-o", "out.onnx")
        after = Path("out.json").read_bytes()
        wanted = (self.template / "out.json").read_bytes() if code == 0 else self.before
        return told(code, stderr) if after == wanted else ("result changed silently", stderr)


class ImageList(Target):
    """A list file."""

    def mutate(self, folder: Path, random: Random) -> str:
        for name in ("model.onnx", "images"):
            (folder / name).symlink_to(self.template / name)
        text = (self.template / "list.csv").read_text()
        structure = random.integers(0, 2) == 1
        changed = lines_mutated(text, random).encode() if structure else bytes_mutated(text.encode(), random)
        (folder / "list.csv").write_bytes(changed)
        return "structure" if structure else "bytes"

    def check(self) -> tuple[str, str]:
        code, _, stderr = run("evaluate", "model.onnx", "--data", "list.csv", "--preprocess", "cifar10", "--json")
        return told(code, stderr)


class Picture(Target):
    """One image among a hundred others, damaged or odd."""

    def mutate(self, folder: Path, random: Random) -> str:
        (folder / "model.onnx").symlink_to(self.template / "model.onnx")
        (folder / "pictures").mkdir()
        for number in range(120):
            (folder / "pictures" / f"{number:03}.png").symlink_to(self.template / "images" / f"{number % 10}.png")
        suffix, content = picture(random)
        (folder / "pictures" / f"odd.{suffix}").write_bytes(content)
        return suffix

    def check(self) -> tuple[str, str]:
        code, _, stderr = run("evaluate", "model.onnx", "--data", "pictures", "--preprocess", "imagenet", "--json")
        return told(code, stderr)


def picture(random: Random) -> tuple[str, bytes]:
    """Draw an image: of an odd mode or size, with odd metadata, or damaged."""
    suffix = ["png", "jpg", "bmp", "gif", "tif", "webp", "ppm"][random.integers(0, 7)]
    mode = ["RGB", "L", "RGBA", "P", "1", "CMYK", "I;16", "F", "LA", "YCbCr", "LAB", "HSV"][random.integers(0, 12)]
    size = [(8, 8), (1, 1), (1, 300), (300, 1), (9, 8), (5000, 2), (64, 64)][random.integers(0, 7)]
    image = Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    buffer = io.BytesIO()
    options: dict[str, Any] = {}
    if random.integers(0, 3) == 0:
        exif = Image.Exif()
        exif[0x0112] = int(random.integers(0, 300))
        options["exif"] = exif.tobytes()[: int(random.integers(6, 60))] if random.integers(0, 2) else exif
    if random.integers(0, 4) == 0 and suffix in ("gif", "tif", "webp", "png"):
        options |= {"save_all": True, "append_images": [image] * 3}
    kind = {"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix)
    for attempt in ((mode, options), (mode, {}), ("RGB", {})):
        try:
            buffer = io.BytesIO()
            image.convert(attempt[0]).save(buffer, kind, **attempt[1])
            break
        except (OSError, ValueError, KeyError, TypeError, SyntaxError):
            continue
    content = buffer.getvalue()
    kind_of_damage = random.integers(0, 5)
    if kind_of_damage == 0:
        content = bytes_mutated(content, random)
    elif kind_of_damage == 1:
        # a header that promises more pixels than there are
        header = bytearray(content)
        header[10:26] = random.bytes(16)
        content = bytes(header)
    elif kind_of_damage == 2:
        content = content[: int(random.integers(0, len(content)))]
    return suffix, content


TARGETS: dict[str, type[Target]] = {
    "model": Model,
    "analysis": Analysis,
    "allocation": AllocationFile,
    "list": ImageList,
    "image": Picture,
}


def template(folder: Path) -> None:
    """Make what is mutated: a small convolutional network, data, an analysis, an allocation, images and a list."""
    folder.mkdir(parents=True)
    model = residual_convnet(size=8, width=4)
    onnx.save(model, folder / "model.onnx")
    random = np.random.default_rng(0)
    np.savez(folder / "data.npz", x=random.standard_normal((24, 3, 8, 8)).astype(np.float32))
    (folder / "images").mkdir()
    for number in range(40):
        Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
    (folder / "list.csv").write_text("".join(f"images/{number}.png,{number % 10}\n" for number in range(40)))
    os.chdir(folder)
    for arguments in (
        ("analyze", "model.onnx", "--calib", "data.npz", *QUICK),
        ("score", "model.infoq", "--criterion", "eagl"),
        ("allocate", "model.infoq", *ALLOCATE, "-o", "out.onnx"),
    ):
        code, _, stderr = run(*arguments)
        if code:
            raise SystemExit(stderr)


# ------------------------------------------------------------------------------------------------------------- workers


def work(name: str, place: Path, seed: int, start: int, stop: int) -> None:
    """Run mutations start … stop − 1 of a target, one line of JSON each, before and after."""
    resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE))
    target = TARGETS[name](place / "template")
    out = os.fdopen(os.dup(1), "w")
    for number in range(start, stop):
        out.write(json.dumps({"begun": number}) + "\n")
        out.flush()
        random = np.random.default_rng([seed, list(TARGETS).index(name), number])
        outside = Path(tempfile.mkdtemp(dir=place))
        folder = outside / "cwd"
        folder.mkdir()
        os.chdir(folder)
        what = target.mutate(folder, random)
        before = listing(folder)
        begun = time.monotonic()
        outcome, message = target.check()
        seconds = time.monotonic() - begun
        allowed = {"out.onnx", "out.json"}
        new = {one for one in listing(folder) - before if one.split("/")[0] not in ("m.infoq", *allowed)}
        new |= listing(outside) - {"cwd"} - {f"cwd/{one}" for one in listing(folder)}
        new = {one for one in new if not one.startswith("model.infoq")}
        if new:
            outcome, message = "files left behind", ", ".join(sorted(new))
        elif outcome.startswith("exit code") and outcome != "exit code 0" and (listing(folder) - before) & allowed:
            outcome, message = "a half-written result", message
        found = {"number": number, "what": what, "outcome": outcome, "seconds": round(seconds, 2)}
        if not outcome.startswith("exit code ") or " without" in outcome or outcome == "exit code 4":
            found["message"] = message[-400:]
        out.write(json.dumps(found) + "\n")
        out.flush()
        os.chdir(place)
        shutil.rmtree(outside, ignore_errors=True)


def supervised(name: str, place: Path, seed: int, start: int, stop: int) -> Iterator[dict[str, Any]]:
    """Run a worker, and another whenever one hangs or dies."""
    while start < stop:
        command = [sys.executable, __file__, str(place), "--seed", str(seed), "--work", name, str(start), str(stop)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
            assert worker.stdout is not None
            ready = selectors.DefaultSelector()
            ready.register(worker.stdout, selectors.EVENT_READ)
            patience, current = 60.0, start
            while True:
                if not ready.select(patience):
                    worker.kill()
                    yield {"number": current, "outcome": "hang", "what": "", "seconds": patience}
                    start = current + 1
                    break
                line = worker.stdout.readline()
                if not line:
                    if current < stop - 1 or worker.wait() != 0:
                        yield {"number": current, "outcome": f"crash ({worker.wait()})", "what": "", "seconds": 0}
                    start = current + 1
                    break
                found = json.loads(line)
                if "begun" in found:
                    current, patience = found["begun"], HANG
                else:
                    yield found
                    if found["number"] == stop - 1:
                        start = stop


def main() -> None:
    """Run all targets, or be one of the workers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("place", type=Path)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--only", choices=list(TARGETS))
    parser.add_argument("--work", nargs=3)
    arguments = parser.parse_args()
    place = arguments.place.resolve()
    if arguments.work:
        name, start, stop = arguments.work
        return work(name, place, arguments.seed, int(start), int(stop))
    if not (place / "template").exists():
        template(place / "template")
    for name in [arguments.only] if arguments.only else TARGETS:
        counts: collections.Counter[str] = collections.Counter()
        slowest, begun = 0.0, time.monotonic()
        stop = arguments.start + (arguments.images if name == "image" else arguments.count)
        with (place / f"{name}.jsonl").open("a", encoding="utf-8") as log:
            for found in supervised(name, place, arguments.seed, arguments.start, stop):
                counts[found["outcome"]] += 1
                slowest = max(slowest, found["seconds"])
                log.write(json.dumps(found) + "\n")
                if not found["outcome"].startswith("exit code ") or "message" in found:
                    print(name, json.dumps(found), flush=True)
        minutes = (time.monotonic() - begun) / 60
        print(f"{name}: {dict(counts)}, slowest {slowest:.1f} s, {minutes:.0f} min", flush=True)
    return None


if __name__ == "__main__":
    main()
