"""What is run on images, and what comes back: per image a row of numbers, put where the image stands in the dataset.

Answers come in any order, from anywhere. What is made of them does not depend on it: every array has a place for each
image, and of several failures of a subject the one on the first images is told.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.data.dataset import LabelledImage
from coordatt_deploy.errors import MetricError
from coordatt_deploy.evaluation.scoring import Asked, Scoring

KEPT_BYTES: Final = 4 << 30  # of outputs that a metric of all images at once needs together
SHARD_BYTES: Final = 8 << 20  # of image files in a shard, about: what is sent at a time, and sent again after a death


@dataclass(frozen=True, slots=True)
class Trial:
    """What to run.

    Attributes:
        bundle: Opened.
        artifacts: To run, in this order; behind the reference, if that is run.
        reference: Whether torch computes the captured graph in float64 as well, as the first subject.
        input: Name of the input that takes the images.
        scoring: What becomes of the outputs.
        target: Where the artifacts run, as ``qemu-arm64:CPU``; None for this machine.
        exact_sums: Paths of the artifacts whose sums of integers are to be exact; see ``Runtime.open_artifact``.
    """

    bundle: Bundle
    artifacts: tuple[Artifact, ...]
    reference: bool
    input: str
    scoring: Scoring
    target: str | None = None
    exact_sums: frozenset[str] = frozenset()

    @property
    def subjects(self) -> int:
        """How many answers each image gets."""
        return len(self.artifacts) + self.reference

    @property
    def names(self) -> tuple[str, ...]:
        """The subjects, in their order, as messages call them."""
        return (*(("reference",) if self.reference else ()), *(item.path for item in self.artifacts))


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a subject gave no answers: ``missing`` where something is not installed."""

    text: str
    missing: bool


@dataclass(frozen=True, slots=True, eq=False)
class Shard:
    """A few images of a dataset that are answered together.

    Attributes:
        start: Which image of the dataset the first one is.
        images: That one and those behind it.
    """

    start: int
    images: tuple[LabelledImage, ...]


def sharded(images: Sequence[LabelledImage], most: int) -> Iterator[Shard]:
    """Cut a dataset into shards, in its order.

    Args:
        images: All of them.
        most: How many a shard holds at most; fewer where their files are large.
    """
    start, held = 0, 0
    for index, image in enumerate(images):
        held += _file_bytes(image)
        if index + 1 - start == most or held >= SHARD_BYTES or index + 1 == len(images):
            yield Shard(start, tuple(images[start : index + 1]))
            start, held = index + 1, 0


def _file_bytes(image: LabelledImage) -> int:
    if not isinstance(image.source, Path):
        return 0
    try:
        return image.source.stat().st_size
    except OSError:  # whoever reads it will say so
        return 0


@dataclass(slots=True, eq=False)
class Predictions:
    """What the subjects answered, per image that could be read.

    Attributes:
        rows: (N,) Which images of the dataset, ascending.
        scored: By subject, (N, K): the rows of the scoring; a subject that failed has none.
        asked: What was known of each image, where a metric scores all at once; empty otherwise.
        shapes: Of the outputs, by name.
        signal: (N,) Sum of squares of the first subject's outputs.
        noise: (subjects, N) Sum of squares of the difference to them.
        nonfinite: (subjects, N) Whether an output held NaN or infinity.
        unreadable: Image and reason of each that could not be read.
        failures: By subject.
        runtimes: Name and origin by subject; None for the reference's origin.
    """

    rows: NDArray[np.int64]
    scored: dict[int, NDArray[np.float64]]
    asked: list[Asked]
    shapes: dict[str, tuple[int, ...]]
    signal: NDArray[np.float64]
    noise: NDArray[np.float64]
    nonfinite: NDArray[np.bool_]
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    failures: dict[int, Failure] = field(default_factory=dict)
    runtimes: dict[int, tuple[str, Origin | None]] = field(default_factory=dict)

    def alone(self, index: int) -> "Predictions":
        """Return what one subject answered, as if it had been asked alone."""
        return replace(
            self,
            scored={0: self.scored[index]} if index in self.scored else {},
            noise=self.noise[index : index + 1],
            nonfinite=self.nonfinite[index : index + 1],
            failures={0: self.failures[index]} if index in self.failures else {},
            runtimes={0: self.runtimes[index]} if index in self.runtimes else {},
        )

    def beside(self, other: "Predictions") -> "Predictions":
        """Return what two subjects answered that were asked alone, this one's first, on the same images.

        Nothing was computed from both outputs at once: their difference is not known.
        """
        return replace(
            self,
            scored={0: self.scored[0], 1: other.scored[0]},
            shapes=self.shapes or other.shapes,
            noise=np.full((2, len(self.rows)), np.nan),
            nonfinite=np.concatenate([self.nonfinite, other.nonfinite]),
            runtimes={0: self.runtimes[0], 1: other.runtimes[0]},
        )


