"""The half of this package that other machines get: what opens, runs and judges artifacts, without any framework.

It is named here and nowhere else: these modules are copied to a target, and the contract "What travels to a board
imports no framework" in pyproject.toml lists the same ones, which a test compares.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from coordatt_deploy.format_modules import Role
from coordatt_deploy.formats import FORMATS

PACKAGE: Final = Path(__file__).parents[1]

# A package stands for everything in it. Of the packages that are not named only ``__init__`` travels.
_NAMES: Final = (
    "errors", "plain_text", "plurals", "array_types", "formats", "format_modules", "runtime_versions",
    "artifact_specs", "documents", "manifest", "run_records", "files", "metrics", "progress", "layer_map",
    "output_grids", "tensors", "bundle", "report_file", "journal", "cpu", "host", "logs", "scratch", "locks",
    "interruption",
    "data.images", "data.dataset", "data.archives", "data.digits",
    "parity.outputs", "parity.layers", "parity.result", "parity.reports", "parity.shared_tensors",
    "parity.tolerances", "parity.error_statistics", "parity.executors", "parity.candidate", "parity.cases",
    "parity.conditioning",
    "mixed_precision.result", "graph.operators", "profile", "evaluation.result", "evaluation.reports",
    "evaluation.paired", "evaluation.jackknife",
    "runtimes.argument_checks", "runtimes.submodels", "runtimes.operator_times", "runtimes.file_graph",
    "runtimes.delegate", "runtimes.vocabulary", "runtimes.reader", "runtimes.host_effects",
    "runtimes.first_run",
    "runtimes.bounded_memory",
    *(
        module
        for file_format, row in FORMATS.items()
        if row.runs_only_on is None
        for module in (
            Role.RUNNER.format(file_format),
            *(f"runtimes.{file_format}.{name}" for name in row.runner_modules),
        )
    ),
    "targets.session_messages", "targets.session_server",
)  # fmt: skip

BOARD_MODULES: Final = tuple(f"{PACKAGE.name}.{name}" for name in _NAMES)


def board_files() -> Iterator[Path]:
    """Yield the sources that travel, in a fixed order, relative to the folder that holds this package."""
    found: dict[Path, None] = {}
    for module in BOARD_MODULES:
        path = Path(*module.split("."))
        found |= dict.fromkeys(parent / "__init__.py" for parent in reversed(path.parents[:-1]))
        if (PACKAGE.parent / path).is_dir():
            inside = sorted((PACKAGE.parent / path).rglob("*.py"))
            found |= dict.fromkeys(source.relative_to(PACKAGE.parent) for source in inside)
        else:
            found[path.with_suffix(".py")] = None
    yield from found
