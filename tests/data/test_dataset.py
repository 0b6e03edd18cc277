from __future__ import annotations

import math
import os
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from infoq_onnx.data.dataset import Dataset, load_dataset
from infoq_onnx.data.preprocess import AS_IS, custom, preset
from infoq_onnx.errors import DataError, SettingsError

from .conftest import ImageSet, apply

SHAPE = (3, 8, 8)
IMAGENET = preset("imagenet", SHAPE)


def load(path: Path, **settings) -> Dataset:
    return load_dataset(path, **{"preprocessing": IMAGENET, "input_shape": SHAPE, **settings})


def everything(dataset: Dataset, size: int = 4) -> np.ndarray:
    return np.concatenate(list(dataset.batches(size)))


def fails(match: str, path: Path, error: type[Exception] = DataError, **settings) -> None:
    with pytest.raises(error, match=match) as caught:
        load(path, **settings)
    assert "\n" not in str(caught.value)


def many(image_set: ImageSet, count: int, **settings) -> Path:
    return image_set(*(f"{i % 2}/{i:03}.png" for i in range(count)), **settings)


# --------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(("cache_bytes", "pixels"), [(1 << 30, 1), (0, 0)])
def test_kept_bytes_are_those_of_the_cache(image_set: ImageSet, cache_bytes: int, pixels: int) -> None:
    dataset = load(many(image_set, 4), cache_bytes=cache_bytes)
    kept = pixels * len(dataset) * math.prod(dataset.input_shape)
    assert dataset.kept_bytes == kept
    # a part reads from the cache of the whole
    assert dataset.part(np.array([1])).part(np.array([0])).kept_bytes == kept


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_batches_are_the_preprocessed_images(image_set: ImageSet, cache_bytes: int) -> None:
    root = many(image_set, 7, size=(13, 10))
    dataset = load(root, cache_bytes=cache_bytes)
    batches = list(dataset.batches(3))
    assert [batch.shape for batch in batches] == [(3, *SHAPE), (3, *SHAPE), (1, *SHAPE)]
    expected = [apply(Image.open(file), IMAGENET, SHAPE) for file in dataset.source.files]
    assert batches[0].dtype == np.float32
    np.testing.assert_array_equal(np.concatenate(batches), expected)
    np.testing.assert_array_equal(everything(dataset, 100), expected)
    assert dataset.labels is not None
    assert dataset.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert dataset.layout == "NCHW"
    assert len(dataset) == 7


def test_batches_may_be_changed_by_who_gets_them(image_set: ImageSet) -> None:
    dataset = load(many(image_set, 4))
    first = everything(dataset)
    for batch in dataset.batches(4):
        batch[:] = 0
    np.testing.assert_array_equal(everything(dataset), first)


def test_samples_are_chosen_with_their_labels(image_set: ImageSet) -> None:
    root = many(image_set, 20)
    whole, some = load(root), load(root, samples=6, seed=3)
    assert len(some) == 6
    assert some.labels is not None
    assert whole.labels is not None
    assert np.bincount(some.labels).tolist() == [3, 3]
    np.testing.assert_array_equal(some.labels, whole.labels[some.indices])
    np.testing.assert_array_equal(everything(some), everything(whole)[some.indices])


def test_the_digest_tells_bytes_labels_and_order(image_set: ImageSet, tmp_path: Path) -> None:
    root = many(image_set, 6)
    digest = load(root).sha256
    assert len(digest) == 64
    copy = Path(shutil.copytree(root, tmp_path / "copy"))
    assert load(copy).sha256 == digest
    assert load(copy, cache_bytes=0).sha256 == digest
    assert load(copy, samples=4).sha256 != digest
    files = sorted(copy.rglob("*.png"))
    (tmp_path / "list.txt").write_text("\n".join(f"{file},{file.parent.name}" for file in files))
    assert load(tmp_path / "list.txt").sha256 == digest
    (tmp_path / "list.txt").write_text("\n".join(f"{file},{file.parent.name}" for file in reversed(files)))
    assert load(tmp_path / "list.txt").sha256 != digest
    (tmp_path / "list.txt").write_text("\n".join(f"{file},0" for file in files))
    assert load(tmp_path / "list.txt").sha256 != digest
    (tmp_path / "list.txt").write_text("\n".join(str(file) for file in files))
    assert load(tmp_path / "list.txt").sha256 != digest
    Image.open(files[0]).save(files[0], compress_level=0)
    assert load(copy).sha256 != digest


