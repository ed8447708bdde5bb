"""The judge, layer by layer: which layer of an artifact is wrong, and which only inherit. NumPy only.

Each layer is judged twice. *Accumulated*: the artifact ran from its own input. *Local*: its piece was fed with the
reference's values, so only its own fault shows; once more it is *probed* with noise around them, because a dead
channel or a bound that no image reaches hides a fault. ``tallies`` says what an error is allowed to be.
"""

import math
import statistics
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.errors import BundleError
from coordatt_deploy.graph.operators import weight_positions
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.parity.conditioning import mostly_lost
from coordatt_deploy.parity.error_statistics import LayerErrorStats, Moved, Rounded
from coordatt_deploy.parity.shared_tensors import viewed
from coordatt_deploy.parity.tolerances import OTHERWISE_INTEGERS, UNIT_ROUNDOFF, Tolerance

# Times the multiple: what layers that are all within it may add up to in the whole of an integer artifact.
ADDED_UP: Final = 1.5
WEIGHTED: Final = frozenset(weight_positions())


@dataclass(frozen=True, slots=True)
class LayerVerdict:
    """The verdict on one layer, as documents hold it.

    Attributes:
        layer_id: Stable name.
        operator: Of the captured graph.
        sqnr_db: Of the value in the whole artifact; None where it has no such value.
        max_abs_error: Likewise.
        local_sqnr_db: Of the value that the layer alone gives, fed with the reference; None where it could not be run.
        local_max_abs_error: Likewise.
        local_allowed: What was allowed there.
        excess: Error over allowance in the whole artifact; above 1 is beyond tolerance.
        local_excess: Likewise of the layer alone.
        max_steps: Error in steps of the tensor's grid; None in float.
        local_max_steps: Likewise of the layer alone.
        probe_max_abs_error: Of the layer alone on stirred values; None where they were not tried.
        probe_allowed: What was allowed there.
        exact: Whether the value in the whole artifact equals the reference.
        nonfinite: Values that are NaN or infinite.
        passed: Whether the layer itself is within tolerance; None where nothing of it can be seen.
        evidence: What was found and what was allowed, where it is not.
        inherits: Whether it is right with right inputs, but off in the whole artifact.
        seen_through: The layer at which it is judged, if not itself.
        note: Why it is absent, or what it was fused with.
        local_judged_error: What is held against ``local_allowed``: the error of the case, or where weights are integers
            the noise of the channel, with the most over its allowance. None in reports of older versions.
    """

    layer_id: str
    operator: str
    sqnr_db: float | None
    max_abs_error: float | None
    local_sqnr_db: float | None
    local_max_abs_error: float | None
    local_allowed: float | None
    excess: float | None
    local_excess: float | None
    max_steps: float | None
    local_max_steps: float | None
    probe_max_abs_error: float | None
    probe_allowed: float | None
    exact: bool
    nonfinite: int
    passed: bool | None
    evidence: str | None
    inherits: bool
    seen_through: str | None
    note: str | None
    local_judged_error: float | None = None


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer of one artifact.

    Attributes:
        accumulated: None where the artifact has no such value.
        local: None where its piece could not be run on its own.
        probed: The same on stirred values; None where they were not tried.
        misfit: What is wrong with the tensor itself, where it cannot be compared at all.
        seen_through: The layer at which it is judged, if not itself.
        note: Why it is absent, what it was fused with.
        floor_db: What torch's own rounding must keep of it, for its tolerance to prove anything; None for integers.
    """

    layer_id: str
    operator: str
    accumulated: LayerErrorStats | None
    local: LayerErrorStats | None
    seen_through: str | None
    note: str | None
    limit_db: float | None = None
    probed: LayerErrorStats | None = None
    misfit: str | None = None
    floor_db: float | None = None

    @property
    def passed(self) -> bool | None:
        """Whether the layer itself is within tolerance; None where nothing of it can be seen, or proven."""
        if self.misfit:
            return False
        judged = self.local or self.accumulated or self.probed
        if judged is None:
            return None
        within = self._within(judged) and (self.probed is None or self._within(self.probed))
        return None if within and self.lost is not None else within

    @property
    def lost(self) -> float | None:
        """What torch's own rounding keeps of the layer alone, in dB, where that is too little to prove anything."""
        return self._lost(self.local or self.accumulated)

    @property
    def loses(self) -> float | None:
        """The same of the layer in the whole network."""
        return self._lost(self.accumulated)

    def _unproven(self) -> str | None:
        return None if self.lost is None else f"nothing can be proven of it: {kept(self.lost)}"

    def _lost(self, tally: LayerErrorStats | None) -> float | None:
        if tally is None or self.floor_db is None or not mostly_lost(tally.rounding_db, self.floor_db):
            return None
        return min(tally.rounding_db)

    @property
    def evidence(self) -> LayerErrorStats | None:
        """What shows best that the layer is not right: its own error, that on stirred values, or the accumulated."""
        for tally in (self.local, self.probed):
            if tally is not None and not self._within(tally):
                return tally
        return self.accumulated

    def shown(self) -> str:
        """Say what was found and what was allowed."""
        if self.misfit:
            return self.misfit
        tally = self.evidence
        if tally is None:
            return "nothing of it can be seen"
        if self.limit_db is not None and not tally.nonfinite:
            return f"SQNR {tally.sqnr_db:.1f} dB, {self.limit_db:.0f} dB needed"
        return tally.evidence() + (", on values that the inputs do not reach" if tally is self.probed else "")

    @property
    def inherits(self) -> bool:
        """Whether it is right with right inputs, but off in the whole artifact."""
        return bool(self.local and self.passed and self.accumulated and not self._within(self.accumulated))

    def _within(self, tally: LayerErrorStats) -> bool:
        if tally.nonfinite:
            return False
        if self.limit_db is not None:
            return tally.sqnr_db >= self.limit_db
        return tally.excess <= 1.0

    def record(self) -> LayerVerdict:
        """Return the verdict as documents hold it."""
        whole, alone, probed = self.accumulated, self.local, self.probed
        return LayerVerdict(
            layer_id=self.layer_id,
            operator=self.operator,
            sqnr_db=whole.sqnr_db if whole else None,
            max_abs_error=whole.max_abs_error if whole else None,
            local_sqnr_db=alone.sqnr_db if alone else None,
            local_max_abs_error=alone.max_abs_error if alone else None,
            local_allowed=alone.allowed if alone else None,
            excess=whole.excess if whole else None,
            local_excess=alone.excess if alone else None,
            max_steps=whole.max_steps if whole else None,
            local_max_steps=alone.max_steps if alone else None,
            probe_max_abs_error=probed.max_abs_error if probed else None,
            probe_allowed=probed.allowed if probed else None,
            exact=bool(whole and whole.max_abs_error == 0.0),
            nonfinite=(whole.nonfinite if whole else 0) + (alone.nonfinite if alone else 0),
            passed=self.passed,
            evidence=self.shown() if self.passed is False else None,
            inherits=self.inherits,
            seen_through=self.seen_through,
            note=self.misfit or self.note or self._unproven(),
            local_judged_error=alone.judged_error if alone else None,
        )


