"""The remedies for images, arrays, labels and the options of analyze, followed: `DATA`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from click.testing import CliRunner
from PIL import Image

from infoq_onnx.cli import main
from tests.cli.situations import Place, some_images

QUICK = "--bits 2,8 --projections 2 --observers selected --trial-rounding nearest --workers 1"
"""Options that make an analysis short."""


def told(command: str) -> str:
    """Run a command and return what it says."""
    return CliRunner().invoke(main, shlex.split(command)[1:], prog_name="infoq-onnx").output


def always(command: str) -> Callable[[Place], str]:
    """Only the command changes."""
    return lambda _: f"{command} {QUICK}"


# ---------------------------------------------------------------------------------------------------------------- data


def images_in_the_folder(place: Place) -> str:
    rng = np.random.default_rng(0)
    for number in range(16):
        pixels = rng.integers(0, 256, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place.folder / f"empty/{number}.png")
    return f"infoq-onnx analyze conv.onnx --calib empty --preprocess imagenet {QUICK}"


def all_classes_named(place: Place) -> str:
    (place.folder / "names.txt").write_text("".join(f"class {label}\n" for label in range(10)))
    return f"infoq-onnx analyze conv.onnx --calib images --preprocess imagenet --classes names.txt {QUICK}"


def without_corrupt_images(place: Place) -> str:
    """The message names the first of them: remove it, and look again."""
    command = f"infoq-onnx analyze conv.onnx --calib images --preprocess imagenet {QUICK}"
    for _ in range(2):
        named = re.search(r"\(first: (\S+)\)", told(command))
        assert named is not None
        (place.folder / named[1]).unlink()
    return command


def samples_of(place: Place) -> dict[str, npt.NDArray[np.generic]]:
    with np.load(place.folder / "other.npz") as file:
        return dict(file)


def analyse_other(place: Place, x: npt.NDArray[np.generic], y: npt.NDArray[np.generic]) -> str:
    np.savez(place.folder / "other.npz", x=x, y=y)
    return f"infoq-onnx analyze model.onnx --calib other.npz {QUICK}"


def measured(count: int) -> npt.NDArray[np.float32]:
    """Samples of the model's shape."""
    return np.random.default_rng(0).standard_normal((count, 12)).astype(np.float32)


def of_the_models_shape(place: Place) -> str:
    return analyse_other(place, x=measured(32), y=samples_of(place)["y"])


def as_uint8(place: Place) -> str:
    x = samples_of(place)["x"]
    np.savez(place.folder / "other.npz", x=np.clip(x, 0, 255).astype(np.uint8))
    return f"infoq-onnx analyze conv.onnx --calib other.npz --preprocess imagenet {QUICK}"


def without_the_sample(place: Place) -> str:
    arrays = {name: np.delete(array, 7, axis=0) for name, array in samples_of(place).items()}
    return analyse_other(place, **arrays)


def labels_of_the_model(place: Place) -> str:
    arrays = samples_of(place)
    return analyse_other(place, x=arrays["x"], y=arrays["y"] % 4)


def enough_samples(place: Place) -> str:
    arrays = samples_of(place)
    return analyse_other(place, x=np.concatenate([arrays["x"], measured(8)]), y=np.tile(arrays["y"], 2))


def list_of_what_is_there(place: Place) -> str:
    some_images(place)
    files = sorted((place.folder / "images").rglob("*.jpg"))
    lines = [f"{file.relative_to(place.folder)},{file.parent.name}\n" for file in files]
    (place.folder / "list.csv").write_text("".join(lines))
    return f"infoq-onnx analyze conv.onnx --calib list.csv --preprocess imagenet {QUICK}"


def names_file(place: Place) -> str:
    (place.folder / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    return f"infoq-onnx analyze model.onnx --calib data.npz --classes names.txt {QUICK}"


# ------------------------------------------------------------------------------------------------------------- options


def command_in_the_help(place: Place) -> str:  # noqa: ARG001
    assert "\n  inspect " in told("infoq-onnx --help")
    return "infoq-onnx inspect model.onnx"


def ray_installed(place: Place) -> str:
    place.monkeypatch.undo()
    place.monkeypatch.chdir(place.folder)
    return f"infoq-onnx analyze model.onnx --calib data.npz --ray local -o new.infoq {QUICK}"


def waited(place: Place) -> str:
    place.held.close()
    return f"infoq-onnx analyze model.onnx --calib data.npz {QUICK}"


DATA: dict[str, Callable[[Place], str]] = {
    "there is no such folder": always("infoq-onnx analyze model.onnx --calib data.npz"),
    "the folder is empty": images_in_the_folder,
    "a class folder is missing": all_classes_named,
    "more than 1 % of the images are corrupt": without_corrupt_images,
    "images, and no word on preprocessing": always("infoq-onnx analyze conv.onnx --calib images --preprocess imagenet"),
    "images that are too small, and no resizing": always(
        "infoq-onnx analyze conv.onnx --calib images --scale 255 --resize 8"
    ),
    "resizing to a size beyond memory": always("infoq-onnx analyze conv.onnx --calib images --resize 8"),
    "images, and a model that takes none": always("infoq-onnx analyze model.onnx --calib data.npz"),
    "arrays of another shape": of_the_models_shape,
    "integers that are no pixels": as_uint8,
    "NaN in an array": without_the_sample,
    "a label out of range": labels_of_the_model,
    "too few samples": enough_samples,
    "a list names a file that is gone": list_of_what_is_there,
    "a pipe instead of a file": always("infoq-onnx analyze model.onnx --calib data.npz"),
    "no such file of class names": names_file,
    "a bit-width outside 2 … 8": always("infoq-onnx analyze model.onnx --calib data.npz"),
    "bit-widths that are no numbers": lambda _: (
        "infoq-onnx analyze model.onnx --calib data.npz --bits 2,3,4,8 --projections 2 --trial-rounding nearest"
    ),
    "an empty path": always("infoq-onnx analyze model.onnx --calib data.npz"),
    "8 bits only": always("infoq-onnx analyze model.onnx --calib data.npz"),
    "hardly any samples": always("infoq-onnx analyze model.onnx --calib data.npz --samples 16"),
    "one projection": always("infoq-onnx analyze model.onnx --calib data.npz"),
    "too little memory for anything": always("infoq-onnx analyze model.onnx --calib data.npz --memory 512MiB"),
    "an unknown encoder": always("infoq-onnx analyze model.onnx --calib data.npz --encoder pca"),
    "a preset and parts of another recipe": always("infoq-onnx analyze conv.onnx --calib images --preprocess tf"),
    "a preset for a model that takes no images": always("infoq-onnx analyze model.onnx --calib data.npz"),
    "parts of a recipe for a model that takes no images": always("infoq-onnx analyze model.onnx --calib data.npz"),
    "--calib is missing": always("infoq-onnx analyze model.onnx --calib data.npz"),
    "a command that does not exist": command_in_the_help,
    "the folder cannot be made": always("infoq-onnx analyze model.onnx --calib data.npz --output analysis.infoq"),
    "processes that run trials are killed": lambda _: (
        "infoq-onnx analyze model.onnx --calib data.npz --workers 1 -o new.infoq"
    ),
    "an address that is none": always("infoq-onnx analyze model.onnx --calib data.npz --ray local"),
    "no Ray cluster at the address": always("infoq-onnx analyze model.onnx --calib data.npz --ray local -o new.infoq"),
    "Ray is not installed": ray_installed,
    "the folder is in use": waited,
}
