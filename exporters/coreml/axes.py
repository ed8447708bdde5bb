"""In which order of axes a program holds a value: told by the numbers, where names and shapes do not tell it.

Between two permutations that cancel, coremltools computes in the order of axes before them, under the old names. Where
as many channels as rows or columns are, or the map is square, such a tensor has the shape of the value and is not it.
So, where a graph permutes axes at all, the program is evaluated once on noise, and the order that a tensor is in is the
one whose values go with the graph's:

    r = <a, b> / (|a| |b|)  with the means taken out;   1 for the same values, about 0 for others

In float16 and behind many layers r is less than 1, and still far from what any other order has.
"""

from collections.abc import Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Final

import numpy as np
import torch

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.errors import DeployError
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import Graph, op_name
from coordatt_deploy.runtimes.coreml.evaluator.package import load
from coordatt_deploy.runtimes.coreml.runner import program_feeds
from coordatt_deploy.tensors import encode

Axes = tuple[int, ...]

SEED: Final = 20210305
PERMUTING: Final = frozenset({"permute", "transpose", "movedim", "swapaxes", "t", "numpy_T"})
ALIKE: Final = 0.5  # r of the order that a tensor is in; of noise behind a few layers others have less than 0.2
MARGIN: Final = 0.3  # by which r must be more than that of the order that the shape tells


def permutes(graph: Graph) -> bool:
    """Whether the graph permutes axes anywhere; else every tensor is in the order of its value."""
    return any(op_name(node) in PERMUTING for node in graph.module.graph.nodes)


def may_be_permuted(value: Sequence[int | torch.SymInt], shape: Sequence[int | None]) -> bool:
    """Whether a tensor of *shape* may hold *value* in another order of axes; None is a dynamic axis of it."""
    if len(value) != len(shape):
        return False
    known = [size if isinstance(size, int) else None for size in value]
    if None in shape or None in known:
        return True
    longer = [size for size in shape if size != 1]
    return sorted(shape) == sorted(known) and (list(shape) != known or len(set(longer)) < len(longer))  # type: ignore[type-var]


def orders(shape: Sequence[int], value: Sequence[int]) -> list[Axes]:
    """Return the orders of a value's axes that give *shape*, the unchanged one first."""
    return [axes for axes in permutations(range(len(value))) if [value[axis] for axis in axes] == list(shape)]


def find_orders(
    graph: Graph, path: Path, inputs: tuple[TensorSpec, ...], candidates: Mapping[str, str]
) -> dict[str, Axes]:
    """Return the order of axes that tensors of a program hold the values of nodes in, where it is not the graph's.

    Args:
        graph: What was converted.
        path: The package.
        inputs: Of the artifact.
        candidates: For each node the tensor that has its name.

    Returns:
        By node: axis ``i`` of the tensor is axis ``axes[i]`` of the value. Nothing of nodes that the numbers do not
        decide, and nothing at all where the program cannot be run.
    """
    feeds = _noise(graph, inputs)
    try:
        program = load(path)
        fed = program_feeds(program.inputs, inputs, {spec.name: encode(feeds[spec.name], spec) for spec in inputs})
        tensors = program.evaluate(fed, tuple(dict.fromkeys(candidates.values())))
    except (DeployError, KeyError):  # an operator that only Core ML itself has
        return {}
    values = run(graph, feeds, nodes=frozenset(candidates))
    found = {name: _order(tensors[tensor], values[name]) for name, tensor in candidates.items()}
    return {name: axes for name, axes in found.items() if axes is not None}


def _noise(graph: Graph, inputs: Sequence[TensorSpec]) -> dict[str, NumberArray]:
    generator = torch.Generator().manual_seed(SEED)
    feeds = {}
    for spec, tensor in zip(inputs, graph.example, strict=True):
        noise = torch.randn(tuple(tensor.shape), generator=generator)
        feeds[spec.name] = noise.numpy() if spec.dtype.startswith("float") else (noise * 40 + 128).clip(0, 255).numpy()
    return feeds


def _order(tensor: NumberArray, value: NumberArray) -> Axes | None:
    """The order of axes that the numbers tell and the shape does not; None for none."""
    flat = np.asarray(tensor, np.float64)
    likeness = {
        axes: alike(flat, np.transpose(np.asarray(value, np.float64), axes))
        for axes in orders(tensor.shape, value.shape)
    }
    plain = likeness.get(tuple(range(value.ndim)), 0.0)
    best = max(likeness, key=lambda axes: likeness[axes], default=None)
    if best is None or likeness[best] < max(ALIKE, plain + MARGIN):
        return None
    return best


def alike(one: NumberArray, other: NumberArray) -> float:
    """The correlation of two arrays; 0 where one is constant or not finite, so that nothing is told."""
    first, second = one.ravel() - one.mean(), other.ravel() - other.mean()
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float(first @ second) / norm if np.isfinite(norm) and norm > 0 else 0.0
