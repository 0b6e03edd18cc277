"""Datasets and little ONNX models for the encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from infoq_onnx.data.dataset import Dataset, load_dataset
from infoq_onnx.data.preprocess import is_image, preset

MakeDataset = Callable[..., Dataset]


@pytest.fixture
def dataset_of(tmp_path: Path) -> MakeDataset:
    """Make a dataset of an array; uint8 images get `name`'s preprocessing."""

    def make(array: np.ndarray, shape: tuple[int, ...] | None = None, name: str = "imagenet") -> Dataset:
        np.save(tmp_path / "samples.npy", array)
        shape = shape or array.shape[1:]
        preprocessing = preset(name, shape) if is_image(shape) else None
        return load_dataset(tmp_path / "samples.npy", preprocessing=preprocessing, input_shape=shape)

    return make


def model(
    shape: list[int | str],
    nodes: list[onnx.NodeProto] | None = None,
    *,
    input_name: str = "x",
    outputs: tuple[str, ...] = ("y",),
    kind: int = TensorProto.FLOAT,
    constants: dict[str, np.ndarray] | None = None,
) -> bytes:
    """Serialise a graph from one input to float outputs; without nodes it hands its input on."""
    nodes = nodes or [helper.make_node("Identity", [input_name], [outputs[0]])]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(input_name, kind, shape)],
        [helper.make_tensor_value_info(name, kind, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
