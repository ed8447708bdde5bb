"""Even out the channels that share an activation tensor, without changing the function.

An int8 activation has one step for all its channels, so a channel with small values is left with few levels. Where
everything between two layers with weights commutes with a positive factor per channel, f(k x) = k f(x), the factor can
be moved into the weights:

    y = W2 f(W1 x + b1)  =  (W2 / k) f(k W1 x + k b1)

That holds for sums, means, pools, ReLU and gates, so whole residual chains are scaled at once. It holds for a clamp to
[0, u] as well as long as a channel stays below u: with m_c the greatest value met in channel c

    tensors behind a clamp:  k_c = sqrt(u / (MARGIN m_c)), at least 1
    other tensors:           k_c = sqrt(max m / m_c)

and a channel that reaches its clamp keeps k = 1. The tensors of a chain share the least of their factors: more would
widen the range of one of them. The square root leaves half of the unevenness to the activations and
half to the weights behind them (Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
Correction", 2019, equation 9, where r1 and r2 are the two ranges).
"""

from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.graph.call_arguments import input_node
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.graph.graph import Graph, is_tensor, op_name
from coordatt_deploy.graph.rewriter import Rewriter
from coordatt_deploy.layer_map import Part
from coordatt_deploy.manifest import EqualiseReport
from coordatt_deploy.quantization.scaling_chains import CLAMPS, WEIGHTED, Chain, find_chains

MARGIN: Final = 1.1  # room above the greatest value that calibration met, before the clamp begins to bite
GREATEST: Final = 16.0  # factor; what a channel of next to nothing would need lies far above
CLAMPED: Final = 0.999  # share of the bound from which on a channel counts as clamped


def equalise(graph: Graph, data: CalibrationSet) -> tuple[Graph, EqualiseReport]:
    """Return *graph* with evened-out channels; its layer map knows the factors.

    Args:
        graph: Folded.
        data: The greatest value of each channel is taken from it.
    """
    chains = [chain for chain in find_chains(graph) if not chain.pinned and _made_by_weights(graph, chain)]
    greatest = channel_maxima(graph, data, [name for chain in chains for name in chain.nodes])
    rewriter = Rewriter(graph)
    places: dict[str, Part | None] = {}
    factors: list[NDArray[np.float64]] = []
    for chain in chains:
        found = _factors(chain, rewriter, greatest)
        if found is None or np.allclose(found, 1.0):
            continue
        factors.append(found)
        _scale(rewriter, chain, found)
        places |= {name: Part(name, factor=tuple(float(factor) for factor in found)) for name in chain.nodes}
    report = EqualiseReport(
        chains=len(factors),
        channels=sum(int(np.count_nonzero(found != 1.0)) for found in factors),
        greatest_factor=max((float(found.max()) for found in factors), default=1.0),
    )
    return graph.edited(rewriter.module, places), report


def _made_by_weights(graph: Graph, chain: Chain) -> bool:
    nodes = {node.name: node for node in graph.module.graph.nodes}
    return any(op_name(nodes[name]) in WEIGHTED for name in chain.nodes)


def channel_maxima(graph: Graph, data: CalibrationSet, names: Iterable[str]) -> dict[str, NDArray[np.float64]]:
    """Return the greatest absolute value of each channel (axis 1) of the nodes called *names*."""
    wanted = {node.name for node in graph.module.graph.nodes if is_tensor(node)} & set(names)
    call = prepare(graph, dtype=torch.float32, nodes=frozenset(wanted))
    found: dict[str, NDArray[np.float64]] = {}
    for feeds in data.feeds(graph.images_at_once):
        for name, value in call(feeds).items():
            if name in wanted:
                axes = tuple(axis for axis in range(value.ndim) if axis != 1)
                greatest = np.abs(value).max(axis=axes).astype(np.float64)
                found[name] = np.maximum(found.get(name, greatest), greatest)
    return found


def _factors(
    chain: Chain, rewriter: Rewriter, greatest: Mapping[str, NDArray[np.float64]]
) -> NDArray[np.float64] | None:
    wanted: NDArray[np.float64] | None = None
    for name in chain.nodes:
        if name in greatest:
            own = _wanted(greatest[name], chain.bound if op_name(rewriter.nodes[name]) in CLAMPS else None)
            wanted = own if wanted is None else np.minimum(wanted, own)
    return wanted


def _wanted(top: NDArray[np.float64], bound: float | None) -> NDArray[np.float64]:
    """The factor for each channel of one tensor, of which *top* are the greatest values and *bound* is the clamp."""
    goal = float(top.max()) if bound is None else bound / MARGIN
    wanted: NDArray[np.float64] = np.clip(np.sqrt(goal / np.maximum(top, 1e-12)), 1.0, GREATEST)
    return wanted if bound is None else np.where(top < CLAMPED * bound, wanted, 1.0)


def _scale(rewriter: Rewriter, chain: Chain, factors: NDArray[np.float64]) -> None:
    """Write the factors into the layers before the chain, and their inverse into those behind it."""
    names = set(chain.nodes)
    per_channel = torch.from_numpy(factors)
    done: set[tuple[str, str]] = set()
    for name in chain.nodes:
        node = rewriter.nodes[name]
        if op_name(node) in WEIGHTED:
            for place in node.all_input_nodes[1:]:
                _multiply(rewriter, place, per_channel, "out", done)
        for user in node.users:
            if op_name(user) in WEIGHTED and user.args[0] is node and node.name in names:
                _multiply(rewriter, input_node(user, 1, "weight"), 1 / per_channel, "in", done)


def _multiply(
    rewriter: Rewriter, place: fx.Node | None, factors: torch.Tensor, side: str, done: set[tuple[str, str]]
) -> None:
    """Multiply a weight in place, on the axis of its output or of its input channels; once per weight and side."""
    tensor = rewriter.weight(place)
    assert place is not None  # noqa: S101 - find_chains has checked it
    assert tensor is not None  # noqa: S101
    if (str(place.target), side) in done:
        return
    done.add((str(place.target), side))
    doubled = tensor.detach().double()
    if side == "out":
        scaled = doubled * factors.reshape(-1, *[1] * (doubled.ndim - 1))
    else:
        groups = len(factors) // doubled.shape[1]
        blocks = doubled.reshape(groups, -1, *doubled.shape[1:])  # (g, out / g, in / g, ...)
        ones = [1] * (doubled.ndim - 2)
        scaled = (blocks * factors.reshape(groups, 1, -1, *ones)).reshape(doubled.shape)
    with torch.no_grad():
        tensor.copy_(scaled.to(tensor.dtype))
