"""Convert images of any mode (palette, alpha, 16 bits, EXIF rotation) to upright RGB of 8 bits."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vlalign_utils.driver.texts import is_list

DEEP = ("I;16", "I;16L", "I;16B", "I;16N")  # 16 bits, one channel
CONVERTED = ("1", "L", "P", "CMYK", "YCbCr", "HSV")
ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
WHITE = (255, 255, 255, 255)


def check_images(images: Iterable[Any], optional: bool = False) -> list[Any]:
    """Check that `images` is a list of PIL images, one for each prompt, and return it as a list.

    With `optional` an item may have none. Raises TypeError for a single image, for a path, an array or a
    tensor, and for several images in one prompt; ValueError for an image without pixels.
    """
    if isinstance(images, Image.Image):
        raise TypeError("images is one PIL image: pass a list with one image for each prompt, [image]")
    if not is_list(images):
        raise TypeError(f"images is {_named(images)}, expected a list with one PIL image for each prompt")
    found = list(images)
    for i, image in enumerate(found):
        if image is None and optional:
            continue
        if isinstance(image, list | tuple):
            raise TypeError(
                f"images[{i}] is {_named(image)} of {len(image)}: one image for each prompt is supported, "
                "so pass the image itself"
            )
        if not isinstance(image, Image.Image):
            how = "open it with PIL.Image.open" if _is_path(image) else "make it one with Image.fromarray"
            how = "prepare prompts without an image by themselves" if image is None else how
            raise TypeError(f"images[{i}] is {_named(image)}, expected a PIL image: {how}")
        if 0 in image.size:
            raise ValueError(f"images[{i}] has no pixels: its size is {image.width} x {image.height}")
    return found


def as_rgb(image: Image.Image) -> Image.Image:
    """An image upright (as its EXIF orientation says), in RGB of 8 bits.

    An upright RGB image is returned as it is. Grey, palette, CMYK, YCbCr and HSV are converted as PIL
    does; what is transparent is laid over white; 16 bits ("I;16", "I") are scaled so that 65535 becomes 255.
    Raises ValueError where the range of the values is unknown: floats ("F"), "I" outside of 16 bits or
    within 8, and other modes.
    """
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode in ALPHA or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, WHITE), layer).convert("RGB")
    if image.mode == "RGB":
        return image
    if image.mode in DEEP or image.mode == "I":
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode not in CONVERTED:
        raise ValueError(
            f"an image has mode {image.mode!r}, whose range of values is not known: scale it to 8 bits "
            'and convert it to "RGB" or "L"'
        )
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    values = np.asarray(image).astype(np.int64)
    low, high = int(values.min()), int(values.max())
    if image.mode == "I" and (low < 0 or high > 65535 or 0 < high < 256):
        raise ValueError(
            f'an image of mode "I" has values from {low} to {high}, expected 16 bits (0 to 65535): scale it '
            'to 8 bits and convert it to "L"'
        )
    return ((values + 128) // 257).astype(np.uint8)  # rounded: 257 = 65535 / 255


def _is_path(image: Any) -> bool:
    return isinstance(image, str | bytes) or hasattr(image, "__fspath__")


def _named(value: Any) -> str:
    kind = type(value).__name__
    return f"{'an' if kind[0].lower() in 'aeiou' else 'a'} {kind}"
