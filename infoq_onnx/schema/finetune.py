"""The settings of `finetune`, and the record of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

FinetuneMode = Literal["scales", "lsq", "reconstruct"]
FINETUNE_MODES: tuple[FinetuneMode, ...] = get_args(FinetuneMode)
Augmentation = Literal["none", "crop", "flip-crop"]
AUGMENTATIONS: tuple[Augmentation, ...] = get_args(Augmentation)
_RATES: Mapping[FinetuneMode, float] = {"scales": 5e-4, "lsq": 5e-4, "reconstruct": 5e-4}


def counted(mode: FinetuneMode) -> str:
    """Return what the steps of a training are."""
    return "blocks" if mode == "reconstruct" else "updates"


@dataclass(frozen=True)
class FinetuneSettings:
    """The settings of `finetune`, with its defaults."""

    mode: FinetuneMode = "scales"
    """"scales": the codes of the weights stay, and step sizes, biases and normalisation factors learn. "lsq": weights
    learn, too. "reconstruct": like lsq, but block after block to the outputs of the float network's blocks."""
    epochs: int = 10
    """Number of passes over the images."""
    batch: int = 64
    """Number of images of an update."""
    learning_rate: float | None = None
    """Largest relative change in one update; None: the default of the mode."""
    weight_decay: float = 0.0
    """Pull of weights towards their values before training."""
    warmup: float = 0.05
    """Share of the updates in which the learning rate rises; then it falls along half a cosine."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """The optimizer."""
    labels: float = 0.0
    """Share of the labels' cross-entropy in the loss; the rest is the divergence from the float network."""
    augment: Augmentation = "flip-crop"
    """Random changes of images, see `training.augmentation`."""
    held_out: float = 0.1
    """Share of the images that are not trained with, but choose the best state; without effect if others are given."""
    patience: int = 1000
    """Number of epochs without gain on held-out images after which training ends."""
    samples: int | None = None
    """Maximum number of images; None: all images."""
    seed: int = 0
    """Seed of the choice of images, their order and changes."""
    device: str = "auto"
    """"auto": a GPU if there is one; "cpu"; or any name that torch knows."""
    precision: Literal["float32", "mixed"] = "float32"
    """"mixed": products in bfloat16."""
    checkpoint_steps: int = 100
    """Number of updates between two checkpoints."""
    max_seconds: float | None = None
    """Time after which training ends; None: no limit."""

    @property
    def identity(self) -> str:
        """All settings that the result depends on, as text."""
        return repr(replace(self, device="", checkpoint_steps=1, max_seconds=None))

    @property
    def rate(self) -> float:
        """`learning_rate`, or its default."""
        return _RATES[self.mode] if self.learning_rate is None else self.learning_rate


@dataclass(frozen=True)
class HeldOut:
    """A network on images that it was not trained with."""

    images: int
    """Number of images."""
    loss: float
    """Loss of the training on these images."""
    divergence: float
    """Mean KL divergence from the float network's predictions, nats."""
    agreement: float
    """Share of images with the float network's class."""
    accuracy: float | None
    """Share of images with the right class; None without labels."""


@dataclass(frozen=True)
class Training:
    """What a fine-tuned model was trained with, and what that led to."""

    mode: FinetuneMode
    settings_sha256: str
    """Hash of all settings that the result depends on."""
    seed: int
    images: int
    """Number of images that were trained with."""
    images_sha256: str
    """Hash of the contents of these images."""
    steps: int
    """Number of updates; of blocks, in the mode reconstruct."""
    best_step: int
    """That after which the model was best on held-out images: it is the one that was written."""
    before: HeldOut
    """The model of `allocate`, on held-out images."""
    after: HeldOut
    """The written model, on the same images."""
