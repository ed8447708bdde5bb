"""The summary: one row for each file that the manifest names or that could not be written, and one plot of all."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.evaluation.result import MIOU, TOP1, EvaluationResult, SubjectAccuracy
from coordatt_deploy.formats import facts as facts_of
from coordatt_deploy.manifest import Manifest, RefusedFile
from coordatt_deploy.parity.reports import Standing
from coordatt_deploy.parity.result import ArtifactVerdict, ParityResult
from coordatt_deploy.profile.result import LatencyRecord, ProfileResult
from coordatt_deploy.report.page.elsewhere import TimedElsewhere
from coordatt_deploy.report.page.figures import (
    Figure,
    artifact_label,
    decibel,
    file_name,
    finite,
    megabytes,
    number,
    sentence,
)
from coordatt_deploy.report.page.headline import State, state_of
from coordatt_deploy.report.page.plots import size_bar
from coordatt_deploy.report.page.tradeoff_plot import Weighed, tradeoff_plot
from coordatt_deploy.report.page.verdicts import (
    BADGES,
    NOT_WRITTEN,
    OUT_OF_DATE,
    UNJUDGED,
    UNPROVEN,
    Badge,
    verdict_sentence,
)

NOTHING = "–"
ENOUGH = 2  # files that a comparison needs at least


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure, and below it in small what to know beside it; empty for nothing."""

    text: str
    beside: str = ""


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """What is known of one file.

    Attributes:
        label: What tells it from the others: ``onnx fp32 arm64``.
        file: Its name.
        badge: The verdict in a word.
        size: Its size.
        bar: The same as a share of the greatest; None where it was not written.
        sqnr: Of its outputs, and what was needed.
        score: On labelled images, or how often it names the reference's class.
        latency: The median, and its interval.
        why: Why it did not pass; empty where it did.
        remark: What to know beside the verdict.
        obstacles: Operators that stand in the way of a file that was not written, each with where, why and remedy.
    """

    label: str
    file: str
    badge: Badge
    size: str
    bar: Markup | None
    sqnr: Cell
    score: Cell
    latency: Cell
    why: str = ""
    remark: str = ""
    obstacles: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Summary:
    """One table of all files.

    Attributes:
        score: Head of the column of scores.
        rows: In the order of the manifest; those that could not be written last.
        glance: The best of each kind, in words; empty where fewer than two files have figures.
        plot: Size, latency and error; None where fewer than two files have all three.
        footnote: What the columns say.
    """

    score: str
    rows: tuple[SummaryRow, ...]
    glance: tuple[tuple[str, str], ...]
    plot: Figure | None
    footnote: str


def summary(
    manifest: Manifest,
    parity: ParityResult | None,
    profile: ProfileResult | None,
    standings: Sequence[Standing] = (),
    accuracy: Sequence[EvaluationResult] = (),
    elsewhere: Sequence[TimedElsewhere] = (),
) -> Summary:
    """Return a row for each file of the manifest.

    Args:
        manifest: Of the bundle.
        parity: The verdicts; None without any.
        profile: Latency; None where nothing was timed.
        standings: What is known of each file, from all runs.
        accuracy: By dataset and metric; the first is shown here.
        elsewhere: Latencies of other machines, for files that cannot be timed here.
    """
    verdicts = {item.path: item for item in parity.artifacts} if parity else {}
    known = {item.path: item for item in standings}
    # Of several numbers of threads the first one counts.
    timed = {item.path: item for item in reversed(profile.results)} if profile else {}
    abroad = {item.record.path: item for item in reversed(elsewhere)}
    scored = accuracy[0] if accuracy else None
    scores = {item.path: item for item in scored.subjects if item.path is not None} if scored else {}
    greatest = max((item.bytes for item in manifest.artifacts), default=1) or 1
    rows = tuple(
        _row(item, verdicts.get(item.path), known.get(item.path), timed.get(item.path),
             _score(item, scores, scored, verdicts.get(item.path)), greatest, abroad.get(item.path))
        for item in manifest.artifacts
    )  # fmt: skip
    return Summary(
        score=_score_head(scored),
        rows=(*rows, *map(_refused, manifest.refused)),
        glance=tuple(_glance(manifest, verdicts, timed, scores)),
        plot=_plot(manifest, verdicts, timed, rows),
        footnote=_footnote(scored, profile),
    )


