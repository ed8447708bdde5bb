"""``coordatt-deploy profile``."""

import dataclasses
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from coordatt_deploy.commands.options import (
    PATH,
    bundle_argument,
    duration,
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
        sustained: For how many seconds each file runs without a pause instead; None for latency in turns.
        cool_down: The longest pause before each of them, in seconds.
        imports: What other tools printed, to be taken over instead.
        artifact: Which file they timed; None where they say so.
        place: What to call the machine that they ran on.
        places: Which machines are measured; of an emulated one instructions are counted.
        junit: A further file for the figures; not of instructions, like the next one.
        markdown: A file for a summary.
        output: A file for the figures in place of the bundle's.
    """

    latency: LatencyOptions = field(default_factory=LatencyOptions)
    formats: tuple[Format, ...] = ()
    operators: bool = False
    sustained: float | None = None
    cool_down: float | None = None
    imports: tuple[Path, ...] = ()
    artifact: str | None = None
    place: str | None = None
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
    click.option(
        "--sustained",
        type=duration,
        metavar="TIME",
        help="Run each artifact without a pause instead, such as for 10m, and tell whether its latency holds.",
    ),
    click.option(
        "--cool-down",
        type=duration,
        metavar="TIME",
        help="With --sustained: wait before each artifact, such as 2m, or until it is as cool as at first.",
    ),
    click.option(
        "--import",
        "imports",
        type=PATH,
        multiple=True,
        metavar="FILE",
        help="Take over what benchmark_model, onnxruntime_perf_test or executor_runner printed on a phone instead.",
    ),
    click.option("--artifact", metavar="PATH", help="With --import: the file that was timed.  [default: as FILE says]"),
    click.option("--as", "place", metavar="NAME", help="With --import: what to call that phone, such as pixel7."),
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

    With --sustained, artifacts run one after the other, and latency, frequency and temperature are kept over time. A
    test for change points says whether each is steady, slows down, or was not measured long enough to tell.

    With --import, nothing is measured: what the runtimes' own benchmark programs printed on another machine is held to
    the artifact, as far as they tell, and kept under that machine's name, marked as imported.

    With several targets, or those of --targets, each measures itself and gets a column; one that fails is listed, the
    others' results are kept, and the exit code is 3.

    \b
    Example:
        coordatt-deploy profile mobilenetv2_ca_035.digits --threads 1,2
        coordatt-deploy profile mobilenetv2_ca_035.digits --ops --format onnx
        coordatt-deploy profile mobilenetv2_ca_035.digits --sustained 10m --cool-down 2m
        coordatt-deploy profile mobilenetv2_ca_035.digits --target qemu-arm64
        coordatt-deploy profile mobilenetv2_ca_035.digits --import pixel7.txt --as pixel7
        coordatt-deploy profile mobilenetv2_ca_035.digits --target here --target ssh://pi@pi4.local
    """
    fleet = options.places.places()
    if fleet is not None:
        _check_places(options)
        _at_places(options, bundle, fleet, as_json=as_json)
    target = options.places.one
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.host import command_line
    from coordatt_deploy.kept_results import layer_errors
    from coordatt_deploy.profile import run as profile_run
    from coordatt_deploy.profile.instructions import count_on
    from coordatt_deploy.profile.latency import ProfileSettings
    from coordatt_deploy.profile.sustained import SustainedSettings
    from coordatt_deploy.profile.sustained_run import measure_sustained
    from coordatt_deploy.report.profile_summary import profile_junit, profile_markdown
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal import profile as terminal_profile
    from coordatt_deploy.report.terminal.operators import show_operators
    from coordatt_deploy.report.terminal.sustained import show_sustained
    from coordatt_deploy.report_file import check_folder, write_text

    command = command_line(sys.argv[1:])
    formats = options.formats or tuple(Format)
    given = {
        item.name: value
        for item in dataclasses.fields(options.latency)
        if (value := getattr(options.latency, item.name)) is not None
    }
    _check_sustained(options, given)
    if _imports(options, given):
        _take_over(options, bundle, command, as_json=as_json)
        return
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
    lasting = None if options.sustained is None else SustainedSettings(options.sustained, options.cool_down or 0.0)
    with console.bars() as stages:
        opened = open_bundle(bundle)
        if lasting is not None:
            measured = measure_sustained(
                opened, stages, lasting, settings, formats=formats, output=options.output, command=command
            )
        else:
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
        if lasting is not None:
            show_sustained(opened, measured)
        else:
            terminal_profile.show_profile(opened, measured)
            show_operators(opened, measured)
        if options.output is None:
            console.show_next((console.bundle_command("report", opened.root), "one page of all results"))


def _check_sustained(options: ProfileOptions, given: Mapping[str, object]) -> None:
    """Refuse what contradicts ``--sustained``, and ``--cool-down`` without it."""
    if options.sustained is None:
        if options.cool_down is not None:
            raise UsageError("--cool-down is for --sustained; without it artifacts take turns, and cool down alike")
        return
    if options.places.one is not None:
        raise UsageError("--sustained runs files on this machine; --target counts instructions, which get no slower")
    if options.operators:
        raise UsageError("--sustained times whole files over time; --ops times their layers: make two calls of it")
    for name in ("samples", "min_seconds"):
        if name in given:
            option = name.replace("_", "-")
            raise UsageError(f"--sustained says for how long to measure; --{option} is for latency in turns")


def _check_places(options: ProfileOptions) -> None:
    """Refuse what is about this machine alone where places are asked for."""
    if options.sustained is not None or options.cool_down is not None:
        raise UsageError("--sustained runs files on this machine; give it in a call of its own on each place")
    if options.imports or options.artifact is not None or options.place is not None:
        raise UsageError("--import takes over what was measured elsewhere; leave out --target and --targets")


def _imports(options: ProfileOptions, given: Mapping[str, object]) -> bool:
    """Whether something is to be taken over; refuses what contradicts that."""
    if not options.imports:
        for name, value in (("artifact", options.artifact), ("as", options.place)):
            if value is not None:
                raise UsageError(f"--{name} is for what --import takes over; give --import FILE too")
        return False
    if options.place is None:
        raise UsageError("--import takes over what another machine measured; name that with --as, as in --as pixel7")
    measuring: dict[str, object] = {
        "sustained": options.sustained, "cool-down": options.cool_down, "target": options.places.targets or None,
        "ops": options.operators or None, "format": options.formats or None, "junit": options.junit,
        **{name.replace("_", "-"): value for name, value in given.items()},
    }  # fmt: skip
    for name, asked in measuring.items():
        if asked is not None:
            raise UsageError(f"--import takes over what was measured elsewhere; --{name} is for measuring here")
    if options.artifact is not None and len(options.imports) > 1:
        raise UsageError("--artifact says which file one FILE is of; import several one after the other")
    return True


def _take_over(options: ProfileOptions, bundle: Path, command: str, *, as_json: bool) -> None:
    """Import what other tools printed, and show it."""
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.imported_results import import_outputs
    from coordatt_deploy.logs import logged
    from coordatt_deploy.report.profile_summary import imported_markdown
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal.imported import show_imported
    from coordatt_deploy.report_file import check_folder, write_text

    if options.markdown is not None:
        check_folder(options.markdown)
    opened = open_bundle(bundle)
    with logged("profile"):
        taken = import_outputs(
            opened, options.imports, options.place or "", artifact=options.artifact, output=options.output,
            command=command,
        )  # fmt: skip
    if options.markdown is not None:
        write_text(options.markdown, imported_markdown(taken, opened.manifest.model.name))
    if as_json:
        print_result(taken)
        return
    show_imported(opened, taken)
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
