from __future__ import annotations

import csv
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infoq_onnx.data.sources import open_source, with_classes
from infoq_onnx.errors import DataError

from .conftest import ImageSet


def names(source, root: Path) -> list[str]:
    return [file.relative_to(root).as_posix() for file in source.files]


def fails(match: str, path: Path, classes: Path | None = None) -> None:
    with pytest.raises(DataError, match=match) as caught:
        open_source(path, classes)
    assert "\n" not in str(caught.value)


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


# -------------------------------------------------------------------------------------------------------------- folders


def test_class_folders_are_labelled_by_their_sorted_names(image_set: ImageSet) -> None:
    root = image_set("dog/2.png", "cat/b.JPG", "cat/a.webp", "dog/deep/1.png", "emu/x.tiff")
    source = open_source(root)
    assert names(source, root) == ["cat/a.webp", "cat/b.JPG", "dog/2.png", "dog/deep/1.png", "emu/x.tiff"]
    assert source.labels is not None
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == [0, 0, 1, 1, 2]
    assert source.class_names == ("cat", "dog", "emu")
    assert len(source) == 5


def test_a_classes_file_gives_the_order_and_may_name_more_than_there_are(image_set: ImageSet, tmp_path: Path) -> None:
    root = image_set("dog/1.png", "cat/1.png")
    (root / "emu").mkdir()
    source = open_source(root, write(tmp_path / "classes.txt", "\ufeffemu", "dog", "yak", "cat", "", ""))
    assert source.labels is not None
    assert list(zip(names(source, root), source.labels.tolist(), strict=True)) == [("cat/1.png", 3), ("dog/1.png", 1)]
    assert source.class_names == ("emu", "dog", "yak", "cat")


def test_a_flat_folder_has_no_labels(image_set: ImageSet) -> None:
    root = image_set("b.png", "a.bmp", "c.gif", "d.ppm")
    source = open_source(root)
    assert names(source, root) == ["a.bmp", "b.png", "c.gif", "d.ppm"]
    assert source.labels is None
    assert source.class_names is None


def test_hidden_and_foreign_files_are_ignored(image_set: ImageSet) -> None:
    root = image_set("cat/1.png", "cat/.2.png", "dog/1.png", ".trash/3.png")
    write(root / "README.md", "x")
    write(root / "cat" / "notes.txt", "x")
    source = open_source(root)
    assert names(source, root) == ["cat/1.png", "dog/1.png"]
    for file in source.files:
        file.unlink()
    with pytest.raises(DataError, match=r"holds 2 folders but no image \(4 other files\)"):
        open_source(root)


def test_links_that_lead_back_are_harmless(image_set: ImageSet) -> None:
    root = image_set("cat/1.png", "dog/1.png")
    (root / "self").symlink_to(root, target_is_directory=True)
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    (root / "a").symlink_to(root / "b")
    (root / "b").symlink_to(root / "a")
    source = open_source(root)
    assert names(source, root) == ["cat/1.png", "dog/1.png"]
    assert source.class_names == ("cat", "dog")


def test_a_linked_class_folder_and_a_dangling_image_count(image_set: ImageSet, tmp_path: Path) -> None:
    root = image_set("cat/1.png")
    other = image_set("1.png", folder="elsewhere")
    (root / "dog").symlink_to(other, target_is_directory=True)
    (root / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    assert names(open_source(root), root) == ["cat/1.png", "cat/gone.png", "dog/1.png"]


def test_pipes_named_like_images_are_ignored(image_set: ImageSet) -> None:
    root = image_set("1.png")
    os.mkfifo(root / "2.png")
    assert len(open_source(root)) == 1


def test_folders_that_cannot_be_used(image_set: ImageSet, tmp_path: Path) -> None:
    fails(r"no such file or folder: .*nowhere", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    fails(r"empty holds no image \(0 other files\): give one with .*\.png", tmp_path / "empty")
    (tmp_path / "bare" / "cat").mkdir(parents=True)
    write(tmp_path / "bare" / "cat" / "a.txt", "x")
    fails(r"holds 1 folder but no image \(1 other files\)", tmp_path / "bare")
    fails("both images and folders of images", image_set("1.png", "cat/1.png"))
    fails(r"archive\.zip is no data set: expected a folder", write(tmp_path / "archive.zip", "x"))
    long = tmp_path / ("x" * 300)
    fails("no such file or folder", long)


def test_folders_that_the_classes_file_does_not_name(image_set: ImageSet, tmp_path: Path) -> None:
    root = image_set("cat/1.png", "dog/1.png", "ant/1.png", "bee/1.png", "fly/1.png")
    classes = write(tmp_path / "classes.txt", "dog")
    fails(r"the folders 'ant', 'bee', 'cat' and 1 more are not named in .*classes\.txt", root, classes)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "classes file .* is empty"),
        (b"\n\n", "classes file .* is empty"),
        (b"cat\n\ndog\n", "line 2 is blank"),
        (b"cat\ndog\ncat\n", "line 3: 'cat' was already named in line 1"),
        (b"caf\xe9\n", "not UTF-8 text: byte 3"),
    ],
)
def test_bad_classes_files(image_set: ImageSet, tmp_path: Path, content: bytes, match: str) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_bytes(content)
    fails(match, image_set("cat/1.png"), classes)


