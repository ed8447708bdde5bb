"""Labelled images: a folder with a folder of images for each class, or what travels with the package.

    DIR/cat/0001.jpg   DIR/dog/fluffy/7.png   …        the folder right below DIR names the class

(Other folders, and archives: ``labelled_files``.)

Folder names become classes in one of three ways, tried in this order unless one is asked for:

    name    each folder is called like one of the bundle's labels; case, blanks, - and _ make no difference
    index   each folder is called by the number of its class, counted from 0
    order   one folder per class, sorted by name as text: what torchvision's ImageFolder gave in training

Numbered folders of a bundle without labels are refused where index and order differ ("10" sorts before "2"): both
are in use, and the wrong one would give a wrong accuracy without a word.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.data import scenes
from coordatt_deploy.data.calibration import COUNT
from coordatt_deploy.data.dataset import NO_CLASS, Dataset, LabelKind, LabelledImage, LabelsBy, Pixels, listed
from coordatt_deploy.data.digits import LABELS, DigitSplit, read_all, read_split
from coordatt_deploy.data.images import find_images
from coordatt_deploy.data.labelled_files import IMAGES, LABEL_FILES, MASKS, of_archive, of_labels_file, of_masks
from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.plurals import counted, of_total, verb

DIGITS: Final = "digits"
ALL_DIGITS: Final = "digits:all"
CALIBRATION_DIGITS: Final = "digits:calibration"
SCENES: Final = "scenes"
CALIBRATION_SCENES: Final = "scenes:calibration"


def open_dataset(
    source: str,
    labels: Sequence[str] | None,
    classes: int | None,
    labels_by: LabelsBy | None = None,
    tensor: TensorSpec | None = None,
) -> Dataset:
    """Return the dataset called *source*.

    Args:
        source: A folder or archive, ``digits`` (the packaged held-out digits), ``digits:all`` (all 1,797, with
            scikit-learn), ``digits:calibration`` (the packaged 200 that recipes are calibrated on), ``scenes`` (300
            held-out photographs with digits on them and their masks, with scikit-learn) or ``scenes:calibration`` (the
            200 that recipes are calibrated on).
        labels: The bundle's, in the order of the logits; None where it has none.
        classes: Number of logits; None where the model is no classifier.
        labels_by: How folders become classes; None for the first way that fits.
        tensor: The model's input, which archives may hold.

    Raises:
        UsageError: No such folder, no class folders or images in it, or classes that the model does not have.
        MissingDependencyError: scikit-learn is not installed.
    """
    if source in (DIGITS, ALL_DIGITS, CALIBRATION_DIGITS):
        return _digits(source, labels, classes)
    if source in (SCENES, CALIBRATION_SCENES):
        return _scenes(source, labels)
    found = _of_files(Path(source), classes, tensor)
    if found is None:
        return _folder(Path(source), labels, classes, labels_by)
    if labels_by is not None:
        raise UsageError(f"--labels-by says how folders name classes; {source} has {found.labelled_by}: leave it out")
    return found


def _of_files(path: Path, classes: int | None, tensor: TensorSpec | None) -> Dataset | None:
    """The dataset of an archive, or of a folder of another kind than class folders; None for those."""
    if path.suffix == ".npz":
        return of_archive(path, classes, tensor)
    files = [path / name for name in LABEL_FILES if (path / name).is_file()]
    if len(files) > 1:
        raise UsageError(f"{path} holds {' and '.join(file.name for file in files)}; one of them says what is known")
    if files:
        return of_labels_file(files[0])
    return of_masks(path) if (path / IMAGES).is_dir() and (path / MASKS).is_dir() else None


def _scenes(source: str, labels: Sequence[str] | None) -> Dataset:
    if labels is not None and tuple(labels) != scenes.LABELS:
        raise UsageError(
            f"{source} has the labels {listed(scenes.LABELS)}, the model {listed(labels)}: give a dataset of its own"
        )
    held_out = source == SCENES
    made = scenes.held_out_scenes() if held_out else [scenes.make_scene("train", number) for number in range(COUNT)]
    images = tuple(LabelledImage(scene.name, NO_CLASS, Pixels(scene.pixels), scene.mask) for scene in made)
    note = (
        "scenes like these trained the packaged weights: good for the difference to the reference, but accuracy is"
        f" judged on --dataset {SCENES}"
    )
    return Dataset(source, images, None, len(images), () if held_out else (note,), LabelKind.MASKS)


def _digits(source: str, labels: Sequence[str] | None, classes: int | None) -> Dataset:
    if classes not in (None, len(LABELS)) or (labels is not None and tuple(labels) != LABELS):
        named = f"labels {', '.join(labels[:5])}, …" if labels else f"{classes} classes"
        raise UsageError(
            f"the digits have the labels 0 to 9, the model has {named}: give a folder of images with --dataset"
        )
    split = read_all() if source == ALL_DIGITS else read_split("held_out" if source == DIGITS else "calibration")
    notes = () if source == DIGITS else (_trained_on(split),)
    images = tuple(
        LabelledImage(f"digit_{index}", int(label), Pixels(pixels, digit=True))
        for index, label, pixels in zip(split.indices, split.labels, split.pixels, strict=True)
    )
    return Dataset(source, images, LabelsBy.NAME, len(images), notes)


def _trained_on(split: DigitSplit) -> str:
    held_out = read_split("held_out").indices
    trained = len(np.setdiff1d(split.indices, held_out))
    return (
        f"{trained:,} of these {len(split):,} digits trained the packaged weights: good for the difference to the"
        f" reference, but accuracy is judged on the {len(held_out)} of --dataset {DIGITS}"
    )


def _folder(root: Path, labels: Sequence[str] | None, classes: int | None, labels_by: LabelsBy | None) -> Dataset:
    if not root.exists():
        raise UsageError(f"there is no dataset at {root}; give a folder with a folder of images per class, or {DIGITS}")
    if not root.is_dir():
        raise UsageError(f"{root} is a file; a dataset is a folder with a folder of images per class")
    files = find_images(root)
    inside = [path.relative_to(root) for path in files]
    outside = [path.as_posix() for path in inside if len(path.parts) == 1]
    if len(outside) == len(files):
        raise UsageError(
            f"{root} holds {counted(len(files), 'image')} but no class folders: put each into a folder named"
            f" after its class,"
            f" {root}/CLASS/{outside[0]}"
        )
    folders = sorted({path.parts[0] for path in inside if len(path.parts) > 1})
    if classes is None:  # no classifier: what a class means is between the metric and the folders
        index, way = {name: number for number, name in enumerate(folders)}, LabelsBy.ORDER
    else:
        index, way = _classes(folders, labels, classes, labels_by)
    images = tuple(
        LabelledImage(path.as_posix(), index[path.parts[0]], root / path) for path in inside if len(path.parts) > 1
    )
    notes = [*_left_out(root, folders, outside, len(files))]
    absent = sorted(set(range(classes or 0)) - set(index.values()))
    if absent:
        names = [labels[number] if labels else str(number) for number in absent]
        notes.append(
            f"{of_total(len(absent), classes or 0, 'class')} {verb(len(absent), 'has')} no image here: {listed(names)}"
        )
    return Dataset(str(root), images, way, len(images), tuple(notes))


def _left_out(root: Path, folders: Sequence[str], outside: Sequence[str], images: int) -> Iterator[str]:
    """Say what of the folder is not evaluated."""
    if outside:
        lie = f"{counted(len(outside), 'image')} {verb(len(outside), 'lies')} outside the class folders"
        yield f"{lie} and {verb(len(outside), 'is')} left out: {listed(outside)}"
    children = [path for path in root.iterdir() if not path.name.startswith(".")]
    empty = sorted(path.name for path in children if path.is_dir() and path.name not in folders)
    if empty:
        yield f"{counted(len(empty), 'folder')} {verb(len(empty), 'holds')} no image: {listed(empty)}"
    others = sum(1 for path in root.rglob("*") if path.is_file() and not _hidden(path, root)) - images
    if others > 0:
        do = f"{counted(others, 'file')} {verb(others, 'does')} not end like an image"
        yield f"{do} and {verb(others, 'is')} left out"


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _classes(
    folders: Sequence[str], labels: Sequence[str] | None, classes: int, asked: LabelsBy | None
) -> tuple[dict[str, int], LabelsBy]:
    """Return the class of each folder and the way it was found."""
    if asked is None:
        asked = _way(folders, labels, classes)
    if asked is LabelsBy.NAME:
        return _by_name(folders, labels), asked
    if asked is LabelsBy.INDEX:
        return _by_index(folders, classes), asked
    if len(folders) != classes:
        hint = f"; {nearest(folders[0], labels)}" if labels else ""
        raise UsageError(
            f"the dataset has {counted(len(folders), 'class folder')} ({listed(folders)}), the model"
            f" {classes} classes: taken in"
            f" their order, each class needs a folder of its own{hint}"
        )
    return {name: index for index, name in enumerate(folders)}, asked


def _way(folders: Sequence[str], labels: Sequence[str] | None, classes: int) -> LabelsBy:
    numbered = all(_number(name) is not None for name in folders)
    if labels is not None:
        known = {_plain(label) for label in labels}
        by_name = all(_plain(name) in known for name in folders)
        return LabelsBy.INDEX if numbered and not by_name else LabelsBy.NAME
    if not numbered:
        return LabelsBy.ORDER
    in_order = [_number(name) for name in folders]
    if in_order == list(range(classes)):
        return LabelsBy.INDEX
    if len(folders) != classes:
        return LabelsBy.INDEX  # only some of the classes: their order cannot be meant
    raise UsageError(
        f"the class folders are numbers ({listed(folders)}), and the bundle has no labels: say whether the number is"
        " the class (--labels-by index), or the folder's place among the names sorted as text, as torchvision has it"
        " (--labels-by order)"
    )


def _by_name(folders: Sequence[str], labels: Sequence[str] | None) -> dict[str, int]:
    if labels is None:
        raise UsageError("the bundle has no labels to compare folder names with; use --labels-by index or order")
    known = {_plain(label): index for index, label in reversed(list(enumerate(labels)))}
    strangers = [name for name in folders if _plain(name) not in known]
    if strangers:
        hints = "; ".join(f"{name!r}: {nearest(name, labels)}" for name in strangers[:3])
        raise UsageError(
            f"{of_total(len(strangers), len(folders), 'class folder')} {verb(len(strangers), 'is')} no label"
            f" of the model ({listed(strangers)});"
            f" {_shortened(hints)}. Rename them, or use --labels-by index or order"
        )
    return {name: known[_plain(name)] for name in folders}


def _by_index(folders: Sequence[str], classes: int) -> dict[str, int]:
    index = {name: _number(name) for name in folders}
    wrong = [name for name, number in index.items() if number is None or number >= classes]
    if wrong:
        raise UsageError(
            f"{of_total(len(wrong), len(folders), 'class folder')} {verb(len(wrong), 'is')} no class of the"
            f" model ({listed(wrong)}); its"
            f" {classes} classes are numbered 0 to {classes - 1}"
        )
    return {name: number for name, number in index.items() if number is not None}


def _number(name: str) -> int | None:
    return int(name) if name.isascii() and name.isdigit() else None


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _shortened(text: str, limit: int = 400) -> str:
    return text if len(text) <= limit else text[:limit] + "…"
