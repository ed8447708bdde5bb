"""executorch's exporters, without what they print, and without two things that half of their time goes into.

histories   torch writes down where each node of a graph came from, and copies that history whenever a pass runs
over the graph, of which there are forty. They are never changed, so they are shared here.
resizing    to recognise bilinear resizing, executorch lowers six networks with it; not for a graph without any.
"""

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TypeVar
from unittest import mock

from torch.fx import traceback
from torch.fx.passes.infra.pass_base import PassResult

T = TypeVar("T")


@contextmanager
def quiet() -> Iterator[None]:
    """Let it warn and log of nothing inside."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


with quiet():
    from executorch.backends.xnnpack import _passes as xnnpack_passes
    from executorch.backends.xnnpack._passes.xnnpack_pass import XNNPACKPass
    from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
    from executorch.backends.xnnpack.partition.config.generic_node_configs import SoftmaxConfig
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
    from executorch.exir.lowered_backend_module import LoweredBackendModule
    from torch.fx import GraphModule


class _NoResizing(XNNPACKPass):  # type: ignore[misc]  # a package without types
    """Stands for the pass that looks for bilinear resizing in a graph that has none."""

    def call(self, graph_module: GraphModule) -> PassResult:
        return PassResult(graph_module, False)


def _shared(history: T) -> T:
    return history


@contextmanager
def fast(*, resizing: bool) -> Iterator[None]:
    """Lower inside without copying histories, and without looking for bilinear resizing unless there may be some."""
    with mock.patch.object(traceback, "copy", SimpleNamespace(copy=copy.copy, deepcopy=_shared)):
        if resizing:
            yield
        else:
            with mock.patch.object(xnnpack_passes, "ConvertToUpsampleBilinear2d", _NoResizing):
                yield


def partitioner(*, softmax: bool) -> XnnpackPartitioner:
    """Return what hands operators to XNNPACK.

    Args:
        softmax: Whether softmax as well. Not over the last of four axes: XNNPACK has the map with its channels last,
            and executorch 1.5.1 lets it go over these (off by 0.3 of the greatest value).
    """
    configs = [item for item in ALL_PARTITIONER_CONFIGS if softmax or item is not SoftmaxConfig]
    return XnnpackPartitioner(configs=configs)


__all__ = [
    "EdgeCompileConfig", "LoweredBackendModule", "XnnpackPartitioner", "fast", "partitioner", "quiet",
    "to_edge_transform_and_lower",
]  # fmt: skip
