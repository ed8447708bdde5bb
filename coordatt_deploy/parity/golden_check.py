"""Golden outputs are what artifacts are held to, so they are computed anew where torch is there to do it.

A file in a bundle proves nothing of itself: zeroed outputs would pass a zeroed artifact, and a rounding file of huge
errors would pass any.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import OutputRegion
from coordatt_deploy.errors import BundleError
from coordatt_deploy.formats import Precision
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.graph.float16_range import prepare_in_float16
from coordatt_deploy.graph.graph import Graph
from coordatt_deploy.graph.output_regions import output_regions
from coordatt_deploy.graph.source_weights import check_source_weights
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.parity.cases import ParityCases
from coordatt_deploy.progress import Stages

# Kernels of another CPU sum in another order: torch's own error was seen to differ by a factor of two.
MOST_ROUNDING: Final = 8.0
# Of the greatest value: float64 in another order of sums, and float32 where the model computes in nothing finer.
SAME: Final = 1e-6


NO_STATE: Final = (
    "the weights in reference/ could not be held to their hash: an earlier version wrote them, or branches were merged"
)


@dataclass(frozen=True, slots=True)
class Verified:
    """What the reference itself says of a bundle.

    Attributes:
        believed: What could not be verified, a sentence each.
        regions: By output, the parts that different operators make.
    """

    believed: tuple[str, ...]
    regions: Mapping[str, tuple[OutputRegion, ...]]


def verify(
    reference: Path, graph: Graph, manifest: Manifest, cases: Mapping[str, ParityCases], stages: Stages
) -> Verified:
    """Hold the reference to its hash, and golden outputs to the reference.

    Args:
        reference: The bundle's folder of the captured graph.
        graph: Loaded from there.
        manifest: Of the bundle.
        cases: As the bundle has them, by their folder.
        stages: Shows the progress.

    Raises:
        BundleError: They are not what they should be.
    """
    held = check_source_weights(reference, manifest)
    with stages.stage("golden outputs again", sum(len(item.names) for item in cases.values())) as step:
        for where, item in cases.items():
            check_golden(item, graph, where, step)
    return Verified(() if held else (NO_STATE,), output_regions(graph))


def check_golden(cases: ParityCases, graph: Graph, where: str, step: Callable[[], None] = lambda: None) -> None:
    """Compute a bundle's golden outputs, and what rounding makes of them, anew.

    Args:
        cases: As the bundle has them.
        graph: The captured graph.
        where: The folder of the archives, for the text.
        step: Called once per case.

    Raises:
        BundleError: An output is not what the reference computes, beyond its own rounding; or what the bundle says that
            rounding costs is far more than it does.
    """
    torch.set_num_threads(1)
    runs = {Precision.FP32: prepare(graph, dtype=torch.float32)}
    if Precision.FP16 in cases.rounding:
        runs[Precision.FP16] = prepare_in_float16(graph)
    exact = prepare(graph)
    found: dict[str, list[NumberArray]] = {}
    rounded: dict[Precision, dict[str, list[NumberArray]]] = {kind: {} for kind in runs}
    for feeds in cases.feeds(range(len(cases.names))):
        for name, value in exact(feeds).items():
            found.setdefault(name, []).append(value)
        for kind, run in runs.items():
            for name, rounding in run(feeds).items():
                rounded[kind].setdefault(name, []).append(rounding)
        step()
    for name, values in found.items():
        _check_outputs(f"{where}/outputs.npz", name, cases, values, rounded[Precision.FP32][name])
        for kind, own in rounded.items():
            _check_rounding(f"{where}/rounding_{kind.value}.npz", name, cases, kind, values, own[name])


def _check_outputs(
    file: str, name: str, cases: ParityCases, found: Sequence[NumberArray], own: Sequence[NumberArray]
) -> None:
    for case, kept, value, rounding in zip(cases.names, cases.outputs[name], found, own, strict=True):
        gap = _gap(kept, value, f"{file}, {name} of {case}")
        scale = float(np.nanmax(np.abs(value))) if value.size else 0.0
        allowed = max(_worst(np.asarray(rounding, np.float64) - value), SAME * scale)
        same_holes = np.array_equal(np.isfinite(kept), np.isfinite(value))
        if not same_holes or not _worst(gap) <= allowed:
            raise BundleError(
                f"{file}: {name} of {case} is not what reference/ computes, off by {_worst(gap):.3g}"
                f" ({allowed:.3g} allowed); build the bundle again"
            )


def _check_rounding(
    file: str,
    name: str,
    cases: ParityCases,
    kind: Precision,
    found: Sequence[NumberArray],
    own: Sequence[NumberArray],
) -> None:
    kept, here, scale = 0.0, 0.0, 0.0
    for value, rounding, computed in zip(found, cases.rounding[kind][name], own, strict=True):
        gap = _gap(rounding, value, f"{file}, {name}")
        mine = np.asarray(computed, np.float64) - value
        both = np.isfinite(gap) & np.isfinite(mine)
        kept, here = max(kept, _worst(gap[both])), max(here, _worst(mine[both]))
        scale = max(scale, float(np.nanmax(np.abs(value))) if value.size else 0.0)
    if kept > max(MOST_ROUNDING * here, SAME * scale):
        raise BundleError(
            f"{file}: rounding costs {name} {here:.3g} here and {kept:.3g} in the bundle, which would excuse any file;"
            " build the bundle again"
        )


def _gap(kept: NumberArray, value: NumberArray, where: str) -> NDArray[np.float64]:
    if kept.shape != value.shape:
        raise BundleError(f"{where} has shape {kept.shape}, reference/ gives {value.shape}; build the bundle again")
    with np.errstate(invalid="ignore"):
        gap: NDArray[np.float64] = np.asarray(kept, np.float64) - value
    return gap


def _worst(error: NDArray[np.float64]) -> float:
    finite = error[np.isfinite(error)]
    return float(np.max(np.abs(finite))) if finite.size else 0.0
