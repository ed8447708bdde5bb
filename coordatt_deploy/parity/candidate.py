"""What is judged: one artifact with all that the judges need of the bundle that it lies in."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from coordatt_deploy.artifact_specs import Artifact, OutputKind, OutputRegion
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.manifest import QuantizationRecord
from coordatt_deploy.parity.cases import ParityCases, Values
from coordatt_deploy.parity.tolerances import Tolerance
from coordatt_deploy.runtimes.host_effects import HostEffect


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One artifact that is held against the reference.

    Attributes:
        artifact: As the manifest describes it.
        path: Of the file.
        layers: Where each layer of the captured graph is in it.
        record: How it was quantized; None for a float artifact.
        outputs: Names of the model's outputs, each of which must be judged.
        cases: What its outputs are judged on: the golden cases, what was set aside when it was calibrated, or the
            user's own inputs.
        own_cases: Whether those were set aside for this artifact.
        ranges: Of a static artifact, least and greatest value of each layer on its calibration data, by layer id.
        damage: What of the bundle cannot be read, so that its layers cannot be judged; None where all can.
        regions: By output, the parts that different operators make; see ``OutputRegion``.
        kinds: What outputs are, by name; those that are not there are not known.
        integral: Names of outputs that hold integers or yes and no: classes, positions, masks.
        moved: Computes what values moved by half a unit in the last place make of the outputs, at a tolerance
            (``moved_values``); None where torch is not there.
        effect: What this machine makes otherwise of it than others do; None where nothing, or where it runs elsewhere.
    """

    artifact: Artifact
    path: Path
    layers: LayerMap
    record: QuantizationRecord | None
    outputs: tuple[str, ...]
    cases: ParityCases
    own_cases: bool = False
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    damage: str | None = None
    regions: Mapping[str, tuple[OutputRegion, ...]] = field(default_factory=dict)
    kinds: Mapping[str, OutputKind] = field(default_factory=dict)
    integral: frozenset[str] = frozenset()
    moved: Callable[[Tolerance], Values] | None = None
    effect: HostEffect | None = None

    @property
    def rounded_on_data(self) -> bool:
        """Whether its weights were rounded on data, so that layers may make up for those before them."""
        return self.record is not None and self.record.rounding is not None
