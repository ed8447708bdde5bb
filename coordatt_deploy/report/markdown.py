"""A summary in Markdown, for the page of a CI run."""

import math
import re
from collections.abc import Sequence
from typing import Final

from coordatt_deploy.manifest import RefusedFile
from coordatt_deploy.parity.result import ParityResult
from coordatt_deploy.report.junit import printable

# What Markdown or HTML obeys in a text; all of it in one pass, or an escape would be escaped again.
OBEYED: Final = re.compile(r"[\\`*_{}\[\]<>()#+!|~@&]")
ENTITIES: Final = {"<": "&lt;", ">": "&gt;", "&": "&amp;"}


def markdown(parity: ParityResult, model: str, refused: Sequence[RefusedFile] = ()) -> str:
    """Return a parity result as Markdown for the summary of a CI run.

    Args:
        parity: What was judged.
        model: Its name.
        refused: Files that the bundle lacks, since they could not be written.
    """
    unrun = sum(item.passed is None for item in parity.artifacts)
    failed = any(item.passed is False for item in parity.artifacts) or any(
        graph.layers_passed is False for graph in parity.graphs
    )
    if failed or unrun == len(parity.artifacts):
        verdict = "not all files passed"
    elif unrun:
        verdict = f"{len(parity.artifacts) - unrun} of {len(parity.artifacts)} files compute the model's function;"
        verdict += " the others could not be run here"
    else:
        verdict = "all files compute the model's function"
    if refused:
        verdict += f"; {len(refused)} of those asked for could not be written"
    where = f" on {cell(parity.target)}" if parity.target else ""
    lines = [
        f"### Parity of {cell(model)}{where}: {verdict}",
        "",
        "| file | verdict | worst error | allowed | SQNR | top-1 agreement | first layer beyond tolerance |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for item in parity.artifacts:
        mark = {True: "✅ passed", False: "❌ failed", None: "➖ not run"}[item.passed]
        mark = mark if item.provable else "❌ cannot be proven"
        decibels = "equal" if item.exact else _figure(item.sqnr_db, ".1f", " dB")
        first = "–" if not item.first_diverging_layer else cell(item.first_diverging_layer)
        error = item.max_abs_error if item.judged_error is None else item.judged_error
        figures = (_figure(error), _figure(item.allowed), decibels, _percent(item.top1_agreement))
        lines.append(f"| {cell(item.path)} | {mark} | {' | '.join(figures)} | {first} |")
    lines += [f"| {cell(file.path)} | ❌ not written | – | – | – | – | – |" for file in refused]
    for file in refused:
        lines += ["", f"- {cell(file.path)}: {cell(file.reason)}"]
    for item in parity.artifacts:
        for text in filter(None, (item.problem, item.warning)):
            lines += ["", f"- {cell(item.path)}: {cell(text)}"]
    return "\n".join(lines) + "\n"


def cell(value: object) -> str:
    """Return a text from outside as inert Markdown on one line."""
    text = " ".join(printable(value).split())
    return OBEYED.sub(lambda found: ENTITIES.get(found.group(), f"\\{found.group()}"), text)


def _figure(value: float | None, form: str = ".3g", unit: str = "") -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:{form}}{unit}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{float(value):.1%}"
