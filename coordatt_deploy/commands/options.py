"""Options and arguments that commands share, and how their values are read.

A wrong value is answered by Click with exit code 2, the value as it was received, and what to write instead. Options
that belong together reach the command as one frozen dataclass: a group. Nothing here imports NumPy or a framework, as
``--help`` needs this module.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

import click

from coordatt_deploy.artifact_specs import OutputKind, RangeMethod
from coordatt_deploy.documents import E, member, parse
from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format, TargetCpu
from coordatt_deploy.loading.sizes import BatchBounds, Bounds, parse_dynamic_batch, parse_dynamic_size
from coordatt_deploy.runtime_versions import RuntimeLimits, parse_min_runtime
from coordatt_deploy.units import ABSOLUTE, DURATIONS

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

P = ParamSpec("P")
Group = TypeVar("Group", bound="DataclassInstance")

PATH = click.Path(path_type=Path)
OPSETS = (7, 22)  # from the first that ONNX Runtime opens to the last whose first runtime was seen to open it


def cluster_option(help: str) -> Callable[[Callable[P, None]], Callable[P, None]]:  # noqa: A002 - Click's name for it
    """``--cluster``: whose workers run artifacts on images."""
    return click.option("--cluster", metavar="tcp://HOST:PORT", help=help)


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


def batch_bounds(text: str) -> BatchBounds:
    """Read ``1:8``."""
    try:
        return parse_dynamic_batch(text)
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


def output_kind(text: str) -> tuple[str, OutputKind]:
    """Read ``NAME=boxes``."""
    name, _, kind = text.partition("=")
    if not name or kind not in {item.value for item in OutputKind}:
        raise click.BadParameter(f"{text!r} is no kind of output; write NAME={'|'.join(OutputKind)}")
    return name, OutputKind(kind)


def numbers(text: str) -> tuple[int, ...]:
    """Read ``1`` or ``1,2``."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise click.BadParameter(f"{text!r} is no list of whole numbers; give 1, or 1,2")
    return tuple(int(part) for part in parts)


def share(text: str) -> float:
    """Read ``3%`` or ``3 %`` as 0.03."""
    number = text.removesuffix("%").strip()
    try:
        return float(number) / 100
    except ValueError:
        raise click.BadParameter(f"{text!r} is no percentage; give a number such as 3%") from None


def duration(text: str) -> float:
    """Read ``90s``, ``10m`` or ``1h`` as seconds."""
    found = ABSOLUTE.fullmatch(text.strip())
    if found and (factor := DURATIONS.get(found[2])):
        return float(found[1]) * factor
    raise click.BadParameter(f"{text!r} is no length of time; give it with its unit: 90s, 10m or 1h")


def member_of(kind: type[E], what: str) -> Callable[[str], E]:
    """Return what reads a member of *kind*; an unknown one is answered with the nearest."""

    def read(text: str) -> E:
        try:
            return member(kind, text, what)
        except UsageError as error:
            raise click.BadParameter(str(error)) from None

    return read


def completing(kind: type[E]) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return what offers the members of *kind* to a shell."""

    def offer(_: click.Context, __: click.Parameter, begun: str) -> list[str]:
        return [item.value for item in kind if item.value.startswith(begun)]

    return offer


def members(kind: type[E]) -> str:
    """Return how the help lists what *kind* has."""
    return "[" + "|".join(item.value for item in kind) + "]"


def json_option(command: Callable[P, None]) -> Callable[P, None]:
    """``--json`` on every command."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of a table.")(command)


def bundle_argument(command: Callable[P, None]) -> Callable[P, None]:
    """The bundle that a command works on."""
    return click.argument("bundle", type=PATH)(command)


def artifact_option() -> Callable[[Callable[P, None]], Callable[P, None]]:
    """``--artifact``, repeatable: chosen files of a bundle."""
    return click.option(
        "--artifact", "artifacts", multiple=True, metavar="NAME",
        help="Only this one, by path or file name. Repeatable.",
    )  # fmt: skip


