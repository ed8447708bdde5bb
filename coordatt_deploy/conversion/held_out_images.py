"""Calibration images that are set aside, so that parity judges on some that no range was measured on."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.bundle import save_golden
from coordatt_deploy.conversion.plan import Job
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.loading.sizes import unseen_batches
from coordatt_deploy.logs import captured
from coordatt_deploy.manifest import HeldOutCases

if TYPE_CHECKING:
    from coordatt_deploy.graph.graph import Graph

HELD_OUT_PREFIX: Final = "set-aside-"


@dataclass(frozen=True, slots=True)
class SetAside:
    """That the reference was run on images that were set aside; what it gave is in files."""


def held_out_cases(job: Job) -> HeldOutCases | None:
    """Where the reference on the images set aside is, for ``parity.cases``."""
    if job.data is None or job.data.aside is None:
        return None
    return HeldOutCases(f"{HELD_OUT_PREFIX}{job.data.aside.fingerprint[:12]}", job.data.aside.names)


def _of_other_batches(graph: "Graph", data: CalibrationSet) -> Iterator[dict[str, NumberArray]]:
    """Yield further cases for a dynamic batch, as many images as the golden inputs have beside each other."""
    bounds = graph.batch
    if bounds is None:
        return
    for batch in unseen_batches((bounds.minimum, bounds.maximum), graph.example[0].shape[0]):
        if batch != bounds.minimum:
            yield {name: array[np.arange(batch) % len(array)] for name, array in data.arrays.items()}


def write_held_out(job: Job) -> None:
    """Write the images that were set aside, what the reference makes of them, and the ranges of the others.

    Run in a process of its own.
    """
    log = job.log.with_stem(f"{job.log.stem}-set-aside")  # the artifact's own is written at the same time
    with captured(log):
        # here, and not above: what torch and converters print as they load belongs in the log
        import torch

        from coordatt_deploy.graph.execution import prepare
        from coordatt_deploy.graph.saved_graph import load_graph
        from coordatt_deploy.parity.reference_layers import ReferenceLayers

        torch.set_num_threads(1)
        graph = load_graph(job.root / "reference")
        place = held_out_cases(job)
        if place is None or job.data is None or job.data.aside is None:
            return
        cases = [*job.data.aside.feeds(graph.images_at_once), *_of_other_batches(graph, job.data.aside)]
        folder = job.root / "golden" / place.folder
        folder.mkdir(parents=True, exist_ok=True)
        for file, run in (("outputs", prepare(graph)), ("rounding_fp32", prepare(graph, dtype=torch.float32))):
            results = [run(feeds) for feeds in cases]
            save_golden(folder / f"{file}.npz", {name: [case[name] for case in results] for name in graph.outputs})
        ranges = ReferenceLayers(graph).ranges(job.data.feeds(graph.images_at_once))
        save_golden(folder / "ranges.npz", {layer: [np.array(ends)] for layer, ends in ranges.items()})
        save_golden(folder / "inputs.npz", {name: [case[name] for case in cases] for name in job.data.aside.arrays})
    log.unlink(missing_ok=True)
    if job.aside_stage is not None:
        job.aside_stage.keep(job.root, SetAside())
