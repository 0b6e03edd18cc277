"""The command line from the shell: the whole path, odd names, odd terminals, and being stopped."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from infoq_onnx.cli import main
from infoq_onnx.cli.progress_bar import ConsoleReporter
from infoq_onnx.schema import Evaluation, from_json
from tests.cli.process import run_process

FULL = "No space left on device; free some space, or choose another place"
"""What is said of a full disk."""

pytestmark = pytest.mark.usefixtures("place")


def succeed(*args: str) -> subprocess.CompletedProcess[str]:
    result = run_process(*args)
    assert result.returncode == 0, result.stderr
    return result


def test_the_whole_path_with_names_that_are_hard_on_programs(place: Path) -> None:
    folder = place / "modèles  et données – 模型"
    folder.mkdir()
    shutil.copy("model.onnx", folder / "real.onnx")
    (folder / "-model [v1].onnx").symlink_to("real.onnx")
    shutil.copy("data.npz", folder / "-data.npz")
    os.chdir(folder)
    quick = ("--projections", "2", "--bits", "4,8")
    result = succeed("analyze", "--calib", "-data.npz", *quick, "--", "-model [v1].onnx")
    assert "-model [v1].infoq is ready" in result.stdout
    succeed("allocate", "--bitops", "uniform:4/4", "--criterion", "kl", "-o", "out  put.onnx")
    result = succeed("evaluate", "out  put.onnx", "--data", "-data.npz", "--against=-model [v1].onnx", "--json")
    assert from_json(Evaluation, result.stdout).reference_top1 == 1.0
    assert run_process("inspect", "no  such – 模型.onnx").stderr.startswith(
        "error: no such file: no  such – 模型.onnx;"
    )


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are Unicode there")
def test_names_that_are_no_text() -> None:
    name = b"data-\xff.npz"
    os.rename(b"data.npz", name)
    succeed("analyze", "model.onnx", "--calib", os.fsdecode(name), "--projections", "2", "--bits", "4,8")
    succeed("allocate", "model.infoq", "--uniform", "4/4", "-o", "out.onnx")
    os.rename(b"model.onnx", b"model-\xff.onnx")
    assert succeed("inspect", os.fsdecode(b"model-\xff.onnx")).stderr == ""
    result = run_process("evaluate", os.fsdecode(b"model-\xff.onnx"), "--data", os.fsdecode(name))
    assert re.fullmatch(r"error: .*rename it\n", result.stderr)
    assert result.returncode == 1


def test_demo_ends_with_three_models_of_which_mixed_is_no_worse_than_uniform(tmp_path: Path) -> None:
    result = run_process("demo", "-o", "kept", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = [re.split(r"\s*│\s*", line.strip("│ ")) for line in result.stdout.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["float", "uniform 4/4", "mixed, same BitOps"]
    top1 = [float(row[2].removesuffix(" %")) for row in rows]
    assert top1[2] >= top1[1]
    assert top1[0] >= top1[2] - 1
    assert {"demo.infoq", "mixed.onnx", "mixed.json", "uniform.onnx"} <= {p.name for p in (tmp_path / "kept").iterdir()}


# ----------------------------------------------------------------------------------------------------------- terminals


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    """No traceback, and what is printed does not end in a file that got the descriptor."""
    for options, code in (("inspect model.onnx", 0), ("--help", 0), ("inspect nowhere.onnx", 1)):
        command = f"{shlex.quote(sys.executable)} -c 'from infoq_onnx.cli import main; main()' {options} {closed}"
        result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
        assert result.returncode == code
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("options", [("--help",), ("inspect", "--help"), ("--version",)])
def test_a_full_disk_behind_help(options: tuple[str, ...]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        result = run_process(*options, stdout=full)
    assert (result.returncode, result.stderr) == (1, f"error: cannot write: {FULL}\n")


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["table", "json"])
def test_a_full_disk_behind_stdout_is_told_in_one_line(options: tuple[str, ...]) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        result = run_process("inspect", "model.onnx", *options, stdout=full)
    assert result.stderr == f"error: cannot write the result to stdout: {FULL}\n"
    assert result.returncode == 1


@pytest.mark.parametrize("options", [(), ("--json",)], ids=["table", "json"])
def test_a_closed_pipe_is_no_error_worth_a_word(options: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    result = run_process("inspect", "model.onnx", *options, stdout=writer)
    os.close(writer)
    assert result.stderr == ""


def test_a_terminal_without_unicode_gets_something_readable() -> None:
    result = run_process("inspect", "model.onnx", env={"PYTHONIOENCODING": "ascii"})
    assert result.returncode == 0, result.stderr
    assert result.stdout.isascii()


def test_progress_is_a_line_at_the_end_of_each_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with ConsoleReporter() as reporter:
        for done in range(4):
            reporter.progress("trials", "conv[/1]", done, 3)
        reporter.note("a note with [brackets]  and two blanks, " + "much longer than a line of a terminal " * 3)
        reporter.warn("mind this")
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "trials 3/3 (conv[/1])"
    assert lines[1].startswith("a note with [brackets]  and two blanks, ")
    assert lines[2:] == ["warning: mind this"]


# ------------------------------------------------------------------------------------------------- stopped and overrun


@pytest.mark.parametrize(
    ("command", "module", "more"),
    [("inspect", "inspecting", ""), ("analyze", "analyzing", "; the same command goes on where it was")],
)
def test_ctrl_c_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch, command: str, module: str, more: str) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(f"infoq_onnx.pipeline.{module}.prepare", interrupted)
    result = CliRunner().invoke(main, [command, "model.onnx", *(["--calib", "data.npz"] if more else [])])
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", f"stopped{more}\n")


def test_ctrl_c_in_a_compiled_kernel_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which numba makes a SystemError of, where it is just being called."""

    def interrupted(*_: object, **__: object) -> None:
        try:
            raise SystemError("in the unpickling of the kernel") from KeyboardInterrupt()
        except SystemError as error:
            raise SystemError("returned a result with an exception set") from error

    monkeypatch.setattr("infoq_onnx.pipeline.inspecting.prepare", interrupted)
    result = CliRunner().invoke(main, ["inspect", "model.onnx"])
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "stopped\n")


def test_an_archive_that_unpacks_beyond_memory_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile("bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        header = {"descr": "<f4", "fortran_order": False, "shape": (2**16, 12)}
        np.lib.format.write_array_header_1_0(member, header)
        member.write(bytes(2**16 * 12 * 4))
    sysconf = os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: 1000 if name == "SC_PHYS_PAGES" else sysconf(name))
    result = CliRunner().invoke(main, ["evaluate", "model.onnx", "--data", "bomb.npz"])
    assert result.exit_code == 1
    assert re.fullmatch(r"error: bomb.npz takes 0.0 GB unpacked, more than half .* memory: save it .*\n", result.stderr)


def test_a_name_beyond_what_the_system_takes_is_no_such_file() -> None:
    result = CliRunner().invoke(main, ["inspect", "a" * 5000])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no such file: aaa")
