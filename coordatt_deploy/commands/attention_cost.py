"""``coordatt-deploy attention-cost``."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

from coordatt_deploy.commands.options import (
    PATH,
    format_option,
    gathered,
    input_size_option,
    json_option,
    member_of,
    members,
    model_args_option,
)
from coordatt_deploy.commands.output import print_result
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.models.attention_options import Activation


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """What is compared; see ``attention_cost.plan.CostPlan``."""

    backbones: tuple[str, ...] = ()
    model: str | None = None
    model_args: Mapping[str, object] | None = None
    attention: tuple[str, ...] = ()
    activation: Activation | None = None
    input_size: tuple[int, int] | None = None
    formats: tuple[Format, ...] = ()
    precisions: tuple[Precision, ...] = ()


@dataclass(frozen=True, slots=True)
class MeasureOptions:
    """How it is measured; None for what stands in ``profile.latency.ProfileSettings``.

    Attributes:
        no_latency: Whether latency is left out.
        threads: Of the runtimes.
        samples: See ``ProfileSettings``.
        min_seconds: See ``ProfileSettings``.
        target: Whose instructions are counted as well; None for nobody's.
    """

    no_latency: bool = False
    threads: int | None = None
    samples: int | None = None
    min_seconds: float | None = None
    target: str | None = None


@dataclass(frozen=True, slots=True)
class CostOptions:
    """All of it.

    Attributes:
        network: What is compared.
        measure: How.
        markdown: A file for the tables.
        plot: A file for the picture.
    """

    network: NetworkOptions = field(default_factory=NetworkOptions)
    measure: MeasureOptions = field(default_factory=MeasureOptions)
    markdown: Path | None = None
    plot: Path | None = None


@click.command("attention-cost")
@gathered(
    CostOptions(),
    click.option(
        "--backbone",
        "backbones",
        multiple=True,
        help="A plain backbone (see: coordatt-deploy models --attention none). Repeatable.  [default: mobilenetv2_100]",
    ),
    click.option(
        "--model",
        help="A network of your own, package.module:factory or path/to/file.py:factory, whose attention blocks are"
        " exchanged. Code that you name is run.",
    ),
    model_args_option,
    click.option(
        "--attention",
        multiple=True,
        metavar="BLOCK",
        help="Only these blocks. Repeatable.  [default: all that models are named after]",
    ),
    click.option(
        "--activation",
        type=member_of(Activation, "activation"),
        metavar=members(Activation),
        help="Also each block with this activation, where it has one: published blocks have different ones.",
    ),
    input_size_option,
    format_option("Repeatable; default: all."),
    click.option(
        "--precision",
        "precisions",
        multiple=True,
        type=member_of(Precision, "precision"),
        metavar=members(Precision),
        help="Repeatable.  [default: fp32]",
    ),
    click.option("--no-latency", is_flag=True, help="Measure no latency: parameters, sizes, operators, instructions."),
    click.option("--threads", type=int, help="Worker threads of the runtimes.  [default: 1]"),
    click.option("--samples", type=int, help="Least number of samples of each file."),
    click.option("--min-seconds", type=float, help="Least time that the samples of each file take together."),
    click.option("--target", help="Count another machine's instructions as well: qemu-arm64, or qemu-arm64:CPU."),
    click.option("--markdown", type=PATH, help="Also write the tables to this file."),
    click.option("--plot", type=PATH, help="Also draw them into this file: NAME.svg."),
)
@json_option
def attention_cost(options: CostOptions, as_json: bool) -> None:
    """Measure what each attention block costs on a backbone.

    Every network is written by the official converters and by this package, without weights of use. Files of one
    runtime take turns, and each is held against the faster file of the plain backbone: with its interval, and where
    two cannot be told apart that is said. ONNX files are in the form of the CPU that is timed or counted on. A file
    that an official converter refuses is listed with the reason; the exit code is 1 where ours is missing.

    \b
    Example:
        coordatt-deploy attention-cost --input-size 224 --target qemu-arm64 --plot cost.svg
        coordatt-deploy attention-cost --attention ca --attention se --format tflite --precision fp32 --precision int8
        coordatt-deploy attention-cost --backbone mobilenext_100 --activation relu --no-latency
        coordatt-deploy attention-cost --model path/to/net.py:make_backbone --attention se
    """
    # When the options are right, what makes the plan: see coordatt_deploy.cli.
    from coordatt_deploy.attention_cost.plan import BACKBONE, CostPlan
    from coordatt_deploy.loading.model_request import ModelRequest
    from coordatt_deploy.profile.latency import ProfileSettings

    network, measure = options.network, options.measure
    _check(options)
    own = None
    if network.model is not None:
        own = ModelRequest(network.model, model_args=network.model_args, input_size=network.input_size)
    given = {"threads": None if measure.threads is None else (measure.threads,), "samples": measure.samples,
             "min_seconds": measure.min_seconds}  # fmt: skip
    changed = {name: value for name, value in given.items() if value is not None}
    plan = CostPlan(
        backbones=network.backbones or (() if own else (BACKBONE,)),
        model=own,
        attention=network.attention,
        activation=network.activation,
        input_size=network.input_size,
        formats=network.formats,
        precisions=network.precisions or (Precision.FP32,),
        latency=None if measure.no_latency else ProfileSettings(**changed),  # type: ignore[arg-type]
        target=measure.target,
    )
    # When the plan is right, what does the work.
    from coordatt_deploy.attention_cost.run import measure_cost
    from coordatt_deploy.report.attention_cost_markdown import cost_markdown
    from coordatt_deploy.report.attention_cost_plot import cost_plot
    from coordatt_deploy.report.terminal import attention_cost as terminal
    from coordatt_deploy.report.terminal import console

    with console.bars() as stages:
        found = measure_cost(plan, stages)
    if options.markdown is not None:
        options.markdown.write_text(cost_markdown(found), encoding="utf-8")
    if options.plot is not None:
        options.plot.write_text(cost_plot(found), encoding="utf-8")
    if as_json:
        print_result(found)
    else:
        terminal.show_cost(found)
    sys.exit(found.exit_code)


def _check(options: CostOptions) -> None:
    """Refuse options that mean nothing, and files that could not be written after all the work.

    Raises:
        UsageError: There is one.
    """
    network, measure = options.network, options.measure
    if network.model_args and network.model is None:
        raise UsageError("--model-args is for the factory that --model names; give --model as well")
    if measure.no_latency:
        for name in ("threads", "samples", "min_seconds"):
            if getattr(measure, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} is for latency, which --no-latency leaves out")
    if options.plot is not None and options.plot.suffix != ".svg":
        raise UsageError(f"--plot {options.plot}: the picture is an SVG file; give a name that ends in .svg")
    for path in (options.markdown, options.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise UsageError(f"there is no folder {path.absolute().parent} for {path.name}; make it first")
