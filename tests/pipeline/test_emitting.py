"""What allocate writes: files of a given size, in several formats and storages, for several processors."""

from __future__ import annotations

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from infoq_onnx.analyses import read_analysis
from infoq_onnx.emit.storage import STORAGES
from infoq_onnx.emit.targets import lacks_vnni
from infoq_onnx.errors import InfeasibleBudgetError, MissingDependencyError, ModelError, SettingsError
from infoq_onnx.graph.ort import run_session
from infoq_onnx.graph.session import open_session
from infoq_onnx.pipeline import allocate, analyze, lint
from infoq_onnx.report.tables import verification_line
from infoq_onnx.schema import Verification
from infoq_onnx.simulate.rounding import ROUNDINGS, RoundingMethod
from tests.networks import residual_convnet
from tests.pipeline.cases import Case, Listener, data_for, measured, refused, saved
from tests.prepared import images


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A network with some thousand weights, so that what is no weight does not decide alone."""
    folder = tmp_path_factory.mktemp("residual")
    model = residual_convnet()
    path, calib = saved(model, folder / "model.onnx"), data_for(model, folder / "calib.npz")
    return Case(path, calib, analyze(path, calib, output=folder / "model.infoq", projections=2, bits=(2, 4, 6, 8)))


def done(case: Case, path: Path, **options: Any) -> Any:
    return allocate(case.analysis, **{"output": path, "rounding": "nearest", **options})


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_a_size_bounds_the_file(residual: Case, rounding: str, tmp_path: Path) -> None:
    largest = done(residual, tmp_path / "8.onnx", uniform_bits=(8, 8), rounding=rounding).file_bytes
    smallest = done(residual, tmp_path / "2.onnx", uniform_bits=(2, 8), rounding=rounding).file_bytes
    assert smallest < largest
    scores = []
    for share in (0.9, 0.5, 0.2):
        limit = int(smallest + share * (largest - smallest)) + 600
        options = {"bounds": {"size": f"{limit}B"}, "weight_only": True, "rounding": rounding}
        found = done(residual, tmp_path / "m.onnx", **options)
        # the room is that of the codes that were written, and not of nearest ones
        assert limit - found.file_bytes < 0.2 * limit
        assert found.file_bytes == (tmp_path / "m.onnx").stat().st_size <= limit
        assert found.allocation.bounds[0].limit == limit
        assert found.allocation.costs.weight_bytes + found.allocation.bounds[0].overhead <= limit
        scores.append(found.allocation.score)
    assert scores[0] <= scores[1] <= scores[2] > scores[0]


def test_a_size_holds_down_to_the_smallest_file(residual: Case, tmp_path: Path) -> None:
    """Fewer widths need fewer functions: between the smallest file and larger ones there is none that is refused."""
    smallest = done(residual, tmp_path / "2.onnx", uniform_bits=(2, 8)).file_bytes
    before = 0.0
    for more in (400, 800, 1200, 2000, 3000, 5000):
        found = done(residual, tmp_path / "m.onnx", bounds={"size": f"{smallest + more}B"}, weight_only=True)
        assert found.file_bytes <= smallest + more
        assert found.allocation.costs.weight_bytes >= before
        before = found.allocation.costs.weight_bytes


def test_too_small_a_file_is_refused_with_the_smallest_there_is(residual: Case, tmp_path: Path) -> None:
    smallest = done(residual, tmp_path / "2.onnx", uniform_bits=(2, 2)).file_bytes
    for rounding in ("gptq", "nearest"):
        with pytest.raises(InfeasibleBudgetError, match="smallest reachable is") as caught:
            done(residual, tmp_path / "m.onnx", bounds={"size": f"{smallest // 2}B"}, rounding=rounding)
        told = str(caught.value).split("smallest reachable is ")[1].split(" ")[0]
        assert abs(float(told.removesuffix("KiB")) * 1024 - smallest) < 2048
        assert not (tmp_path / "m.onnx").exists()
        # who follows the advice gets a file
        found = done(residual, tmp_path / "m.onnx", bounds={"size": told}, rounding=rounding)
        assert found.file_bytes <= found.allocation.bounds[0].limit
        (tmp_path / "m.onnx").unlink()


@pytest.mark.parametrize("options", [{"bounds": {"size": "uniform:4"}}, {"bounds": {"size": "9KB"}, "storage": "int8"}])
def test_elsewhere_a_size_counts_weights_alone(options: dict[str, Any], residual: Case, tmp_path: Path) -> None:
    found = done(residual, tmp_path / "m.onnx", **options)
    assert found.allocation.bounds[0].overhead == 0
    assert found.allocation.costs.weight_bytes <= found.allocation.bounds[0].limit


def test_a_file_beyond_a_size_that_counts_weights_alone_is_told(residual: Case, tmp_path: Path) -> None:
    for storage, size, told in (("int8", "9KB", True), ("int8", "9MB", False), ("packed", "uniform:4", False)):
        listener = Listener()
        found = done(residual, tmp_path / "m.onnx", bounds={"size": size}, storage=storage, reporter=listener)
        assert told is (found.file_bytes > found.allocation.bounds[0].limit and size != "uniform:4")
        assert any(f"{found.file_bytes:,} bytes" in warning for warning in listener.warnings) is told


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_storages_give_the_same_numbers(rounding: str, residual: Case, tmp_path: Path) -> None:
    network = read_analysis(residual.analysis).network
    feeds = {network.input: images(network.input_shape, 8, seed=4)}
    logits, sizes = [], {}
    for storage in STORAGES:
        path = tmp_path / f"{storage}.onnx"
        options: dict[str, Any] = {"bounds": {"avg_weight_bits": "3.5"}, "rounding": rounding, "storage": storage}
        found = done(residual, path, **options)
        assert all(kernel.integer for kernel in found.verification.kernels)
        logits.append(run_session(open_session(path), feeds)[0])
        sizes[storage] = found.file_bytes
    np.testing.assert_array_equal(logits[0], logits[1])
    np.testing.assert_array_equal(logits[0], logits[2])
    # the functions that unpack would outweigh what they save here
    assert sizes["native"] < sizes["int8"]


def test_native_storage_raises_the_operator_set_only_as_far_as_needed(residual: Case, tmp_path: Path) -> None:
    for bits, opset in ((2, 25), (4, 21), (6, 17)):
        path = tmp_path / f"{bits}.onnx"
        done(residual, path, uniform_bits=(bits, 8), storage="native")
        assert onnx.load(path).opset_import[0].version == opset


def test_qonnx_is_checked_and_left(residual: Case, tmp_path: Path) -> None:
    found = done(residual, tmp_path / "q.onnx", uniform_bits=(4, 4), file_format="qonnx")
    model = onnx.load(found.model_path)
    assert "Quant" in {node.op_type for node in model.graph.node}
    assert found.verification.images == 8
    assert {entry.key for entry in model.metadata_props} >= {"infoq_onnx.allocation", "infoq_onnx.preprocessing"}
    refused(ModelError, "QONNX", "`file_format` qdq", call=lambda: lint(found.model_path))
    wrong: dict[str, Any] = {"uniform_bits": (4, 4), "file_format": "qonnx", "storage": "int8"}
    refused(SettingsError, "`storage` int8", "float", call=lambda: done(residual, tmp_path / "r.onnx", **wrong))


def test_a_missing_qonnx_is_missed_before_weights_are_rounded(
    residual: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "qonnx.core.modelwrapper", None)
    never = RoundingMethod(*[lambda *_: pytest.fail("rounded for nothing")] * 2)
    monkeypatch.setitem(ROUNDINGS, "gptq", never)  # type: ignore[arg-type]
    options: dict[str, Any] = {"uniform_bits": (4, 4), "file_format": "qonnx", "rounding": "gptq"}
    refused(MissingDependencyError, "infoq-onnx[qonnx]", call=lambda: done(residual, tmp_path / "q.onnx", **options))
    assert list(tmp_path.iterdir()) == []


def kernels_of(path: Path) -> dict[str, bool]:
    """Whether a layer of a file saturates, by layer."""
    return {kernel.layer: kernel.saturates for kernel in lint(path).kernels}


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
@pytest.mark.parametrize(
    "options",
    [
        {"bounds": {"bitops": "uniform:8/8"}},
        {"bounds": {"compression": "4"}, "weight_only": True, "pins": ("first=8/8", "last=8")},
        {"bounds": {"size": "1MB"}, "bits": (8,)},
        {"uniform_bits": (8, 8)},
    ],
    ids=["bitops", "pins", "size", "uniform"],
)
def test_7_bits_stand_in_for_8_where_these_would_saturate(
    options: dict[str, Any], rounding: str, residual: Case, tmp_path: Path
) -> None:
    """The analysis tried 2, 4 and 8 bits."""
    listener = Listener()
    found = done(residual, tmp_path / "any.onnx", rounding=rounding, reporter=listener, **options)
    lifted = done(residual, tmp_path / "vnni.onnx", rounding=rounding, target="x86-vnni", **options)
    assert set(lifted.allocation.weight_bits.values()) == {8}
    assert set(found.allocation.activation_bits.values()) == {8}
    saturating = {layer for layer, saturates in kernels_of(lifted.model_path).items() if saturates}
    assert saturating
    assert {layer for layer, bits in found.allocation.weight_bits.items() if bits == 7} >= saturating
    assert not any(kernels_of(found.model_path).values())
    assert found.allocation.target == "any"
    assert found.allocation.costs.weight_bytes < lifted.allocation.costs.weight_bytes
    assert [note for note in listener.notes if "7 bits" in note and "`target` x86-vnni" in note]
    # what stands beside 7-bit activations, or fewer, keeps its bits
    assert set(done(residual, tmp_path / "a.onnx", uniform_bits=(8, 4)).allocation.weight_bits.values()) == {8}


def test_a_pinned_layer_keeps_8_bits_where_its_input_is_pinned_below(residual: Case, tmp_path: Path) -> None:
    options: dict[str, Any] = {"bounds": {"compression": "4"}, "pins": ("first=8/4",)}
    found = done(residual, tmp_path / "m.onnx", **options)
    first = found.network.layers[0]
    assert (found.allocation.weight_bits[first.name], found.allocation.activation_bits[first.groups[0]]) == (8, 4)
    assert not any(kernels_of(found.model_path).values())


def test_qonnx_is_not_limited_by_processors(residual: Case, tmp_path: Path) -> None:
    found = done(residual, tmp_path / "m.onnx", uniform_bits=(8, 8), file_format="qonnx")
    assert set(found.allocation.weight_bits.values()) == {8}


def test_an_unknown_target_is_refused(residual: Case, tmp_path: Path) -> None:
    for call in (
        lambda: done(residual, tmp_path / "m.onnx", uniform_bits=(8, 8), target="riscv"),
        lambda: lint(residual.model, target="riscv"),
    ):
        refused(SettingsError, "`target` riscv", "x86-vnni", call=call)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("flags\t\t: fpu avx2 avx512_vnni\n", False),
        ("flags\t\t: fpu avx2 avx_vnni\n", False),
        ("flags\t\t: fpu avx avx2\n", True),
        ("Features\t: fp asimd asimddp\n", False),
        (None, False),
    ],
)
def test_which_processors_saturate(content: str | None, expected: bool, tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    if content is not None:
        path.write_text(content)
    assert lacks_vnni(path) is expected


def test_what_is_said_of_a_check_with_emulated_kernels() -> None:
    checked = Verification(48, 3.0, 0.25, 0.9375, 0.0004, 0.0, 1.0)
    assert "emulated" not in verification_line(checked)
    line = verification_line(dataclasses.replace(checked, emulated=True))
    for part in ("checked on 48", "25 %", "93.8 %", "emulated kernels"):
        assert part in line


def test_without_repair_a_second_budget_rounds_nothing(
    residual: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(residual.analysis, tmp_path / "copy.infoq"))

    def rounded(name: str, bits: tuple[int, int]) -> bytes:
        path = tmp_path / name
        found = allocate(folder, uniform_bits=bits, repair=False, output=path)
        assert (found.allocation.rounding, found.allocation.repair) == ("gptq", False)
        return path.read_bytes()

    first = rounded("a.onnx", (4, 8))
    assert measured(folder).codes.exists()
    read_analysis(folder)
    again = RoundingMethod(layerwise=lambda *_: pytest.fail("rounded again"))
    monkeypatch.setitem(ROUNDINGS, "gptq", again)  # type: ignore[arg-type]
    rounded("b.onnx", (2, 8))
    assert rounded("c.onnx", (4, 8)) == first


@pytest.mark.parametrize(
    "options", [{"storage": "tape"}, {"file_format": "pb"}, {"target": "6502"}, {"rounding": "up"}]
)
def test_unknown_names(options: dict[str, Any], residual: Case, tmp_path: Path) -> None:
    (value,) = options.values()
    refused(
        SettingsError,
        str(value),
        call=lambda: allocate(residual.analysis, uniform_bits=(4, 4), output=tmp_path / "m.onnx", **options),
    )