def test_folders_in_folders(image_set: ImageSet) -> None:
    root = image_set("cat/" + "deep/" * 50 + "1.png")
    assert len(open_source(root)) == 1
    (root / "cat" / ("deeper/" * 60)).mkdir(parents=True)
    fails("cat has folders in folders, more than 50 deep", root)


def test_a_missing_classes_file(image_set: ImageSet, tmp_path: Path) -> None:
    fails(
        r"`classes` .*nowhere\.txt is not there: give a file with one class name a line",
        image_set("cat/1.png"),
        tmp_path / "nowhere.txt",
    )


def test_the_model_s_number_of_classes(image_set: ImageSet, tmp_path: Path) -> None:
    root = image_set("cat/1.png", "dog/1.png")
    with_classes(open_source(root), 2)
    with pytest.raises(DataError, match=r"has 2 class folders but the model has 10 classes: .*`classes`"):
        with_classes(open_source(root), 10)
    classes = write(tmp_path / "classes.txt", "cat", "dog", "emu")
    with_classes(open_source(root, classes), 3)
    with pytest.raises(DataError, match=r"classes\.txt names 3 classes but the model has 2"):
        with_classes(open_source(root, classes), 2)
    listed = write(tmp_path / "list.csv", "images/cat/1.png,0", "images/dog/1.png,4")
    with_classes(open_source(listed), 5)
    with pytest.raises(DataError, match=r"sample 1 has label 4 but the model has 4 classes \(0 to 3\)"):
        with_classes(open_source(listed), 4)


@pytest.mark.parametrize("stray", ["__MACOSX/._1.png", "@eaDir/1.png/thumb.png", "cache/index.db", "#recycle/1.png"])
def test_a_folder_without_images_is_no_class(image_set: ImageSet, stray: str) -> None:
    """One beside the classes would shift the labels of all behind it."""
    root = image_set("ant/1.png", "zebra/1.png")
    (root / stray).parent.mkdir(parents=True, exist_ok=True)
    if stray.endswith("png") and "/._" not in stray:
        (root / stray).write_bytes((root / "ant" / "1.png").read_bytes())
    else:
        (root / stray).write_bytes(b"no image")
    (root / "empty").mkdir()
    source = with_classes(open_source(root), 2)
    assert source.class_names == ("ant", "zebra")
    assert source.labels is not None
    assert source.labels.tolist() == [0, 1]
    assert "empty" in source.ignored


def test_an_empty_folder_does_not_stand_for_a_missing_class(image_set: ImageSet) -> None:
    root = image_set("ant/1.png", "zebra/1.png")
    (root / "@eaDir").mkdir()
    with pytest.raises(DataError, match="2 class folders but the model has 3 classes"):
        with_classes(open_source(root), 3)


@pytest.mark.parametrize(
    ("folders", "count", "expected"),
    [
        (("0", "1", "2"), 3, [0, 1, 2]),
        (("0", "2", "10"), 11, [0, 2, 10]),
        (("000", "007"), 10, [0, 7]),
        (("1", "2", "10"), 3, [0, 1, 2]),
    ],
)
def test_folders_that_are_numbers(
    image_set: ImageSet, folders: tuple[str, ...], count: int, expected: list[int]
) -> None:
    """In the order of the numbers, not of their letters; and where they are labels, some may be missing."""
    source = with_classes(open_source(image_set(*(f"{name}/1.png" for name in folders))), count)
    assert [file.parent.name for file in source.files] == list(folders)
    assert source.labels is not None
    assert source.labels.tolist() == expected


def test_numbers_that_are_no_labels_need_all_classes(image_set: ImageSet) -> None:
    root = image_set("1/1.png", "3/1.png")
    with pytest.raises(DataError, match=r"2 class folders but the model has 3 classes: .*`classes`"):
        with_classes(open_source(root), 3)
    two = image_set("01/1.png", "1/1.png")
    with pytest.raises(DataError, match="01 and 1 are the same class"):
        open_source(two)


# ---------------------------------------------------------------------------------------------------------------- lists


