"""Which metric is meant, and which outputs and labels of which bundle and dataset it scores."""

import math
from dataclasses import replace

from coordatt_deploy.artifact_specs import OutputKind, TensorSpec
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.data.dataset import Dataset, LabelKind
from coordatt_deploy.data.masks import IGNORED
from coordatt_deploy.errors import UsageError
from coordatt_deploy.evaluation.result import MIOU, TOP1, MetricRecord
from coordatt_deploy.evaluation.scoring import MeanIou, Own, Scoring, Top1
from coordatt_deploy.evaluation.user_metric import load_metric
from coordatt_deploy.logs import logged


def check_drop(max_drop: float, metric: str | None) -> None:
    """Refuse a limit that no difference of the metric can have.

    Raises:
        UsageError: It is no such number.
    """
    if not (math.isfinite(max_drop) and max_drop >= 0):
        raise UsageError(f"--max-drop is {max_drop}; give a number of at least 0, in the metric's unit")
    if max_drop > 100 and metric in (None, TOP1, MIOU):
        raise UsageError(f"--max-drop is {max_drop}; give percentage points from 0 to 100, such as 0.5")


def check_metric(metric: str | None) -> None:
    """Refuse a word that names no metric.

    Raises:
        UsageError: It does not.
    """
    if metric not in (None, TOP1, MIOU) and ":" not in str(metric):
        raise UsageError(f"unknown --metric {metric!r}; known: {TOP1}, {MIOU}, FILE.py:FUNCTION")


def own_metric(named: str | None) -> Own | None:
    """Import a metric of the user's own, before anything is run; None for what is built in."""
    if named is None or named in (TOP1, MIOU):
        return None
    with logged("metric"):
        metric = load_metric(named)
    record = MetricRecord(metric.name, metric.higher_is_better, "", named, metric.per_image)
    return Own(record, LabelKind.CLASSES)


def classes_of(bundle: Bundle) -> int | None:
    """The number of logits; None where the model is no classifier."""
    try:
        return logits_of(bundle)[1]
    except UsageError:
        return None


def scoring_of(bundle: Bundle, metric: str | None, dataset: Dataset, own: Own | None) -> Scoring:
    """Return what becomes of the outputs.

    Args:
        bundle: Whose outputs are scored.
        metric: ``top-1``, ``miou``, or the name of *own*; None for what the labels are made for.
        dataset: Whose labels they are held against.
        own: From ``own_metric``.

    Raises:
        UsageError: The model's outputs or the dataset's labels are not what the metric scores.
    """
    if own is not None:
        return replace(own, kind=dataset.kind)
    asked = metric or {LabelKind.CLASSES: TOP1, LabelKind.MASKS: MIOU}.get(dataset.kind)
    if asked is None:
        raise UsageError(
            f"the labels of {dataset.source} are neither classes nor masks; give --metric FILE.py:FUNCTION"
        )
    needed = LabelKind.CLASSES if asked == TOP1 else LabelKind.MASKS
    if asked == TOP1:
        scoring: Scoring = Top1(logits_of(bundle)[0].name)
    else:
        spec, classes = mask_of(bundle)
        scoring = MeanIou(spec.name, classes)
    if dataset.kind is not needed:
        raise UsageError(f"{asked} needs {needed.value} as labels; {dataset.source} has {dataset.kind.value}")
    return scoring


def mask_of(bundle: Bundle) -> tuple[TensorSpec, int]:
    """Return the output that holds a class, or a score of each class, for every pixel, and the number of classes.

    An output whose kind is said or proven to be a mask comes before one that looks like it. Where it holds the classes
    themselves there are as many as the model has labels, or 255.

    Raises:
        UsageError: There is none.
    """
    manifest = bundle.manifest
    said = [spec for spec in manifest.outputs if manifest.output_kinds.get(spec.name) is OutputKind.MASK]
    for spec in (*said, *manifest.outputs):
        channels = spec.shape[1] if len(spec.shape) == 4 else None
        if channels is not None and channels > 1:
            return spec, channels
        if spec.dtype.startswith(("int", "uint")) and (len(spec.shape) == 3 or channels == 1):
            return spec, len(manifest.model.labels or ()) or IGNORED
    found = ", ".join(f"{spec.name} {spec.shape}" for spec in manifest.outputs)
    raise UsageError(
        "mIoU needs scores (1, classes, H, W) or classes (1, H, W) for every pixel;"
        f" {manifest.model.name} gives {found}"
    )


def logits_of(bundle: Bundle) -> tuple[TensorSpec, int]:
    """Return the output that holds the logits and the number of classes.

    Raises:
        UsageError: The model is no classifier.
    """
    for spec in bundle.manifest.outputs:
        classes = spec.shape[-1]
        if len(spec.shape) == 2 and classes is not None and classes > 1:
            return spec, classes
    found = ", ".join(f"{spec.name} {spec.shape}" for spec in bundle.manifest.outputs)
    raise UsageError(
        f"accuracy needs a classifier with logits (1, classes); {bundle.manifest.model.name} gives {found}"
    )


def image_input(bundle: Bundle) -> TensorSpec:
    """Return the input that takes the image.

    Raises:
        UsageError: The model takes something else, or more.
    """
    inputs, preprocessing = bundle.manifest.inputs, bundle.manifest.model.preprocessing
    channels = len(preprocessing.mean) if preprocessing.takes_images else None
    if len(inputs) == 1 and len(inputs[0].shape) == 4 and inputs[0].shape[1] == channels:
        return inputs[0]
    found = ", ".join(f"{spec.name} {spec.shape}" for spec in inputs)
    raise UsageError(
        "accuracy needs a model of one image (1, 3, H, W), or grey (1, 1, H, W);"
        f" {bundle.manifest.model.name} takes {found}"
    )
