"""The remedies for analyses, budgets, what allocate writes, and evaluate, followed: `RESULTS`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import numpy as np
import onnx
from click.testing import CliRunner

from infoq_onnx.cli import main
from tests.cli.situations import Place
from tests.networks import mlp

ANALYZE = "infoq-onnx analyze model.onnx --calib data.npz --projections 8 --bits 2,4,8 --trial-rounding nearest"
"""The command that made model.infoq."""
ALLOCATE = "infoq-onnx allocate model.infoq --size 8KB"
OUT = f"{ALLOCATE} --rounding nearest -o out.onnx"
SMALL = "infoq-onnx allocate model.infoq --uniform 2/2 --rounding nearest -o small.onnx"
FINETUNE = "infoq-onnx finetune small.json --train data.npz --learning-rate 0.01"


def run(command: str) -> str:
    """Run a command that has to succeed, and return what it says."""
    result = CliRunner().invoke(main, shlex.split(command)[1:], prog_name="infoq-onnx")
    assert result.exit_code == 0, result.output
    return result.output


def refused(command: str) -> str:
    """Return the error of a command."""
    result = CliRunner().invoke(main, shlex.split(command)[1:], prog_name="infoq-onnx")
    assert result.exit_code != 0
    return result.stderr


def after(*commands: str) -> Callable[[Place], str]:
    """Run commands one after the other; the last one is what then succeeds."""

    def follow(place: Place) -> str:  # noqa: ARG001
        for command in commands[:-1]:
            run(command)
        return commands[-1]

    return follow


def checkpoint_removed(place: Place) -> str:
    run(f"{FINETUNE} --seed 1 --output third.onnx")
    (place.folder / "small.finetuned.checkpoint").unlink()
    return f"{FINETUNE} --seed 1"


def in_order(command: str) -> Callable[[Place], str]:
    """Return a function for a fault of the machine that is gone: a full disk, too little memory."""

    def follow(place: Place) -> str:
        place.monkeypatch.undo()
        place.monkeypatch.chdir(place.folder)
        return command

    return follow


# ------------------------------------------------------------------------------------------------------------ analyses


def folder_removed(place: Place) -> str:
    named = refused(ALLOCATE).split("error: ")[1].split(" is a folder")[0]
    (place.folder / named).rmdir()
    run(ANALYZE)
    return ALLOCATE


def names_elsewhere(place: Place) -> str:
    (place.folder / "moved.txt").write_text("ant\nbee\ncat\ndog\n")
    return "infoq-onnx allocate model.infoq --uniform 4/4 --classes moved.txt"


def another_model(place: Place) -> str:  # noqa: ARG001
    """Analyze the other model, and give the analysed one."""
    run("infoq-onnx analyze other.onnx --calib data.npz --projections 8 --bits 2,8 --output other.infoq")
    run("infoq-onnx allocate other.infoq --size 8KB --model other.onnx")
    return f"{ALLOCATE} --model model.onnx"


# ------------------------------------------------------------------------------------------------------------- budgets


def reachable(metric: str, rest: str) -> Callable[[Place], str]:
    """Loosen a budget to what the message says is reachable."""

    def follow(place: Place) -> str:  # noqa: ARG001
        told = refused(f"infoq-onnx allocate model.infoq {metric} {rest}")
        reachable = re.search(r"reachable is (\S+)", told)
        assert reachable is not None
        loosened = re.sub(r"^\S+", reachable[1], rest)
        return f"infoq-onnx allocate model.infoq {metric} {loosened}"

    return follow


def pin_dropped(place: Place) -> str:
    run(reachable("--avg-weight-bits", "2.1 --pin fc2=8 --criterion kl")(place))
    return "infoq-onnx allocate model.infoq --avg-weight-bits 2.1 --criterion kl"


def table(*rows: str) -> Callable[[Place], str]:
    """Write a table of costs."""

    def follow(place: Place) -> str:
        (place.folder / "costs.csv").write_text("\n".join(["layer,w_bits,a_bits,cost", *rows]))
        return "infoq-onnx allocate model.infoq --budget costs.csv:12ms"

    return follow


def layers_listed(place: Place) -> str:
    named = re.findall(r"fc\d", run("infoq-onnx inspect model.onnx"))
    return table(*(f"{name},8,8,1ms" for name in dict.fromkeys(named)))(place)


def scored_again(place: Place) -> str:  # noqa: ARG001
    run(refused(ALLOCATE).split("make it again with: ")[1])
    return ALLOCATE


# ------------------------------------------------------------------------------------------------------------ evaluate


def compared(place: Place) -> str:
    onnx.save(mlp(seed=1), place.folder / "alike.onnx")
    return "infoq-onnx evaluate model.onnx --data data.npz --against alike.onnx"


def scaled_inputs(place: Place) -> str:
    with np.load(place.folder / "data.npz") as file:
        np.savez(place.folder / "scaled.npz", x=file["x"] * np.float32(1e-30), y=file["y"])
    return "infoq-onnx evaluate overflow.onnx --data scaled.npz"


RESULTS: dict[str, Callable[[Place], str]] = {
    "none in this folder": after(ANALYZE, "infoq-onnx allocate --size 8KB"),
    "none in the folder named": after(ALLOCATE, f"{ANALYZE} --output empty", "infoq-onnx allocate empty --size 8KB"),
    "it is not finished": after(ANALYZE, ALLOCATE),
    "it is damaged": after(ANALYZE, ALLOCATE),
    "a newer version wrote it": after(ANALYZE, ALLOCATE),
    "it has a field that nobody knows": after(ANALYZE, ALLOCATE),
    "another version saw other layers": after(ANALYZE, ALLOCATE),
    "its ranges are damaged": after(ANALYZE, ALLOCATE),
    "one of its files is missing": after(ANALYZE, ALLOCATE),
    "a folder lies in place of one of its files": folder_removed,
    "its checksums are damaged": after(ANALYZE, ALLOCATE),
    "the model has changed since": after(ANALYZE, ALLOCATE),
    "the model has moved": after(f"{ALLOCATE} --model elsewhere.onnx"),
    "another model than the analysed one is given": another_model,
    "images that are not where they are said to be": after(
        "infoq-onnx allocate model.infoq --uniform 4/4 --calib data.npz"
    ),
    "the images have moved": after(f"{ALLOCATE} --calib elsewhere.npz"),
    "the file of class names has moved": names_elsewhere,
    "no budget": after(
        "infoq-onnx allocate model.infoq --bitops 1M",
        "infoq-onnx allocate model.infoq --compression 10.66",
        "infoq-onnx allocate model.infoq --uniform 4/4",
    ),
    "a budget and --uniform": after(
        "infoq-onnx allocate model.infoq --bitops 1M", "infoq-onnx allocate model.infoq --uniform 4/4"
    ),
    "--uniform and a pin": after(
        "infoq-onnx allocate model.infoq --uniform 4/4", "infoq-onnx allocate model.infoq --bitops 1M --pin first=8"
    ),
    "uniform bits that were not analysed": after("infoq-onnx allocate model.infoq --uniform 4/2"),
    "images for rounding that looks at none": after(
        "infoq-onnx allocate model.infoq --uniform 4/4 --samples 40",
        "infoq-onnx allocate model.infoq --uniform 4/4 --rounding nearest",
    ),
    "a budget of 0": after("infoq-onnx allocate model.infoq --bitops 1M"),
    "a negative budget": after("infoq-onnx allocate model.infoq --size 5KB"),
    "a budget that is no number": after("infoq-onnx allocate model.infoq --compression 4.5x"),
    "a budget below what 2 bits need": reachable("--bitops", "1K --criterion kl"),
    "two budgets, one of them out of reach": reachable("--compression", "20 --bitops 1M --criterion kl"),
    "a pin that takes too much": pin_dropped,
    "a file that cannot be so small": reachable("--size", "1KB --pin fc2=8"),
    "a table of costs that is not there": table("fc1,8,8,1ms", "fc2,8,8,1ms", "fc3,8,8,1ms"),
    "a table with an unknown layer": layers_listed,
    "a table with a cost that is none": table("fc1,8,8,1ms", "fc2,8,8,1", "fc3,8,8,900us"),
    "a pin on an unknown layer": after(f"{ALLOCATE} --pin fc3=8"),
    "a pin without bits": after(f"{ALLOCATE} --pin first=8/8", f"{ALLOCATE} --pin fc1=8", f"{ALLOCATE} --pin fc1=/8"),
    "pins that contradict each other": after(f"{ALLOCATE} --pin first=4", f"{ALLOCATE} --pin fc1=8"),
    "bits that were not analysed": after(f"{ALLOCATE} --bits 2,4,8"),
    "an unknown criterion": after(
        *(f"{ALLOCATE} --criterion {name}" for name in ("kl-pooled", "infoq", "infoq-pooled", "eagl", "weight-error")),
        f"{ALLOCATE} --criterion kl",
    ),
    "an unknown criterion, and bits that need none": after("infoq-onnx allocate model.infoq --uniform 4/4"),
    "a criterion whose measurements are missing": after(
        "infoq-onnx analyze model.onnx --calib data.npz --bits 2,4,8 --trial-rounding nearest -o plain.infoq "
        "--observers selected",
        "infoq-onnx allocate plain.infoq --size 8KB --criterion infoq",
    ),
    "scores that are damaged": scored_again,
    "an option that the criterion does not have": after("infoq-onnx score model.infoq --criterion eagl"),
    "a threshold that is no correlation": after("infoq-onnx score model.infoq --criterion infoq --threshold -1"),
    "scores of no analysis": after(
        "infoq-onnx score model.infoq --criterion kl",
        f"{ANALYZE} --output empty",
        "infoq-onnx score empty --criterion kl",
    ),
    "a negative weight of activations": after(f"{ALLOCATE} --alpha 0"),
    "the name does not end in .onnx": after(f"{ALLOCATE} -o small.onnx"),
    "the name is that of the float model": after(f"{ALLOCATE} -o small.onnx"),
    "the name is that of a folder": after(f"{ALLOCATE} -o small.onnx"),
    "a model of another tool has that name": after(f"{ALLOCATE} -o small.onnx", f"{ALLOCATE} -o theirs.onnx --force"),
    "a JSON file of another tool lies beside it": after(
        f"{ALLOCATE} -o small.onnx", f"{ALLOCATE} -o mine.onnx --force"
    ),
    "a pipe has that name": after(f"{ALLOCATE} -o small.onnx"),
    "a link to nowhere has that name": after(f"{ALLOCATE} -o small.onnx"),
    "there is no such folder to write in": after(f"{ALLOCATE} -o out.onnx"),
    "the disk is full": in_order(OUT),
    "the disk is full after the model": in_order(OUT),
    "memory ends while weights are rounded": in_order(f"{ALLOCATE} -o out.onnx"),
    "the model written does not compute what was simulated": after(f"{OUT} --storage native", f"{OUT} --storage int8"),
    "an allocation that is not there": after(SMALL, FINETUNE),
    "an allocation of another analysis": after(
        f"{FINETUNE} --analysis model.infoq",
        "infoq-onnx allocate plain.infoq --uniform 2/2 --rounding nearest -o other.onnx",
        FINETUNE.replace("small", "other"),
    ),
    "another model beside the allocation": after(SMALL.replace("small", "other"), FINETUNE.replace("small", "other")),
    "a model that is fine-tuned already": after(FINETUNE),
    "PyTorch is not installed": in_order(FINETUNE),
    "labels that no image has": after(FINETUNE.replace("data", "unlabelled")),
    "a learning rate that is too large": after(f"{FINETUNE} --learning-rate 0.01"),
    "a time that is none": after(f"{FINETUNE} --max-time 4.5m"),
    "a device that is not there": after(f"{FINETUNE} --device cpu"),
    "training improves nothing": after(FINETUNE),
    "a checkpoint of another training": checkpoint_removed,
    "no such model": after("infoq-onnx evaluate model.onnx --data data.npz"),
    "no model at all": after("infoq-onnx evaluate model.onnx --data data.npz"),
    "images, and a model that does not know its preprocessing": after(
        *(f"infoq-onnx evaluate conv.onnx --data images --preprocess {name}" for name in ("tf", "cifar10", "none")),
        "infoq-onnx evaluate conv.onnx --data images --preprocess imagenet",
    ),
    "models of different inputs": compared,
    "models of different classes": compared,
    "the model computes NaN": scaled_inputs,
}
