"""Options and arguments that commands share, and how their values are read.

A wrong value is answered by Click with exit code 2, the value as it was received, and what to write instead. Options
that belong together reach the command as one frozen dataclass: a group. Nothing here imports NumPy or a framework, as
``--help`` needs this module.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import click

from coordatt_deploy.artifact_specs import RangeMethod
from coordatt_deploy.documents import E, member, parse
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.loading.sizes import Bounds, parse_dynamic_size

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

P = ParamSpec("P")
Group = TypeVar("Group", bound="DataclassInstance")

PATH = click.Path(path_type=Path)


def gathered(
    group: Group, *options: Callable[[Callable[P, None]], Callable[P, None]]
) -> Callable[[Callable[Concatenate[Group, P], None]], Callable[P, None]]:
    """Return a decorator that adds *options* to a command and hands it their values as one dataclass.

    The dataclass is the command's first positional argument; of several groups the one nearest to the function comes
    first. Everything else comes by keyword, as Click passes it.

    Args:
        group: With its defaults. A field is called as the parameter of its option, or is a group itself.
        options: In the order of the help.
    """

    def decorate(command: Callable[Concatenate[Group, P], None]) -> Callable[P, None]:
        @functools.wraps(command)
        def called(*groups: P.args, **values: P.kwargs) -> None:
            command(_filled(group, values), *groups, **values)

        return with_options(called, options)

    return decorate


def with_options(
    command: Callable[P, None], options: Sequence[Callable[[Callable[P, None]], Callable[P, None]]]
) -> Callable[P, None]:
    """Return *command* with *options*, in the order of the help."""
    for option in reversed(options):
        command = option(command)
    return command


def _filled(group: Group, values: dict[str, object]) -> Group:
    """The group with its fields taken out of *values*."""
    own: dict[str, object] = {}
    for item in dataclasses.fields(group):
        default: object = getattr(group, item.name)
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            own[item.name] = _filled(default, values)
        else:
            own[item.name] = values.pop(item.name)
    return dataclasses.replace(group, **own)


def size(text: str) -> tuple[int, int]:
    """Read ``224`` or ``320x192`` (height x width)."""
    parts = text.lower().split("x")
    if len(parts) in (1, 2) and all(part.isascii() and part.isdigit() for part in parts):
        return int(parts[0]), int(parts[-1])
    raise click.BadParameter(f"{text!r} is no size; give whole pixels: 224, or height x width: 320x192")


def bounds(text: str) -> Bounds:
    """Read ``96:320`` or ``96:320:32``."""
    try:
        return parse_dynamic_size(text)
    except UsageError as error:
        raise click.BadParameter(str(error)) from None


def json_object(text: str) -> Mapping[str, object]:
    """Read a JSON object."""
    try:
        document = parse(text)
    except ValueError as error:
        raise click.BadParameter(f"{text!r} is no JSON ({error})") from None
    if not isinstance(document, dict):
        raise click.BadParameter(f'{text!r} is no JSON object; write {{"width": 0.5}}')
    return document


def named_shape(text: str) -> tuple[str, tuple[int, ...]]:
    """Read ``NAME=1x3x224x224``."""
    name, _, shape = text.partition("=")
    parts = shape.lower().split("x")
    if not name or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"{text!r} is no shape; write NAME=1x3x224x224")
    return name, tuple(int(part) for part in parts)


def numbers(text: str) -> tuple[int, ...]:
    """Read ``1`` or ``1,2``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise click.BadParameter(f"{text!r} is no list of whole numbers; give 1, or 1,2")
    return tuple(int(part) for part in parts)


def member_of(kind: type[E], what: str) -> Callable[[str], E]:
    """Return what reads a member of *kind*; an unknown one is answered with the nearest."""

    def read(text: str) -> E:
        try:
            return member(kind, text, what)
        except UsageError as error:
            raise click.BadParameter(str(error)) from None

    return read


def members(kind: type[E]) -> str:
    """Return how the help lists what *kind* has."""
    return "[" + "|".join(item.value for item in kind) + "]"


