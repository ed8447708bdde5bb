"""Run the reference and the artifacts on labelled images, in several processes.

Each process opens everything once and gets a few images at a time: an image is decoded and preprocessed once for all.
Outputs stay where they were computed; what comes back for each image is the row that the scoring makes of what each
subject gave, and the energy of its difference to the reference.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy import processes, targets
from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.data.dataset import LabelledImage
from coordatt_deploy.errors import DeployError, MetricError, MissingDependencyError, UsageError, WorkerDiedError
from coordatt_deploy.evaluation.scoring import Asked, Outputs, Scoring
from coordatt_deploy.evaluation.user_metric import EvaluatedImage
from coordatt_deploy.logs import logged, set_environment
from coordatt_deploy.metrics import infinities_set_aside
from coordatt_deploy.runtimes import Runner, runtime
from coordatt_deploy.tensors import decode, encode

CHUNK: Final = 16  # images that a process gets at a time, at most
KEPT_BYTES: Final = 4 << 30  # of outputs that a metric of all images at once needs together
Infer = Callable[[NDArray[np.float32]], Outputs]
Opened = tuple[Infer, tuple[str, Origin | None]]


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
        scored: By subject, (N, K): the rows of the scoring; a subject that failed has none.
        asked: What was known of each image.
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
        MetricError: A metric of the user's own raises, or gives no number.
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
        self.scorer = trial.scoring.scorer()
        self.at_once = images_at_once(trial.bundle, trial.input)
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
            exact = artifact.path in self.trial.exact_sums
            opened = runtime(artifact.format).open_artifact(path, artifact, threads=1, exact_sums=exact)
            runner = stack.enter_context(opened)
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
        name, wanted = self.trial.input, self.trial.scoring.outputs
        version = torch.__version__.partition("+")[0]

        def infer(image: NDArray[np.float32]) -> Outputs:
            found = call({name: image})
            return {key: np.asarray(found[key], np.float64) for key in wanted or found}

        return infer, (f"torch {version}, float64", None)

    def _fail(self, index: int, error: Exception) -> None:
        self.subjects.pop(index, None)
        self.failures[index] = Failure(str(error), isinstance(error, MissingDependencyError))

    def answer(self, chunk: range, step: Callable[[], None] = lambda: None) -> Predictions:
        """Run the subjects on the images of *chunk*."""
        spec = self.trial.bundle.manifest.model.preprocessing
        tensors, rows, asked, unreadable = [], [], [], []
        for row in chunk:
            image = self.images[row]
            try:
                tensor, size = image.tensor(spec)
                asked.append(Asked(self.trial.scoring.label(image, size, spec), EvaluatedImage(image.name, *size)))
                tensors.append(np.repeat(tensor[None], self.at_once, axis=0))
                rows.append(row)
            except UsageError as error:
                unreadable.append((row, str(error)))
                step()
        shape = (self.trial.subjects, len(rows))
        found = Predictions(
            np.array(rows, np.int64), {}, asked, {}, np.zeros(len(rows)), np.full(shape, np.nan),
            np.zeros(shape, np.bool_), unreadable, self.failures, self.runtimes,
        )  # fmt: skip
        scored: dict[int, list[NDArray[np.float64]]] = {}
        for column, tensor in enumerate(tensors):
            self._image(found, scored, column, tensor)
            step()
        found.scored = {index: np.stack(parts) for index, parts in scored.items() if index in self.subjects and parts}
        return found

    def _image(
        self,
        found: Predictions,
        scored: dict[int, list[NDArray[np.float64]]],
        column: int,
        tensor: NDArray[np.float32],
    ) -> None:
        first: Outputs | None = None
        for index, infer in list(self.subjects.items()):
            try:
                outputs = _of_one(infer(tensor), self.at_once)
                found.nonfinite[index, column] = any(
                    _is_lost(value, (first or {}).get(key)) for key, value in outputs.items()
                )
                row = self._row(outputs, first, found, index, column)
            except MetricError as error:
                if not found.nonfinite[index, column]:
                    raise
                self._fail(index, UsageError(f"NaN or infinity in its outputs; {error}"))
                continue
            except (DeployError, ValueError, KeyError, IndexError) as error:
                self._fail(index, error)
                continue
            scored.setdefault(index, []).append(row)
            if first is None and index == 0:
                first = outputs
                found.signal[column] = sum(
                    float(np.square(value[np.isfinite(value)]).sum()) for value in outputs.values()
                )
            if first is not None and _shapes(outputs) == _shapes(first):
                pairs = [infinities_set_aside([first[key]], [outputs[key]]) for key in first]
                found.noise[index, column] = sum(float(np.square(mine - exact).sum()) for (exact,), (mine,) in pairs)

    def _row(
        self, outputs: Outputs, first: Outputs | None, found: Predictions, index: int, column: int
    ) -> NDArray[np.float64]:
        """The row of one subject for one image.

        Raises:
            MetricError: See ``Scorer.row``; all outputs together are too much to be kept.
        """
        shapes = _shapes(outputs)
        if self.trial.scoring.keeps_outputs:
            found.shapes = found.shapes or shapes
            needed = 4 * sum(value.size for value in outputs.values()) * len(self.images) * self.trial.subjects
            if shapes != found.shapes:
                raise ValueError(f"its outputs are {shapes}, those of another image or subject {found.shapes}")
            if needed > KEPT_BYTES:
                raise MetricError(
                    f"a metric of all images at once needs all outputs, {needed / 2**30:.1f} GiB here; give --limit, or"
                    " a metric with per_image = True"
                )
        artifacts = self.trial.artifacts
        position = index - self.trial.reference
        subject = "reference" if position < 0 else artifacts[position].path
        row = self.scorer.row(outputs, first, replace(found.asked[column], subject=subject))
        return row.astype(np.float32) if self.trial.scoring.keeps_outputs else row


def _shapes(outputs: Outputs) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in outputs.items()}


def images_at_once(bundle: Bundle, name: str) -> int:
    """How many images the network takes at once: its batch, and of a dynamic one the smallest.

    Args:
        bundle: Its golden cases have as many.
        name: Of the input that takes the images.
    """
    spec = next(item for item in bundle.manifest.inputs if item.name == name)
    if spec.shape[0] is not None or not bundle.manifest.golden:
        return spec.shape[0] or 1
    cases = bundle.golden("inputs").get(name, ())
    return min((int(case.shape[0]) for case in cases), default=1)


def _is_lost(value: NumberArray, exact: NumberArray | None) -> bool:
    """Whether something is NaN or infinite, other than minus infinity where the first subject has it too."""
    masked = np.isneginf(value) if exact is None or exact.shape != value.shape else value == exact
    return not bool((np.isfinite(value) | masked).all())


def _of_one(outputs: Outputs, at_once: int) -> Outputs:
    """What a network that was fed with the same image *at_once* times says of it."""
    if at_once == 1:
        return outputs
    return {name: value[:1] if value.shape[:1] == (at_once,) else value for name, value in outputs.items()}


def _infer(runner: Runner, trial: Trial, image: NDArray[np.float32]) -> Outputs:
    feeds = {spec.name: encode(image, spec) for spec in runner.inputs}
    given = runner.infer(feeds)
    wanted = trial.scoring.outputs or tuple(spec.name for spec in trial.bundle.manifest.outputs)
    specs = {spec.name: spec for spec in runner.outputs}
    return {name: decode(given[name], specs[name]) for name in wanted}


def _joined(parts: Sequence[Predictions]) -> Predictions:
    ordered = sorted(parts, key=lambda part: min([*part.rows, *(row for row, _ in part.unreadable)]))
    failures = {index: failure for part in ordered for index, failure in part.failures.items()}
    filled = [part for part in ordered if len(part.rows)]
    whole = {index for part in filled for index in part.scored} - failures.keys()
    return Predictions(
        np.concatenate([part.rows for part in ordered]),
        {index: np.concatenate([part.scored[index] for part in filled]) for index in sorted(whole)},
        [asked for part in ordered for asked in part.asked],
        next((part.shapes for part in filled if part.shapes), {}),
        np.concatenate([part.signal for part in ordered]),
        np.concatenate([part.noise for part in ordered], axis=1),
        np.concatenate([part.nonfinite for part in ordered], axis=1),
        [item for part in ordered for item in part.unreadable],
        failures,
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
