"""Accuracies and their intervals by hand, and models of every shape that a user may bring."""

from __future__ import annotations

import dataclasses
import io
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper
from rich.console import Console
from scipy import optimize, stats

from infoq_onnx.data.preprocess import AS_IS
from infoq_onnx.errors import ModelError
from infoq_onnx.evaluation import (
    PREPROCESSING_KEY,
    Classifier,
    evaluate_model,
    open_classifier,
    paired_interval,
    top_k,
    wilson,
)
from infoq_onnx.report import tables
from infoq_onnx.schema import Preprocessing, to_json
from tests.networks import Builder, mlp, residual_convnet
from tests.prepared import dataset_of, images, is_one_line


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, path)
    return path


def with_ends(
    kind: int = TensorProto.FLOAT, shape: list[int | str] | None = None, *, op_type: str = "Identity", inputs: int = 1
) -> onnx.ModelProto:
    """A model that hands its input on."""
    names = [f"x{index}" for index in range(inputs)]
    shape = ["batch", 4] if shape is None else shape
    nodes = [helper.make_node(op_type, names[:1], ["y"])]
    ends = [helper.make_tensor_value_info(name, kind, shape) for name in (*names, "y")]
    graph = helper.make_graph(nodes, "identity", ends[:-1], ends[-1:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def identity(tmp_path: Path) -> Classifier:
    """Its logits are its input."""
    return open_classifier(saved(with_ends(), tmp_path / "identity.onnx"))


# -------------------------------------------------------------------------------------------------------------- figures


def test_top1_and_top_k() -> None:
    logits = np.array([[9, 8, 7, 6], [1, 2, 3, 4], [5, 1, 6, 2]], dtype=np.float32)
    labels = np.array([1, 0, 2])
    assert top_k(logits, labels, 1) == pytest.approx(1 / 3)
    assert top_k(logits, labels, 2) == pytest.approx(2 / 3)
    assert top_k(logits, labels, 3) == pytest.approx(2 / 3)
    assert top_k(logits, labels, 4) is None


@pytest.mark.parametrize(("successes", "count"), [(0, 10), (10, 10), (3, 10), (932, 1017), (1, 1)])
def test_wilson_is_that_of_scipy(successes: int, count: int) -> None:
    expected = stats.binomtest(successes, count).proportion_ci(method="wilson")
    assert wilson(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-12)
    low, high = wilson(successes, count, confidence=0.5)
    assert expected.low <= low <= successes / count <= high <= expected.high


Pairs = tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]


def pairs(gained: int, lost: int, same: int) -> Pairs:
    """Whether two models are right on each image: `gained` only by the first, `lost` only by the second."""
    ours, theirs = (np.repeat(right, [gained, lost, same]) for right in ([True, False, True], [False, True, True]))
    return ours, theirs


@pytest.mark.parametrize(("gained", "lost", "same"), [(12, 2, 36), (3, 3, 394), (0, 6, 4), (1, 0, 99), (40, 50, 10)])
def test_paired_interval_ends_where_the_score_test_rejects(gained: int, lost: int, same: int) -> None:
    count = gained + lost + same

    def score(difference: float) -> float:
        """Tango's statistic, its constrained likelihood maximised by search."""

        def unlikely(share: float) -> float:
            gain, rest = share + difference, 1 - 2 * share - difference
            terms = zip((gained, lost, same), (gain, share, rest), strict=True)
            return -sum(seen * math.log(expected) for seen, expected in terms if seen)

        span = (max(0.0, -difference), (1 - difference) / 2)
        share = optimize.minimize_scalar(unlikely, bounds=span, method="bounded", options={"xatol": 1e-12}).x
        variance = count * (2 * share + difference * (1 - difference))
        return float((gained - lost - count * difference) / math.sqrt(variance))

    low, high = paired_interval(*pairs(gained, lost, same))
    assert low < (gained - lost) / count < high
    assert (score(low), score(high)) == (pytest.approx(1.959964, rel=1e-4), pytest.approx(-1.959964, rel=1e-4))


def test_paired_interval_where_models_agree() -> None:
    """The pairs that differ tell how far apart two models are; that none does tells no more than the images can."""
    for right in (True, False):
        same = np.full(400, right)
        half = 1.959964**2 / (400 + 1.959964**2)
        assert paired_interval(same, same) == pytest.approx((-half, half), rel=1e-6)
    low, high = paired_interval(*pairs(3, 3, 394))
    assert low == pytest.approx(-high)
    # far narrower than the interval of one of them
    assert high - low < 0.5 * (wilson(320, 400)[1] - wilson(320, 400)[0])


def test_paired_interval_at_its_ends() -> None:
    assert paired_interval(*pairs(5, 0, 0))[1] == 1.0
    assert paired_interval(*pairs(0, 5, 0))[0] == -1.0
    low, high = paired_interval(*pairs(7, 2, 11))
    assert paired_interval(*pairs(2, 7, 11)) == pytest.approx((-high, -low))
    narrow = paired_interval(*pairs(7, 2, 11), confidence=0.5)
    assert low < narrow[0] < narrow[1] < high


def test_evaluation_by_hand(identity: Classifier) -> None:
    logits = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1]]
    labels = np.array([0, 1, 2, 3, 1, 1])
    found = evaluate_model(identity, dataset_of(logits, labels))
    assert (found.images, found.top1) == (6, pytest.approx(5 / 6))
    assert found.top1_interval == wilson(5, 6)
    assert found.top5 is None
    assert found.file_bytes == identity.path.stat().st_size
    assert found.latency_ms > 0
    assert found.latency_batch == 1
    assert (found.agreement, found.reference_top1, found.top1_difference, found.reference_bytes) == (None,) * 4
    assert (found.reference_latency_ms, found.reference_latency_batch) == (None, None)


