"""``coordatt-deploy diff``."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import click

from coordatt_deploy.commands.options import (
    PATH,
    completing,
    format_option,
    gathered,
    json_option,
    member_of,
    members,
    share,
    summary_options,
)
from coordatt_deploy.commands.output import print_result
from coordatt_deploy.formats import Format
from coordatt_deploy.release.diff_result import ChangeKind, DiffSettings


@dataclass(frozen=True, slots=True)
class DiffOptions:
    """What to compare, and where the verdicts go; see ``release.diff.DiffPlan``.

    Attributes:
        settings: By what to judge.
        formats: Only files of these; empty for all.
        dataset: Labelled images that both bundles are run on.
        metric: What is scored on them.
        latency: Whether files are timed.
        measure_identical: Whether equal bytes are timed as well.
        junit: A further file for the verdicts.
        markdown: A file for a summary.
        html: A file for a page.
    """

    settings: DiffSettings = field(default_factory=DiffSettings)
    formats: tuple[Format, ...] = ()
    dataset: str | None = None
    metric: str | None = None
    latency: bool = True
    measure_identical: bool = False
    junit: Path | None = None
    markdown: Path | None = None
    html: Path | None = None


@click.command()
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@gathered(
    DiffOptions(),
    click.option(
        "--min-effect", type=share, default="3%", show_default=True, metavar="PERCENT",
        help="The least change of a latency that counts.",
    ),
    click.option(
        "--min-seconds", type=float, default=60.0, show_default=True,
        help="Time that each pair of files is given before its latency stays inconclusive; most need a part of it.",
    ),
    click.option("--threads", type=int, default=1, show_default=True, help="Of the runtimes, while files are timed."),
    click.option(
        "--max-size-growth", type=share, default="1%", show_default=True, metavar="PERCENT",
        help="By how much a file may grow.",
    ),
    click.option(
        "--max-drop", type=float, default=1.0, show_default=True,
        help="By how much accuracy may fall: percentage points, or in the unit of your own metric.",
    ),
    click.option(
        "--dataset",
        help="Run both bundles on these labelled images (as for evaluate), instead of what evaluate left in them.",
    ),
    click.option(
        "--metric",
        metavar="top-1|miou|FILE.py:FUNCTION",
        help="What is scored on them.  [default: top-1 for classes, mIoU for masks]",
    ),
    click.option(
        "--accept", multiple=True, type=member_of(ChangeKind, "kind of change"), metavar=members(ChangeKind),
        shell_complete=completing(ChangeKind), help="Regressions of this kind are shown and do not fail. Repeatable.",
    ),
    click.option(
        "--fail-inconclusive", is_flag=True, help="Exit code 1 as well where something is inconclusive."
    ),
    click.option("--latency/--no-latency", default=True, help="Whether files are timed.  [default: they are]"),
    click.option(
        "--measure-identical", is_flag=True, help="Time equal bytes, too: how noisy is this machine?"
    ),
    format_option("Only these."),
    *summary_options("verdicts"),
    click.option("--html", type=PATH, help="Write one page of all of it there."),
)  # fmt: skip
@json_option
def diff(options: DiffOptions, a: Path, b: Path, as_json: bool) -> None:
    """Say what became of one bundle in another, and fail on a regression.

    Compares what an app relies on (preprocessing, labels, inputs, outputs), files, sizes, operators, what accelerators
    take, parity, accuracy and latency of B with A. Files are timed against each other in one run, with A against itself
    as a control; a latency is a regression where it is significant and at least --min-effect. Two profile.json of one
    machine are compared by their latencies. Exit code 1 for a regression; "inconclusive" says what would decide it.

    \b
    Example:
        coordatt-deploy diff last_release release --markdown diff.md
        coordatt-deploy diff last_release release --dataset photos/validation --accept size --fail-inconclusive
        coordatt-deploy diff monday/profile.json tuesday/profile.json
    """
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.release import diff as release_diff
    from coordatt_deploy.report.diff_summary import diff_junit, diff_markdown
    from coordatt_deploy.report.page.diff_page import diff_page
    from coordatt_deploy.report.terminal.console import bars
    from coordatt_deploy.report.terminal.diff import show_diff
    from coordatt_deploy.report_file import check_folder, write_text

    plan = release_diff.DiffPlan(
        options.settings,
        options.formats or tuple(Format),
        options.dataset,
        options.metric,
        options.latency,
        options.measure_identical,
    )
    files = ((options.junit, diff_junit), (options.markdown, diff_markdown), (options.html, diff_page))
    for file, _ in files:
        if file is not None:
            check_folder(file)
    with bars() as stages:
        result = release_diff.diff(a, b, plan, stages)
    for file, written in files:
        if file is not None:
            write_text(file, written(result))
    if as_json:
        print_result(result)
    else:
        show_diff(result)
    sys.exit(result.exit_code)
