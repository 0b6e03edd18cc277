"""Preparation of the verbs: load the model and the samples, given by the user or recorded in an analysis."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from infoq_onnx.allocation.units import BYTES, parse_quantity
from infoq_onnx.data import preprocess
from infoq_onnx.data.dataset import CACHE_BYTES, TOLERATED_PERCENT, Dataset, load_dataset
from infoq_onnx.data.encoders import get_encoder
from infoq_onnx.data.encoders.onnx_file import encode
from infoq_onnx.errors import AnalysisError, DataError, ModelError, SettingsError, about, setting
from infoq_onnx.graph.editing import expose
from infoq_onnx.graph.external import model_sha256
from infoq_onnx.graph.graph import Graph
from infoq_onnx.graph.inference import require_inference
from infoq_onnx.graph.load import load_model
from infoq_onnx.graph.logits import with_logits
from infoq_onnx.graph.network import find_network, require_finite
from infoq_onnx.graph.normalize import normalize
from infoq_onnx.memory import SMALLEST
from infoq_onnx.reporter import Reporter
from infoq_onnx.schema import Analysis, Network, Preprocessing, Split
from infoq_onnx.simulate.equalization.channel_splitting import split, splittable
from infoq_onnx.simulate.quantizers.placement import Placement, place
from infoq_onnx.simulate.running.batching import batch_size

SELF = "self"
"""Name of the encoder that uses the model's own features."""

Recipe = Callable[[tuple[int, ...]], Preprocessing]
"""Function that returns the preprocessing for a model's input shape."""


@dataclass(frozen=True)
class PreparedModel:
    """A normalised model, with its quantizable parts."""

    path: Path
    sha256: str
    """Hash of the file and its external data, if any (see `graph.external`)."""
    graph: Graph
    network: Network
    placement: Placement


def prepare(model: Path | str, logits: str | None = None, reporter: Reporter | None = None) -> PreparedModel:
    """Load, check and normalise a model, and find its quantizable layers.

    Parameters
    ----------
    model : path of the ONNX file
    logits : the output with the class scores; None: the first output, or the only one that can be
    reporter : receives a note where the file is not taken as it is

    Raises
    ------
    ModelError
        The file cannot be used.
    """
    path = Path(model)
    loaded = load_model(path, reporter)
    # errors found in the graph do not name the file
    with about(str(path)):
        normal = normalize(loaded)
        # check after constant folding: everything computed from constants is a constant now
        require_inference(normal)
        graph = with_logits(Graph(normal), logits)
        network = find_network(graph)
        require_finite(graph, network)
        placement = place(graph, network)
    if reporter is not None and logits is None and graph.output != graph.outputs[0]:
        reporter.note(f"{path}: the class scores are its output {graph.output!r}, not the first one")
    return PreparedModel(path, model_sha256(path), graph, network, placement)


def with_splits(prepared: PreparedModel, splits: tuple[Split, ...]) -> PreparedModel:
    """Split channels of a model into parts (see `simulate.equalization.channel_splitting`)."""
    if not splits:
        return prepared
    graph = split(prepared.graph, prepared.network, splits)
    network = find_network(graph)
    repeated = sum(layer.parameters for layer in network.layers)
    repeated -= sum(layer.parameters for layer in prepared.network.layers)
    network = dataclasses.replace(network, repeated=repeated)
    return dataclasses.replace(prepared, graph=graph, network=network, placement=place(graph, network))


def preprocessing_for(
    choice: str | Recipe | Preprocessing | None, input_shape: tuple[int, ...]
) -> Preprocessing | None:
    """Return the preprocessing given by the name of a preset, by a recipe, or directly."""
    if choice == preprocess.UNCHANGED and not preprocess.is_image(input_shape):
        # what is no image is never preprocessed, and this asks for just that
        return None
    if isinstance(choice, str):
        return preprocess.preset(choice, input_shape)
    return choice(input_shape) if callable(choice) else choice


def load_samples(
    prepared: PreparedModel,
    data: Path | str,
    classes: Path | str | None,
    preprocessing: str | Recipe | Preprocessing | None,
    samples: int | None,
    seed: int,
    cache_bytes: int | None = None,
    without: npt.NDArray[np.int64] | None = None,
) -> Dataset:
    """Load samples for a model.

    Parameters
    ----------
    prepared : the model
    data : the images, in the formats of `calib` in `pipeline.analyze`
    classes, preprocessing, samples, seed : see `pipeline.analyze`
    cache_bytes : memory for samples in bytes; None: the default of `data.dataset`
    without : positions in the source of samples to exclude

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        The samples cannot be used.
    """
    shape = prepared.network.input_shape
    return load_dataset(
        Path(data),
        classes=None if classes is None else Path(classes),
        preprocessing=preprocessing_for(preprocessing, shape),
        input_shape=shape,
        samples=samples,
        seed=seed,
        without=without,
        n_classes=prepared.network.classes,
        cache_bytes=CACHE_BYTES if cache_bytes is None else cache_bytes,
    )


def memory_bytes(memory: str | int | None) -> int | None:
    """Parse a memory limit such as "2GiB", or a number of bytes; None: no limit.

    Raises
    ------
    SettingsError
        The text is not a number of bytes, or the limit is below the minimum.
    """
    if memory is None:
        return None
    with about(setting("memory")):
        found = int(parse_quantity(str(memory), BYTES))
    if found < SMALLEST:
        raise SettingsError(f"{setting('memory')} {memory}: give at least {SMALLEST // 2**20}MiB")
    return found


