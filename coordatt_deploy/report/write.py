"""Write reports of a bundle from the documents that ``parity`` and ``profile`` left in it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from coordatt_deploy import __version__
from coordatt_deploy.bundle import REPORTS, Bundle
from coordatt_deploy.documents import SCHEMA_VERSION, from_json
from coordatt_deploy.errors import BundleError, DeployError, UsageError
from coordatt_deploy.files import write_whole
from coordatt_deploy.report.junit import junit
from coordatt_deploy.report.markdown import markdown
from coordatt_deploy.report.page.render import Contents, page
from coordatt_deploy.runtimes.reader import count_operators

PAGE: Final = "report.html"


def write_page(bundle: Bundle, target: Path | None = None, *, now: datetime | None = None) -> Path:
    """Write ``reports/report.html`` and return its path.

    Args:
        bundle: With at least one of ``reports/parity.json`` and ``reports/profile.json``.
        target: Another place for the file.
        now: For the foot of the page; the present by default.

    Raises:
        UsageError: Neither parity nor profile was run, or *target* cannot be written.
        BundleError: A document is damaged.
    """
    parity, profile = read_report(bundle, "parity.json"), read_report(bundle, "profile.json")
    accuracy = read_report(bundle, "evaluate.json")
    if parity is None and profile is None and accuracy is None:
        raise UsageError(
            f"{bundle.root} holds no results yet; run first: coordatt-deploy parity {bundle.root},"
            f" and coordatt-deploy profile {bundle.root}"
        )
    operators = {}
    for artifact in bundle.manifest.artifacts:
        try:
            found = count_operators(bundle.path(artifact.path), artifact.format)
        except DeployError:  # a file that cannot be opened here is listed without its operators
            continue
        operators[artifact.path] = (found.names, found.remark)
    moment = (now or datetime.now(UTC)).strftime("%Y-%m-%d %H:%M UTC")
    made = f"Written by coordatt-deploy {__version__} on {moment}."
    text = page(Contents(bundle.manifest, bundle.root.resolve().name, parity, profile, operators, made, accuracy))
    return bundle.write_report(PAGE, text) if target is None else write_text(target, text)


def read_report(bundle: Bundle, name: str) -> Mapping[str, Any] | None:
    """Return a document of ``reports/``; None where it was not written yet.

    Raises:
        BundleError: It is no JSON, or of another schema.
    """
    path = bundle.root / REPORTS / name
    if not path.exists():
        return None
    again = f"write it again with: coordatt-deploy {path.stem} {bundle.root}"
    try:
        document = from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BundleError(f"reports/{name} cannot be read ({error}); {again}") from None
    found = document.get("schema_version") if isinstance(document, dict) else None
    if found != SCHEMA_VERSION:
        raise BundleError(f"reports/{name}: schema_version is {found!r}, this tool reads {SCHEMA_VERSION}; {again}")
    return dict(document)


def write_summaries(
    bundle: Bundle, parity: Mapping[str, Any], junit_file: Path | None = None, markdown_file: Path | None = None
) -> None:
    """Write *parity* as ``reports/junit.xml``, or ``reports/junit-TARGET.xml``, and where else it is asked for.

    Raises:
        UsageError: A file cannot be written.
    """
    text = junit(parity)
    target = parity["target"]
    bundle.write_report("junit.xml" if target is None else f"junit-{target.replace(':', '-')}.xml", text)
    if junit_file is not None:
        write_text(junit_file, text)
    if markdown_file is not None:
        write_text(markdown_file, markdown(parity, bundle.manifest.model.name))


def write_text(path: Path, text: str) -> Path:
    """Write *text* to a file of the user's.

    Raises:
        UsageError: Its folder does not exist, or it cannot be written there.
    """
    if not path.parent.is_dir():
        raise UsageError(f"{path} cannot be written: there is no folder {path.parent}; make it first")
    try:
        return write_whole(path, text)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}") from error