def _row(
    artifact: Artifact, verdict: ArtifactVerdict | None, standing: Standing | None, timed: LatencyRecord | None,
    score: Cell, greatest: int, abroad: TimedElsewhere | None,
) -> SummaryRow:  # fmt: skip
    badge = UNJUDGED if verdict is None else (BADGES[verdict.passed] if verdict.provable else UNPROVEN)
    why = "" if verdict is None else verdict_sentence(verdict)
    if verdict is not None and verdict.sha256 != artifact.sha256:
        why += " This verdict is about an older file of the same name: run parity again."
        badge = OUT_OF_DATE
    state = state_of(artifact, verdict, standing)
    if state is State.FAILED:
        badge = BADGES[False]
    failed_elsewhere = [] if standing is None else [run for run in standing.further if run.result.passed is False]
    if verdict is not None and verdict.passed and failed_elsewhere:
        why += f" It failed in a further run: {verdict_sentence(failed_elsewhere[0].result)}"
    # the verdict's own remark says more of the same than that of the latency
    remark = next((item.warning for item in (verdict, timed) if item is not None and item.warning), None)
    return SummaryRow(
        label=artifact_label(artifact),
        file=file_name(artifact.path),
        badge=badge,
        size=megabytes(artifact.bytes),
        bar=size_bar(artifact.bytes / greatest),
        sqnr=_sqnr(verdict),
        score=score,
        latency=_latency(timed) if abroad is None or _timed_here(timed) else _latency(abroad.record, abroad.place),
        why="" if badge is BADGES[True] else why,
        remark="" if remark is None else f"{sentence(remark)}.",
    )


def _refused(file: RefusedFile) -> SummaryRow:
    obstacles = []
    for item in file.operators:
        at = f" at {item.line}" if item.line else ""
        obstacles.append((item.operator, f"in {item.layer}{at}: {item.reason.rstrip('.')}; {item.remedy}"))
    why = f"{facts_of(file.format).title} cannot have what is listed." if obstacles else f"{sentence(file.reason)}."
    nothing = Cell(NOTHING)
    return SummaryRow(
        str(file), file_name(file.path), NOT_WRITTEN, NOTHING, None, nothing, nothing, nothing, why, "",
        tuple(obstacles),
    )  # fmt: skip


def _sqnr(verdict: ArtifactVerdict | None) -> Cell:
    if verdict is None or finite(verdict.max_abs_error) is None:
        return Cell(NOTHING)
    least = verdict.tolerance.min_sqnr_db if verdict.tolerance else None
    return Cell(decibel(verdict.sqnr_db, exact=verdict.exact), "" if least is None else f"{least:g} dB needed")


def _score_head(scored: EvaluationResult | None) -> str:
    if scored is None:
        return "top-1 agreement"
    name = TOP1 if scored.metric is None else scored.metric.name
    return "mIoU" if name == MIOU else name


def _score(
    artifact: Artifact, scores: Mapping[str, SubjectAccuracy], scored: EvaluationResult | None,
    verdict: ArtifactVerdict | None,
) -> Cell:  # fmt: skip
    if scored is None:
        return Cell(number(verdict.top1_agreement if verdict else None, ".1%"))
    found = scores.get(artifact.path)
    if found is None or found.sha256 != artifact.sha256:
        return Cell(NOTHING)
    points = scored.metric is None or scored.metric.in_points
    score = found.top1 if found.score is None else found.score
    change = found.difference_points if points else found.score_difference
    beside = "" if finite(change) is None else f"{change:+.2f}" + (" points" if points else "")
    return Cell(number(score, ".2%" if points else ".5g"), "" if change == 0 else beside)


def _timed_here(timed: LatencyRecord | None) -> bool:
    return timed is not None and timed.origin is not Origin.EVALUATED


