"""Masks: the index of a class for every pixel, 255 for pixels that count for nobody.

A mask goes the way of its image: resized (nearest, so that no class is invented), cut, and laid on ignored pixels where
the image is laid on a colour. Then each pixel of the model's output takes the mask's pixel under its centre.
"""

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Preprocessing
from coordatt_deploy.data.dataset import FileBytes, InputTensor, LabelledImage, LabelValue
from coordatt_deploy.data.images import decode_image, fit, load_image
from coordatt_deploy.errors import UsageError

IGNORED: Final = 255
INDEXED: Final = frozenset({"1", "L", "P", "I", "I;16", "I;16B", "I;16L"})  # Pillow's modes of one number per pixel


def fitted_mask(image: LabelledImage, size: tuple[int, int], preprocessing: Preprocessing) -> NDArray[np.int64]:
    """Return the mask of *image* as its model sees it.

    Args:
        image: With a mask as its truth.
        size: (H, W) of the image itself.
        preprocessing: That it goes through.

    Returns:
        (H, W) of the model's input; of a tensor, which has been preprocessed, the mask as it is.

    Raises:
        UsageError: The mask cannot be read, or is not of the image's size.
    """
    mask = read_mask(image.truth)
    if mask.shape != size:
        raise UsageError(f"its mask is {mask.shape[0]}x{mask.shape[1]}, the image {size[0]}x{size[1]}")
    if isinstance(image.source, InputTensor):
        return mask
    nearest = replace(preprocessing, resize="nearest")
    return np.asarray(fit(Image.fromarray(mask.astype(np.int32)), nearest, IGNORED)).astype(np.int64)


def read_mask(source: Path | FileBytes | NumberArray | LabelValue) -> NDArray[np.int64]:
    """Return a mask, (H, W).

    Raises:
        UsageError: It is no image of one number per pixel.
    """
    if isinstance(source, np.ndarray):
        return source.astype(np.int64)
    if isinstance(source, FileBytes):
        path, image = source.path, decode_image(source.data, source.path)
    elif isinstance(source, Path):
        path, image = source, load_image(source)
    else:
        raise TypeError(f"a {type(source).__name__} is no mask")
    if image.mode not in INDEXED:
        raise UsageError(
            f"its mask {path.name} is {image.mode}; expected the index of a class per pixel (a grey or palette PNG)"
        )
    return np.asarray(image).astype(np.int64)


def sampled(mask: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.int64]:
    """Return the pixels of *mask*, (H, W), under the centres of a grid of *size* (h, w) over it."""
    if mask.shape == size:
        return mask
    rows, columns = ((np.arange(count) + 0.5) * length / count for count, length in zip(size, mask.shape, strict=True))
    return np.asarray(mask[rows.astype(np.int64)[:, None], columns.astype(np.int64)[None, :]], np.int64)


def check_classes(mask: NDArray[np.int64], classes: int) -> None:
    """Refuse a mask with classes that the model does not have.

    Raises:
        UsageError: It has; the text names them.
    """
    strangers = np.setdiff1d(mask, [*range(classes), IGNORED])
    if strangers.size:
        raise UsageError(
            f"its mask holds class {', '.join(map(str, strangers[:3]))}; the model's {classes} classes are numbered 0"
            f" to {classes - 1}, and {IGNORED} is ignored"
        )