def test_a_list_keeps_its_order(image_set: ImageSet, tmp_path: Path) -> None:
    root = image_set("b.png", "a.png", "comma, quote.png")
    text = '\ufeffimages/b.png , 2\r\n\r\nimages/a.png,0\r\n"images/comma, quote.png",7\r\n'
    (tmp_path / "list.csv").write_text(text, encoding="utf-8", newline="")
    source = open_source(tmp_path / "list.csv")
    assert names(source, root) == ["b.png", "a.png", "comma, quote.png"]
    assert source.labels is not None
    assert source.labels.tolist() == [2, 0, 7]
    assert source.class_names is None


def test_a_list_without_labels_or_with_names(image_set: ImageSet, tmp_path: Path) -> None:
    root = image_set("a.png", "b.png", "c.png")
    assert open_source(write(tmp_path / "list.txt", str(root / "a.png"), "images/b.png")).labels is None
    classes = write(tmp_path / "classes.txt", "cat", "1", "dog")
    listed = write(tmp_path / "named.txt", "images/a.png,dog", "images/b.png,1", "images/c.png,2")
    source = open_source(listed, classes)
    assert source.labels is not None
    assert source.labels.tolist() == [2, 1, 2]


@pytest.mark.parametrize(
    ("lines", "match"),
    [
        (["a.png,1,2"], r"list\.csv line 1: expected path,label or path, found 'a.png,1,2'"),
        (["a.png,1", "", "a.png,"], r"line 3: expected path,label or path, found 'a\.png,'"),
        (["a.png,1", '"a.png,1'], r"line 2: unexpected end of data; expected path,label"),
        (["a.png,1", "b.png,1"], r"line 2: no such file: .*b\.png"),
        ([f"{'x' * 300},1"], r"line 1: no such file"),
        (["a.png,1", "a.png"], "line 2 has no label but the lines before have one: label all lines or none"),
        (["a.png", "a.png,1"], "line 2 has a label but the lines before have none: label all lines or none"),
        (["a.png,-1"], r"line 1: the label '-1' is not an index \(names need `classes`\)"),
        (["a.png,cat"], "line 1: the label 'cat' is not an index"),
        (["a.png,1.0"], r"line 1: the label '1\.0' is not an index"),
        (["a.png,99999999999999999999"], "line 1: the label '9+' is not an index"),
        (["", "  "], r"list\.csv lists no file"),
    ],
)
def test_bad_lists(image_set: ImageSet, lines: list[str], match: str) -> None:
    fails(match, write(image_set("a.png") / "list.csv", *lines))


def test_bad_lists_with_class_names(image_set: ImageSet, tmp_path: Path) -> None:
    root = image_set("a.png")
    classes = write(tmp_path / "classes.txt", "cat", "dog")
    fails(r"the label 'emu' is not a name in .*classes\.txt, nor an index", write(root / "1.txt", "a.png,emu"), classes)
    fails(r"the label 2 is out of range: .*classes\.txt names 2 classes", write(root / "2.txt", "a.png,2"), classes)
    (root / "3.txt").write_bytes(b"\xff\xfe")
    fails("is not UTF-8 text", root / "3.txt")


file_names = st.text(st.characters(codec="utf-8", exclude_characters="/\0\r\n", exclude_categories=["Cs"]), min_size=1)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(
        st.tuples(
            file_names.filter(
                lambda name: name == name.strip() and len(name.encode()) < 200 and name not in {".", ".."}
            ),
            st.integers(0, 999),
        ),
        min_size=1,
        max_size=8,
    ),
    labelled=st.booleans(),
)
def test_what_csv_writes_is_read_back(tmp_path: Path, rows: list[tuple[str, int]], labelled: bool) -> None:
    folder = tmp_path / "any"
    folder.mkdir(exist_ok=True)
    for name, _ in rows:
        (folder / name).touch()
    text = io.StringIO()
    csv.writer(text).writerows((f"any/{name}", label) if labelled else (f"any/{name}",) for name, label in rows)
    (tmp_path / "list.csv").write_text(text.getvalue(), encoding="utf-8", newline="")
    source = open_source(tmp_path / "list.csv")
    assert [file.name for file in source.files] == [name for name, _ in rows]
    assert (source.labels is None) != labelled
    if source.labels is not None:
        assert source.labels.tolist() == [label for _, label in rows]


# --------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64])
def test_npy(tmp_path: Path, dtype: type) -> None:
    array = np.arange(24).reshape(4, 6).astype(dtype)
    np.save(tmp_path / "x.npy", array)
    source = open_source(tmp_path / "x.npy")
    assert len(source) == 4
    assert source.labels is None
    assert source.array is not None
    assert source.array.dtype == dtype
    np.testing.assert_array_equal(source.array, array)


