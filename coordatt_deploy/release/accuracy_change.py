"""The accuracy of two files against each other, on the same images.

Best known by running both on a dataset in one call (``accuracy_run``): then every image is a pair. What ``evaluate``
left in the bundles holds counts, and the first images that each file sees otherwise than the reference. Where both
bundles have the same weights and these lists are whole, they are pairs again; otherwise the interval is that of
independent samples (Newcombe's hybrid of Wilson's intervals, Statistics in Medicine 17, 1998, 873), which is wider.

A drop is a regression where the interval leaves zero out and the drop is more than is allowed; none is where the whole
interval lies above minus what is allowed.
"""

import math
from dataclasses import replace
from typing import Final

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.evaluation.paired import PairedDifference, Z
from coordatt_deploy.evaluation.result import POINTS, TOP1, EvaluationResult, MetricRecord, SubjectAccuracy
from coordatt_deploy.release.diff_result import AccuracyChange, Change, ChangeKind, DiffRow
from coordatt_deploy.release.figures import BundleFigures

TOP1_RECORD: Final = MetricRecord(TOP1, True, POINTS)  # of reports that knew no other


def kept_change(a: BundleFigures, b: BundleFigures, old: Artifact, new: Artifact, max_drop: float) -> DiffRow:
    """Compare what ``evaluate`` left of the bytes that both files have now, on the same images by the same metric."""
    known = a.accuracy(old.path), b.accuracy(new.path)
    if known[0] is None and known[1] is None:
        reason = "neither was evaluated; --dataset FOLDER evaluates both"
        return DiffRow(ChangeKind.ACCURACY, new.path, "", None, None, Change.NOT_COMPARED, reason=reason)
    for mine, subject in _subjects(a, old):
        for theirs, other in _subjects(b, new):
            if _same_question(mine, theirs):
                same = _all_were_asked(mine) and _same_reference(a.bundle, b.bundle, mine, theirs)
                return _kept(mine, subject, other, new.path, max_drop, same_reference=same)
    texts = _kept_text(known[0]), _kept_text(known[1])
    if None in known:
        reason = "only one of the two was evaluated; --dataset FOLDER evaluates both"
    else:
        reason = "they were evaluated on other images, or by another metric; --dataset FOLDER evaluates both"
    return DiffRow(ChangeKind.ACCURACY, new.path, "", *texts, Change.INCONCLUSIVE, reason=reason)


def _kept_text(known: tuple[EvaluationResult, SubjectAccuracy] | None) -> str | None:
    return None if known is None else score_text(known[0].metric or TOP1_RECORD, _score(known[1]))


def _subjects(figures: BundleFigures, artifact: Artifact) -> list[tuple[EvaluationResult, SubjectAccuracy]]:
    return [
        (result, subject)
        for result in figures.evaluations
        for subject in result.subjects
        if (subject.path, subject.sha256, subject.problem) == (artifact.path, artifact.sha256, None)
    ]


def _same_question(a: EvaluationResult, b: EvaluationResult) -> bool:
    """Whether two results are of the same images, or as many drawn from them, and the same metric."""
    metrics = a.metric or TOP1_RECORD, b.metric or TOP1_RECORD
    return a.dataset == b.dataset and metrics[0] == metrics[1]


def _all_were_asked(result: EvaluationResult) -> bool:
    """Whether no image was left out: of a draw nobody knows whether the other's was the same."""
    return result.dataset.images + len(result.dataset.unreadable) == result.dataset.available


def _same_reference(a: Bundle, b: Bundle, mine: EvaluationResult, theirs: EvaluationResult) -> bool:
    """Whether what both differ from is the same function."""
    manifests = a.manifest, b.manifest
    weights = {item.model.source_sha256 for item in manifests}
    ways = manifests[0].model.preprocessing == manifests[1].model.preprocessing
    return len(weights) == 1 and ways and mine.baseline == theirs.baseline == "reference"


def _kept(
    result: EvaluationResult,
    old: SubjectAccuracy,
    new: SubjectAccuracy,
    path: str,
    max_drop: float,
    *,
    same_reference: bool,
) -> DiffRow:
    metric, images = result.metric or TOP1_RECORD, result.dataset.images
    scores = _score(old), _score(new)
    texts = score_text(metric, scores[0]), score_text(metric, scores[1])
    if old.correct is not None and new.correct is not None:
        pair = _reconstructed(old, new, images) if same_reference else None
        found = _of_counts(pair, old.correct, new.correct, images)
    elif None not in scores:
        scale = 100.0 if metric.in_points else 1.0
        found = AccuracyChange(scale * ((scores[1] or 0.0) - (scores[0] or 0.0)), None, images, paired=False)
    else:
        return DiffRow(ChangeKind.ACCURACY, path, "", *texts, Change.NOT_COMPARED, reason="a score is not known")
    return judged(found, metric, max_drop, path, texts, scores, result.dataset.source)


def _score(item: SubjectAccuracy) -> float | None:
    return item.top1 if item.score is None else item.score


def _of_counts(pair: PairedDifference | None, old: int, new: int, images: int) -> AccuracyChange:
    if pair is not None:
        return AccuracyChange(
            pair.points, pair.interval_points, images, paired=True, lost=pair.lost, gained=pair.gained
        )
    low, high = independent_interval(new, old, images)
    return AccuracyChange(100 * (new - old) / images, (100 * low, 100 * high), images, paired=False)