def test_ref_describes_it(image_set: ImageSet, tmp_path: Path) -> None:
    root = image_set("cat/1.png", "dog/1.png")
    classes = tmp_path / "classes.txt"
    classes.write_text("dog\ncat\n")
    dataset = load(root, classes=classes)
    ref = dataset.ref()
    assert (ref.path, ref.classes_path, ref.samples, ref.labels) == (str(root), str(classes), 2, "true")
    assert ref.sha256 == dataset.sha256
    assert ref.preprocessing == IMAGENET
    np.save(tmp_path / "x.npy", np.zeros((3, 5)))
    ref = load(tmp_path / "x.npy", input_shape=(5,)).ref()
    assert (ref.labels, ref.classes_path, ref.preprocessing) == ("predicted", None, AS_IS)


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_alone_it_goes_to_a_process_in_another_folder(
    image_set: ImageSet, cache_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = many(image_set, 4)
    monkeypatch.chdir(root.parent)
    dataset = load(Path(root.name), cache_bytes=cache_bytes)
    expected = everything(dataset)
    sent = pickle.dumps(dataset.alone())
    assert len(sent) < len(pickle.dumps(dataset))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    np.testing.assert_array_equal(everything(pickle.loads(sent)), expected)


@pytest.mark.parametrize("cache_bytes", [1 << 30, 0])
def test_it_goes_to_another_process(image_set: ImageSet, cache_bytes: int) -> None:
    dataset = load(many(image_set, 4), cache_bytes=cache_bytes)
    np.testing.assert_array_equal(everything(pickle.loads(pickle.dumps(dataset))), everything(dataset))


def test_the_model_s_classes_are_checked(image_set: ImageSet) -> None:
    root = many(image_set, 4)
    assert len(load(root, n_classes=2)) == 4
    (root / "1").rename(root / "one")
    fails("has 2 class folders but the model has 3 classes", root, n_classes=3)


# -------------------------------------------------------------------------------------------------------- broken images


def test_one_broken_image_in_a_hundred_is_skipped(image_set: ImageSet) -> None:
    root = many(image_set, 100)
    whole = load(root)
    (root / "1" / "051.png").write_bytes(b"nonsense")
    for cache_bytes in (1 << 30, 0):
        dataset = load(root, cache_bytes=cache_bytes)
        assert dataset.skipped == ((str(root / "1" / "051.png"), "not an image", "remove or replace them"),)
        assert len(dataset) == 99
        assert dataset.labels is not None
        assert np.bincount(dataset.labels).tolist() == [50, 49]
        assert dataset.sha256 != whole.sha256
        np.testing.assert_array_equal(everything(dataset), everything(whole)[dataset.indices])
    assert whole.skipped == ()


def test_more_broken_images_are_too_many(image_set: ImageSet) -> None:
    root = many(image_set, 50)
    for i in (4, 20, 30):
        (root / "0" / f"{i:03}.png").write_bytes(b"nonsense")
    fails(
        r"3 of 50 images cannot be read \(first: .*0/004\.png\): not an image; remove or replace them",
        root,
    )


def test_as_many_broken_images_as_the_caller_tolerates_but_not_all(image_set: ImageSet) -> None:
    root = many(image_set, 4)
    files = sorted(root.rglob("*.png"))
    for file in files[:3]:
        file.write_bytes(b"nonsense")
    fails("3 of 4 images cannot be read", root, tolerated_percent=74)
    assert load(root, tolerated_percent=75).indices.tolist() == [3]
    files[3].write_bytes(b"nonsense")
    fails("4 of 4 images cannot be read", root, tolerated_percent=100)


def huge_png() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 12000, 12000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda content: content[: len(content) // 2], "truncated|Truncated"),
        (lambda _: b"", "not an image"),
        (lambda content: content[:40] + b"\xff" * 20 + content[60:], r"broken|CRC|checksum|decode"),
        (lambda _: huge_png(), "decompression bomb"),
        (lambda _: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n", "not an image"),
    ],
)
def test_kinds_of_broken_images(image_set: ImageSet, damage, match: str) -> None:
    root = image_set("1.png", size=(64, 64))
    file = root / "1.png"
    file.write_bytes(damage(file.read_bytes()))
    fails(f"1 of 1 images cannot be read .*({match})", root)


def test_images_that_cannot_even_be_opened(image_set: ImageSet, tmp_path: Path) -> None:
    root = image_set("1.png")
    (root / "2.png").symlink_to(tmp_path / "nowhere.png")
    fails(r"1 of 2 images cannot be read \(first: .*2\.png\): no such file", root)
    os.mkfifo(tmp_path / "pipe")
    (root / "2.png").unlink()
    (root / "2.png").symlink_to(tmp_path / "pipe")
    fails(r"1 of 2 images cannot be read \(first: .*2\.png\): no such file", root)


def test_images_of_another_size_where_resizing_is_not_allowed(image_set: ImageSet) -> None:
    fails("6×5 pixels, the model takes 8×8", image_set("1.png", size=(6, 5)), preprocessing=custom(SHAPE))


def test_an_image_that_goes_or_changes_afterwards(image_set: ImageSet) -> None:
    root = many(image_set, 6)
    cached, uncached = load(root), load(root, cache_bytes=0)
    (root / "1" / "003.png").unlink()
    assert len(everything(cached)) == 6
    with pytest.raises(DataError, match=r"1/003\.png could be read at first, and cannot now: no such file"):
        everything(uncached)
    shutil.copy(root / "0" / "000.png", root / "1" / "003.png")
    with pytest.raises(DataError, match=r"1/003\.png has changed since it was first read"):
        everything(uncached)


def test_what_does_not_go_together(image_set: ImageSet) -> None:
    root = image_set("1.png")
    fails(r"holds images but the model takes \(16,\): give arrays", root, input_shape=(16,))
    fails(r"holds images: choose their preprocessing \(imagenet, tf", root, SettingsError, preprocessing=None)
    fails("does not fit the model's input", root, SettingsError, input_shape=(1, 8, 8))
    fails("cannot choose 0 samples", root, SettingsError, samples=0)
    with pytest.raises(SettingsError, match="cannot read batches of 0 samples"):
        list(load(root).batches(0))


# --------------------------------------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8])
@pytest.mark.parametrize("shape", [(16,), (20, 7), (3, 8, 8)])
def test_arrays_go_in_as_they_are(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).integers(0, 256, (9, *shape)).astype(dtype)
    np.savez(tmp_path / "d.npz", x=array, y=np.arange(9) % 3)
    for cache_bytes in (1 << 30, 0):
        dataset = load(tmp_path / "d.npz", preprocessing=None, input_shape=shape, samples=5, cache_bytes=cache_bytes)
        batches = everything(dataset, 2)
        assert batches.dtype == np.float32
        np.testing.assert_array_equal(batches, array[dataset.indices].astype(np.float32))
        assert dataset.labels is not None
        np.testing.assert_array_equal(dataset.labels, dataset.indices % 3)
        assert dataset.preprocessing is None


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_float32_does_not_hold(bad: float, tmp_path: Path) -> None:
    array = np.zeros((600, 2))
    array[301, 1] = bad
    np.save(tmp_path / "x.npy", array)
    fails("x.npy: sample 301 holds NaN, infinite or too large values", tmp_path / "x.npy", input_shape=(2,))
    # only the samples that are used have to be finite
    assert len(load(tmp_path / "x.npy", input_shape=(2,), samples=16)) == 16


@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_of_a_file_larger_than_memory_only_the_chosen_samples_are_read(dtype: type, tmp_path: Path) -> None:
    shape = (3, 128, 128)
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", dtype, (1 << 17, *shape)).flush()  # a sparse file
    dataset = load(tmp_path / "x.npy", preprocessing=preset("none", shape), input_shape=shape, samples=16)
    assert not everything(dataset).any()


def test_float_arrays_are_not_preprocessed(tmp_path: Path) -> None:
    array = np.random.default_rng(0).normal(size=(4, *SHAPE))
    np.save(tmp_path / "x.npy", array)
    dataset = load(tmp_path / "x.npy")
    np.testing.assert_array_equal(everything(dataset), array.astype(np.float32))
    assert dataset.preprocessing is None
    assert dataset.layout == "NCHW"
    fails(
        r"x\.npy holds samples of shape \(3, 8, 8\) \(float64\) but the model takes \(3, 9, 9\)",
        tmp_path / "x.npy",
        preprocessing=preset("imagenet", (3, 9, 9)),
        input_shape=(3, 9, 9),
    )


@pytest.mark.parametrize("size", [(8, 8), (13, 10)])
@pytest.mark.parametrize("layout", ["NHWC", "NCHW", "NHW"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8, 3), (1, 8, 8)])
def test_uint8_images_are_preprocessed_like_files(
    tmp_path: Path, size: tuple[int, int], layout: str, shape: tuple[int, ...]
) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, size[1], size[0], 3), dtype=np.uint8)
    if layout == "NHW":
        images = images[..., 0]
    np.save(tmp_path / "x.npy", images.transpose(0, 3, 1, 2) if layout == "NCHW" else images)
    preprocessing = preset("imagenet", shape)
    expected = [apply(Image.fromarray(image), preprocessing, shape) for image in images]
    for cache_bytes in (1 << 30, 0):
        dataset = load(tmp_path / "x.npy", preprocessing=preprocessing, input_shape=shape, cache_bytes=cache_bytes)
        np.testing.assert_array_equal(everything(dataset, 2), expected)
        assert dataset.preprocessing == preprocessing


