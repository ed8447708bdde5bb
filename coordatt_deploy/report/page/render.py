"""``report.html``: one file that people forward. No script, nothing fetched; every text is escaped.

It is made from the results that the bundle holds (``manifest.json``, ``reports/parity.json``, ``reports/profile.json``,
``reports/evaluate.json``), so that it says what those say. Results become views, in which every figure is a text
(``verdicts``, ``measurements``); the templates beside this module turn views into markup. Jinja escapes whatever it is
given; markup comes from templates and from ``plots`` alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined

from coordatt_deploy.errors import BundleError
from coordatt_deploy.evaluation.result import EvaluationResult
from coordatt_deploy.fleet.comparison import PlaceFigures
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.mixed_precision.result import SearchResult, Sensitivity
from coordatt_deploy.parity.reports import Standing
from coordatt_deploy.parity.result import ParityResult
from coordatt_deploy.profile.instructions import InstructionReports
from coordatt_deploy.profile.reports import ProfileReports, SustainedRun
from coordatt_deploy.profile.result import ProfileResult
from coordatt_deploy.report import imported_texts
from coordatt_deploy.report.page import elsewhere, measurements, verdicts
from coordatt_deploy.report.page.figures import Table, artifact_label
from coordatt_deploy.report.page.headline import Headline, headline
from coordatt_deploy.report.page.imported import imported_table
from coordatt_deploy.report.page.measurements import AccuracyView, LatencyView, Sizes
from coordatt_deploy.report.page.places import PlacesView, places_view
from coordatt_deploy.report.page.search_tradeoff import TradeoffView, tradeoffs
from coordatt_deploy.report.page.summary import Summary, summary
from coordatt_deploy.report.page.sustained import SustainedView, sustained_view
from coordatt_deploy.report.page.verdicts import Depth, Outputs
from coordatt_deploy.runtimes.file_graph import OperatorCount

TEMPLATES: Final = Environment(
    loader=PackageLoader("coordatt_deploy.report.page", ""),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
FIRST_SEARCH_PLOT: Final = 200
FIRST_SUSTAINED_PLOT: Final = 300
FIRST_PLACES_PLOT: Final = 400
FIRST_LATENCY_PLOT: Final = 100  # plots of a page have numbers of their own; those of parity begin at 1


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a report tells.

    Attributes:
        manifest: Of the bundle.
        folder: The bundle's, as it was named, for the commands.
        parity: None where parity was not run.
        profile: None where nothing was timed.
        operators: By artifact path; files that cannot be opened here have no entry.
        footer: When and by which version, for the foot of the page.
        accuracy: By dataset and metric, the last one first; empty where accuracy was not measured.
        standings: What is known of each file of the manifest, from all runs; empty where only *parity* is known.
        instructions: Counted on other machines' kernels, by target.
        sensitivity: What int8 costs layer by layer; None where it was not asked.
        search: How the search for the fewest layers in float ended; None without one.
        commands: That made the results, in the order in which they ended.
        latency_elsewhere: What other machines measured, by machine.
        sustained: Latencies over time, of the bytes that the files have now.
        places: What every place says of every file; empty where only this machine was asked.
    """

    manifest: Manifest
    folder: str
    parity: ParityResult | None
    profile: ProfileResult | None
    operators: Mapping[str, OperatorCount] = field(default_factory=dict)
    footer: str = ""
    accuracy: tuple[EvaluationResult, ...] = ()
    standings: tuple[Standing, ...] = ()
    instructions: Mapping[str, InstructionReports] = field(default_factory=dict)
    sensitivity: Sensitivity | None = None
    search: SearchResult | None = None
    commands: tuple[str, ...] = ()
    latency_elsewhere: Mapping[str, ProfileReports] = field(default_factory=dict)
    sustained: tuple[SustainedRun, ...] = ()
    places: tuple[PlaceFigures, ...] = ()


