"""What the page says of what was measured: accuracy, latency, sizes, the machine, and how to do it again."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.evaluation.result import MIOU, POINTS, TOP1, EvaluationResult, MetricRecord, SubjectAccuracy
from coordatt_deploy.manifest import FoldReport, Manifest
from coordatt_deploy.plurals import counted, verb
from coordatt_deploy.profile.operator_result import OperatorProfile
from coordatt_deploy.profile.result import LatencyRecord, ProfileResult
from coordatt_deploy.report import operator_texts
from coordatt_deploy.report.page.figures import (
    Figure,
    Row,
    Table,
    artifact_label,
    decibel,
    file_name,
    megabytes,
    number,
    sentence,
)
from coordatt_deploy.report.page.latency_plot import Timed, latency_plot, overview_plot, reach
from coordatt_deploy.report.page.plots import size_bar
from coordatt_deploy.report.page.verdicts import WORDS
from coordatt_deploy.runtimes.file_graph import OperatorCount

NAMED = 5  # unreadable images; the document has all
MIOU_TITLE = "mIoU"
LATENCY_HEADS: Final = ("median ms", "95 % interval", "p90", "p99", "load", "first call", "memory")


@dataclass(frozen=True, slots=True)
class AccuracyView:
    """Accuracy on labelled images; the limit is empty where none was set.

    *classes* is a part of a sentence, empty where their number means nothing, and so is *place*, empty for this
    machine; *legend* says what the columns are.
    """

    images: str
    source: str
    classes: str
    place: str
    legend: str
    limit: str
    table: Table
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LatencyView:
    """Latency of each file and number of threads.

    Attributes:
        fed: What was fed.
        overview: All files on one scale; None where fewer than two were timed.
        figures: Every sample of each.
        table: The figures.
        samples: The raw ones, by label.
        left_out: Which files have no plot, and why; empty where all have one.
    """

    fed: str
    overview: Figure | None
    figures: tuple[Figure, ...]
    table: Table
    samples: tuple[tuple[str, str], ...]
    left_out: str = ""
    operators: tuple["OperatorView", ...] = ()


@dataclass(frozen=True, slots=True)
class OperatorView:
    """Where the time of one file goes, how that was timed, in a table."""

    title: str
    summary: str
    table: Table
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SizeRow:
    """The size of one file, its share of the greatest as a bar, and how many operators it has."""

    file: str
    size: str
    bar: Markup
    operators: str


@dataclass(frozen=True, slots=True)
class OperatorLine:
    """The operators of one file in one line."""

    file: str
    operators: str
    remark: str | None


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes and operators; ``folded`` is None where no BatchNorm was folded."""

    rows: tuple[SizeRow, ...]
    operators: tuple[OperatorLine, ...]
    folded: str | None


def accuracy_view(result: EvaluationResult, manifest: Manifest) -> AccuracyView:
    """Return how good each file is on the images, the baseline first."""
    metric = result.metric or MetricRecord(TOP1, higher_is_better=True, unit=POINTS)
    top1, title = metric.name == TOP1, MIOU_TITLE if metric.name == MIOU else metric.name
    figures = ("difference", "95 % interval", "lost / gained", "agreement", "SQNR")
    heads = ("file", "runtime"), (title, *(("top-5",) if top1 else ()), *figures)
    allowed = result.max_drop_points if metric.in_points else result.max_drop
    unit = "points may be lost" if metric.in_points else f"of {title} may be lost"
    classes = result.dataset.classes
    return AccuracyView(
        images=f"{result.dataset.images:,}",
        source=result.dataset.source,
        classes="" if classes is None or metric.file else f" in {classes} classes",
        place="" if result.target is None else f", on {result.target}",
        legend=_legend(metric, title),
        limit="" if allowed is None else f" At most {allowed:g} {unit}.",
        table=Table("Accuracy", *heads, tuple(_subject(item, metric) for item in result.subjects)),
        notes=tuple(f"{text}." for text in _remarks(result, manifest)),
    )


def _legend(metric: MetricRecord, title: str) -> str:
    """What difference, interval and lost are."""
    unit = f"in percentage points of {title}" if metric.in_points else f"that of {title}"
    text = f"The difference is {unit} to the first row"
    if metric.name == TOP1:
        return f"{text}; lost are the images that only the first row gets right."
    text += "" if metric.higher_is_better else ", and less is better"
    text += "; lost are the images that are worse" if metric.per_image else ""
    return f"{text}; the interval is that of the paired jackknife over images."


def _subject(item: SubjectAccuracy, metric: MetricRecord) -> Row:
    # reports of older versions have no score
    points, score = metric.in_points, item.top1 if item.score is None else item.score
    change = item.difference_points if points else item.score_difference
    interval = item.interval_points if points else item.score_interval
    form = "+.2f" if points else "+.4g"
    between = "–" if interval is None else f"{interval[0]:{form}} … {interval[1]:{form}}"
    changed = "–" if item.lost is None else f"{item.lost:,} / {item.gained:,}"
    cells = (
        number(score, ".2%" if points else ".5g"), *((number(item.top5, ".2%"),) if metric.name == TOP1 else ()),
        number(change, form), between, changed,
        number(item.agreement, ".2%"), decibel(item.sqnr_db, exact=item.exact),
    )  # fmt: skip
    return Row((_subject_name(item), item.runtime or "–"), cells, bad=item.passed is False)


