"""Find out what every format makes of every operator, and write it down for people and for ``inspect``.

    python benchmarks/operator_table.py [--only TEXT] [--format FORMAT] [--document FILE] [--page FILE]

Each row of ``operator_rows`` is a small network. It is exported to each format as ``export`` does it, with the
decompositions of the format's lowering, and the file is run (ONNX Runtime, LiteRT, the ML Program evaluator) and held
against torch. Rows are converted a dozen at a time, as outputs of one network, because most of a conversion is the
converter's own start; where one fails, the dozen is halved until it stands alone. What was decomposed is converted once
more as it is, which says what the decomposition is good for.
"""

import argparse
import re
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import nn

from benchmarks.operator_rows import FAMILIES, ROWS, Row, network
from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing
from coordatt_deploy.documents import dump, load
from coordatt_deploy.errors import DeployError
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.formats import FORMATS, Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.graph import Graph, op_name
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.graph.operator_support import PATH, Cell, OperatorRow, OperatorTable, Verdict
from coordatt_deploy.graph.operator_variants import variant
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.host import tool_versions
from coordatt_deploy.logs import captured
from coordatt_deploy.manifest import LoweringReport
from coordatt_deploy.processes import job_log, workers
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.tensors import decode, encode

PAGE: Final = Path(__file__).parents[1] / "docs" / "operators.md"
DOZEN: Final = 12
SEEDS: Final = (5, 6)
# Relative to the greatest value of the output: some hundred roundings of float32 in a row. A lost epsilon of 1e-4, the
# smallest thing that a converter was ever found to get wrong, is five times above.
TOLERANCE: Final = 2e-5


