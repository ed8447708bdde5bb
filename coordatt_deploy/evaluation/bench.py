"""The reference and the artifacts, opened in one process, and what they make of a few images.

An image is decoded and preprocessed once for all. Outputs stay where they were computed; what comes back for each image
is the row that the scoring makes of what each subject gave, and the energy of its difference to the reference.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy import targets
from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.errors import DeployError, MetricError, MissingDependencyError, UsageError
from coordatt_deploy.evaluation.predictions import Failure, Predictions, Shard, Trial
from coordatt_deploy.evaluation.scoring import Asked, Outputs
from coordatt_deploy.evaluation.user_metric import EvaluatedImage
from coordatt_deploy.metrics import infinities_set_aside
from coordatt_deploy.runtimes import Runner, runtime
from coordatt_deploy.tensors import decode, encode

Infer = Callable[[NDArray[np.float32]], Outputs]
Opened = tuple[Infer, tuple[str, Origin | None]]


class RowMaker:
    """Makes the row of one subject for one image, wherever its outputs were computed."""

    def __init__(self, trial: Trial) -> None:
        """Load what scores.

        Raises:
            UsageError: A metric of the user's own cannot be loaded.
        """
        self.trial, self.scorer = trial, trial.scoring.scorer()

    def row(
        self, outputs: Outputs, first: Outputs | None, found: Predictions, index: int, column: int
    ) -> NDArray[np.float64]:
        """Return the row, and note the shapes of outputs that are kept.

        Args:
            outputs: Of the subject.
            first: Of the first subject; None where it gave none.
            found: What it belongs to; knows the images.
            index: Of the subject.
            column: Of the image in *found*.

        Raises:
            MetricError: See ``Scorer.row``.
            ValueError: The outputs are not of the kind, or not alike.
        """
        shapes = _shapes(outputs)
        if self.trial.scoring.keeps_outputs:
            found.shapes = found.shapes or shapes
            if shapes != found.shapes:
                raise ValueError(f"its outputs are {shapes}, those of another image or subject {found.shapes}")
        asked = replace(found.asked[column], subject=self.trial.names[index])
        row = self.scorer.row(outputs, first, asked)
        return row.astype(np.float32) if self.trial.scoring.keeps_outputs else row


class Bench:
    """The subjects, opened in this process."""

    def __init__(self, trial: Trial, stack: ExitStack) -> None:
        """Open them; *stack* closes them again."""
        self.trial = trial
        self.failures: dict[int, Failure] = {}
        self.runtimes: dict[int, tuple[str, Origin | None]] = {}
        self.subjects: dict[int, Infer] = {}
        self.machine: targets.Session | None = None
        self.rows = RowMaker(trial)
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

    def answer(self, shard: Shard, step: Callable[[], None] = lambda: None) -> Predictions:
        """Run the subjects on the images of *shard*.

        Raises:
            MetricError: A metric of the user's own raises, or gives no number.
        """
        spec = self.trial.bundle.manifest.model.preprocessing
        tensors, rows, asked, unreadable = [], [], [], []
        for row, image in enumerate(shard.images, shard.start):
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
            np.zeros(shape, np.bool_), unreadable, runtimes=self.runtimes,
        )  # fmt: skip
        scored: dict[int, list[NDArray[np.float64]]] = {}
        for column, tensor in enumerate(tensors):
            self._image(found, scored, column, tensor)
            step()
        found.scored = {index: np.stack(parts) for index, parts in scored.items() if index in self.subjects and parts}
        found.failures = dict(self.failures)
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
                row = self.rows.row(outputs, first, found, index, column)
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
                finite = (value[np.isfinite(value)] for value in outputs.values())
                found.signal[column] = sum(float(np.square(value).sum()) for value in finite)
            if first is not None and _shapes(outputs) == _shapes(first):
                pairs = [infinities_set_aside([first[key]], [outputs[key]]) for key in first]
                found.noise[index, column] = sum(float(np.square(mine - exact).sum()) for (exact,), (mine,) in pairs)


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
