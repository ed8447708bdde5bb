"""Write reports of a bundle from the results that ``parity``, ``profile`` and ``evaluate`` left in it."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol, TypeVar

from coordatt_deploy import __version__
from coordatt_deploy.bundle import REPORTS, Bundle
from coordatt_deploy.errors import BundleError, DeployError, UsageError
from coordatt_deploy.evaluation import reports as evaluation_reports
from coordatt_deploy.parity import reports as parity_reports
from coordatt_deploy.parity.result import ParityResult
from coordatt_deploy.profile import reports as profile_reports
from coordatt_deploy.report.junit import junit
from coordatt_deploy.report.markdown import markdown
from coordatt_deploy.report.page.render import Contents, page
from coordatt_deploy.report_file import ReportFile, report_name, write_text
from coordatt_deploy.runtimes.reader import count_operators

PAGE: Final = "report.html"

R_co = TypeVar("R_co", covariant=True)


def write_page(bundle: Bundle, target: Path | None = None, *, now: datetime | None = None) -> Path:
    """Write ``reports/report.html`` and return its path.

    Args:
        bundle: With at least one of ``reports/parity.json`` and ``reports/profile.json``.
        target: Another place for the file.
        now: For the foot of the page; the present by default.

    Raises:
        UsageError: Neither parity nor profile was run, or *target* or the bundle cannot be written.
        BundleError: A document is damaged.
    """
    ReportFile(bundle, PAGE, target).check()
    parity = _read(bundle, "parity.json", parity_reports.read_reports)
    profile = _read(bundle, "profile.json", profile_reports.read_reports)
    accuracy = _read(bundle, "evaluate.json", evaluation_reports.read_reports)
    if parity is None and profile is None and accuracy is None:
        raise UsageError(
            f"{bundle.root} holds no results yet; run first: coordatt-deploy parity {bundle.root},"
            f" and coordatt-deploy profile {bundle.root}"
        )
    operators = {}
    for artifact in bundle.manifest.artifacts:
        try:
            operators[artifact.path] = count_operators(bundle.path(artifact.path), artifact.format)
        except DeployError:  # a file that cannot be opened here is listed without its operators
            continue
    moment = (now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC")
    footer = f"Written by coordatt-deploy {__version__} on {moment}."
    text = page(Contents(bundle.manifest, bundle.root.resolve().name, parity, profile, operators, footer, accuracy))
    return bundle.write_report(PAGE, text) if target is None else write_text(target, text)


class Reports(Protocol[R_co]):
    """The accumulated runs of one command."""

    def result(self) -> R_co | None:
        """Return what is known of each artifact on this machine; None where nothing is."""


def _read(bundle: Bundle, name: str, read: Callable[[str], Reports[R_co]]) -> R_co | None:
    """Return what a report of ``reports/`` knows of this machine; None where it was not written yet.

    Raises:
        BundleError: It is not JSON, of another schema, or misshapen.
    """
    path = bundle.root / REPORTS / name
    if not path.exists():
        return None
    try:
        return read(path.read_text(encoding="utf-8")).result()
    except (OSError, ValueError) as error:
        again = f"write it again with: coordatt-deploy {path.stem} {bundle.root}"
        raise BundleError(f"reports/{name} cannot be read: {error}; {again}") from None


def write_summaries(
    bundle: Bundle,
    parity: ParityResult,
    junit_file: Path | None = None,
    markdown_file: Path | None = None,
    *,
    inside: bool = True,
) -> None:
    """Write *parity* as ``reports/junit.xml``, or ``reports/junit-TARGET.xml``, and where else it is asked for.

    Args:
        bundle: What was judged.
        parity: The verdicts.
        junit_file: A further file for them.
        markdown_file: A file for a summary.
        inside: Whether the bundle gets its file.

    Raises:
        UsageError: A file cannot be written.
    """
    refused = bundle.manifest.refused
    text = junit(parity, refused)
    if inside:
        bundle.write_report(report_name("junit", parity.target, "xml"), text)
    if junit_file is not None:
        write_text(junit_file, text)
    if markdown_file is not None:
        write_text(markdown_file, markdown(parity, bundle.manifest.model.name, refused))
