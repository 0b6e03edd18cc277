"""Help texts are complete, docs/cli.md is what click prints, and asking for help loads nothing heavy."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import click
import pytest

from infoq_onnx.cli import main
from tests.cli.process import run_process

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "write_cli_reference.py"
HEAVY = {"numpy", "onnx", "onnxruntime", "rich", "scipy", "numba", "PIL", "pulp"}

every_command = pytest.mark.parametrize("command", main.commands.values(), ids=main.commands)


def test_reference_is_up_to_date() -> None:
    script = runpy.run_path(str(SCRIPT))
    assert script["REFERENCE"].read_text(encoding="utf-8") == script["reference"](), f"run python {SCRIPT.name}"


@every_command
def test_command_says_what_it_does(command: click.Command) -> None:
    assert command.help
    # click cuts longer ones
    assert len(command.get_short_help_str(limit=65)) <= 65
    assert not command.get_short_help_str(limit=65).endswith("...")


@every_command
def test_every_option_says_what_it_is_for(command: click.Command) -> None:
    silent = [p.name for p in command.params if isinstance(p, click.Option) and not p.help]
    assert silent == []


@pytest.mark.parametrize("name", [name for name in main.commands if name != "demo"])
def test_examples_can_be_typed_in(name: str) -> None:
    command = main.commands[name]
    examples = re.findall(rf"infoq-onnx {name} (.*)", command.epilog or "")
    assert examples
    for example in examples:
        command.make_context(name, shlex.split(example))


def test_commands_are_listed_in_the_order_of_use() -> None:
    assert main.list_commands(click.Context(main)) == [
        "demo",
        "inspect",
        "analyze",
        "score",
        "criteria",
        "allocate",
        "finetune",
        "evaluate",
        "lint",
    ]


@pytest.mark.parametrize("args", [["--help"], ["analyze", "--help"], ["allocate", "model.infoq", "--uniform", "x"]])
def test_what_needs_no_model_loads_nothing_heavy(args: list[str], tmp_path: Path) -> None:
    result = run_process(*args, before="import sys, atexit; atexit.register(lambda: print(*sys.modules))", cwd=tmp_path)
    loaded = set(result.stdout.splitlines()[-1].split())
    assert "infoq_onnx.cli" in loaded
    assert loaded & HEAVY == set()


def test_version_is_told() -> None:
    result = run_process("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(r"infoq-onnx, version \d+\.\d+\.\d+\n", result.stdout)
