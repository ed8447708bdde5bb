"""Run the reference and the artifacts on labelled images, in several processes.

Each process opens everything once and gets a few images at a time: an image is decoded and preprocessed once for all.
Logits stay where they were computed; what comes back for each image is the class that each subject named, the place
of the right one, and the energy of its difference to the reference.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy import processes, targets
from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.data.images import preprocess
from coordatt_deploy.data.labelled import LabelledImage
from coordatt_deploy.errors import DeployError, MissingDependencyError, UsageError, WorkerDiedError
from coordatt_deploy.evaluation.paired import classes_and_places
from coordatt_deploy.logs import logged, set_environment
from coordatt_deploy.runtimes import Runner, runtime
from coordatt_deploy.tensors import decode, encode

CHUNK: Final = 16  # images that a process gets at a time, at most
Infer = Callable[[NDArray[np.float32]], NDArray[np.float64]]
Opened = tuple[Infer, tuple[str, Origin | None]]


@dataclass(frozen=True, slots=True)
class Trial:
    """What to run.

    Attributes:
        bundle: Opened.
        artifacts: To run, in this order; behind the reference, if that is run.
        reference: Whether torch computes the captured graph in float64 as well, as the first subject.
        input: Name of the input that takes the images.
        output: Name of the logits.
        target: Where the artifacts run, as ``qemu-arm64:CPU``; None for this machine.
    """

    bundle: Bundle
    artifacts: tuple[Artifact, ...]
    reference: bool
    input: str
    output: str
    target: str | None = None

    @property
    def subjects(self) -> int:
        """How many answers each image gets."""
        return len(self.artifacts) + self.reference


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a subject gave no answers: ``missing`` where something is not installed."""

    text: str
    missing: bool


@dataclass(slots=True, eq=False)
class Predictions:
    """What the subjects answered, per image that could be read.

    Attributes:
        rows: (N,) Which images of the dataset, ascending.
        classes: (subjects, N) Class named; ``NOT_FINITE`` for none.
        places: (subjects, N) Place of the right class, 0 for the first.
        signal: (N,) Sum of squares of the first subject's logits.
        noise: (subjects, N) Sum of squares of the difference to them.
        unreadable: Image and reason of each that could not be read.
        failures: By subject.
        runtimes: Name and origin by subject; None for the reference's origin.
    """

    rows: NDArray[np.int64]
    classes: NDArray[np.int64]
    places: NDArray[np.int64]
    signal: NDArray[np.float64]
    noise: NDArray[np.float64]
    unreadable: list[tuple[int, str]] = field(default_factory=list)
    failures: dict[int, Failure] = field(default_factory=dict)
    runtimes: dict[int, tuple[str, Origin | None]] = field(default_factory=dict)


