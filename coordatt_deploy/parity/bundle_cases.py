"""What of a bundle the judges get: its artifacts as candidates, with the cases that each is judged on."""

from typing import Final

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.errors import BundleError
from coordatt_deploy.formats import Precision
from coordatt_deploy.manifest import HeldOutCases
from coordatt_deploy.parity.candidate import Candidate
from coordatt_deploy.parity.cases import ParityCases
from coordatt_deploy.parity.preprocessing_check import GoldenImage

INPUTS: Final = "inputs"
NO_CASE: Final = "the manifest names no golden case, so nothing can be judged; build the bundle again"


def candidate_of(
    bundle: Bundle, artifact: Artifact, cases: ParityCases, *, layers: bool = True, users: bool = False
) -> Candidate:
    """Return an artifact with all that judging it takes.

    Beyond its ranges a static int8 artifact clips, as it must; so it is tried on images of the kind that they were
    measured on, which the golden images of a user's own model need not be.

    Args:
        bundle: That it lies in.
        artifact: Of the bundle.
        cases: What it is judged on, where none were set aside for it.
        layers: Whether its layers will be judged.
        users: Whether the cases are the user's own, which every artifact is judged on.

    Raises:
        BundleError: There is nothing to judge it on, or an archive is damaged.
    """
    record = bundle.manifest.quantization.get(artifact.path)
    held_out = None if record is None else record.held_out
    own_cases = not users and held_out is not None
    if not users and held_out is not None:
        names = _held_out_names(bundle, held_out)
        inputs, outputs, rounding = (
            _archive(bundle, f"{held_out.folder}/{name}", len(names)) for name in (INPUTS, "outputs", "rounding_fp32")
        )
        cases = ParityCases(names, inputs, outputs, {Precision.FP32: rounding}, (True,) * len(names))
    if not cases.names or (layers and not bundle.manifest.golden):  # layers are compared on the golden cases
        raise BundleError(NO_CASE)
    ranges: dict[str, tuple[float, float]] = {}
    damage = None
    if held_out is not None and layers:
        try:
            found = bundle.golden(f"{held_out.folder}/ranges")
            ranges = {layer: (float(low), float(high)) for layer, ((low, high),) in found.items()}
        except (BundleError, ValueError, TypeError) as error:  # outputs can be judged all the same
            damage = str(error)
    return Candidate(
        artifact=artifact,
        path=bundle.path(artifact.path),
        layers=bundle.layers(artifact),
        record=record,
        outputs=tuple(spec.name for spec in bundle.manifest.outputs),
        cases=cases,
        own_cases=own_cases,
        ranges=ranges,
        damage=damage,
        regions=bundle.manifest.regions,
        kinds=bundle.manifest.output_kinds,
        integral=frozenset(spec.name for spec in bundle.manifest.outputs if not spec.dtype.startswith("float")),
    )


def _held_out_names(bundle: Bundle, held_out: HeldOutCases) -> tuple[str, ...]:
    """Name the cases that were set aside; those that a dynamic batch has beyond the images come last."""
    first = bundle.manifest.inputs[0]
    if first.shape[0] is not None:
        return _batches(held_out.names, first.shape[0])
    values = bundle.golden(f"{held_out.folder}/{INPUTS}").get(first.name, ())
    at_once = [value.shape[0] if value.ndim else 1 for value in values]
    names = _batches(held_out.names, max([1, *at_once[:1]]))
    return (*names, *(f"batch_of_{batch}" for batch in at_once[len(names) :]))


def _batches(images: tuple[str, ...], size: int) -> tuple[str, ...]:
    """Name the cases of a network that takes several images at once: each after the first of its own.

    Those that do not fill a batch are no case; see ``CalibrationSet.feeds``.
    """
    return images[: len(images) - size + 1 : size] if len(images) >= size else ()


def golden_cases(bundle: Bundle) -> ParityCases:
    """Return the golden cases; none where the manifest names none.

    Raises:
        BundleError: An archive is missing, damaged, or does not hold all of them.
    """
    cases = bundle.manifest.golden
    if not cases:
        return ParityCases((), {}, {}, {}, ())
    return ParityCases(
        tuple(case.name for case in cases),
        _archive(bundle, INPUTS, len(cases)),
        _archive(bundle, "outputs", len(cases)),
        {kind: _archive(bundle, f"rounding_{kind.value}", len(cases)) for kind in (Precision.FP32, Precision.FP16)},
        tuple(case.image is not None for case in cases),
    )


def _archive(bundle: Bundle, file: str, cases: int) -> dict[str, list[NumberArray]]:
    """Read a golden archive that must hold *cases* arrays of each of the model's inputs, or of its outputs.

    Raises:
        BundleError: It does not, or there is no case at all: nothing could be judged.
    """
    if not cases:
        raise BundleError(NO_CASE)
    values = bundle.golden(file)
    specs = bundle.manifest.inputs if file.endswith(INPUTS) else bundle.manifest.outputs
    for spec in specs:
        if len(values.get(spec.name, ())) != cases:
            found = len(values.get(spec.name, ()))
            raise BundleError(
                f"golden/{file}.npz holds {found} of {cases} cases of {spec.name}; build the bundle again"
            )
        if file.endswith(INPUTS) and not all(bool(np.isfinite(value).all()) for value in values[spec.name]):
            raise BundleError(f"golden/{file}.npz holds {spec.name} with NaN or infinity; build the bundle again")
    return values


def golden_images(bundle: Bundle) -> tuple[GoldenImage, ...]:
    """Return the golden cases that are images, with the files."""
    cases = enumerate(bundle.manifest.golden)
    return tuple(GoldenImage(at, case.image, bundle.path(case.image)) for at, case in cases if case.image is not None)
