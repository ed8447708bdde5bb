"""Inputs of the user's own for ``parity``: an .npz, or a folder of images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Preprocessing, TensorSpec
from coordatt_deploy.data.archives import ArchiveError, holds_one_array, read_npy, read_npz
from coordatt_deploy.data.images import find_images, load_image, preprocess
from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.files import open_regular

UNREADABLE: Final = (OSError, ArchiveError)
SLACK: Final = 0.01  # of the range: resampling in other tools overshoots a little


@dataclass(frozen=True, slots=True)
class Cases:
    """Inputs in the reference's layout.

    Attributes:
        names: One per case.
        feeds: Per input of the model one array per case, batch first.
    """

    names: tuple[str, ...]
    feeds: Mapping[str, list[NumberArray]]


def read_inputs(source: Path, inputs: Sequence[TensorSpec], preprocessing: Preprocessing, at_once: int = 1) -> Cases:
    """Read the cases at *source*.

    Args:
        source: An ``.npz`` with one array per input of the model, by its name, (cases, C, H, W); or a folder of images,
            which go through the model's preprocessing. Of a network that takes several at once, images that do not
            fill the last case are followed by the first ones again, so that each is judged.
        inputs: Of the reference: NCHW, batch first; None for a dynamic axis.
        preprocessing: Of the model.
        at_once: Images of a case where the batch is dynamic: the smallest that the model takes.

    Raises:
        UsageError: No such file; names, shapes or types that do not fit; NaN; values that no image gives.
    """
    cases = _images(source, inputs, preprocessing, at_once) if source.is_dir() else _archive(source, inputs, at_once)
    for spec in inputs:
        for name, value in zip(cases.names, cases.feeds[spec.name], strict=True):
            _check(f"{source.name}: {spec.name}, case {name}", value, spec, preprocessing)
    return cases


def _images(folder: Path, inputs: Sequence[TensorSpec], preprocessing: Preprocessing, at_once: int) -> Cases:
    if len(inputs) != 1:
        wanted = ", ".join(spec.name for spec in inputs)
        raise UsageError(f"the model takes {wanted}; a folder of images gives one of them: give an .npz with all")
    found = find_images(folder)
    names = [path.relative_to(folder).as_posix() for path in found]
    batch = inputs[0].shape[0] or at_once
    groups = [[(at + place) % len(found) for place in range(batch)] for at in range(0, len(found), batch)]
    values = [np.stack([preprocess(load_image(found[at]), preprocessing) for at in group]) for group in groups]
    return Cases(tuple(", ".join(names[at] for at in group) for group in groups), {inputs[0].name: list(values)})


def read_archive(path: Path, wanted: Sequence[str]) -> dict[str, NumberArray]:
    """Read the arrays of a user's ``.npz``, which holds one for each input of the model; a ``.npy`` holds the only one.

    Args:
        path: Of the file.
        wanted: Names of the inputs.

    Raises:
        UsageError: It holds one array without a name for a model of several inputs, one that the model does not take,
            or lacks one that it takes.
        OSError, ArchiveError: It cannot be read (``UNREADABLE``).
    """
    with open_regular(path, follow_link=True) as stream:
        if not holds_one_array(stream):
            arrays = read_npz(stream)
        elif len(wanted) == 1:
            return {wanted[0]: read_npy(stream)}
        else:
            raise UsageError(f"{path} holds one array without a name; save it with np.savez(…, {wanted[0]}=array)")
    for name in arrays:
        if name not in wanted:
            raise UsageError(
                f"{path.name} holds an array {name!r}, the model has no such input; {nearest(name, wanted)}"
            )
    for name in wanted:
        if name not in arrays:
            raise UsageError(f"{path.name} has no array {name!r}; the model takes: {', '.join(wanted)}")
    return arrays


def _archive(path: Path, inputs: Sequence[TensorSpec], at_once: int) -> Cases:
    try:
        arrays = read_archive(path, [spec.name for spec in inputs])
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}; give an .npz, or a folder of images") from None
    except UNREADABLE as error:
        raise UsageError(f"{path} cannot be read as .npz: {error}") from None
    feeds = {spec.name: _split(path.name, arrays[spec.name], spec, at_once) for spec in inputs}
    counts = {name: len(values) for name, values in feeds.items()}
    if len(set(counts.values())) != 1 or not min(counts.values()):
        listed = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise UsageError(
            f"{path.name} must hold the same number of cases of every input, at least one; it holds {listed}"
        )
    return Cases(tuple(f"{path.stem}[{index}]" for index in range(next(iter(counts.values())))), feeds)


def _split(file: str, array: NumberArray, spec: TensorSpec, at_once: int) -> list[NumberArray]:
    batch = spec.shape[0] or at_once
    expected = "(cases, " + ", ".join("any" if size is None else str(size) for size in spec.shape[1:]) + ")"
    if array.dtype.kind not in "fiu" or (array.dtype.kind == "f") != spec.dtype.startswith("float"):
        raise UsageError(f"{file}: {spec.name} is {array.dtype}, the model takes {spec.dtype}; convert it")
    if not fits(array.shape, spec.shape):
        hint = ""
        if array.ndim == 4 and fits((array.shape[0], array.shape[3], *array.shape[1:3]), spec.shape):
            hint = "; it looks like channels last: transpose it with array.transpose(0, 3, 1, 2)"
        raise UsageError(f"{file}: {spec.name} has shape {array.shape}, expected {expected}{hint}")
    if len(array) % batch:
        raise UsageError(f"{file}: {spec.name} holds {len(array)} images, the model takes {batch} at once")
    return [array[at : at + batch].astype(spec.dtype) for at in range(0, len(array), batch)]


def fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    """Whether an array of *shape*, cases first, holds values of the input of shape *wanted*; None is any size."""
    return len(shape) == len(wanted) and all(
        expected in (None, size) for size, expected in zip(shape[1:], wanted[1:], strict=True)
    )


def _check(where: str, value: NumberArray, spec: TensorSpec, preprocessing: Preprocessing) -> None:
    bad = int(np.count_nonzero(~np.isfinite(value)))
    if bad:
        raise UsageError(f"{where} holds {bad} values that are NaN or infinite; nothing can be compared on them")
    if value.ndim != 4 or value.shape[1] != len(preprocessing.mean) or not spec.dtype.startswith("float"):
        return
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    ends = (np.array(preprocessing.input_range)[:, None] - mean) / std
    low, high = float(ends.min()), float(ends.max())
    slack = SLACK * (high - low)
    found = float(value.min()), float(value.max())
    if found[0] < low - slack or found[1] > high + slack:
        raise UsageError(
            f"{where} lies between {found[0]:.4g} and {found[1]:.4g}; preprocessed images of this model lie between"
            f" {low:.4g} and {high:.4g}: scale and normalise the pixels first, or give the folder of images itself"
        )