def run(
    trial: Trial, images: Sequence[LabelledImage], workers: int, step: Callable[[], None] = lambda: None
) -> Predictions:
    """Run every subject on every image.

    Args:
        trial: What to run.
        images: On which.
        workers: Processes; 1 works in this one.
        step: Called once per image.

    Raises:
        DeployError: A process died.
    """
    set_environment()
    size = max(1, min(CHUNK, len(images) // (4 * workers)))
    chunks = [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]
    workers = min(workers, len(chunks))
    parts: list[Predictions] = []
    if workers == 1:
        with ExitStack() as stack, logged("evaluate"):
            bench = Bench(trial, images, stack)
            parts += [bench.answer(chunk, step) for chunk in chunks]
        return _joined(parts)
    for part in _in_processes(trial, images, chunks, workers):
        parts.append(part)
        for _ in range(len(part.rows) + len(part.unreadable)):
            step()
    return _joined(parts)


class Bench:
    """The subjects, opened in this process."""

    def __init__(self, trial: Trial, images: Sequence[LabelledImage], stack: ExitStack) -> None:
        """Open them; *stack* closes them again."""
        self.trial, self.images = trial, images
        self.failures: dict[int, Failure] = {}
        self.runtimes: dict[int, tuple[str, Origin | None]] = {}
        self.subjects: dict[int, Infer] = {}
        self.machine: targets.Session | None = None
        openers: list[Callable[[], Opened]] = [partial(self._open, artifact, stack) for artifact in trial.artifacts]
        if trial.reference:
            openers.insert(0, self._reference)
        for index, opener in enumerate(openers):
            try:
                self.subjects[index], self.runtimes[index] = opener()
            except DeployError as error:
                self._fail(index, error)

    def _open(self, artifact: Artifact, stack: ExitStack) -> Opened:
        path = self.trial.bundle.path(artifact.path)
        if self.trial.target is None:
            runner = stack.enter_context(runtime(artifact.format).open_artifact(path, artifact, threads=1))
        else:
            if self.machine is None:
                name = targets.parse(self.trial.target)
                self.machine = stack.enter_context(targets.target(name.name).start(name.cpu))
            runner = stack.enter_context(self.machine.open_artifact(path, artifact))
        return partial(_infer, runner, self.trial), (runner.runtime, runner.origin)

    def _reference(self) -> Opened:
        # only the reference needs torch: a machine that runs files alone does without
        import torch

        from coordatt_deploy.graph.execution import prepare
        from coordatt_deploy.graph.saved_graph import load_graph

        torch.set_num_threads(1)
        call = prepare(load_graph(self.trial.bundle.path("reference")))
        name, output = self.trial.input, self.trial.output
        version = torch.__version__.partition("+")[0]
        return lambda image: call({name: image})[output], (f"torch {version}, float64", None)

    def _fail(self, index: int, error: Exception) -> None:
        self.subjects.pop(index, None)
        self.failures[index] = Failure(str(error), isinstance(error, MissingDependencyError))

    def answer(self, chunk: range, step: Callable[[], None] = lambda: None) -> Predictions:
        """Run the subjects on the images of *chunk*."""
        spec = self.trial.bundle.manifest.model.preprocessing
        tensors, rows, unreadable = [], [], []
        for row in chunk:
            try:
                tensors.append(preprocess(self.images[row].load(), spec)[None])
                rows.append(row)
            except UsageError as error:
                unreadable.append((row, str(error)))
                step()
        shape = (self.trial.subjects, len(rows))
        found = Predictions(
            np.array(rows, np.int64), np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(len(rows)),
            np.full(shape, np.nan), unreadable, self.failures, self.runtimes,
        )  # fmt: skip
        for column, (row, tensor) in enumerate(zip(rows, tensors, strict=True)):
            self._image(found, column, tensor, np.array([self.images[row].label]))
            step()
        return found

    def _image(self, found: Predictions, column: int, tensor: NDArray[np.float32], label: NDArray[np.int64]) -> None:
        first: NDArray[np.float64] | None = None
        for index, infer in list(self.subjects.items()):
            try:
                logits = infer(tensor)
                (found.classes[index, column],), (found.places[index, column],) = classes_and_places(logits, label)
            except (DeployError, ValueError, KeyError, IndexError) as error:
                self._fail(index, error)
                continue
            if first is None and index == 0:
                first = logits
                found.signal[column] = np.square(logits).sum()
            if first is not None and logits.shape == first.shape:
                found.noise[index, column] = np.square(logits - first).sum()


def _infer(runner: Runner, trial: Trial, image: NDArray[np.float32]) -> NDArray[np.float64]:
    feeds = {spec.name: encode(image, spec) for spec in runner.inputs}
    given = runner.infer(feeds)
    spec = next(spec for spec in runner.outputs if spec.name == trial.output)
    return decode(given[spec.name], spec)


def _joined(parts: Sequence[Predictions]) -> Predictions:
    ordered = sorted(parts, key=lambda part: min([*part.rows, *(row for row, _ in part.unreadable)]))
    return Predictions(
        np.concatenate([part.rows for part in ordered]),
        np.concatenate([part.classes for part in ordered], axis=1),
        np.concatenate([part.places for part in ordered], axis=1),
        np.concatenate([part.signal for part in ordered]),
        np.concatenate([part.noise for part in ordered], axis=1),
        [item for part in ordered for item in part.unreadable],
        {index: failure for part in ordered for index, failure in part.failures.items()},
        {index: name for part in ordered for index, name in part.runtimes.items()},
    )


_BENCH: list[Bench] = []  # of a worker process


def _begin(trial: Trial, images: Sequence[LabelledImage]) -> None:
    with logged("evaluate"):
        _BENCH.append(Bench(trial, images, ExitStack()))


def _answer(chunk: range) -> Predictions:
    with logged("evaluate"):
        return _BENCH[0].answer(chunk)


def _in_processes(
    trial: Trial, images: Sequence[LabelledImage], chunks: Sequence[range], workers: int
) -> Iterator[Predictions]:
    try:
        with processes.workers(len(chunks), most=workers, begin=partial(_begin, trial, images)) as pool:
            answer = processes.Task("running the artifacts on images", _answer)
            for call in pool.completed([pool.submit(answer, chunk) for chunk in chunks]):
                yield call.result()
    except WorkerDiedError as error:
        raise WorkerDiedError(f"{error}; run it again with --workers 1") from None
