"""Round the weights of a graph to int8 so that what each layer computes on real data changes least.

Rounding every weight to its nearest step is best for each weight, not for their sum: where inputs go together (image
channels, neighbouring pixels), so do the errors. With x the input of a layer as the int8 network sees it (rounded, and
computed by layers already rounded), y its output in float, and a 1 appended to x for the bias, the layer looks for

    min over W on the grid of  mean |W x - y|^2 + PULL * d * |W - W0|^2,    d = mean of the diagonal of H = mean x x^T

First without the grid, which lets a layer undo what those before it did; then column by column, each column's rounding
error shared out among the columns not yet rounded (optimal brain surgeon, as in Frantar et al., "GPTQ", 2022). The bias
comes last and takes up what is left, so the mean of every output stays that of the float network.

A channel's step is max |w| / levels and its greatest weight keeps the greatest level. So the quantizer of any format,
given these weights, finds the same step and the same integers.
"""

import math
from typing import Final

import torch
from torch import fx
from torch.nn import functional

from coordatt_deploy.artifact_specs import RangeMethod
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.graph.call_arguments import argument, input_node, integer, outputs, source, static_pair
from coordatt_deploy.graph.graph import Graph, at_capture, op_name, weight
from coordatt_deploy.graph.rewriter import Rewriter
from coordatt_deploy.manifest import RoundedLayer, RoundingReport
from coordatt_deploy.quantization.recipes import kept_in_float
from coordatt_deploy.quantization.simulate import WEIGHTED, Values, apply, grid_of, last_uses, sqnr_db, stored_values

LEVELS: Final = 127
PULL: Final = 1.0
DAMPING: Final = 1e-2  # of the mean diagonal: columns that calibration hardly excites are rounded to the nearest
ROWS: Final = 20_000  # positions that a layer's statistics are taken from
MEMORY: Final = 256 * 2**20  # bytes that the widest activation of all cases may take
SEED: Final = 0


def round_weights(
    graph: Graph,
    data: CalibrationSet,
    *,
    method: RangeMethod = RangeMethod.PERCENTILE,
    activations: bool = True,
    levels: int = LEVELS,
    float_layers: frozenset[str] = frozenset(),
) -> tuple[Graph, RoundingReport]:
    """Return *graph* with weights on the int8 grid and biases to match.

    Args:
        graph: Folded, and equalised where that is wanted.
        data: Calibration data; as many cases as fit into memory are used.
        method: How activation ranges are found.
        activations: Whether activations will be rounded as well (static recipes).
        levels: Greatest level of a weight: 127, or 64 where seven bits are wanted.
        float_layers: Layer ids that stay as they are.
    """
    with torch.no_grad():
        return _Walk(graph, data.first(_affordable(graph, len(data))), method, activations, levels, float_layers).run()


