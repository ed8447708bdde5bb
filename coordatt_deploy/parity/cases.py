"""What artifacts are run on for parity: the bundle's golden cases, or the user's own, with what torch makes of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.data.arrays import read_inputs
from coordatt_deploy.formats import Precision
from coordatt_deploy.parity.tolerances import Tolerance
from coordatt_deploy.progress import Stages

Values = Mapping[str, Sequence[NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class ParityCases:
    """What artifacts are run on, and what they should give. One array per case, by tensor.

    Attributes:
        images: Which of the cases are real images; the others are tensors that no photograph gives.
    """

    names: tuple[str, ...]
    inputs: Values
    outputs: Values
    rounding: Mapping[Precision, Values]
    images: tuple[bool, ...]

    def chosen(self, cases: Sequence[int]) -> "ParityCases":
        """Return the cases at these places."""
        rounding = {kind: _at(values, cases) for kind, values in self.rounding.items()}
        names = tuple(self.names[index] for index in cases)
        images = tuple(self.images[index] for index in cases)
        return ParityCases(names, _at(self.inputs, cases), _at(self.outputs, cases), rounding, images)

    def few(self, most: int) -> "ParityCases":
        """Return a choice of the cases, and as many images for artifacts that are judged on those alone."""
        images = [index for index, image in enumerate(self.images) if image]
        return self.chosen(sorted({*choose_cases(self.names, most=most), *images[:most]}))

    def fit_for(self, tolerance: Tolerance) -> "ParityCases":
        """Return the cases that an artifact with *tolerance* can be judged on."""
        real = [index for index, image in enumerate(self.images) if image]
        return self.chosen(real) if tolerance.calibrated and real else self

    def feeds(self, cases: Sequence[int]) -> list[Mapping[str, NDArray[Any]]]:
        """Return the inputs of the cases at these places, one mapping each."""
        return [{name: values[index] for name, values in self.inputs.items()} for index in cases]


def _at(values: Values, cases: Sequence[int]) -> dict[str, list[NDArray[Any]]]:
    return {name: [arrays[index] for index in cases] for name, arrays in values.items()}


def golden_cases(bundle: Bundle) -> ParityCases:
    """Return the bundle's golden cases."""
    return ParityCases(
        tuple(case.name for case in bundle.manifest.golden),
        bundle.golden("inputs"),
        bundle.golden("outputs"),
        {kind: bundle.golden(f"rounding_{kind.value}") for kind in (Precision.FP32, Precision.FP16)},
        tuple(case.image is not None for case in bundle.manifest.golden),
    )


def cases_of(bundle: Bundle, artifact: Artifact, golden: ParityCases) -> ParityCases:
    """Return what *artifact* is tried on: the golden cases, or what was set aside when it was calibrated.

    Beyond its ranges a static int8 artifact clips, as it must; so it is tried on images of the kind that they were
    measured on, which the golden images of a user's own model need not be.
    """
    aside = bundle.manifest.quantization.get(artifact.path, {}).get("set_aside")
    if not aside:
        return golden
    inputs, outputs, rounding = (
        bundle.golden(f"{aside['folder']}/{name}") for name in ("inputs", "outputs", "rounding_fp32")
    )
    names = tuple(aside["names"])
    return ParityCases(names, inputs, outputs, {Precision.FP32: rounding}, (True,) * len(names))


def calibrated_ranges(bundle: Bundle, artifact: Artifact) -> dict[str, tuple[float, float]]:
    """Return the least and greatest value of each layer on the data that *artifact* was calibrated on, by layer id."""
    aside = bundle.manifest.quantization.get(artifact.path, {}).get("set_aside")
    if not aside:
        return {}
    found = bundle.golden(f"{aside['folder']}/ranges")
    return {layer: (float(low), float(high)) for layer, ((low, high),) in found.items()}


def cases_on(bundle: Bundle, source: Path, stages: Stages) -> ParityCases:
    """Run the reference on the user's own inputs."""
    cases = read_inputs(source, bundle.manifest.inputs, bundle.manifest.model.preprocessing)
    import torch

    from coordatt_deploy.graph.execution import prepare
    from coordatt_deploy.graph.saved_graph import load_graph

    torch.set_num_threads(1)
    graph = load_graph(bundle.path("reference"))
    runs = {
        None: prepare(graph),
        Precision.FP32: prepare(graph, dtype=torch.float32),
        Precision.FP16: prepare(graph, dtype=torch.float32, after=lambda value: value.half().float()),
    }
    found: dict[Precision | None, dict[str, list[NDArray[Any]]]] = {kind: {} for kind in runs}
    with stages.stage("reference in float64", len(cases.names)) as step:
        for index in range(len(cases.names)):
            feeds = {name: values[index] for name, values in cases.feeds.items()}
            for kind, run in runs.items():
                for name, value in run(feeds).items():
                    found[kind].setdefault(name, []).append(value)
            step()
    rounding = {kind: values for kind, values in found.items() if kind is not None}
    return ParityCases(cases.names, cases.feeds, found[None], rounding, (True,) * len(cases.names))


def choose_cases(names: Sequence[str], images: Sequence[bool] = (), most: int = 6) -> list[int]:
    """Choose golden cases for the layers: a few images, and tensors that no image gives.

    Two of the made-up tensors are always among them; a dead channel behind every image wakes up for noise.

    Args:
        names: Of the cases.
        images: Which of them are real images; an integer grid is judged on those alone.
        most: How many to choose.
    """
    wanted = [index for index, name in enumerate(names) if name.startswith(("noise", "checkerboard"))]
    others = [index for index in range(len(names)) if index not in wanted]
    if any(images):
        wanted, others = [], [index for index, real in enumerate(images) if real]
    stride = max(1, len(others) // max(1, most - len(wanted)))
    return sorted([*wanted, *others[::stride][: max(1, most - len(wanted))]])
