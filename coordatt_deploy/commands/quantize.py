"""``coordatt-deploy quantize``."""

import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from coordatt_deploy.commands.options import (
    CalibrationOptions,
    LimitOptions,
    bundle_argument,
    calibration_options,
    cluster_option,
    format_option,
    gathered,
    json_option,
    limit_options,
    strict_option,
    target_cpu_option,
)
from coordatt_deploy.commands.output import document_of, print_document, refusals_told
from coordatt_deploy.documents import to_json
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format, TargetCpu

if TYPE_CHECKING:
    from coordatt_deploy.conversion.plan import QuantizePlan
    from coordatt_deploy.mixed_precision.search_plan import SearchImages, SearchPlan, TradeoffPlan


@dataclass(frozen=True, slots=True)
class QuantizeOptions:
    """What to quantize.

    Attributes:
        calibration: What it is measured on.
        limits: For how old a runtime; what the bundle was exported with where nothing is said.
        recipes: Names and files; empty for the usual one.
        formats: Empty for every format of the bundle that can express the recipe.
        target_cpus: Empty for those of the bundle's float files.
        sensitivity: Rank the layers, and write nothing.
        max_drop: By how much the metric may be worse; None for no search.
        max_size: Of a file, as it was written; None for any size.
        max_latency: The same of a call.
        metric: What is scored in the search; None for what the labels are made for.
        dataset: Labelled images for the search.
        limit: How many of them at most.
        cluster: Address of a Dask scheduler whose workers run artifacts on them; None for here.
        strict: Whether all files are to be written, or none.
    """

    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    limits: LimitOptions = field(default_factory=LimitOptions)
    recipes: tuple[str, ...] = ()
    formats: tuple[Format, ...] = ()
    target_cpus: tuple[TargetCpu, ...] = ()
    sensitivity: bool = False
    max_drop: float | None = None
    max_size: str | None = None
    max_latency: str | None = None
    metric: str | None = None
    dataset: str | None = None
    limit: int | None = None
    cluster: str | None = None
    strict: bool = False


@click.command()
@bundle_argument
@gathered(
    QuantizeOptions(),
    click.option(
        "--recipe",
        "recipes",
        multiple=True,
        help="int8 (static_wi8_ai8), dynamic_wi8_afp32, weight_only_wi8, palettized_w6 and others, or a recipe file"
        " (.json); repeatable.  [default: static_wi8_ai8]",
    ),
    format_option("Repeatable; default: every format of the bundle that can express the recipe."),
    target_cpu_option("For ONNX; repeatable; default: those of the bundle's float files."),
    calibration_options,
    click.option(
        "--sensitivity", is_flag=True, help="Write nothing: rank the layers by what int8 costs in each alone."
    ),
    click.option(
        "--max-drop",
        type=float,
        help="By how much the metric may be worse, in percentage points of top-1 or mIoU, or in the unit of your own:"
        " keeps the fewest layers in float that this takes, else exit code 1.",
    ),
    click.option(
        "--max-size",
        metavar="SIZE",
        help="1MB, 700kB, or 0.3x of the float file: writes the most accurate that is no larger, else exit code 1.",
    ),
    click.option(
        "--max-latency",
        metavar="TIME",
        help="5ms, or 0.9x of the float file, which takes turns with it: the same for the latency on this CPU.",
    ),
    click.option(
        "--metric",
        metavar="top-1|miou|FILE.py:FUNCTION",
        help="What is scored in a search.  [default: top-1 for classes, mIoU for masks]",
    ),
    click.option(
        "--dataset",
        help="Labelled images for a search, as evaluate takes them.  [default: the calibration data's labels]",
    ),
    click.option("--limit", type=int, help="Only so many of these images, drawn at random."),
    cluster_option("Share these images out to the workers of a Dask scheduler."),
    strict_option,
    limit_options,
)
@json_option
def quantize(options: QuantizeOptions, bundle: Path, as_json: bool) -> None:
    """Write int8 and other small artifacts into BUNDLE, beside the float ones.

    Static recipes measure activations on calibration data: images of the kind that the model will meet, through the
    model's own preprocessing. They are looked at before use, and whatever is wrong with them is said.

    --sensitivity ranks the layers, by simulation, and measures the costliest with real artifacts. --max-drop searches
    for the fewest layers that must stay in float, and writes what it found into a recipe file that replays it.

    --max-size and --max-latency try every recipe that a format has (or those of --recipe) and write the most accurate
    file that keeps all limits; of those that the images cannot tell apart, the smallest, or without --max-size the
    fastest. Where none keeps them, nothing is written, and what comes nearest is named.

    \b
    Example:
        coordatt-deploy quantize mobilenetv2_ca_035.digits
        coordatt-deploy quantize ca_100 --recipe static_wi8_ai8 --calibration-data photos --format tflite
        coordatt-deploy quantize ca_100 --recipe dynamic_wi8_afp32 --recipe palettized_w6
        coordatt-deploy quantize ca_100 --calibration-data photos --sensitivity --format tflite
        coordatt-deploy quantize ca_100 --calibration-data photos --max-drop 0.5 --dataset validation
        coordatt-deploy quantize ca_100 --calibration-data photos --max-size 1MB --max-drop 1 --dataset validation
        coordatt-deploy quantize detector --max-drop 0.01 --metric map.py:mean --calibration-data street
    """
    limited = options.max_size is not None or options.max_latency is not None
    if limited and options.sensitivity:
        raise UsageError("--sensitivity ranks layers and writes nothing; leave it out, or the limits")
    tradeoff = _tradeoff_plan(options) if limited else None
    if tradeoff is not None:
        _weigh(bundle, tradeoff, as_json=as_json)
    plan = _plan(options)
    if options.max_drop is not None:
        _rank(bundle, plan, _search_plan(plan, options, options.max_drop), options, as_json=as_json)
    searching = any(item is not None for item in (options.dataset, options.limit, options.metric, options.cluster))
    ours = "--dataset, --metric, --limit and --cluster are for --max-drop, --max-size and --max-latency"
    if options.sensitivity:
        if searching:
            raise UsageError(f"{ours}; the ranking uses the calibration data")
        _rank(bundle, plan, None, options, as_json=as_json)
    if searching:
        raise UsageError(f"{ours}; to measure what is there: coordatt-deploy evaluate")
    _quantize(bundle, plan, as_json=as_json)


