"""``coordatt-deploy inspect``."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from coordatt_deploy.commands.options import (
    dynamic_batch_option,
    dynamic_size_option,
    gathered,
    input_shape_option,
    input_size_option,
    json_option,
    model_args_option,
)
from coordatt_deploy.commands.output import print_result
from coordatt_deploy.commands.places import PlaceOptions, place_options
from coordatt_deploy.errors import UsageError
from coordatt_deploy.loading.sizes import BatchBounds, Bounds, check_size

if TYPE_CHECKING:
    from coordatt_deploy.fleet.plan import Fleet
    from coordatt_deploy.inspection.result import BundleInspection, Inspection


@dataclass(frozen=True, slots=True)
class InspectOptions:
    """What the user says of a model; nothing of it is for files.

    Attributes:
        model_args: Keyword arguments of the factory.
        input_size: (H, W) in pixels.
        dynamic: Bounds of a dynamic size.
        batch: Bounds of a dynamic batch.
        inputs: Name and shape of inputs that are not images.
        places: Where a bundle or file is looked at.
    """

    model_args: Mapping[str, object] | None = None
    input_size: tuple[int, int] | None = None
    dynamic: Bounds | None = None
    batch: BatchBounds | None = None
    inputs: tuple[tuple[str, tuple[int, ...]], ...] = ()
    places: PlaceOptions = field(default_factory=PlaceOptions)


@click.command()
@click.argument("subject", metavar="MODEL|ARTIFACT|BUNDLE")
@gathered(
    InspectOptions(),
    model_args_option,
    input_size_option,
    dynamic_size_option("Look at it as with this option of export."),
    dynamic_batch_option("Likewise."),
    input_shape_option("As for export: prior=1x8x20x20."),
    *place_options("Look at a bundle or file on another machine:"),
)
@json_option
def inspect(options: InspectOptions, subject: str, as_json: bool) -> None:
    """Say what a model or file is made of, and what will trouble it on a phone.

    Parameters, multiply-accumulates, operators, attention blocks, where the bytes are, what delegates reject, and
    lint with remedies. A model is whatever build --model takes; files are read, not run.

    \b
    Example:
        coordatt-deploy inspect mobilenetv2_ca_100
        coordatt-deploy inspect path/to/net.py:make_backbone --input-size 320x192
        coordatt-deploy inspect mobilenetv2_ca_035.digits
        coordatt-deploy inspect mobilenetv2_ca_035.digits --target ssh://pi@pi4.local
    """
    fleet = options.places.places()
    if fleet is not None:
        _at_places(subject, options, fleet, as_json=as_json)
    if options.places.one is not None:
        raise UsageError(f"{options.places.one} runs files, and inspect reads them; leave --target out")
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.logs import logged, set_environment
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal.inspection import show_inspection

    set_environment()
    with console.bars() as stages, stages.stage(f"inspect {subject}"), logged("inspect"):
        found = _inspected(subject, options)
    if as_json:
        print_result(found.record())
    else:
        show_inspection(found)


def _at_places(subject: str, options: InspectOptions, fleet: "Fleet", *, as_json: bool) -> NoReturn:
    """Inspect at every place, and end."""
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.bundle import REPORTS
    from coordatt_deploy.commands.orders import show
    from coordatt_deploy.fleet.run import inspect_at_places
    from coordatt_deploy.inspection.run import is_artifact, is_bundle
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.targets.places import Order, Travelling

    given = options.model_args, options.input_size, options.dynamic, options.batch
    if (
        any(item is not None for item in given)
        or options.inputs
        or not (is_bundle(path := Path(subject)) or is_artifact(path))
    ):
        raise UsageError(
            f"other machines look at bundles and files; {subject} is taken for a model: leave --target out"
        )
    if fleet.emulated:
        raise UsageError(f"{fleet.emulated[0]} runs files, and inspect reads them; leave it out")
    order = Order("inspect", (Travelling(path, leave_out=(REPORTS,)),), writes=False)
    with console.bars() as stages:
        result = inspect_at_places(fleet, order, stages, whole=is_bundle(path))
    show(result, as_json=as_json)


def _inspected(subject: str, options: InspectOptions) -> "Inspection | BundleInspection":
    """What is found in the bundle, file or model that *subject* names."""
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.bundle import open_bundle
    from coordatt_deploy.inspection.run import inspect_artifact, inspect_bundle, is_artifact, is_bundle

    path = Path(subject)
    if is_bundle(path) or (subject and path.is_dir() and not is_artifact(path)):
        return inspect_bundle(open_bundle(path))  # which says what is missing of one
    if is_artifact(path):
        return inspect_artifact(path)
    return _inspected_model(subject, options)


def _inspected_model(subject: str, options: InspectOptions) -> "Inspection":
    # When the options are right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.format_modules import need
    from coordatt_deploy.formats import TORCH_EXTRA
    from coordatt_deploy.loading.model_request import ModelRequest

    need("torch", TORCH_EXTRA)
    if options.input_size is not None:
        check_size(options.input_size)
    request = ModelRequest(
        model=subject,
        model_args=options.model_args,
        input_size=options.input_size,
        dynamic=options.dynamic,
        batch=options.batch,
        inputs=dict(options.inputs) or None,
    )
    request.check()
    # These two import torch, which boards lack and a mistyped name need not wait for.
    from coordatt_deploy.inspection.captured_graph import inspect_source
    from coordatt_deploy.loading.load import resolve

    return inspect_source(resolve(request), subject, options.model_args)
