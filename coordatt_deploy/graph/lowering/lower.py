"""Rewrite a folded graph into the form that one runtime runs fastest, and prove that it is the same function.

Every attention block is first recognised (``recognise``), then written anew in the form that the target is fastest
with (``forms``). Hard-swish and hard-sigmoid become one operator each wherever they are spelled out, or are spelled
out where one operator would break the runtime's delegate.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.errors import ConversionError
from coordatt_deploy.graph.call_arguments import argument, input_node, same_size, sizes
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import Feeds, Graph, aten, op_name
from coordatt_deploy.graph.lowering.activations import HardActivation
from coordatt_deploy.graph.lowering.blocks import AttentionBlock, Branches, Recognition
from coordatt_deploy.graph.lowering.decompose import decompose
from coordatt_deploy.graph.lowering.forms import FORMS
from coordatt_deploy.graph.lowering.pointwise import HardSwishForm, write_hard
from coordatt_deploy.graph.lowering.recognise import find_attention
from coordatt_deploy.graph.lowering.strip_axes import (
    CONVOLUTIONS,
    DIRECTIONS,
    LAYOUT,
    WHOLE,
    pooled_axes,
    pooled_letters,
)
from coordatt_deploy.graph.lowering.target import GlobalPool, LoweringTarget
from coordatt_deploy.graph.lowering.term_writer import FOUR_AXES, TermWriter
from coordatt_deploy.graph.lowering.writer import Writer
from coordatt_deploy.graph.rewriter import Placed, Rewriter
from coordatt_deploy.layer_map import restore
from coordatt_deploy.manifest import LoweredBlock, LoweringReport
from coordatt_deploy.plurals import counted

AS_IT_STANDS: Final = "as it stands"
"""What stands in the place of a form where a block is exported as the user wrote it."""

# Relative to a layer's greatest value, both graphs run in float64. Forms that rescale a weight round it to float32 once
# more (2^-24 = 6e-8); a few such roundings in a row stay far below, a wrong form far above.
TOLERANCE: Final = 1e-5
# A deep network can magnify those roundings. Then a layer may differ by this multiple of what float32 makes of the
# graph as it was, which is rounded once at every node: in SSDLite forms differ by 1.0e-5 where float32 differs by 4e-5.
ROUNDINGS: Final = 4.0


@dataclass(frozen=True, slots=True)
class LayerError:
    """How far a layer's value is from what it was before; differences in float64."""

    layer: str
    max_abs_error: float
    relative_error: float


def lower(graph: Graph, target: LoweringTarget) -> tuple[Graph, LoweringReport]:
    """Return the graph in the form for *target*, and what was done; *graph* itself is left alone.

    A graph in which nothing is recognised is returned as it is, and the report says so.

    Raises:
        ConversionError: A BatchNorm is left inside an attention block, or a form does not compute the same function.
    """
    found = find_attention(graph)
    rewriter = Rewriter(graph)
    hard = {item.output: item for item in found.activations}
    blocks = tuple(_write_block(rewriter, block, hard, target) for block in found.blocks)
    written = [block for block, report in zip(found.blocks, blocks, strict=True) if report.form != AS_IT_STANDS]
    inside = {name for block in written for name in (block.output, *block.inner)}
    loose = [item for item in found.activations if item.output not in inside]
    rewritten = [_write_activation(rewriter, item, target) for item in loose]
    if target.global_pool in POOLS:
        outside = [node for node in rewriter.module.graph.nodes if node.name not in inside]
        rewritten += [POOLS[target.global_pool](rewriter, node) for node in outside]
    counts = {name: sum(item.op_name == name for item in loose) for name in ("hardswish", "hardsigmoid")}
    lowered = rewriter.finish() if any(rewritten) or written else graph
    lowered, decomposed = decompose(lowered, target.decompositions)
    if lowered is graph:
        return graph, LoweringReport(target.name, blocks, found.near_misses, counts, 0.0, _remark(found))
    errors = lowering_error(graph, lowered)
    worst = max(errors, key=lambda error: error.relative_error)
    if not worst.relative_error <= TOLERANCE:
        _check_rounding(graph, target, errors)
    report = LoweringReport(
        target.name, blocks, found.near_misses, counts, worst.relative_error, _remark(found), decomposed
    )
    return lowered, report


