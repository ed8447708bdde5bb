"""``coordatt-deploy evaluate``."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from coordatt_deploy.commands.options import (
    bundle_argument,
    cluster_option,
    format_option,
    gathered,
    json_option,
    output_option,
    summary_options,
)
from coordatt_deploy.commands.output import print_result
from coordatt_deploy.commands.places import PlaceOptions, place_options
from coordatt_deploy.documents import member
from coordatt_deploy.formats import Format

if TYPE_CHECKING:
    from coordatt_deploy.fleet.plan import Fleet


@dataclass(frozen=True, slots=True)
class EvaluateOptions:
    """What to evaluate, and on what; see ``evaluation.run.EvaluationPlan``.

    Attributes:
        dataset: A folder, an ``.npz``, or the name of a packaged set; always given.
        formats: Empty for all.
        labels_by: How folders name classes, as it was written.
        limit: How many images at most.
        seed: Of the choice among them.
        workers: Processes; None for one per core.
        metric: What is scored; None for what the labels are made for.
        max_drop: By how much an artifact may be worse, in the metric's unit.
        places: Where the artifacts run.
        cluster: Address of a Dask scheduler whose workers run everything; None for here.
        junit: A further file for the figures.
        markdown: A file for a summary.
        output: A file for the figures in place of the bundle's.
    """

    dataset: str = ""
    formats: tuple[Format, ...] = ()
    labels_by: str | None = None
    limit: int | None = None
    seed: int = 0
    workers: int | None = None
    metric: str | None = None
    max_drop: float | None = None
    places: PlaceOptions = field(default_factory=PlaceOptions)
    cluster: str | None = None
    junit: Path | None = None
    markdown: Path | None = None
    output: Path | None = None


@click.command()
@bundle_argument
@gathered(
    EvaluateOptions(),
    click.option(
        "--dataset",
        required=True,
        help="A folder with a folder of images for each class, with images/ and masks/, or with a labels.json or"
        " labels.csv; an .npz; digits (packaged, held out), digits:all or scenes.",
    ),
    format_option("Only these."),
    click.option(
        "--labels-by",
        help="How folders name classes: name (a label of the bundle), index (its number), or order (sorted, as in"
        " torchvision).  [default: what fits]",
    ),
    click.option("--limit", type=int, help="Only so many images, drawn at random."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of that draw."),
    click.option("--workers", type=int, help="Processes.  [default: one per core]"),
    click.option(
        "--metric",
        metavar="top-1|miou|FILE.py:FUNCTION",
        help="What is scored.  [default: top-1 for classes, mIoU for masks]",
    ),
    click.option(
        "--max-drop",
        type=float,
        help="By how much an artifact may be worse: percentage points, or in the unit of your own metric; else exit"
        " code 1.",
    ),
    *place_options("Run on another machine's kernels:"),
    cluster_option("Share the images out to the workers of a Dask scheduler."),
    *summary_options("figures"),
    output_option("evaluate.json"),
)
@json_option
def evaluate(options: EvaluateOptions, bundle: Path, as_json: bool) -> None:
    """Measure the artifacts' accuracy on labelled images.

    Top-1 and top-5, mIoU, or a metric of your own, of the float64 reference and of every artifact, and a 95 % interval
    of the difference between the two. Without torch, the bundle's float32 artifact takes the reference's place. Images
    that cannot be read are named and counted. Writes reports/evaluate.json, or the file of --output.

    With several targets, or those of --targets, the images travel to each, which gets a column; one that fails is
    listed, the others' results are kept, and the exit code is 3.

    \b
    Example:
        coordatt-deploy evaluate mobilenetv2_ca_035.digits --dataset digits
        coordatt-deploy evaluate my_net --dataset photos/validation --limit 2000 --max-drop 0.5
        coordatt-deploy evaluate my_net --dataset photos/validation --max-drop 0.5 --markdown summary.md
        coordatt-deploy evaluate my_net --dataset photos/validation --cluster tcp://scheduler:8786
        coordatt-deploy evaluate my_detector --dataset street --metric map.py:mean_average_precision --max-drop 0.01
    """
    fleet = options.places.places()
    if fleet is not None:
        _at_places(options, bundle, fleet, as_json=as_json)
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.data.dataset import LabelsBy
    from coordatt_deploy.evaluation.run import EvaluationPlan, evaluate_bundle
    from coordatt_deploy.host import command_line
    from coordatt_deploy.report.evaluation_summary import evaluation_junit, evaluation_markdown
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal import evaluation as terminal_evaluation
    from coordatt_deploy.report_file import check_folder, write_text

    plan = EvaluationPlan(
        dataset=options.dataset,
        formats=options.formats or tuple(Format),
        limit=options.limit,
        seed=options.seed,
        workers=options.workers,
        metric=options.metric,
        max_drop=options.max_drop,
        labels_by=None if options.labels_by is None else member(LabelsBy, options.labels_by, "--labels-by"),
        target=options.places.one,
        cluster=options.cluster,
        output=options.output,
        command=command_line(sys.argv[1:]),
    )
    for file in filter(None, (options.junit, options.markdown)):
        check_folder(file)
    with console.bars() as stages:
        opened = open_bundle(bundle)
        evaluation = evaluate_bundle(opened, plan, stages)
    if options.junit is not None:
        write_text(options.junit, evaluation_junit(evaluation))
    if options.markdown is not None:
        write_text(options.markdown, evaluation_markdown(evaluation, opened.manifest.model.name))
    if as_json:
        print_result(evaluation.record())
    else:
        terminal_evaluation.show(evaluation)
        console.show_next(*terminal_evaluation.after_evaluate(opened, evaluation, options.dataset))
    sys.exit(evaluation.exit_code)


def _at_places(options: EvaluateOptions, bundle: Path, fleet: "Fleet", *, as_json: bool) -> NoReturn:
    """Run evaluate at every place, and end."""
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.commands.orders import judged_at_places, word

    own = options.metric if options.metric is not None and ":" in options.metric else None
    options.places.refuse(
        {
            "--junit": options.junit,
            "--markdown": options.markdown,
            "--metric of your own": own,
            "--cluster": options.cluster,
        }
    )
    images = Path(options.dataset)
    words = [
        *word("--dataset", images if images.exists() else options.dataset),
        *word("--format", *options.formats),
        *word("--labels-by", options.labels_by),
        *word("--limit", options.limit),
        *word("--seed", options.seed),
        *word("--workers", options.workers),
        *word("--metric", options.metric),
        *word("--max-drop", options.max_drop),
    ]
    judged_at_places("evaluate", bundle, fleet, words, options.formats, options.output, as_json=as_json)
