from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from infoq_onnx.data.dataset import load_dataset
from infoq_onnx.data.encoders import pca
from infoq_onnx.data.preprocess import preset
from infoq_onnx.errors import DataError

from .conftest import MakeDataset


def correlated(samples: int, width: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(samples, width)) * np.geomspace(10, 0.1, width) @ rng.normal(size=(width, width)) + 5


@pytest.mark.parametrize(("samples", "width"), [(200, 20), (40, 300), (50, 50), (300, 100)])
def test_scores_are_scikit_learn_s(samples: int, width: int) -> None:
    features = correlated(samples, width)
    count = min(64, samples - 1, width)
    scores = pca.components(features, 64)
    expected = PCA(count, svd_solver="full").fit_transform(features)
    assert scores.dtype == np.float64
    assert scores.shape == (samples, count)
    signs = np.sign((scores * expected).sum(axis=0))
    np.testing.assert_allclose(scores, expected * signs, atol=1e-6 * np.abs(expected).max())
    largest = np.abs(scores).argmax(axis=0)
    assert (scores[largest, np.arange(count)] > 0).all()


def test_components_of_no_variance_are_left_out() -> None:
    features = np.random.default_rng(0).normal(size=(50, 3)) @ np.random.default_rng(1).normal(size=(3, 20))
    assert pca.components(features, 64).shape == (50, 3)
    assert pca.components(features[:10].repeat(2, axis=1), 64).shape == (10, 3)


def test_flat_inputs(dataset_of: MakeDataset) -> None:
    features = correlated(40, 12).astype(np.float32)
    for array in (features, features.reshape(40, 4, 3)):
        np.testing.assert_allclose(
            pca.encode(dataset_of(array), 7), pca.components(features, 64), rtol=1e-10, atol=1e-10
        )


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_large_images_are_averaged_first(dataset_of: MakeDataset, layout: str) -> None:
    images = np.random.default_rng(0).normal(size=(30, 3, 64, 32)).astype(np.float32)
    expected = pca.components(images.reshape(30, 3, 32, 2, 32).mean(axis=3).reshape(30, -1), 64)
    array = images if layout == "NCHW" else images.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(pca.encode(dataset_of(array), 8), expected, rtol=1e-3, atol=1e-4)


def test_the_batch_size_and_repetition_change_nothing(dataset_of: MakeDataset) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 40, 40, 3), dtype=np.uint8)
    dataset = dataset_of(images, (3, 40, 40))
    first = pca.encode(dataset, 20)
    np.testing.assert_array_equal(pca.encode(dataset, 20), first)
    np.testing.assert_allclose(pca.encode(dataset, 3), first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("samples", [1, 5])
def test_inputs_that_do_not_differ(dataset_of: MakeDataset, samples: int) -> None:
    with pytest.raises(DataError, match=f"the {samples} inputs do not differ"):
        pca.encode(dataset_of(np.ones((samples, 6))), 4)


def test_the_shared_images(shared: Path) -> None:
    shape = (3, 224, 224)
    folder = shared / "data" / "imagenet" / "calib"
    dataset = load_dataset(folder, preprocessing=preset("imagenet", shape), input_shape=shape, samples=80)
    scores = pca.encode(dataset, 32)
    assert scores.shape == (80, 64)
    variances = scores.var(axis=0)
    assert (np.diff(variances) <= 0).all()
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-9)
