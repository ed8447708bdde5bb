"""Latencies for machines that gather test results, and for the page of a CI run.

Nothing of a latency passes or fails: machines differ, and so do moments.
"""

from collections.abc import Sequence

from coordatt_deploy.host import Host
from coordatt_deploy.plurals import counted
from coordatt_deploy.profile.imported_result import ImportResult
from coordatt_deploy.profile.operator_result import OperatorProfile
from coordatt_deploy.profile.result import LatencyRecord, ProfileResult
from coordatt_deploy.profile.sustained_result import Course, SustainedLatency
from coordatt_deploy.report import imported_texts, operator_texts, sustained_texts
from coordatt_deploy.report.junit_cases import Case, suites_xml
from coordatt_deploy.report.markdown import cell

STABLE = "stable"
DEAREST = 15  # layers in a table
CURVE = 30  # bars of a latency over time


def profile_junit(profile: ProfileResult) -> str:
    """Return latencies as JUnit XML: a suite for each artifact, a case for each number of threads.

    The time of a case is the median. One that is unusable, or could not be measured here, is skipped.
    """
    suites: dict[str, list[Case]] = {}
    for item in profile.results:
        told = f"median {item.median_ms:.3f} ms, 95 % interval {_interval(item)} ms, {_verdict(item)}"
        skipped = item.verdict == "unusable"
        case = Case(f"threads {item.threads}", told, skipped=skipped, seconds=item.median_ms / 1e3)
        suites.setdefault(item.path, []).append(case)
    for lasting in profile.sustained:
        seconds = (lasting.steady_ms or 0.0) / 1e3
        case = Case(
            f"sustained, threads {lasting.threads}", sustained_texts.verdict(lasting),
            skipped=lasting.verdict.course is Course.UNDECIDED, seconds=seconds,
        )  # fmt: skip
        suites.setdefault(lasting.path, []).append(case)
    for left_out in profile.skipped:
        suites.setdefault(left_out.path, []).append(Case("latency", f"not measured: {left_out.reason}", skipped=True))
    return suites_xml("coordatt-deploy profile", suites)


def profile_markdown(profile: ProfileResult, model: str) -> str:
    """Return latencies of *model* as Markdown for the summary of a CI run."""
    fed = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in profile.inputs.items())
    lines = [
        f"### Latency of {cell(model)}",
        "",
        f"{cell(_machine(profile.host))}" + (f"; a call takes {cell(fed)}" if fed else ""),
    ]
    if profile.results or not profile.sustained:
        lines += [
            "",
            "| file | runtime | threads | median ms | 95 % interval | p99 ms | verdict |",
            "|---|---|--:|--:|--:|--:|---|",
        ]
    lines += [
        f"| {cell(item.path)} | {cell(item.runtime)} ({item.origin}) | {item.threads} | {item.median_ms:.3f} |"
        f" {_interval(item)} | {item.p99_ms:.3f} | {cell(_verdict(item))} |"
        for item in profile.results
    ]
    if profile.sustained:
        lines += _sustained(profile.sustained)
    for table in profile.operators:
        lines += _operators(table)
    for left_out in profile.operators_skipped:
        lines += ["", f"- {cell(left_out.path)}: its operators were not timed: {cell(left_out.reason)}"]
    for left_out in profile.skipped:
        lines += ["", f"- {cell(left_out.path)}: not measured: {cell(left_out.reason)}"]
    if profile.interrupted:
        lines += ["", "- interrupted: these are the samples taken until then"]
    return "\n".join(lines) + "\n"


def imported_markdown(taken: ImportResult, model: str) -> str:
    """Return what was imported of *model* as Markdown."""
    heads = [*imported_texts.NAMES, *imported_texts.FIGURES]
    lines = [
        f"### Imported latency of {cell(model)} on {cell(taken.place)}", "", f"{imported_texts.CAUTION}.", "",
        f"| {' | '.join(heads)} |", f"|{'---|' * len(imported_texts.NAMES)}{'--:|' * len(imported_texts.FIGURES)}",
    ]  # fmt: skip
    for item in taken.imported:
        cells = (item.path, *imported_texts.names(item), *imported_texts.figures(item))
        lines.append(f"| {' | '.join(map(cell, cells))} |")
    return "\n".join(lines) + "\n"


def _sustained(items: Sequence[SustainedLatency]) -> list[str]:
    lines = [
        "", "#### Under sustained load", "",
        "| file | threads | first ms | steady ms | change | 95 % interval | over time | verdict |",
        "|---|--:|--:|--:|--:|--:|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {cell(item.path)} | {item.threads} | {sustained_texts.milliseconds(item.first_ms)} |"
        f" {sustained_texts.milliseconds(item.steady_ms)} | {sustained_texts.change(item)} |"
        f" {sustained_texts.interval(item)} | {sustained_texts.curve(item, CURVE)} |"
        f" {cell(sustained_texts.verdict(item))} |"
        for item in items
    ]
    return [*lines, *(text for remark in sustained_texts.remarks(items) for text in ("", f"- {cell(remark)}"))]


def _operators(item: OperatorProfile) -> list[str]:
    rows = [row for place, row in enumerate(item.rows) if place < DEAREST or operator_texts.is_wrong(row)]
    lines = [
        "", f"#### Where the time of {cell(item.path)} goes", "", f"{cell(operator_texts.summary(item))}", "",
        "| layer | ms | share | attention | operators | SQNR | layer alone |", "|---|--:|--:|---|---|--:|---|",
    ]  # fmt: skip
    for row in rows:
        decibel, verdict = operator_texts.error(row.error)
        lines.append(
            f"| {cell(operator_texts.layer(row))} | {row.ms:.4f} | {row.share:.1%} | {cell(row.block or '')} |"
            f" {cell(operator_texts.operators(row))} | {decibel} | {verdict} |"
        )
    if len(rows) < len(item.rows):
        lines += ["", f"{counted(len(item.rows) - len(rows), 'other layer')} in the JSON."]
    return [*lines, *(text for remark in operator_texts.remarks(item) for text in ("", f"- {cell(remark)}"))]


def _interval(item: LatencyRecord) -> str:
    return "–" if item.ci95_ms is None else f"{item.ci95_ms[0]:.3f} … {item.ci95_ms[1]:.3f}"


def _verdict(item: LatencyRecord) -> str:
    return item.verdict if item.verdict == STABLE else f"{item.verdict}: {item.reason}"


def _machine(host: Host) -> str:
    return f"{host.cpu}, {host.cores_available} of {host.cores} cores"
