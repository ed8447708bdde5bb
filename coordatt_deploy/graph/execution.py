"""Run a graph: in one type, with the values of the nodes that are asked for."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx

from coordatt_deploy.graph.graph import Feeds, Graph, is_tensor, operator_name
from coordatt_deploy.graph.summation_order import in_sequence


def _input_values(module: fx.GraphModule) -> list[torch.Tensor]:
    return [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]


class _Recorder(fx.Interpreter):
    """Runs a graph in one type and keeps the values of the nodes asked for.

    Tensors that the graph makes itself, or casts, come in the type of the capture and are brought to that of the run.
    Means in float32 are summed as phones sum (``summing``).
    """

    def __init__(
        self,
        module: fx.GraphModule,
        dtype: torch.dtype,
        nodes: frozenset[str],
        after: Callable[[torch.Tensor], torch.Tensor] | None,
    ) -> None:
        super().__init__(module)
        self.dtype, self.nodes, self.after = dtype, nodes, after
        self.kept: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            value = value.to(self.dtype)
            if is_tensor(n) and n.args and isinstance(n.args[0], fx.Node):
                value = in_sequence(n, operator_name(n), self.env[n.args[0]], value)
        if self.after is not None and isinstance(value, torch.Tensor) and value.is_floating_point():
            value = self.after(value)
        if n.name in self.nodes:
            self.kept[n.name] = value
        return value


def run(
    graph: Graph,
    feeds: Feeds,
    *,
    dtype: torch.dtype = torch.float64,
    nodes: frozenset[str] = frozenset(),
    after: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, NDArray[Any]]:
    """Run the graph once; see ``prepare``."""
    return prepare(graph, dtype=dtype, nodes=nodes, after=after)(feeds)


def prepare(
    graph: Graph,
    *,
    dtype: torch.dtype = torch.float64,
    nodes: frozenset[str] = frozenset(),
    after: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> Callable[[Feeds], dict[str, NDArray[Any]]]:
    """Make the graph ready to run many times in *dtype*.

    Args:
        graph: Any stage's graph.
        dtype: Computing type; float64 is the reference.
        nodes: Names of nodes whose values are wanted as well.
        after: Applied to every floating value, weights included: rounds to a storage type, for instance.

    Returns:
        A function of the feeds (one array per input, in the reference's layout) that gives the outputs by name, and the
        nodes by theirs.
    """
    module = copy.deepcopy(graph.module).to(dtype)

    def call(feeds: Feeds) -> dict[str, NDArray[Any]]:
        recorder = _Recorder(module, dtype, nodes, after)
        with torch.no_grad():
            values = recorder.run(*(_as_tensor(feeds[spec.name], dtype) for spec in graph.inputs))
        results = {name: value.numpy() for name, value in recorder.kept.items()}
        return results | {name: value.numpy() for name, value in zip(graph.outputs, values, strict=True)}

    return call


def _as_tensor(array: NDArray[Any], dtype: torch.dtype) -> torch.Tensor:
    tensor = torch.from_numpy(np.asarray(array))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