def _reconstructed(old: SubjectAccuracy, new: SubjectAccuracy, images: int) -> PairedDifference | None:
    """Return the pairs, where every image that either file sees otherwise than the reference is named."""
    right_before, right_after = _named(old, images), _named(new, images)
    if right_before is None or right_after is None:
        return None
    both = {item.image: item.reference == item.label for item in (*old.changed, *new.changed)}  # the reference's
    pairs = [(right_before.get(image, own), right_after.get(image, own)) for image, own in both.items()]
    return PairedDifference(images, pairs.count((True, False)), pairs.count((False, True)))


def _named(item: SubjectAccuracy, images: int) -> dict[str, bool] | None:
    """Whether a file is right on each image that it sees otherwise than the reference; None where not all are named."""
    right = {change.image: change.candidate == change.label for change in item.changed}
    if item.agreement is None or len(right) != round((1 - item.agreement) * images):
        return None
    return right


def independent_interval(right: int, reference: int, images: int, z: float = Z) -> tuple[float, float]:
    """Return Newcombe's interval of (right - reference) / images, where nothing is known of single images."""
    shares = right / images, reference / images
    (low, high), (low_reference, high_reference) = (_wilson(share, images, z) for share in shares)
    difference = shares[0] - shares[1]
    below = math.hypot(shares[0] - low, high_reference - shares[1])
    above = math.hypot(high - shares[0], shares[1] - low_reference)
    return difference - below, difference + above


def _wilson(share: float, images: int, z: float) -> tuple[float, float]:
    centre = share + z * z / (2 * images)
    reach = z * math.sqrt(share * (1 - share) / images + z * z / (4 * images * images))
    return (centre - reach) / (1 + z * z / images), (centre + reach) / (1 + z * z / images)


def judged(
    found: AccuracyChange, metric: MetricRecord, max_drop: float, path: str, texts: tuple[str | None, str | None],
    scores: tuple[float | None, float | None], source: str,
) -> DiffRow:  # fmt: skip
    """Return the row of an accuracy of which the difference is known.

    Args:
        found: The difference.
        metric: That was scored.
        max_drop: By how much it may fall, in the unit of the difference.
        path: Of the file.
        texts: The scores of A and B.
        scores: The same as numbers.
        source: Of the images.
    """
    unit = " points" if metric.in_points else ""
    change = f"{found.points:+.2f}{unit}" if metric.in_points else f"{found.points:+.4g}"
    if found.interval is not None:
        form = ".2f" if metric.in_points else ".4g"
        change += f" ({found.interval[0]:+{form}} … {found.interval[1]:+{form}})"
    verdict, needed = _verdict(found, max_drop, higher_is_better=metric.higher_is_better)
    reason = {
        Change.REGRESSION: f"a drop of more than {max_drop:g}{unit}",
        Change.NO_DIFFERENCE: f"no drop of more than {max_drop:g}{unit}",
        Change.INCONCLUSIVE: f"a drop of {max_drop:g}{unit} is neither shown nor excluded; {_more(found, needed)}",
    }.get(verdict, "")
    pairing = "the same images" if found.paired else "by their counts, not image by image"
    reason = "; ".join(filter(None, (reason, f"{found.images:,} images of {source}, {pairing}")))
    return DiffRow(
        ChangeKind.ACCURACY, path, metric.name, texts[0], texts[1], verdict, scores[0], scores[1], change, reason,
        accuracy=replace(found, images_needed=needed),
    )  # fmt: skip


def _more(found: AccuracyChange, needed: int | None) -> str:
    if found.interval is None or not found.paired:
        return "--dataset FOLDER runs both on each image and decides more"
    return (
        "no number of images decides at this very difference" if needed is None else f"about {needed:,} images decide"
    )


def _verdict(found: AccuracyChange, max_drop: float, *, higher_is_better: bool) -> tuple[Change, int | None]:
    """Return what B is against A, and how many images would decide it where they do not."""
    if found.interval is None:
        return (Change.NO_DIFFERENCE if found.points == 0 and found.paired else Change.INCONCLUSIVE), None
    sign = 1.0 if higher_is_better else -1.0
    gain = sign * found.points
    low, high = sorted(sign * end for end in found.interval)
    beyond = max_drop * (1 + 1e-12)
    if high < 0 and -gain > beyond:
        return Change.REGRESSION, None
    if low > 0 and gain > beyond:
        return Change.IMPROVEMENT, None
    if low >= -beyond:
        return Change.NO_DIFFERENCE, None
    wanted, reach = (max_drop + gain, gain - low) if gain > -max_drop else (-gain, high - gain)
    if wanted <= 0.1 * max_drop or not max_drop:
        return Change.INCONCLUSIVE, None
    return Change.INCONCLUSIVE, math.ceil(found.images * (reach / wanted) ** 2)


def score_text(metric: MetricRecord, score: float | None) -> str | None:
    """``97.3 %``, or the figure of a metric with another unit; None where it is not known."""
    if score is None:
        return None
    return f"{score:.2%}" if metric.in_points else f"{score:.4g}"
