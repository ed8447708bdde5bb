"""What the outputs of a graph are, as far as the graph itself proves it."""

from collections.abc import Mapping
from typing import Final

from torch import fx

from coordatt_deploy.artifact_specs import OutputKind
from coordatt_deploy.graph.call_arguments import outputs as returned_nodes
from coordatt_deploy.graph.graph import Graph, op_name
from coordatt_deploy.graph.operators import Trait, having

# What hands its values on as they are, in another shape or type.
CARRIES: Final = having(Trait.LAYOUT) | having(Trait.IDENTITY) | {"to", "_to_copy", "slice", "select"}
PROOFS: Final = {"softmax": OutputKind.SCORES, "log_softmax": OutputKind.SCORES, "argmax": OutputKind.MASK}


def output_kinds(graph: Graph) -> Mapping[str, OutputKind]:
    """Return the kinds of the outputs that can be proven: a softmax gives scores, an arg-max a mask."""
    found = {}
    for node, name in zip(returned_nodes(graph.module.graph), graph.outputs, strict=True):
        kind = PROOFS.get(op_name(_maker(node)))
        if kind is not None:
            found[name] = kind
    return found


def _maker(node: fx.Node) -> fx.Node:
    """The call that computes what *node* hands on."""
    while op_name(node) in CARRIES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node