def format_option(text: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """``--format``, repeatable; *text* is its help."""
    return click.option(
        "--format",
        "formats",
        multiple=True,
        type=member_of(Format, "format"),
        metavar=members(Format),
        shell_complete=completing(Format),
        help=text,
    )


def output_option(name: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """``--output``, for what a bundle keeps as ``reports/NAME``."""
    text = f"Write the document there and leave the bundle as it is.  [default: BUNDLE/reports/{name}]"
    return click.option("--output", type=PATH, help=text)


def summary_options(what: str) -> tuple[Callable[[Callable[P, None]], Callable[P, None]], ...]:
    """Return ``--junit`` and ``--markdown``; *what* is written there."""
    return (
        click.option("--junit", type=PATH, help=f"Write the {what} there as JUnit XML as well."),
        click.option("--markdown", type=PATH, help="Write a summary for a CI run there."),
    )


def strict_option(command: Callable[P, None]) -> Callable[P, None]:
    """``--strict``."""
    text = "Write all files or none. Without it those that can be written are, and the exit code is 1."
    return click.option("--strict", is_flag=True, help=text)(command)


def target_cpu_option(text: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """``--target-cpu``, repeatable; *text* is its help."""
    return click.option(
        "--target-cpu",
        "target_cpus",
        multiple=True,
        type=member_of(TargetCpu, "target CPU"),
        metavar=members(TargetCpu),
        shell_complete=completing(TargetCpu),
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


def dynamic_batch_option(text: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """``--dynamic-batch``; *text* is its help."""
    return click.option("--dynamic-batch", "batch", type=batch_bounds, metavar="MIN:MAX", help=text)


def input_shape_option(text: str) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """``--input-shape``, repeatable; *text* is its help."""
    return click.option("--input-shape", "inputs", multiple=True, type=named_shape, metavar="TEXT", help=text)


def min_runtime(text: str) -> tuple[str, str]:
    """Read ``onnxruntime=1.15``."""
    try:
        return parse_min_runtime(text)
    except UsageError as error:
        raise click.BadParameter(str(error)) from None


@dataclass(frozen=True, slots=True)
class LimitOptions:
    """For how old a runtime files are written; see ``RuntimeLimits``."""

    min_runtimes: tuple[tuple[str, str], ...] = ()
    opset: int | None = None

    @property
    def given(self) -> bool:
        """Whether anything was said."""
        return bool(self.min_runtimes) or self.opset is not None

    def limits(self) -> RuntimeLimits:
        """Return what was said; of a runtime that was named twice the last."""
        return RuntimeLimits(dict(self.min_runtimes), self.opset)


def limit_options(command: Callable[P, None]) -> Callable[P, None]:
    """The options of ``LimitOptions``."""
    options: tuple[Callable[[Callable[P, None]], Callable[P, None]], ...] = (
        click.option(
            "--min-runtime",
            "min_runtimes",
            multiple=True,
            type=min_runtime,
            metavar="NAME=VERSION",
            help="The oldest runtime that is to open the files: onnxruntime=1.15, tflite=2.14 or ios=15. What cannot be"
            " written for it is refused, with the reason. Repeatable.",
        ),
        click.option(
            "--opset",
            type=click.IntRange(*OPSETS),
            help="Of ONNX files.  [default: 18, the lowest that torch writes itself]",
        ),
    )
    return with_options(command, options)


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """What int8 activations are measured on.

    Attributes:
        data: A folder, an ``.npz`` or what is packaged; None where nothing was named.
        count: Images to use at most; None for the usual number.
        seed: Of the choice among more images.
        ranges: How a range follows from the values; None for the recipe's own way.
    """

    data: str | None = None
    count: int | None = None
    seed: int = 0
    ranges: RangeMethod | None = None


def calibration_options(command: Callable[P, None]) -> Callable[P, None]:
    """The options of ``CalibrationOptions``."""
    options: tuple[Callable[[Callable[P, None]], Callable[P, None]], ...] = (
        click.option(
            "--calibration-data",
            "data",
            help="What ranges are measured on: a folder of images, an .npz of preprocessed tensors, digits,"
            " or scenes.  [default: for an embedded model what it was trained on]",
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
