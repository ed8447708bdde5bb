"""Run a graph: in one type, with the values of the nodes that are asked for."""

import copy
from collections.abc import Callable, Mapping
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.array_types import FloatArray, NumberArray
from coordatt_deploy.errors import BundleError
from coordatt_deploy.graph.graph import Feeds, Graph, is_tensor
from coordatt_deploy.graph.interpreted_graph import InterpretedGraph
from coordatt_deploy.graph.summation_order import in_sequence
from coordatt_deploy.user_code import first_line


def input_values(module: fx.GraphModule) -> list[torch.Tensor]:
    """Return the values that a capture recorded for the graph's inputs, in order."""
    return [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]


class _Recorder(fx.Interpreter):
    """Runs a graph in one type and keeps the values of the nodes asked for.

    Tensors that the graph makes itself, or casts, come in the type of the capture and are brought to that of the run.
    Means in float32 are summed as phones sum (``summation_order``).
    """

    def __init__(
        self,
        module: fx.GraphModule,
        dtype: torch.dtype,
        nodes: frozenset[str],
        after: "After | None",
        spared: frozenset[str],
        given: Mapping[str, NumberArray],
    ) -> None:
        super().__init__(module)
        self.dtype, self.nodes, self.after, self.spared, self.given = dtype, nodes, after, spared, given
        self.kept: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.name in self.given:
            value = _as_tensor(self.given[n.name], self.dtype)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.to(self.dtype)
            if is_tensor(n) and n.args and isinstance(n.args[0], fx.Node):
                value = in_sequence(n, self.env[n.args[0]], value)
        if self.after is not None and n.name not in self.spared:
            value = self.after(n, value) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
        if n.name in self.nodes:
            self.kept[n.name] = value
        return value


After = Callable[[fx.Node, torch.Tensor], torch.Tensor]
Exact = Mapping[str, NDArray[np.float64]]
Values = Mapping[str, FloatArray]
Given = Mapping[str, NumberArray]


@overload
def run(
    graph: Graph, feeds: Feeds, *, nodes: frozenset[str] = ..., after: After | None = ..., given: Given | None = ...
) -> Exact: ...
@overload
def run(
    graph: Graph,
    feeds: Feeds,
    *,
    dtype: torch.dtype,
    nodes: frozenset[str] = ...,
    after: After | None = ...,
    given: Given | None = ...,
) -> Values: ...
def run(
    graph: Graph,
    feeds: Feeds,
    *,
    dtype: torch.dtype = torch.float64,
    nodes: frozenset[str] = frozenset(),
    after: After | None = None,
    given: Given | None = None,
) -> Exact | Values:
    """Run the graph once; see ``prepare``.

    Args:
        graph: See there.
        feeds: One array per input, in the reference's layout.
        dtype: See there.
        nodes: See there.
        after: See there.
        given: Values that nodes have instead of their own, by name: what comes after them starts from these.
    """
    return prepare(graph, dtype=dtype, nodes=nodes, after=after, given=given)(feeds)


@overload
def prepare(
    graph: Graph, *, nodes: frozenset[str] = ..., after: After | None = ..., given: Given | None = ...
) -> Callable[[Feeds], Exact]: ...
@overload
def prepare(
    graph: Graph,
    *,
    dtype: torch.dtype,
    nodes: frozenset[str] = ...,
    after: After | None = ...,
    spared: frozenset[str] = ...,
    given: Given | None = ...,
) -> Callable[[Feeds], Values]: ...
def prepare(
    graph: Graph,
    *,
    dtype: torch.dtype = torch.float64,
    nodes: frozenset[str] = frozenset(),
    after: After | None = None,
    spared: frozenset[str] = frozenset(),
    given: Given | None = None,
) -> Callable[[Feeds], Exact] | Callable[[Feeds], Values]:
    """Make the graph ready to run many times in *dtype*.

    Args:
        graph: Any stage's graph.
        dtype: Computing type; float64 is the reference.
        nodes: Names of nodes whose values are wanted as well.
        after: Applied to every node's floating value, weights included: rounds to a storage type, for instance.
        spared: Names of nodes whose values it is not applied to.
        given: See ``run``.

    Returns:
        A function of the feeds (one array per input, in the reference's layout) that gives the outputs by name, and the
        nodes by theirs; floating values have the computing type. It raises BundleError where a graph that was read from
        a bundle cannot be run.
    """
    module = copy.deepcopy(graph.module).to(dtype)

    def call(feeds: Feeds) -> Values:
        recorder = _Recorder(module, dtype, nodes, after, spared, given or {})
        try:
            with torch.no_grad():
                values = recorder.run(*(_as_tensor(feeds[spec.name], dtype) for spec in graph.inputs))
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            if not isinstance(module, InterpretedGraph):  # one that was captured here: a bug
                raise
            what = f"{type(error).__name__}: {first_line(error)}"
            raise BundleError(f"the bundle's captured graph cannot be run: {what}; build the bundle again") from error
        results = {name: value.numpy() for name, value in recorder.kept.items()}
        return results | {name: value.numpy() for name, value in zip(graph.outputs, values, strict=True)}

    return call


def _as_tensor(array: NumberArray, dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(np.asarray(array))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
