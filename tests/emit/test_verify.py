"""A right model passes, a wrong one is named, and the figures are what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from infoq_onnx.emit.qdq import qdq_model
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.emit.targets import lacks_vnni
from infoq_onnx.emit.verify import MAX_RELATIVE_RMS, compare, nudged, verify
from infoq_onnx.errors import VerificationError
from infoq_onnx.graph.editing import set_initializers
from infoq_onnx.schema import Verification
from infoq_onnx.simulate.simulation import layer_codes, simulation
from tests.prepared import is_one_line, small

NETWORKS = ["residual", "fixed batch"]


def emitted(name: str) -> onnx.ModelProto:
    of = small(name)
    bits = of.mixed(seed=0)
    codes = layer_codes(of.quantizable, bits)
    return qdq_model(of.quantizable, bits, codes, STORAGES["int8"], {})


def verified(name: str, path: Path, *, exact: bool = False) -> Verification:
    of = small(name)
    model = simulation(of.quantizable, of.mixed(seed=0))
    return verify(path, of.graph, of.dataset, model, "shown.onnx", exact=exact)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_right_model_passes(name: str, tmp_path: Path) -> None:
    onnx.save(emitted(name), tmp_path / "model.onnx")
    found = verified(name, tmp_path / "model.onnx")
    assert found.images == 48
    assert found.relative_rms < 5e-3
    assert found.relative_rms_unfused < 1e-6
    assert found.agreement == 1.0


@pytest.mark.parametrize("name", NETWORKS)
def test_a_wrong_weight_is_noticed(name: str, tmp_path: Path) -> None:
    model = emitted(name)
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == "b2_w/codes")
    stored.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(stored), stored.name))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(VerificationError) as caught:
        verified(name, tmp_path / "model.onnx")
    assert is_one_line(caught.value, "shown.onnx", "48 images", "no file was left")


def saturating(path: Path) -> Path:
    """Write a model with 8-bit weights everywhere, some of which saturate."""
    of = small("residual")
    bits = of.uniform(8, 8)
    codes = layer_codes(of.quantizable, bits)
    model = qdq_model(of.quantizable, bits, codes, STORAGES["int8"], {})
    onnx.save(model, path)
    return path


def test_a_file_that_may_saturate_is_refused_where_it_must_be_exact(tmp_path: Path) -> None:
    path = saturating(tmp_path / "model.onnx")
    of = small("residual")
    reference = simulation(of.quantizable, of.uniform(8, 8))
    with pytest.raises(VerificationError) as caught:
        verify(path, of.graph, of.dataset, reference, "shown.onnx")
    assert is_one_line(caught.value, "shown.onnx", "may saturate", "without VNNI", "no file was left")
    onnx.save(emitted("residual"), path)
    assert not any(kernel.saturates for kernel in verified("residual", path, exact=True).kernels)


def test_kernels_of_other_processors_are_emulated_where_these_saturate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saturating(tmp_path / "model.onnx")
    of = small("residual")
    reference = simulation(of.quantizable, of.uniform(8, 8))
    for lacks in (True, False):
        if lacks or not lacks_vnni():
            monkeypatch.setattr("infoq_onnx.emit.verify.lacks_vnni", lambda lacks=lacks: lacks)
            found = verify(path, of.graph, of.dataset, reference, "shown.onnx", exact=False)
            assert found.emulated is lacks
            assert found.relative_rms < 5e-3
            assert found.agreement == 1.0


def test_wrong_logits_are_noticed_even_where_no_prediction_changes(tmp_path: Path) -> None:
    model = emitted("residual")
    scales = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    # the bias is in units of these
    set_initializers(model, {"fc_w/scales": scales["fc_w/scales"] * np.float32(1.2)})
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(VerificationError) as caught:
        verified("residual", tmp_path / "model.onnx")
    assert is_one_line(caught.value, "agreement 100.0 %")


def test_logits_that_are_no_numbers_are_noticed(tmp_path: Path) -> None:
    model = emitted("residual")
    set_initializers(model, {"fc_w/scales": np.full(10, np.nan, np.float32)})
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(VerificationError):
        verified("residual", tmp_path / "model.onnx")


def test_what_onnxruntime_cannot_load_is_noticed(tmp_path: Path) -> None:
    model = emitted("residual")
    model.graph.node[-1].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(VerificationError) as caught:
        verified("residual", tmp_path / "model.onnx")
    assert is_one_line(caught.value, "shown.onnx", "onnxruntime cannot run", "NoSuchOperator")


def test_figures() -> None:
    simulated = np.array([[3.0, -1.0], [-2.0, 4.0]], dtype=np.float32)
    fused = simulated + np.array([[0.5, 0.0], [0.0, 0.0]], dtype=np.float32)
    unfused = simulated + np.array([[0.0, 0.0], [0.0, -0.25]], dtype=np.float32)
    again = simulated + np.array([[0.0, 1.0], [0.0, 0.0]], dtype=np.float32)
    found = compare(simulated, again, fused, unfused)
    spread = float(simulated.std())
    assert (found.images, found.agreement) == (2, 1.0)
    assert found.max_difference == 0.5
    assert (found.noise_rms, found.noise_agreement) == (pytest.approx(0.5 / spread), 1.0)
    assert found.relative_rms == pytest.approx(0.25 / spread)
    assert found.relative_rms_unfused == pytest.approx(0.125 / spread)


def test_another_class_counts_unless_the_simulation_was_undecided() -> None:
    simulated = np.array([[4.0, -4.0], [4.0, -4.0], [0.01, 0.0], [-4.0, 4.0]], dtype=np.float32)
    assert 2 * MAX_RELATIVE_RMS * simulated.std() > 0.01
    fused = simulated[:, ::-1].copy()
    fused[0] = simulated[0]
    assert compare(simulated, simulated, fused, simulated).agreement == 0.5
    assert compare(simulated, fused, simulated, simulated).noise_agreement == 0.5
    # what moves by as much as the simulation does from itself is undecided
    assert compare(simulated, fused, fused, simulated).agreement == 1.0


def test_equal_logits_have_no_difference() -> None:
    constant = np.ones((3, 2), np.float32)
    assert compare(*[constant] * 4) == Verification(3, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0)
    single = np.arange(3, dtype=np.float32)[:, None]
    assert compare(*[single] * 4).agreement == 1.0


@pytest.mark.parametrize("side", ["fused", "unfused"])
def test_no_numbers_have_no_small_difference(side: str) -> None:
    good = np.eye(4, dtype=np.float32)
    bad = np.full_like(good, np.nan)
    found = compare(good, good, *((bad, good) if side == "fused" else (good, bad)))
    assert np.isnan(found.relative_rms if side == "fused" else found.relative_rms_unfused)


def test_integer_kernels_may_differ_by_a_few_times_what_the_simulation_differs_from_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(emitted("residual"), tmp_path / "model.onnx")
    verdicts = {}
    for noise in (0.0, 0.1):
        found = Verification(48, 1.0, 0.2, 0.9, 0.0, noise, 1.0 - noise)
        monkeypatch.setattr("infoq_onnx.emit.verify.compare", lambda *_, found=found: found)
        try:
            verdicts[noise] = verified("residual", tmp_path / "model.onnx").noise_rms == noise
        except VerificationError:
            verdicts[noise] = False
    assert verdicts == {0.0: False, 0.1: True}


def test_a_nudge_is_of_scales_alone() -> None:
    of = small("residual")
    plain = simulation(of.quantizable, of.uniform(4, 4))
    moved = nudged(plain)
    scales = {node.input[1] for node in plain.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")}
    assert scales
    for before, after in zip(plain.graph.initializer, moved.graph.initializer, strict=True):
        factor = 1 + 2.0**-22 if before.name in scales else 1
        one, other = numpy_helper.to_array(before), numpy_helper.to_array(after)
        np.testing.assert_array_equal(other, (one * factor).astype(one.dtype))
        assert (before.name in scales) == bool(np.any(one != other))
