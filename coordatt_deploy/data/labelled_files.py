"""Labelled images of other kinds than class folders.

    DIR/images/a.jpg   DIR/masks/a.png   …      the mask of an image has its path without the ending
    DIR/labels.json                             {"a.jpg": any JSON value, …}, paths relative to DIR
    DIR/labels.csv                              image,column,column,…: an image's label is a list of its rows
    FILE.npz                                    images with labels or masks beside them, the first axis being the image

An archive holds ``images``, (N, H, W, 3) or (N, H, W) uint8, or, under the name of the model's input, tensors that have
been through its preprocessing, (N, C, H, W) float32. Beside them it holds ``masks``, (N, H, W) whole numbers, or
``labels``: (N,) whole numbers are classes, everything else is for a metric of the user's own.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, cast

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.data.archives import ArchiveError, read_npz
from coordatt_deploy.data.dataset import (
    NO_CLASS,
    Dataset,
    InputTensor,
    LabelKind,
    LabelledImage,
    LabelsBy,
    LabelValue,
    Pixels,
    listed,
)
from coordatt_deploy.data.images import find_images
from coordatt_deploy.documents import parse
from coordatt_deploy.errors import UsageError
from coordatt_deploy.files import open_regular
from coordatt_deploy.plurals import counted, verb

IMAGES: Final = "images"
MASKS: Final = "masks"
LABELS: Final = "labels"
LABEL_FILES: Final = ("labels.json", "labels.csv")


def of_masks(root: Path) -> Dataset:
    """Return the images of ``root/images`` that have a mask in ``root/masks``.

    Raises:
        UsageError: There is no pair.
    """
    images = {path.relative_to(root / IMAGES).with_suffix("").as_posix(): path for path in find_images(root / IMAGES)}
    masks = {path.relative_to(root / MASKS).with_suffix("").as_posix(): path for path in find_images(root / MASKS)}
    both = sorted(images.keys() & masks.keys())
    if not both:
        raise UsageError(
            f"no image of {root / IMAGES} has a mask in {root / MASKS}: {next(iter(images))} and {next(iter(masks))}"
            " are called otherwise; the mask of an image has its name, whatever the ending"
        )
    pairs = ((images, masks, "image", "mask"), (masks, images, "mask", "image"))
    notes = [
        f"{counted(len(lonely), one)} {verb(len(lonely), 'has')} no {other} and {verb(len(lonely), 'is')} left out:"
        f" {listed(lonely)}"
        for mine, theirs, one, other in pairs
        if (lonely := sorted(mine.keys() - theirs.keys()))
    ]
    found = tuple(
        LabelledImage(images[stem].relative_to(root).as_posix(), NO_CLASS, images[stem], masks[stem]) for stem in both
    )
    return Dataset(str(root), found, None, len(found), tuple(notes), LabelKind.MASKS)


def of_labels_file(path: Path) -> Dataset:
    """Return the images that a labels file names, each with what it says of it.

    Raises:
        UsageError: It cannot be read, names no image, or one outside its folder.
    """
    try:
        with open_regular(path, follow_link=True) as stream:
            text = stream.read().decode("utf-8-sig")
        labels = dict(_from_rows(text, path.name)) if path.suffix == ".csv" else _from_json(text, path.name)
    except (OSError, ValueError, RecursionError, csv.Error) as error:
        raise UsageError(f"{path} cannot be read: {error}") from None
    if not labels:
        raise UsageError(f"{path} names no image")
    root = path.parent
    for name in labels:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UsageError(f"{path.name} names {name}; images are named by their path below {root}")
    found = tuple(LabelledImage(name, NO_CLASS, root / name, value) for name, value in sorted(labels.items()))
    if not any((root / name).is_file() for name in labels):
        named = f"{counted(len(labels), 'image')} that {path.name} names"
        raise UsageError(f"none of the {named} is in {root}: {listed([*labels])}")
    return Dataset(str(root), found, None, len(found), (), LabelKind.VALUES)


def _from_json(text: str, name: str) -> dict[str, LabelValue]:
    document = parse(text)
    if not isinstance(document, dict):
        raise UsageError(f'{name} must hold an object of image paths and labels: {{"a.jpg": …}}')
    return {str(key): cast(LabelValue, value) for key, value in document.items()}


def _from_rows(text: str, name: str) -> Iterator[tuple[str, LabelValue]]:
    rows = csv.DictReader(text.splitlines())
    columns = list(rows.fieldnames or ())
    if len(columns) < 2:
        raise UsageError(f"{name} must begin with the names of its columns, of which the first holds the image")
    found: dict[str, list[LabelValue]] = {}
    for row in rows:
        image = row.pop(columns[0], None)
        if not image or None in row or None in row.values():
            raise UsageError(f"{name}, line {rows.line_num}: expected {len(columns)} values, {', '.join(columns)}")
        found.setdefault(image, []).append({key: _number(value) for key, value in row.items()})
    yield from found.items()


def _number(text: str) -> LabelValue:
    try:
        return float(text)
    except ValueError:
        return text


def of_archive(path: Path, classes: int | None, tensor: TensorSpec | None) -> Dataset:
    """Return the images of an archive.

    Args:
        path: Of the ``.npz``.
        classes: Number of the model's logits; None where it has none.
        tensor: The model's input.

    Raises:
        UsageError: It cannot be read, or its arrays do not belong together.
    """
    try:
        with open_regular(path, follow_link=True) as stream:
            arrays = read_npz(stream)
    except FileNotFoundError:
        raise UsageError(f"there is no dataset at {path}") from None
    except (OSError, ArchiveError) as error:
        hint = "; labels of different lengths go into a labels.json" if "plain numbers" in str(error) else ""
        raise UsageError(f"{path} cannot be read as .npz: {error}{hint}") from None
    sources = _sources(path.name, arrays, tensor)
    given = [name for name in (MASKS, LABELS) if name in arrays]
    if len(given) != 1:
        raise UsageError(f"{path.name} holds {listed([*arrays])}; beside the images it must hold labels, or masks")
    truth = arrays[given[0]]
    if truth.ndim == 0 or len(truth) != len(sources) or not sources:
        raise UsageError(f"{path.name} holds {len(sources)} images and {given[0]} of shape {truth.shape}: one for each")
    names = [f"{path.stem}[{index}]" for index in range(len(sources))]
    if given[0] == MASKS:
        if truth.ndim != 3 or truth.dtype.kind not in "iub":
            raise UsageError(
                f"{path.name}: masks are {truth.dtype} {truth.shape}; expected whole numbers, (N, H, W), the index of a"
                " class for each pixel"
            )
        kind, labels = LabelKind.MASKS, [NO_CLASS] * len(sources)
    elif truth.ndim == 1 and truth.dtype.kind in "iu":
        kind, labels = LabelKind.CLASSES, [int(value) for value in truth]
        _check_range(path.name, truth, classes)
    else:
        kind, labels = LabelKind.VALUES, [NO_CLASS] * len(sources)
    truths: Sequence[NumberArray | None] = [None] * len(sources) if kind is LabelKind.CLASSES else list(truth)
    images = tuple(LabelledImage(*fields) for fields in zip(names, labels, sources, truths, strict=True))
    return Dataset(str(path), images, LabelsBy.INDEX if kind is LabelKind.CLASSES else None, len(images), (), kind)


def _check_range(name: str, labels: NumberArray, classes: int | None) -> None:
    if classes is not None and (labels.min() < 0 or labels.max() >= classes):
        raise UsageError(
            f"{name}: labels from {labels.min()} to {labels.max()}; the model's {classes} classes are numbered 0 to"
            f" {classes - 1}"
        )


def _sources(name: str, arrays: Mapping[str, NumberArray], tensor: TensorSpec | None) -> list[Pixels | InputTensor]:
    if IMAGES in arrays and arrays[IMAGES].dtype == np.uint8:
        images = cast(NDArray[np.uint8], arrays[IMAGES])
        if images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3):
            return [Pixels(pixels) for pixels in images]
        hint = "; their channels come last" if images.ndim == 4 and images.shape[1] == 3 else ""
        raise UsageError(f"{name}: images have shape {images.shape}; expected (N, H, W, 3), or (N, H, W) of grey{hint}")
    if tensor is not None and tensor.name in arrays:
        values = arrays[tensor.name]
        fits = values.ndim == len(tensor.shape) and all(
            size in (None, found) for size, found in zip(tensor.shape[1:], values.shape[1:], strict=True)
        )
        if values.dtype.kind != "f" or not fits:
            raise UsageError(f"{name}: {tensor.name} is {values.dtype} {values.shape}; the model takes {tensor.shape}")
        if not np.isfinite(values).all():
            raise UsageError(f"{name}: {tensor.name} holds NaN or infinity")
        return [InputTensor(value.astype(np.float32)) for value in values]
    own = "" if tensor is None else f", or {tensor.name!r}: preprocessed tensors of float32"
    held = ", ".join(f"{key} ({array.dtype})" for key, array in arrays.items()) or "nothing"
    raise UsageError(f"{name} holds {held}; expected 'images' of uint8{own}")
