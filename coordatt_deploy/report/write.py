"""Write reports of a bundle from the results that ``parity``, ``profile`` and ``evaluate`` left in it."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final

from coordatt_deploy import __version__
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.errors import DeployError, UsageError
from coordatt_deploy.fleet.comparison import compared
from coordatt_deploy.kept_results import document, read_kept, read_results
from coordatt_deploy.mixed_precision.result import SearchResult, Sensitivity
from coordatt_deploy.parity import reports as parity_reports
from coordatt_deploy.parity.reports import ParityReports
from coordatt_deploy.parity.result import ParityResult
from coordatt_deploy.report.junit import junit
from coordatt_deploy.report.markdown import markdown
from coordatt_deploy.report.page.render import Contents, page
from coordatt_deploy.report.page.sustained import sustained_runs
from coordatt_deploy.report.places_csv import places_csv
from coordatt_deploy.report_file import ReportFile, check_folder, report_name, write_text
from coordatt_deploy.run_records import HERE, RunRecord
from coordatt_deploy.runtimes.file_graph import OperatorCount
from coordatt_deploy.runtimes.reader import count_operators

PAGE: Final = "report.html"


def write_page(bundle: Bundle, target: Path | None = None, *, now: datetime | None = None) -> Path:
    """Write ``reports/report.html`` and return its path.

    Args:
        bundle: With at least one of the documents that parity, profile and evaluate leave in ``reports/``.
        target: Another place for the file.
        now: For the foot of the page; the present by default.

    Raises:
        UsageError: None of them was run, or *target* or the bundle cannot be written.
        BundleError: A document is damaged.
    """
    ReportFile(bundle, PAGE, target).check()
    text = page(_contents(bundle, now or datetime.now(UTC)))
    return bundle.write_report(PAGE, text) if target is None else write_text(target, text)


def write_csv(bundle: Bundle, path: Path) -> Path:
    """Write what every place says of every file as a CSV file.

    Raises:
        UsageError: No other place was asked, or the file cannot be written.
        BundleError: A document is damaged.
    """
    check_folder(path)
    rows = compared(bundle.manifest, read_results(bundle))
    if not rows:
        raise UsageError(
            f"{bundle.root} holds results of no other place; make some, such as with: coordatt-deploy profile"
            f" {bundle.root} --target ssh://HOST"
        )
    return write_text(path, places_csv(bundle.manifest, rows))


def _contents(bundle: Bundle, moment: datetime) -> Contents:
    hashes = {artifact.path: artifact.sha256 for artifact in bundle.manifest.artifacts}
    kept = read_results(bundle)
    parity, profile, accuracy, counted = kept.parity, kept.profile, kept.accuracy, kept.instructions
    elsewhere: list[RunRecord] = [run for item in counted.values() for run in item.runs]
    elsewhere += [run for item in kept.accuracy_elsewhere.values() for run in item.runs]
    elsewhere += [run for item in kept.latency_elsewhere.values() for run in item.every]
    sensitivity = read_kept(bundle, "sensitivity.json", partial(document, Sensitivity))
    searched = read_kept(bundle, "search.json", partial(document, SearchResult))
    runs = sorted(
        (*parity.runs, *profile.every, *accuracy.runs, *elsewhere),
        key=lambda run: run.time or "",
    )
    if not runs and sensitivity is None and searched is None:
        raise UsageError(
            f"{bundle.root} holds no results yet; run first: coordatt-deploy parity {bundle.root},"
            f" and coordatt-deploy profile {bundle.root}"
        )
    other = (item.command for item in (sensitivity, searched) if item is not None)
    return Contents(
        manifest=bundle.manifest,
        folder=str(bundle.root),
        parity=parity.known(hashes),
        profile=profile.result(),
        operators=_operators(bundle),
        footer=f"Written by coordatt-deploy {__version__} on {moment.strftime('%Y-%m-%d %H:%M UTC')}.",
        accuracy=(
            *accuracy.results(),
            *(found for place, item in kept.accuracy_elsewhere.items() for found in item.results(place)),
        ),
        standings=parity.standings(hashes),
        instructions=counted,
        latency_elsewhere=kept.latency_elsewhere,
        sustained=sustained_runs(profile, kept.latency_elsewhere, hashes),
        places=compared(bundle.manifest, kept),
        sensitivity=sensitivity,
        search=searched,
        commands=tuple(dict.fromkeys([*other, *(run.command for run in runs)])),
    )


def _operators(bundle: Bundle) -> dict[str, OperatorCount]:
    operators = {}
    for artifact in bundle.manifest.artifacts:
        try:
            operators[artifact.path] = count_operators(bundle.path(artifact.path), artifact.format)
        except DeployError:  # a file that cannot be opened here is listed without its operators
            continue
    return operators


def write_summaries(
    bundle: Bundle,
    parity: ParityResult,
    junit_file: Path | None = None,
    markdown_file: Path | None = None,
    *,
    inside: bool = True,
) -> None:
    """Write *parity* where it is asked for, and all that is known as ``reports/junit.xml``, or ``junit-TARGET.xml``.

    Args:
        bundle: What was judged.
        parity: The verdicts of this call.
        junit_file: A file for them as JUnit XML.
        markdown_file: A file for a summary of them.
        inside: Whether the bundle gets its file, of this call's verdicts and of those of earlier ones that still hold.

    Raises:
        UsageError: A file cannot be written.
    """
    refused = bundle.manifest.refused
    if inside:
        hashes = {artifact.path: artifact.sha256 for artifact in bundle.manifest.artifacts}
        kept = read_kept(bundle, report_name("parity", parity.target), parity_reports.read_reports) or ParityReports()
        known = kept.result(parity.target or HERE, hashes) or parity
        bundle.write_report(report_name("junit", parity.target, "xml"), junit(known, refused))
    if junit_file is not None:
        write_text(junit_file, junit(parity, refused))
    if markdown_file is not None:
        write_text(markdown_file, markdown(parity, bundle.manifest.model.name, refused))