class Assembly:
    """Puts the answers together: a place for each image, whatever order they come in."""

    def __init__(self, trial: Trial, images: int) -> None:
        """Make room.

        Args:
            trial: What is run.
            images: How many images are asked.
        """
        self._trial, self._images = trial, images
        self._read = np.zeros(images, np.bool_)
        self._signal = np.zeros(images)
        self._noise = np.full((trial.subjects, images), np.nan)
        self._nonfinite = np.zeros((trial.subjects, images), np.bool_)
        self._scored: dict[int, NDArray[np.float64]] = {}
        self._asked: dict[int, Asked] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._unreadable: list[tuple[int, str]] = []
        self._failures: dict[int, tuple[int, Failure]] = {}
        self._runtimes: dict[int, tuple[str, Origin | None]] = {}

    def add(self, part: Predictions) -> None:
        """Put the answers for some images, at least one, where these stand.

        Raises:
            MetricError: A metric needs all outputs together, and they are too much to be kept.
        """
        rows = part.rows
        self._read[rows] = True
        self._signal[rows] = part.signal
        self._noise[:, rows] = part.noise
        self._nonfinite[:, rows] = part.nonfinite
        self._unreadable += part.unreadable
        self._runtimes |= part.runtimes
        self._shapes = self._shapes or part.shapes
        if self._trial.scoring.keeps_outputs:
            self._asked |= zip(map(int, rows), part.asked, strict=True)
        first = min([*map(int, rows), *(row for row, _ in part.unreadable)])
        for index, failure in part.failures.items():
            self._fail(index, first, failure)
        for index, scored in part.scored.items():
            if index not in self._scored:
                self._scored[index] = self._room(scored)
            if self._scored[index].shape[1:] != scored.shape[1:]:
                text = f"its outputs are {part.shapes}, those of another image or subject {self._shapes}"
                self._fail(index, first, Failure(text, missing=False))
                continue
            self._scored[index][rows] = scored

    def _fail(self, index: int, row: int, failure: Failure) -> None:
        if index not in self._failures or row < self._failures[index][0]:
            self._failures[index] = row, failure

    def _room(self, scored: NDArray[np.float64]) -> NDArray[np.float64]:
        needed = scored[0].nbytes * self._images * self._trial.subjects
        if self._trial.scoring.keeps_outputs and needed > KEPT_BYTES:
            raise MetricError(
                f"a metric of all images at once needs all outputs, {needed / 2**30:.1f} GiB here; give --limit, or"
                " a metric with per_image = True"
            )
        return np.zeros((self._images, *scored.shape[1:]), scored.dtype)

    def finished(self) -> Predictions:
        """Return the answers for all images that could be read."""
        rows = np.flatnonzero(self._read)
        everything = len(rows) == self._images
        scored: dict[int, NDArray[np.float64]] = {}
        for index in sorted(self._scored.keys() - self._failures.keys()):
            values = self._scored.pop(index)
            scored[index] = values if everything else values[rows]
        return Predictions(
            rows.astype(np.int64),
            scored,
            [self._asked[row] for row in map(int, rows)] if self._trial.scoring.keeps_outputs else [],
            self._shapes,
            self._signal[rows],
            self._noise[:, rows],
            self._nonfinite[:, rows],
            sorted(self._unreadable),
            {index: failure for index, (_, failure) in sorted(self._failures.items())},
            dict(sorted(self._runtimes.items())),
        )


def assembled(trial: Trial, images: int, parts: Iterable[Predictions]) -> Predictions:
    """Return the answers of all *parts* together; see ``Assembly``."""
    whole = Assembly(trial, images)
    for part in parts:
        whole.add(part)
    return whole.finished()