@dataclass(frozen=True, slots=True)
class ArtifactLayers:
    """Every layer of one artifact, in execution order.

    Attributes:
        marked_difference: Greatest difference of the outputs between the final file and the one whose inner tensors
            were kept; a runtime may fuse differently then.
        problem: Why nothing could be judged.
    """

    artifact: Artifact | None
    name: str
    rows: tuple[LayerRow, ...] = ()
    marked_difference: float | None = None
    problem: str | None = None

    @property
    def passed(self) -> bool | None:
        """Whether every layer that can be seen is within tolerance, and one can; None where there was a problem."""
        return None if self.problem else self.judged > 0 and self.first_diverging_layer is None

    @property
    def judged(self) -> int:
        """How many layers were judged, each at itself or at the one that it is seen through."""
        return sum(row.passed is not None for row in self.rows)

    @property
    def first_diverging_layer(self) -> str | None:
        """Return the first layer beyond tolerance: NaN and infinity first, then local error, then accumulated."""
        row = self._first()
        return None if row is None else row.layer_id

    def _first(self) -> LayerRow | None:
        misfit = [row for row in self.rows if row.misfit]
        makes_nan = [row for row in self.rows if row.local and row.local.nonfinite]
        has_nan = [row for row in self.rows if row.accumulated and row.accumulated.nonfinite]
        wrong = [row for row in self.rows if row.passed is False]
        drifted = [row for row in self.rows if row.accumulated is not None and not row._within(row.accumulated)]
        for group in (misfit, makes_nan, wrong, has_nan, drifted):
            if group:
                return group[0]
        return None

    @property
    def precision_lost_at(self) -> LayerRow | None:
        """The first layer of which torch's own rounding keeps too little, run from the input on; None without any."""
        return next((row for row in self.rows if row.loses is not None), None)

    @property
    def smallest_weight_change(self) -> float | None:
        """Relative change of a layer's weights that is beyond tolerance, at the median of the layers with weights.

        All weights of a layer times 1 + d change what it gives by d of it, its bias aside; so d is what is allowed over
        the greatest value, in the case where that is least.
        """
        changes = []
        for row in self.rows:
            if row.operator in WEIGHTED and row.limit_db is None:
                found = [t.detectable for t in (row.local, row.probed) if t is not None and t.detectable is not None]
                changes += [min(found)] if found else []
        return statistics.median(changes) if changes else None

    def sentence(self) -> str:
        """Say in one sentence what was found."""
        if self.problem:
            return f"{self.name}: layers not judged: {self.problem}"
        row = self._first()
        if not self.judged:
            return f"{self.name}: no layer was judged: nothing can be seen of any of its {len(self.rows)}"
        lost = [item for item in self.rows if item.lost is not None and item.passed is None]
        if row is None and lost:
            return (
                f"{self.name}: all layers within tolerance but {len(lost)} of which nothing can be proven, first"
                f" {lost[0].layer_id}: {kept(lost[0].lost)}"
            )
        if row is None:
            return f"{self.name}: all layers within tolerance"
        if row.misfit:
            return f"{self.name}: first beyond tolerance at {row.layer_id}: {row.misfit}"
        later = [
            item for item in self.rows[self.rows.index(row) + 1 :] if item.passed is False and item.seen_through is None
        ]
        others = [item for item in later if item.layer_id != row.seen_through]
        if row.passed is not False:
            tail = "; no layer is wrong on its own, the error accumulates"
        elif others:
            tail = f"; {len(others)} more wrong on their own, next {others[0].layer_id}"
        else:
            tail = "; layers after it only inherit"
        through = f" (seen through {row.seen_through})" if row.seen_through else ""
        return f"{self.name}: first beyond tolerance at {row.layer_id}{through} ({row.shown()}){tail}"


