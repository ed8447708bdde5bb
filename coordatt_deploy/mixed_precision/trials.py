"""What searches have in common: artifacts made on trial, in a folder of their own, and the judge on labelled images."""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle, artifact_name
from coordatt_deploy.conversion.calibration import own_dataset
from coordatt_deploy.conversion.jobs import QuantizedArtifact, make
from coordatt_deploy.conversion.plan import Job
from coordatt_deploy.data.calibration import DIGITS, SCENES, CalibrationSet
from coordatt_deploy.data.dataset import Dataset
from coordatt_deploy.data.labelled import CALIBRATION_DIGITS, CALIBRATION_SCENES, open_dataset
from coordatt_deploy.errors import ConversionError, UsageError
from coordatt_deploy.evaluation.executors import Executor, opened_executor
from coordatt_deploy.evaluation.judge import judge as judged_by
from coordatt_deploy.evaluation.metric_choice import classes_of, image_input, own_metric, scoring_of
from coordatt_deploy.evaluation.predict import run
from coordatt_deploy.evaluation.predictions import Predictions, Trial
from coordatt_deploy.evaluation.result import Accuracy
from coordatt_deploy.evaluation.scoring import Scoring
from coordatt_deploy.formats import Format, TargetCpu
from coordatt_deploy.host import available_cores
from coordatt_deploy.mixed_precision.search_plan import SearchImages
from coordatt_deploy.quantization.recipes import Recipe
from coordatt_deploy.runtimes.host_effects import host_effect

PACKAGED: Final = {DIGITS: CALIBRATION_DIGITS, SCENES: CALIBRATION_SCENES}  # the labels of calibration data
MANY: Final = 1000  # images from which on several processes pay


@contextmanager
def image_judge(
    bundle: Bundle, wanted: SearchImages, data: CalibrationSet | None, max_drop: float | None
) -> Iterator["ImageJudge"]:
    """Open the labelled images of a search, and what artifacts are run on them by.

    Args:
        bundle: Opened.
        wanted: Which images, and what is scored.
        data: Calibration data, whose labels will do where no images are named; None where there is none.
        max_drop: In the metric's unit; None where the drop is free.

    Raises:
        UsageError: The images have no labels, or not those of the model or of the metric.
        MetricError: A metric of the user's own cannot be loaded.
        MissingDependencyError: A cluster needs Dask, which is not installed.
        TargetError: A cluster cannot be reached.
    """
    own = own_metric(wanted.metric)
    classes = classes_of(bundle)
    dataset = _labelled(bundle, wanted, data, classes)
    scoring = scoring_of(bundle, wanted.metric, dataset, own)
    workers = wanted.workers or (available_cores() if len(dataset) >= MANY else 1)
    with opened_executor(workers, wanted.cluster) as executor:
        yield ImageJudge(bundle, dataset, scoring, classes, max_drop, executor)


def _labelled(bundle: Bundle, wanted: SearchImages, data: CalibrationSet | None, classes: int | None) -> Dataset:
    labels = bundle.manifest.model.labels
    source = wanted.dataset
    if source is None:
        known = own_dataset(bundle.manifest.model.source_sha256) if data is None else data.source
        if known is None:
            raise UsageError(f"{wanted.option} needs labelled images to choose by; name them: --dataset FOLDER")
        source = PACKAGED.get(known, known)
    try:
        dataset = open_dataset(source, labels, classes, wanted.labels_by, image_input(bundle))
    except UsageError as error:
        if wanted.dataset is not None:
            raise
        raise UsageError(
            f"{wanted.option} needs labelled images; the calibration data has no labels: {error}"
        ) from error
    return dataset if wanted.limit is None else dataset.limited(wanted.limit, wanted.seed)


@dataclass(slots=True)
class ImageJudge:
    """Says what an artifact is worth against the reference, and whether it loses more than *max_drop*.

    *judged* says of formats and CPUs how their artifacts were judged where this CPU makes something else of them.
    """

    bundle: Bundle
    dataset: Dataset
    scoring: Scoring
    classes: int | None
    max_drop: float | None
    executor: Executor
    reference: Predictions | None = None
    judged: dict[tuple[Format, TargetCpu | None], str] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """How many could be read."""
        return 0 if self.reference is None else len(self.reference.rows)

    def ask_reference(self, step: Callable[[], None]) -> None:
        """Run the float64 reference; every other question is asked after this one."""
        self.reference = self._answers(Trial(self.bundle, (), True, image_input(self.bundle).name, self.scoring), step)

    def ask(self, folder: Path, artifact: Artifact) -> Accuracy:
        """Return what the artifact in *folder* is worth against the reference."""
        assert self.reference is not None  # noqa: S101 - it is asked first
        there = Bundle(folder, self.bundle.manifest)
        found = [host_effect(there.path(artifact.path), artifact, machine) for machine in self.executor.machines]
        exact: frozenset[str] = frozenset()
        effect = next((item for item in found if item is not None and item.foreign), None)
        if effect is not None:
            exact, self.judged[artifact.format, artifact.target_cpu] = frozenset((artifact.path,)), effect.judged()
        input_name = image_input(self.bundle).name
        answers = self._answers(Trial(there, (artifact,), False, input_name, self.scoring, exact_sums=exact))
        both = self.reference.beside(answers)
        return judged_by([None, artifact], both, self.dataset, self.scoring, self.classes, self.max_drop)[1]

    def _answers(self, trial: Trial, step: Callable[[], None] = lambda: None) -> Predictions:
        answers = run(trial, self.dataset.images, self.executor, step)
        for failure in answers.failures.values():
            raise ConversionError(failure.text)
        if not len(answers.rows):
            raise UsageError(f"none of the images of {self.dataset.source} can be read: {answers.unreadable[0][1]}")
        return answers


def with_float(job: Job, layers: Sequence[str]) -> Job:
    """Return the job with *layers*, by their ids, in float as well, and the file named after that."""
    recipe: Recipe = replace(job.recipe, float_layers=tuple(dict.fromkeys([*job.final_recipe.float_layers, *layers])))
    return replace(job, recipe=recipe, path=artifact_name(job.spec.name, job.kind, recipe.name, job.target_cpu))


def make_in(folder: Path, job: Job) -> QuantizedArtifact:
    """Make an artifact as the second stage does, in a folder that stands for the bundle."""
    (folder / "reference").symlink_to((job.root / "reference").absolute())
    if job.source is not None:
        for relative in (job.source.path, job.source.layers):
            _copy(job.root / relative, folder / relative)
    return make(replace(job, root=folder))


def move(artifact: Artifact, source: Path, target: Path) -> None:
    """Copy an artifact and its layer map from one folder to another, in place of earlier ones."""
    for relative in (artifact.path, artifact.layers):
        _copy(source / relative, target / relative)


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_dir():
        shutil.rmtree(target)
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copyfile(source, target)