def test_uint8_grey_images_with_a_channel_axis(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8), dtype=np.uint8)
    preprocessing = preset("none", (1, 8, 8))
    for array in (images[:, None], images[..., None]):
        np.save(tmp_path / "x.npy", array)
        dataset = load(tmp_path / "x.npy", preprocessing=preprocessing, input_shape=(1, 8, 8))
        np.testing.assert_array_equal(everything(dataset)[:, 0], images)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64])
def test_integers_that_are_pixels_are_preprocessed_like_uint8(tmp_path: Path, dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, min(256, np.iinfo(dtype).max), (5, 13, 10, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    expected = everything(load(tmp_path / "x.npy"))
    np.save(tmp_path / "x.npy", pixels.astype(dtype))
    for cache_bytes in (1 << 30, 0):
        dataset = load(tmp_path / "x.npy", cache_bytes=cache_bytes)
        np.testing.assert_array_equal(everything(dataset), expected)
        assert dataset.preprocessing == IMAGENET


@pytest.mark.parametrize("value", [-1, 256])
def test_integers_that_are_no_pixels(tmp_path: Path, value: int) -> None:
    pixels = np.zeros((5, *SHAPE), np.int64)
    # wherever it is: what is done with an array does not depend on the samples that are drawn
    pixels[4, 2, 7, 7] = value
    np.save(tmp_path / "x.npy", pixels)
    fails(rf"int64 values from .*{value}.*: save them as uint8", tmp_path / "x.npy", SettingsError, samples=1)
    np.testing.assert_array_equal(everything(load(tmp_path / "x.npy", preprocessing=None)), pixels)


def test_uint8_images_of_another_size_where_resizing_is_not_allowed(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 6, 6, 3), np.uint8))
    fails("x.npy does not fit the model: 6×6 pixels", tmp_path / "x.npy", preprocessing=custom(SHAPE))


