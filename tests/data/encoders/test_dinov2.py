from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from infoq_onnx.data.encoders import dinov2, encoder_file, get_encoder
from infoq_onnx.errors import MissingDependencyError

from .conftest import MakeDataset, model


def hub(monkeypatch: pytest.MonkeyPatch, download) -> None:
    """Put a huggingface_hub in place whose only function is `download`."""
    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_the_class_token_of_the_downloaded_file(
    monkeypatch: pytest.MonkeyPatch, dataset_of: MakeDataset, tmp_path: Path
) -> None:
    # stands in for DINOv2: 14 × 14 patches of RGB as tokens, the first of which is the class token
    nodes = [
        helper.make_node("AveragePool", ["pixel_values"], ["patches"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Reshape", ["patches", "shape"], ["flat"]),
        helper.make_node("Transpose", ["flat"], ["last_hidden_state"], perm=[0, 2, 1]),
    ]
    content = model(
        ["batch", "channels", "height", "width"],
        nodes,
        input_name="pixel_values",
        outputs=("last_hidden_state",),
        constants={"shape": np.array([0, 3, 196])},
    )
    (tmp_path / "model.onnx").write_bytes(content)
    asked = {}

    def download(**arguments: str) -> str:
        asked.update(arguments)
        return str(tmp_path / "model.onnx")

    hub(monkeypatch, download)
    images = np.random.default_rng(0).integers(0, 256, (5, 224, 224, 3), dtype=np.uint8)
    features = get_encoder("dinov2")(dataset_of(images, (3, 224, 224), "tf"), 2)
    assert asked == {"repo_id": dinov2.REPOSITORY, "filename": dinov2.FILE, "revision": dinov2.REVISION}
    assert encoder_file("dinov2") == tmp_path / "model.onnx"
    unit = images[:, :16, :16].mean(axis=(1, 2)) / 255
    np.testing.assert_allclose(features, (unit - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], atol=1e-4)


@pytest.mark.parametrize("error", [ConnectionError("offline\nfor long"), FileNotFoundError("x"), ValueError("x")])
def test_no_network(monkeypatch: pytest.MonkeyPatch, dataset_of: MakeDataset, error: Exception) -> None:
    def download(**_: str) -> str:
        raise error

    hub(monkeypatch, download)
    match = (
        rf"cannot download DINOv2 \({type(error).__name__}\): fetch onnx/model.onnx of "
        r"https://huggingface.co/onnx-community/dinov2-small .*`encoder` path/to/model.onnx"
    )
    with pytest.raises(MissingDependencyError, match=match) as caught:
        dinov2.encode(dataset_of(np.zeros((2, 3, 8, 8))), 2)
    assert "\n" not in str(caught.value)


def test_no_huggingface_hub(monkeypatch: pytest.MonkeyPatch, dataset_of: MakeDataset) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "infoq-onnx\[dinov2\]"'):
        dinov2.encode(dataset_of(np.zeros((2, 3, 8, 8))), 2)