def _affordable(graph: Graph, count: int) -> int:
    widest = max(
        (math.prod(map(at_capture, node.meta["val"].shape)) for node in graph.module.graph.nodes
         if isinstance(node.meta.get("val"), torch.Tensor) and graph.dynamic is None),
        default=1,
    )  # fmt: skip
    return max(16, min(count, MEMORY // (4 * int(widest))))


class _Walk:
    """Goes through the graph once, with the float and the int8 value of every case side by side."""

    def __init__(
        self,
        graph: Graph,
        data: CalibrationSet,
        method: RangeMethod,
        activations: bool,
        levels: int,
        float_layers: frozenset[str],
    ) -> None:
        self.graph, self.method, self.levels = graph, method, levels
        self.rewriter = Rewriter(graph)
        self.cases = list(data.feeds(graph.images_at_once))
        self.stored = stored_values(graph) if activations else frozenset()
        edges = [([source.name for source in node.all_input_nodes], [node.name]) for node in graph.module.graph.nodes]
        self.kept = kept_in_float(tuple(sorted(float_layers)), graph.layers, edges)
        self.exact: dict[fx.Node, Values] = {}
        self.rough: dict[fx.Node, Values] = {}
        self.done: dict[str, torch.Tensor] = {}
        self.layers: list[RoundedLayer] = []

    def run(self) -> tuple[Graph, RoundingReport]:
        last = last_uses(self.graph)
        for node in self.graph.module.graph.nodes:
            if node.op == "output":
                break
            self._value(node)
            for read in node.all_input_nodes:
                if last[read] is node:
                    self.exact.pop(read, None)
                    self.rough.pop(read, None)
        returned = outputs(self.graph.module.graph)
        ratios = tuple(sqnr_db(self.rough[item], self.exact[item]) for item in returned)
        result = self.graph.edited(self.rewriter.module, {})
        return result, RoundingReport(tuple(self.layers), len(self.cases), ratios)

    def _value(self, node: fx.Node) -> None:
        count = len(self.cases)
        if node.op == "placeholder":
            values = [torch.from_numpy(case[node.name]) for case in self.cases]
            self.exact[node], self.rough[node] = values, self._stored(node, values, values)
        elif node.op == "get_attr":
            tensor = weight(self.graph.module, node)
            assert tensor is not None  # noqa: S101 - a captured graph reads tensors only
            self.exact[node] = [tensor] * count
            self.rough[node] = [self.done.get(str(node.target), tensor)] * count
        elif node.op == "call_function":
            self.exact[node] = apply(node, self.exact, count)
            if op_name(node) in WEIGHTED and node.name not in self.kept:
                self._round(node)
            rough = apply(node, self.rough, count)
            read = input_node(node, 1, "weight")
            if op_name(node) in WEIGHTED and read is not None and str(read.target) in self.done:
                ratio = sqnr_db(rough, self.exact[node])
                self.layers.append(RoundedLayer(self.graph.layer_of(node.name) or node.name, ratio))
            self.rough[node] = self._stored(node, self.exact[node], rough)

    def _stored(self, node: fx.Node, exact: Values, rough: Values) -> Values:
        if node.name not in self.stored or node.name in self.kept:
            return rough
        grid = grid_of(node, exact, self.method)
        return rough if grid is None else [grid.snap(value) for value in rough]

    def _round(self, node: fx.Node) -> None:
        place, bias_place = input_node(node, 1, "weight"), input_node(node, 2, "bias")
        tensor, bias = weight(self.graph.module, place), weight(self.graph.module, bias_place)
        if (
            place is None
            or tensor is None
            or (bias_place is not None and bias is None)
            or str(place.target) in self.done
        ):
            return
        inputs, targets = samples(node, tensor, self.rough[source(node)], self.exact[node])
        if bias is not None:
            targets_bias = bias.detach().double()
            ones = torch.ones(*inputs.shape[:2], 1, dtype=inputs.dtype)
            inputs = torch.cat([inputs, ones], dim=2)
        else:
            targets_bias = None
        rounded, shifted = fit(tensor.detach(), targets_bias, inputs, targets, self.levels)
        self._write(place, rounded)
        if bias_place is not None and shifted is not None:
            self._write(bias_place, shifted)

    def _write(self, place: fx.Node, value: torch.Tensor) -> None:
        mine = self.rewriter.weight(place)
        assert mine is not None  # noqa: S101 - read above
        mine.copy_(value.to(mine.dtype))
        self.done[str(place.target)] = mine
        self.rough[place] = [mine] * len(self.cases)


def samples(node: fx.Node, tensor: torch.Tensor, inputs: Values, outputs: Values) -> tuple[torch.Tensor, torch.Tensor]:
    """Gather what a layer reads and what it should give at up to ROWS positions.

    Returns:
        (groups, rows, in / groups * kernel) and (groups, rows, out / groups).
    """
    if op_name(node) == "linear":
        rows = torch.cat([value.reshape(-1, value.shape[-1]) for value in inputs])
        wanted = torch.cat([value.reshape(-1, value.shape[-1]) for value in outputs])
        return _thinned(rows, wanted, 1)
    groups, strides = integer(node, 6, "groups", 1), static_pair(argument(node, 3, "stride", 1))
    dilations = static_pair(argument(node, 5, "dilation", 1))
    height, width = tensor.shape[2:]
    above, left = static_pair(argument(node, 4, "padding", 0))
    generator = torch.Generator().manual_seed(SEED)
    each = -(-ROWS // sum(value.shape[0] for value in outputs))
    reads, gives = [], []
    for value, output in zip(inputs, outputs, strict=True):
        padded = functional.pad(value, (left, left, above, above))
        places = output.shape[2] * output.shape[3]
        chosen = torch.randperm(places, generator=generator)[:each] if places > each else torch.arange(places)
        rows, columns = chosen // output.shape[3] * strides[0], chosen % output.shape[3] * strides[1]
        down = rows[:, None, None] + (torch.arange(height) * dilations[0])[None, :, None]  # (P, kH, 1)
        across = columns[:, None, None] + (torch.arange(width) * dilations[1])[None, None, :]  # (P, 1, kW)
        patches = padded[:, :, down, across]  # (N, C, P, kH, kW)
        reads.append(patches.permute(0, 2, 1, 3, 4).reshape(-1, patches.shape[1] * height * width))
        gives.append(output.flatten(2)[:, :, chosen].permute(0, 2, 1).reshape(-1, output.shape[1]))
    return _thinned(torch.cat(reads), torch.cat(gives), groups)


def _thinned(rows: torch.Tensor, wanted: torch.Tensor, groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    split = rows.reshape(len(rows), groups, -1).transpose(0, 1)
    return split, wanted.reshape(len(wanted), groups, -1).transpose(0, 1)


def fit(
    tensor: torch.Tensor,
    bias: torch.Tensor | None,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    levels: int,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Round one layer's weights; see the top of this module.

    Args:
        tensor: (out, in / groups, ...).
        bias: (out,) float64, or None.
        inputs: (groups, rows, in / groups * kernel), with a column of ones behind it where there is a bias.
        targets: (groups, rows, out / groups).
        levels: Greatest level.

    Returns:
        Weights and bias in float64, of the shapes given.
    """
    groups, rows, columns = inputs.shape
    start = tensor.double().reshape(groups, targets.shape[2], -1)  # (g, o, k)
    count = start.shape[2]
    if bias is not None:
        start = torch.cat([start, bias.reshape(groups, -1, 1)], dim=2)
    covariance = (inputs.transpose(1, 2) @ inputs).double() / rows  # (g, k, k)
    crossed = (targets.transpose(1, 2) @ inputs).double() / rows  # (g, o, k)
    diagonal = torch.diagonal(covariance, dim1=1, dim2=2)[:, :count].mean(1).clamp_min(1e-12)  # (g,)
    eye = torch.eye(columns, dtype=torch.float64)
    pulled = eye.clone()
    pulled[count:, count:] *= 1e-6  # the bias is free
    system = covariance + PULL * diagonal[:, None, None] * pulled
    free = start + torch.linalg.solve(system, (crossed - start @ covariance).transpose(1, 2)).transpose(1, 2)
    rounded = _by_column(free, count, covariance + DAMPING * diagonal[:, None, None] * pulled, levels)
    weights = rounded[..., :count].reshape(tensor.shape)
    return weights, None if bias is None else rounded[..., count].reshape(bias.shape)


def _by_column(free: torch.Tensor, count: int, hessian: torch.Tensor, levels: int) -> torch.Tensor:
    """Round the first *count* columns of *free*, (g, o, k), the most excited first; the rest takes up the error."""
    groups = free.shape[0]
    step = (free[..., :count].abs().amax(2) / levels).clamp_min(1e-30)  # (g, o)
    excited = torch.argsort(torch.diagonal(hessian, dim1=1, dim2=2)[:, :count], dim=1, descending=True, stable=True)
    behind = torch.arange(count, free.shape[2]).expand(groups, -1)
    order = torch.cat([excited, behind], dim=1)  # (g, k)
    each = torch.arange(groups)[:, None, None]
    ordered = hessian[each, order[:, :, None], order[:, None, :]]
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(ordered)), upper=True)
    work = torch.gather(free, 2, order[:, None, :].expand_as(free)).clone()
    greatest = torch.zeros_like(work, dtype=torch.bool)
    greatest.scatter_(2, work[..., :count].abs().argmax(2, keepdim=True), value=True)
    signs = torch.sign(work)
    for column in range(count):
        value = work[..., column]
        level = torch.round(value / step).clamp(-levels, levels)
        level = torch.where(greatest[..., column], signs[..., column] * levels, level)
        error = (value - level * step) / upper[:, column, column][:, None]
        work[..., column + 1 :] -= error[..., None] * upper[:, column, column + 1 :][:, None, :]
        work[..., column] = level * step
    back = torch.argsort(order, dim=1)
    return torch.gather(work, 2, back[:, None, :].expand_as(work))
