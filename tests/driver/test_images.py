"""Images as given: turned, scaled, flattened, or refused."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tiny_models import build, tiny_processor

from vlalign_utils import VLM
from vlalign_utils.driver.images import as_rgb

ORIENTATION = 0x0112
RAMP = np.arange(64 * 4, dtype=np.uint16).reshape(16, 16) * 257


def colours() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a.swapaxes(0, 1), 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
@pytest.mark.parametrize("opened", [True, False])
def test_a_photo_is_turned_as_its_file_says(orientation, turned, opened):
    image = Image.fromarray(colours())
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    if opened:
        file = BytesIO()
        image.save(file, "PNG", exif=exif)
        image = Image.open(file)
    assert np.array_equal(np.asarray(as_rgb(image)), turned(colours()))
    assert image.size == (20, 12)  # the caller's own stays as it is


def test_an_upright_rgb_image_is_itself():
    image = Image.fromarray(colours())
    assert as_rgb(image) is image


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bits_are_scaled(mode):
    image = Image.fromarray(RAMP)
    image = image.convert("I") if mode == "I" else image
    if mode == "I;16B":
        image = Image.frombytes("I;16B", (16, 16), RAMP.astype(">u2").tobytes())
    assert image.mode == mode
    assert np.array_equal(np.asarray(as_rgb(image)), np.repeat(np.arange(256).reshape(16, 16, 1), 3, axis=2))


def test_a_16_bit_file_is_what_its_8_bit_version_is():
    file = BytesIO()
    Image.fromarray(RAMP).save(file, "PNG")
    deep = np.asarray(as_rgb(Image.open(file)))
    flat = np.asarray(Image.fromarray((RAMP // 257).astype(np.uint8)).convert("RGB"))
    assert np.array_equal(deep, flat)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_other_modes_are_those_of_pil(mode):
    image = Image.fromarray(colours()).convert(mode)
    assert np.array_equal(np.asarray(as_rgb(image)), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_lies_over_white(mode):
    image = Image.new("RGB", (2, 1), (10, 10, 10))
    image.putpixel((1, 0), (200, 200, 200))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(np.array([[0, 255]], dtype=np.uint8)))
        image = image.convert(mode)
    else:
        image = image.convert(mode, palette=Image.Palette.ADAPTIVE)
        image.info["transparency"] = (10, 10, 10) if mode == "RGB" else image.getpixel((0, 0))
    assert image.mode == mode
    assert np.asarray(as_rgb(image)).tolist() == [[[255] * 3, [200] * 3]]


def test_half_of_what_is_half_transparent_is_white():
    image = Image.new("RGBA", (1, 1), (0, 100, 200, 51))
    assert as_rgb(image).getpixel((0, 0)) == (204, 224, 244)


def test_what_has_no_known_range_is_refused():
    for image, message in (
        (Image.new("F", (2, 2), 0.5), "mode 'F', whose range of values is not known: scale it to 8 bits"),
        (Image.new("LAB", (2, 2)), "mode 'LAB'"),
        (Image.new("I", (2, 2), 70000), 'mode "I" has values from 70000 to 70000, expected 16 bits'),
        (Image.new("I", (2, 2), -1), 'mode "I" has values from -1'),
        (Image.new("I", (2, 2), 200), 'mode "I" has values from 200 to 200'),
    ):
        with pytest.raises(ValueError, match=message):
            as_rgb(image)


def test_models_are_given_images_upright_and_in_8_bits():
    vlm = VLM(build("llava")[0].model, tiny_processor())
    image = Image.fromarray(colours())
    sideways = image.transpose(Image.Transpose.ROTATE_90)
    sideways.getexif()[ORIENTATION] = 6
    grey = Image.fromarray(RAMP)
    inputs = vlm.prepare(["what ?"] * 4, [image, sideways, grey, Image.fromarray((RAMP // 257).astype("u1"))])
    one, other, deep, flat = inputs["pixel_values"]
    assert (one == other).all()
    assert (deep == flat).all()
