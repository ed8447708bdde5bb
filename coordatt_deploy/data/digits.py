"""The handwritten digits that travel with the package: what the embedded default is tested and calibrated on.

The digits are scikit-learn's ``load_digits``: 1,797 images of 8x8 pixels with 17 grey levels, white ink on black, from
"Optical Recognition of Handwritten Digits" (E. Alpaydin, C. Kaynak, UCI Machine Learning Repository, CC BY 4.0,
https://doi.org/10.24432/C50P49). Three splits are packaged, at 8x8, in 8-bit grey:

    held_out      every image that training never saw
    golden        the first two of each digit in held_out
    calibration   twenty of each digit from the training images

Users meet them as 96x96 images (``render``). Upsampling is Pillow's bilinear rule, the same that preprocessing applies
to an image of another size, so an 8x8 original and its rendering give the same tensor, bit for bit. Reading them
takes NumPy and Pillow; neither torch nor scikit-learn is needed, but for ``read_all``.
"""

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.errors import MissingDependencyError

SplitName = Literal["golden", "held_out", "calibration"]

DATA_DIR: Final = Path(__file__).parent
LABELS: Final = tuple("0123456789")
NATIVE_SIZE: Final = (8, 8)
RENDERED_SIZE: Final = (96, 96)
GOLDEN_PER_DIGIT: Final = 2


@dataclass(frozen=True, slots=True, eq=False)
class DigitSplit:
    """Some of the digits, in a fixed order.

    Attributes:
        pixels: (N, 8, 8) uint8, 0 for paper and 255 for full ink.
        labels: (N,) int64, the digit that was written.
        indices: (N,) int64, the row of each image in ``load_digits``.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    indices: NDArray[np.int64]

    def __post_init__(self) -> None:
        count = len(self.labels)
        if self.pixels.shape != (count, *NATIVE_SIZE) or self.indices.shape != (count,):
            raise ValueError(
                f"expected pixels ({count}, 8, 8) and indices ({count},) beside {count} labels,"
                f" got {self.pixels.shape} and {self.indices.shape}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def images(self) -> list[Image.Image]:
        """Return the images as a user has them: 8-bit grey, 96x96."""
        return [render(pixels) for pixels in self.pixels]

    def take(self, rows: NumberArray) -> "DigitSplit":
        """Return the images at *rows*, in that order."""
        return DigitSplit(self.pixels[rows], self.labels[rows], self.indices[rows])


def render(pixels: NDArray[np.uint8]) -> Image.Image:
    """Upsample one digit, (8, 8) uint8, to a 96x96 image in mode "L"."""
    height, width = RENDERED_SIZE
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)


def first_of_each(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the rows of the first *count* images of every digit, in ascending order."""
    rows = [np.flatnonzero(labels == digit)[:count] for digit in range(len(LABELS))]
    return np.sort(np.concatenate(rows))


def read_split(name: SplitName, *, folder: Path = DATA_DIR) -> DigitSplit:
    """Return a packaged split.

    Args:
        name: Which one; see the top of this module.
        folder: Where the ``.npz`` files are.
    """
    if name == "golden":
        held_out = read_split("held_out", folder=folder)
        return held_out.take(first_of_each(held_out.labels, GOLDEN_PER_DIGIT))
    with np.load(folder / f"digits_{name}.npz", allow_pickle=False) as arrays:
        return DigitSplit(
            pixels=arrays["pixels"],
            labels=arrays["labels"].astype(np.int64),
            indices=arrays["indices"].astype(np.int64),
        )


def read_all() -> DigitSplit:
    """Return all 1,797 digits of scikit-learn, their 17 grey levels spread over 8 bits.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    try:
        # By name: everything else here is for boards, which have no scikit-learn.
        source = import_module("sklearn.datasets").load_digits()
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"all 1,797 digits come with {error.name}, which is not installed; run: pip install 'coordatt-deploy[all]'"
        ) from error
    return DigitSplit(
        pixels=np.rint(source.images * (255 / 16)).astype(np.uint8),
        labels=source.target.astype(np.int64),
        indices=np.arange(len(source.target)),
    )


def write_split(name: SplitName, split: DigitSplit, *, folder: Path = DATA_DIR) -> Path:
    """Write *split* so that ``read_split(name)`` finds it; the same split gives the same bytes."""
    path = folder / f"digits_{name}.npz"
    np.savez_compressed(
        path,
        allow_pickle=False,
        pixels=split.pixels,
        labels=split.labels.astype(np.uint8),
        indices=split.indices.astype(np.uint16),
    )
    return path
