"""`evaluate`: measure a model on images that calibration did not use."""

from __future__ import annotations

from pathlib import Path

from infoq_onnx.data.dataset import load_dataset
from infoq_onnx.errors import ModelError, setting
from infoq_onnx.evaluation import evaluate_model, open_classifier
from infoq_onnx.preparation import (
    Recipe,
    preprocessing_for,
    report_samples,
)
from infoq_onnx.reporter import Reporter, Silent
from infoq_onnx.schema import (
    Evaluation,
    Preprocessing,
    typed,
)


@typed
def evaluate(
    model: Path | str,
    data: Path | str,
    *,
    against: Path | str | None = None,
    classes: Path | str | None = None,
    preprocessing: str | Recipe | Preprocessing | None = None,
    samples: int | None = None,
    seed: int = 0,
    reporter: Reporter | None = None,
) -> Evaluation:
    """Measure a model on images, alone or compared with another model.

    Parameters
    ----------
    model, against : ONNX files, quantized or not
    data : images with labels, in the formats of `calib` in `analyze`
    classes, preprocessing, seed : as in `analyze`; a model written by `allocate` contains its preprocessing
    samples : maximum number of images; None: all images
    reporter : receives a warning for each image that is left out

    Returns
    -------
    Evaluation

    Raises
    ------
    InfoQError
        See `infoq_onnx.errors`.
    """
    classifier = open_classifier(Path(model))
    reference = None if against is None else open_classifier(Path(against), classifier.output)
    if reference is not None and reference.input_shape != classifier.input_shape:
        raise ModelError(
            f"{against} takes inputs of {reference.input_shape}, {model} of {classifier.input_shape}; give "
            f"{setting('against')} a model of the same inputs"
        )
    dataset = load_dataset(
        Path(data),
        classes=None if classes is None else Path(classes),
        preprocessing=preprocessing_for(preprocessing, classifier.input_shape) or classifier.preprocessing,
        input_shape=classifier.input_shape,
        samples=samples,
        seed=seed,
        n_classes=classifier.classes,
    )
    report_samples(dataset, preprocessing, reporter or Silent())
    return evaluate_model(classifier, dataset, reference)
