"""The remedies for analyses, budgets, outputs and evaluations, followed: `RESULTS`."""

from __future__ import annotations

import re
from collections.abc import Callable

import onnx

from tests.cli.remedies_data import QUICK, told
from tests.cli.situations import Place
from tests.networks import Builder, mlp

SIZE = "infoq-onnx allocate model.infoq --size 8KB"
ROUNDED = f"{SIZE} --rounding nearest"
"""As the row's, but quick: how weights are rounded is not what these messages are about."""
ANALYZE = f"infoq-onnx analyze model.onnx --calib data.npz {QUICK}"


def run(command: str) -> Callable[[Place], str]:
    """Only the command changes."""
    return lambda _: command


def then(first: str, command: str) -> Callable[[Place], str]:
    """The message names a command to run first."""

    def follow(_: Place) -> str:
        assert "error:" not in told(first)
        return command

    return follow


def reachable(command: str) -> Callable[[Place], str]:
    """The budget is loosened to the value that the message names."""

    def follow(_: Place) -> str:
        said = re.search(r"--(\S+) \S+ cannot be met: the \w+ reachable is (\S+)", told(command))
        assert said is not None
        return re.sub(rf"--{said[1]} \S+", f"--{said[1]} {said[2]}", command) + " --rounding nearest"

    return follow


def where_it_is_now(option: str, name: str) -> Callable[[Place], str]:
    return lambda _: f"{ROUNDED} {option} {name}"


def names_are_back(place: Place) -> str:
    (place.folder / "elsewhere.txt").write_text("ant\nbee\ncat\ndog\n")
    return "infoq-onnx allocate model.infoq --uniform 4/4 --rounding nearest --classes elsewhere.txt"


def table(row: str) -> str:
    """A table of costs whose other rows are right."""
    rows = [f"{layer},{w},{a},1ms" for layer in ("fc1", "fc2", "fc3") for w in (2, 4, 7, 8) for a in (2, 4, 8)]
    return "\n".join(["layer,w_bits,a_bits,cost", *(one for one in rows if not row.startswith(one[:8])), row, ""])


def mended_table(name: str, row: str = "fc1,8,8,1ms") -> Callable[[Place], str]:
    def follow(place: Place) -> str:
        (place.folder / name).write_text(table(row))
        return f"infoq-onnx allocate model.infoq --budget {name}:12ms --rounding nearest"

    return follow


def command_that_makes_them_again(_: Place) -> str:
    said = re.search(r"make it again with: (.*)", told(SIZE))
    assert said is not None
    assert "error:" not in told(said[1])
    return ROUNDED


def room_is_made(place: Place) -> str:
    place.monkeypatch.undo()
    place.monkeypatch.chdir(place.folder)
    return f"{ROUNDED} -o out.onnx"


def other_rounding(place: Place) -> str:
    """What disagreed was made up: any way to round agrees without it."""
    room_is_made(place)
    return f"{SIZE} -o out.onnx"


def model_of_the_same(place: Place) -> str:
    onnx.save(mlp(seed=3), place.folder / "other.onnx")
    return "infoq-onnx evaluate model.onnx --data data.npz --against other.onnx"


def link_removed(place: Place) -> str:
    assert (place.folder / "link.onnx").is_symlink()
    return f"{ROUNDED} -o other.onnx"


def folder_made(place: Place) -> str:
    assert not (place.folder / "missing").exists()
    return f"{ROUNDED} -o out.onnx"


def within_float32(place: Place) -> str:
    b = Builder()
    onnx.save(b.model(b.gemm("x", "fc", 12, 4), (12,), (4,)), place.folder / "overflow.onnx")
    return "infoq-onnx evaluate overflow.onnx --data data.npz"


def preprocessing_chosen(place: Place) -> str:
    assert (place.folder / "images").is_dir()
    return "infoq-onnx evaluate conv.onnx --data images --preprocess imagenet"


