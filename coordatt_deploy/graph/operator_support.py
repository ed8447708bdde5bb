"""What each format makes of each ATen operator: measured by ``make operators``, read here.

``operator_support.json`` holds what ``benchmarks/operator_table.py`` found by exporting a small network per operator
and variant to each format and running it. ``docs/operators.md`` is the same table for people.
"""

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar, Final

from torch import fx

from coordatt_deploy.documents import load
from coordatt_deploy.errors import RefusedOperator, UnsupportedOperatorsError
from coordatt_deploy.formats import FORMATS, Format
from coordatt_deploy.graph.graph import Graph, is_call, module_path, op_name
from coordatt_deploy.graph.operator_variants import variant
from coordatt_deploy.user_code import source_line

PATH: Final = Path(__file__).with_suffix(".json")


class Verdict(enum.StrEnum):
    """What became of an operator in a format."""

    RIGHT = "right"
    """The converter writes it as it is, and the file computes what torch computes."""
    DECOMPOSED = "decomposed"
    """This tool writes it in the terms of other operators, and the file computes what torch computes."""
    REFUSED = "refused"
    """The converter or the runtime refuses it, or the file computes something else."""
    UNPROVEN = "unproven"
    """A file is written, but nothing here can run it."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One operator in one format.

    Attributes:
        verdict: What became of it.
        detail: Its decompositions; or why it is refused or not proven; empty where it is right.
        otherwise: What became of it without the decomposition; None where there is none.
    """

    verdict: Verdict
    detail: str = ""
    otherwise: str | None = None


@dataclass(frozen=True, slots=True)
class OperatorRow:
    """One operator in one variant.

    Attributes:
        operator: Its name in ATen.
        what: The variant, in words.
        traits: Of the call; see ``operator_variants``.
        cells: By format.
    """

    operator: str
    what: str
    traits: tuple[str, ...]
    cells: Mapping[Format, Cell]


@dataclass(frozen=True, slots=True)
class OperatorTable:
    """The document ``operator_support.json``.

    Attributes:
        versions: Of the converters and runtimes that the cells were measured with.
        rows: In the order of their families.
    """

    VERSION: ClassVar[int] = 1

    versions: Mapping[str, str]
    rows: tuple[OperatorRow, ...]


@cache
def table() -> OperatorTable:
    """Return the table as it was measured last."""
    return load(OperatorTable, PATH.read_text(encoding="utf-8"))


def cells_of(node: fx.Node, file_format: Format) -> tuple[Cell, ...]:
    """Return the cells that say what becomes of a call: those of the rows that share most traits with it.

    Args:
        node: A call of a captured or lowered graph.
        file_format: The format to be written.

    Returns:
        Several where rows tell more apart than traits do; none for an operator that the table does not have.
    """
    traits = variant(node)
    rows = [row for row in _rows().get(op_name(node), ()) if traits.issuperset(row.traits) and file_format in row.cells]
    most = max((len(row.traits) for row in rows), default=0)
    return tuple(row.cells[file_format] for row in rows if len(row.traits) == most)


def reason_against(node: fx.Node, file_format: Format, *, dynamic: bool) -> str | None:
    """Return why a file of *file_format* cannot have a call; None if it can, or if nothing is known of the operator.

    Args:
        node: A call of a graph after the format's decompositions.
        file_format: The format.
        dynamic: Whether the size or the batch is dynamic: many decompositions need one that is known.
    """
    cells = cells_of(node, file_format)
    refusing = [cell for cell in cells if cell.verdict is Verdict.REFUSED]
    if refusing:
        return refusing[0].detail
    needed = [cell for cell in cells if cell.verdict is Verdict.DECOMPOSED and cell.otherwise != Verdict.RIGHT]
    if dynamic and needed and len(needed) == len(cells):
        return f"with a dynamic size or batch it cannot be written in other terms, and as it is: {needed[0].otherwise}"
    return None


@cache
def _rows() -> Mapping[str, tuple[OperatorRow, ...]]:
    names = dict.fromkeys(row.operator for row in table().rows)
    return {name: tuple(row for row in table().rows if row.operator == name) for name in names}


def refused(graph: Graph, file_format: Format) -> Iterator[tuple[fx.Node, RefusedOperator]]:
    """Yield every call that a file of *file_format* cannot have, with where it is and what to do."""
    for node in graph.module.graph.nodes:
        reason = reason_against(node, file_format, dynamic=graph.is_dynamic) if is_call(node) else None
        if reason is not None:
            operator = op_name(node)
            layer = graph.layer_of(node.name) or module_path(node) or node.name
            yield node, RefusedOperator(layer, operator, reason, REMEDIES.get(operator, REMEDY), line_of(node))


def check_supported(graph: Graph, file_format: Format) -> None:
    """Refuse a graph before its conversion if a file of *file_format* cannot have one of its operators.

    Args:
        graph: Lowered for the format: what decompositions have replaced is no longer in it.
        file_format: The format to be written.

    Raises:
        UnsupportedOperatorsError: It names each such operator with its layer, the line, the reason and a remedy.
    """
    found = tuple(item for _, item in refused(graph, file_format))
    if found:
        raise UnsupportedOperatorsError(file_format.value, FORMATS[file_format].title, found)


def line_of(node: fx.Node) -> str | None:
    """Return the line of the user's code that made a call; None where it is not known."""
    kept = node.meta.get("source_line")
    return str(kept) if kept else source_line(node.meta.get("stack_trace") or "")


REMEDY: Final = "replace it by other operators, or leave this step to the app"
REMEDIES: Final[Mapping[str, str]] = {
    "topk": "return all scores and select the best ones outside of the network",
    "sort": "return all values and sort them outside of the network",
    "median": "use a mean or a maximum, or leave it to the app",
    "max_pool2d": "use a pool without dilation: a larger kernel, or a stride",
    "max_pool3d": "pool two axes at a time with max_pool2d of a reshaped tensor",
    "upsample_nearest3d": "repeat along the third axis by torch.cat, and resize the other two with mode='nearest'",
    "upsample_trilinear3d": "resize two axes with mode='bilinear', then the third",
    **dict.fromkeys(
        ("fft_rfft", "fft_rfft2", "fft_fft", "fft_fft2", "fft_irfft", "fft_irfft2"),
        "leave the transform to the app, or write it as a matrix product",
    ),
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d"), "resize with F.interpolate, or warp outside of the network"),
    "scatter": "assign by torch.cat, or outside of the network",
    "gather": "pick by slices, or outside of the network",
    "embedding": "look the vectors up outside of the network, or multiply a one-hot code by the table",
}