def test_comparison_by_hand(identity: Classifier, tmp_path: Path) -> None:
    negative = open_classifier(saved(with_ends(op_type="Neg"), tmp_path / "negative.onnx"))
    logits = np.array([[3, 2, 1, 0], [0, 1, 2, 3], [-1, 9, -2, 0]], dtype=np.float32)
    labels = np.array([0, 0, 2])
    found = evaluate_model(identity, dataset_of(logits, labels), negative)
    assert found.top1 == pytest.approx(1 / 3)
    assert found.reference_top1 == pytest.approx(2 / 3)
    assert found.top1_difference == pytest.approx(-1 / 3)
    assert found.top1_difference_interval == paired_interval(
        np.array([True, False, False]), np.array([False, True, True])
    )
    assert found.agreement == 0.0
    assert found.reference_bytes == negative.file_bytes
    assert found.reference_latency_ms is not None


def test_without_labels_only_agreement_is_known(identity: Classifier) -> None:
    found = evaluate_model(identity, dataset_of(images((4,), 10)), identity)
    assert found.agreement == 1.0
    assert (found.top1, found.top1_interval, found.top5, found.reference_top1, found.top1_difference) == (None,) * 5


def test_top5(tmp_path: Path) -> None:
    classifier = open_classifier(saved(with_ends(shape=["batch", 8]), tmp_path / "eight.onnx"))
    logits = np.tile(np.arange(8, dtype=np.float32), (4, 1))
    found = evaluate_model(classifier, dataset_of(logits, np.array([7, 3, 2, 0])))
    assert (found.top1, found.top5) == (0.25, 0.5)


# --------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("batch", [None, 1, 4])
def test_fixed_batches(batch: int | None, tmp_path: Path) -> None:
    classifier = open_classifier(saved(residual_convnet(batch=batch), tmp_path / "model.onnx"))
    assert (classifier.batch, classifier.input_shape, classifier.classes) == (batch, (3, 16, 16), 10)
    values = images((3, 16, 16), 9)
    free = open_classifier(saved(residual_convnet(), tmp_path / "free.onnx"))
    logits = classifier.logits(dataset_of(values))
    assert logits.shape == (9, 10)
    np.testing.assert_allclose(logits, free.run(values), atol=1e-5)
    found = evaluate_model(classifier, dataset_of(values), free)
    assert found.agreement == 1.0
    assert found.latency_batch == (batch or 1)