@dataclass(frozen=True, slots=True)
class PageView:
    """The sections of the page, from top to bottom; None for those that have nothing to tell.

    Attributes:
        headline: The verdict over all files.
        contents: Ids and titles of the sections, from top to bottom.
        summary: What is known of each file, in one table.
        evidence: What each verdict rests on.
        depth: Agreement along the depth of the network.
        outputs: Errors at the outputs.
        further: Verdicts on other inputs, in other places, by other tolerances.
        accuracy: On labelled images, dataset by dataset.
        sensitivities: What int8 costs layer by layer, format by format.
        search: How the search for the fewest layers in float ended.
        tradeoffs: How the search for a file that keeps limits of size or latency ended, format by format.
        latency: On this machine.
        sustained: Over time, under load.
        latency_elsewhere: On other machines.
        imported: On other machines, by other tools.
        imported_caution: What these are worth.
        places: All places side by side.
        instructions: On other CPUs, target by target.
        sizes: Sizes and operators.
        layers: A table of every layer for each file; empty where layers were not judged.
        machine: Names and values.
        commands: One a line.
        footer: When and by which version.
    """

    headline: Headline
    contents: tuple[tuple[str, str], ...]
    summary: Summary
    evidence: Table | None
    depth: Depth | None
    outputs: Outputs | None
    further: Table | None
    accuracy: tuple[AccuracyView, ...]
    sensitivities: tuple[Table, ...]
    search: Table | None
    tradeoffs: tuple[TradeoffView, ...]
    latency: LatencyView | None
    sustained: SustainedView | None
    latency_elsewhere: Table | None
    imported: Table | None
    imported_caution: str
    places: PlacesView | None
    instructions: tuple[Table, ...]
    sizes: Sizes
    layers: tuple[Table, ...]
    machine: tuple[tuple[str, str], ...]
    commands: str
    footer: str


def page(contents: Contents) -> str:
    """Return the report as one HTML document.

    Raises:
        BundleError: A result holds figures that nobody can have measured, such as a latency without samples.
    """
    try:
        view = _view(contents)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError) as error:
        raise BundleError(
            f"a document in reports/ is damaged ({type(error).__name__}: {error});"
            f" write it again with: coordatt-deploy parity {contents.folder}, and coordatt-deploy profile"
            f" {contents.folder}"
        ) from error
    return TEMPLATES.get_template("page.html").render(page=view)


def _view(contents: Contents) -> PageView:
    manifest, parity, profile = contents.manifest, contents.parity, contents.profile
    labels = {item.path: artifact_label(item) for item in manifest.artifacts}
    timed = elsewhere.timed_elsewhere(contents.latency_elsewhere, manifest)
    view = PageView(
        headline=headline(manifest, parity, contents.standings),
        contents=(),
        summary=summary(manifest, parity, profile, contents.standings, contents.accuracy, timed),
        evidence=verdicts.evidence(parity, contents.standings) if parity else None,
        depth=verdicts.depth(parity) if parity else None,
        outputs=verdicts.outputs(parity) if parity else None,
        further=elsewhere.further_runs([run for item in contents.standings for run in item.further]),
        accuracy=tuple(measurements.accuracy_view(item, manifest) for item in contents.accuracy),
        sensitivities=elsewhere.sensitivities(contents.sensitivity),
        search=elsewhere.search(contents.search),
        tradeoffs=tradeoffs(contents.search, FIRST_SEARCH_PLOT),
        latency=measurements.latency_view(profile, FIRST_LATENCY_PLOT, labels) if profile else None,
        sustained=sustained_view(contents.sustained, FIRST_SUSTAINED_PLOT, labels),
        latency_elsewhere=elsewhere.latencies(timed, labels),
        imported=imported_table(
            contents.latency_elsewhere, {item.path: item.sha256 for item in manifest.artifacts}, labels
        ),
        imported_caution=imported_texts.CAUTION,
        places=places_view(contents.places, labels, FIRST_PLACES_PLOT),
        instructions=elsewhere.instructions(contents.instructions),
        sizes=measurements.sizes(manifest, contents.operators),
        layers=verdicts.layer_tables(parity) if parity else (),
        machine=measurements.machine(manifest, profile),
        commands=measurements.commands(manifest, contents.folder, contents.commands),
        footer=contents.footer,
    )
    return replace(view, contents=tuple(_sections(view)))


def _sections(view: PageView) -> Iterator[tuple[str, str]]:
    """Yield ids and titles of the sections that have something to tell."""
    yield "summary", "Summary"
    told = (
        ("depth", "Layer by layer", view.depth), ("outputs", "Outputs", view.outputs),
        ("further", "Further runs", view.further), ("accuracy", "Accuracy", view.accuracy),
        ("int8", "Int8 by layer", view.sensitivities or view.search or view.tradeoffs),
        ("latency", "Latency", view.latency), ("sustained", "Sustained", view.sustained),
        ("latency-elsewhere", "Latency elsewhere", view.latency_elsewhere),
        ("imported", "Imported", view.imported),
        ("places", "Places", view.places),
        ("instructions", "Instructions", view.instructions),
    )  # fmt: skip
    yield from ((key, title) for key, title, found in told if found)
    yield "sizes", "Operators"
    if view.layers:
        yield "layers", "Every layer"
    yield from (("machine", "Machine"), ("repeat", "Repeat it"))
