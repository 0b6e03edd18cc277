"""Export some thirty architectures with both exporters of PyTorch, for `compatibility.py`.

    python benchmarks/architectures.py WORK [NAME ...]

Needs the extra `zoo`. Sizes are small and weights random (seed 0). The TorchScript exporter writes operator sets 11, 13
and 17, the one of torch.export 18, 20 and 23; at the middle one of each the batch is fixed to 2. Models that cannot be
exported are printed and left out. Files that exist are kept.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torchvision.models as tv
from torch import Tensor, nn

EXPORTERS = {"torchscript": (11, 13, 17), "dynamo": (18, 20, 23)}
Made = tuple[nn.Module, tuple[int, ...]]
SQUARE = (3, 64, 64)


class Residual(nn.Module):
    """f(x) + x."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x


class CnnLstm(nn.Module):
    """Columns of a map of features, read one after the other."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = (nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU())
        self.features = nn.Sequential(*convolutions)
        self.lstm = nn.LSTM(128, 32, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        columns = self.features(x).permute(0, 3, 1, 2).flatten(2)
        return self.head(self.lstm(columns)[0][:, -1])


class ChannelsLast(nn.Module):
    """Takes images as they are stored, [N, H, W, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU6())
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x.permute(0, 3, 1, 2)).mean((2, 3)))


def pooled(*layers: nn.Module, width: int, rank: int = 2) -> nn.Module:
    """A classifier on the mean over positions."""
    pool = nn.AdaptiveAvgPool1d(1) if rank == 1 else nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, pool, nn.Flatten(), nn.Linear(width, 10))


def convmixer(width: int = 32) -> nn.Module:
    """Depthwise and pointwise convolutions on patches."""
    blocks = [
        nn.Sequential(
            Residual(
                nn.Sequential(
                    nn.Conv2d(width, width, 5, groups=width, padding="same"), nn.GELU(), nn.BatchNorm2d(width)
                )
            ),
            nn.Conv2d(width, width, 1),
            nn.GELU(),
            nn.BatchNorm2d(width),
        )
        for _ in range(3)
    ]
    return pooled(nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.BatchNorm2d(width), *blocks, width=width)


def swin(blocks: list[int], **options: object) -> nn.Module:
    """A small Swin transformer."""
    heads = [3 * 2**stage for stage in range(len(blocks))]
    return tv.SwinTransformer([4, 4], 48, blocks, heads, [4, 4], num_classes=10, **options)


def of_timm(name: str, **options: object) -> Callable[[], Made]:
    """A model of timm on images of 64 pixels."""
    return lambda: (timm.create_model(name, num_classes=10, **options), SQUARE)


def of_torchvision(name: str, side: int = 64, **options: object) -> Callable[[], Made]:
    """A model of torchvision."""
    return lambda: (getattr(tv, name)(num_classes=10, **options), (3, side, side))


def with_statistics(make: Callable[[], Made]) -> Callable[[], Made]:
    """A model whose batch normalisation has seen noise: without, the signal of some deep random models dies."""

    def made() -> Made:
        model, shape = make()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        model.train()(torch.randn(16, *shape))
        return model, shape

    return made


