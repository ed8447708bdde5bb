"""What the page says of runs on other machines' kernels, and of what int8 costs layer by layer."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.mixed_precision.result import FormatSearch, SearchResult, Sensitivity
from coordatt_deploy.parity.reports import ParityRun
from coordatt_deploy.plurals import counted
from coordatt_deploy.profile.instructions import InstructionReports
from coordatt_deploy.profile.reports import ProfileReports
from coordatt_deploy.profile.result import LatencyRecord
from coordatt_deploy.report.page.figures import Row, Table, decibel, file_name, number
from coordatt_deploy.report.page.measurements import LATENCY_HEADS, latency_cells
from coordatt_deploy.report.page.verdicts import BADGES, covered_words

SHOWN = 10  # layers of a ranking; the document has all


def further_runs(runs: Sequence[ParityRun]) -> Table | None:
    """Return the verdicts on other inputs, in other places, by other tolerances; None without any."""
    rows = []
    for run in runs:
        found = run.result
        badge = BADGES[found.passed]
        error = found.max_abs_error if found.judged_error is None else found.judged_error
        cells = (
            number(error), number(found.allowed), decibel(found.sqnr_db, exact=found.exact),
            number(found.top1_agreement, ".1%"),
        )  # fmt: skip
        names = (file_name(run.artifact), f"{badge.mark} {badge.word}", run.place, found.runtime or "–")
        rows.append(Row(names, cells, bad=found.passed is False, note=covered_words(run)))
    heads = ("file", "verdict", "place", "runtime"), ("worst error", "allowed", "SQNR", "top-1 agreement")
    return Table("Further parity runs", *heads, tuple(rows), last="judged") if rows else None


def instructions(reports: Mapping[str, InstructionReports]) -> tuple[Table, ...]:
    """Return a table for each target: instructions per inference, those of each class that matters.

    Args:
        reports: By target.
    """
    tables = []
    for target, found in reports.items():
        results = [run.result for run in found.runs]
        used = list(dict.fromkeys(name for item in results for name, count in item.classes.items() if count))
        fewest = min((item.instructions for item in results), default=1) or 1
        rows = [
            Row(
                (file_name(item.path), item.runtime.partition(" on ")[0]),
                (
                    f"{item.instructions / 1e6:.1f}", f"{item.instructions / fewest:.3f}",
                    *(f"{item.classes.get(name, 0) / 1e6:.1f}" for name in used),
                ),
            )
            for item in results
        ]  # fmt: skip
        if rows:
            tables.append(Table(target, ("file", "runtime"), ("all", "× fewest", *used), tuple(rows)))
    return tuple(tables)


@dataclass(frozen=True, slots=True)
class TimedElsewhere:
    """The latency of one file on another machine, of the bytes that the bundle has now."""

    place: str
    record: LatencyRecord


def timed_elsewhere(reports: Mapping[str, ProfileReports], manifest: Manifest) -> tuple[TimedElsewhere, ...]:
    """Return what other machines' runtimes took for the files of the bundle; an evaluator's time is left out.

    Args:
        reports: By machine.
        manifest: Of the bundle.
    """
    hashes = {item.path: item.sha256 for item in manifest.artifacts}
    return tuple(
        TimedElsewhere(place, run.result)
        for place, found in reports.items()
        for run in found.runs
        if run.result.origin is not Origin.EVALUATED and hashes.get(run.artifact) == run.sha256
    )


def latencies(timed: Sequence[TimedElsewhere], labels: Mapping[str, str]) -> Table | None:
    """Return the latencies of other machines; None without any.

    Args:
        timed: In the order of the rows.
        labels: What tells each file from the others, by path.
    """
    rows = []
    for item in timed:
        record = item.record
        label = f"{labels.get(record.path, file_name(record.path))}, {counted(record.threads, 'thread')}"
        rows.append(Row((label, item.place, record.runtime, record.verdict), latency_cells(record)))
    heads = ("file, threads", "machine", "runtime", "verdict"), LATENCY_HEADS
    return Table("Latency on other machines", *heads, tuple(rows)) if rows else None


def sensitivities(found: Sensitivity | None) -> tuple[Table, ...]:
    """Return for each format the layers that int8 costs most in; empty where none were ranked."""
    tables = []
    for result in found.results if found else ():
        name = " ".join(filter(None, (result.format.value, result.target_cpu)))
        rows = tuple(
            Row(
                (cost.name, cost.operator),
                (_db(cost.sqnr_db), _db(cost.verified_db), number(cost.share, ".1%"), number(cost.agreement, ".1%")),
            )
            for cost in result.layers[:SHOWN]
        )
        heads = ("layer", "operator"), ("SQNR alone", "measured", "share of noise", "agreement")
        every = f"{name}: the costliest {len(rows)} of {len(result.layers)} layers, all together about"
        tables.append(Table(f"{every} {_db(result.predicted_sqnr_db)}", *heads, rows))
    return tuple(tables)


def search(found: SearchResult | None) -> Table | None:
    """Return how the search for the fewest layers in float ended; None where none was made."""
    if found is None or found.max_drop_points is None or any(item.candidates for item in found.results):
        return None
    heads = ("format", "drop"), ("in float", "difference", "95 % interval", "artifacts tried")
    metric = found.metric
    unit = "points lost" if metric is None or metric.in_points else f"of {metric.name} lost"
    label = f"At most {found.max_drop_points:g} {unit} on {found.dataset.images:,} images of {found.dataset.source}"
    return Table(label, *heads, tuple(_searched(item) for item in found.results), last="layers in float")


def _searched(item: FormatSearch) -> Row:
    ends = item.interval_points
    interval = "–" if ends is None else f"{ends[0]:+.2f} … {ends[1]:+.2f}"
    cells = (
        f"{len(item.kept)} of {item.layers}", f"{item.difference_points:+.2f}", interval, str(len(item.attempts)),
    )  # fmt: skip
    names = " ".join(filter(None, (item.format.value, item.target_cpu))), "holds" if item.reached else "not reached"
    return Row(names, cells, bad=not item.reached, note=", ".join(item.kept) or "none")


def _db(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.1f} dB" if math.isfinite(value) else "no change"
