"""Rounding with a view to the images: of trials, whose weights lie in the analysis, and of the model written."""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from infoq_onnx.analyses import measurements, read_analysis
from infoq_onnx.errors import AnalysisError, SettingsError
from infoq_onnx.graph.ort import run_session
from infoq_onnx.graph.session import open_session
from infoq_onnx.pipeline import allocate, analyze, compress
from infoq_onnx.preparation import calibration_again, prepare
from infoq_onnx.quantize import codes, wide
from infoq_onnx.quantize.codes import CodeTable, load_codes
from infoq_onnx.quantize.rounding import Rounded
from infoq_onnx.schema import Allocation, from_json
from infoq_onnx.simulate.rounding import layerwise
from infoq_onnx.simulate.rounding.layerwise import round_layerwise
from tests.networks import SMALL, depthwise_net, mlp
from tests.pipeline.cases import (
    CODES,
    NAMES,
    QUICK,
    Case,
    Listener,
    content,
    data_for,
    files_of,
    measured,
    refused,
    saved,
)
from tests.prepared import images, searched, spread_of

GPTQ: dict[str, Any] = {**QUICK, "trial_rounding": "gptq"}
FILES = (*NAMES, CODES)


@pytest.fixture(scope="module")
def rounded(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An analysis with rounded trials; nothing here may be changed."""
    return analyze(case.model, case.calib, output=tmp_path_factory.mktemp("rounded") / "mlp.infoq", **GPTQ)


@pytest.fixture
def copied(rounded: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(rounded, tmp_path / "copy.infoq"))


# ------------------------------------------------------------------------------------------------------ what is written


def checked(folder: Path) -> list[str]:
    """Names of the files whose checksums are kept."""
    return [line.split("  ", 1)[1] for line in measured(folder).checksums.read_text(encoding="utf-8").splitlines()]


def assert_same(one: CodeTable, other: CodeTable) -> None:
    assert list(one) == list(other)
    for name, widths in one.items():
        assert list(widths) == list(other[name])
        for bits, held in widths.items():
            np.testing.assert_array_equal(held.codes, other[name][bits].codes)
            np.testing.assert_array_equal(held.scales, other[name][bits].scales)
            np.testing.assert_array_equal(held.bias, other[name][bits].bias)


def test_the_weights_of_trials_lie_beside_the_scores(case: Case, rounded: Path) -> None:
    assert files_of(rounded) == sorted(FILES)
    assert sorted(checked(rounded)) == sorted(["analysis.json", "ranges.npz", CODES])
    analysis = read_analysis(rounded)
    assert analysis.settings.trial_rounding == "gptq"
    prepared = prepare(case.model)
    dataset = calibration_again(analysis, prepared, None, None)
    expected = round_layerwise(prepared.graph, prepared.network, dataset, (2, 4, 8), lambda *_: None)
    assert_same(load_codes(measured(rounded).codes), expected)


def test_nearest_trials_need_none(case: Case) -> None:
    assert read_analysis(case.analysis).settings.trial_rounding == "nearest"
    assert checked(case.analysis) == ["analysis.json", "ranges.npz"]
    assert not measured(case.analysis).codes.exists()


def test_trials_of_weights_are_others_and_those_of_activations_nearly_the_same(case: Case, rounded: Path) -> None:
    pairs = zip(read_analysis(case.analysis).trials, read_analysis(rounded).trials, strict=True)
    for nearest, other in pairs:
        assert nearest.changes == other.changes
        assert nearest.kl != other.kl
        if nearest.unit.kind == "activation":
            assert other.kl == pytest.approx(nearest.kl, rel=0.2)


@pytest.mark.parametrize("name", ["residual", "attention", "batchnorm", "fixed batch"])
def test_all_the_way(name: str, tmp_path: Path) -> None:
    """Layers without weights, or without a form, and a fixed batch included."""
    model = saved(SMALL[name](), tmp_path / "float.onnx")
    calib = data_for(SMALL[name](), tmp_path / "calib.npz")
    folder = analyze(model, calib, output=tmp_path / "a.infoq", **GPTQ)
    analysis = read_analysis(folder)
    held = set(load_codes(measured(folder).codes))
    weighted = {layer.name for layer in analysis.network.layers if layer.weight is not None}
    assert held == weighted - ({"up"} if name == "batchnorm" else set())
    harm = {bits: sum(t.kl for t in analysis.trials if t.unit.kind == "weight" and t.bits == bits) for bits in (2, 4)}
    assert harm[2] > harm[4] > 0
    for rounding in ("nearest", "gptq"):
        done = allocate(
            folder,
            bounds={"bitops": "uniform:4/4"},
            criterion="kl",
            rounding=rounding,
            output=tmp_path / f"{rounding}.onnx",
        )
        assert done.allocation.optimal
        assert done.verification.agreement >= 0.97


def test_compress_hands_it_on(tmp_path: Path) -> None:
    model, calib = saved(mlp(), tmp_path / "mlp.onnx"), data_for(mlp(), tmp_path / "calib.npz", 16)
    folder = tmp_path / "a.infoq"
    compress(
        model,
        calib,
        bounds={"size": "uniform:4"},
        rounding="gptq",
        analysis=folder,
        output=tmp_path / "out.onnx",
        **{**GPTQ, "projections": 2},
    )
    assert read_analysis(folder).settings.trial_rounding == "gptq"


def test_rounding_is_told_before_the_trials(case: Case, tmp_path: Path) -> None:
    listener = Listener()
    analyze(case.model, case.calib, output=tmp_path / "a.infoq", reporter=listener, **GPTQ)
    assert listener.stages["rounding"] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert list(listener.stages) == ["ranges", "rounding", "trials"]


# ----------------------------------------------------------------------------------------------- two runs, stopped runs


def stopped(case: Case, folder: Path, stop: int) -> None:
    with pytest.raises(KeyboardInterrupt):
        analyze(case.model, case.calib, output=folder, reporter=Listener(stop), **GPTQ)
    assert measured(folder).unfinished_codes.is_file()


@pytest.mark.parametrize("stop", [0, 2, 7, 12])
def test_a_run_that_was_stopped_ends_with_the_same_bytes(stop: int, case: Case, rounded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a.infoq"
    stopped(case, folder, stop)
    refused(AnalysisError, "not finished", call=lambda: read_analysis(folder))
    listener = Listener()
    analyze(case.model, case.calib, output=folder, reporter=listener, **GPTQ)
    assert content(folder, *FILES) == content(rounded, *FILES)
    assert files_of(folder) == sorted(FILES)
    assert "rounding" not in listener.stages


def test_a_run_that_was_stopped_while_it_rounded_goes_on(
    case: Case, rounded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # kept after each layer
    monkeypatch.setattr(codes, "_EVERY", 0)
    monkeypatch.setattr(codes, "_TIMES", 0)
    folder, rounds = tmp_path / "a.infoq", layerwise.round_widths
    calls: list[int] = []

    def interrupted(*given: Any, **options: Any) -> dict[int, Rounded]:
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        return rounds(*given, **options)

    monkeypatch.setattr(layerwise, "round_widths", interrupted)
    with pytest.raises(KeyboardInterrupt):
        analyze(case.model, case.calib, output=folder, **GPTQ)
    calls.clear()
    listener = Listener()
    analyze(case.model, case.calib, output=folder, reporter=listener, **GPTQ)
    # of three layers the first two were done
    assert len(calls) == 1
    assert listener.notes[-1] == f"going on with {folder}: 2 of 3 layers are rounded"
    assert content(folder, *FILES) == content(rounded, *FILES)


def test_weights_of_another_analysis_are_not_taken(case: Case, rounded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a.infoq"
    analyze(case.model, case.calib, output=folder, **{**GPTQ, "seed": 1})
    foreign = measured(folder).codes.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        analyze(case.model, case.calib, output=folder, reporter=Listener(0), **GPTQ)
    (begun,) = (one for one in measurements(folder) if not one.analysis.exists())
    begun.unfinished_codes.write_bytes(foreign)
    listener = Listener()
    analyze(case.model, case.calib, output=folder, reporter=listener, **GPTQ)
    assert listener.stages["rounding"][-1] == (3, 3)
    assert content(folder, *FILES) == content(rounded, *FILES)


def damaged(path: Path, damage: str) -> bytes:
    """Content of an archive, cut off or with a byte changed amid its first array."""
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        first = archive.infolist()[0]
    inside = first.header_offset + 30 + len(first.filename) + first.compress_size // 2
    flipped = whole[:inside] + bytes([whole[inside] ^ 0xFF]) + whole[inside + 1 :]
    return {"cut": whole[: len(whole) // 2], "flipped": flipped, "empty": b""}[damage]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone"])
def test_damaged_weights_of_a_stopped_run_are_made_anew(damage: str, case: Case, rounded: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a.infoq"
    stopped(case, folder, 7)
    if damage == "gone":
        measured(folder).unfinished_codes.unlink()
    else:
        left = measured(folder).unfinished_codes
        left.write_bytes(damaged(left, damage))
    listener = Listener()
    analyze(case.model, case.calib, output=folder, reporter=listener, **GPTQ)
    assert content(folder, *FILES) == content(rounded, *FILES)
    assert listener.stages["rounding"][-1] == (3, 3)


def test_a_second_run_changes_nothing_and_rounds_nothing(
    case: Case, rounded: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("infoq_onnx.sensitivity.trials.Bench.trials", "infoq_onnx.simulate.rounding.layerwise.round_widths"):
        monkeypatch.setattr(name, lambda *_: pytest.fail("what was finished was done again"))
    analyze(case.model, case.calib, output=copied, **GPTQ)
    assert content(copied, *FILES) == content(rounded, *FILES)


def test_the_other_rounding_starts_anew(case: Case, rounded: Path, copied: Path, tmp_path: Path) -> None:
    for start, settings, finished, names in (
        (copied, QUICK, case.analysis, NAMES),
        (Path(shutil.copytree(case.analysis, tmp_path / "nearest.infoq")), GPTQ, rounded, FILES),
    ):
        listener = Listener()
        analyze(case.model, case.calib, output=start, reporter=listener, **settings)
        assert not any("going on" in note for note in listener.notes)
        assert any("it is kept, as" in note for note in listener.notes)
        assert content(start, *names) == content(finished, *names)
        read_analysis(start)


@pytest.mark.parametrize("change", [{"seed": 1}, {"samples": 31}])
def test_weights_of_other_settings_are_not_taken(
    change: dict[str, Any], case: Case, copied: Path, tmp_path: Path
) -> None:
    """Nor where the run that left them was stopped."""
    unfinished = tmp_path / "unfinished.infoq"
    stopped(case, unfinished, 7)
    fresh = analyze(case.model, case.calib, output=tmp_path / "fresh.infoq", **{**GPTQ, **change})
    for folder in (copied, unfinished):
        analyze(case.model, case.calib, output=folder, **{**GPTQ, **change})
        assert content(folder, *FILES) == content(fresh, *FILES)


def test_weights_that_were_changed_are_noticed(copied: Path) -> None:
    measured(copied).codes.write_bytes(b"")
    refused(AnalysisError, CODES, "was changed", "analyze again", call=lambda: read_analysis(copied))


def test_a_replacement_that_was_stopped_leaves_the_finished_analysis(case: Case, copied: Path, tmp_path: Path) -> None:
    """As it does where trials are rounded to nearest."""
    nearest = Path(shutil.copytree(case.analysis, tmp_path / "nearest.infoq"))
    for folder, settings in ((nearest, QUICK), (copied, GPTQ)):
        before = read_analysis(folder)
        with pytest.raises(KeyboardInterrupt):
            analyze(case.model, case.calib, output=folder, reporter=Listener(2), **{**settings, "bits": (2, 3, 8)})
        assert read_analysis(folder) == before


def test_no_weights_are_left_beside_an_analysis_that_has_none(case: Case, copied: Path) -> None:
    analyze(case.model, case.calib, output=copied, **QUICK)
    place = measured(copied).path
    assert sorted(str(path.relative_to(place)) for path in place.rglob("*") if path.is_file()) == sorted(NAMES)


# ------------------------------------------------------------------------------------------------ rounding of the model


class Told(Listener):
    """Keeps what is told of the rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.rounding: list[tuple[str, int, int]] = []

    def progress(self, stage: str, detail: str, done: int, total: int, share: float | None = None) -> None:  # noqa: ARG002
        if stage == "rounding":
            self.rounding.append((detail, done, total))


@pytest.mark.parametrize("network", [mlp(), depthwise_net(size=8)], ids=["mlp", "depthwise"])
def test_allocate_mends_what_was_lost(network: onnx.ModelProto, tmp_path: Path) -> None:
    model = saved(network, tmp_path / "float.onnx")
    calib = tmp_path / "calib.npz"
    np.savez(calib, x=images(searched(network)[1].input_shape, 64))
    folder = analyze(model, calib, projections=2, bits=(3, 8), output=tmp_path / "a.infoq")
    listener = Told()
    done = allocate(
        folder,
        uniform_bits=(3, 8),
        rounding="gptq",
        storage="int8",
        output=tmp_path / "mended.onnx",
        reporter=listener,
    )
    assert (done.allocation.rounding, done.allocation.repair) == ("gptq", True)
    assert done.verification.agreement >= 0.97
    assert done.verification.relative_rms < 0.01
    assert listener.rounding[-1][1] == len(done.network.layers)

    told = from_json(Allocation, done.allocation_path.read_text(encoding="utf-8"))
    written = onnx.load(done.model_path)
    inside = {entry.key: entry.value for entry in written.metadata_props}["infoq_onnx.allocation"]
    assert told == done.allocation
    assert json.loads(inside)["rounding"] == "gptq"

    plain = allocate(folder, uniform_bits=(3, 8), rounding="nearest", storage="int8", output=tmp_path / "nearest.onnx")
    assert (plain.allocation.rounding, plain.allocation.repair) == ("nearest", False)
    assert plain.allocation.costs == done.allocation.costs
    again = allocate(folder, uniform_bits=(3, 8), rounding="gptq", storage="int8", output=tmp_path / "again.onnx")
    assert again.model_path.read_bytes() == done.model_path.read_bytes()

    feeds = {done.network.input: images(done.network.input_shape, 64, seed=9)}
    mended, nearest, exact = (
        run_session(open_session(path), feeds)[0] for path in (done.model_path, plain.model_path, model)
    )
    assert spread_of(mended - exact, exact) < spread_of(nearest - exact, exact)


# -------------------------------------------------------------------------------------- more images than were analysed


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """An analysis of 32 samples of 64."""
    folder = tmp_path_factory.mktemp("half")
    model, calib = saved(mlp(), folder / "mlp.onnx"), data_for(mlp(), folder / "calib.npz", 64)
    return Case(model, calib, analyze(model, calib, samples=32, output=folder / "mlp.infoq", **QUICK))


def sha256_of_samples(case: Case, samples: int | None = None) -> str:
    return calibration_again(read_analysis(case.analysis), prepare(case.model), None, None, samples).sha256


def test_an_allocation_tells_what_it_was_rounded_with(half: Case, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"uniform_bits": (4, 8), "output": tmp_path / "out.onnx"}
    usual = allocate(half.analysis, **settings).allocation
    found = read_analysis(half.analysis).calibration
    assert (usual.samples, usual.samples_sha256) == (32, found.sha256)

    every = allocate(half.analysis, samples=64, **settings).allocation
    assert (every.samples, every.samples_sha256) == (64, sha256_of_samples(half, 64))
    assert every.weight_bits == usual.weight_bits
    beyond = allocate(half.analysis, samples=1000, **settings).allocation
    assert beyond == every

    few = allocate(half.analysis, samples=16, **settings).allocation
    assert (few.samples, few.samples_sha256) == (16, sha256_of_samples(half, 16))

    nearest = allocate(half.analysis, rounding="nearest", **settings).allocation
    assert (nearest.samples, nearest.samples_sha256) == (0, "")


@pytest.mark.parametrize("repair", [True, False])
def test_other_images_give_other_weights(repair: bool, half: Case, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(half.analysis, tmp_path / "copy.infoq"))
    models = {
        samples: allocate(
            folder, uniform_bits=(2, 8), repair=repair, samples=samples, output=tmp_path / "out.onnx"
        ).model_path.read_bytes()
        for samples in (64, None, 32)
    }
    # 32 of 64 are those of the analysis, as the seed is
    assert models[32] == models[None] != models[64]
    # what other images gave is not taken for the analysis'
    assert measured(folder).codes.exists() == (not repair)
    if not repair:
        expected = round_layerwise(
            prepare(half.model).graph,
            read_analysis(folder).network,
            calibration_again(read_analysis(folder), prepare(half.model), None, None),
            QUICK["bits"],
            lambda *_: None,
        )
        assert_same(load_codes(measured(folder).codes), expected)


def test_images_of_another_set_will_do_where_they_are_asked_for(half: Case, tmp_path: Path) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, x=images(prepare(half.model).network.input_shape, 40, seed=5))
    settings: dict[str, Any] = {"uniform_bits": (4, 8), "calib": other, "output": tmp_path / "out.onnx"}
    refused(AnalysisError, "other samples", call=lambda: allocate(half.analysis, **settings))
    assert allocate(half.analysis, samples=40, **settings).allocation.samples == 40


def test_rounding_to_nearest_looks_at_no_images(half: Case) -> None:
    refused(
        SettingsError,
        "`samples` 40",
        "`rounding` nearest",
        call=lambda: allocate(half.analysis, uniform_bits=(4, 8), samples=40, rounding="nearest"),
    )


# ---------------------------------------------------------------------------------------------------------- wide layers


def test_wide_layers_are_rounded_alike(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every layer counts as wide, analyze and allocate give what full moments give."""

    def logits(name: str) -> Any:
        folder = analyze(case.model, case.calib, output=tmp_path / f"{name}.infoq", **GPTQ)
        given = allocate(folder, uniform_bits=(4, 8), output=tmp_path / f"{name}.onnx")
        assert given.allocation.weight_bits == {"fc1": 4, "fc2": 4, "fc3": 4}
        return run_session(open_session(tmp_path / f"{name}.onnx"), {"x": np.load(case.calib)["x"]})[0]

    full = logits("full")
    monkeypatch.setattr(wide, "WIDE", 1)
    assert np.abs(logits("wide") - full).max() < 0.02 * full.std()
