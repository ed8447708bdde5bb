"""``coordatt-deploy parity``."""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from coordatt_deploy.commands.options import (
    PATH,
    bundle_argument,
    format_option,
    gathered,
    json_option,
    member_of,
    members,
    output_option,
    summary_options,
)
from coordatt_deploy.commands.output import print_result
from coordatt_deploy.commands.places import PlaceOptions, place_options
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format

if TYPE_CHECKING:
    from coordatt_deploy.fleet.plan import Fleet


@dataclass(frozen=True, slots=True)
class ParityOptions:
    """What to judge, on what, and where the verdicts go.

    Attributes:
        formats: Empty for all.
        show_layers: Print a row per layer.
        outputs_only: Judge the outputs alone.
        tolerance: A file of other tolerances.
        inputs: A file or folder of other inputs.
        save_failing: A folder for the first failing layer.
        places: Where the artifacts run.
        junit: A further file for the verdicts.
        markdown: A file for a summary.
        output: A file for the verdicts in place of the bundle's.
        require: Formats that must be judged.
    """

    formats: tuple[Format, ...] = ()
    show_layers: bool = False
    outputs_only: bool = False
    tolerance: Path | None = None
    inputs: Path | None = None
    save_failing: Path | None = None
    places: PlaceOptions = field(default_factory=PlaceOptions)
    junit: Path | None = None
    markdown: Path | None = None
    output: Path | None = None
    require: tuple[Format, ...] = ()


@click.command()
@bundle_argument
@gathered(
    ParityOptions(),
    format_option("Only these."),
    click.option(
        "--require",
        multiple=True,
        type=member_of(Format, "format"),
        metavar=members(Format),
        help="Its files must be judged: exit code 3 if one cannot be run here. Repeatable.",
    ),
    click.option("--layers", "show_layers", is_flag=True, help="Print a row per layer."),
    click.option("--outputs-only", is_flag=True, help="Judge the outputs alone, not every layer."),
    click.option(
        "--tolerance",
        type=PATH,
        help="Other tolerances, as TOML or JSON: [onnx.fp32] with multiple, or min_sqnr_db, and min_top1_agreement.",
    ),
    click.option(
        "--inputs",
        type=PATH,
        help="Other inputs: an .npz with an array for each input, (cases, C, H, W), or a folder of images.",
    ),
    click.option(
        "--save-failing",
        type=click.Path(path_type=Path, file_okay=False),
        help="Write inputs and tensors of the first failing layer there, to attach to a bug report.",
    ),
    *place_options("Run on another machine's kernels:"),
    *summary_options("verdicts"),
    output_option("parity.json"),
)
@json_option
def parity(options: ParityOptions, bundle: Path, as_json: bool) -> None:
    """Prove that the artifacts compute the same function.

    Runs each on the golden inputs and compares outputs and layers with the float64 reference; the first layer that
    differs is named. What cannot be run here is skipped, and said. Exit code 1 if any artifact fails, 3 if none could
    be run, or one of a format that --require names. Writes reports/parity.json and reports/junit.xml, or the file of
    --output alone; with --target, both names end in the target's. With several targets, or those of --targets, each
    runs parity itself and gets a column; one that cannot is listed, the others' results are kept: exit code 3.

    \b
    Example:
        coordatt-deploy parity mobilenetv2_ca_035.digits
        coordatt-deploy parity mobilenetv2_ca_035.digits --layers
        coordatt-deploy parity mobilenetv2_ca_035.digits --inputs photos --save-failing failing
        coordatt-deploy parity mobilenetv2_ca_035.digits --require onnx --require tflite
        coordatt-deploy parity mobilenetv2_ca_035.digits --target qemu-arm64
        coordatt-deploy parity mobilenetv2_ca_035.digits --target here --target ssh://pi@pi4.local
    """
    by_layer = options.show_layers or options.save_failing is not None
    if options.outputs_only and by_layer:
        raise UsageError("--outputs-only judges no layer; leave it out, or --layers and --save-failing")
    fleet = options.places.places()
    if fleet is not None:
        _at_places(options, bundle, fleet, as_json=as_json)
    target = options.places.one
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.host import command_line
    from coordatt_deploy.parity.on_target import check_parity_on
    from coordatt_deploy.parity.run import ParityPlan, check_parity
    from coordatt_deploy.parity.tolerances import BUILT_IN, read_tolerances
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal import parity as terminal_parity
    from coordatt_deploy.report.write import write_summaries
    from coordatt_deploy.report_file import check_folder

    plan = ParityPlan(
        formats=options.formats or tuple(Format),
        # a target is slow: layers only where they are asked for
        layers=not options.outputs_only if target is None else by_layer,
        need_layers=options.show_layers,
        tolerances=BUILT_IN if options.tolerance is None else read_tolerances(options.tolerance),
        inputs=options.inputs,
        save_failing=options.save_failing,
        output=options.output,
        require=options.require,
        command=command_line(sys.argv[1:]),
    )
    for file in filter(None, (options.junit, options.markdown)):
        check_folder(file)
    with console.bars() as stages:
        opened = open_bundle(bundle)
        judge = check_parity if target is None else partial(check_parity_on, target=target)
        report = judge(opened, plan, stages=stages)
    result = report.record()
    write_summaries(opened, result, options.junit, options.markdown, inside=options.output is None)
    if as_json:
        print_result(result)
    else:
        terminal_parity.show_parity(opened, report, layers=options.show_layers)
        if options.output is None:
            console.show_next(*terminal_parity.after_parity(opened, report))
    sys.exit(report.exit_code)


def _at_places(options: ParityOptions, bundle: Path, fleet: "Fleet", *, as_json: bool) -> NoReturn:
    """Run parity at every place, and end."""
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.commands.orders import judged_at_places, word

    options.places.refuse(
        {"--junit": options.junit, "--markdown": options.markdown, "--save-failing": options.save_failing}
    )
    words = [
        *word("--format", *options.formats),
        *word("--require", *options.require),
        *word("--layers", options.show_layers),
        *word("--outputs-only", options.outputs_only),
        *word("--tolerance", options.tolerance),
        *word("--inputs", options.inputs),
    ]
    judged_at_places("parity", bundle, fleet, words, options.formats, options.output, as_json=as_json)