RESULTS: dict[str, Callable[[Place], str]] = {
    # the analysis
    "none in this folder": then(ANALYZE, "infoq-onnx allocate --size 8KB --rounding nearest"),
    "none in the folder named": then(f"{ANALYZE} --output empty", "infoq-onnx allocate empty --size 8KB"),
    "it is not finished": then(ANALYZE, ROUNDED),
    "it is damaged": then(ANALYZE, ROUNDED),
    "a newer version wrote it": then(ANALYZE, ROUNDED),
    "it has a field that nobody knows": then(ANALYZE, ROUNDED),
    "another version saw other layers": then(ANALYZE, ROUNDED),
    "its ranges are damaged": then(ANALYZE, ROUNDED),
    "the model has changed since": then(ANALYZE, ROUNDED),
    "the model has moved": where_it_is_now("--model", "elsewhere.onnx"),
    "one of its files is missing": then(ANALYZE, ROUNDED),
    "another model than the analysed one is given": where_it_is_now("--model", "model.onnx"),
    "images that are not where they are said to be": run(
        "infoq-onnx allocate model.infoq --uniform 4/4 --calib data.npz"
    ),
    "the images have moved": where_it_is_now("--calib", "elsewhere.npz"),
    "the file of class names has moved": names_are_back,
    # budgets and options of allocate
    "no budget": run("infoq-onnx allocate model.infoq --compression 4 --rounding nearest"),
    "a budget and --uniform": run("infoq-onnx allocate model.infoq --uniform 4/4 --rounding nearest"),
    "--uniform and a pin": run("infoq-onnx allocate model.infoq --bitops uniform:8/8 --pin first=8 --rounding nearest"),
    "uniform bits that were not analysed": run("infoq-onnx allocate model.infoq --uniform 4/4 --rounding nearest"),
    "images for rounding that looks at none": run("infoq-onnx allocate model.infoq --uniform 4/4 --samples 40"),
    "a budget of 0": run("infoq-onnx allocate model.infoq --bitops 10K --rounding nearest"),
    "a negative budget": run(ROUNDED),
    "a budget that is no number": run("infoq-onnx allocate model.infoq --compression 4.5x --rounding nearest"),
    "a budget below what 2 bits need": reachable("infoq-onnx allocate model.infoq --bitops 1K --criterion kl"),
    "two budgets, one of them out of reach": reachable(
        "infoq-onnx allocate model.infoq --bitops 1M --compression 20 --criterion kl"
    ),
    "a pin that takes too much": run(
        "infoq-onnx allocate model.infoq --avg-weight-bits 2.1 --criterion kl --rounding nearest"
    ),
    "a table of costs that is not there": mended_table("latency.csv"),
    "a table with an unknown layer": mended_table("latency.csv"),
    "a table with a cost that is none": mended_table("costs.csv"),
    "a pin on an unknown layer": run(f"{ROUNDED} --pin fc3=8"),
    "a pin without bits": run(f"{ROUNDED} --pin fc1=8/8"),
    "pins that contradict each other": run(f"{ROUNDED} --pin fc1=8"),
    "bits that were not analysed": run(f"{ROUNDED} --bits 2,4"),
    "an unknown criterion": run(f"{ROUNDED} --criterion infoq-pooled"),
    "a criterion, and bits that need none": run("infoq-onnx allocate model.infoq --uniform 4/4 --rounding nearest"),
    "scores that are damaged": command_that_makes_them_again,
    "an option that the criterion does not have": run("infoq-onnx score model.infoq --criterion eagl"),
    "a threshold that is no correlation": run("infoq-onnx score model.infoq --criterion infoq --threshold -1"),
    "scores of no analysis": then(f"{ANALYZE} --output empty", "infoq-onnx score empty --criterion kl"),
    "a negative weight of activations": run(f"{ROUNDED} --alpha 0"),
    # what allocate writes
    "the name does not end in .onnx": run(f"{ROUNDED} -o small.onnx"),
    "the name is that of the float model": run(f"{ROUNDED} -o other.onnx"),
    "the name is that of a folder": run(f"{ROUNDED} -o other.onnx"),
    "a model of another tool has that name": run(f"{ROUNDED} -o theirs.onnx --force"),
    "a JSON file of another tool lies beside it": run(f"{ROUNDED} -o mine.onnx --force"),
    "a pipe has that name": run(f"{ROUNDED} -o other.onnx"),
    "a link to nowhere has that name": link_removed,
    "there is no such folder to write in": folder_made,
    "the disk is full": room_is_made,
    "the disk is full after the model": room_is_made,
    "memory ends while weights are rounded": other_rounding,
    "the model written does not compute what was simulated": other_rounding,
    # evaluate
    "no such model": run("infoq-onnx evaluate model.onnx --data data.npz"),
    "no model at all": run("infoq-onnx evaluate model.onnx --data data.npz"),
    "images, and a model that does not know its preprocessing": preprocessing_chosen,
    "models of different inputs": model_of_the_same,
    "models of different classes": model_of_the_same,
    "the model computes NaN": within_float32,
}
