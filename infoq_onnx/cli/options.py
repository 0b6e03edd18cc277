"""Options shared by several commands, and the types of their values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from infoq_onnx.errors import enumerated

if TYPE_CHECKING:
    from infoq_onnx.schema import Preprocessing

F = TypeVar("F", bound=Callable[..., Any])

PRESET_NAMES = ("imagenet", "tf", "cifar10", "none")


class FilePath(click.Path):
    """A path. An empty path is rejected: it would mean the working folder, and usually comes from an unset variable."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert the value to a Path."""
        if value == "":
            self.fail("the path is empty (a variable that is not set, perhaps)", param, ctx)
        return super().convert(value, param, ctx)


class Whole(click.IntRange):
    """A whole number of at least `min`."""

    name = "whole number"


class BitList(click.ParamType[tuple[int, ...]]):
    """Bit-widths such as `2,3,4,8`."""

    name = "bits"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Parse the list. The bit-widths are checked later, where they are used."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of bit-widths such as 2,3,4,8", param, ctx)


class BitPair(click.ParamType[tuple[int, int]]):
    """Weight and activation bits such as `3/8`."""

    name = "W/A"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Parse the pair."""
        if isinstance(value, tuple):
            return value
        weight, slash, activation = str(value).partition("/")
        if not (slash and weight.isdigit() and activation.isdigit()):
            self.fail(f"{value!r} is not W/A such as 4/4 or 3/8", param, ctx)
        return int(weight), int(activation)


class Numbers(click.ParamType[tuple[float, ...]]):
    """Comma-separated numbers such as `0.5,0.5,0.5`."""

    name = "numbers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Parse the list."""
        if isinstance(value, tuple):
            return value
        try:
            return tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of numbers such as 0.485,0.456,0.406", param, ctx)


def logits_option(command: F) -> F:
    """Add --logits."""
    return click.option(
        "--logits",
        metavar="NAME",
        help="Output with the class scores [the first one, or the only one that is float32 of batch and classes].",
    )(command)


def data_options(command: F) -> F:
    """Add the options that define how samples become tensors: --classes, --preprocess and its parts, --seed."""
    for option in reversed(
        [
            click.option(
                "--classes",
                type=FilePath(),
                help="File with one class name per line, in label order. Default: the class folders, sorted by name.",
            ),
            click.option(
                "--preprocess",
                type=click.Choice(PRESET_NAMES),
                help="How images become the model's input. imagenet: resize the short side to 256/224 of the model's "
                "size, crop the centre, divide by 255, apply ImageNet's mean and std. tf: the same crop, then "
                "x/127.5-1. cifar10: x/255, CIFAR-10's mean and std. none: keep 0…255. Images that have the model's "
                "size are not resized. Arrays (.npy, .npz) of integers from 0 to 255 count as images; arrays of floats "
                "are the model's input already.",
            ),
            click.option(
                "--resize", type=int, help="Preprocessing of your own: resize the short side to this many pixels."
            ),
            click.option("--crop/--no-crop", default=True, help="… then crop the centre, or squeeze the whole image."),
            click.option("--scale", type=float, help="… then divide 0…255 by this [255]."),
            click.option("--mean", type=Numbers(), help="… then subtract this: one value, or one per channel."),
            click.option("--std", type=Numbers(), help="… then divide by this: one value, or one per channel."),
            click.option("--color", type=click.Choice(["RGB", "BGR", "L"]), help="… order of the colour channels."),
            click.option("--layout", type=click.Choice(["NCHW", "NHWC"]), help="… order of the axes."),
            click.option(
                "--seed", type=Whole(min=0), default=0, show_default=True, help="Seed of every random choice."
            ),
        ]
    ):
        command = option(command)
    return command


def preprocessing_of(options: dict[str, Any]) -> str | Callable[[tuple[int, ...]], Preprocessing] | None:
    """Remove the preprocessing from a command's options and return it.

    Parameters
    ----------
    options : options of the command; modified in place

    Returns
    -------
    str, callable or None
        Name of a preset, a function that returns the preprocessing for the model's input shape, or None if not given.

    Raises
    ------
    click.UsageError
        Both a preset and parts of an own preprocessing are given.
    """
    preset: str | None = options.pop("preprocess")
    names = ("resize", "scale", "mean", "std", "color", "layout")
    own = {name: value for name in names if (value := options.pop(name)) is not None}
    crop = options.pop("crop")
    if not own and crop:
        return preset
    if preset is not None:
        given = enumerated([*(f"--{name}" for name in own), *([] if crop else ["--no-crop"])])
        raise click.UsageError(f"--preprocess {preset} is a whole recipe: drop it, or {given}")

    def recipe(input_shape: tuple[int, ...]) -> Preprocessing:
        from infoq_onnx.data.preprocess import custom

        return custom(input_shape, crop=crop, **own)

    return recipe
