"""KL divergence of predictions."""

from __future__ import annotations

import numpy as np
from scipy.special import rel_entr, softmax

from infoq_onnx.simulate.running.divergence import kl_divergence


def test_is_that_of_the_distributions() -> None:
    expected, found = np.random.default_rng(0).normal(size=(2, 7, 5)).astype(np.float32)
    wanted = rel_entr(softmax(expected.astype(float), axis=1), softmax(found.astype(float), axis=1)).sum(axis=1)
    np.testing.assert_allclose(kl_divergence(expected, found), wanted, rtol=1e-10)
    np.testing.assert_array_equal(kl_divergence(expected, expected + np.float32(0)), 0)


def test_the_shape_behind_the_images_does_not_matter() -> None:
    expected, found = np.random.default_rng(1).normal(size=(2, 4, 3, 1, 1))
    np.testing.assert_array_equal(kl_divergence(expected, found), kl_divergence(expected[..., 0, 0], found[..., 0, 0]))