def with_probe(row: LayerRow, other: LayerRow | None) -> LayerRow:
    """Return *row* with the verdict on values of its own that *other* holds, where there is one."""
    if other is None:
        return row
    return replace(row, probed=other.probed, seen_through=row.seen_through or other.seen_through)


def kept(decibels: float | None) -> str:
    """Say what torch's own rounding keeps of a layer."""
    if decibels is None or not math.isfinite(decibels):
        return "torch's own rounding keeps nothing of it"
    return f"torch's own rounding keeps {decibels:.1f} dB of it"


def check_map(layers: LayerMap, expected: Collection[str]) -> None:
    """Hold an artifact's layer map to the captured graph: what it leaves out would not be judged.

    Args:
        layers: The map.
        expected: The ids of all layers of the captured graph.

    Raises:
        BundleError: A layer is missing, or stands twice, or is none of the graph's, or is seen through nothing.
    """
    named = Counter(layer.layer_id for layer in layers.layers)
    wrong = [
        *(f"it lacks {layer_id}" for layer_id in expected if layer_id not in named),
        *(f"it names {layer_id}, which the graph does not have" for layer_id in named if layer_id not in expected),
        *(f"{layer_id} stands there {times} times" for layer_id, times in named.items() if times > 1),
    ]
    at = {layer.layer_id: layer.seen_through for layer in layers.layers}
    for layer_id, through in () if wrong else at.items():
        passed = {layer_id}
        while through is not None and through in at and through not in passed:
            passed.add(through)
            through = at[through]
        wrong += [] if through is None else [f"{layer_id} is seen through {through}, where nothing can be seen"]
    if not expected or wrong:
        told = f": {wrong[0]}" if wrong else ""
        raise BundleError(
            f"its layer map is not that of the reference graph, {len(named)} layers for {len(expected)}{told};"
            " export it again"
        )


