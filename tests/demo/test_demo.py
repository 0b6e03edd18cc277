"""The embedded model and images are what infoq_onnx.demo says they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

from infoq_onnx import demo

Arrays = dict[str, NDArray[np.generic]]
Source = Callable[[], AbstractContextManager[Path]]


def load(source: Source) -> Arrays:
    with source() as path, np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def pictures(images: NDArray[np.generic]) -> list[bytes]:
    return [image.tobytes() for image in images]


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    with demo.demo_model_path() as path:
        return onnx.load(path)


@pytest.fixture(scope="module")
def calibration() -> Arrays:
    return load(demo.demo_calibration_path)


@pytest.fixture(scope="module")
def test() -> Arrays:
    return load(demo.demo_test_path)


def top1(model: onnx.ModelProto, part: Arrays) -> float:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": part["x"]})
    return float(np.mean(logits.argmax(axis=1) == part["y"]))


def test_package_data_is_small() -> None:
    size = 0
    for source in (demo.demo_model_path, demo.demo_calibration_path, demo.demo_test_path):
        with source() as path:
            assert path.is_file()
            size += path.stat().st_size
    assert size < 300_000


def test_model_is_valid_and_has_the_documented_interface(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import] == [17]
    shapes = {
        value.name: [dimension.dim_param or dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {"image": ["batch", 1, 8, 8], "logits": ["batch", 10]}


def test_model_has_what_the_tool_must_cope_with(model: onnx.ModelProto) -> None:
    nodes = Counter(node.op_type for node in model.graph.node)
    assert nodes["BatchNormalization"] == nodes["Conv"] > 0
    assert nodes["Add"] >= 2
    assert {"Clip", "Relu", "GlobalAveragePool", "Gemm"} <= nodes.keys()

    weights = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    convolutions = [
        (node, {attribute.name: attribute for attribute in node.attribute})
        for node in model.graph.node
        if node.op_type == "Conv"
    ]
    depthwise = [
        node.name
        for node, attributes in convolutions
        if attributes["group"].i == weights[node.input[1]][0] > 1 and weights[node.input[1]][1] == 1
    ]
    strided = [node.name for node, attributes in convolutions if list(attributes["strides"].ints) == [2, 2]]
    assert set(strided) < set(depthwise)


def test_documented_number_of_weights(model: onnx.ModelProto) -> None:
    multiplied = {node.input[1] for node in model.graph.node if node.op_type in ("Conv", "Gemm")}
    count = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer if tensor.name in multiplied)
    assert f"{count} weights" in str(demo.__doc__)


def test_model_file_names_no_folder_of_the_machine_it_was_made_on(model: onnx.ModelProto) -> None:
    assert not any(node.doc_string for node in model.graph.node)
    assert not model.metadata_props


@pytest.mark.parametrize(("name", "count"), [("calibration", 300), ("test", 597)])
def test_arrays_are_usable_as_they_are(name: str, count: int, request: pytest.FixtureRequest) -> None:
    part: Arrays = request.getfixturevalue(name)
    assert set(part) == {"x", "y"}
    assert part["x"].shape == (count, 1, 8, 8)
    assert part["x"].dtype == np.float32
    assert part["y"].shape == (count,)
    assert part["y"].dtype == np.int64
    assert set((part["x"] * 16).ravel().tolist()) == set(range(17))
    digits = np.bincount(part["y"].astype(int), minlength=10)
    assert np.all(np.abs(digits - count / 10) <= 3)


def test_splits_are_disjoint_and_unique(calibration: Arrays, test: Arrays) -> None:
    together = pictures(calibration["x"]) + pictures(test["x"])
    assert len(set(together)) == len(together) == 897


def test_images_and_labels_are_those_of_scikit_learn(calibration: Arrays, test: Arrays) -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn, where the digits come from, is absent")
    images, labels = datasets.load_digits(return_X_y=True)
    known = dict(zip(pictures((images / 16).astype(np.float32)), labels.tolist(), strict=True))
    assert len(known) == 1797
    for part in (calibration, test):
        assert [known[picture] for picture in pictures(part["x"])] == part["y"].tolist()


def test_documented_accuracies(model: onnx.ModelProto, calibration: Arrays, test: Arrays) -> None:
    stated = " ".join(str(demo.__doc__).split())
    on_calibration, on_test = (100 * top1(model, part) for part in (calibration, test))
    assert f"{on_calibration:.2f} % on the calibration and {on_test:.2f} % on the test images" in stated
    assert on_test >= 97.5