def _quantize(bundle: Path, plan: "QuantizePlan", *, as_json: bool) -> NoReturn:
    # When the plan is right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.conversion.quantize_run import quantize as run
    from coordatt_deploy.report.terminal import build as terminal_build
    from coordatt_deploy.report.terminal import console

    with refusals_told(), console.bars() as stages:
        written = run(open_bundle(bundle), plan, stages)
    manifest = written.manifest
    if as_json:
        print_document({
            "bundle": str(written.root),
            "artifacts": to_json(manifest.artifacts),
            "quantization": to_json(manifest.quantization),
            "refused": to_json(manifest.refused),
        })  # fmt: skip
    else:
        terminal_build.show_artifacts(written)
        console.show_next(*terminal_build.after_quantize(written))
    sys.exit(1 if written.refused else 0)


def _plan(options: QuantizeOptions, *, every_recipe: bool = False) -> "QuantizePlan":
    # When the options are right, what makes the plan: see coordatt_deploy.cli.
    from coordatt_deploy.conversion.plan import QuantizePlan
    from coordatt_deploy.data.calibration import COUNT
    from coordatt_deploy.host import command_line
    from coordatt_deploy.quantization.recipes import STATIC_INT8, all_recipes, load_recipe

    usual = all_recipes() if every_recipe else (STATIC_INT8,)
    recipes = [load_recipe(name) for name in options.recipes or usual]
    calibration = options.calibration
    if calibration.ranges is not None:
        recipes = [replace(recipe, ranges=calibration.ranges) for recipe in recipes]
    return QuantizePlan(
        recipes=tuple(recipes),
        formats=options.formats,
        target_cpus=options.target_cpus,
        calibration=calibration.data,
        count=COUNT if calibration.count is None else calibration.count,
        seed=calibration.seed,
        strict=options.strict,
        command=command_line(sys.argv[1:]),
        limits=options.limits.limits() if options.limits.given else None,
    )


def _search_plan(plan: "QuantizePlan", options: QuantizeOptions, max_drop: float) -> "SearchPlan":
    # When the options are right, what makes the plan: see coordatt_deploy.cli.
    from coordatt_deploy.mixed_precision.search_plan import MAX_DROP, SearchPlan

    return SearchPlan(plan, max_drop, _search_images(options, MAX_DROP))


def _search_images(options: QuantizeOptions, option: str) -> "SearchImages":
    # When the options are right, what makes the plan: see coordatt_deploy.cli.
    from coordatt_deploy.mixed_precision.search_plan import SearchImages

    return SearchImages(
        option,
        dataset=options.dataset,
        limit=options.limit,
        seed=options.calibration.seed,
        metric=options.metric,
        cluster=options.cluster,
    )


def _tradeoff_plan(options: QuantizeOptions) -> "TradeoffPlan":
    # When the options are right, what makes the plan: see coordatt_deploy.cli.
    from coordatt_deploy.mixed_precision.search_plan import TradeoffPlan, limits_of

    size, latency = limits_of(options.max_size, options.max_latency)
    every = not options.recipes
    images = _search_images(options, "--max-latency" if size is None else "--max-size")
    return TradeoffPlan(_plan(options, every_recipe=every), size, latency, options.max_drop, images, every_recipe=every)


def _weigh(bundle: Path, plan: "TradeoffPlan", *, as_json: bool) -> NoReturn:
    """Search for the files that keep the limits, print, and end the command."""
    # When the plan is right, what does the work (torch among it): see coordatt_deploy.cli.
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.bundle_writing import check_free
    from coordatt_deploy.mixed_precision.tradeoff import search_tradeoff
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal.tradeoff import show_tradeoff

    with console.bars() as stages:
        opened = open_bundle(bundle)
        check_free(bundle)
        _, found = search_tradeoff(opened, plan, stages)
    if as_json:
        print_document({"bundle": str(bundle), "search": document_of(found)})
    else:
        show_tradeoff(found, bundle)
    sys.exit(0 if found.reached else 1)


def _rank(
    bundle: Path,
    plan: "QuantizePlan",
    searching: "SearchPlan | None",
    options: QuantizeOptions,
    *,
    as_json: bool,
) -> NoReturn:
    """Rank the layers, search for the fewest in float where a drop is given, print, and end the command."""
    # When the plan is right, what does the work (torch among it): see coordatt_deploy.cli.
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.bundle_writing import check_free
    from coordatt_deploy.mixed_precision.ranking import rank_layers
    from coordatt_deploy.mixed_precision.search import search
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal import search as layer_costs

    found = None
    with console.bars() as stages:
        opened = open_bundle(bundle)
        if searching is not None:
            check_free(bundle)
        ranked, document = rank_layers(opened, plan, stages)
        if searching is not None:
            _, found = search(opened, searching, ranked, stages)
    if as_json:
        ranking, searched = document_of(document), None if found is None else document_of(found)
        print_document({"bundle": str(bundle), "sensitivity": ranking, "search": searched})
    else:
        layer_costs.show(document, bundle, every=options.sensitivity)
        if found is not None:
            layer_costs.show_search(found, bundle)
    sys.exit(1 if found is not None and not found.reached else 0)