@pytest.mark.parametrize("keys", [("x", "y"), ("images", "labels"), ("whatever", "y"), ("x", None)])
def test_npz(tmp_path: Path, keys: tuple[str, str | None]) -> None:
    x, y = np.arange(24.0).reshape(4, 6), np.array([[3], [0], [2], [1]], np.uint8)
    np.savez(tmp_path / "d.npz", **{keys[0]: x}, **({keys[1]: y} if keys[1] else {}))
    source = open_source(tmp_path / "d.npz")
    np.testing.assert_array_equal(source.array, x)
    if keys[1]:
        assert source.labels is not None
        assert source.labels.dtype == np.int64
        assert source.labels.tolist() == [3, 0, 2, 1]
    else:
        assert source.labels is None


@pytest.mark.parametrize(
    ("array", "match"),
    [
        (np.array([[1.0, None]], object), "is not a numeric .npy array .*Python objects"),
        (np.array([["a"]]), "holds <U1 values: expected integers or floats"),
        (np.array([[1j]]), "holds complex128 values"),
        (np.array([[True]]), "holds bool values"),
        (np.array(3.0), r"has shape \(\): expected samples along the first axis"),
        (np.arange(3.0), r"has shape \(3,\)"),
        (np.zeros((0, 3)), r"has shape \(0, 3\).*and some"),
    ],
)
def test_bad_npy(tmp_path: Path, array: np.ndarray, match: str) -> None:
    np.save(tmp_path / "x.npy", array, allow_pickle=True)
    fails(match, tmp_path / "x.npy")


def test_files_that_are_no_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 6)))
    content = (tmp_path / "x.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(content[:-8])
    fails("short.npy is not a numeric .npy array", tmp_path / "short.npy")
    (tmp_path / "empty.npy").touch()
    fails("empty.npy is not a numeric .npy array", tmp_path / "empty.npy")
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps([1, 2]))
    fails("pickle.npy is not a numeric .npy array", tmp_path / "pickle.npy")
    (tmp_path / "x.npz").write_bytes(content)
    fails(r"x\.npz holds a single array: name it \.npy", tmp_path / "x.npz")
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 6)))
    (tmp_path / "d.npy").write_bytes((tmp_path / "d.npz").read_bytes())
    fails(
        r"d\.npy is not a numeric .npy array \(it holds Python objects, or is not in numpy's format\)",
        tmp_path / "d.npy",
    )
    (tmp_path / "short.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:-30])
    fails("short.npz is not an archive of numeric arrays", tmp_path / "short.npz")
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("x", "1 2 3")
    fails("'x' of .*text.npz holds .S5 values", tmp_path / "text.npz")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"y": np.arange(4)}, r"holds 'y': name the samples x and the labels y"),
        ({"a": np.zeros((4, 2)), "b": np.zeros((4, 2))}, "holds 'a', 'b': name the samples x"),
        ({}, "holds nothing: name the samples x"),
        ({"x": np.array([[None]], object)}, "not an archive of numeric arrays"),
        ({"x": np.zeros((4, 2)), "y": np.arange(3)}, "'y' of .* has 3 labels for 4 samples"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4)}, r"'y' of .* is float64 of shape \(4,\): expected one integer"),
        ({"x": np.zeros((4, 2)), "y": np.eye(4, dtype=int)}, r"of shape \(4, 4\): expected one integer a sample"),
        (
            {"x": np.zeros((4, 2)), "labels": np.array([0, 1, -1, 2])},
            "sample 2 has label -1, out of range: .*0 or more",
        ),
    ],
)
def test_bad_npz(tmp_path: Path, arrays: dict[str, np.ndarray], match: str) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    fails(match, tmp_path / "d.npz")


def test_npz_labels_beyond_the_classes_file(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 2)), y=np.array([0, 2]))
    classes = write(tmp_path / "classes.txt", "cat", "dog")
    fails("sample 1 has label 2, out of range: expected 0 to 1", tmp_path / "d.npz", classes)


def test_the_shared_images(shared: Path) -> None:
    cifar = open_source(shared / "data" / "cifar10" / "test")
    assert len(cifar) == 1017
    with_classes(cifar, 10)
    imagenet = open_source(shared / "data" / "imagenet" / "test", shared / "data" / "imagenet" / "classes.txt")
    with_classes(imagenet, 1000)
    assert len(imagenet) == 500
    assert imagenet.labels is not None
    assert imagenet.class_names is not None
    for file, label in zip(imagenet.files[::50], imagenet.labels[::50], strict=True):
        assert imagenet.class_names[label] == file.parent.name
