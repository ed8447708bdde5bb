"""What commands left in a bundle's ``reports/``, read back: here, and on every target."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

from coordatt_deploy.bundle import REPORTS, Bundle
from coordatt_deploy.documents import Document, check_version, from_json, parse_object
from coordatt_deploy.errors import BundleError
from coordatt_deploy.evaluation import reports as evaluation_reports
from coordatt_deploy.evaluation.reports import EvaluationReports
from coordatt_deploy.parity import reports as parity_reports
from coordatt_deploy.parity.reports import ParityReports
from coordatt_deploy.profile import instructions
from coordatt_deploy.profile import reports as profile_reports
from coordatt_deploy.profile.instructions import InstructionReports
from coordatt_deploy.profile.operator_result import LayerError
from coordatt_deploy.profile.reports import ProfileReports
from coordatt_deploy.run_records import HERE, is_current, latest

WRITTEN_BY: Final = {
    "sensitivity": "quantize {bundle} --sensitivity",
    "search": "quantize {bundle} --max-drop 0.5",
}  # documents that are not called after the command that writes them

# The documents of ``reports/``, each also as STEM-PLACE.json; profile-TARGET.json holds counted instructions.
JUDGED: Final = "parity"
EVALUATED: Final = "evaluate"
TIMED: Final = "latency"  # elsewhere; this machine's are in profile.json

T = TypeVar("T")
D = TypeVar("D", bound=Document)
R = TypeVar("R", EvaluationReports, InstructionReports, ProfileReports)


@dataclass(frozen=True, slots=True)
class KeptResults:
    """All runs that a bundle holds.

    Attributes:
        parity: On this machine and on every target.
        profile: Latencies.
        accuracy: Of ``evaluate``.
        instructions: What was counted, by target.
        accuracy_elsewhere: What ``evaluate`` found in other places, by place.
        latency_elsewhere: What other machines measured, by machine.
    """

    parity: ParityReports = field(default_factory=ParityReports)
    profile: ProfileReports = field(default_factory=ProfileReports)
    accuracy: EvaluationReports = field(default_factory=EvaluationReports)
    instructions: Mapping[str, InstructionReports] = field(default_factory=dict)
    accuracy_elsewhere: Mapping[str, EvaluationReports] = field(default_factory=dict)
    latency_elsewhere: Mapping[str, ProfileReports] = field(default_factory=dict)


def read_results(bundle: Bundle) -> KeptResults:
    """Read what ``parity``, ``profile`` and ``evaluate`` left in the bundle; what was not run is empty.

    Raises:
        BundleError: A document is damaged.
    """
    return KeptResults(
        _parity(bundle),
        read_kept(bundle, "profile.json", profile_reports.read_reports) or ProfileReports(),
        read_kept(bundle, "evaluate.json", evaluation_reports.read_reports) or EvaluationReports(),
        _by_place(bundle, "profile", instructions.read_reports),
        _by_place(bundle, EVALUATED, evaluation_reports.read_reports),
        _by_place(bundle, TIMED, profile_reports.read_reports),
    )


def layer_errors(bundle: Bundle) -> dict[str, dict[str, LayerError]]:
    """Return what ``parity`` found here of the layers of the bytes that each file has now, by path and layer id.

    Files that were not judged layer by layer are left out.

    Raises:
        BundleError: The document is damaged.
    """
    hashes = {artifact.path: artifact.sha256 for artifact in bundle.manifest.artifacts}
    reports = read_kept(bundle, "parity.json", parity_reports.read_reports) or ParityReports()
    return {
        run.artifact: {
            layer.layer_id: LayerError(
                layer.passed,
                layer.sqnr_db,
                layer.excess if layer.local_excess is None else layer.local_excess,
                layer.inherits,
            )
            for layer in run.result.layers
        }
        for run in latest(reports.runs, HERE, hashes)
        if run.artifact in hashes and run.sha256 is not None and is_current(run, hashes) and run.result.layers
    }


def read_kept(bundle: Bundle, name: str, read: Callable[[str], T]) -> T | None:
    """Return a document of ``reports/``; None where it was not written yet.

    Raises:
        BundleError: It is not JSON, of another schema, or misshapen.
    """
    path = bundle.root / REPORTS / name
    if not path.exists():
        return None
    try:
        return read(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        command = WRITTEN_BY.get(path.stem, f"{path.stem.partition('-')[0]} {bundle.root}")
        again = f"write it again with: coordatt-deploy {command.format(bundle=bundle.root)}"
        raise BundleError(f"reports/{name} cannot be read: {error}; {again}") from None


def document(kind: type[D], text: str) -> D:
    """Read a document of the current schema; for ``read_kept``."""
    parsed = parse_object(text)
    check_version(parsed, 1, kind.VERSION)
    return from_json(kind, parsed)


def _parity(bundle: Bundle) -> ParityReports:
    here = read_kept(bundle, "parity.json", parity_reports.read_reports) or ParityReports()
    others = (read_kept(bundle, path.name, parity_reports.read_reports) for path in _of_targets(bundle, JUDGED))
    return replace(here, runs=(*here.runs, *(run for item in others if item is not None for run in item.runs)))


def _by_place(bundle: Bundle, stem: str, read: Callable[[str], R]) -> dict[str, R]:
    found = {}
    for path in _of_targets(bundle, stem):
        reports = read_kept(bundle, path.name, read)
        runs = () if reports is None else reports.every if isinstance(reports, ProfileReports) else reports.runs
        if reports is not None and runs:
            found[runs[0].place] = reports
    return found


def _of_targets(bundle: Bundle, stem: str) -> list[Path]:
    """The documents of runs on other machines; see ``report_file.report_name``."""
    return sorted((bundle.root / REPORTS).glob(f"{stem}-*.json"))