@dataclass(slots=True)
class LayerJudge:
    """Collects one artifact's layers case by case.

    Attributes:
        layers: The artifact's map.
        tolerance: Its multiple is applied at every layer.
        limit_db: The SQNR that each layer must reach instead; None where the multiple holds.
        adjusted: Layers whose weights were rounded on data, so that they may make up for the layers before them.
        integral: Layers of positions, classes and masks, of which shares are judged.
    """

    layers: LayerMap
    tolerance: Tolerance
    limit_db: float | None = None
    adjusted: frozenset[str] = frozenset()
    integral: frozenset[str] = frozenset()
    whole: dict[str, LayerErrorStats] = field(default_factory=dict)
    alone: dict[str, LayerErrorStats] = field(default_factory=dict)
    probed: dict[str, LayerErrorStats] = field(default_factory=dict)
    misfits: dict[str, str] = field(default_factory=dict)

    def add(
        self,
        tallies: dict[str, LayerErrorStats],
        layer_id: str,
        value: NumberArray,
        reference: NDArray[np.float64],
        rounding: Rounded,
        cut_off: NDArray[np.bool_] | None = None,
        inherited: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count one case of one layer that the artifact has a tensor for, in one of the three tallies."""
        if layer_id not in tallies:
            storage = self.tolerance.storage
            roundoff = UNIT_ROUNDOFF.get(storage.values, 0.0)
            on_grid = storage.weight_bits is not None
            multiple = self.tolerance.multiple * (ADDED_UP if on_grid and tallies is self.whole else 1.0)
            tallies[layer_id] = LayerErrorStats(multiple, roundoff, on_grid, least=self._least(layer_id))
        tallies[layer_id].add(value, reference, rounding, cut_off, inherited)

    def concede(self, tallies: dict[str, LayerErrorStats], number: int, moved: Mapping[str, Moved]) -> None:
        """Allow every layer what values moved by half a unit in the last place cost it in one case; see ``Moved``."""
        for layer_id, tally in tallies.items():
            cost = moved[layer_id]
            if layer_id in self.integral:  # of shares; a tenth of the elements otherwise is as good as all of them
                tally.concede(number, cost.share, float(cost.share > OTHERWISE_INTEGERS))
            elif tally.least:  # a sigmoid's absolute error says nothing of what torch keeps of a small one
                tally.concede(number, cost.greatest, 0.0)
            else:
                tally.concede(number, cost.greatest, float(np.mean(cost.noise)) if cost.noise.size else 0.0)

    def _least(self, layer_id: str) -> float:
        """What a sigmoid, a view of it and what it is seen through may be off by before the multiple; else 0."""
        if not self.tolerance.sigmoid_error:
            return 0.0
        held = {layer_id, *viewed(self.layers.layers).get(layer_id, ())}
        seen_here = (item for item in self.layers.layers if item.layer_id in held or item.seen_through == layer_id)
        return self.tolerance.sigmoid_error if any(item.operator == "sigmoid" for item in seen_here) else 0.0

    def rows(self) -> tuple[LayerRow, ...]:
        """Return one row per layer of the captured graph."""
        for layer_id in self.adjusted & self.alone.keys():
            self.alone[layer_id].upstream = self.whole.get(layer_id)
        rows = []
        for layer in self.layers.layers:
            holder = self.layers.resolved(layer.layer_id)
            at = holder.layer_id if holder is not None else layer.layer_id
            rows.append(
                LayerRow(
                    layer.layer_id,
                    layer.operator,
                    self.whole.get(at),
                    self.alone.get(at),
                    None if at == layer.layer_id else at,
                    layer.absent or layer.note,
                    self.limit_db,
                    self.probed.get(at),
                    self.misfits.get(at),
                    self.tolerance.floor_db if self.tolerance.weight_bits is None else None,
                )
            )
        return tuple(rows)