def _subject_name(item: SubjectAccuracy) -> str:
    if item.format is None or item.precision is None:
        return file_name(item.name)
    parts = (item.format, item.recipe or item.precision, item.target_cpu)
    return " ".join(part for part in parts if part)


def _as_run_here(item: SubjectAccuracy, result: EvaluationResult) -> str:
    """What this CPU makes of a file that is judged by what another one computes."""
    if item.score_as_run_here is None:
        return ""
    metric = result.metric or MetricRecord(TOP1, higher_is_better=True, unit=POINTS)
    score = number(item.score_as_run_here, ".2%" if metric.in_points else ".5g")
    return f"; as it runs here: {MIOU_TITLE if metric.name == MIOU else metric.name} {score}"


def _remarks(result: EvaluationResult, manifest: Manifest) -> list[str]:
    told = [(item, text) for item in result.subjects for text in (item.problem, item.warning) if text]
    texts = [
        f"{_subject_name(item)}: {text}" + (_as_run_here(item, result) if text == item.warning else "")
        for item, text in told
    ]
    hashes = {artifact.path: artifact.sha256 for artifact in manifest.artifacts}
    older = [item for item in result.subjects if item.path is not None and hashes.get(item.path) != item.sha256]
    texts += [f"{_subject_name(item)}: figures of an older file of this name; run evaluate again" for item in older]
    texts += result.notes
    unreadable = result.dataset.unreadable
    if unreadable:
        names = ", ".join(item.image for item in unreadable[:NAMED])
        count = len(unreadable)
        texts.append(f"{counted(count, 'image')} could not be read and {verb(count, 'is')} in no figure: {names}")
    return texts


def latency_view(result: ProfileResult, start: int, labels: Mapping[str, str]) -> LatencyView:
    """Return the latency of each file and number of threads.

    Args:
        result: What was measured.
        start: Number of the first plot on the page.
        labels: What tells each file from the others, by path.
    """
    rows, samples, plots, timed = [], [], [], []
    for position, item in enumerate(result.results, start + 1):
        label = f"{labels.get(item.path, file_name(item.path))}, {counted(item.threads, 'thread')}"
        rows.append(Row((label, item.verdict), latency_cells(item)))
        samples.append((label, " ".join(map(str, item.samples_ns))))
        if item.origin is Origin.EVALUATED:
            _check_samples(item)
            continue  # an evaluator's few samples say nothing about a runtime
        plots.append(_latency_figure(position, label, item))
        timed.append(Timed(_short(item, result, labels), item.median_ms, item.ci95_ms, item.p90_ms, _told(item)))
    heads = ("file, threads", "verdict"), LATENCY_HEADS
    shapes = (f"{name} {' × '.join(map(str, shape))}" for name, shape in result.inputs.items())
    table = Table("Latency", *heads, tuple(rows))
    overview = _overview(start, timed) if len(timed) > 1 else None
    evaluated = sum(item.origin is Origin.EVALUATED for item in result.results)
    left_out = ""
    if evaluated:
        were = f"{counted(evaluated, 'file')} {verb(evaluated, 'was')}"
        left_out = f"{were} run by an evaluator, whose time says nothing about a phone; they have no plot."
    where = tuple(_operator_view(item, labels) for item in result.operators)
    return LatencyView(", ".join(shapes), overview, tuple(plots), table, tuple(samples), left_out, where)


def _operator_view(item: OperatorProfile, labels: Mapping[str, str]) -> OperatorView:
    rows = []
    for row in item.rows:
        decibel_, verdict = operator_texts.error(row.error)
        names = (operator_texts.layer(row), row.block or "", operator_texts.operators(row))
        rows.append(Row(names, (f"{row.ms:.4f}", f"{row.share:.1%}", decibel_), operator_texts.is_wrong(row), verdict))
    title = f"{labels.get(item.path, file_name(item.path))}, {counted(item.threads, 'thread')}"
    heads = ("layer", "attention", "operators"), ("ms", "share", "SQNR")
    table = Table(f"Time of each layer of {title}", *heads, tuple(rows), "layer alone")
    remarks = tuple(f"{sentence(text)}." for text in operator_texts.remarks(item))
    return OperatorView(title, f"{sentence(operator_texts.summary(item))}.", table, remarks)


def _check_samples(item: LatencyRecord) -> None:
    if not item.samples_ns:
        raise ValueError(f"{item.path} has no sample")


def _short(item: LatencyRecord, result: ProfileResult, labels: Mapping[str, str]) -> str:
    """``onnx fp32 arm64``, and the number of threads where there are several."""
    name = labels.get(item.path, file_name(item.path))
    several = len({other.threads for other in result.results}) > 1
    return f"{name}, {counted(item.threads, 'thread')}" if several else name


