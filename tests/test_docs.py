"""What the documentation says is so: commands, links, modules, versions, and code that runs."""

from __future__ import annotations

import re
import runpy
import shlex
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from PIL import Image

from infoq_onnx import pipeline
from infoq_onnx.cli import main
from infoq_onnx.demo import demo_calibration_path, demo_model_path, demo_test_path
from infoq_onnx.report import tables

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SCRIPTS = sorted((ROOT / "examples").glob("*.sh"))

QUICK: dict[str, Any] = {"samples": 32, "projections": 2, "bits": (2, 8)}
"""Settings under which the demo model is analysed in seconds."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


# ------------------------------------------------------------------------------------------------------------- commands


def commands_of(text: str) -> Iterator[list[str]]:
    """Argument lists of the `infoq-onnx …` commands in shell text, continued lines joined, comments left out."""
    for line in text.replace("\\\n", " ").splitlines():
        if "infoq-onnx " not in line:
            continue
        words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        starts = [i for i, word in enumerate(words) if word.rsplit("/", 1)[-1] == "infoq-onnx"]
        for start in starts:
            end = next((i for i, word in enumerate(words) if i > start and word in ("&&", "||", "|", ";")), len(words))
            yield words[start + 1 : end]


def documented_commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for language, block in _FENCE.findall(page.read_text(encoding="utf-8")):
            if language in ("sh", "bash", "shell", "console"):
                yield from ((name_of(page), words) for words in commands_of(block))
    for script in SCRIPTS:
        yield from ((name_of(script), words) for words in commands_of(script.read_text(encoding="utf-8")))


def parse(arguments: list[str]) -> None:
    """Read a command line as click does, without running it."""
    with main.make_context("infoq-onnx", list(arguments)) as context:
        name, command, rest = main.resolve_command(context, list(arguments))
        assert command is not None
        try:
            command.make_context(name, rest, parent=context).close()
        except click.exceptions.Exit:
            assert {"-h", "--help"} & set(rest)


@pytest.mark.parametrize(
    ("page", "arguments"), [pytest.param(p, a, id=f"{p}: {' '.join(a)}") for p, a in documented_commands()]
)
def test_documented_commands_can_be_parsed(page: str, arguments: list[str]) -> None:
    try:
        parse(arguments)
    except click.UsageError as error:
        pytest.fail(f"{page}: infoq-onnx {shlex.join(arguments)}: {error.format_message()}")


def test_readme_shows_every_command() -> None:
    shown = {arguments[0] for page, arguments in documented_commands() if page == "README.md"}
    assert shown == set(main.commands)


def test_readme_option_table_names_real_options() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, _ in rows} == set(main.commands)
    for name, text in rows:
        known = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert set(re.findall(r"`(--?[\w-]+)`", text)) <= known, name


# ---------------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text)]
    broken = [t for t in targets if t and "://" not in t and not (page.parent / t).exists()]
    assert not broken


# ------------------------------------------------------------------------------------------------------------- the map


def modules() -> set[str]:
    """Every module as docs/architecture.md writes it: a path in the package, and a folder for its `__init__.py`."""
    package = ROOT / "infoq_onnx"
    paths = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    return {path.removesuffix("__init__.py") or path for path in paths}


def test_architecture_names_every_module_and_no_other() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = text.split("\n## Modules\n")[1].split("\n## ")[0]
    assert set(re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)) == modules()


def test_methods_names_modules_that_exist() -> None:
    text = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`([\w/]+\.py)`", text)) <= modules()


def test_architecture_draws_the_import_contract() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    drawn = "\n".join("    " + layer.replace("infoq_onnx.", "") for layer in layers)
    assert drawn in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------ versions


def test_changelog_has_the_version() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert re.search(
        rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE
    )


# ----------------------------------------------------------------------------------------------------------------- code


def test_readme_shows_the_columns_of_the_demo() -> None:
    header = re.search(r"^┃ (model .*) ┃$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert header is not None
    assert [cell.strip() for cell in header[1].split("┃")] == [column.header for column in tables.demo([]).columns]


def write_images(folder: Path, arrays: Path, count: int) -> None:
    """Write the first images of an archive of digits as class folders."""
    with np.load(arrays) as archive:
        pixels, labels = (archive["x"][:count, 0] * 255).astype(np.uint8), archive["y"][:count]
    for index, (image, label) in enumerate(zip(pixels, labels, strict=True)):
        (folder / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(label) / f"{index}.png")


def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [
        block for language, block in _FENCE.findall((ROOT / "README.md").read_text("utf-8")) if language == "python"
    ]
    with demo_model_path() as model, demo_calibration_path() as images, demo_test_path() as test:
        (tmp_path / "model.onnx").write_bytes(model.read_bytes())
        write_images(tmp_path / "images", images, 100)
        write_images(tmp_path / "test", test, 50)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "analyze", partial(pipeline.analyze, **QUICK))
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "small.onnx").is_file()
    assert "times smaller" in capsys.readouterr().out


def load_example(name: str) -> dict[str, Any]:
    """Run an example's definitions and return them, `main` not called."""
    return runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name=name)


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    load_example("compress_demo")["main"](**QUICK)
    assert "top-1" in capsys.readouterr().out

    gate = load_example("ci_gate")
    assert gate["main"](**QUICK) == bool(capsys.readouterr().err)
    with demo_model_path() as model, demo_test_path() as test:
        small = tmp_path / "digits.onnx"
        assert gate["complaints"](small, test, model, max_bytes=10**6, max_drop=1.0) == []
        too_large, too_wrong = gate["complaints"](small, test, model, max_bytes=1, max_drop=-1.0)
    assert "bytes" in too_large
    assert "top-1" in too_wrong
