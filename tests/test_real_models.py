"""Real models and images: what the small networks of the other tests cannot show. Minutes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from infoq_onnx.allocation.costs import uniform
from infoq_onnx.analyses import read_analysis
from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.emit.targets import lacks_vnni
from infoq_onnx.emit.verify import verify
from infoq_onnx.graph.session import open_session
from infoq_onnx.pipeline import allocate, analyze, evaluate
from infoq_onnx.preparation import load_samples, prepare
from infoq_onnx.simulate.quantizers.calibrate import calibrate
from infoq_onnx.simulate.quantizers.quantizable import Quantizable
from infoq_onnx.simulate.running.batching import batch_size, logits_of
from infoq_onnx.simulate.simulation import layer_codes, simulation

pytestmark = pytest.mark.slow
EXPORTS = ("cifar10_resnet20", "cifar10_resnet20_dynamo")
BUDGETS = ({"bitops": "uniform:3/3"}, {"bitops": "uniform:4/4"}, {"compression": "10.66"})


@pytest.fixture(scope="module")
def analyses(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cifar10")
    return {
        name: analyze(
            shared / "models" / f"{name}.onnx",
            shared / "data" / "cifar10" / "calib",
            preprocessing="imagenet",
            samples=200,
            projections=16,
            trial_rounding="nearest",
            output=folder / f"{name}.infoq",
        )
        for name in EXPORTS
    }


@pytest.mark.parametrize("bounds", BUDGETS, ids=str)
def test_one_network_from_two_exporters_gets_the_same_bits(
    analyses: dict[str, Path], bounds: dict[str, str], tmp_path: Path
) -> None:
    bits = []
    for name in EXPORTS:
        network = read_analysis(analyses[name]).network
        given = allocate(analyses[name], bounds=bounds, output=tmp_path / f"{name}.onnx").allocation
        weights = [given.weight_bits[layer.name] for layer in network.layers]
        bits.append([*weights, *(given.activation_bits[group.name] for group in network.groups)])
    difference = np.abs(np.subtract(*bits))
    assert difference.max() <= 1
    assert np.count_nonzero(difference) <= 2


def test_mixed_bits_beat_uniform_ones_on_images_not_seen(
    analyses: dict[str, Path], shared: Path, tmp_path: Path
) -> None:
    images = shared / "data" / "cifar10" / "test"
    # rounded to nearest, bits are all that decides
    options = {"rounding": "nearest"}
    mixed = allocate(analyses[EXPORTS[0]], bounds={"bitops": "uniform:3/3"}, output=tmp_path / "mixed.onnx", **options)
    plain = allocate(analyses[EXPORTS[0]], uniform_bits=(3, 3), output=tmp_path / "plain.onnx", **options)
    assert mixed.allocation.costs.bitops <= plain.allocation.costs.bitops
    compared = evaluate(mixed.model_path, images, against=plain.model_path)
    assert compared.top1_difference is not None
    assert compared.top1_difference > 0.1


@pytest.mark.parametrize(
    ("name", "preprocessing", "least"), [("squeezenet1_1", "imagenet", 0.9), ("vit_tiny", "tf", 0.6)]
)
def test_models_of_many_kinds_are_emitted_as_simulated(
    name: str, preprocessing: str, least: float, shared: Path, tmp_path: Path
) -> None:
    data = shared / "data" / "imagenet"
    prepared = prepare(shared / "models" / f"{name}.onnx")
    graph, network, placement = prepared.graph, prepared.network, prepared.placement
    dataset = load_samples(prepared, data / "calib", data / "classes.txt", preprocessing, 24, 0)
    table = calibrate(graph, network, placement, dataset, (8,), lambda _: None)
    bits = uniform(network, 8, 8)
    of = Quantizable(graph, network, placement, table)
    codes = layer_codes(of, bits)
    reference = simulation(of, bits, codes=codes)
    path = tmp_path / "model.onnx"
    path.write_bytes(qdq_model(of, bits, codes, STORAGES["packed"], {}).SerializeToString())
    assert verify(path, graph, dataset, reference, name, exact=False).emulated is lacks_vnni()
    size = batch_size(graph)
    sessions = (open_session(graph.model), open_session(path, optimize=not lacks_vnni()))
    logits = [logits_of(session, graph, dataset, size) for session in sessions]
    assert np.mean(logits[0].argmax(axis=1) == logits[1].argmax(axis=1)) >= least
