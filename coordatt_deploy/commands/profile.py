"""``coordatt-deploy profile``."""

import dataclasses
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from coordatt_deploy.commands.options import (
    bundle_argument,
    format_option,
    gathered,
    json_option,
    numbers,
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
class LatencyOptions:
    """How to measure, as ``profile.latency.ProfileSettings`` has it; None for what stands there."""

    threads: tuple[int, ...] | None = None
    warmups: int | None = None
    samples: int | None = None
    min_seconds: float | None = None
    cpu_affinity: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ProfileOptions:
    """What to measure.

    Attributes:
        latency: How.
        formats: Empty for all.
        operators: Whether to find out where the time of each file goes as well.
        places: Which machines are measured; of an emulated one instructions are counted.
        junit: A further file for the figures; not of instructions, like the next one.
        markdown: A file for a summary.
        output: A file for the figures in place of the bundle's.
    """

    latency: LatencyOptions = field(default_factory=LatencyOptions)
    formats: tuple[Format, ...] = ()
    operators: bool = False
    places: PlaceOptions = field(default_factory=PlaceOptions)
    junit: Path | None = None
    markdown: Path | None = None
    output: Path | None = None


@click.command()
@bundle_argument
@gathered(
    ProfileOptions(),
    click.option("--threads", type=numbers, metavar="TEXT", help="One count or several: 1,2.  [default: 1]"),
    click.option("--warmups", type=int, help="Least number of calls before the first sample."),
    click.option("--samples", type=int, help="Least number of samples of each artifact."),
    click.option("--min-seconds", type=float, help="Least time that the samples of each artifact take together."),
    click.option("--cpu-affinity", type=numbers, metavar="TEXT", help="Cores to run on: 0,1.  [default: all]"),
    format_option("Only these."),
    click.option(
        "--ops", "operators", is_flag=True, help="Tell where the time goes: layer by layer, beside each layer's error."
    ),
    *place_options("Measure another machine, or count an emulated one's instructions:"),
    *summary_options("figures"),
    output_option("profile.json"),
)
@json_option
def profile(options: ProfileOptions, bundle: Path, as_json: bool) -> None:
    """Measure the artifacts' CPU latency on this machine.

    Rounds over the artifacts are interleaved, so that a slow moment hits all alike. Each figure comes with its interval
    and a verdict: stable, noisy or unusable. Raw samples are kept in reports/profile.json, or in the file of
    --output. Ctrl-C keeps what was measured.

    With --ops, each file's operators are timed in turns with the file: by ONNX Runtime's profiler, or in LiteRT and
    ExecuTorch, which tell none, as pieces of the file. One table has what each layer takes and how wrong it is, for
    files that parity --layers judged.

    With several targets, or those of --targets, each measures itself and gets a column; one that fails is listed, the
    others' results are kept, and the exit code is 3.

    \b
    Example:
        coordatt-deploy profile mobilenetv2_ca_035.digits --threads 1,2
        coordatt-deploy profile mobilenetv2_ca_035.digits --ops --format onnx
        coordatt-deploy profile mobilenetv2_ca_035.digits --target qemu-arm64
        coordatt-deploy profile mobilenetv2_ca_035.digits --target here --target ssh://pi@pi4.local
    """
    fleet = options.places.places()
    if fleet is not None:
        _at_places(options, bundle, fleet, as_json=as_json)
    target = options.places.one
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.host import command_line
    from coordatt_deploy.kept_results import layer_errors
    from coordatt_deploy.profile import run as profile_run
    from coordatt_deploy.profile.instructions import count_on
    from coordatt_deploy.profile.latency import ProfileSettings
    from coordatt_deploy.report.profile_summary import profile_junit, profile_markdown
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal import profile as terminal_profile
    from coordatt_deploy.report.terminal.operators import show_operators
    from coordatt_deploy.report_file import check_folder, write_text

    command = command_line(sys.argv[1:])
    formats = options.formats or tuple(Format)
    given = {
        item.name: value
        for item in dataclasses.fields(options.latency)
        if (value := getattr(options.latency, item.name)) is not None
    }
    if target is not None:
        if options.junit is not None or options.markdown is not None:
            raise UsageError("--junit and --markdown are for latencies; --target counts instructions: --json has them")
        if given:
            raise UsageError(f"--target counts instructions; --{next(iter(given)).replace('_', '-')} is for latency")
        if options.operators:
            raise UsageError("--target counts instructions of a whole file; --ops is for latency on this machine")
        with console.bars() as stages:
            opened = open_bundle(bundle)
            counted = count_on(opened, target, stages, formats=formats, output=options.output, command=command)
        if as_json:
            print_result(counted)
        else:
            terminal_profile.show_instructions(opened, counted)
        return
    settings = ProfileSettings(**given)
    for file in filter(None, (options.junit, options.markdown)):
        check_folder(file)
    with console.bars() as stages:
        opened = open_bundle(bundle)
        measured = profile_run.measure_latency(
            opened, stages, settings, formats=formats, output=options.output, command=command,
            errors=layer_errors(opened) if options.operators else None,
        )  # fmt: skip
    if options.junit is not None:
        write_text(options.junit, profile_junit(measured))
    if options.markdown is not None:
        write_text(options.markdown, profile_markdown(measured, opened.manifest.model.name))
    if as_json:
        print_result(measured)
    else:
        terminal_profile.show_profile(opened, measured)
        show_operators(opened, measured)
        if options.output is None:
            console.show_next((console.bundle_command("report", opened.root), "one page of all results"))


def _at_places(options: ProfileOptions, bundle: Path, fleet: "Fleet", *, as_json: bool) -> NoReturn:
    """Run profile at every place, and end."""
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.commands.orders import judged_at_places, word

    options.places.refuse({"--junit": options.junit, "--markdown": options.markdown})
    latency = options.latency
    given = [item.name for item in dataclasses.fields(latency) if getattr(latency, item.name) is not None]
    if fleet.emulated and (given or options.operators):
        name = given[0].replace("_", "-") if given else "ops"
        raise UsageError(f"--{name} is for latency, and of {fleet.emulated[0]} instructions are counted; leave one out")
    words = [
        *word("--format", *options.formats),
        *word("--threads", _listed(latency.threads)),
        *word("--warmups", latency.warmups),
        *word("--samples", latency.samples),
        *word("--min-seconds", latency.min_seconds),
        *word("--cpu-affinity", _listed(latency.cpu_affinity)),
        *word("--ops", options.operators),
    ]
    # Where the time goes is told beside each layer's error, which parity left in reports/.
    left = () if options.operators else ("reports",)
    judged_at_places("profile", bundle, fleet, words, options.formats, options.output, as_json=as_json, leave_out=left)


def _listed(numbers: tuple[int, ...] | None) -> str | None:
    return None if numbers is None else ",".join(map(str, numbers))
