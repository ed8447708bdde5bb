"""``coordatt-deploy evaluate``."""

import sys
from dataclasses import dataclass
from pathlib import Path

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
from coordatt_deploy.documents import member
from coordatt_deploy.formats import Format


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
        target: Where the artifacts run; None for here.
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
    target: str | None = None
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
    click.option("--target", help="Run on another machine's kernels: qemu-arm64, or qemu-arm64:CPU."),
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

    \b
    Example:
        coordatt-deploy evaluate mobilenetv2_ca_035.digits --dataset digits
        coordatt-deploy evaluate my_net --dataset photos/validation --limit 2000 --max-drop 0.5
        coordatt-deploy evaluate my_net --dataset photos/validation --max-drop 0.5 --markdown summary.md
        coordatt-deploy evaluate my_net --dataset photos/validation --cluster tcp://scheduler:8786
        coordatt-deploy evaluate my_detector --dataset street --metric map.py:mean_average_precision --max-drop 0.01
    """
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
        target=options.target,
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
