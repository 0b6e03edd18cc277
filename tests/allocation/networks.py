"""Networks made by hand: the allocation stage sees no models."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from infoq_onnx.schema import ActivationGroup, Layer, Network


def make_layer(name: str, groups: tuple[str, ...], *, macs: int, parameters: int = 0) -> Layer:
    """Make a layer with weights, or a MatMul of activations when there are no parameters."""
    return Layer(
        name=name,
        op_type="Conv" if parameters else "MatMul",
        groups=groups,
        weight=f"{name}.weight" if parameters else None,
        weight_shape=(parameters,) if parameters else (),
        channel_axis=0 if parameters else None,
        bias=None,
        output=f"{name}.output",
        observed=f"{name}.output",
        output_shape=(1,),
        parameters=parameters,
        macs=macs,
    )


def make_network(layers: Iterable[Layer], elements: Mapping[str, int]) -> Network:
    """Make a network of layers; `elements` names the groups that feed them, in order."""
    layers = tuple(layers)
    groups = tuple(
        ActivationGroup(name, tuple(layer.name for layer in layers if name in layer.groups), (count,), count)
        for name, count in elements.items()
    )
    return Network("image", (3, 224, 224), "logits", 1000, None, 20, layers, groups, ())


def make_resnet18() -> Network:
    """ResNet-18 for 224 × 224: 21 layers in 18 groups; a downsampling 1 × 1 shares its block's input."""
    layers: list[Layer] = []
    elements: dict[str, int] = {}

    def conv(name: str, group: str, channels: tuple[int, int], kernel: int, sizes: tuple[int, int]) -> None:
        (c_in, c_out), (size_in, size_out) = channels, sizes
        elements[group] = c_in * size_in**2
        parameters = c_in * c_out * kernel**2
        layers.append(make_layer(name, (group,), macs=parameters * size_out**2, parameters=parameters))

    conv("conv1", "image", (3, 64), 7, (224, 112))
    width, size = 64, 56
    for stage, (c_out, size_out) in enumerate([(64, 56), (128, 28), (256, 14), (512, 7)], start=1):
        for block in range(2):
            name = f"layer{stage}.{block}"
            conv(f"{name}.conv1", f"{name}.x", (width, c_out), 3, (size, size_out))
            conv(f"{name}.conv2", f"{name}.y", (c_out, c_out), 3, (size_out, size_out))
            if width != c_out:
                conv(f"{name}.downsample", f"{name}.x", (width, c_out), 1, (size, size_out))
            width, size = c_out, size_out
    elements["pooled"] = 512
    layers.append(make_layer("fc", ("pooled",), macs=512_000, parameters=512_000))
    return make_network(layers, elements)


def make_scores(names: Iterable[str], seed: int) -> dict[str, dict[int, float]]:
    """Draw scores for 2 … 8 bits that fall about fourfold a bit, of very different sizes, as trials give them."""
    random = np.random.default_rng(seed)
    return {
        name: {
            bits: float(10 ** random.uniform(-5, -2) * 4.0 ** (2 - bits) * random.uniform(0.5, 1))
            for bits in range(2, 8)
        }
        | {8: 0.0}
        for name in names
    }
