"""Run the files of two bundles on the same labelled images: every image is a pair then."""

from collections.abc import Sequence
from typing import Final

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.data.labelled import open_dataset
from coordatt_deploy.errors import UsageError
from coordatt_deploy.evaluation.executors import ThisMachine
from coordatt_deploy.evaluation.judge import judge
from coordatt_deploy.evaluation.metric_choice import classes_of, image_input, own_metric, scoring_of
from coordatt_deploy.evaluation.predict import run
from coordatt_deploy.evaluation.predictions import Predictions, Trial
from coordatt_deploy.evaluation.scoring import MeanIou
from coordatt_deploy.host import available_cores, describe
from coordatt_deploy.logs import logged
from coordatt_deploy.progress import Stages
from coordatt_deploy.release.accuracy_change import judged, score_text
from coordatt_deploy.release.diff_result import AccuracyChange, Change, ChangeKind, DiffRow
from coordatt_deploy.runtimes.host_effects import host_effect

MANY: Final = 200  # images from which on more processes than this one are worth their start

Pairs = Sequence[tuple[Artifact, Artifact]]


def evaluated_changes(
    a: Bundle, b: Bundle, pairs: Pairs, source: str, metric: str | None, max_drop: float, stages: Stages
) -> tuple[DiffRow, ...]:
    """Return the row of each pair.

    Args:
        a: The bundle before.
        b: The bundle after.
        pairs: Their files.
        source: See ``data.labelled.open_dataset``.
        metric: ``top-1``, ``miou`` or ``FILE.py:FUNCTION``; None for what the labels are made for.
        max_drop: See ``DiffSettings``.
        stages: Shows the progress.

    Raises:
        UsageError: The dataset does not fit, or the two name classes otherwise.
        MetricError: A metric of the user's own raises, or gives no number.
    """
    if a.manifest.model.labels != b.manifest.model.labels:
        raise UsageError("the two bundles name classes otherwise, so that no labels fit both; leave --dataset out")
    own = own_metric(metric)
    dataset = open_dataset(source, a.manifest.model.labels, classes_of(a), None, image_input(a))
    scoring = scoring_of(a, metric, dataset, own)
    classes = scoring.classes if isinstance(scoring, MeanIou) else classes_of(a)
    executor = ThisMachine(available_cores() if len(dataset) >= MANY else 1)
    answers: list[Predictions] = []
    for side, bundle in enumerate((a, b)):
        files = tuple(pair[side] for pair in pairs)
        trial = Trial(bundle, files, False, image_input(bundle).name, scoring, exact_sums=_foreign(bundle, files))
        with stages.stage(f"{len(files)} files of {'AB'[side]} × {len(dataset):,} images", len(dataset)) as step:
            answers.append(run(trial, dataset.images, executor, step))
    if not len(answers[0].rows) or list(answers[0].rows) != list(answers[1].rows):
        raise UsageError(f"the images of {source} that can be read are none, or not the same for both bundles")
    rows = []
    for index, pair in enumerate(pairs):
        both = [side.alone(index) for side in answers]
        failure = next((f"{name}: {side.failures[0].text}" for name, side in zip("AB", both, strict=True)
                        if side.failures), None)  # fmt: skip
        if failure is not None:
            broken = not both[0].failures and not both[1].failures[0].missing
            verdict = Change.REGRESSION if broken else Change.NOT_COMPARED
            rows.append(DiffRow(ChangeKind.ACCURACY, pair[1].path, "", None, None, verdict, reason=failure))
            continue
        with logged("metric"):
            subjects = judge(pair, both[0].beside(both[1]), dataset, scoring, classes)
        images = len(answers[0].rows)
        points, interval = subjects[1].change(scoring.record)
        scores = subjects[0].share(images), subjects[1].share(images)
        texts = score_text(scoring.record, scores[0]), score_text(scoring.record, scores[1])
        counts = subjects[1].difference
        found = AccuracyChange(
            points or 0.0, interval, images, paired=True,
            lost=counts.lost if counts else None, gained=counts.gained if counts else None,
        )  # fmt: skip
        rows.append(judged(found, scoring.record, max_drop, pair[1].path, texts, scores, dataset.source))
    return tuple(rows)


def _foreign(bundle: Bundle, artifacts: Sequence[Artifact]) -> frozenset[str]:
    """Return the files that are judged by what another CPU computes; see ``host_effect``."""
    machine = describe()
    effects = {item.path: host_effect(bundle.path(item.path), item, machine) for item in artifacts}
    return frozenset(path for path, effect in effects.items() if effect is not None and effect.foreign)