def _check_rounding(graph: Graph, target: LoweringTarget, errors: Sequence[LayerError]) -> None:
    """Hold each layer beyond the tolerance to what rounding to float32 makes of it in the graph as it was.

    Raises:
        ConversionError: One differs by more.
    """
    rounding = rounding_error(graph)
    for error in errors:
        allowed = max(TOLERANCE, ROUNDINGS * rounding.get(error.layer, 0.0))
        if not error.relative_error <= allowed:
            raise ConversionError(
                f"the form for {target} computes {error.layer} differently: relative error {error.relative_error:.1e},"
                f" {allowed:.0e} allowed; report the model to the project"
            )


def rounding_error(graph: Graph) -> dict[str, float]:
    """Return how far rounding every value to float32 moves each layer and output, relative to its greatest value."""
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(graph.inputs, graph.example, strict=True)}
    held = [layer for layer in graph.layers.layers if layer.parts]
    nodes = frozenset(part.tensor for layer in held for part in layer.parts)
    exact = run(graph, feeds, nodes=nodes)
    rounded = run(graph, feeds, nodes=nodes, after=lambda _, value: value.to(torch.float32).to(value.dtype))
    pairs = [(layer.layer_id, restore(layer, exact), restore(layer, rounded)) for layer in held]
    pairs += [(name, exact[name], rounded[name]) for name in graph.outputs]
    return {name: _difference(reference, value)[1] for name, reference, value in pairs}


def lowering_error(before: Graph, after: Graph, feeds: Feeds | None = None) -> tuple[LayerError, ...]:
    """Compare every layer that both graphs hold, and the outputs, in float64.

    Args:
        before: A graph, for instance the folded one.
        after: The same graph after a pass.
        feeds: Inputs; by default the captured example.

    Returns:
        One entry per layer in execution order, then one per output under its name.
    """
    if feeds is None:
        feeds = {spec.name: tensor.numpy() for spec, tensor in zip(before.inputs, before.example, strict=True)}
    held = {layer.layer_id: layer for layer in after.layers.layers if layer.parts}
    both = [(layer, held[layer.layer_id]) for layer in before.layers.layers
            if layer.parts and layer.layer_id in held]  # fmt: skip
    old = run(before, feeds, nodes=frozenset(part.tensor for layer, _ in both for part in layer.parts))
    new = run(after, feeds, nodes=frozenset(part.tensor for _, layer in both for part in layer.parts))
    pairs = [(first.layer_id, restore(first, old), restore(second, new)) for first, second in both]
    pairs += [(name, old[name], new[name]) for name in before.outputs]
    return tuple(LayerError(name, *_difference(reference, value)) for name, reference, value in pairs)


def _difference(reference: NDArray[np.float64], value: NDArray[np.float64]) -> tuple[float, float]:
    if reference.shape != value.shape:
        return float("inf"), float("inf")
    # masks and positions have types of their own, and numpy subtracts no booleans
    error = float(np.max(np.abs(np.asarray(value, np.float64) - reference), initial=0.0))
    scale = float(np.max(np.abs(reference), initial=0.0))
    return error, error / scale if scale else error


def _remark(found: Recognition) -> str:
    if not found.blocks and not found.activations:
        return "no attention block and no hard activation was recognised; the graph is exported as it is"
    if not found.blocks:
        return "no attention block was recognised"
    kinds = Counter(block.kind for block in found.blocks)
    listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    return f"{counted(len(found.blocks), 'attention block')} recognised: {listed}"


def _write_block(
    rewriter: Rewriter, block: AttentionBlock, hard: dict[str, HardActivation], target: LoweringTarget
) -> LoweredBlock:
    write = _write_branches if isinstance(block.anatomy, Branches) else _write_terms
    form, declined = write(rewriter, block, hard, target)
    return LoweredBlock(
        block.name, block.kind, block.channels, block.anatomy.squeezed, block.height, block.width, form, declined
    )


def _write_branches(
    rewriter: Rewriter, block: AttentionBlock, hard: dict[str, HardActivation], target: LoweringTarget
) -> tuple[str, str | None]:
    """Write a block of branches in the first form that fits; the form, and why not in those before it."""
    _check_folded(rewriter, block)
    writer = Writer(rewriter, block, hard, target.hard_swish)
    form, declined = AS_IT_STANDS, list[str]()
    for form in target.forms:
        reason = FORMS[form].unsupported_reason(writer)
        if reason is None:
            with rewriter.before(writer.output, writer.output):
                FORMS[form].write(writer)
            break
        declined.append(f"{form}: {reason}")
    return form, "; ".join(declined) or None


