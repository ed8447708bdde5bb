"""``coordatt-deploy build``."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from coordatt_deploy.commands.config import ConfiguredCommand, said, save
from coordatt_deploy.commands.export_options import ExportOptions, export_options
from coordatt_deploy.commands.options import PATH, json_option
from coordatt_deploy.commands.output import document_of, print_document, print_notes, refusals_told
from coordatt_deploy.documents import JsonValue, to_json

if TYPE_CHECKING:
    from coordatt_deploy.conversion.plan import ExportPlan


@click.command(cls=ConfiguredCommand)
@click.option("--config", type=PATH, help="Read the options from a TOML file; those of the command line win.")
@click.option("--save-config", type=PATH, help="Write the options to a file for --config, and build.")
@click.option("--no-cache", is_flag=True, help="Make and prove everything anew, and keep nothing for the next build.")
@export_options
@click.option("--budgets", type=PATH, help="Hold the files to the budgets there, as check does.")
@json_option
def build(
    options: ExportOptions,
    config: Path | None,  # noqa: ARG001 - ConfiguredCommand has read it
    save_config: Path | None,
    no_cache: bool,
    budgets: Path | None,
    as_json: bool,
) -> None:
    """Go the whole way: export, prove, measure.

    Without arguments it builds the embedded default, a digits classifier with trained weights. What an earlier build
    made of the same network with the same options and tools is reused; latency is always measured.

    \b
    Example:
        coordatt-deploy build
        coordatt-deploy build --model mobilenetv2_ca_100 --checkpoint mbv2_ca.pth --output-dir ca_100
        coordatt-deploy build --config deploy.toml
    """
    # When the options are right, what makes the plan: see coordatt_deploy.cli.
    from coordatt_deploy.commands.export_plan import plan_export
    from coordatt_deploy.stage_cache.store import default_cache

    plan = plan_export(options)
    if budgets is not None:
        from coordatt_deploy.release.budgets import read_budgets

        read_budgets(budgets)  # or it is refused before the work
    record = said().config if save_config is None else save(save_config, said().values)
    plan = replace(plan, config=record, cache=None if no_cache else default_cache())
    _build(plan, budgets, as_json=as_json)


def _build(plan: "ExportPlan", budgets: Path | None, *, as_json: bool) -> NoReturn:
    # When the plan is right, what does the work: see coordatt_deploy.cli.
    from coordatt_deploy.conversion import export_run
    from coordatt_deploy.parity.run import ParityPlan, check_parity
    from coordatt_deploy.profile import run as profile_run
    from coordatt_deploy.release.check import check
    from coordatt_deploy.report.terminal import build as terminal_build
    from coordatt_deploy.report.terminal import console
    from coordatt_deploy.report.terminal.budgets import show_budgets

    with refusals_told(), console.bars() as stages:
        bundle = export_run.export(plan, stages)
        parity = check_parity(bundle, ParityPlan(command=plan.command, cache=plan.cache), stages)
        profile = profile_run.measure_latency(bundle, stages, command=plan.command)
    refused = bundle.manifest.refused
    print_notes(bundle.manifest.notes)
    checked = None if budgets is None else check(bundle, budgets)
    if as_json:
        passed, artifacts = parity.passed and not refused, terminal_build.summary(bundle, parity, profile)
        passed = passed and (checked is None or checked.passed)
        document: dict[str, JsonValue] = {
            "bundle": str(bundle.root),
            "passed": passed,
            "artifacts": [*artifacts],
            "refused": to_json(refused),
        }
        print_document(document if checked is None else {**document, "budgets": document_of(checked)})
    else:
        terminal_build.show_build(bundle, parity, profile)
        if checked is not None:
            show_budgets(checked)
        console.show_next(*terminal_build.after_build(bundle, parity))
    sys.exit(parity.exit_code or (1 if bundle.refused else 0) or (0 if checked is None else checked.exit_code))
