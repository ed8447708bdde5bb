"""What a converter says when it gives up, as one error: which operator, in which layers, and where the rest is."""

import re
from pathlib import Path
from typing import Final

from coordatt_deploy.errors import ConversionError, RefusedOperator, UnsupportedOperatorsError
from coordatt_deploy.formats import FORMATS, Format
from coordatt_deploy.graph.graph import Graph, is_call, module_path, op_name
from coordatt_deploy.graph.operator_support import REMEDIES, REMEDY, line_of
from coordatt_deploy.logs import write_traceback
from coordatt_deploy.user_code import first_line

# Where the converters' texts have the name of an operator of ATen.
_OPERATORS: Final = tuple(map(re.compile, (
    r"Lowering not found: aten\.(\w+)",
    r"Unsupported fx node \w+, kind (\w+)",
    r"Torch operation named (\w+)",
    r"node \w+ \((\w+)\) got",
    r"No decompositions registered for .*aten\.(\w+)",
    r"While executing %(\w+?)(?:_\d+)? ",
)))  # fmt: skip


def refusal(graph: Graph, file_format: Format, converter: str, error: Exception) -> ConversionError:
    """Return the error to raise from what a converter raised; its page of text goes to a log file.

    Args:
        graph: What was to be converted.
        file_format: The format.
        converter: As its makers call it.
        error: What it raised.

    Returns:
        ``UnsupportedOperatorsError`` with the layers of the operator that the text names, where the graph has some.
    """
    told = f"{first_line(error)}; its own text is in {_log(file_format, error)}"
    text = f"{converter} cannot convert it: {told}"
    names = {name for pattern in _OPERATORS for name in pattern.findall(str(error))}
    nodes = [node for node in graph.module.graph.nodes if is_call(node) and op_name(node) in names]
    if not nodes:
        return ConversionError(f"{converter} cannot convert the graph: {told}")
    found = tuple(
        RefusedOperator(
            graph.layer_of(node.name) or module_path(node) or node.name,
            op_name(node),
            text,
            REMEDIES.get(op_name(node), REMEDY),
            line_of(node),
        )
        for node in nodes
    )
    return UnsupportedOperatorsError(file_format.value, FORMATS[file_format].title, found)


def official_refusal(file_format: Format, converter: str, error: Exception) -> ConversionError:
    """Return the error to raise from what a converter raised of a module that nothing was done to."""
    return ConversionError(
        f"{converter} cannot convert it: {first_line(error)}; its own text is in {_log(file_format, error)}"
    )


def _log(file_format: Format, error: Exception) -> Path:
    return write_traceback(error, f"convert-{file_format}")
