"""From an image file to the input tensor, with Pillow and NumPy alone: what an app has to reproduce on the phone.

    rgb    = 8-bit RGB of the image; grey replicated, transparency laid over black
    fitted = resize(rgb), centre-cropped if asked
    tensor = (low + fitted / 255 * (high - low) - mean) / std,   (3, H, W) float32, per channel of the tensor

Resizing happens in 8 bits with Pillow's own filters, which widen with the reduction (antialiasing). The last line is
computed in float64 once per pixel value and rounded to float32, so the same pixels give the same bits everywhere.
Transparency goes over black because that is what a phone's premultiplied bitmap shows when its alpha is ignored; the
colour that a file keeps under a transparent pixel is anybody's guess.
"""

import math
import os
import warnings
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from coordatt_deploy.artifact_specs import Preprocessing
from coordatt_deploy.errors import UsageError
from coordatt_deploy.files import open_regular

EXTENSIONS: Final = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")

PNG_MODES: Final = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16"})

_FILTERS: Final = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "nearest": Image.Resampling.NEAREST,
}


def preprocess(image: Image.Image, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Turn an image into the input tensor; the equation stands at the top of this module.

    Centre cropping resizes the image so that it just covers ``size / crop_ratio`` (rounded down), its longer side
    rounded down as well, and cuts ``size`` out of the middle (halves of a pixel rounded to even).

    Args:
        image: Of any Pillow mode but floating point; sixteen-bit grey values are rounded to eight bits.
        preprocessing: ``mean`` and ``std`` follow the channels of the tensor: blue first where ``colour`` is BGR.

    Returns:
        (3, H, W) float32, contiguous, with H and W from ``preprocessing.size``.

    Raises:
        UsageError: The pixels of the image have no known range.
    """
    fitted = _fit(_to_rgb(image), preprocessing)
    pixels = np.asarray(fitted, dtype=np.uint8)  # (H, W, 3)
    if preprocessing.colour == "BGR":
        pixels = pixels[..., ::-1]
    low, high = preprocessing.input_range
    scaled = low + np.arange(256, dtype=np.float64) / 255 * (high - low)
    table = (scaled[None, :] - np.array(preprocessing.mean)[:, None]) / np.array(preprocessing.std)[:, None]
    channels = [values[pixels[..., index]] for index, values in enumerate(table.astype(np.float32))]
    return np.stack(channels)


def load_image(path: Path, *, follow_link: bool = True) -> Image.Image:
    """Read an image file as a person sees it: first frame, turned upright by its EXIF orientation.

    Args:
        path: Of the file.
        follow_link: Whether it may be a link, as a user's own images may; those of a bundle may not.

    Raises:
        UsageError: It is missing, no image, a pipe, damaged or truncated, or claims more pixels than Pillow thinks
            safe.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of the size that it refuses; a phone's 108-megapixel photo lies between the two.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with open_regular(path, follow_link=follow_link) as stream, Image.open(stream) as image:
                image.load()
                return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise UsageError(f"there is no image {path}") from None
    except UnidentifiedImageError:
        raise UsageError(f"{path} is not an image in a format that Pillow reads") from None
    except Image.DecompressionBombError as error:
        raise UsageError(f"{path} is refused, it would take too much memory: {error}") from None
    except Exception as error:  # a damaged file makes Pillow's decoders raise many kinds
        raise UsageError(f"cannot read the image {path}, is it damaged or truncated? ({error})") from error


def find_images(folder: Path) -> tuple[Path, ...]:
    """Return the image files in *folder* and below, sorted by their relative path; hidden ones are left out.

    Raises:
        UsageError: *folder* is no folder, or holds no image.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder} is no folder; expected one with images in it")
    found = []
    visited = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        real = Path(root).resolve()
        if real in visited:  # a link to a folder above
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(root, name) for name in files if _is_image(name)]
    if not found:
        raise UsageError(f"{folder} holds no image; expected files that end in {', '.join(EXTENSIONS)}")
    return tuple(sorted(found, key=lambda path: path.relative_to(folder).as_posix()))


def as_png(image: Image.Image) -> Image.Image:
    """Return the image as a PNG file can hold it: other colour spaces as the RGB that ``preprocess`` makes of them."""
    return image if image.mode in PNG_MODES else _to_rgb(image)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(EXTENSIONS)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F":
        raise UsageError("the image has floating-point pixels of unknown range; save it with 8 or 16 bits per channel")
    if image.mode == "I" or image.mode.startswith("I;"):
        return _from_sixteen_bits(image)
    if image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(opaque, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def _from_sixteen_bits(image: Image.Image) -> Image.Image:
    """Pillow's own conversion cuts everything above 255 off."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise UsageError(
            f"the image has pixels from {values.min()} to {values.max()}; expected 0 to 65535 of a 16-bit image"
        )
    return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")


def _fit(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    height, width = preprocessing.size
    resample = _FILTERS[preprocessing.resize]
    if preprocessing.crop == "none":
        return image.resize((width, height), resample)
    covered_height = math.floor(height / preprocessing.crop_ratio)
    covered_width = math.floor(width / preprocessing.crop_ratio)
    if covered_height * image.width >= covered_width * image.height:
        covering = (image.width * covered_height // image.height, covered_height)
    else:
        covering = (covered_width, image.height * covered_width // image.width)
    left, top = round((covering[0] - width) / 2), round((covering[1] - height) / 2)
    return image.resize(covering, resample).crop((left, top, left + width, top + height))
