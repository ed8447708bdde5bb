"""``coordatt-deploy export``."""

import sys
from typing import TYPE_CHECKING, NoReturn

import click

from coordatt_deploy.commands.export_options import ExportOptions, export_options
from coordatt_deploy.commands.options import json_option
from coordatt_deploy.commands.output import print_document, print_notes, refusals_told
from coordatt_deploy.documents import to_json

if TYPE_CHECKING:
    from coordatt_deploy.conversion.plan import ExportPlan


@click.command()
@export_options
@json_option
def export(options: ExportOptions, as_json: bool) -> None:
    """Write the artifacts into a bundle.

    Exporting again into the bundle of the same weights adds or replaces artifacts and keeps the others. A file that
    cannot be written is named with the reason; the others are written all the same, and the exit code is 1.

    \b
    Example:
        coordatt-deploy export --format onnx --format tflite --output-dir digits
    """
    # When the options are right, what makes the plan: see coordatt_deploy.cli.
    from coordatt_deploy.commands.export_plan import plan_export

    _export(plan_export(options), as_json=as_json)


def _export(plan: "ExportPlan", *, as_json: bool) -> NoReturn:
    # When the plan is right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.conversion import export_run
    from coordatt_deploy.report.terminal import build as terminal_build
    from coordatt_deploy.report.terminal import console

    with refusals_told(), console.bars() as stages:
        bundle = export_run.export(plan, stages)
    manifest = bundle.manifest
    print_notes(manifest.notes)
    if as_json:
        artifacts, refused = to_json(manifest.artifacts), to_json(manifest.refused)
        print_document({"bundle": str(bundle.root), "artifacts": artifacts, "refused": refused})
    else:
        terminal_build.show_artifacts(bundle)
        console.show_next(*terminal_build.after_export(bundle))
    sys.exit(1 if bundle.refused else 0)
