"""Options and arguments that commands share, and the types of their values.

A wrong value is answered by Click with exit code 2, the value as it was received, and what to write instead.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from coordatt_deploy.artifact_specs import RangeMethod
from coordatt_deploy.documents import member, parse
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format, Precision, TargetCpu

F = TypeVar("F", bound=Callable[..., Any])


class SizeType(click.ParamType[Any]):
    """``224`` or ``320x192`` (height x width)."""

    name = "H[xW]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse."""
        parts = str(value).lower().split("x")
        if len(parts) in (1, 2) and all(part.isascii() and part.isdigit() for part in parts):
            height, width = int(parts[0]), int(parts[-1])
            return height, width
        return self.fail(f"{value!r} is no size; give whole pixels: 224, or height x width: 320x192", param, ctx)


class BoundsType(click.ParamType[Any]):
    """``96:320`` or ``96:320:32``."""

    name = "MIN:MAX[:STEP]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse."""
        from coordatt_deploy.loading.sizes import parse_dynamic_size

        try:
            return parse_dynamic_size(str(value))
        except UsageError as error:
            return self.fail(str(error), param, ctx)


class MemberType(click.ParamType[Any]):
    """A member of one of the core's enumerations; an unknown one is answered with the nearest."""

    def __init__(self, kind: Any, what: str) -> None:
        self.kind, self.what, self.name = kind, what, what

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        """List the members in the help."""
        return "[" + "|".join(item.value for item in self.kind) + "]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse."""
        try:
            return member(self.kind, str(value), self.what)
        except UsageError as error:
            return self.fail(str(error), param, ctx)


def json_option(command: F) -> F:
    """``--json`` on every command."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")(command)


def bundle_argument(command: F) -> F:
    """The bundle that a command works on."""
    return click.argument("bundle", type=click.Path(path_type=Path))(command)


def json_object(context: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, Any] | None:
    """Parse a JSON object."""
    if value is None:
        return None
    try:
        document = parse(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is no JSON ({error})", context, parameter) from None
    if not isinstance(document, dict):
        raise click.BadParameter(f'{value!r} is no JSON object; write {{"width": 0.5}}', context, parameter)
    return document


def shapes_of(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, tuple[int, ...]] | None:
    """Parse ``NAME=1x3x224x224``, repeated."""
    shapes = {}
    for value in values:
        name, _, text = value.partition("=")
        parts = text.lower().split("x")
        if not name or not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
            raise click.BadParameter(f"{value!r} is no shape; write NAME=1x3x224x224", context, parameter)
        shapes[name] = tuple(int(part) for part in parts)
    return shapes or None


def numbers(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """Parse ``1`` or ``1,2``."""
    if value is None:
        return None
    parts = [part.strip() for part in value.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise click.BadParameter(f"{value!r} is no list of whole numbers; give 1, or 1,2", context, parameter)
    return tuple(int(part) for part in parts)


def calibration_options(command: F) -> F:
    """What int8 activations are measured on."""
    options = (
        click.option(
            "--calibration-data",
            "calibration",
            help="What ranges are measured on: a folder of images, an .npz of preprocessed tensors, or digits."
            "  [default: for the embedded model the digits that it was trained on]",
        ),
        click.option("--calibration-count", type=int, help="Images to use at most.  [default: 200]"),
        click.option("--seed", type=int, default=0, help="Of the choice among more images.  [default: 0]"),
        click.option(
            "--ranges", type=MemberType(RangeMethod, "range method"), help="How a range follows from the values."
        ),
    )
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), command)


def export_options(command: F) -> F:
    """What ``build`` and ``export`` share."""
    options = (
        click.option(
            "--model",
            help="A backbone (see: coordatt-deploy models), package.module:factory, path/to/file.py:factory, a saved"
            " program.pt2, or timm:NAME. Code and programs that you name are run.",
        ),
        click.option("--model-args", callback=json_object, help="Keyword arguments of the factory, as a JSON object."),
        click.option("--name", help="What the model is called in file names."),
        click.option(
            "--checkpoint",
            type=click.Path(path_type=Path),
            help="Weights of your own: .safetensors, or a .pth that holds a state dict. No code in it is run.",
        ),
        click.option("--checkpoint-key", help="The entry of the checkpoint that holds the weights.  [default: found]"),
        click.option(
            "--format", "formats", multiple=True, type=MemberType(Format, "format"), help="Repeatable; default: all."
        ),
        click.option(
            "--precision",
            "precisions",
            multiple=True,
            type=MemberType(Precision, "precision"),
            help="Repeatable; default: every float precision that the format has.",
        ),
        click.option(
            "--target-cpu",
            "target_cpus",
            multiple=True,
            type=MemberType(TargetCpu, "target CPU"),
            help="Whose fastest form ONNX is written in; repeatable; default: arm64, as phones have.",
        ),
        click.option("--input-size", type=SizeType(), help="Pixels: 224, or height x width as 320x192."),
        click.option(
            "--dynamic-size",
            "dynamic",
            type=BoundsType(),
            help="Any size between two: 96:320, or 96:320:32 for multiples of 32. ONNX and Core ML.",
        ),
        click.option(
            "--input-shape",
            "inputs",
            multiple=True,
            callback=shapes_of,
            help="Shape of an input that is no image, batch first: prior=1x8x20x20. Repeatable.",
        ),
        click.option("--labels", type=click.Path(path_type=Path), help="Class names: a line each, or a JSON list."),
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
        click.option("--colour", help="Order of the channels: RGB or BGR."),
        click.option("--resize", help="bilinear, bicubic or nearest."),
        click.option(
            "--preprocessing", type=click.Path(path_type=Path), help="All of these in a file: preprocessing.json."
        ),
        click.option(
            "--golden", type=click.Path(path_type=Path), help="A folder of images of your own for the golden inputs."
        ),
        click.option(
            "--output-dir", type=click.Path(path_type=Path), help="The bundle's folder; default: the model's name."
        ),
    )
    return functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), calibration_options(command))
