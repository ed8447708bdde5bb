"""``coordatt-deploy schema``."""

from importlib import import_module
from typing import Final

import click

from coordatt_deploy.commands.options import json_option
from coordatt_deploy.documents import Document, write
from coordatt_deploy.errors import UsageError, nearest
from coordatt_deploy.json_schema import schema

DOCUMENTS: Final = {
    "manifest": "coordatt_deploy.manifest:Manifest",
    "layers": "coordatt_deploy.layer_map:LayersDocument",
    "recipe": "coordatt_deploy.manifest:RecipeRecord",
    "parity": "coordatt_deploy.parity.reports:ParityReports",
    "parity-result": "coordatt_deploy.parity.result:ParityResult",
    "failing": "coordatt_deploy.parity.failing_layer:FailingLayer",
    "profile": "coordatt_deploy.profile.reports:ProfileReports",
    "profile-result": "coordatt_deploy.profile.result:ProfileResult",
    "import-result": "coordatt_deploy.profile.imported_result:ImportResult",
    "instructions": "coordatt_deploy.profile.instructions:InstructionReports",
    "instructions-result": "coordatt_deploy.profile.instructions:InstructionProfile",
    "evaluate": "coordatt_deploy.evaluation.reports:EvaluationReports",
    "evaluate-result": "coordatt_deploy.evaluation.result:EvaluationResult",
    "sensitivity": "coordatt_deploy.mixed_precision.result:Sensitivity",
    "inspection": "coordatt_deploy.inspection.result:InspectionResult",
    "bundle-inspection": "coordatt_deploy.inspection.result:BundleInspectionResult",
    "verification": "coordatt_deploy.bundle:Verification",
    "deploy": "coordatt_deploy.fleet.deploy_result:DeployResult",
    "checksums": "coordatt_deploy.packing.result:Checksums",
    "pack": "coordatt_deploy.packing.result:Packing",
    "unpack": "coordatt_deploy.packing.result:Unpacking",
    "check": "coordatt_deploy.release.result:CheckResult",
    "diff": "coordatt_deploy.release.diff_result:DiffResult",
    "attention-cost": "coordatt_deploy.attention_cost.result:AttentionCost",
    "fleet-result": "coordatt_deploy.fleet.result:FleetResult",
    "installation": "coordatt_deploy.inspection.installation:Installation",
    "search": "coordatt_deploy.mixed_precision.result:SearchResult",
}
"""Where the type of each document is, as "module:class"; ``-result`` is what the command prints with ``--json``."""


def document_type(name: str) -> type[Document]:
    """Return the type of the document of that name.

    Raises:
        UsageError: There is none; the text holds the nearest names.
    """
    if name not in DOCUMENTS:
        raise UsageError(f"unknown document {name!r}; {nearest(name, DOCUMENTS)}")
    module, _, kind = DOCUMENTS[name].partition(":")
    found: type[Document] = getattr(import_module(module), kind)
    return found


@click.command(name="schema")
@click.argument("document", metavar=f"[{'|'.join(DOCUMENTS)}]")
@json_option
def print_schema(document: str, as_json: bool) -> None:  # noqa: ARG001 - it prints JSON as it is
    """Print the JSON Schema of a document.

    The manifest, the layer map beside an artifact, a recipe file, the reports in a bundle's reports folder, and what
    commands print with --json. Documents gain keys over time and never lose one within a schema_version.

    \b
    Example:
        coordatt-deploy schema manifest
        coordatt-deploy schema parity-result
    """
    click.echo(write(schema(document_type(document)), indent=2), nl=False)