def test_the_digest_of_arrays(tmp_path: Path) -> None:
    array, labels = np.random.default_rng(0).normal(size=(600, 5)), np.arange(600) % 2

    def digest(x: np.ndarray, y: np.ndarray | None = None, **settings) -> str:
        np.savez(tmp_path / "d.npz", x=x, **({} if y is None else {"y": y}))
        return load(tmp_path / "d.npz", input_shape=x.shape[1:], **settings).sha256

    assert digest(array, labels) == digest(array, labels, cache_bytes=0) == digest(np.asfortranarray(array), labels)
    different = [
        digest(array, labels),
        digest(array),
        digest(array, 1 - labels),
        digest(array[::-1], labels),
        digest(array.astype(np.float32), labels),
        digest(array.reshape(-1, 1, 5), labels),
        digest(array, labels, samples=500),
    ]
    assert len(set(different)) == len(different)


# ---------------------------------------------------------------------------------------------------------- real images


def test_the_shared_cifar10_images(shared: Path) -> None:
    shape = (3, 32, 32)
    dataset = load_dataset(
        shared / "data" / "cifar10" / "test",
        preprocessing=preset("imagenet", shape),
        input_shape=shape,
        samples=100,
        n_classes=10,
    )
    first = next(dataset.batches(10))
    file = dataset.source.files[int(dataset.indices[0])]
    expected = (np.asarray(Image.open(file)) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(first[0], expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


def test_the_shared_imagenet_images(shared: Path) -> None:
    shape = (3, 224, 224)
    dataset = load_dataset(
        shared / "data" / "imagenet" / "test",
        classes=shared / "data" / "imagenet" / "classes.txt",
        preprocessing=preset("tf", shape),
        input_shape=shape,
        samples=40,
        n_classes=1000,
    )
    assert len(dataset) == 40
    assert dataset.skipped == ()
    for batch in dataset.batches(16):
        assert batch.min() >= -1
        assert batch.max() <= 1
