from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from infoq_onnx.data.dataset import load_dataset
from infoq_onnx.data.encoders import ENCODERS, encoder_file, get_encoder
from infoq_onnx.data.encoders.onnx_file import encode
from infoq_onnx.data.encoders.resample import resize
from infoq_onnx.data.preprocess import custom, preset
from infoq_onnx.errors import ModelError, SettingsError

from .conftest import MakeDataset, model


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("batch", ["N", 4, 1])
def test_features_are_the_flattened_first_output(dataset_of: MakeDataset, batch: str | int) -> None:
    x, w = normal(10, 6), np.random.default_rng(1).normal(size=(6, 4)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    content = model([batch, 6], nodes, outputs=("y", "z"), constants={"w": w})
    features = encode(content, dataset_of(x), 3)
    assert features.dtype == np.float64
    np.testing.assert_allclose(features, x @ w, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(encode(content, dataset_of(x), 3, "z"), np.maximum(x @ w, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [["N", 3, 8, 6], ["N", "c", "h", "w"], [4, 3, None, 6]])
def test_samples_that_fit_go_in_as_they_are(dataset_of: MakeDataset, shape: list) -> None:
    x = normal(10, 3, 8, 6)
    np.testing.assert_array_equal(encode(model(shape), dataset_of(x), 4), x.reshape(10, -1))


@pytest.mark.parametrize("height_width", [(4, 3), (16, 9), (5, 9)])
def test_images_are_resized(dataset_of: MakeDataset, height_width: tuple[int, int]) -> None:
    x = normal(5, 3, 8, 6)
    features = encode(model(["N", 3, *height_width]), dataset_of(x), 2)
    np.testing.assert_allclose(features, resize(x, *height_width).reshape(5, -1), rtol=1e-5, atol=1e-6)


def test_images_are_transposed_and_change_channels(dataset_of: MakeDataset) -> None:
    x = normal(5, 3, 8, 6)
    last = x.transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(encode(model(["N", 8, 6, 3]), dataset_of(x), 2), last.reshape(5, -1))
    np.testing.assert_array_equal(encode(model(["N", 3, 8, 6]), dataset_of(last), 2), x.reshape(5, -1))
    np.testing.assert_allclose(
        encode(model(["N", 1, 8, 6]), dataset_of(x), 2), x.mean(axis=1).reshape(5, -1), rtol=1e-5, atol=1e-6
    )
    grey = x[:, :1]
    np.testing.assert_array_equal(
        encode(model(["N", 3, 8, 6]), dataset_of(grey), 2), np.repeat(grey, 3, axis=1).reshape(5, -1)
    )


@pytest.mark.parametrize(("kind", "dtype"), [(TensorProto.FLOAT16, np.float16), (TensorProto.DOUBLE, np.float64)])
def test_other_float_types(dataset_of: MakeDataset, kind: int, dtype: type) -> None:
    x = normal(5, 6)
    np.testing.assert_array_equal(encode(model(["N", 6], kind=kind), dataset_of(x), 2), x.astype(dtype))


# ------------------------------------------------------------------------------------------ Hugging Face image encoders


@pytest.mark.parametrize("preprocessing", ["tf", "none", "imagenet"])
def test_pixel_values_are_normalised_as_imagenet_whatever_the_model_takes(
    dataset_of: MakeDataset, preprocessing: str
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 224, 224, 3), dtype=np.uint8)
    nodes = [helper.make_node("GlobalAveragePool", ["pixel_values"], ["pooler"])]
    content = model(["N", "c", "h", "w"], nodes, input_name="pixel_values", outputs=("pooler",))
    unit = images.astype(np.float64).mean(axis=(1, 2)) / 255
    expected = (unit - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    features = encode(content, dataset_of(images, (3, 224, 224), preprocessing), 3)
    np.testing.assert_allclose(features, expected, atol=1e-4)


def test_pixel_values_are_rgb_of_224_pixels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images)
    shape = (32, 32, 3)
    bgr = load_dataset(tmp_path / "x.npy", preprocessing=custom(shape, color="BGR"), input_shape=shape)
    rgb = load_dataset(tmp_path / "x.npy", preprocessing=custom(shape), input_shape=shape)
    content = model(["N", 3, "h", "w"], input_name="pixel_values")
    features = encode(content, bgr, 2)
    assert features.shape == (4, 3 * 224 * 224)
    np.testing.assert_allclose(features, encode(content, rgb, 2), rtol=1e-5, atol=1e-6)


def test_the_class_token_is_taken(dataset_of: MakeDataset) -> None:
    x = normal(5, 7, 4)
    content = model(["N", 7, 4], outputs=("last_hidden_state",))
    np.testing.assert_array_equal(encode(content, dataset_of(x), 2), x[:, 0])


# --------------------------------------------------------------------------------------------------------------- errors


def broken(dataset_of: MakeDataset, content: bytes, match: str, **settings) -> None:
    with pytest.raises(ModelError, match=match) as caught:
        encode(content, dataset_of(normal(5, 6)), 2, **settings)
    assert "\n" not in str(caught.value)
    # onnxruntime's own prefix tells nobody anything
    assert "ONNXRuntimeError" not in str(caught.value)


def test_models_that_cannot_be_used(dataset_of: MakeDataset, tmp_path: Path) -> None:
    broken(dataset_of, b"nonsense", r"the encoder cannot be loaded \(")
    with pytest.raises(ModelError, match=r"the encoder .*nowhere\.onnx cannot be loaded \("):
        encode(tmp_path / "nowhere.onnx", dataset_of(normal(5, 6)), 2)
    broken(dataset_of, model(["N", 6], kind=TensorProto.INT64), r"must take one batch of floats.*x: tensor\(int64\)")
    broken(dataset_of, model(["N", 5]), r"takes samples of shape \[5\], and those here have \(6,\)")
    broken(dataset_of, model(["N", 6]), "has no output 'z': it has y", output_name="z")
    log = [helper.make_node("Sqrt", ["x"], ["y"])]
    broken(dataset_of, model(["N", 6], log), "gives NaN or infinite features")
    total = [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=0)]
    broken(dataset_of, model(["N", 6], total), r"gives float32 \(\) for 2 samples: expected one row a sample")
    reshape = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    content = model(["N", 6], reshape, constants={"s": np.array([4, 3])})
    with pytest.raises(ModelError, match=r"the encoder does not run on inputs \(5, 6\): .*Reshape"):
        encode(content, dataset_of(normal(5, 6)), 5)


def test_images_that_cannot_be_made_to_fit(dataset_of: MakeDataset) -> None:
    with pytest.raises(ModelError, match=r"takes samples of shape \[4, 8, 8\], and those here have \(3, 8, 8\)"):
        encode(model(["N", 4, 8, 8]), dataset_of(normal(5, 3, 8, 8)), 2)


# --------------------------------------------------------------------------------------------------------------- family


def test_get_encoder(dataset_of: MakeDataset, tmp_path: Path) -> None:
    assert set(ENCODERS) == {"pca", "dinov2"}
    assert get_encoder("pca") is ENCODERS["pca"]
    x = normal(5, 6)
    (tmp_path / "e.ONNX").write_bytes(model(["N", 6]))
    np.testing.assert_array_equal(get_encoder(str(tmp_path / "e.ONNX"))(dataset_of(x), 2), x)
    with pytest.raises(SettingsError, match=r"`encoder` 'clip': choose pca, dinov2, self, or the path of an \.onnx"):
        get_encoder("clip")
    with pytest.raises(SettingsError, match=r"`encoder` nowhere\.onnx: no such file"):
        get_encoder("nowhere.onnx")
    assert [encoder_file(name) for name in ("pca", "self", "e.ONNX")] == [None, None, Path("e.ONNX")]


def test_a_real_model(shared: Path) -> None:
    shape = (3, 32, 32)
    folder = shared / "data" / "cifar10" / "test"
    dataset = load_dataset(
        folder, preprocessing=preset("imagenet", shape), input_shape=shape, samples=200, n_classes=10
    )
    path = shared / "models" / "cifar10_resnet20.onnx"
    logits = encode(path, dataset, 50)
    assert logits.shape == (200, 10)
    assert dataset.labels is not None
    assert (logits.argmax(axis=1) == dataset.labels).mean() > 0.85
    penultimate = onnx.load(path)
    name = next(node.input[0] for node in reversed(penultimate.graph.node) if node.op_type in ("Gemm", "MatMul"))
    penultimate.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    assert encode(penultimate.SerializeToString(), dataset, 50, name).shape == (200, 64)
