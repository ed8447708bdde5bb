"""What is said of a float16 file of which parts compute in float32."""

from collections.abc import Collection

from coordatt_deploy.formats import Format
from coordatt_deploy.graph.graph import Graph


def float32_notes(file_format: Format, graph: Graph, in_float32: Collection[str]) -> tuple[str, ...]:
    """Say which layers a float16 file computes in float32; nothing where there are none.

    Args:
        file_format: Of the file.
        graph: That it was made of.
        in_float32: Nodes of the graph.
    """
    nodes = [node.name for node in graph.module.graph.nodes if node.name in in_float32]
    layers = dict.fromkeys(layer for layer in map(graph.layer_of, nodes) if layer is not None)
    if not nodes:
        return ()
    return (
        f"{file_format} fp16 computes {', '.join(layers) or ', '.join(nodes)} in float32: float16 holds magnitudes from"
        " 6e-8 to 65504, and a constant or value there is beyond",
    )
