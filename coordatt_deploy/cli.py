"""The command line: parse, call the pipeline, print, exit. With ``options`` the only module that knows Click.

Results go to stdout, progress and errors to stderr. Exit codes: 0 done, 1 a check failed, 2 bad usage or bad input,
3 something is not installed. Frameworks are imported inside the commands, so that ``--help`` needs Click alone.
"""

import json
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from coordatt_deploy import __version__
from coordatt_deploy.commands.options import (
    BoundsType,
    MemberType,
    SizeType,
    bundle_argument,
    calibration_options,
    export_options,
    json_object,
    json_option,
    numbers,
    shapes_of,
)
from coordatt_deploy.documents import SCHEMA_VERSION, member, to_json
from coordatt_deploy.errors import DeployError, UsageError
from coordatt_deploy.formats import Format, TargetCpu

INTERRUPTED: Final = 130  # as shells say it: no check failed


class Cli(click.Group):
    """Prints the errors of the core as one line and exits with their code; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except DeployError as error:
            click.secho(f"Error: {error}", fg="red", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.secho("\nInterrupted; nothing was left half written", fg="red", err=True)
            ctx.exit(INTERRUPTED)
        except OSError as error:
            what = f" ({error.filename})" if error.filename else ""
            click.secho(f"Error: {error.strerror or error}{what}; nothing was left half written", fg="red", err=True)
            ctx.exit(2)


@click.group(cls=Cli, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="coordatt-deploy")
def main() -> None:
    """Ship vision backbones with coordinate attention: ONNX, TFLite and Core ML, proven equal and measured."""


def _plan(**options: Any) -> Any:
    from coordatt_deploy.conversion.plan import DEFAULT_MODEL, ExportPlan
    from coordatt_deploy.host import command_line

    return ExportPlan(
        model=options["model"] or DEFAULT_MODEL,
        checkpoint=options["checkpoint"],
        formats=options["formats"],
        precisions=options["precisions"] or None,
        dynamic=options["dynamic"],
        intake=_intake(**options),
        target_cpus=options["target_cpus"] or (TargetCpu.ARM64,),
        input_size=options["input_size"],
        bake=options["bake"],
        softmax=options["softmax"],
        output_dir=options["output_dir"],
        calibration=options["calibration"],
        calibration_count=_count(options["calibration_count"]),
        seed=options["seed"],
        ranges=options["ranges"],
        command=command_line(sys.argv[1:]),
    )


def _count(given: int | None) -> int:
    from coordatt_deploy.data.calibration import COUNT

    return COUNT if given is None else given


def _intake(**options: Any) -> dict[str, Any]:
    """Gather what the options say of the model beside its name, weights and size."""
    from coordatt_deploy.loading.preprocessing import checked, parse_numbers, read_labels, read_preprocessing

    values = read_preprocessing(options["preprocessing"]) if options["preprocessing"] else {}
    for key in ("mean", "std", "input_range"):
        if options[key] is not None:
            values[key] = parse_numbers(options[key], f"--{key.replace('_', '-')}")
    values |= {key: options[key] for key in ("colour", "resize") if options[key] is not None}
    keys = ("model_args", "name", "golden", "checkpoint_key", "inputs")
    given = {key: options[key] for key in keys if options[key] is not None}
    if options["labels"] is not None:
        given["labels"] = read_labels(options["labels"])
    return given | ({"preprocessing": checked(values)} if values else {})


def _notes(bundle: Any) -> None:
    """Say on stderr what was assumed, renamed or left out."""
    for note in bundle.manifest.notes:
        click.echo(f"note: {note}", err=True)


def _print(document: dict[str, Any]) -> None:
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION} | document, indent=2, allow_nan=False))


@main.command()
@export_options
@json_option
def build(as_json: bool, **options: Any) -> None:
    """Go the whole way: export, prove, measure.

    Without arguments it builds the embedded default, a digits classifier with trained weights.

    \b
    Example:
        coordatt-deploy build
        coordatt-deploy build --model mobilenetv2_ca_100 --checkpoint mbv2_ca.pth --output-dir ca_100
    """
    from coordatt_deploy.conversion import export_run
    from coordatt_deploy.parity.run import check_parity
    from coordatt_deploy.profile import run as profile_run
    from coordatt_deploy.report.terminal import build as terminal_build
    from coordatt_deploy.report.terminal import console

    with console.bars() as stages:
        bundle = export_run.export(_plan(**options), stages)
        parity = check_parity(bundle, stages)
        profile = profile_run.measure_latency(bundle, stages)
    _notes(bundle)
    if as_json:
        _print({"bundle": str(bundle.root), "passed": parity.passed,
                "artifacts": terminal_build.summary(parity, profile)})  # fmt: skip
    else:
        terminal_build.show_build(bundle, parity, profile)
    sys.exit(console.exit_code(parity))


@main.command()
@export_options
@json_option
def export(as_json: bool, **options: Any) -> None:
    """Write the artifacts into a bundle.

    Exporting again into the bundle of the same weights adds or replaces artifacts and keeps the others.

    \b
    Example:
        coordatt-deploy export --format onnx --format tflite --output-dir digits
    """
    from coordatt_deploy.conversion import export_run
    from coordatt_deploy.report.terminal import build as terminal_build
    from coordatt_deploy.report.terminal import console

    with console.bars() as stages:
        bundle = export_run.export(_plan(**options), stages)
    _notes(bundle)
    if as_json:
        _print({"bundle": str(bundle.root), "artifacts": to_json(bundle.manifest.artifacts)})
    else:
        terminal_build.show_artifacts(bundle)


@main.command()
@bundle_argument
@click.option(
    "--recipe",
    "recipes",
    multiple=True,
    help="static_wi8_ai8, dynamic_wi8_afp32, weight_only_wi8, palettized_w6 and others, or a recipe file (.json);"
    " repeatable.  [default: static_wi8_ai8]",
)
@click.option(
    "--format",
    "formats",
    multiple=True,
    type=MemberType(Format, "format"),
    help="Repeatable; default: every format of the bundle that can express the recipe.",
)
@click.option(
    "--target-cpu",
    "target_cpus",
    multiple=True,
    type=MemberType(TargetCpu, "target CPU"),
    help="For ONNX; repeatable; default: those of the bundle's float files.",
)
@calibration_options
@click.option("--sensitivity", is_flag=True, help="Write nothing: rank the layers by what int8 costs in each alone.")
@click.option(
    "--max-drop",
    type=float,
    help="Percentage points of top-1 that may be lost: keeps the fewest layers in float that this takes, else exit"
    " code 1.",
)
@click.option(
    "--dataset", help="Labelled images for --max-drop: a folder, or digits.  [default: the calibration data's labels]"
)
@click.option("--limit", type=int, help="Only so many of these images, drawn at random.")
@json_option
def quantize(bundle: Path, recipes: tuple[str, ...], as_json: bool, **options: Any) -> None:
    """Write int8 and other small artifacts into BUNDLE, beside the float ones.

    Static recipes measure activations on calibration data: images of the kind that the model will meet, through the
    model's own preprocessing. They are looked at before use, and whatever is wrong with them is said.

    --sensitivity ranks the layers, by simulation, and measures the costliest with real artifacts. --max-drop searches
    for the fewest layers that must stay in float, and writes what it found into a recipe file that replays it.

    \b
    Example:
        coordatt-deploy quantize mobilenetv2_ca_035.digits
        coordatt-deploy quantize ca_100 --recipe static_wi8_ai8 --calibration-data photos --format tflite
        coordatt-deploy quantize ca_100 --recipe dynamic_wi8_afp32 --recipe palettized_w6
        coordatt-deploy quantize ca_100 --calibration-data photos --sensitivity --format tflite
        coordatt-deploy quantize ca_100 --calibration-data photos --max-drop 0.5 --dataset validation
    """
    from dataclasses import replace

    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.conversion.plan import QuantizePlan
    from coordatt_deploy.conversion.quantize_run import quantize as run
    from coordatt_deploy.host import command_line
    from coordatt_deploy.quantization.recipes import STATIC_INT8, load_recipe
    from coordatt_deploy.report.terminal import build as terminal_build
    from coordatt_deploy.report.terminal import console

    chosen = [load_recipe(name) for name in recipes or (STATIC_INT8,)]
    if options["ranges"] is not None:
        chosen = [replace(recipe, ranges=options["ranges"]) for recipe in chosen]
    plan = QuantizePlan(
        recipes=tuple(chosen),
        formats=options["formats"],
        target_cpus=options["target_cpus"],
        calibration=options["calibration"],
        count=_count(options["calibration_count"]),
        seed=options["seed"],
        command=command_line(sys.argv[1:]),
    )
    if options["sensitivity"] or options["max_drop"] is not None:
        _by_layer(bundle, plan, as_json=as_json, **options)
    if options["dataset"] is not None or options["limit"] is not None:
        raise UsageError("--dataset and --limit are for --max-drop; to measure what is there: coordatt-deploy evaluate")
    with console.bars() as stages:
        written = run(open_bundle(bundle), plan, stages)
    if as_json:
        manifest = written.manifest
        _print({"bundle": str(written.root), "artifacts": to_json(manifest.artifacts),
                "quantization": to_json(manifest.quantization)})  # fmt: skip
    else:
        terminal_build.show_artifacts(written)


def _by_layer(bundle: Path, plan: Any, *, as_json: bool, **options: Any) -> NoReturn:
    """Rank the layers, search for the fewest in float where a drop is given, print, and end the command."""
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.mixed_precision.ranking import rank_layers
    from coordatt_deploy.mixed_precision.search import SearchPlan, search
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal import search as layer_costs

    found = None
    wanted = {key: options[key] for key in ("max_drop", "dataset", "limit")}
    if options["max_drop"] is None and (options["dataset"] is not None or options["limit"] is not None):
        raise UsageError("--dataset and --limit are for --max-drop; the ranking uses the calibration data")
    searching = None if options["max_drop"] is None else SearchPlan(plan, **wanted)
    with console.bars() as stages:
        opened = open_bundle(bundle)
        weighed, document = rank_layers(opened, plan, stages)
        if searching is not None:
            _, found = search(opened, searching, weighed, stages)
    if as_json:
        _print({"bundle": str(bundle), "sensitivity": document, "search": found})
    else:
        layer_costs.show(document, bundle, every=options["sensitivity"])
        if found is not None:
            layer_costs.show_search(found, bundle)
    sys.exit(1 if found is not None and not found["reached"] else 0)


@main.command()
@bundle_argument
@click.option("--format", "formats", multiple=True, type=MemberType(Format, "format"), help="Only these.")
@click.option("--layers", "show_layers", is_flag=True, help="Print a row per layer.")
@click.option("--outputs-only", is_flag=True, help="Judge the outputs alone, not every layer.")
@click.option(
    "--tolerance",
    type=click.Path(path_type=Path),
    help="Other tolerances, as TOML or JSON: [onnx.fp32] with multiple, or min_sqnr_db, and min_top1_agreement.",
)
@click.option(
    "--inputs",
    type=click.Path(path_type=Path),
    help="Other inputs: an .npz with an array for each input, (cases, C, H, W), or a folder of images.",
)
@click.option(
    "--save-failing",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write inputs and tensors of the first failing layer there, to attach to a bug report.",
)
@click.option("--target", help="Run on another machine's kernels: qemu-arm64, or qemu-arm64:CPU.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write the verdicts there as JUnit XML as well.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write a summary for a CI run there.")
@json_option
def parity(
    bundle: Path,
    formats: tuple[Format, ...],
    show_layers: bool,
    outputs_only: bool,
    target: str | None,
    as_json: bool,
    **files: Any,
) -> None:
    """Prove that the artifacts compute the same function.

    Runs each on the golden inputs and compares outputs and layers with the float64 reference; the first layer that
    differs is named. Exit code 1 if any artifact fails, 3 if one could not be run here. Writes reports/parity.json and
    reports/junit.xml; with --target, both names end in the target's.

    \b
    Example:
        coordatt-deploy parity mobilenetv2_ca_035.digits
        coordatt-deploy parity mobilenetv2_ca_035.digits --layers
        coordatt-deploy parity mobilenetv2_ca_035.digits --inputs photos --save-failing failing
        coordatt-deploy parity mobilenetv2_ca_035.digits --target qemu-arm64
    """
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.parity.run import check_parity
    from coordatt_deploy.parity.tolerances import BUILT_IN, read_tolerances
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal import parity as terminal_parity
    from coordatt_deploy.report.write import write_summaries

    if outputs_only and (show_layers or files["save_failing"]):
        raise UsageError("--outputs-only judges no layer; leave it out, or --layers and --save-failing")
    tolerances = read_tolerances(files["tolerance"]) if files["tolerance"] else BUILT_IN
    options: dict[str, Any] = {
        "formats": formats or tuple(Format),
        "need_layers": show_layers,
        "tolerances": tolerances,
        "inputs": files["inputs"],
        "save_failing": files["save_failing"],
    }
    with console.bars() as stages:
        opened = open_bundle(bundle)
        if target is not None:  # a target is slow: layers only where they are asked for
            from coordatt_deploy.parity.on_target import check_parity_on

            layers = bool(show_layers or files["save_failing"])
            report = check_parity_on(opened, target, stages, layers=layers, **options)
        else:
            report = check_parity(opened, stages, layers=not outputs_only, **options)
    document = report.to_json()
    write_summaries(opened, document, files["junit"], files["markdown"])
    if as_json:
        _print(document)
    else:
        terminal_parity.show_parity(opened, report, layers=show_layers)
    sys.exit(console.exit_code(report))


@main.command()
@bundle_argument
@click.option("--threads", callback=numbers, help="One count or several: 1,2.  [default: 1]")
@click.option("--warmups", type=int, help="Least number of calls before the first sample.")
@click.option("--samples", type=int, help="Least number of samples of each artifact.")
@click.option("--min-seconds", type=float, help="Least time that the samples of each artifact take together.")
@click.option("--cpu-affinity", callback=numbers, help="Cores to run on: 0,1.  [default: all]")
@click.option("--format", "formats", multiple=True, type=MemberType(Format, "format"), help="Only these.")
@click.option("--target", help="Count another machine's instructions instead: qemu-arm64, or qemu-arm64:CPU.")
@json_option
def profile(bundle: Path, formats: tuple[Format, ...], target: str | None, as_json: bool, **settings: Any) -> None:
    """Measure the artifacts' CPU latency on this machine.

    Rounds over the artifacts are interleaved, so that a slow moment hits all alike. Each figure comes with its interval
    and a verdict: stable, noisy or unusable. Raw samples are kept in reports/profile.json. Ctrl-C keeps what was
    measured.

    \b
    Example:
        coordatt-deploy profile mobilenetv2_ca_035.digits --threads 1,2
        coordatt-deploy profile mobilenetv2_ca_035.digits --target qemu-arm64
    """
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.profile import run as profile_run
    from coordatt_deploy.profile.latency import ProfileSettings
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal import profile as terminal_profile

    chosen = {key: value for key, value in settings.items() if value is not None}
    if target is not None:
        from coordatt_deploy.profile.instructions import count_on

        if chosen:
            raise UsageError(f"--target counts instructions; --{next(iter(chosen)).replace('_', '-')} is for latency")
        with console.bars() as stages:
            opened = open_bundle(bundle)
            counted = count_on(opened, target, stages, formats=formats or tuple(Format))
        if as_json:
            click.echo(json.dumps(counted, indent=2, allow_nan=False))
        else:
            terminal_profile.show_instructions(opened, counted)
        return
    given = ProfileSettings(**chosen)
    with console.bars() as stages:
        opened = open_bundle(bundle)
        document = profile_run.measure_latency(opened, stages, given, formats=formats or tuple(Format))
    if as_json:
        click.echo(json.dumps(document, indent=2, allow_nan=False))
    else:
        terminal_profile.show_profile(opened, document)


@main.command()
@bundle_argument
@click.option(
    "--dataset",
    required=True,
    help="A folder with a folder of images for each class; digits (packaged, held out); or digits:all.",
)
@click.option("--format", "formats", multiple=True, type=MemberType(Format, "format"), help="Only these.")
@click.option(
    "--labels-by",
    help="How folders name classes: name (a label of the bundle), index (its number), or order (sorted, as in"
    " torchvision).  [default: what fits]",
)
@click.option("--limit", type=int, help="Only so many images, drawn at random.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of that draw.")
@click.option("--workers", type=int, help="Processes.  [default: one per core]")
@click.option("--max-drop", type=float, help="Percentage points of top-1 that an artifact may lose; else exit code 1.")
@click.option("--target", help="Run on another machine's kernels: qemu-arm64, or qemu-arm64:CPU.")
@json_option
def evaluate(bundle: Path, formats: tuple[Format, ...], labels_by: str | None, as_json: bool, **options: Any) -> None:
    """Measure the artifacts' accuracy on labelled images.

    Top-1 and top-5 of the float64 reference and of every artifact, and a 95 % interval of the difference between the
    two. Without torch, the bundle's float32 artifact takes the reference's place. Images that cannot be read are named
    and counted. Writes reports/evaluate.json.

    \b
    Example:
        coordatt-deploy evaluate mobilenetv2_ca_035.digits --dataset digits
        coordatt-deploy evaluate my_net --dataset photos/validation --limit 2000 --max-drop 0.5
    """
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.data.labelled import LabelsBy
    from coordatt_deploy.evaluation.run import EvaluationPlan, evaluate_bundle
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal import evaluation as terminal_evaluation

    way = None if labels_by is None else member(LabelsBy, labels_by, "--labels-by")
    plan = EvaluationPlan(formats=formats or tuple(Format), labels_by=way, **options)
    with console.bars() as stages:
        evaluation = evaluate_bundle(open_bundle(bundle), plan, stages)
    if as_json:
        _print(evaluation.to_json())
    else:
        terminal_evaluation.show(evaluation)
    sys.exit(evaluation.exit_code)


@main.command()
@bundle_argument
@click.option("--output", type=click.Path(path_type=Path), help="The file.  [default: BUNDLE/reports/report.html]")
@json_option
def report(bundle: Path, output: Path | None, as_json: bool) -> None:
    """Write everything known of a bundle into one HTML file.

    Verdicts, agreement layer by layer, latency with every sample, sizes, operators, machine and versions. The file
    needs no network and no script, and reads on a phone and on paper. Run parity and profile before.

    \b
    Example:
        coordatt-deploy report mobilenetv2_ca_035.digits
    """
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.logs import logged
    from coordatt_deploy.report.write import write_page

    opened = open_bundle(bundle)
    with logged("report"):
        path = write_page(opened, output)
    if as_json:
        _print({"report": str(path)})
    else:
        click.echo(path)


@main.command()
@click.argument("subject", metavar="MODEL|ARTIFACT|BUNDLE")
@click.option("--model-args", callback=json_object, help="Keyword arguments of the factory, as a JSON object.")
@click.option("--input-size", type=SizeType(), help="Pixels: 224, or height x width as 320x192.")
@click.option("--dynamic-size", "dynamic", type=BoundsType(), help="Look at it as with this option of export.")
@click.option("--input-shape", "inputs", multiple=True, callback=shapes_of, help="As for export: prior=1x8x20x20.")
@json_option
def inspect(subject: str, as_json: bool, **options: Any) -> None:
    """Say what a model or file is made of, and what will trouble it on a phone.

    Parameters, multiply-accumulates, operators, attention blocks, where the bytes are, what delegates reject, and
    lint with remedies. A model is whatever build --model takes; files are read, not run.

    \b
    Example:
        coordatt-deploy inspect mobilenetv2_ca_100
        coordatt-deploy inspect path/to/net.py:make_backbone --input-size 320x192
        coordatt-deploy inspect mobilenetv2_ca_035.digits
    """
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.inspection.result import BundleInspection, Inspection
    from coordatt_deploy.inspection.run import inspect_artifact, inspect_bundle, is_artifact, is_bundle
    from coordatt_deploy.logs import logged, set_environment
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal.inspection import show_inspection

    path = Path(subject)
    found: Inspection | BundleInspection
    set_environment()
    with console.bars() as stages, stages.stage(f"inspect {subject}"), logged("inspect"):
        if is_bundle(path) or (subject and path.is_dir() and not is_artifact(path)):
            found = inspect_bundle(open_bundle(path))  # which says what is missing of one
        elif is_artifact(path):
            found = inspect_artifact(path)
        else:
            from coordatt_deploy.format_modules import need
            from coordatt_deploy.formats import TORCH_EXTRA
            from coordatt_deploy.loading.sizes import check_size

            need("torch", TORCH_EXTRA)
            from coordatt_deploy.inspection.captured_graph import inspect_source
            from coordatt_deploy.loading.load import resolve
            from coordatt_deploy.loading.model_request import Request

            if options["input_size"] is not None:
                check_size(options["input_size"])
            source = resolve(Request(model=subject, **options))
            found = inspect_source(source, subject, options["model_args"])
    if as_json:
        _print(found.to_json())
    else:
        show_inspection(found)


@main.command()
@json_option
def models(as_json: bool) -> None:
    """List the backbones, with parameters and multiply-accumulates.

    \b
    Example:
        coordatt-deploy models --json
    """
    from coordatt_deploy.models import list_models, model_card

    cards = [model_card(name) for name in list_models()]
    if as_json:
        keys = ("name", "parameters", "macs", "attention", "trained", "input_size", "num_classes")
        _print({"models": [{key: to_json(getattr(card, key)) for key in keys} for card in cards]})
        return
    from coordatt_deploy.report.terminal import models as terminal_models

    terminal_models.show_models(cards)


@main.command()
@click.option("--setup", "to_set_up", metavar="TARGET", help="Build what a target needs: qemu-arm64. No root needed.")
@json_option
def doctor(to_set_up: str | None, as_json: bool) -> None:
    """Say what this machine has and what is missing.

    \b
    Example:
        coordatt-deploy doctor
        coordatt-deploy doctor --setup qemu-arm64
    """
    from coordatt_deploy.inspection.installation import examine
    from coordatt_deploy.profile.instructions import setup, statuses
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal import doctor as terminal_doctor

    if to_set_up is not None:
        with console.bars() as stages:
            setup(to_set_up, stages)
    findings, targets = examine(), statuses()
    if as_json:
        _print(
            to_json(findings) | {"targets": to_json([{**to_json(item), "path": str(item.path)} for item in targets])}
        )
    else:
        terminal_doctor.show_doctor(findings, targets)


if __name__ == "__main__":
    main()
