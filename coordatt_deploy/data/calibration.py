"""Calibration data: images of the kind that the model will meet, checked before anything is measured on them.

A folder of images goes through the model's own preprocessing; an ``.npz`` of tensors, and a folder of ``.npy`` for
channels that no image has, must already have been through it. Ranges that were measured on the wrong data ruin an int8
model silently, so whatever is wrong is said: as an error where nothing good can come of it, as a note that reports
carry otherwise.

Of a preprocessed image, channel c can only lie between (low - mean_c) / std_c and (high - mean_c) / std_c. Tensors
outside were scaled or ordered otherwise; tensors that fill only a small part of it were not normalised.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Preprocessing, TensorSpec
from coordatt_deploy.data.arrays import UNREADABLE, fits, read_archive
from coordatt_deploy.data.digits import DigitSplit, read_split
from coordatt_deploy.data.images import find_images, load_image, preprocess
from coordatt_deploy.data.scenes import Scene, make_scene
from coordatt_deploy.errors import UsageError
from coordatt_deploy.plurals import counted, of_total, verb

Tensor = NDArray[np.float32]

ARRAY: Final = ".npy"

DIGITS: Final = "digits"
SCENES: Final = "scenes"
COUNT: Final = 200  # all of the packaged split; ranges change little beyond it
MINIMUM: Final = 8
RECOMMENDED: Final = 64
UNREADABLE_SHARE: Final = 0.1  # beyond it the folder is not what it was meant to be
NAMED: Final = 5  # files that a message lists
ALIKE: Final = 0.01  # share of the possible range that pixels must vary between images, in the mean
COVERED: Final = 0.6  # share of the possible range that the values of a whole set of photographs fill
ASIDE: Final = 16  # images that no range is measured on: the artifacts are judged on them
ASIDE_SHARE: Final = 5  # at most one in so many
SLACK: Final = 0.01  # of the range: resampling in other tools overshoots a little


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationSet:
    """Preprocessed inputs and how they were chosen.

    Attributes:
        source: The folder or file as it was named, or the name of what is packaged.
        arrays: Per input of the model (count, C, H, W), in the reference's layout.
        names: One per case.
        seed: Of the choice among more images than were asked for.
        notes: What is not as it should be, but no reason to stop.
        aside: Cases of the same kind that nothing is measured on, to judge the result by.
    """

    source: str
    arrays: dict[str, NumberArray]
    names: tuple[str, ...]
    seed: int
    notes: tuple[str, ...] = ()
    aside: "CalibrationSet | None" = None
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        object.__setattr__(self, "fingerprint", digest.hexdigest())

    def __len__(self) -> int:
        return len(self.names)

    def feeds(self, batch: int = 1) -> Iterator[dict[str, NumberArray]]:
        """Yield the cases in batches; what does not fill the last one is left out."""
        for start in range(0, len(self) - batch + 1, batch):
            yield {name: array[start : start + batch] for name, array in self.arrays.items()}

    def first(self, count: int) -> "CalibrationSet":
        """Return the first *count* cases; they are in a random order already."""
        return self._part(slice(0, count))

    def split(self, count: int) -> "CalibrationSet":
        """Return at most *count* cases, and what is set aside beyond them, or of them where there are no more."""
        aside = min(ASIDE, len(self) // ASIDE_SHARE)
        kept = min(count, len(self) - aside)
        return replace(self._part(slice(0, kept)), aside=self._part(slice(kept, kept + aside)) if aside else None)

    def _part(self, rows: "slice[int, int, int]") -> "CalibrationSet":
        arrays = {name: np.ascontiguousarray(array[rows]) for name, array in self.arrays.items()}
        return CalibrationSet(self.source, arrays, self.names[rows], self.seed, self.notes)


def load_calibration(
    source: Path, inputs: Sequence[TensorSpec], preprocessing: Preprocessing, *, count: int = COUNT, seed: int = 0
) -> CalibrationSet:
    """Read calibration data.

    Args:
        source: A folder of images (subfolders too), an ``.npz`` with one array per input, (count, C, H, W), or, where
            no image gives the channels, a folder of ``.npy``, (C, H, W).
        inputs: Of the model, in the reference's layout.
        preprocessing: The model's own.
        count: How many to use at most.
        seed: Of the choice.

    Raises:
        UsageError: The data cannot be what it is meant to be; the text says what is wrong with it.
    """
    _check_count(count)
    if not source.exists():
        raise UsageError(f"there is no calibration data at {source}; give a folder of images, or an .npz of tensors")
    read = _from_folder if source.is_dir() else _from_archive
    return read(source, inputs, preprocessing, count + ASIDE, seed).split(count)


def digits_calibration(
    inputs: Sequence[TensorSpec], preprocessing: Preprocessing, *, count: int = COUNT, seed: int = 0
) -> CalibrationSet:
    """Return the calibration split of the packaged digits: training images that no accuracy is measured on."""
    _check_count(count)
    spec = _image_input(inputs, preprocessing, DIGITS)
    split = read_split("calibration")
    data = _digits(split.take(np.random.default_rng(seed).permutation(len(split))[:count]), spec, preprocessing, seed)
    aside = _digits(read_split("golden"), spec, preprocessing, seed)
    return replace(_checked(data, spec, preprocessing, tensors=False), aside=aside)


def scenes_calibration(
    inputs: Sequence[TensorSpec], preprocessing: Preprocessing, *, count: int = COUNT, seed: int = 0
) -> CalibrationSet:
    """Return digits on photographs: training scenes that no accuracy is measured on.

    Raises:
        MissingDependencyError: scikit-learn, which brings the photographs, is not installed.
    """
    _check_count(count)
    spec = _image_input(inputs, preprocessing, SCENES)
    data = _scenes([make_scene("train", number) for number in range(count)], spec, preprocessing, seed)
    # Of the same parts of the photographs, as what is set aside of a folder is: others reach beyond the ranges.
    further = [make_scene("train", number) for number in range(count, count + ASIDE)]
    aside = _scenes(further, spec, preprocessing, seed)
    return replace(_checked(data, spec, preprocessing, tensors=False), aside=aside)


def _scenes(scenes: Sequence[Scene], spec: TensorSpec, preprocessing: Preprocessing, seed: int) -> CalibrationSet:
    array = np.stack([preprocess(Image.fromarray(scene.pixels), preprocessing) for scene in scenes])
    return CalibrationSet(SCENES, {spec.name: array}, tuple(scene.name for scene in scenes), seed)


class PackagedCalibration(Protocol):
    """Gives the calibration data that travels with the package."""

    def __call__(
        self, inputs: Sequence[TensorSpec], preprocessing: Preprocessing, *, count: int, seed: int
    ) -> CalibrationSet:
        """Return *count* cases at most."""


PACKAGED: Final[Mapping[str, PackagedCalibration]] = {DIGITS: digits_calibration, SCENES: scenes_calibration}


def _check_count(count: int) -> None:
    if count < MINIMUM:
        raise UsageError(f"--calibration-count is {count}; ranges need at least {MINIMUM} images, better {COUNT}")


def _digits(split: DigitSplit, spec: TensorSpec, preprocessing: Preprocessing, seed: int) -> CalibrationSet:
    array = np.stack([preprocess(image, preprocessing) for image in split.images()])
    return CalibrationSet(DIGITS, {spec.name: array}, tuple(f"digit_{index}" for index in split.indices), seed)


def _from_folder(
    folder: Path, inputs: Sequence[TensorSpec], preprocessing: Preprocessing, count: int, seed: int
) -> CalibrationSet:
    if not preprocessing.takes_images and any(folder.glob(f"*{ARRAY}")):
        return _from_arrays(folder, inputs, preprocessing, count, seed)
    spec = _image_input(inputs, preprocessing, str(folder))
    found = find_images(folder)
    order = np.random.default_rng(seed).permutation(len(found))
    values: list[NDArray[np.float32]] = []
    names: list[str] = []
    unreadable: list[str] = []
    for index in order:
        if len(values) == count:
            break
        name = found[index].relative_to(folder).as_posix()
        try:
            values.append(preprocess(load_image(found[index]), preprocessing))
            names.append(name)
        except UsageError as error:
            unreadable.append(f"{name} ({error})")
    tried = len(values) + len(unreadable)
    notes = []
    if unreadable:
        listed = _listed(unreadable)
        if len(unreadable) > UNREADABLE_SHARE * tried or not values:
            raise UsageError(f"{folder}: {of_total(len(unreadable), tried, 'image')} cannot be read: {listed}")
        notes.append(
            f"{of_total(len(unreadable), tried, 'image')} could not be read and"
            f" {verb(len(unreadable), 'was')} replaced: {listed}"
        )
    data = CalibrationSet(str(folder), {spec.name: np.stack(values)}, tuple(names), seed, tuple(notes))
    return _checked(data, spec, preprocessing, tensors=False)


def _from_archive(
    path: Path, inputs: Sequence[TensorSpec], preprocessing: Preprocessing, count: int, seed: int
) -> CalibrationSet:
    try:
        arrays = read_archive(path, [spec.name for spec in inputs])
    except UNREADABLE as error:
        raise UsageError(f"{path} cannot be read as .npz ({error}); give a folder of images instead") from None
    return _checked_tensors(path, arrays, inputs, preprocessing, count, seed)


def _from_arrays(
    folder: Path, inputs: Sequence[TensorSpec], preprocessing: Preprocessing, count: int, seed: int
) -> CalibrationSet:
    """Read a folder of ``.npy`` files, each (C, H, W), for a network whose channels no image file gives."""
    if len(inputs) != 1:
        wanted = ", ".join(spec.name for spec in inputs)
        raise UsageError(f"the model takes {wanted}; a folder of arrays gives one of them: give an .npz with all")
    arrays = []
    for path in sorted(folder.glob(f"*{ARRAY}")):
        try:
            array = np.load(path, allow_pickle=False)
        except UNREADABLE as error:
            raise UsageError(f"{path} cannot be read as {ARRAY}: {error}") from None
        if not isinstance(array, np.ndarray) or not fits((1, *array.shape), inputs[0].shape):
            found = array.shape if isinstance(array, np.ndarray) else "an archive"
            raise UsageError(f"{path} holds {found}, expected {inputs[0].shape[1:]}")
        arrays.append(array)
    if len({array.shape for array in arrays}) != 1:
        raise UsageError(f"{folder} holds arrays of several sizes: {sorted({array.shape for array in arrays})}")
    return _checked_tensors(folder, {inputs[0].name: np.stack(arrays)}, inputs, preprocessing, count, seed)


def _checked_tensors(
    path: Path,
    arrays: dict[str, NumberArray],
    inputs: Sequence[TensorSpec],
    preprocessing: Preprocessing,
    count: int,
    seed: int,
) -> CalibrationSet:
    """Choose among preprocessed tensors, and look at their layout and values."""
    for spec in inputs:
        _check_layout(path.name, arrays[spec.name], spec)
    counts = {len(array) for array in arrays.values()}
    if len(counts) != 1:
        raise UsageError(f"{path.name} holds a different number of cases per input: {sorted(counts)}")
    order = np.random.default_rng(seed).permutation(counts.pop())[:count]
    chosen = {name: np.ascontiguousarray(array[order]) for name, array in arrays.items()}
    for name, array in chosen.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError(f"{path.name}: {name} holds NaN or infinity; no range can be measured on it")
    data = CalibrationSet(str(path), chosen, tuple(f"{path.stem}[{index}]" for index in order), seed)
    image = next((spec for spec in inputs if _is_image(spec, preprocessing)), None)
    if image is None:
        return data if len(data) >= MINIMUM else _too_few(data)
    return _checked(data, image, preprocessing, tensors=True)


def _check_layout(file: str, array: NumberArray, spec: TensorSpec) -> None:
    if array.dtype.kind in "iu" and spec.dtype.startswith("float"):
        raise UsageError(
            f"{file}: {spec.name} holds {array.dtype} pixels; it must have been through the model's preprocessing"
            f" ({spec.dtype}), or give the folder of images itself"
        )
    shape = "(count, " + ", ".join("any" if size is None else str(size) for size in spec.shape[1:]) + ")"
    if not fits(array.shape, spec.shape):
        channels_last = array.ndim == 4 and fits((array.shape[0], array.shape[3], *array.shape[1:3]), spec.shape)
        hint = "; it has the channels last: transpose it with array.transpose(0, 3, 1, 2)" if channels_last else ""
        raise UsageError(f"{file}: {spec.name} has shape {array.shape}, expected {shape}{hint}")


def _is_image(spec: TensorSpec, preprocessing: Preprocessing) -> bool:
    return len(spec.shape) == 4 and spec.shape[1] == len(preprocessing.mean)


def _image_input(inputs: Sequence[TensorSpec], preprocessing: Preprocessing, source: str) -> TensorSpec:
    if len(inputs) == 1 and _is_image(inputs[0], preprocessing) and preprocessing.takes_images:
        return inputs[0]
    wanted = ", ".join(f"{spec.name} {spec.shape}" for spec in inputs)
    raise UsageError(
        f"the model takes {wanted}; images of {source} give one (N, 3, H, W), or (N, 1, H, W) of grey: give an .npz"
        " with every input"
    )


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - NAMED} more" if len(items) > NAMED else ""
    return "; ".join(items[:NAMED]) + more


def _too_few(data: CalibrationSet) -> CalibrationSet:
    raise UsageError(
        f"{data.source} gives {counted(len(data), 'different image')}; ranges need at least {MINIMUM},"
        f" better {RECOMMENDED}"
    )


def _checked(data: CalibrationSet, spec: TensorSpec, preprocessing: Preprocessing, *, tensors: bool) -> CalibrationSet:
    """Look at the values themselves; copies are dropped."""
    notes = list(data.notes)
    data = _without_copies(data, spec, notes)
    if len(data) < MINIMUM:
        _too_few(data)
    if len(data) < RECOMMENDED:
        notes.append(f"only {counted(len(data), 'image')}: ranges are steadier from {RECOMMENDED} on")
    images = data.arrays[spec.name]
    bounds = _possible(preprocessing)
    width = float(bounds[:, 1].max() - bounds[:, 0].min())
    blank = [name for name, image in zip(data.names, images, strict=True) if np.ptp(image, axis=(1, 2)).max() == 0]
    if len(blank) > len(data) / 2:
        raise UsageError(
            f"{data.source}: {of_total(len(blank), len(data), 'image')} {verb(len(blank), 'is')} of one"
            f" colour each: {_listed(blank)}"
        )
    if blank:
        notes.append(f"{counted(len(blank), 'image')} {verb(len(blank), 'is')} of one colour each: {_listed(blank)}")
    spread = float(images.std(axis=0).mean())
    if spread < ALIKE * width:
        raise UsageError(
            f"{data.source}: all {len(data)} images are nearly alike (their pixels differ by {spread:.2g} in the mean,"
            f" of a possible {width:.3g}); ranges need images as different as those that the model will meet"
        )
    _check_values(data.source, images, bounds, notes, tensors=tensors)
    return CalibrationSet(data.source, data.arrays, data.names, data.seed, tuple(notes))


def _without_copies(data: CalibrationSet, spec: TensorSpec, notes: list[str]) -> CalibrationSet:
    first: dict[bytes, int] = {}
    copies = []
    for index, image in enumerate(data.arrays[spec.name]):
        original = first.setdefault(hashlib.sha256(np.ascontiguousarray(image).tobytes()).digest(), index)
        if original != index:
            copies.append(f"{data.names[index]} = {data.names[original]}")
    if not copies:
        return data
    notes.append(
        f"{of_total(len(copies), len(data), 'image')}"
        f" {'is a copy of another and counts' if len(copies) == 1 else 'are copies of others and count'}"
        f" once: {_listed(copies)}"
    )
    kept = sorted(first.values())
    arrays = {name: array[kept] for name, array in data.arrays.items()}
    return CalibrationSet(data.source, arrays, tuple(data.names[index] for index in kept), data.seed)


def _possible(preprocessing: Preprocessing) -> NDArray[np.float64]:
    """The least and greatest value of each channel of a preprocessed image, (C, 2)."""
    ends = np.array(preprocessing.input_range)[None, :]
    mean, std = np.array(preprocessing.mean)[:, None], np.array(preprocessing.std)[:, None]
    return np.sort((ends - mean) / std, axis=1)


def _check_values(
    source: str, images: NumberArray, bounds: NDArray[np.float64], notes: list[str], *, tensors: bool
) -> None:
    low, high = images.min(axis=(0, 2, 3)), images.max(axis=(0, 2, 3))
    slack = SLACK * np.ptp(bounds, axis=1)
    found = f"{low.min():.4g} to {high.max():.4g}"
    possible = f"{bounds[:, 0].min():.4g} to {bounds[:, 1].max():.4g}"
    if np.any(low < bounds[:, 0] - slack) or np.any(high > bounds[:, 1] + slack):
        turned = bounds[::-1]
        if len(bounds) == 3 and np.all(low >= turned[:, 0] - slack) and np.all(high <= turned[:, 1] + slack):
            raise UsageError(
                f"{source}: the values fit the model's preprocessing with red and blue exchanged; turn the channels"
                " round with array[:, ::-1]"
            )
        raise UsageError(
            f"{source}: values from {found}, but preprocessed images of this model lie within {possible}: scale and"
            " normalise the pixels first, or give the folder of images itself"
        )
    covered = float(high.max() - low.min()) / float(bounds[:, 1].max() - bounds[:, 0].min())
    if covered >= COVERED:
        return
    if tensors:
        raise UsageError(
            f"{source}: values from {found} fill only {covered:.0%} of the {possible} that the model's preprocessing"
            " gives; they look as if they had not been normalised"
        )
    notes.append(f"the images fill only {covered:.0%} of the possible range ({found} of {possible}): dark, or faded?")