def report_samples(dataset: Dataset, preprocessing: object | None, reporter: Reporter) -> None:
    """Name the images that are left out, and the requested preprocessing if it is not applied."""
    if preprocessing not in (None, preprocess.UNCHANGED) and dataset.preprocessing is None:
        reporter.note(
            f"{dataset.source.path} holds the model's input already: {setting('preprocessing')} applies to images and "
            "to arrays of integers, not to these arrays"
        )
    if ignored := dataset.source.ignored:
        named = ", ".join(ignored[:3]) + (" …" if len(ignored) > 3 else "")
        reporter.note(f"{dataset.source.path}: folders without images are no classes ({named})")
    for one in dataset.skipped:
        reporter.warn(f"{one.path} is left out: {one.reason}")
    if dataset.skipped:
        reporter.warn(f"{len(dataset.skipped)} of {len(dataset) + len(dataset.skipped)} images are left out")


def encode_inputs(name: str, prepared: PreparedModel, dataset: Dataset) -> npt.NDArray[np.float64]:
    """Encode the inputs X with the encoder `name`, and return X_E [N, e]."""
    graph = prepared.graph
    size = batch_size(graph)
    if name == SELF:
        features = prepared.network.layers[-1].groups[0]
        return encode(expose(graph.model, [features]).SerializeToString(), dataset, size, features)
    return get_encoder(name)(dataset, size)


def prepare_again(found: Analysis, model: Path | str | None) -> PreparedModel:
    """Load the analysed model again, and check that it is the same model.

    Parameters
    ----------
    found : the analysis
    model : current path of the model; None: the path of the analysis

    Returns
    -------
    PreparedModel

    Raises
    ------
    ModelError
        The model is missing or cannot be used.
    AnalysisError
        The model is another one, or this version finds another network in it.
    """
    path = Path(model) if model is not None else Path(found.model.path)
    require_there("model", path, given=model is not None)
    prepared = prepare(path, found.network.output)
    if prepared.sha256 != found.model.sha256:
        way = "say where the analysed one is with" if model is None else "give another"
        raise AnalysisError(
            f"the analysis is of another model than {path} (SHA-256 {found.model.sha256[:12]}… then, "
            f"{prepared.sha256[:12]}… now); {way} {setting('model')}, or run analyze on this one and go on from that "
            "analysis"
        )
    if {one.tensor for one in found.splits} <= set(splittable(prepared.graph, prepared.network, prepared.placement)):
        prepared = with_splits(prepared, found.splits)
    if prepared.network != found.network:
        raise AnalysisError(
            f"the analysis was made by another version, which saw other layers in {path}; run analyze again"
        )
    return prepared


_MOVED: dict[str, tuple[str, type[ModelError | DataError]]] = {
    "model": ("the analysed model", ModelError),
    "calib": ("the calibration data", DataError),
    "classes": ("the file of class names", DataError),
}


def require_there(name: str, path: Path | str, *, given: bool) -> None:
    """Check that a file or folder that an analysis was made of exists.

    Parameters
    ----------
    name : the setting that says where it is now: model, calib or classes
    path : where it is, as this setting says, or where it was at the time of the analysis
    given : whether the setting is given

    Raises
    ------
    ModelError, DataError
        It does not exist.
    """
    if not os.path.exists(path):
        what, error = _MOVED[name]
        where = f"is not there; check {setting(name)}" if given else f"is gone; say where it is with {setting(name)}"
        raise error(f"{what} {path} {where}")


def calibration_again(
    found: Analysis,
    prepared: PreparedModel,
    calib: Path | str | None,
    classes: Path | str | None = None,
    samples: int | None = None,
    tolerated_percent: int = TOLERATED_PERCENT,
    cache_bytes: int | None = None,
) -> Dataset:
    """Load the calibration samples of an analysis again.

    Parameters
    ----------
    found, prepared : the analysis and its model
    calib, classes : current paths of the samples and the file of class names; None: the paths of the analysis
    samples : number of samples to choose from the set; None: the samples of the analysis, checked to be unchanged
    tolerated_percent : percentage of samples that may be unreadable and are left out
    cache_bytes : see `load_samples`

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        The samples or the file of class names are missing or cannot be used.
    AnalysisError
        The samples differ from those of the analysis.
    """
    reference = found.calibration
    path = Path(calib) if calib is not None else Path(reference.path)
    names = classes if classes is not None else reference.classes_path
    require_there("calib", path, given=calib is not None)
    if names is not None:
        require_there("classes", names, given=classes is not None)
    dataset = load_dataset(
        path,
        classes=None if names is None else Path(names),
        preprocessing=None if reference.preprocessing == preprocess.AS_IS else reference.preprocessing,
        input_shape=prepared.network.input_shape,
        samples=reference.requested if samples is None else samples,
        seed=found.settings.seed,
        n_classes=prepared.network.classes,
        tolerated_percent=tolerated_percent,
        cache_bytes=CACHE_BYTES if cache_bytes is None else cache_bytes,
    )
    if samples is None and dataset.sha256 != reference.sha256:
        raise AnalysisError(f"{path} holds other samples than the analysis was made with; give those, or analyze again")
    return dataset
