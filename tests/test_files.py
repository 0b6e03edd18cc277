"""Files are there whole or not at all."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from infoq_onnx.errors import OutputError
from infoq_onnx.files import replacing, require_writable, sha256_of, write_bytes, write_text
from tests.prepared import is_one_line


def test_a_place_is_tried_before_work_is_spent(tmp_path: Path) -> None:
    require_writable(tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "folder.onnx").mkdir()
    for path, told in ((tmp_path / "folder.onnx", "is a folder"), (tmp_path / "gone" / "m.onnx", "No such file")):
        with pytest.raises(OutputError, match=told):
            require_writable(path)


def test_content_is_written_and_nothing_else_is_left(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "größer\n")
    write_bytes(tmp_path / "b.npz", b"\x00\xff")
    assert (tmp_path / "a.json").read_bytes() == "größer\n".encode()
    assert (tmp_path / "b.npz").read_bytes() == b"\x00\xff"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.npz"]


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("old")
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".onnx"
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def interrupted(path: Path, error: type[BaseException]) -> None:
    with replacing(path) as temporary:
        temporary.write_text("half of it")
        raise error


@pytest.mark.parametrize("old", [None, "old"])
@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_an_error_leaves_things_as_they_were(old: str | None, error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if old is not None:
        path.write_text(old)
    with pytest.raises(error):
        interrupted(path, error)
    assert [file.name for file in tmp_path.iterdir()] == ([] if old is None else ["model.onnx"])
    assert old is None or path.read_text() == old


def test_an_error_of_the_system_is_told_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught, replacing(tmp_path / "model.onnx"):
        raise OSError(28, "No space left on device")
    assert is_one_line(caught.value, "model.onnx", "No space left on device")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_permissions_are_those_of_an_ordinary_file(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "ours", "")
        (tmp_path / "theirs").write_text("")
        modes = {name: (tmp_path / name).stat().st_mode for name in ("ours", "theirs")}
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert modes["ours"] == modes["theirs"]


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        write_text(tmp_path / "gone" / "a.json", "")
    assert is_one_line(caught.value, "gone", "-o")


def test_a_folder_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OutputError) as caught:
        write_text(tmp_path / "a.json", "")
    assert is_one_line(caught.value, "a.json")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputError) as caught:
        write_text(tmp_path / ("a" * 300), "")
    assert is_one_line(caught.value, "aaa")


def test_a_link_is_replaced_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_text(tmp_path / "link", "new")
    assert (tmp_path / "target").read_text() == "kept"
    assert (tmp_path / "link").read_text() == "new"


def test_sha256(tmp_path: Path) -> None:
    content = bytes(range(256)) * 5000
    write_bytes(tmp_path / "a", content)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(content).hexdigest()