def _write_terms(
    rewriter: Rewriter, block: AttentionBlock, hard: dict[str, HardActivation], target: LoweringTarget
) -> tuple[str, str | None]:
    """Write a block of terms anew where the runtime is faster so; the form, and why not."""
    if block.kind not in target.terms.kinds:
        return AS_IT_STANDS, None
    writer = TermWriter(rewriter, block, hard, target.hard_swish, target.terms)
    reason = writer.unsupported_reason()
    if reason is not None:
        return AS_IT_STANDS, f"{FOUR_AXES}: {reason}"
    _check_folded(rewriter, block)
    output = rewriter.nodes[block.output]
    with rewriter.before(output, output):
        writer.write()
    return FOUR_AXES, None


def _check_folded(rewriter: Rewriter, block: AttentionBlock) -> None:
    norms = [name for name in block.inner if op_name(rewriter.nodes[name]) == "batch_norm"]
    if norms:
        raise ConversionError(f"{block.name} still holds a BatchNorm ({', '.join(norms)}); fold the graph first")


def _write_activation(rewriter: Rewriter, found: HardActivation, target: LoweringTarget) -> bool:
    """Write a hard activation outside of blocks as the target wants it; whether anything changed."""
    node, value = rewriter.nodes[found.output], rewriter.nodes[found.source]
    spelling = target.hard_swish
    if spelling is HardSwishForm.SCALED and not _takes_scale(rewriter, node):
        spelling = HardSwishForm.OPERATOR
    if not found.inner and (spelling is HardSwishForm.OPERATOR or found.op_name != "hardswish"):
        return False
    with rewriter.before(node, node):
        result, factor = write_hard(rewriter, found.op_name, value, spelling)
    for user in [*node.users] if factor != 1.0 else []:
        with rewriter.before(user, user):
            _scale_weight(rewriter, user, 1 / factor)
    axes = "NCHWDE"[: node.meta["val"].ndim]
    rewriter.put(found.output, axes, [Placed(result, axes, factor)])
    for name in found.inner:
        rewriter.fuse(name, found.output)
    rewriter.replace(node, result)
    return True


def _pool_flat(rewriter: Rewriter, node: fx.Node) -> bool:
    """Let a global pool that is flattened at once give (N, C) itself; whether *node* was such a flattening."""
    pool = node.args[0] if op_name(node) in LAYOUT and node.args else None
    if not isinstance(pool, fx.Node) or not pool.args or not isinstance(pool.args[0], fx.Node) or len(pool.users) > 1:
        return False
    pooled = pooled_axes(pool, pool.args[0])
    if pooled is None or DIRECTIONS[pooled[0]] != WHOLE or not pooled[1] or node.meta["val"].ndim != 2:
        return False
    if not all(map(same_size, sizes(node), sizes(pool.args[0])[:2])):
        return False
    with rewriter.before(node, pool):
        flat = rewriter.call(aten.mean.dim, pool.args[0], [2, 3])
    for old, axes in ((pool, pooled_letters(pool, (2, 3))), (node, "NC")):
        rewriter.put(old.name, axes, [Placed(flat, "NC")])
    rewriter.replace(node, flat)
    return True


def _pool_deep(rewriter: Rewriter, node: fx.Node) -> bool:
    """Let a global mean keep its axes and flatten it then; whether *node* was one that drops them."""
    value = node.args[0] if node.args else None
    pooled = pooled_axes(node, value) if op_name(node) == "mean" and isinstance(value, fx.Node) else None
    if pooled is None or DIRECTIONS[pooled[0]] != WHOLE or node.meta["val"].ndim != 2:
        return False
    with rewriter.before(node, node):
        deep = rewriter.call(aten.mean.dim, value, [2, 3], True)
        flat = rewriter.call(aten.flatten.using_ints, deep, 1)
    rewriter.put(node.name, "NC", [Placed(flat, "NC")])
    rewriter.replace(node, flat)
    return True


POOLS: Final = {GlobalPool.FLAT: _pool_flat, GlobalPool.DEEP: _pool_deep}


def _takes_scale(rewriter: Rewriter, node: fx.Node) -> bool:
    """Whether every user is a convolution or linear layer that can take a factor into its weight."""
    return all(
        op_name(user) in CONVOLUTIONS
        and argument(user, 0, "input") is node
        and rewriter.weight(argument(user, 1, "weight")) is not None
        for user in node.users
    )


def _scale_weight(rewriter: Rewriter, node: fx.Node, factor: float) -> None:
    old = input_node(node, 1, "weight")
    tensor = rewriter.weight(old)
    assert old is not None  # noqa: S101 - _takes_scale has checked it
    assert tensor is not None  # noqa: S101
    scaled = (tensor.double() * factor).to(tensor.dtype)
    node.replace_input_with(old, rewriter.constant(f"{old.target}_scaled", scaled))
