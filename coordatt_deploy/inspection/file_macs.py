"""Multiply-accumulates and parameters of a file, counted on its graph in the words of its format."""

from collections import Counter

from coordatt_deploy.errors import BundleError
from coordatt_deploy.runtimes.file_graph import FileGraph, Node
from coordatt_deploy.runtimes.reader import reader
from coordatt_deploy.runtimes.vocabulary import Work, elements


def macs(graph: FileGraph) -> dict[str, int]:
    """Multiply-accumulates of one inference by what they are spent on; a dynamic axis counts as 1."""
    table = reader(graph.format).vocabulary().work
    spent: Counter[Work] = Counter()
    for node in graph.nodes:
        if node.operator in table:
            spent[table[node.operator][0]] += node_macs(graph, node)
    return {work.value: spent[work] for work in Work}


def node_macs(graph: FileGraph, node: Node) -> int:
    """Multiply-accumulates of one operator; 0 for those that do none.

    Raises:
        BundleError: It lacks inputs, outputs or axes that such an operator has.
    """
    entry = reader(graph.format).vocabulary().work.get(node.operator)
    try:
        return 0 if entry is None else entry[1](graph, node)
    except (LookupError, ValueError, ZeroDivisionError) as error:
        raise BundleError(
            f"the file is damaged: {node.operator} lacks inputs, outputs or axes that it needs"
            f" ({type(error).__name__}: {error})"
        ) from None


def parameters(graph: FileGraph) -> int:
    """Elements of all weights: constants of floating or quantized type that operators compute with, grids left out."""
    grids = reader(graph.format).vocabulary().grids
    used = {name for node in graph.nodes if node.operator not in grids for name in node.inputs if graph.is_weight(name)}
    dtypes = ("float", "int8", "uint8", "int4", "bfloat")
    return sum(
        elements(graph, name) for name in used if graph.tensors[name].dtype.startswith(dtypes) or _is_bias(graph, name)
    )


def _is_bias(graph: FileGraph, name: str) -> bool:
    """int32 vectors beside a quantized weight; beside a float one they are strides and pads."""
    if graph.tensors[name].dtype != "int32":
        return False
    table = reader(graph.format).vocabulary().work
    weighted = (Work.CONVOLUTION, Work.LINEAR)
    return any(
        node.operator in table
        and table[node.operator][0] in weighted
        and any(graph.tensors[other].dtype in ("int8", "uint8") for other in node.inputs if graph.is_weight(other))
        for node in graph.nodes
        if name in node.inputs
    )
