"""What the commands do when all is well: analyze, allocate, evaluate, inspect, on a small classifier."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from infoq_onnx.analyses import current, read_analysis, read_analyzed
from infoq_onnx.cli import main
from infoq_onnx.schema import Allocation, Analyzed, Costs, CriteriaList, Evaluation, Network, ScoreTable, from_json
from tests.networks import mlp, residual_convnet

pytestmark = pytest.mark.usefixtures("place")

QUICK = ("--projections", "4", "--observers", "selected", "--bits", "2,4,8", "--trial-rounding", "nearest")


def run(*args: str) -> Result:
    """Run a command that must succeed."""
    result = CliRunner().invoke(main, args, prog_name="infoq-onnx")
    assert result.exit_code == 0, result.output
    return result


def allocated(*args: str) -> Allocation:
    return from_json(Allocation, run("allocate", "model.infoq", "--json", "-o", "out.onnx", *args).stdout)


# ------------------------------------------------------------------------------------------------------------- inspect


def test_inspect_shows_layers_and_totals() -> None:
    result = run("inspect", "model.onnx")
    assert result.stderr == ""
    for text in ("3 layers", "fc1", "Gemm", "16×12", "512", "BitOps at 8/8: 32.77 k"):
        assert text in result.stdout


def test_inspect_prints_the_network_as_json() -> None:
    network = from_json(Network, run("inspect", "model.onnx", "--json").stdout)
    assert [layer.name for layer in network.layers] == ["fc1", "fc2", "fc3"]


def test_names_that_look_like_markup_are_shown_as_they_are() -> None:
    model = mlp()
    for node in model.graph.node:
        node.name = f"[red]blocks[/{node.name}] :key:"
    onnx.save(model, "model.onnx")
    assert "[red]blocks[/fc1] :key:" in run("inspect", "model.onnx").stdout


# ------------------------------------------------------------------------------------------------------------- analyze


def test_analyze_makes_a_folder_and_tells_what_it_does_line_by_line() -> None:
    result = run("analyze", "model.onnx", "--calib", "data.npz", *QUICK, "-o", "new.infoq")
    assert sorted(path.name for path in Path("new.infoq").iterdir()) == [current("new.infoq").path.name, "current"]
    assert sorted(path.name for path in current("new.infoq").path.rglob("*") if path.is_file()) == [
        "SHA256SUMS",
        "analysis.json",
        "infoq-pooled.json",
        "infoq.json",
        "journal.jsonl",
        "kl-pooled.json",
        "kl.json",
        "ranges.npz",
    ]
    note, *progress = result.stderr.splitlines()
    assert note == "float model: 100.00 % top-1 on 64 calibration images"
    assert [line for line in progress if not re.fullmatch(r"(ranges|trials) \d+/\d+ \(.+\)", line)] == []
    assert progress[-1].startswith("trials 12/12 ")
    for text in ("candidate observers", "scores by infoq", "scores by kl", "relu1_out", "new.infoq is ready for"):
        assert text in result.stdout


def test_analyze_prints_the_analysis_as_json() -> None:
    stdout = run("analyze", "model.onnx", "--calib", "data.npz", *QUICK, "-o", "new.infoq", "--json").stdout
    assert from_json(Analyzed, stdout) == read_analyzed("new.infoq")


def test_trials_are_rounded_as_allocate_rounds_or_to_nearest() -> None:
    command = ("analyze", "model.onnx", "--calib", "data.npz", "--projections", "4", "--bits", "2,4,8", "--json", "-o")
    found = {
        rounding: from_json(Analyzed, run(*command, f"{rounding}.infoq", *options).stdout).analysis
        for rounding, options in (("gptq", ()), ("nearest", ("--trial-rounding", "nearest")))
    }
    for rounding, analysis in found.items():
        assert analysis.settings.trial_rounding == rounding
        assert current(f"{rounding}.infoq").codes.exists() == (rounding == "gptq")
    assert found["nearest"].trials != found["gptq"].trials
    run("allocate", "gptq.infoq", "--uniform", "4/4", "-o", "out.onnx")


def test_weights_only() -> None:
    command = ("analyze", "model.onnx", "--calib", "data.npz", *QUICK, "--weight-only", "-o", "new.infoq")
    assert "allocate new.infoq --compression 8 --weight-only" in run(*command).stdout
    analysis = read_analysis("new.infoq")
    assert {trial.unit.kind for trial in analysis.trials} == {"weight"}
    run("allocate", "new.infoq", "--compression", "8", "--weight-only", "--criterion", "kl", "-o", "out.onnx")
    result = CliRunner().invoke(main, ["allocate", "new.infoq", "--bitops", "uniform:2/4"], prog_name="infoq-onnx")
    assert result.exit_code == 3
    assert "the analysis tried weights only" in result.stderr
    assert "cannot be met" in result.stderr


def test_an_unknown_rounding_of_trials_is_refused_in_one_line() -> None:
    command = ["analyze", "model.onnx", "--calib", "data.npz", "--trial-rounding", "up"]
    result = CliRunner().invoke(main, command, prog_name="infoq-onnx")
    assert (result.exit_code, result.stdout) == (2, "")
    assert re.fullmatch("error: Invalid value for '--trial-rounding': .*nearest.*gptq.*\n", result.stderr)


def test_analyze_goes_on_where_it_was() -> None:
    journal = current("model.infoq").journal
    whole = journal.read_text()
    analysis = current("model.infoq").analysis.read_bytes()
    journal.write_text("".join(line + "\n" for line in whole.splitlines()[:5]))
    options = ("--projections", "8", "--bits", "2,4,8", "--trial-rounding", "nearest")
    result = run("analyze", "model.onnx", "--calib", "data.npz", *options)
    assert "going on with model.infoq: 4 of 12 trials are done" in result.stderr.splitlines()
    assert journal.read_text() == whole
    assert current("model.infoq").analysis.read_bytes() == analysis


def test_analyze_keeps_another_analysis_beside() -> None:
    before = current("model.infoq")
    result = run("analyze", "model.onnx", "--calib", "data.npz", *QUICK)
    told = f"^model.infoq holds an analysis of another model, .*kept, as {before.path.name}"
    assert re.search(told, result.stderr, re.M)
    assert before.analysis.exists()
    result = run("analyze", "model.onnx", "--calib", "data.npz", *QUICK, "--force")
    assert "warning: model.infoq: what it held is removed (--force)" in result.stderr.splitlines()
    assert not before.path.exists()


# ------------------------------------------------------------------------------------------------- score and criteria


def test_score_adds_a_criterion_without_a_trial() -> None:
    result = run("score", "model.infoq", "--criterion", "eagl")
    assert "scores by eagl" in result.stdout
    assert "allocate --criterion eagl" in result.stdout
    run("allocate", "model.infoq", "--compression", "8", "--criterion", "eagl", "-o", "out.onnx")


def test_score_takes_the_options_of_the_criterion() -> None:
    command = ("score", "model.infoq", "--criterion", "infoq", "--debias", "--threshold", "0.5", "--json")
    found = from_json(ScoreTable, run(*command).stdout)
    assert found.options == {"debias": True, "one_over_b": True, "threshold": 0.5}
    assert read_analyzed("model.infoq").scores["infoq"] == found
    assert "threshold 0.5" in run("score", "model.infoq", "--criterion", "infoq", "--threshold", "0.5").stdout


def test_criteria_are_listed() -> None:
    text = run("criteria").stdout
    found = from_json(CriteriaList, run("criteria", "--json").stdout).criteria
    assert [one.name for one in found] == ["kl", "kl-pooled", "infoq", "infoq-pooled", "eagl", "weight-error"]
    for one in found:
        assert one.name in text
    assert found[2].options["threshold"][0] == 0.7


def test_images_of_any_size_and_colour_serve_and_a_corrupt_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    onnx.save(residual_convnet(size=8, width=2), "model.onnx")
    rng = np.random.default_rng(0)
    for label in range(10):
        folder = Path("images", f"class {label}")
        folder.mkdir(parents=True)
        for number in range(11):
            pixels = rng.integers(0, 256, (9 + number, 20 - number, 3), dtype=np.uint8)
            Image.fromarray(pixels[:, :, 0] if number % 2 else pixels).save(folder / f"{number}.png")
    Path("images/class 3/4.png").write_bytes(b"no picture")
    data = ("--preprocess", "imagenet", "--samples", "110")
    result = run("analyze", "model.onnx", "--calib", "images", *data, "--projections", "2", "--bits", "4,8")
    skipped = [
        "warning: images/class 3/4.png is left out: not an image",
        "warning: 1 of 110 images are left out",
    ]
    assert result.stderr.splitlines()[:2] == skipped
    assert read_analysis("model.infoq").calibration.samples == 109

    run("allocate", "--uniform", "4/4", "-o", "small.onnx")
    # the file knows its preprocessing
    result = run("evaluate", "small.onnx", "--data", "images", "--json")
    assert result.stderr.splitlines() == skipped
    assert from_json(Evaluation, result.stdout).images == 109


# ------------------------------------------------------------------------------------------------------------ allocate


@pytest.mark.parametrize(
    ("bound", "limit"),
    [
        (("--bitops", "uniform:4/4"), lambda costs: costs.bitops <= 512 * 16),
        (("--bitops", "12K"), lambda costs: costs.bitops <= 12_000),
        (("--size", "uniform:3"), lambda costs: costs.weight_bytes <= 192),
        (("--compression", "9.5"), lambda costs: costs.compression >= 9.5),
        (("--avg-weight-bits", "3"), lambda costs: costs.avg_weight_bits <= 3),
        (("--avg-act-bits", "5"), lambda costs: costs.avg_act_bits <= 5),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_allocate_keeps_every_kind_of_bound(bound: tuple[str, str], limit: Callable[[Costs], bool]) -> None:
    allocation = allocated(*bound, "--criterion", "kl")
    assert limit(allocation.costs)
    assert allocation.optimal
    assert any(bits < 8 for bits in (allocation.weight_bits | allocation.activation_bits).values())


def test_bounds_hold_together_and_the_tighter_one_decides() -> None:
    alone = allocated("--size", "uniform:3", "--criterion", "kl")
    loose = allocated("--size", "uniform:3", "--avg-weight-bits", "7.5", "--criterion", "kl")
    assert (loose.weight_bits, loose.activation_bits) == (alone.weight_bits, alone.activation_bits)
    both = allocated("--size", "uniform:3", "--bitops", "10K", "--criterion", "kl")
    assert both.costs.weight_bytes <= 192
    assert both.costs.bitops <= 10_000
    assert both.activation_bits != alone.activation_bits


def test_weight_only_leaves_activations_at_8_bits() -> None:
    allocation = allocated("--compression", "8", "--weight-only", "--criterion", "kl")
    assert set(allocation.activation_bits.values()) == {8}


def test_pins_are_kept() -> None:
    pins = ("--pin", "first=8/8", "--pin", "fc2=/4", "--pin", "fc3=2")
    allocation = allocated("--bitops", "uniform:8/8", *pins, "--target", "x86-vnni")
    assert (allocation.weight_bits["fc1"], allocation.weight_bits["fc3"]) == (8, 2)
    assert (allocation.activation_bits["x"], allocation.activation_bits["relu1_out"]) == (8, 4)
    # where 8 bits may saturate 7 stand in for them, pinned or not
    assert allocated("--bitops", "uniform:8/8", *pins).weight_bits["fc1"] == 7


def test_uniform_gives_the_same_bits_everywhere() -> None:
    allocation = allocated("--uniform", "4/2")
    assert set(allocation.weight_bits.values()) == {4}
    assert set(allocation.activation_bits.values()) == {2}


def test_allocate_writes_a_model_that_runs_and_its_allocation() -> None:
    result = run("allocate", "--bitops", "uniform:4/4", "--criterion", "kl", "--rounding", "nearest")
    assert result.stderr == "using the analysis model.infoq\n"
    for text in ("weight bits", "compression of weights", "checked on 64 calibration images"):
        assert text in result.stdout
    assert result.stdout.endswith("wrote model.bitops-uniform-4-4.onnx and model.bitops-uniform-4-4.json\n")
    allocation = from_json(Allocation, Path("model.bitops-uniform-4-4.json").read_text())
    session = onnxruntime.InferenceSession("model.bitops-uniform-4-4.onnx", providers=["CPUExecutionProvider"])
    stored = json.loads(session.get_modelmeta().custom_metadata_map["infoq_onnx.allocation"])
    assert stored["weight_bits"] == allocation.weight_bits


def test_json_is_what_is_written_beside_the_model() -> None:
    result = run("allocate", "model.infoq", "--size", "uniform:4", "--json", "-o", "out.onnx", "--rounding", "nearest")
    assert result.stdout == Path("out.json").read_text()
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--size", " 9.5 KiB"), "model.size-9.5-KiB"),
        (("--bitops", "1M", "--compression", "5x"), "model.bitops-1M-compression-5x"),
        (("--size", "8KB", "--weight-only"), "model.size-8KB-weight_only"),
        (("--uniform", "4/4"), "model.uniform-4-4"),
        (("--uniform", "4/4", "--weight-only"), "model.uniform-4-8"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_the_default_name_tells_the_budget(options: tuple[str, ...], name: str) -> None:
    run("allocate", "model.infoq", *options)
    assert Path(f"{name}.onnx").is_file()
    assert Path(f"{name}.json").is_file()


def test_model_and_data_may_move() -> None:
    Path("model.onnx").rename("elsewhere.onnx")
    Path("data.npz").rename("elsewhere.npz")
    run("allocate", "--size", "8KB", "--model", "elsewhere.onnx", "--calib", "elsewhere.npz")
    assert Path("elsewhere.size-8KB.onnx").is_file()


# ------------------------------------------------------------------------------------------------------------ evaluate


def test_evaluate_compares_two_models() -> None:
    run("allocate", "model.infoq", "--uniform", "2/2", "-o", "out.onnx")
    command = ("evaluate", "out.onnx", "--data", "data.npz", "--against", "model.onnx")
    found = from_json(Evaluation, run(*command, "--json").stdout)
    assert found.images == 64
    assert found.reference_top1 == 1.0
    assert found.top1 is not None
    assert found.top1 == found.agreement
    assert found.top1_difference == pytest.approx(found.top1 - 1)
    table = run(*command).stdout
    for text in ("64 images", "out.onnx", "model.onnx", "same top-1 class", f"{100 * found.top1:.2f} %"):
        assert text in table


def test_evaluate_takes_a_share_of_the_images() -> None:
    found = from_json(
        Evaluation, run("evaluate", "model.onnx", "--data", "data.npz", "--samples", "20", "--json").stdout
    )
    assert found.images == 20
    assert found.reference_top1 is None
