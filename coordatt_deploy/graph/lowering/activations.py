"""Find hard-swish and hard-sigmoid, as one operator or spelled out, anywhere in a graph.

    hard-sigmoid(x) = relu6(x + 3) / 6 = clamp(x / 6 + 1/2, 0, 1),      hard-swish(x) = x * hard-sigmoid(x)

The search begins at the clamp, reads the shift below it, and climbs through multiplications by numbers and by x, so
that every order and association of the same product is found.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from torch import fx

from coordatt_deploy.graph.call_arguments import clamp_bounds, is_number, product, source
from coordatt_deploy.graph.graph import op_name

# A sixth as people write it: 1/6 in double or single precision, but not 0.1667.
SIXTH_TOLERANCE: Final = 1e-7


@dataclass(frozen=True, slots=True)
class HardActivation:
    """A hard-swish or hard-sigmoid, as one operator or spelled out.

    Attributes:
        op_name: ``hardswish`` or ``hardsigmoid``.
        source: Node whose value it is applied to.
        output: Node that holds the result.
        inner: Nodes between the two, none of them used elsewhere; empty for a single operator.
    """

    op_name: str
    source: str
    output: str
    inner: tuple[str, ...] = ()


def find_activations(module: fx.GraphModule) -> tuple[HardActivation, ...]:
    """Find every hard-swish and hard-sigmoid, in execution order of their non-linear parts."""
    found = [item for node in module.graph.nodes if (item := _activation_at(node)) is not None]
    inside = {name for item in found for name in item.inner}
    return tuple({item.output: item for item in found if item.output not in inside}.values())


def _activation_at(node: fx.Node) -> HardActivation | None:
    """Match upwards from *node* if an activation's non-linear part is there."""
    operator = op_name(node)
    if operator == "hardswish":
        return HardActivation("hardswish", source(node).name, node.name)
    if operator == "hardsigmoid":
        start = HardActivation("hardsigmoid", source(node).name, node.name)
        return _climb(node, source(node), 1 / 6, start, ())
    for upper, shift, scale in ((6.0, 3.0, 1.0), (1.0, 0.5, 1 / 6)):
        clamped = _clamped(node, upper)
        linear = None if clamped is None else _linear(clamped[0], shift, scale)
        if clamped is None or linear is None:
            continue
        inner = (*clamped[1], *linear[1])
        if not _only_within(inner, {*inner, node}):
            return None
        start = HardActivation("hardsigmoid", linear[0].name, node.name, _names(inner))
        return _climb(node, linear[0], scale, start if scale != 1.0 else None, inner)
    return None


def _climb(
    node: fx.Node, origin: fx.Node, scale: float, found: HardActivation | None, inner: tuple[fx.Node, ...]
) -> HardActivation | None:
    """Climb through products by numbers and by *origin* from *node* = 6 * scale * hard-sigmoid(origin)."""
    times_origin = False
    while len(node.users) == 1:
        user = next(iter(node.users))
        step = product(user, node)
        if step is None:
            break
        factor, other = step
        if other is not None:
            part = _scaled(other, origin)
            if times_origin or part is None:
                break
            times_origin, factor = True, part[0]
            inner += part[1]
        inner, node, scale = (*inner, node), user, scale * factor
        if math.isclose(scale, 1 / 6, rel_tol=SIXTH_TOLERANCE):
            name = "hardswish" if times_origin else "hardsigmoid"
            found = HardActivation(name, origin.name, node.name, _names(inner))
    return found


def _scaled(node: fx.Node, origin: fx.Node) -> tuple[float, tuple[fx.Node, ...]] | None:
    """Read *node* as ``origin``, or as ``origin * number`` used once."""
    if node is origin:
        return 1.0, ()
    step = product(node, origin) if origin in node.all_input_nodes and len(node.users) == 1 else None
    return None if step is None or step[1] is not None else (step[0], (node,))


def _linear(node: fx.Node, shift: float, scale: float) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """Read *node* as ``x * scale + shift``: x, and the nodes from there to *node* inclusive."""
    below = _shifted(node, shift)
    if below is None or scale == 1.0:
        return None if below is None else (below, (node,))
    origin = next((item for item in below.args[:2] if isinstance(item, fx.Node)), None)
    step = None if origin is None else product(below, origin)
    if origin is None or step is None or step[1] is not None:
        return None
    return (origin, (below, node)) if math.isclose(step[0], scale, rel_tol=SIXTH_TOLERANCE) else None


def _shifted(node: fx.Node, by: float) -> fx.Node | None:
    """Read *node* as ``x + by``."""
    if op_name(node) not in {"add", "sub"} or node.kwargs.get("alpha", 1) != 1 or len(node.args) != 2:
        return None
    sign = 1.0 if op_name(node) == "add" else -1.0
    for tensor, number in (tuple(node.args), tuple(reversed(node.args)) if sign > 0 else (None, None)):
        if isinstance(tensor, fx.Node) and is_number(number) and sign * float(number) == by:
            return tensor
    return None


def _clamped(node: fx.Node, upper: float) -> tuple[fx.Node, tuple[fx.Node, ...]] | None:
    """Read *node* as ``clamp(u, 0, upper)``, in one or two operators: u, and the nodes between."""
    bounds = clamp_bounds(node)
    if bounds == (0.0, upper):
        return source(node), ()
    if bounds not in {(0.0, None), (None, upper)}:
        return None
    before = source(node)
    return (source(before), (before,)) if {bounds, clamp_bounds(before)} == {(0.0, None), (None, upper)} else None


def _names(nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    return tuple(node.name for node in nodes)


def _only_within(nodes: Iterable[fx.Node], allowed: set[fx.Node]) -> bool:
    return all(user in allowed for node in nodes for user in node.users)