def _told(item: LatencyRecord) -> str:
    return f"{item.median_ms:.3g} ms" + ("" if item.verdict == "stable" else f", {item.verdict}")


def _overview(number_: int, timed: Sequence[Timed]) -> Figure:
    fastest = min(timed, key=lambda item: item.median_ms)
    cut = ", or to the edge where that is further off" if any(item.spread_ms > reach(timed) for item in timed) else ""
    words = (
        f"The bar ends at the median, the band is its 95 % interval, the thin line goes to p90{cut}. Fastest:"
        f" {fastest.label}, {fastest.median_ms:.3g} ms."
    )
    return Figure("Latency", overview_plot(number_, "Latency of all files", words, timed), words)


def _latency_figure(position: int, label: str, item: LatencyRecord) -> Figure:
    interval = "" if item.ci95_ms is None else f" 95 % interval {item.ci95_ms[0]:.3g} to {item.ci95_ms[1]:.3g} ms,"
    words = (
        f"{counted(len(item.samples_ns), 'call')} on {item.runtime} ({WORDS[item.origin]}): median"
        f" {item.median_ms:.3g} ms,{interval} 99 % of calls within {item.p99_ms:.3g} ms; {item.verdict}."
    )
    if item.verdict != "stable":
        words += f" {item.reason.capitalize()}."
    samples = [nanoseconds / 1e6 for nanoseconds in item.samples_ns]
    plot = latency_plot(position, f"Latency of {label}", words, samples, item.median_ms, item.ci95_ms)
    return Figure(label, plot, words)


def latency_cells(item: LatencyRecord) -> tuple[str, ...]:
    """Return the figures of one file, in the order of ``LATENCY_HEADS``."""
    interval = "–" if item.ci95_ms is None else f"{item.ci95_ms[0]:.3f} … {item.ci95_ms[1]:.3f}"
    return (
        f"{item.median_ms:.3f}", interval, f"{item.p90_ms:.3f}", f"{item.p99_ms:.3f}",
        number(item.load_ms, ".1f"), number(item.first_inference_ms, ".2f"),
        "–" if item.peak_memory_bytes is None else megabytes(item.peak_memory_bytes),
    )  # fmt: skip


def sizes(manifest: Manifest, operators: Mapping[str, OperatorCount]) -> Sizes:
    """Return sizes of the files, and what operators they are made of."""
    greatest = max((item.bytes for item in manifest.artifacts), default=1) or 1
    totals = {path: str(found.total) for path, found in operators.items()}
    rows = tuple(
        SizeRow(
            artifact_label(item), megabytes(item.bytes), size_bar(item.bytes / greatest), totals.get(item.path, "–")
        )
        for item in manifest.artifacts
    )
    labels = {item.path: artifact_label(item) for item in manifest.artifacts}
    lines = tuple(
        OperatorLine(
            labels.get(path, file_name(path)),
            ", ".join(f"{count} × {kind}" for kind, count in found.names.items()),
            found.remark,
        )
        for path, found in operators.items()
    )
    return Sizes(rows, lines, _folded(manifest.fold))


def _folded(fold: FoldReport | None) -> str | None:
    if fold is None or not fold.folded:
        return None
    folded = "1 BatchNorm was" if fold.folded == 1 else f"{fold.folded} BatchNorms were"
    written = len(fold.written)
    where = f"away, {written} of them as a product and a sum" if written else "into convolutions"
    return (
        f"{folded} folded {where}; greatest change of any of these layers, in float64:"
        f" {fold.max_relative_error:.2g} of its greatest value."
    )


def machine(manifest: Manifest, profile: ProfileResult | None) -> tuple[tuple[str, str], ...]:
    """Return facts about the machine that was measured on, and the versions that made the bundle."""
    versions = ", ".join(f"{name} {version}" for name, version in manifest.tool_versions.items())
    return (*(_host(profile) if profile else ()), ("versions", versions))


def _host(profile: ProfileResult) -> Sequence[tuple[str, str]]:
    host = profile.host
    memory = "unknown" if host.memory_bytes is None else f"{host.memory_bytes / 2**30:.1f} GiB"
    load = host.before.load_average if host.before else None
    return (
        ("processor", f"{host.cpu} ({host.architecture}), {host.cores_available} of {host.cores} cores"),
        ("features", ", ".join(host.features) or "none known"),
        ("memory", memory),
        ("system", f"{host.os}, Python {host.python}"),
        ("container", host.container or "none"),
        ("load before", "unknown" if load is None else ", ".join(number(value, ".1f") for value in load)),
    )


def commands(manifest: Manifest, folder: str, later: Sequence[str]) -> str:
    """Return the command lines that made the bundle and its results, one a line, and the one that makes the page.

    Args:
        manifest: Of the bundle.
        folder: Its folder, as it was named.
        later: Those that judged and measured, in the order in which they ended.
    """
    made = manifest.commands or (manifest.command or "coordatt-deploy build",)
    return "\n".join(dict.fromkeys([*made, *filter(None, later), f"coordatt-deploy report {shlex.quote(folder)}"]))