def json_option(command: Callable[P, None]) -> Callable[P, None]:
    """``--json`` on every command."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")(command)


def bundle_argument(command: Callable[P, None]) -> Callable[P, None]:
    """The bundle that a command works on."""
    return click.argument("bundle", type=PATH)(command)


def format_option(text: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """``--format``, repeatable; *text* is its help."""
    return click.option(
        "--format",
        "formats",
        multiple=True,
        type=member_of(Format, "format"),
        metavar=members(Format),
        help=text,
    )


def target_cpu_option(text: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """``--target-cpu``, repeatable; *text* is its help."""
    return click.option(
        "--target-cpu",
        "target_cpus",
        multiple=True,
        type=member_of(TargetCpu, "target CPU"),
        metavar=members(TargetCpu),
        help=text,
    )


def model_args_option(command: Callable[P, None]) -> Callable[P, None]:
    """``--model-args``."""
    text = "Keyword arguments of the factory, as a JSON object."
    return click.option("--model-args", type=json_object, metavar="TEXT", help=text)(command)


def input_size_option(command: Callable[P, None]) -> Callable[P, None]:
    """``--input-size``."""
    text = "Pixels: 224, or height x width as 320x192."
    return click.option("--input-size", type=size, metavar="H[XW]", help=text)(command)


def dynamic_size_option(text: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """``--dynamic-size``; *text* is its help."""
    return click.option("--dynamic-size", "dynamic", type=bounds, metavar="MIN:MAX[:STEP]", help=text)


def input_shape_option(text: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """``--input-shape``, repeatable; *text* is its help."""
    return click.option("--input-shape", "inputs", multiple=True, type=named_shape, metavar="TEXT", help=text)


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """What int8 activations are measured on.

    Attributes:
        data: A folder, an ``.npz`` or ``digits``; None where nothing was named.
        count: Images to use at most; None for the usual number.
        seed: Of the choice among more images.
        ranges: How a range follows from the values; None for the recipe's own way.
    """

    data: str | None = None
    count: int | None = None
    seed: int = 0
    ranges: RangeMethod | None = None


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """What the user says of the model.

    Attributes:
        model: What ``--model`` takes; None for the embedded default.
        model_args: Keyword arguments of the factory.
        name: What the model is called in file names.
        checkpoint: Weights of the user's own.
        checkpoint_key: The entry of the checkpoint that holds them.
        allow_unexpected: Whether the checkpoint may hold tensors that the network does not have.
        input_size: (H, W) in pixels.
        dynamic: Bounds of a dynamic size.
        inputs: Name and shape of inputs that are not images.
        labels: A file of class names.
        golden: A folder of images.
    """

    model: str | None = None
    model_args: Mapping[str, object] | None = None
    name: str | None = None
    checkpoint: Path | None = None
    checkpoint_key: str | None = None
    allow_unexpected: bool = False
    input_size: tuple[int, int] | None = None
    dynamic: Bounds | None = None
    inputs: tuple[tuple[str, tuple[int, ...]], ...] = ()
    labels: Path | None = None
    golden: Path | None = None


@dataclass(frozen=True, slots=True)
class PreprocessingOptions:
    """What the user says of preprocessing, as it was written.

    Attributes:
        mean: Numbers with commas between them, like the next two.
        std: See ``mean``.
        input_range: See ``mean``.
        colour: Order of the channels.
        resize: Name of a filter.
        preprocessing: A file with all of these.
    """

    mean: str | None = None
    std: str | None = None
    input_range: str | None = None
    colour: str | None = None
    resize: str | None = None
    preprocessing: Path | None = None


@dataclass(frozen=True, slots=True)
class ExportOptions:
    """What ``build`` and ``export`` share; ``export_plan`` says what becomes of it.

    Attributes:
        model: What is exported.
        preprocessing: How images become its input.
        calibration: For int8 files.
        formats: Empty for all.
        precisions: Empty for every float precision of each format.
        target_cpus: Empty for ARM64.
        bake: Whether normalisation becomes part of the network.
        softmax: Whether the network then gives probabilities.
        output_dir: The bundle; None for the model's name.
    """

    model: ModelOptions = field(default_factory=ModelOptions)
    preprocessing: PreprocessingOptions = field(default_factory=PreprocessingOptions)
    calibration: CalibrationOptions = field(default_factory=CalibrationOptions)
    formats: tuple[Format, ...] = ()
    precisions: tuple[Precision, ...] = ()
    target_cpus: tuple[TargetCpu, ...] = ()
    bake: bool = False
    softmax: bool = False
    output_dir: Path | None = None


def calibration_options(command: Callable[P, None]) -> Callable[P, None]:
    """The options of ``CalibrationOptions``."""
    options: tuple[Callable[[Callable[P, None]], Callable[P, None]], ...] = (
        click.option(
            "--calibration-data",
            "data",
            help="What ranges are measured on: a folder of images, an .npz of preprocessed tensors, or digits."
            "  [default: for the embedded model the digits that it was trained on]",
        ),
        click.option("--calibration-count", "count", type=int, help="Images to use at most.  [default: 200]"),
        click.option("--seed", type=int, default=0, help="Of the choice among more images.  [default: 0]"),
        click.option(
            "--ranges",
            type=member_of(RangeMethod, "range method"),
            metavar=members(RangeMethod),
            help="How a range follows from the values.",
        ),
    )
    return with_options(command, options)


def export_options(command: Callable[Concatenate[ExportOptions, P], None]) -> Callable[P, None]:
    """Hand the command its ``ExportOptions``."""
    return gathered(
        ExportOptions(),
        click.option(
            "--model",
            help="A backbone (see: coordatt-deploy models), package.module:factory, path/to/file.py:factory, a saved"
            " program.pt2, or timm:NAME. Code and programs that you name are run.",
        ),
        model_args_option,
        click.option("--name", help="What the model is called in file names."),
        click.option(
            "--checkpoint",
            type=PATH,
            help="Weights of your own: .safetensors, or a .pth that holds a state dict. No code in it is run.",
        ),
        click.option(
            "--checkpoint-key",
            help="The entry of the checkpoint that holds the weights, or what their names begin with."
            "  [default: found]",
        ),
        click.option(
            "--allow-unexpected",
            is_flag=True,
            help="Leave out what the network does not have, such as auxiliary heads; what it lacks is always an error.",
        ),
        format_option("Repeatable; default: all."),
        click.option(
            "--precision",
            "precisions",
            multiple=True,
            type=member_of(Precision, "precision"),
            metavar=members(Precision),
            help="Repeatable; default: every float precision that the format has.",
        ),
        target_cpu_option("Whose fastest form ONNX is written in; repeatable; default: arm64, as phones have."),
        input_size_option,
        dynamic_size_option("Any size between two: 96:320, or 96:320:32 for multiples of 32. ONNX and Core ML."),
        input_shape_option("Shape of an input that is no image, batch first: prior=1x8x20x20. Repeatable."),
        click.option("--labels", type=PATH, help="Class names: a line each, or a JSON list."),
        click.option(
            "--bake-preprocessing",
            "bake",
            is_flag=True,
            help="Fold the normalisation into the first convolution: the file takes 8-bit pixels as they are (uint8 in"
            " TFLite, an image in Core ML, 0 to 255 in ONNX).",
        ),
        click.option("--softmax", is_flag=True, help="With --bake-preprocessing: give probabilities, not logits."),
        click.option("--mean", help="Per channel, in units of --input-range: 0.485,0.456,0.406."),
        click.option("--std", help="Per channel, in units of --input-range: 0.229,0.224,0.225."),
        click.option("--input-range", help="What pixel values 0 and 255 become before normalising: 0,1."),
        click.option(
            "--colour", help="RGB or BGR, the order of the channels; GREY for one; OTHER for what no image has."
        ),
        click.option("--resize", help="bilinear, bicubic or nearest."),
        click.option("--preprocessing", type=PATH, help="All of these in a file: preprocessing.json."),
        click.option("--golden", type=PATH, help="A folder of images of your own for the golden inputs."),
        click.option("--output-dir", type=PATH, help="The bundle's folder; default: the model's name."),
        calibration_options,
    )(command)
