"""The calibration data of a plan: read, looked at, and what it says of the network's outputs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from coordatt_deploy.conversion.plan import QuantizePlan
from coordatt_deploy.data.calibration import PACKAGED, CalibrationSet, load_calibration
from coordatt_deploy.errors import UsageError
from coordatt_deploy.manifest import CalibrationRecord, Manifest
from coordatt_deploy.models.registry import model_card, trained_models
from coordatt_deploy.progress import Stages
from coordatt_deploy.quantization.recipes import Recipe
from coordatt_deploy.tensors import weights_sha256

if TYPE_CHECKING:
    from coordatt_deploy.graph.graph import Graph
    from coordatt_deploy.quantization.output_scales import FloatTail

BITS: Final = {"int8": 8, "int16": 16}


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a plan's artifacts are calibrated on.

    Attributes:
        data: None where no recipe needs any.
        tails: By the bits of activations, what has to stay in float at the end of the network.
    """

    data: CalibrationSet | None = None
    tails: Mapping[int, tuple["FloatTail", ...]] = field(default_factory=dict)

    @property
    def notes(self) -> tuple[str, ...]:
        """Why layers stay in float, a sentence each."""
        return tuple(dict.fromkeys(tail.reason for found in self.tails.values() for tail in found))

    def float_tail(self, recipe: Recipe) -> tuple[str, ...]:
        """Return the ids of the layers that stay in float with *recipe*, besides those that it names itself."""
        found = self.tails.get(BITS.get(recipe.activations or "", 0), ()) if recipe.needs_calibration else ()
        return tuple(dict.fromkeys(layer for tail in found for layer in tail.layers))


def calibrate(plan: QuantizePlan, manifest: Manifest, graph: Callable[[], "Graph"], stages: Stages) -> Calibration:
    """Read the calibration data, find what it shows that integers cannot carry, and say what is worth knowing of both.

    Args:
        plan: What is quantized.
        manifest: Of the bundle, or what is known of it before its artifacts are made.
        graph: Gives the captured graph; asked where there is data to run it on.
        stages: Shows the progress, and what is said.

    Raises:
        UsageError: See ``calibration_of``.
    """
    with stages.stage("calibration data"):
        data = calibration_of(plan, manifest)
    if data is None:
        return Calibration()
    # it loads torch
    from coordatt_deploy.quantization.output_scales import float_tails

    static = [recipe for recipe in plan.recipes if recipe.needs_calibration]
    wanted = sorted({BITS[recipe.activations] for recipe in static if recipe.activations in BITS})
    with stages.stage("scales of the outputs"):
        captured = graph()
        found = Calibration(data, {bits: float_tails(captured, data, bits) for bits in wanted})
    for note in (*data.notes, *found.notes):
        stages.note(note)
    return found


def calibration_of(plan: QuantizePlan, manifest: Manifest) -> CalibrationSet | None:
    """Read the calibration data; None where no recipe needs any.

    Raises:
        UsageError: It is needed and not given, is given and not needed, or is not what it should be.
    """
    needing = [recipe for recipe in plan.recipes if recipe.needs_calibration]
    if not needing:
        if plan.calibration is not None:
            names = ", ".join(recipe.name for recipe in plan.recipes)
            raise UsageError(f"{names} measures nothing, so calibration data changes nothing; leave it out")
        return None
    inputs, preprocessing = manifest.inputs, manifest.model.preprocessing
    source = plan.calibration or own_dataset(manifest.model.source_sha256)
    if source is None:
        raise UsageError(
            f"{needing[0].name} needs calibration data, images of the kind that the model will meet; give"
            " --calibration-data FOLDER, or a recipe that needs none: dynamic_wi8_afp32, weight_only_wi8_afp32"
        )
    if source in PACKAGED:
        return PACKAGED[source](inputs, preprocessing, count=plan.count, seed=plan.seed)
    return load_calibration(Path(source), inputs, preprocessing, count=plan.count, seed=plan.seed)


def own_dataset(source_sha256: str) -> str | None:
    """The packaged data that an embedded model was trained on, by its weights; None for every other model."""
    # asked only where no calibration data was given
    from safetensors.numpy import load_file

    for name in trained_models():
        card = model_card(name)
        if weights_sha256(load_file(card.weights_path)) == source_sha256:
            return card.dataset
    return None


def calibration_record(data: CalibrationSet) -> CalibrationRecord:
    """Return what the manifest says of calibration data."""
    held_out = 0 if data.aside is None else len(data.aside)
    return CalibrationRecord(data.source, len(data), data.seed, data.fingerprint, held_out, data.notes)
