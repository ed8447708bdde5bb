"""What outputs are worth: top-1, mIoU, or a metric of the user's own.

Where the outputs of an image were computed, a scorer makes a row of numbers of them; from the rows of all images comes
the score, here and without each group of images (``jackknife``).

    top-1   the class that is named, and the place of the right one
    mIoU    for each class the pixels that are rightly of it, that were found to be, and that should be; then the pixels
            that are of the class that the reference has there, and all pixels
    own     what the function gives for the image; of one that scores all images at once, the outputs themselves
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Preprocessing
from coordatt_deploy.data.dataset import FileBytes, LabelKind, LabelledImage
from coordatt_deploy.data.masks import IGNORED, check_classes, fitted_mask, sampled
from coordatt_deploy.evaluation.paired import classes_and_places
from coordatt_deploy.evaluation.result import MIOU, POINTS, TOP1, MetricRecord
from coordatt_deploy.evaluation.user_metric import EvaluatedImage, Label, UserMetric, load_metric
from coordatt_deploy.metrics import intersection_over_union, mask_counts

Outputs = Mapping[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One image, and what is known of it.

    Attributes:
        label: The truth in the form that scorers take: a class, a mask as the model sees it, or the user's own.
        image: Name and size.
        subject: Name of who is asked.
    """

    label: Label
    image: EvaluatedImage
    subject: str = ""


class Scorer(Protocol):
    """Makes a row of numbers of what a subject gave for one image."""

    def row(self, outputs: Outputs, baseline: Outputs | None, asked: Asked) -> NDArray[np.float64]:
        """Return the row; *baseline* is what the first subject gave, None where it gave nothing.

        Raises:
            MetricError: The user's function raises, or gives no number.
            ValueError: The outputs are not of the kind.
        """


class Scoring(Protocol):
    """What is scored; it is pickled for worker processes."""

    @property
    def record(self) -> MetricRecord:
        """Return what documents say of it."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the outputs that it looks at; all where there are none."""

    @property
    def keeps_outputs(self) -> bool:
        """Whether a row holds the outputs themselves."""

    def scorer(self) -> Scorer:
        """Return what makes the rows, in this process."""

    def label(self, image: LabelledImage, size: tuple[int, int], preprocessing: Preprocessing) -> Label:
        """Return what is known of an image of *size*.

        Raises:
            UsageError: It cannot be read, or does not fit.
        """


@dataclass(frozen=True, slots=True)
class Top1:
    """The class of the greatest logit.

    Attributes:
        output: Name of the logits.
    """

    output: str

    @property
    def record(self) -> MetricRecord:
        """Return what documents say of it."""
        return MetricRecord(TOP1, higher_is_better=True, unit=POINTS)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the logits' name."""
        return (self.output,)

    @property
    def keeps_outputs(self) -> bool:
        """No: they stay where they were computed."""
        return False

    def scorer(self) -> Scorer:
        """Return itself."""
        return self

    def label(self, image: LabelledImage, size: tuple[int, int], preprocessing: Preprocessing) -> Label:  # noqa: ARG002 - the protocol's
        """Return the index of the image's class."""
        return image.label

    def row(self, outputs: Outputs, baseline: Outputs | None, asked: Asked) -> NDArray[np.float64]:  # noqa: ARG002 - the protocol's
        """Return the class and the place of the right one, 0 for the first."""
        classes, places = classes_and_places(outputs[self.output], np.array([asked.label], np.int64))
        return np.array([classes[0], places[0]], np.float64)