def _latency(timed: LatencyRecord | None, place: str = "") -> Cell:
    if timed is None:
        return Cell(NOTHING)
    if timed.origin is Origin.EVALUATED:
        return Cell(NOTHING, "not timed here")
    doubt = ", ".join(filter(None, ("" if timed.verdict == "stable" else timed.verdict, place and f"on {place}")))
    if timed.ci95_ms is None:
        return Cell(f"{timed.median_ms:.3g} ms", doubt)
    half = 50 * (timed.ci95_ms[1] - timed.ci95_ms[0]) / timed.median_ms
    return Cell(f"{timed.median_ms:.3g} ms", ", ".join(filter(None, (f"± {half:.2g} %", doubt))))


def _footnote(scored: EvaluationResult | None, profile: ProfileResult | None) -> str:
    told = ["SQNR: signal to noise of the outputs against the float64 reference"]
    if scored is None:
        told.append("top-1 agreement: share of the golden inputs that get the reference's class")
    else:
        where = "" if scored.target is None else f", on {scored.target}"
        told.append(f"{_score_head(scored)}: on {scored.dataset.images:,} images of {scored.dataset.source}{where}")
    if profile is not None:
        told.append(f"latency: median on {profile.host.cpu}")
    return f"{'; '.join(told)}."


def _glance(
    manifest: Manifest, verdicts: Mapping[str, ArtifactVerdict], timed: Mapping[str, LatencyRecord],
    scores: Mapping[str, SubjectAccuracy],
) -> Iterator[tuple[str, str]]:  # fmt: skip
    """Yield which file that did not fail is the fastest, the smallest, and the nearest to the reference."""
    files = [
        item for item in manifest.artifacts
        if item.path not in verdicts or verdicts[item.path].passed is not False
    ]  # fmt: skip
    if len(files) < ENOUGH:
        return
    ran = [item for item in files if item.path in timed and timed[item.path].origin is not Origin.EVALUATED]
    if ran:
        best = min(ran, key=lambda item: timed[item.path].median_ms)
        yield "fastest here", f"{artifact_label(best)}, {timed[best.path].median_ms:.3g} ms"
    best = min(files, key=lambda item: item.bytes)
    yield "smallest", f"{artifact_label(best)}, {megabytes(best.bytes)}"
    near = {
        item.path: math.inf if verdicts[item.path].exact else found for item in files
        if item.path in verdicts and (found := verdicts[item.path].sqnr_db) is not None and not math.isnan(found)
    }  # fmt: skip
    if near:
        best = max((item for item in files if item.path in near), key=lambda item: near[item.path])
        level = decibel(near[best.path], exact=near[best.path] == math.inf)
        yield "nearest to the reference", f"{artifact_label(best)}, {level}"
    lost = {path: found for path, item in scores.items() if (found := item.difference_points) is not None}
    known = [item for item in files if item.path in lost]
    if known:
        worst = min(known, key=lambda item: lost[item.path])
        text = f"{artifact_label(worst)}, {-lost[worst.path]:.2f} points"
        yield "greatest loss of accuracy", text if lost[worst.path] < 0 else "no file is worse"


def _plot(
    manifest: Manifest, verdicts: Mapping[str, ArtifactVerdict], timed: Mapping[str, LatencyRecord],
    rows: Sequence[SummaryRow],
) -> Figure | None:  # fmt: skip
    items = []
    for artifact, row in zip(manifest.artifacts, rows, strict=True):
        verdict, latency = verdicts.get(artifact.path), timed.get(artifact.path)
        if verdict is None or latency is None or latency.origin is Origin.EVALUATED or verdict.sqnr_db is None:
            continue
        db = math.inf if verdict.exact else verdict.sqnr_db
        text = f"{row.label}: {row.size}, {row.latency.text}, SQNR {row.sqnr.text}, {row.badge.word}"
        items.append(Weighed(row.label, latency.median_ms, db, artifact.bytes, text, bad=row.badge.kind == "bad"))
    if len(items) < ENOUGH:
        return None
    fastest, smallest = min(items, key=lambda item: item.ms), min(items, key=lambda item: item.size)
    words = (
        f"{len(items)} files that were timed here; fastest is {fastest.label} with {fastest.ms:.3g} ms, smallest"
        f" {smallest.label} with {megabytes(smallest.size)}. The area of a disc is the size of the file."
    )
    label = "Size, latency and error"
    return Figure(label, tradeoff_plot(50, label, words, items), words)
