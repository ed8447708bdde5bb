"""One command at many places: sent, run, waited for; what comes back is held to the bundle and kept with it.

Places on other machines work at the same time. This machine and those emulated on it come after them, one after
another: they would take each other's time. A place that fails is told with its reason, and costs the others nothing.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias, TypeVar

from coordatt_deploy.added_results import Addition, add, answer_of
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.documents import Document, dump, load
from coordatt_deploy.errors import DeployError, UsageError
from coordatt_deploy.evaluation.reports import EvaluationReports
from coordatt_deploy.fleet.plan import Fleet, FleetHost
from coordatt_deploy.fleet.result import FAILED, FleetResult, Found, PlaceResult
from coordatt_deploy.inspection.installation import Installation
from coordatt_deploy.inspection.result import BundleInspectionResult, InspectionResult
from coordatt_deploy.parity.reports import ParityReports
from coordatt_deploy.profile.instructions import InstructionReports
from coordatt_deploy.progress import Stages
from coordatt_deploy.report_file import ReportFile, check_folder, write_text
from coordatt_deploy.targets import places
from coordatt_deploy.targets.places import Delivery, Order, Travelling

Read: TypeAlias = Callable[[FleetHost, str, Mapping[str, str]], tuple[Found, bool]]
"""Reads the document of a place, given what paths that it names are called here; says also whether a check failed."""

D = TypeVar("D", bound=Document)


def judge_at_places(
    bundle: Bundle, fleet: Fleet, order: Order, stages: Stages, *, formats: Sequence[str], output: Path | None = None
) -> FleetResult:
    """Run ``parity``, ``profile`` or ``evaluate`` at every place, and keep what comes back in ``reports/``.

    Args:
        bundle: Opened; it is what travels.
        fleet: The places.
        order: The command.
        stages: Shows the progress.
        formats: That were asked for: a place has to say something of each file of these.
        output: A file for all that comes back, in place of the bundle's reports.

    Raises:
        UsageError: Nothing could be kept.
    """
    if output is None:
        ReportFile(bundle, f"{order.command}.json").check()
    else:
        check_folder(output)
    asked = [artifact.path for artifact in bundle.manifest.artifacts if artifact.format in formats]
    additions: list[Addition] = []

    def read(host: FleetHost, text: str, names: Mapping[str, str]) -> tuple[Found, bool]:
        origin = places.name_of(host.target).origin
        addition = answer_of(bundle, text, order.command, host.name, origin, names)
        _check_complete(addition, asked)
        _check_dataset(addition, order)
        additions.append(addition)
        return _found(addition), _has_failed(addition)

    result = at_places(fleet, order, read, stages)
    if output is None:
        add(bundle, [item for item in additions if item.reports.runs])
    else:
        write_text(output, dump(result))
    return result


def inspect_at_places(fleet: Fleet, order: Order, stages: Stages, *, whole: bool) -> FleetResult:
    """Run ``inspect`` at every place.

    Args:
        fleet: The places.
        order: The command.
        stages: Shows the progress.
        whole: Whether a bundle is inspected, and not one file or model.
    """

    def read(host: FleetHost, text: str, _: Mapping[str, str]) -> tuple[Found, bool]:
        if whole:
            return Found(bundle_inspection=_loaded(BundleInspectionResult, host, text)), False
        return Found(inspection=_loaded(InspectionResult, host, text)), False

    return at_places(fleet, order, read, stages)


def examine_places(fleet: Fleet, stages: Stages) -> FleetResult:
    """Run ``doctor`` at every place."""

    def read(host: FleetHost, text: str, _: Mapping[str, str]) -> tuple[Found, bool]:
        return Found(installation=_loaded(Installation, host, text)), False

    return at_places(fleet, Order("doctor", writes=False), read, stages)


def at_places(fleet: Fleet, order: Order, read: Read, stages: Stages) -> FleetResult:
    """Run a command at every place; see ``Read`` for what becomes of its document."""
    stopped = threading.Event()
    elsewhere = [host for host in fleet.hosts if places.is_elsewhere(host.target)]
    found: dict[str, PlaceResult] = {}
    with ThreadPoolExecutor(max_workers=fleet.at_once, thread_name_prefix="place") as threads:
        try:
            work = {host.name: threads.submit(_at, host, order, read, stages, stopped) for host in elsewhere}
            wait(work.values())
            for host in fleet.hosts:
                if host not in elsewhere:
                    own: Future[PlaceResult] = threads.submit(_at, host, order, read, stages, stopped)
                    wait([own])
                    work[host.name] = own
        except BaseException:
            stopped.set()
            threads.shutdown(cancel_futures=True)
            raise
        found = {name: item.result() for name, item in work.items()}
    return FleetResult(order.command, tuple(found[host.name] for host in fleet.hosts))


def _at(host: FleetHost, order: Order, read: Read, stages: Stages, stopped: threading.Event) -> PlaceResult:
    nothing = PlaceResult(host.name, host.target, host.cpu, None, None)
    try:
        place = places.open_place(host.target, tool=host.tool, stopped=stopped)
        delivery = place.run(order, stages)
    except (DeployError, OSError) as error:
        return replace(nothing, problem=str(error))
    result = replace(nothing, exit_code=delivery.status, sent_bytes=delivery.sent_bytes)
    if delivery.document is None:
        return replace(result, problem=_why(order, delivery))
    try:
        found, failed = read(host, delivery.document.decode("utf-8"), delivery.names)
    except UnicodeDecodeError as error:
        return replace(result, problem=f"{host.name} did not answer with a document of {order.command}: {error}")
    except DeployError as error:
        return replace(result, problem=str(error))
    problem = None if delivery.status in (0, FAILED) else _why(order, delivery)
    return replace(result, found=found, exit_code=FAILED if failed else delivery.status, problem=problem)


def _why(order: Order, delivery: Delivery) -> str:
    return delivery.reason or f"{order.command} ended with exit code {delivery.status} there and said nothing"


def _loaded(kind: type[D], host: FleetHost, text: str) -> D:
    try:
        return load(kind, text)
    except ValueError as error:
        raise UsageError(f"{host.name} did not answer with a document of this command: {error}") from None


def _check_complete(addition: Addition, asked: Sequence[str]) -> None:
    """Refuse an answer that is silent about a file that was asked for.

    Raises:
        UsageError: It says nothing of a file.
    """
    reports = addition.reports
    told = {run.artifact for run in reports.runs}
    if isinstance(reports, ParityReports | EvaluationReports | InstructionReports):
        told |= {item.path for item in reports.skipped}
    else:
        told |= {item.path for session in reports.sessions for item in session.skipped}
    silent = [path for path in asked if path not in told]
    if silent:
        raise UsageError(
            f"{addition.place} says nothing of {', '.join(silent)}; is coordatt-deploy there of another version?"
        )


def _check_dataset(addition: Addition, order: Order) -> None:
    """Refuse an accuracy on other images than were asked for.

    Raises:
        UsageError: It names another dataset.
    """
    if not isinstance(addition.reports, EvaluationReports):
        return
    word = order.words[order.words.index("--dataset") + 1]
    asked = str(word.path) if isinstance(word, Travelling) else word
    for run in addition.reports.runs:
        if run.dataset.source != asked:
            raise UsageError(
                f"{addition.place} tells of the dataset {run.dataset.source!r}, asked was {asked!r}; is coordatt-deploy"
                " there of another version?"
            )


def _found(addition: Addition) -> Found:
    reports = addition.reports
    if isinstance(reports, ParityReports):
        return Found(parity=reports)
    if isinstance(reports, EvaluationReports):
        return Found(evaluation=reports)
    return Found(instructions=reports) if isinstance(reports, InstructionReports) else Found(profile=reports)


def _has_failed(addition: Addition) -> bool:
    """Whether the document tells of a failed check, whatever exit code came with it."""
    reports = addition.reports
    if isinstance(reports, ParityReports):
        layers = any(graph.layers_passed is False for graph in reports.graphs)
        return layers or any(run.result.passed is False for run in reports.runs)
    return isinstance(reports, EvaluationReports) and any(run.result.passed is False for run in reports.runs)