def test_a_batch_that_is_free_in_name_only(tmp_path: Path) -> None:
    b = Builder()
    pooled = b.op("GlobalAveragePool", ["x"], "gap")
    y = b.gemm(b.op("Reshape", [pooled, b.constant("shape", [1, 3], np.int64)], "flat"), "fc", 3, 5)
    classifier = open_classifier(saved(b.model(y, (3, 8, 8), (5,)), tmp_path / "model.onnx"))
    assert classifier.batch == 1
    assert classifier.logits(dataset_of(images((3, 8, 8), 4))).shape == (4, 5)


def test_logits_with_further_axes_are_flattened(tmp_path: Path) -> None:
    classifier = open_classifier(saved(with_ends(shape=["batch", 6, 1, 1]), tmp_path / "model.onnx"))
    assert classifier.classes == 6
    assert classifier.logits(dataset_of(images((6, 1, 1), 3))).shape == (3, 6)


def test_only_the_first_output_counts(tmp_path: Path) -> None:
    model = mlp()
    model.graph.output.append(helper.make_tensor_value_info("relu1_out", TensorProto.FLOAT, ["batch", 16]))
    assert open_classifier(saved(model, tmp_path / "model.onnx")).logits(dataset_of(images((12,), 3))).shape == (3, 4)


def test_models_are_compared_by_the_same_output(tmp_path: Path) -> None:
    """The quantized file names its scores; the float model, which does not, gives them under the same name."""
    model = mlp()
    model.graph.output.insert(0, helper.make_tensor_value_info("relu1_out", TensorProto.FLOAT, ["batch", 16]))
    path = saved(model, tmp_path / "model.onnx")
    assert open_classifier(path).logits(dataset_of(images((12,), 3))).shape == (3, 16)
    assert open_classifier(path, model.graph.output[1].name).logits(dataset_of(images((12,), 3))).shape == (3, 4)
    # an output of another name: the first that may hold scores
    assert open_classifier(path, "scores").output == "relu1_out"


