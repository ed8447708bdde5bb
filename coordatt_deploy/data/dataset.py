"""What a dataset is: images with what is known of each, in a fixed order."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Preprocessing
from coordatt_deploy.data.digits import render
from coordatt_deploy.data.images import decode_image, load_image, preprocess
from coordatt_deploy.plurals import of_total

NO_CLASS: Final = -1

LabelValue = None | bool | int | float | str | Sequence["LabelValue"] | Mapping[str, "LabelValue"]
"""A label as JSON has it."""


class LabelsBy(enum.StrEnum):
    """How the folders of a dataset become classes."""

    NAME = "name"
    INDEX = "index"
    ORDER = "order"


class LabelKind(enum.StrEnum):
    """What is known of the images of a dataset."""

    CLASSES = "classes"
    """The index of one class for each."""
    MASKS = "masks"
    """The index of a class for every pixel."""
    VALUES = "values"
    """Something else, which only a metric of the user's own can read."""


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """An image in memory.

    Attributes:
        values: (H, W) or (H, W, 3) uint8.
        digit: Whether it is a packaged digit of 8x8, which users meet enlarged.
    """

    values: NDArray[np.uint8]
    digit: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class InputTensor:
    """What the model takes, (C, H, W) float32: it has been through preprocessing."""

    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class FileBytes:
    """What an image file held where it was read, for a machine that does not see the file.

    Attributes:
        path: Of the file there, for messages.
        data: All of its bytes.
    """

    path: Path
    data: bytes


@dataclass(frozen=True, slots=True, eq=False)
class LabelledImage:
    """One image and what is known of it.

    Attributes:
        name: Path relative to the dataset, or ``digit_17``.
        label: Index of its class; ``NO_CLASS`` where *truth* is what is known.
        source: A file, its bytes, or what is in memory.
        truth: The file, its bytes or the pixels of its mask, or the label of another kind.
    """

    name: str
    label: int
    source: Path | FileBytes | Pixels | InputTensor
    truth: Path | FileBytes | NumberArray | LabelValue = None

    def load(self) -> Image.Image:
        """Return the image.

        Raises:
            UsageError: The file is no image, or damaged.
        """
        if isinstance(self.source, Path):
            return load_image(self.source)
        if isinstance(self.source, FileBytes):
            return decode_image(self.source.data, self.source.path)
        if isinstance(self.source, InputTensor):
            raise TypeError(f"{self.name} is a tensor, no image")
        return render(self.source.values) if self.source.digit else Image.fromarray(self.source.values)

    def tensor(self, preprocessing: Preprocessing) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return the model's input, (C, H, W), and the (H, W) of the image that it comes from.

        Raises:
            UsageError: The file is no image, or damaged.
        """
        if isinstance(self.source, InputTensor):
            height, width = self.source.values.shape[1:]
            return self.source.values, (height, width)
        image = self.load()
        return preprocess(image, preprocessing), (image.height, image.width)


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Labelled images, in a fixed order.

    Attributes:
        source: As the user named it.
        images: In the order of their names.
        labels_by: How folders became classes; None where no folders name them.
        available: How many there were before ``limited``.
        notes: What the user should know: images outside class folders, files that are no images, empty classes.
        kind: What is known of the images.
    """

    source: str
    images: tuple[LabelledImage, ...]
    labels_by: LabelsBy | None
    available: int
    notes: tuple[str, ...] = ()
    kind: LabelKind = LabelKind.CLASSES

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Index of each image's class, (N,)."""
        return np.array([image.label for image in self.images], np.int64)

    @property
    def labelled_by(self) -> str:
        """How images got their labels, in a word: as folders did, or what kind of labels they are."""
        return self.kind.value if self.labels_by is None else self.labels_by.value

    def limited(self, count: int, seed: int) -> "Dataset":
        """Return *count* of the images, drawn at random without looking at their class."""
        if count >= len(self):
            return self
        chosen = np.sort(np.random.default_rng(seed).permutation(len(self))[:count])
        note = f"{of_total(count, len(self), 'image')}, drawn with seed {seed}"
        return replace(self, images=tuple(self.images[index] for index in chosen), notes=(*self.notes, note))


def listed(items: Sequence[object], most: int = 5) -> str:
    """Return the first *most* items as one text, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(map(str, items[:most])) + more
