"""Models in which a channel is read in parts, from end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from infoq_onnx import preparation
from infoq_onnx.analyses import read_analysis
from infoq_onnx.errors import AnalysisError
from infoq_onnx.pipeline import allocate, analyze, evaluate, inspect
from infoq_onnx.schema import Split
from tests.networks import Builder
from tests.peaked import LARGE, scaled, tokens, vectors
from tests.pipeline.cases import NAMES, QUICK, Listener, content, data_for, refused, saved


@pytest.mark.parametrize("make", [vectors, tokens])
@pytest.mark.parametrize("rounding", ["gptq", "nearest"])
def test_all_the_way(make: Callable[[], onnx.ModelProto], rounding: str, tmp_path: Path) -> None:
    model = saved(make(), tmp_path / "float.onnx")
    calib = data_for(make(), tmp_path / "calib.npz")
    listener = Listener()
    options = {**QUICK, "trial_rounding": rounding, "reporter": listener}
    folder = analyze(model, calib, output=tmp_path / "a.infoq", **options)
    assert listener.notes[-1] == f"channel {LARGE} of elu_out dwarfs the others: it is read in 8 parts"
    analysis, whole = read_analysis(folder), inspect(model)
    assert analysis.splits == (Split("elu_out", LARGE, 8),)
    readers = [layer for layer in analysis.network.layers if layer.groups == ("elu_out_parts",)]
    assert analysis.network.repeated == len(readers) * 7 * 16 > 0
    done = allocate(
        folder, bounds={"compression": "8"}, criterion="kl", rounding=rounding, output=tmp_path / "small.onnx"
    )
    # of the model as it was given
    parameters = sum(layer.parameters for layer in whole.layers)
    assert done.allocation.costs.compression == 4 * parameters / done.allocation.costs.weight_bytes >= 8
    assert done.before.weight_bytes == 4 * parameters
    assert done.verification.agreement >= 0.97
    assert all(kernel.integer for kernel in done.verification.kernels)
    found = evaluate(done.model_path, calib, against=model)
    assert found.agreement is not None
    assert found.agreement >= 0.8


def test_without_equalisation_nothing_is_split(tmp_path: Path) -> None:
    model, calib = saved(vectors(), tmp_path / "float.onnx"), data_for(vectors(), tmp_path / "calib.npz")
    analysis = read_analysis(analyze(model, calib, equalize=False, output=tmp_path / "a.infoq", **QUICK))
    assert analysis.splits == ()
    assert analysis.network == inspect(model)


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    model, calib = saved(tokens(), tmp_path / "float.onnx"), data_for(tokens(), tmp_path / "calib.npz")
    folders = [analyze(model, calib, output=tmp_path / f"{run}.infoq", workers=run, **QUICK) for run in (1, 2)]
    assert content(folders[0], *NAMES) == content(folders[1], *NAMES)


def test_an_analysis_with_parts_that_this_version_would_not_make(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, calib = saved(vectors(), tmp_path / "float.onnx"), data_for(vectors(), tmp_path / "calib.npz")
    folder = analyze(model, calib, output=tmp_path / "a.infoq", **QUICK)
    monkeypatch.setattr(preparation, "splittable", lambda *_: [])
    refused(AnalysisError, "another version", call=lambda: allocate(folder, bounds={"compression": "8"}))


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)])
def test_a_product_with_a_bias_behind_it_and_large_inputs(bits: tuple[int, int], tmp_path: Path) -> None:
    """A MatMul on vectors, its Add and a Relu become a QGemm; its bias is some steps of a coarse grid."""
    b = Builder()
    y = b.op("Elu", [b.gemm("x", "one", 12, 128)], "elu")
    y = b.relu(b.linear(y, "two", 128, 16), "relu")
    model = scaled(b.model(b.gemm(y, "three", 16, 5), (12,), (5,)), "one_w", {3: 300.0}, 0)
    path, calib = saved(model, tmp_path / "float.onnx"), data_for(model, tmp_path / "calib.npz")
    folder = analyze(path, calib, equalize=False, output=tmp_path / "a.infoq", **QUICK)
    for rounding in ("nearest", "gptq"):
        done = allocate(folder, uniform_bits=bits, rounding=rounding, output=tmp_path / "small.onnx")
        assert done.verification.relative_rms_unfused < 0.001
        assert done.verification.relative_rms < 0.001
        assert next(kernel for kernel in done.verification.kernels if kernel.layer == "two").runs == "QGemm"
