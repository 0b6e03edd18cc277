from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from infoq_onnx.data.image_decoding import crop
from infoq_onnx.data.preprocess import (
    AS_IS,
    PRESETS,
    check_fits,
    custom,
    is_image,
    layout_of,
    normalise,
    preset,
)
from infoq_onnx.errors import SettingsError
from infoq_onnx.schema import Preprocessing, from_json, to_json

from .conftest import apply

IMAGENET = (np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225]))


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize(("width", "height"), [(300, 400), (401, 299), (256, 256), (64, 200), (225, 224)])
def test_imagenet_is_torchvision_s_evaluation(width: int, height: int) -> None:
    image = noise(width, height)
    # torchvision: Resize(256), CenterCrop(224), ToTensor, Normalize
    size = (256, int(256 * height / width)) if width <= height else (int(256 * width / height), 256)
    resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR), np.float64)
    top, left = round((resized.shape[0] - 224) / 2), round((resized.shape[1] - 224) / 2)
    expected = (resized[top : top + 224, left : left + 224] / 255 - IMAGENET[0]) / IMAGENET[1]
    tensor = apply(image, preset("imagenet", (3, 224, 224)), (3, 224, 224))
    assert tensor.dtype == np.float32
    assert tensor.shape == (3, 224, 224)
    np.testing.assert_allclose(tensor, expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imagenet", lambda x: (x / 255 - IMAGENET[0]) / IMAGENET[1]),
        ("tf", lambda x: x / 127.5 - 1),
        ("cifar10", lambda x: (x / 255 - [0.4914, 0.4822, 0.4465]) / [0.2470, 0.2435, 0.2616]),
        ("none", lambda x: x),
    ],
)
def test_presets_leave_an_image_of_the_model_s_size_alone(name: str, expected) -> None:
    image = noise(32, 24)
    pixels = np.asarray(image, np.float64)
    nhwc = apply(image, preset(name, (24, 32, 3)), (24, 32, 3))
    nchw = apply(image, preset(name, (3, 24, 32)), (3, 24, 32))
    np.testing.assert_allclose(nhwc, expected(pixels), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(nchw, nhwc.transpose(2, 0, 1))
    assert nchw.flags.c_contiguous


@pytest.mark.parametrize("name", ["cifar10", "none"])
def test_presets_without_margin_crop_only_the_longer_side(name: str) -> None:
    image = noise(100, 50)
    preprocessing = preset(name, (3, 32, 32))
    resized = np.asarray(image.resize((64, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(crop(image, preprocessing, (3, 32, 32)), resized[:, 16:48])


def test_sizes_of_the_presets() -> None:
    assert {name: preset(name, (3, 224, 224)).resize for name in PRESETS} == {
        "imagenet": 256,
        "tf": 256,
        "cifar10": 224,
        "none": 224,
    }
    assert preset("imagenet", (3, 299, 299)).resize == 342
    assert preset("tf", (160, 160, 3)).layout == "NHWC"


@pytest.mark.parametrize("size", [(30, 30), (400, 100), (100, 400), (320, 160), (33, 1000)])
def test_a_model_that_is_not_square_is_covered(size: tuple[int, int]) -> None:
    shape = (3, 64, 160)
    pixels = crop(Image.new("RGB", size, (10, 20, 30)), preset("imagenet", shape), shape)
    assert pixels.shape == (64, 160, 3)
    assert (pixels == [10, 20, 30]).all()


def test_grey_models_take_the_mean_of_the_three_channels() -> None:
    preprocessing = preset("imagenet", (1, 16, 16))
    assert preprocessing.color == "L"
    assert preprocessing.mean == pytest.approx((np.mean(IMAGENET[0]),))
    assert preprocessing.std == pytest.approx((np.mean(IMAGENET[1]),))
    image = noise(16, 16)
    expected = (np.asarray(image.convert("L")) / 255 - np.mean(IMAGENET[0])) / np.mean(IMAGENET[1])
    np.testing.assert_allclose(apply(image, preprocessing, (1, 16, 16))[0], expected, rtol=1e-5, atol=1e-6)
    assert preset("tf", (16, 16, 1)).mean == (1.0,)


def test_bgr() -> None:
    image = noise(8, 8)
    rgb = crop(image, custom((3, 8, 8)), (3, 8, 8))
    bgr = custom((3, 8, 8), color="BGR", mean=(1, 2, 3), scale=1)
    np.testing.assert_array_equal(crop(image, bgr, (3, 8, 8)), rgb[..., ::-1])
    blue = apply(image, bgr, (3, 8, 8))[0]
    np.testing.assert_array_equal(blue, rgb[..., 2].astype(np.float32) - 1)


def test_resizing_without_a_crop_squashes() -> None:
    image = noise(50, 20)
    pixels = crop(image, custom((3, 16, 16), resize=16, crop=False), (3, 16, 16))
    np.testing.assert_array_equal(pixels, np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR)))


def test_a_crop_without_resizing() -> None:
    image = noise(20, 17)
    preprocessing = custom((3, 16, 16), resize=None)
    # (17 − 16) / 2 rounds to even, as in torchvision
    np.testing.assert_array_equal(crop(image, preprocessing, (3, 16, 16)), np.asarray(image)[0:16, 2:18])
    with pytest.raises(ValueError, match=r"15×20 pixels, the model takes 16×16: resize them with .*resize.* 16"):
        crop(noise(15, 20), preprocessing, (3, 16, 16))
    with pytest.raises(ValueError, match="resize them"):
        crop(image, custom((3, 16, 16), crop=False), (3, 16, 16))


# -------------------------------------------------------------------------------------------------------------- colours


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "PA"])
def test_other_modes_become_rgb(mode: str) -> None:
    image = noise(8, 8).convert("RGBA" if mode == "PA" else "RGB").convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(crop(image, preset("none", (3, 8, 8)), (3, 8, 8)), expected)
    grey = crop(image, preset("none", (1, 8, 8)), (1, 8, 8))
    assert grey.shape == (8, 8, 1)