@dataclass(frozen=True, slots=True)
class MeanIou:
    """Mean over the classes of intersection over union, over the pixels of all images.

    Attributes:
        output: Name of the scores per class, (1, classes, H, W), or of the classes, (1, H, W) or (1, 1, H, W).
        classes: How many there are.
    """

    output: str
    classes: int

    @property
    def record(self) -> MetricRecord:
        """Return what documents say of it."""
        return MetricRecord(MIOU, higher_is_better=True, unit=POINTS, per_image=False)

    @property
    def outputs(self) -> tuple[str, ...]:
        """Return the mask's name."""
        return (self.output,)

    @property
    def keeps_outputs(self) -> bool:
        """No: they stay where they were computed."""
        return False

    def scorer(self) -> Scorer:
        """Return itself."""
        return self

    def label(self, image: LabelledImage, size: tuple[int, int], preprocessing: Preprocessing) -> Label:
        """Return the mask as the model sees it, (H, W)."""
        mask = fitted_mask(image, size, preprocessing)
        check_classes(mask, self.classes)
        return mask

    def row(self, outputs: Outputs, baseline: Outputs | None, asked: Asked) -> NDArray[np.float64]:
        """Return the counts of the classes, the pixels of the baseline's class, and all pixels."""
        found = class_map(outputs[self.output])
        truth = sampled(np.asarray(asked.label, np.int64), (found.shape[0], found.shape[1]))
        counts = mask_counts(found, truth, self.classes, IGNORED)
        theirs = None if baseline is None else class_map(baseline[self.output])
        agreed = int((found == theirs).sum()) if theirs is not None and theirs.shape == found.shape else 0
        return np.array([*counts.ravel(), agreed, found.size], np.float64)

    def counts(self, rows: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return the counts (N, 3, classes) in the rows of N images."""
        return rows[:, :-2].reshape(len(rows), 3, self.classes).astype(np.int64)

    def class_ious(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the IoU of each class over all images; NaN for a class that no mask has."""
        total = self.counts(rows).sum(axis=0)
        return np.where(total[2] > 0, intersection_over_union(total), np.nan)

    def score(self, rows: NDArray[np.float64]) -> float:
        """Return the mean over the classes that masks have."""
        return _mean(self.class_ious(rows))

    def without_each(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the score without each image, (N,), over the classes that all masks together have."""
        counts = self.counts(rows)
        total = counts.sum(axis=0)
        ious = intersection_over_union(total[None] - counts)[:, total[2] > 0]
        known = ~np.isnan(ious)
        sums = np.where(known, ious, 0.0).sum(axis=1)
        means = np.full(len(ious), np.nan)
        np.divide(sums, known.sum(axis=1), out=means, where=known.any(axis=1))
        return means


@dataclass(frozen=True, slots=True)
class Own:
    """A metric of the user's own.

    Attributes:
        metric: What documents say of it.
        kind: What is known of the images.
    """

    metric: MetricRecord
    kind: LabelKind

    @property
    def record(self) -> MetricRecord:
        """Return what documents say of it."""
        return self.metric

    @property
    def outputs(self) -> tuple[str, ...]:
        """All of them."""
        return ()

    @property
    def keeps_outputs(self) -> bool:
        """Whether the function scores all images at once."""
        return not self.metric.per_image

    def loaded(self) -> UserMetric:
        """Return the function, imported in this process.

        Raises:
            UsageError: See ``load_metric``.
        """
        return load_metric(self.metric.file or "")

    def scorer(self) -> Scorer:
        """Return what calls the function, or keeps the outputs for it."""
        return _CallsFunction(self.loaded()) if self.metric.per_image else _KeepsOutputs()

    def label(self, image: LabelledImage, size: tuple[int, int], preprocessing: Preprocessing) -> Label:
        """Return a class, a mask as the model sees it, (H, W), or what a file or an archive says."""
        if self.kind is LabelKind.CLASSES:
            return image.label
        if self.kind is LabelKind.MASKS:
            return fitted_mask(image, size, preprocessing)
        if isinstance(image.truth, Path | FileBytes):
            raise TypeError(f"{image.name} has a file as its label, which only a mask is in")
        return image.truth


@dataclass(frozen=True, slots=True)
class _CallsFunction:
    """Calls the user's function for each image."""

    metric: UserMetric

    def row(self, outputs: Outputs, baseline: Outputs | None, asked: Asked) -> NDArray[np.float64]:  # noqa: ARG002 - the protocol's
        """Return its value."""
        given = {name: value.astype(np.float32) for name, value in outputs.items()}
        return np.array([self.metric.of_one(given, asked.label, asked.image, asked.subject)])


@dataclass(frozen=True, slots=True)
class _KeepsOutputs:
    """Keeps the outputs, one behind the other; see ``unpacked``."""

    def row(self, outputs: Outputs, baseline: Outputs | None, asked: Asked) -> NDArray[np.float64]:  # noqa: ARG002 - the protocol's
        """Return all of their values."""
        return np.concatenate([value.ravel() for value in outputs.values()])


def unpacked(
    row: NDArray[np.float32] | NDArray[np.float64], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float32]]:
    """Return the outputs, float32, that a row of ``_KeepsOutputs`` holds one behind the other."""
    found, start = {}, 0
    for name, shape in shapes.items():
        size = int(np.prod(shape))
        found[name] = row[start : start + size].reshape(shape).astype(np.float32)
        start += size
    return found


def class_map(value: NumberArray) -> NDArray[np.int64]:
    """Return the class of each pixel, (H, W); -1, which is none, where a score is not finite.

    Args:
        value: (1, classes, H, W) scores, or (1, H, W) or (1, 1, H, W) classes.

    Raises:
        ValueError: It has another shape.
    """
    if value.ndim == 4 and value.shape[0] == 1 and value.shape[1] > 1:
        classes = np.argmax(value[0], axis=0).astype(np.int64)
        return np.where((value[0] < np.inf).all(axis=0), classes, -1)  # minus infinity is a class that is masked
    if value.shape[0] == 1 and value.ndim in (3, 4):
        flat = value.reshape(value.shape[-2:])
        return np.where(np.isfinite(flat), np.rint(np.nan_to_num(flat)), -1).astype(np.int64)
    raise ValueError(f"a mask of shape {value.shape}")


def _mean(values: NDArray[np.float64]) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