class _Together(nn.Module):
    """Several networks on one image."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(item(image) for item in self.networks)


def captured_rows(rows: Sequence[Row]) -> tuple[_Together, Graph]:
    """Return the networks of *rows*, all of one size, and what they are captured as; an output per row."""
    module = _Together([network(row) for row in rows]).eval()
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(1, 3, *rows[0].size, generator=generator)
    names = [f"row_{index}" for index in range(len(rows))]
    return module, fold_batchnorms(capture(module, (example,), output_names=names))[0]


def measure(rows: Sequence[Row], file_format: Format, *, decomposed: bool = True) -> list[Cell]:
    """Export *rows* to one format and run the file; a cell per row.

    Args:
        rows: All of one size.
        file_format: The format.
        decomposed: Whether operators are put in the terms of others first, as an export does it.
    """
    try:
        return _measure(rows, file_format, decomposed)
    except Exception as error:  # noqa: BLE001 - converters raise what they like, and that is what is asked
        if len(rows) > 1:
            half = len(rows) // 2
            return [cell for part in (rows[:half], rows[half:])
                    for cell in measure(part, file_format, decomposed=decomposed)]  # fmt: skip
        unknown = type(error).__name__ == "UnknownOperatorError"  # a class that only one runtime has
        return [Cell(Verdict.UNPROVEN if unknown else Verdict.REFUSED, reason(error))]


def _measure(rows: Sequence[Row], file_format: Format, decomposed: bool) -> list[Cell]:
    module, graph = captured_rows(rows)
    target = target_of(file_format)
    lowered, report = lower(graph, target if decomposed else replace(target, decompositions=()))
    suffix = FORMATS[file_format].suffix
    with tempfile.TemporaryDirectory() as folder:
        spec = ModelSpec("operators", Preprocessing(rows[0].size))
        request = ExportRequest(spec, Precision.FP32, Path(folder) / f"operators{suffix}")
        exported = exporter(file_format).export(lowered, request)
        artifact = Artifact("", file_format, Precision.FP32, None, None, 0, "", exported.inputs, exported.outputs, "")
        errors = _errors(request.path, artifact, module, rows[0].size)
    return [_cell(index, error, report) for index, error in enumerate(errors)]


def _errors(path: Path, artifact: Artifact, module: _Together, size: tuple[int, int]) -> list[float]:
    """The greatest difference of each output to torch, relative to its greatest value."""
    worst = [0.0] * len(artifact.outputs)
    with runtime(artifact.format).open_artifact(path, artifact) as runner:
        for seed in SEEDS:
            image = np.random.default_rng(seed).normal(0.2, 1.5, (1, 3, *size)).astype(np.float32)
            results = runner.infer({spec.name: encode(image, spec) for spec in runner.inputs})
            with torch.no_grad():
                wanted = module(torch.from_numpy(image))
            for index, value in enumerate(wanted):
                spec = next(spec for spec in artifact.outputs if spec.name == f"row_{index}")
                worst[index] = max(worst[index], _difference(decode(results[spec.name], spec), value.numpy()))
    return worst


def _difference(value: NumberArray, wanted: NumberArray) -> float:
    if value.shape != wanted.shape or not np.isfinite(value.astype(np.float64)).all():
        return float("inf")
    scale = max(float(np.max(np.abs(wanted.astype(np.float64)))), 1e-9)
    return float(np.max(np.abs(value.astype(np.float64) - wanted.astype(np.float64)))) / scale


def _cell(index: int, error: float, report: LoweringReport) -> Cell:
    if not error <= TOLERANCE:
        return Cell(Verdict.REFUSED, f"the file computes something else, off by {error:.0e} of the greatest value")
    inside = re.compile(rf"networks\.{index}($|[.:])")
    names = [item.decomposition for item in report.decomposed if inside.match(item.layer)]
    if names:
        return Cell(Verdict.DECOMPOSED, ", ".join(dict.fromkeys(names)))
    return Cell(Verdict.RIGHT)


_SAYINGS: Final = (
    r"No ONNX function found for [^\n]*?(?=\. Failure|$)",
    r"No decompositions registered for [^\n]*",
    r"Lowering not found: [\w.]+",
    r"failed to legalize operation '[\w.]+'",
    r"'[\w.]+' op [^:\n]*",
    r"Unsupported fx node \w+, kind [\w.]+",
    r"got an unexpected keyword argument '\w+'",
    r"does not have the operator \w+",
    r"Didn't find op for builtin opcode '\w+'",
    r"Inferred shape and existing shape differ in dimension \d+",
)


def reason(error: BaseException) -> str:
    """Return what a converter or a runtime said, in one line without paths and numbers of nodes."""
    first = error.__cause__ or error
    text = str(first)
    for saying in _SAYINGS:
        found = re.search(saying, text)
        if found:
            break
    said = found.group() if found else next((line.strip() for line in text.splitlines() if line.strip()), "")
    said = re.sub(r"\x1b\[\d*m", "", said)
    said = re.sub(r"\s*(/[\w.+-]+)+(:\d+)*:?", " ", said)[:160].strip()
    found = re.search(r"([\w.-]+) cannot convert", str(error)) if isinstance(error, DeployError) else None
    return f"{found[1]} cannot convert it: {said}" if found else said


def traits(row: Row) -> tuple[str, ...]:
    """Return the traits of the row's operator in the graph that its network is captured as.

    Raises:
        LookupError: The graph has no call of the operator.
    """
    _, graph = captured_rows([row])
    calls = [node for node in graph.module.graph.nodes if op_name(node) == row.operator]
    if not calls:
        raise LookupError(f"{row.name}: the graph has no such operator")
    return tuple(sorted(variant(calls[-1])))


@dataclass(frozen=True, slots=True)
class Job:
    """What one process does at once: rows of one size in one format, by their positions."""

    file_format: Format
    rows: tuple[int, ...]


def run(job: Job) -> list[tuple[int, Cell]]:
    """Measure the cells of a job, and without decompositions those that have some."""
    torch.set_num_threads(1)
    log = job_log("operators", Path(f"{job.file_format}-{job.rows[0]}"))
    with warnings.catch_warnings(), captured(log):
        warnings.simplefilter("ignore")
        cells = measure([ROWS[index] for index in job.rows], job.file_format)
        for position, (index, cell) in enumerate(zip(job.rows, cells, strict=True)):
            if cell.verdict is Verdict.DECOMPOSED:
                (plain,) = measure([ROWS[index]], job.file_format, decomposed=False)
                cells[position] = replace(cell, otherwise=plain.detail or plain.verdict.value)
    log.unlink(missing_ok=True)
    return list(zip(job.rows, cells, strict=True))


def jobs(rows: Iterable[int], formats: Iterable[Format] = tuple(Format)) -> Iterator[Job]:
    """Cut the table into jobs, the slowest format first."""
    by_size: dict[tuple[int, int], list[int]] = {}
    for index in rows:
        by_size.setdefault(ROWS[index].size, []).append(index)
    for file_format in sorted(formats, key=lambda item: -FORMATS[item].conversion_seconds):
        for indices in by_size.values():
            for start in range(0, len(indices), DOZEN):
                yield Job(file_format, tuple(indices[start : start + DOZEN]))


def update(
    table: OperatorTable | None, measured: Iterable[tuple[Job, list[tuple[int, Cell]]]]
) -> Iterator[OperatorTable]:
    """Put measured cells into a table; yields it anew after each job, with the rows that have cells."""
    old = {} if table is None else {(row.operator, row.what): row for row in table.rows}
    cells = {index: dict(old[row.operator, row.what].cells) if (row.operator, row.what) in old else {}
             for index, row in enumerate(ROWS)}  # fmt: skip
    known = {index: old[row.operator, row.what].traits
             for index, row in enumerate(ROWS) if (row.operator, row.what) in old}  # fmt: skip
    for job, found in measured:
        for index, cell in found:
            cells[index][job.file_format] = cell
            print(f"{job.file_format:8} {ROWS[index].name:60} {cell.verdict} {cell.detail}", flush=True)
        begun = [index for index in cells if cells[index]]
        known |= {index: traits(ROWS[index]) for index in begun if index not in known}
        yield OperatorTable(tool_versions(), tuple(
            OperatorRow(ROWS[index].operator, ROWS[index].what, known[index],
                        {item: cells[index][item] for item in Format if item in cells[index]})
            for index in begun
        ))  # fmt: skip


def page(table: OperatorTable) -> str:
    """Return the table for people, in Markdown."""
    titles = [FORMATS[file_format].title for file_format in Format]
    cells = [(item, cell.verdict) for row in table.rows for item, cell in row.cells.items()]
    lines = [
        "# Operators",
        "",
        "What each format makes of each operator of a captured graph, **found by running it**: a small network per row",
        "is exported as `export` does it, the file is run (ONNX Runtime, LiteRT, the ML Program evaluator, ExecuTorch)",
        "and held against torch. `make operators` makes this page and `coordatt_deploy/graph/operator_support.json`,",
        "which `inspect` reads to predict every refusal, and `export` to refuse an operator before its conversion.",
        "",
        "* **right**: the converter writes it as it is.",
        "* **rewritten**: this tool writes it in the terms of other operators first, and the file is right. In",
        "  brackets what becomes of it otherwise.",
        "* **refused**: `export` refuses this format for a model that has it, with the layer, the line and a remedy.",
        "* **unproven**: a file is written, and nothing here can run it: `parity` says so.",
        "",
        f"| | {' | '.join(titles)} |",
        "|---|" + "--:|" * len(titles),
    ]
    for verdict in Verdict:
        words = "rewritten" if verdict is Verdict.DECOMPOSED else verdict.value
        lines.append(f"| {words} | {' | '.join(str(cells.count((item, verdict))) for item in Format)} |")
    by_name = {(row.operator, row.what): row for row in table.rows}
    for family, rows in FAMILIES.items():
        lines += ["", f"## {family}", "", f"| operator | {' | '.join(titles)} |", "|---|" + "---|" * len(titles)]
        for row in (by_name[item.operator, item.what] for item in rows if (item.operator, item.what) in by_name):
            what = f"`{row.operator}`" + (f" {row.what}" if row.what else "")
            lines.append(f"| {what} | {' | '.join(_words(row.cells.get(item)) for item in Format)} |")
    lines += ["", "Measured with " + ", ".join(f"{name} {text}" for name, text in sorted(table.versions.items())) + "."]
    return "\n".join(lines) + "\n"


def _words(cell: Cell | None) -> str:
    if cell is None:
        return "not measured"
    detail = cell.detail.replace("|", "\\|")
    if cell.verdict is Verdict.DECOMPOSED:
        otherwise = (cell.otherwise or "").replace("|", "\\|")
        return f"rewritten: {detail} ({otherwise})" if otherwise != "right" else f"rewritten: {detail}"
    return f"{cell.verdict.value}: {detail}" if detail else cell.verdict.value


def main() -> None:
    """Measure the table, or the rows with a text in their names, and write the documents that are named."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", help="measure the rows that have this in their names, and keep the others")
    parser.add_argument("--format", type=Format, action="append", help="measure this format alone, and keep the others")
    parser.add_argument("--document", type=Path, default=PATH)
    parser.add_argument("--page", type=Path, default=PAGE)
    options = parser.parse_args()
    rows = [index for index, row in enumerate(ROWS) if options.only is None or options.only in row.name]
    planned = list(jobs(rows, options.format or tuple(Format)))
    partly = options.only or options.format
    before = (
        load(OperatorTable, options.document.read_text(encoding="utf-8"))
        if partly and options.document.exists()
        else None
    )
    with workers(len(planned)) as pool:
        for table in update(before, zip(planned, pool.executor.map(run, planned), strict=True)):
            options.document.write_text(dump(table), encoding="utf-8")
            options.page.write_text(page(table), encoding="utf-8")


if __name__ == "__main__":
    # Workers know functions by their module, and are not told what the main one was.
    from benchmarks import operator_table

    operator_table.main()