def test_sixteen_bit_grey_keeps_its_range() -> None:
    values = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    for image in (Image.open(file), Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        pixels = crop(image, preset("none", (3, 8, 8)), (3, 8, 8))
        np.testing.assert_array_equal(pixels, np.repeat((values >> 8)[..., None], 3, axis=2))


def test_float_pixels_are_refused() -> None:
    with pytest.raises(ValueError, match="float pixels have no agreed range"):
        crop(Image.new("F", (8, 8)), preset("none", (3, 8, 8)), (3, 8, 8))


def test_palette_transparency_makes_no_warning() -> None:
    image = noise(8, 8).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    file = io.BytesIO()
    image.save(file, "PNG", transparency=bytes([0, 128, 255, 255]))
    opened = Image.open(file)
    assert isinstance(opened.info["transparency"], bytes)
    np.testing.assert_array_equal(crop(opened, preset("none", (3, 8, 8)), (3, 8, 8)), np.asarray(image.convert("RGB")))
    assert "transparency" in opened.info


def test_the_camera_s_orientation_is_undone() -> None:
    image, exif = noise(12, 8), Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    opened = Image.open(file)
    # sideways it measures 8×12, so that it has the model's size only after turning
    pixels = crop(opened, preset("imagenet", (3, 12, 8)), (3, 12, 8))
    np.testing.assert_array_equal(pixels, np.asarray(ImageOps.exif_transpose(image.rotate(-90, expand=True))))


# ---------------------------------------------------------------------------------------------------------- description


def test_normalise_is_the_same_for_any_batch() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    preprocessing = preset("imagenet", (3, 8, 8))
    together = normalise(pixels, preprocessing)
    for image, tensor in zip(pixels, together, strict=True):
        np.testing.assert_array_equal(normalise(image[None], preprocessing)[0], tensor)


def test_where_the_channels_are() -> None:
    assert layout_of((3, 224, 224)) == "NCHW"
    assert layout_of((224, 224, 3)) == "NHWC"
    assert layout_of((1, 28, 28)) == "NCHW"
    assert layout_of((28, 28, 1)) == "NHWC"
    assert layout_of((3, 8, 3)) == "NCHW"
    assert not is_image((16,))
    assert not is_image((20, 7))
    assert not is_image((4, 32, 32))
    assert custom((3, 8, 3), layout="NHWC").layout == "NHWC"


@pytest.mark.parametrize("value", [AS_IS, *(make((3, 32, 32)) for make in PRESETS.values())])
def test_it_survives_json(value: Preprocessing) -> None:
    assert from_json(Preprocessing, to_json(value)) == value


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            {"input_shape": (16,)},
            r"input has the shape \(16,\) and is not an image: give arrays .* without options of preprocessing",
        ),
        ({"color": "L"}, r"`color` L with `layout` NCHW does not fit the model's input 3×32×32"),
        ({"layout": "NHWC"}, "`color` RGB with `layout` NHWC does not fit"),
        ({"resize": 0}, "`resize` 0: give 1 pixel or more"),
        ({"resize": 31}, "`resize` 31 is too small for a crop of 32×32"),
        ({"scale": 0.0}, r"`scale` 0\.0: give a finite number above 0"),
        ({"scale": float("nan")}, "`scale` nan"),
        ({"mean": (1.0, 2.0)}, "`mean` has 2 values: give 1, or 3 for the model's channels"),
        ({"std": ()}, "`std` has 0 values"),
        ({"std": (1.0, 0.0, 1.0)}, "`std` .*: give finite numbers above 0"),
        ({"mean": (float("inf"),)}, "`mean` .*: give finite numbers"),
    ],
)
def test_settings_that_make_no_sense(settings: dict, match: str) -> None:
    with pytest.raises(SettingsError, match=match):
        custom(**{"input_shape": (3, 32, 32), **settings})


def test_presets_that_do_not_fit() -> None:
    with pytest.raises(SettingsError, match="unknown preprocessing 'imagnet': choose imagenet, tf, cifar10, none"):
        preset("imagnet", (3, 32, 32))
    with pytest.raises(SettingsError, match=r"is not an image: .*, without `preprocessing`"):
        preset("imagenet", (20, 7))
    with pytest.raises(SettingsError, match=r"is not an image: .*, without `preprocessing`"):
        check_fits(preset("imagenet", (3, 32, 32)), (20, 7))
    check_fits(preset("imagenet", (3, 32, 32)), (3, 32, 32))
    with pytest.raises(SettingsError, match="does not fit the model's input"):
        check_fits(preset("imagenet", (3, 32, 32)), (1, 32, 32))
    with pytest.raises(SettingsError, match="too small for a crop"):
        check_fits(preset("imagenet", (3, 32, 32)), (3, 64, 64))
