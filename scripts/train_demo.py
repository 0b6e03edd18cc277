"""Train the demo model and write it, with its images, into infoq_onnx/demo/.

Run by hand when the demo is to change (packages torch and scikit-learn, under a minute on one idle CPU core)::

    python scripts/train_demo.py

The images are scikit-learn's handwritten digits: 8×8 pixels, grey values k/16. Their split is seeded and stratified.
The model is trained on the training part; choices about it were made on the calibration part; the test part only says
how good the result is. The same versions of the packages write the same bytes.

The network is narrow on purpose: with little redundancy, 3 or 4 bits everywhere cost accuracy, and layers differ in how
much.
"""
# ruff: noqa: TID251  (torch is an optional dependency of the package, but what this script is about)

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
CALIBRATION_IMAGES = 300
TEST_IMAGES = 597
EPOCHS = 140
BATCH = 60
OPSET = 17


@dataclass(frozen=True)
class Part:
    """Images of one part of the split: `x` float32 (n, 1, 8, 8) in 0…1, `y` int64 (n,)."""

    x: NDArray[np.float32]
    y: NDArray[np.int64]


def split_digits() -> tuple[Part, Part, Part]:
    """Return the training, calibration and test images; no picture is in two of them."""
    images, labels = load_digits(return_X_y=True)
    rest, test = train_test_split(np.arange(len(labels)), test_size=TEST_IMAGES, random_state=SEED, stratify=labels)
    train, calibration = train_test_split(rest, test_size=CALIBRATION_IMAGES, random_state=SEED, stratify=labels[rest])
    x = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    y = labels.astype(np.int64)
    return Part(x[train], y[train]), Part(x[calibration], y[calibration]), Part(x[test], y[test])


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions around which the input is carried to an Add."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.body(x))


class SeparableBlock(nn.Module):
    """A strided depthwise 3×3 convolution and a pointwise one that widens, each clipped to 0…6 (MobileNet)."""

    def __init__(self, channels: int, widened: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
            nn.Conv2d(channels, widened, 1, bias=False),
            nn.BatchNorm2d(widened),
            nn.ReLU6(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class InvertedResidual(nn.Module):
    """Widen, filter each channel, narrow without an activation function, and add the input (MobileNetV2)."""

    def __init__(self, channels: int, expanded: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, expanded, 1, bias=False),
            nn.BatchNorm2d(expanded),
            nn.ReLU6(),
            nn.Conv2d(expanded, expanded, 3, padding=1, groups=expanded, bias=False),
            nn.BatchNorm2d(expanded),
            nn.ReLU6(),
            nn.Conv2d(expanded, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def build_network() -> nn.Sequential:
    """Return the untrained network: [n, 1, 8, 8] images to [n, 10] logits."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        ResidualBlock(6),
        InvertedResidual(6, 18),
        SeparableBlock(6, 12),
        ResidualBlock(12),
        InvertedResidual(12, 36),
        InvertedResidual(12, 36),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 10),
    )


def distort(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale and shift every image a little: ±11°, ±10 %, ±0.8 pixels."""
    angle, height, width, right, down = torch.empty(5, len(x)).uniform_(-1, 1, generator=generator)
    turn, high, wide = 0.2 * angle, 1 + 0.1 * height, 1 + 0.1 * width
    matrix = torch.stack(
        [
            torch.stack([wide * turn.cos(), -high * turn.sin(), 0.2 * right], dim=1),
            torch.stack([wide * turn.sin(), high * turn.cos(), 0.2 * down], dim=1),
        ],
        dim=1,
    )
    grid = functional.affine_grid(matrix, list(x.shape), align_corners=False)
    return functional.grid_sample(x, grid, align_corners=False)


def train(part: Part) -> nn.Sequential:
    """Return a network trained on `part`, in evaluation mode."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    network = build_network()
    x, y = torch.from_numpy(part.x), torch.from_numpy(part.y)
    steps = EPOCHS * (len(x) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.005, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.005, total_steps=steps)
    network.train()
    for _ in range(EPOCHS):
        order = torch.randperm(len(x), generator=generator)
        for chosen in order[: len(x) // BATCH * BATCH].split(BATCH):
            loss = functional.cross_entropy(network(distort(x[chosen], generator)), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def top1(network: nn.Module, part: Part) -> float:
    """Share of the images in `part` that `network` classifies right."""
    with torch.no_grad():
        return float(np.mean(network(torch.from_numpy(part.x)).argmax(1).numpy() == part.y))


def export(network: nn.Module, path: Path) -> None:
    """Write `network` as ONNX with a free batch axis and its BatchNormalization nodes left in."""
    torch.onnx.export(
        network,
        (torch.zeros(1, 1, 8, 8),),
        str(path),
        dynamo=False,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
        # EVAL would fold BatchNorm; the demo keeps it so that the tool's own folding is shown at work
        training=torch.onnx.TrainingMode.PRESERVE,
        do_constant_folding=False,
    )


def main() -> None:
    """Write model.onnx, calibration.npz and test.npz, and print the accuracies."""
    parser = argparse.ArgumentParser(description="Train the demo model and write it with its images.")
    default = Path(__file__).resolve().parents[1] / "infoq_onnx" / "demo"
    parser.add_argument("-o", "--output", type=Path, default=default, help="folder to write to")
    folder = parser.parse_args().output

    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    training, calibration, test = split_digits()
    network = train(training)
    export(network, folder / "model.onnx")
    for name, part in (("calibration", calibration), ("test", test)):
        np.savez_compressed(folder / f"{name}.npz", x=part.x, y=part.y)
    for name, part in (("training", training), ("calibration", calibration), ("test", test)):
        print(f"{name:11s} {len(part.y):4d} images, top-1 {100 * top1(network, part):.2f} %")


if __name__ == "__main__":
    main()
