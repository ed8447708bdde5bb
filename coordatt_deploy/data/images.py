"""From an image file to the input tensor, with Pillow and NumPy alone: what an app has to reproduce on the phone.

    pixels = 8-bit RGB of the image, grey replicated, or its grey; transparency laid over black
    fitted = resize(pixels), cut or laid on a border if asked
    tensor = (low + fitted / 255 * (high - low) - mean) / std,   (C, H, W) float32, per channel of the tensor

Resizing happens in 8 bits with Pillow's own filters, which widen with the reduction (antialiasing). The last line is
computed in float64 once per pixel value and rounded to float32, so the same pixels give the same bits everywhere.
Transparency goes over black because that is what a phone's premultiplied bitmap shows when its alpha is ignored; the
colour that a file keeps under a transparent pixel is anybody's guess.
"""

import io
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

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

    Sizes are rounded and images cut as timm and torchvision do it (``timm.data.transforms_factory``). *covered* is
    ``size / crop_ratio``, rounded down; halves of a pixel are rounded to even where something is cut off.

    * ``center``: the image is resized so that it just covers *covered*; its longer side is rounded down where *covered*
      is a square, to the nearest pixel otherwise;
    * ``squash``: it is stretched to *covered*;
    * ``border``: it is resized so that it just fits into *covered*, to the nearest pixel, and laid on the colour of the
      mean.

    Args:
        image: Of any Pillow mode but floating point; sixteen-bit grey values are rounded to eight bits.
        preprocessing: ``mean`` and ``std`` follow the channels of the tensor: blue first where ``colour`` is BGR.

    Returns:
        (C, H, W) float32, contiguous, with H and W from ``preprocessing.size``; C is 3, or 1 where ``colour`` is GREY.

    Raises:
        UsageError: The pixels of the image have no known range, or no image gives the channels of the tensor.
    """
    if not preprocessing.takes_images:
        raise UsageError(
            f"the model takes {len(preprocessing.mean)} channels, which no image file gives; give arrays in an .npz"
        )
    fitted = fit(as_grey(image) if preprocessing.colour == "GREY" else _to_rgb(image), preprocessing)
    return normalise(np.atleast_3d(np.asarray(fitted, dtype=np.uint8)), preprocessing)


def normalise(pixels: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Turn fitted pixels into the input tensor.

    Args:
        pixels: (H, W, C), red first where there are colours.
        preprocessing: For as many channels.

    Returns:
        (C, H, W) float32, contiguous.
    """
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
    return _decoded(path, lambda: open_regular(path, follow_link=follow_link))


def decode_image(data: bytes, path: Path) -> Image.Image:
    """Read the bytes of an image file as ``load_image`` reads the file.

    Args:
        data: All of them.
        path: Of the file that they come from, for messages.

    Raises:
        UsageError: See ``load_image``.
    """
    return _decoded(path, lambda: io.BytesIO(data))


def _decoded(path: Path, opened: Callable[[], BinaryIO]) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns at half of the size that it refuses; a phone's 108-megapixel photo lies between the two.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with opened() as stream, Image.open(stream) as image:
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


def as_grey(image: Image.Image) -> Image.Image:
    """Return the image in 8-bit grey; colours are weighted as ITU-R 601 says, grey stays what it is."""
    return _to_rgb(image).convert("L")


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


def fit(image: Image.Image, preprocessing: Preprocessing, fill: int | None = None) -> Image.Image:
    """Resize and cut an image; see ``preprocess``.

    Args:
        image: In the mode that it is to be in.
        preprocessing: What of it says how large, and how.
        fill: What is laid around an image; None for the colour of the mean, and black where it is too small to be cut.
    """
    height, width = preprocessing.size
    resample = _FILTERS[preprocessing.resize]
    if preprocessing.crop == "none":
        return image.resize((width, height), resample)
    covered = math.floor(width / preprocessing.crop_ratio), math.floor(height / preprocessing.crop_ratio)
    if preprocessing.crop == "squash":
        return _cut(image.resize(covered, resample), (width, height), fill or 0)
    if preprocessing.crop == "border":
        around = _mean_pixel(preprocessing) if fill is None else fill
        return _cut(image.resize(_scaled(image, covered, max), resample), (width, height), around)
    if covered[0] != covered[1]:
        covering = _scaled(image, covered, min)
    elif image.width <= image.height:
        covering = (covered[0], image.height * covered[0] // image.width)
    else:
        covering = (image.width * covered[1] // image.height, covered[1])
    return _cut(image.resize(covering, resample), (width, height), fill or 0)


def _scaled(image: Image.Image, covered: tuple[int, int], choose: Callable[[float, float], float]) -> tuple[int, int]:
    """The (width, height) of the image after reducing it by the ratio of one of its sides."""
    ratio = choose(image.height / covered[1], image.width / covered[0])
    return round(image.width / ratio), round(image.height / ratio)


def _mean_pixel(preprocessing: Preprocessing) -> int | tuple[int, ...]:
    """The colour that normalises to nearly 0, in the channels of the image."""
    low, high = preprocessing.input_range
    values = tuple(min(255, max(0, round(255 * (mean - low) / (high - low)))) for mean in preprocessing.mean)
    return values[0] if len(values) == 1 else values[::-1] if preprocessing.colour == "BGR" else values


def _cut(image: Image.Image, size: tuple[int, int], fill: int | tuple[int, ...]) -> Image.Image:
    """Cut (width, height) out of the middle; where the image is smaller, *fill* is laid around it first."""
    whole = max(image.width, size[0]), max(image.height, size[1])
    if whole != image.size:
        laid = Image.new(image.mode, whole, fill)
        laid.paste(image, ((whole[0] - image.width) // 2, (whole[1] - image.height) // 2))
        image = laid
    left, top = round((image.width - size[0]) / 2), round((image.height - size[1]) / 2)
    return image.crop((left, top, left + size[0], top + size[1]))