COLOURED = Preprocessing("custom", None, False, 255.0, (0.5,), (0.25,), "L", "NCHW")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (to_json(COLOURED), COLOURED),
        (to_json(AS_IS), None),
        (None, None),
        ("{}", None),
        ("no JSON", None),
        (to_json(COLOURED).replace('"scale"', '"factor"'), None),
    ],
    ids=["its own", "none needed", "not told", "empty", "broken", "of another version"],
)
def test_preprocessing_that_the_file_carries(text: str | None, expected: Preprocessing | None, tmp_path: Path) -> None:
    model = with_ends()
    if text is not None:
        helper.set_model_props(model, {PREPROCESSING_KEY: text})
    assert open_classifier(saved(model, tmp_path / "model.onnx")).preprocessing == expected


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (with_ends(inputs=2), "2 inputs"),
        (with_ends(TensorProto.DOUBLE), "tensor(double)"),
        (with_ends(shape=["batch", "height", 4]), "height"),
        (with_ends(shape=["batch"]), "x0"),
        (with_ends(shape=[]), "x0"),
    ],
    ids=["two inputs", "double", "free axis", "only a batch", "scalar"],
)
def test_models_that_are_no_classifiers(model: onnx.ModelProto, message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        open_classifier(saved(model, tmp_path / "model.onnx"))
    assert is_one_line(caught.value, "model.onnx", message)


def test_an_input_whose_shape_is_not_told(tmp_path: Path) -> None:
    model = with_ends()
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(ModelError) as caught:
        open_classifier(saved(model, tmp_path / "model.onnx"))
    assert is_one_line(caught.value, "model.onnx", "x0")


def test_an_output_of_integers(tmp_path: Path) -> None:
    b = Builder()
    b.op("ArgMax", ["x"], "best", axis=1, keepdims=0)
    graph = helper.make_graph(
        b.nodes,
        "classes",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("best_out", TensorProto.INT64, ["batch"])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(ModelError) as caught:
        open_classifier(saved(model, tmp_path / "model.onnx"))
    assert is_one_line(caught.value, "model.onnx", "int64")


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    for path in (tmp_path / "gone.onnx", tmp_path, tmp_path / "text.onnx"):
        with pytest.raises(ModelError) as caught:
            open_classifier(path)
        assert is_one_line(caught.value, str(path))


def test_a_model_without_outputs(tmp_path: Path) -> None:
    model = mlp()
    del model.graph.output[:]
    onnx.save(model, tmp_path / "none.onnx")
    with pytest.raises(ModelError, match=r"none\.onnx") as caught:
        open_classifier(tmp_path / "none.onnx")
    assert is_one_line(caught.value)


@pytest.mark.parametrize("name", [b"Gemm", b"logits", b"transB"])
def test_names_that_are_no_text(name: bytes, tmp_path: Path) -> None:
    content = mlp().SerializeToString()
    (tmp_path / "bytes.onnx").write_bytes(content.replace(name, name[:-1] + b"\xff"))
    with pytest.raises(ModelError, match=r"bytes\.onnx is damaged: a name in it is no text"):
        open_classifier(tmp_path / "bytes.onnx")


def test_a_qonnx_model(tmp_path: Path) -> None:
    model = mlp()
    model.graph.node[1].op_type, model.graph.node[1].domain = "Quant", "qonnx.custom_op.general"
    model.opset_import.append(onnx.helper.make_opsetid("qonnx.custom_op.general", 1))
    onnx.save(model, tmp_path / "q.onnx")
    with pytest.raises(ModelError, match=r"q\.onnx is a QONNX model, which onnxruntime does not run"):
        open_classifier(tmp_path / "q.onnx")


def test_logits_that_are_no_numbers(tmp_path: Path) -> None:
    classifier = open_classifier(saved(with_ends(op_type="Log"), tmp_path / "model.onnx"))
    with pytest.raises(ModelError) as caught:
        evaluate_model(classifier, dataset_of(-np.ones((20, 4), np.float32)))
    assert is_one_line(caught.value, "model.onnx", "NaN")


def test_models_with_other_classes_are_not_compared(identity: Classifier, tmp_path: Path) -> None:
    other = open_classifier(saved(mlp(features=4, classes=3), tmp_path / "other.onnx"))
    with pytest.raises(ModelError) as caught:
        evaluate_model(identity, dataset_of(images((4,), 20)), other)
    assert is_one_line(caught.value, "other.onnx", "3 classes", "4")


def test_external_data_is_part_of_the_size(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save_model(mlp(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    sizes = [(tmp_path / name).stat().st_size for name in ("model.onnx", "weights.bin")]
    assert open_classifier(path).file_bytes == sum(sizes)


@pytest.mark.parametrize(
    ("batch", "other", "sizes", "told"),
    [
        (None, None, (1, 1), "batch 1 "),
        (4, None, (4, 4), "batch 4 "),
        (None, 4, (4, 4), "batch 4 "),
        (4, 4, (4, 4), "batch 4 "),
        (2, 4, (2, 4), "batch 2 and 4 "),
    ],
)
def test_latencies_are_compared_at_one_batch(
    batch: int | None,
    other: int | None,
    sizes: tuple[int, int],
    told: str,
    identity: Classifier,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, reference = (dataclasses.replace(identity, batch=size) for size in (batch, other))
    seen: dict[int, list[int]] = {id(model): [], id(reference): []}
    run = Classifier.run

    def counted(self: Classifier, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        seen[id(self)].append(len(batch))
        return run(self, batch)

    monkeypatch.setattr(Classifier, "run", counted)
    # fewer images than a batch has: it is filled up for either model
    found = evaluate_model(model, dataset_of(images((4,), 3)), reference)
    assert (set(seen[id(model)][-30:]), set(seen[id(reference)][-30:])) == ({sizes[0]}, {sizes[1]})
    assert (found.latency_batch, found.reference_latency_batch) == sizes
    text = io.StringIO()
    Console(width=200, file=text).print(tables.evaluation(found, "model", "other"))
    (line,) = (line for line in text.getvalue().splitlines() if "latency" in line)
    assert told in line
    assert ("×" in line) == (sizes[0] == sizes[1])


def test_latency_is_that_of_the_smallest_batch(identity: Classifier, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    run = Classifier.run

    def counted(self: Classifier, batch: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        sizes.append(len(batch))
        return run(self, batch)

    monkeypatch.setattr(Classifier, "run", counted)
    evaluate_model(identity, dataset_of(images((4,), 40)))
    assert sizes[:2] == [32, 8]
    assert set(sizes[2:]) == {1}
    sizes.clear()
    evaluate_model(dataclasses.replace(identity, batch=4), dataset_of(images((4,), 8)))
    assert set(sizes) == {4}
