"""The verbs, end to end: what they write and what they tell."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

from infoq_onnx.analyses import read_analysis, read_analyzed
from infoq_onnx.data.choose import choose
from infoq_onnx.data.sources import open_source
from infoq_onnx.demo import demo_calibration_path, demo_model_path, demo_test_path
from infoq_onnx.errors import (
    SettingsError,
)
from infoq_onnx.evaluation import PREPROCESSING_KEY
from infoq_onnx.files import sha256_of
from infoq_onnx.pipeline import allocate, analyze, compress, evaluate, inspect
from infoq_onnx.pipeline.emitting import CHECKED_IMAGES
from infoq_onnx.schema import Allocation, from_json
from tests.networks import SMALL, Builder, auxiliary_net, mlp, residual_convnet
from tests.pipeline.cases import QUICK, Case, Listener, data_for, measured, refused, saved


@pytest.mark.parametrize(
    ("name", "criterion"),
    [("residual", "infoq"), ("depthwise", "kl"), ("concat", "kl"), ("attention", "infoq"), ("fixed batch", "infoq")],
)
def test_all_the_way(name: str, criterion: str, tmp_path: Path) -> None:
    model = saved(SMALL[name](), tmp_path / "float.onnx")
    calib = data_for(SMALL[name](), tmp_path / "calib.npz")
    folder = analyze(model, calib, output=tmp_path / "a.infoq", **QUICK)
    analysis = read_analysis(folder)
    assert analysis.network == inspect(model)
    assert analysis.model.sha256 == sha256_of(model)
    assert analysis.calibration.labels == "true"
    assert set(read_analyzed(folder).scores) == {"infoq", "infoq-pooled", "kl", "kl-pooled"}

    done = allocate(folder, bounds={"bitops": "uniform:4/4"}, criterion=criterion, output=tmp_path / "small.onnx")
    assert done.allocation.costs.bitops <= done.allocation.bounds[0].limit
    assert done.allocation.optimal
    # 7 stand in for 8 where these would saturate
    assert set(done.allocation.weight_bits.values()) | set(done.allocation.activation_bits.values()) <= {2, 4, 7, 8}
    assert done.verification.relative_rms_unfused < 0.01
    assert done.verification.agreement >= 0.97
    assert done.verification.relative_rms < 0.01
    assert not any(kernel.saturates for kernel in done.verification.kernels)

    found = evaluate(done.model_path, calib, against=model)
    assert found.images == 32
    assert found.file_bytes == done.file_bytes
    assert found.reference_top1 == analysis.model.float_top1
    assert found.agreement is not None


def test_a_dead_branch(tmp_path: Path) -> None:
    """Layers whose outputs never change have scores, too: no bits are too few for them."""
    b = Builder()
    y = b.relu(b.gemm("x", "fc1", 12, 16), "relu1")
    dead = b.relu(b.gemm("x", "dead1", 12, 16), "relu2")
    b.weights["dead1_b"] -= np.float32(100)
    y = b.op("Add", [b.gemm(y, "fc2", 16, 4), b.gemm(dead, "dead2", 16, 4)], "sum")
    b.weights["dead2_b"] *= 0
    model = b.model(y, (12,), (4,))
    saved(model, tmp_path / "m.onnx")
    folder = analyze(
        tmp_path / "m.onnx", data_for(model, tmp_path / "calib.npz"), bits=(2, 4), output=tmp_path / "a.infoq"
    )
    done = allocate(folder, bounds={"bitops": "uniform:4/4"}, output=tmp_path / "small.onnx")
    assert done.allocation.costs.bitops <= done.allocation.bounds[0].limit
    assert done.allocation.weight_bits["dead2"] == 2


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_one_layer_alone(rounding: str, tmp_path: Path) -> None:
    """Nothing but the input is read by a layer."""
    b = Builder()
    network = b.model(b.gemm("x", "fc", 20, 4), (20,), (4,))
    model, calib = saved(network, tmp_path / "float.onnx"), data_for(network, tmp_path / "calib.npz")
    folder = analyze(model, calib, output=tmp_path / "a.infoq", **{**QUICK, "trial_rounding": rounding})
    done = allocate(folder, bounds={"compression": "8"}, rounding=rounding, output=tmp_path / "small.onnx")
    assert set(done.allocation.weight_bits) == {"fc"}


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_head_that_the_first_output_does_not_depend_on(rounding: str, tmp_path: Path) -> None:
    model, calib = saved(auxiliary_net(), tmp_path / "float.onnx"), data_for(auxiliary_net(), tmp_path / "calib.npz")
    folder = analyze(model, calib, output=tmp_path / "a.infoq", **QUICK)
    done = allocate(
        folder, bounds={"compression": "8"}, criterion="kl", rounding=rounding, output=tmp_path / "small.onnx"
    )
    assert [node.name for node in done.network.skipped] == ["aux_conv", "aux_fc"]
    assert set(done.allocation.weight_bits) == {"stem", "last", "fc"}
    assert [value.name for value in onnx.load(done.model_path).graph.output] == ["logits", "aux_fc_out"]


def test_the_demo_model_keeps_its_accuracy_at_half_the_bits(tmp_path: Path) -> None:
    with demo_model_path() as model, demo_calibration_path() as calib, demo_test_path() as test:
        folder = analyze(model, calib, samples=100, projections=4, bits=(4, 6, 8), output=tmp_path / "demo.infoq")
        analysis = read_analysis(folder)
        done = allocate(folder, bounds={"avg_weight_bits": "6", "avg_act_bits": "6"}, output=tmp_path / "demo.onnx")
        found = evaluate(done.model_path, test, against=model)
    assert analysis.calibration.samples == 100
    assert analysis.model.float_top1 is not None
    assert analysis.model.float_top1 > 0.95
    assert done.allocation.costs.avg_weight_bits <= 6
    assert done.allocation.costs.avg_act_bits <= 6
    assert found.top1 is not None
    assert found.top1 > 0.9
    # one of eight to thirty-two bits a weight, with the framing of a small file
    assert done.allocation.costs.weight_bytes < 6294


def test_images_that_analyze_left_out_do_not_stop_allocate(tmp_path: Path) -> None:
    """One image in a hundred is tolerated; in the smaller draw for the check of the file it is more than that."""
    model, images = saved(residual_convnet(size=8, width=2), tmp_path / "float.onnx"), tmp_path / "images"
    images.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        Image.fromarray(image).save(images / f"{index:03}.png")
    drawn = choose(open_source(images), CHECKED_IMAGES["qdq"], 0)[:2]
    for index in drawn:
        (images / f"{index:03}.png").write_bytes(b"no picture")
    folder = analyze(model, images, preprocessing="none", output=tmp_path / "a.infoq", **QUICK)
    assert read_analysis(folder).calibration.samples == 198
    done = allocate(folder, uniform_bits=(4, 4), output=tmp_path / "small.onnx")
    assert done.verification.images == CHECKED_IMAGES["qdq"] - 2


def test_the_allocation_lies_beside_the_model_and_in_it(case: Case, tmp_path: Path) -> None:
    done = allocate(case.analysis, bounds={"compression": "8"}, output=tmp_path / "m.onnx")
    assert done.allocation_path == tmp_path / "m.json"
    text = done.allocation_path.read_text(encoding="utf-8")
    assert from_json(Allocation, text) == done.allocation
    metadata = {entry.key: entry.value for entry in onnx.load(done.model_path).metadata_props}
    assert from_json(Allocation, metadata["infoq_onnx.allocation"]) == done.allocation
    assert metadata["infoq_onnx.budget"] == "compression-8"
    assert PREPROCESSING_KEY in metadata
    assert done.allocation.model_sha256 == sha256_of(case.model)
    assert done.allocation.analysis_sha256 == sha256_of(measured(case.analysis).analysis)
    assert done.allocation.costs.compression >= 8
    assert done.before.compression == 1.0
    assert done.float_file_bytes == case.model.stat().st_size


@pytest.mark.parametrize("file_format", ["qdq", "qonnx"])
def test_the_metadata_of_the_float_model_is_kept(file_format: str, case: Case, tmp_path: Path) -> None:
    source = mlp()
    onnx.helper.set_model_props(source, {"author": "somebody"})
    model = saved(source, tmp_path / "mlp.onnx")
    folder = analyze(model, case.calib, output=tmp_path / "a.infoq", **QUICK)
    output = tmp_path / "out.onnx"
    done = allocate(folder, uniform_bits=(4, 8), rounding="nearest", file_format=file_format, output=output)
    metadata = {entry.key: entry.value for entry in onnx.load(done.model_path).metadata_props}
    assert metadata["author"] == "somebody"
    assert PREPROCESSING_KEY in metadata


def test_compress_is_both_in_one(tmp_path: Path) -> None:
    model, calib = saved(mlp(), tmp_path / "mlp.onnx"), data_for(mlp(), tmp_path / "calib.npz", 16)
    done = compress(
        model,
        calib,
        bounds={"size": "uniform:4"},
        samples=16,
        analysis=tmp_path / "a.infoq",
        output=tmp_path / "out.onnx",
    )
    assert done.model_path.is_file()
    assert done.allocation.costs.weight_bytes <= done.allocation.bounds[0].limit
    assert read_analysis(tmp_path / "a.infoq").settings.bits == (2, 3, 4, 5, 6, 7, 8)


def test_default_names_are_in_the_working_folder(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert analyze(case.model, case.calib, **QUICK) == Path("mlp.infoq")
    done = allocate(bounds={"compression": "uniform:4/4"}, weight_only=True)
    assert done.model_path == Path("mlp.compression-uniform-4-4-weight_only.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mlp.compression-uniform-4-4-weight_only.json",
        "mlp.compression-uniform-4-4-weight_only.onnx",
        "mlp.infoq",
    ]


def test_without_labels_predictions_stand_in(tmp_path: Path) -> None:
    model = saved(mlp(), tmp_path / "mlp.onnx")
    calib = data_for(mlp(), tmp_path / "calib.npz", labelled=False)
    listener = Listener()
    analysis = read_analysis(analyze(model, calib, output=tmp_path / "a.infoq", reporter=listener, **QUICK))
    assert analysis.calibration.labels == "predicted"
    assert (analysis.model.float_top1, analysis.model.baseline_top1) == (None, None)
    assert any("without labels" in note for note in listener.notes)
    # the baseline predicts nearly what the float model does: few bits lose much of it, and hardly any trial gains
    assert np.mean([trial.top1_drop for trial in analysis.trials if trial.bits == 2]) > 0.05
    assert min(trial.top1_drop for trial in analysis.trials) > -0.1
    assert evaluate(model, calib).top1 is None


def test_progress_and_remarks(case: Case, tmp_path: Path) -> None:
    listener = Listener()
    analyze(case.model, case.calib, output=tmp_path / "a.infoq", reporter=listener, **QUICK)
    for stage, total in (("ranges", 2 * 32), ("trials", 6 * 2)):
        calls = listener.stages[stage]
        assert calls[-1] == (total, total)
        assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert any("93.75 %" in note for note in listener.notes)
    assert listener.warnings == []


def test_an_accuracy_near_chance_is_told(case: Case, tmp_path: Path) -> None:
    with np.load(case.calib) as arrays:
        np.savez(tmp_path / "calib.npz", x=arrays["x"], y=np.random.default_rng(0).integers(0, 4, 32))
    listener = Listener()
    analyze(case.model, tmp_path / "calib.npz", output=tmp_path / "a.infoq", reporter=listener, **QUICK)
    assert any("near chance" in warning for warning in listener.warnings)


def test_without_information_only_criteria_that_need_none_are_left(tmp_path: Path) -> None:
    """A network whose weights are drawn gives nearly every image the same class."""
    model = saved(SMALL["concat"](), tmp_path / "float.onnx")
    calib = data_for(SMALL["concat"](), tmp_path / "calib.npz", 16)
    listener = Listener()
    folder = analyze(model, calib, output=tmp_path / "a.infoq", reporter=listener, **QUICK)
    assert read_analyzed(folder).scores["infoq"].scores == ()
    assert any("`criterion`" in warning for warning in listener.warnings)
    budget = {"bitops": "uniform:4/4"}
    out = tmp_path / "m.onnx"
    refused(
        SettingsError,
        "infoq",
        "scores nothing",
        call=lambda: allocate(folder, bounds=budget, criterion="infoq", output=out),
    )
    assert allocate(folder, bounds=budget, output=out).allocation.optimal


def test_features_of_the_model_as_encoder(case: Case, tmp_path: Path) -> None:
    analysis = read_analysis(analyze(case.model, case.calib, encoder="self", output=tmp_path / "a.infoq", **QUICK))
    assert analysis.settings.encoder == "self"
    other = read_analysis(case.analysis)
    assert [trial.kl for trial in analysis.trials] == [trial.kl for trial in other.trials]
    assert [one.baseline_xl for one in analysis.candidates] != [one.baseline_xl for one in other.candidates]