ARCHITECTURES: dict[str, Callable[[], Made]] = {
    "alexnet": of_torchvision("alexnet"),
    "audio_cnn": lambda: (
        pooled(nn.Conv2d(1, 16, (8, 4), 2), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.MaxPool2d(2), width=32),
        (1, 40, 101),
    ),
    "cnn_lstm": lambda: (CnnLstm(), (3, 32, 32)),
    "convmixer": lambda: (convmixer(), (3, 32, 32)),
    "convnext_atto": of_timm("convnext_atto"),
    "deit_tiny": of_timm("deit_tiny_patch16_224", img_size=64, depth=4),
    "densenet121": of_torchvision("densenet121"),
    "edgenext": of_timm("edgenext_xx_small"),
    "efficientnet_b0": of_torchvision("efficientnet_b0"),
    "ghostnet_050": of_timm("ghostnet_050"),
    "googlenet": of_torchvision("googlenet", aux_logits=False, init_weights=False),
    "inception_v3": with_statistics(of_torchvision("inception_v3", 96, aux_logits=False, init_weights=False)),
    "levit_128s": of_timm("levit_128s", img_size=64),
    "maxvit": lambda: (
        tv.MaxVit((64, 64), 16, 2, [16, 32], [1, 1], head_dim=8, stochastic_depth_prob=0.0, num_classes=10),
        SQUARE,
    ),
    "mixer": lambda: (
        timm.models.mlp_mixer.MlpMixer(num_classes=10, img_size=64, patch_size=16, num_blocks=4, embed_dim=64),
        SQUARE,
    ),
    "mlp": lambda: (
        nn.Sequential(
            nn.Linear(20, 64), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
        ),
        (20,),
    ),
    "mnasnet0_5": of_torchvision("mnasnet0_5"),
    "mobilenet_v2": of_torchvision("mobilenet_v2"),
    "mobilenet_v3_small": of_torchvision("mobilenet_v3_small"),
    "mobilevit_xxs": of_timm("mobilevit_xxs"),
    "nhwc": lambda: (ChannelsLast(), (32, 32, 3)),
    "poolformer": of_timm("poolformer_s12"),
    "regnet_y_400mf": of_torchvision("regnet_y_400mf"),
    "repvgg_a0": with_statistics(of_timm("repvgg_a0")),
    "resnet18": of_torchvision("resnet18"),
    "resnext": lambda: (
        tv.ResNet(tv.resnet.Bottleneck, [1, 1, 1, 1], groups=8, width_per_group=4, num_classes=10),
        SQUARE,
    ),
    "sensor_1d": lambda: (
        pooled(
            *(nn.Conv1d(6, 16, 5, padding=2), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2)),
            *(nn.Conv1d(16, 32, 5, padding=2), nn.BatchNorm1d(32), nn.ReLU()),
            width=32,
            rank=1,
        ),
        (6, 128),
    ),
    "shufflenet_v2": of_torchvision("shufflenet_v2_x0_5"),
    "squeezenet1_1": of_torchvision("squeezenet1_1"),
    "swin_t": lambda: (swin([2, 2, 2]), SQUARE),
    "swin_v2": lambda: (
        swin(
            [2, 2],
            block=tv.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=tv.swin_transformer.PatchMergingV2,
        ),
        SQUARE,
    ),
    "vgg11_bn": lambda: (pooled(tv.vgg11_bn().features, width=512), SQUARE),
    "vit_tiny": of_timm("vit_tiny_patch16_224", img_size=64, depth=4),
}


def export(model: nn.Module, x: Tensor, path: Path, exporter: str, opset: int, *, fixed: bool) -> None:
    """Write a model with one exporter."""
    if exporter == "torchscript":
        names = {"input_names": ["x"], "output_names": ["y"]}
        axes = None if fixed else {"x": {0: "n"}, "y": {0: "n"}}
        torch.onnx.export(model, (x,), path, opset_version=opset, dynamo=False, dynamic_axes=axes, **names)
    else:
        shapes = None if fixed else ({0: torch.export.Dim("n", min=1, max=1024)},)
        options = {"external_data": False, "verbose": False, "dynamic_shapes": shapes}
        torch.onnx.export(model, (x,), path, opset_version=opset, dynamo=True, **options)


def main() -> None:
    """Export what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ARCHITECTURES))
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - ARCHITECTURES.keys()):
        parser.error(f"no such architecture: {', '.join(unknown)}; choose among {', '.join(ARCHITECTURES)}")
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or ARCHITECTURES:
        torch.manual_seed(0)
        model, shape = ARCHITECTURES[name]()
        model.eval()
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():  # some heads are zero before training
                nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
        x = torch.randn(2, *shape)
        for exporter, opsets in EXPORTERS.items():
            for index, opset in enumerate(opsets):
                path = arguments.work / f"{name}-{exporter}-{opset}.onnx"
                if path.exists():
                    continue
                try:
                    export(model, x, path, exporter, opset, fixed=index == 1)
                except Exception as error:  # noqa: BLE001
                    # an exporter may raise anything; what it cannot write is its own matter
                    path.unlink(missing_ok=True)
                    print(f"{path.stem}: {type(error).__name__}: {str(error).splitlines()[0][:200]}", flush=True)
        print(name, flush=True)


if __name__ == "__main__":
    main()
