"""Layers that a converter left no tensor of, as it computes them inside a later one."""

from collections.abc import Mapping

from torch import fx

from coordatt_deploy.graph.graph import Graph
from coordatt_deploy.layer_map import Part


def read_by_one(graph: Graph, node: fx.Node, places: Mapping[str, Part | None]) -> str | None:
    """Return the layer at which a value without a tensor is judged: the next one that is made from it alone.

    An affine step before a convolution goes into its weights, a scale of queries into the projection before. Whether
    such a layer is computed at all is proven by parity (``parity.absent_layers``).

    Args:
        graph: What was converted.
        node: Has no tensor of the file.
        places: Where each node is; None for those that are nowhere.

    Returns:
        A layer's id; None where several read the value before the file has a tensor again.
    """
    while len(node.users) == 1:
        (node,) = node.users
        layer = graph.layer_of(node.name)
        if places.get(node.name) is not None and layer is not None:
            return layer
    return None
