"""What one layer's values were off by, over the cases it was judged on. NumPy only.

Float, with u the unit roundoff of the storage type, is judged by the greatest error:

    allowed(case) = multiple * max(rounding(case), median of rounding over the cases, u * max |reference|)

where rounding is torch's own error in the artifact's precision at that layer; where a file is beyond that, also what
values moved by half a unit in the last place cost in that case (``moved_values``). The last term is a floor for layers
that torch happens to round exactly (a ReLU, a concatenation). For a sigmoid it is the tolerance's ``sigmoid_error`` at
least, however small the values are here.

Where weights are integers each error is a matter of luck, and the sum of them is not. So the root of the mean square
error is judged, channel by channel, since a wrong weight is wrong in one of them:

    allowed(channel) = multiple * sqrt(max(noise(channel), floor))
    floor            = max(median of noise over the channels, step^2 / 12, (u * max |reference|)^2)

where noise is the mean square error of torch rounding to int8 itself. A range that leaves out the rarest values cuts
those off; while they are few they do not count.

Weights that were rounded on data, and the biases with them, make up for what the layers before round off. Fed with the
reference such a layer is off by as much, the other way. So the shift of a whole channel counts as far as the channel is
shifted in the whole artifact too, and the layer is allowed CARRIED times what all layers up to it cost torch, if that
is more. In trained networks they cost 1.3 to 6 times what the layer alone does, in random ones up to 120 times.
"""

import math
import statistics
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.metrics import decibels_by_case, sqnr_db_of_energies, without_shared_infinities

# How many of a layer's elements may lie beyond the grid: a share, or a few in small layers. Calibration leaves out a
# hundred-thousandth at either end; images that it did not see were measured to have up to a thousandth, 12 elements, in
# a layer that is fed with the reference.
CUT_OFF: Final = 5e-4
FEW: Final = 16
CARRIED: Final = 1.5


class Rounded(Protocol):
    """What rounding alone costs at one layer in one case (``reference_rounding.RoundingError``)."""

    @property
    def greatest(self) -> float:
        """Greatest error of all elements."""

    @property
    def noise(self) -> NDArray[np.float64]:
        """Mean square error of each channel."""

    @property
    def step(self) -> float:
        """Of the integer grid; 0 in float."""


class Moved(Rounded, Protocol):
    """What values moved by half a unit in the last place cost at one layer in one case (``moved_values``)."""

    @property
    def share(self) -> float:
        """Of the elements that are not the reference's."""


@dataclass(frozen=True, slots=True)
class CaseError:
    """One layer in one case.

    Attributes:
        error: Greatest.
        rounding: Torch's own, greatest.
        floor: u * max |reference|, or what is allowed in any case.
        scale: max |reference|.
        signal: Mean square of the reference.
        noise: Mean square of torch's own rounding.
        moved: What values moved by half a unit in the last place cost there, greatest; 0 where that was not asked.
    """

    error: float
    rounding: float
    floor: float
    scale: float
    signal: float = 0.0
    noise: float = 0.0
    moved: float = 0.0


class _Channels(NamedTuple):
    """Mean squares of one case by channel: of the error, of it without what the grid cuts off, and so on.

    Attributes:
        shift: Mean of the error itself, sign and all, without what the grid cuts off.
    """

    error: NDArray[np.float64]
    within_grid: NDArray[np.float64]
    shift: NDArray[np.float64]
    rounding: NDArray[np.float64]
    signal: NDArray[np.float64]


@dataclass(slots=True)
class LayerErrorStats:
    """Error of one layer over the cases.

    Attributes:
        multiple: Of the tolerance.
        unit_roundoff: Of the storage type; 0 for integers.
        least: What the layer may be off by before the multiple in any case.
        on_grid: Judge the noise of each channel, not the greatest error.
        upstream: What the layer was off by in the whole artifact, where its weights may make up for the layers before.
        nonfinite: Values that are NaN or infinite.
        step: Of the layer's integer grid; 0 in float.
        elements: Compared, over all cases.
        cut_off: How many of them the grid does not reach.
    """

    multiple: float
    unit_roundoff: float
    on_grid: bool = False
    upstream: "LayerErrorStats | None" = None
    signal: float = 0.0
    noise: float = 0.0
    nonfinite: int = 0
    elements: int = 0
    step: float = 0.0
    cases: list[CaseError] = field(default_factory=list)
    channels: list[_Channels] = field(default_factory=list)
    cut_off: int = 0
    least: float = 0.0

    def add(
        self,
        value: NumberArray,
        reference: NDArray[np.float64],
        rounding: Rounded,
        cut_off: NDArray[np.bool_] | None = None,
        inherited: NDArray[np.bool_] | None = None,
    ) -> None:
        """Count one case.

        Args:
            value: Of the artifact.
            reference: What it should be.
            rounding: What torch's own rounding costs there.
            cut_off: Elements that lie at an end of the artifact's grid, with the reference beyond.
            inherited: Elements made of such ones; they don't count, however many there are.
        """
        value, reference = without_shared_infinities(value, reference)
        bad = int(np.count_nonzero(~np.isfinite(value)))
        signed = np.asarray(value, np.float64) - reference
        error = np.abs(signed)
        self.nonfinite += bad
        self.signal += float(np.sum(np.square(reference)))
        self.noise += math.inf if bad else float(np.sum(np.square(error)))
        worst = math.inf if bad else (float(error.max()) if error.size else 0.0)
        scale = float(np.max(np.abs(reference))) if reference.size else 0.0
        self.step = max(self.step, rounding.step)
        power = float(np.mean(np.square(reference))) if reference.size else 0.0
        own = float(np.mean(rounding.noise)) if rounding.noise.size else 0.0
        self.cases.append(
            CaseError(worst, rounding.greatest, max(self.unit_roundoff * scale, self.least), scale, power, own)
        )
        self.elements += reference.size
        if self.on_grid and not bad:
            if inherited is not None:
                signed = np.where(inherited, 0.0, signed)
            everything = within = by_channel(np.square(signed))
            if cut_off is not None and cut_off.any():
                signed = np.where(cut_off, 0.0, signed)
                within = by_channel(np.square(signed))
                self.cut_off += int(np.count_nonzero(cut_off))
            signal = by_channel(np.square(reference))
            self.channels.append(_Channels(everything, within, by_channel(signed), rounding.noise, signal))

    def concede(self, number: int, moved: float, noise: float) -> None:
        """Allow in a case what values moved by half a unit in the last place cost, if that is more; in float.

        What they cost is then also what torch keeps of the layer in that case: where it is nearly all, nothing is
        proven.

        Args:
            number: Of the case.
            moved: What they cost there: the greatest error, or the share of the elements that are otherwise.
            noise: Mean square.
        """
        if math.isfinite(moved):  # else torch's own result would not be finite either, and it was
            case = self.cases[number]
            self.cases[number] = replace(case, moved=moved, noise=max(case.noise, noise))

    @property
    def max_abs_error(self) -> float:
        """Greatest over all cases."""
        return max((case.error for case in self.cases), default=0.0)

    @property
    def excess(self) -> float:
        """Error over its allowance, where that is most; above 1 is beyond tolerance."""
        return self._worst_channel()[0] if self.on_grid else self._worst()[0]

    @property
    def allowed(self) -> float:
        """What was allowed there: the greatest error of that case, or the noise of that channel."""
        return self._worst_channel()[1] if self.on_grid else self._worst()[1]

    @property
    def judged_error(self) -> float:
        """What is held against that: the greatest error of that case, or the root mean square error of that channel."""
        return self._worst_channel()[3] if self.on_grid else self._worst()[2]

    @property
    def allowances(self) -> list[float]:
        """What was allowed in each case, in float."""
        return [allowed for _, allowed in self._allowed()]

    @property
    def detectable(self) -> float | None:
        """Smallest relative change of the value that would be beyond tolerance; None where it is 0."""
        if self.on_grid:
            if not self.channels:
                return None
            _, _, allowed, signal = self._noise()
            return min((float(a / s) for a, s in zip(allowed, np.sqrt(signal), strict=True) if s > 0), default=None)
        shares = [allowed / case.scale for case, allowed in self._allowed() if case.scale > 0]
        return min(shares, default=None)

    @property
    def sqnr_db(self) -> float:
        """Signal to noise over all cases, in dB; infinite where nothing differs."""
        if not self.cases or not math.isfinite(self.noise):
            return math.nan
        return sqnr_db_of_energies(self.signal, self.noise)

    @property
    def rounding_db(self) -> list[float]:
        """What torch's own rounding keeps of the layer in each case, in dB; see ``metrics.decibels_by_case``."""
        return decibels_by_case([case.signal for case in self.cases], [case.noise for case in self.cases])

    @property
    def max_steps(self) -> float | None:
        """Greatest error in steps of the layer's grid; None in float."""
        return self.max_abs_error / self.step if self.on_grid and self.step > 0 else None

    def in_units_of_rounding(self, squares: NDArray[np.float64]) -> tuple[float, float]:
        """Return the greatest of mean squares by channel, and what is allowed in that channel, over rounding's cost."""
        _, noise, allowed, _ = self._noise()
        channel = int(np.argmax(np.sqrt(squares) / allowed))
        return float(math.sqrt(squares[channel]) / noise[channel]), float(allowed[channel] / noise[channel])

    def evidence(self) -> str:
        """Say what was found and what was allowed."""
        if self.nonfinite:
            return f"{self.nonfinite} values are NaN or infinite"
        if not self.on_grid:
            return f"error {self.judged_error:.3g}, {self.allowed:.3g} allowed, SQNR {self.sqnr_db:.1f} dB"
        channel = self._worst_channel()[2]
        error, noise, allowed, _ = (values[channel] for values in self._noise())
        found, most = (math.sqrt(error) / noise, allowed / noise) if noise > 0 else (math.inf, 0.0)
        times = f"channel {channel} is off by {found:.1f} times what rounding to integers costs, {most:.3g} allowed"
        steps = "" if self.max_steps is None else f", worst error {self.max_steps:.1f} steps"
        return f"{times}; SQNR {self.sqnr_db:.1f} dB{steps}"

    def _allowed(self) -> list[tuple[CaseError, float]]:
        # The median over the cases is a floor: a case may round to nearly nothing by luck.
        usual = statistics.median(case.rounding for case in self.cases) if self.cases else 0.0
        allowed = [self.multiple * max(case.rounding, usual, case.floor, case.moved) for case in self.cases]
        # where torch itself overflows, no tolerance can be derived
        return [(case, value if math.isfinite(value) else 0.0) for case, value in zip(self.cases, allowed, strict=True)]

    def _worst(self) -> tuple[float, float, float]:
        """Return of the worst case: excess, what was allowed, the error."""
        worst = (0.0, 0.0, 0.0)
        for case, allowed in self._allowed():
            excess = 0.0 if case.error == 0.0 else (case.error / allowed if allowed > 0 else math.inf)
            worst = max(worst, (excess, allowed, case.error))
        return worst

    def _noise(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return of each channel: mean square error; what rounding costs; what is allowed; mean square signal.

        Cost and allowance are roots of mean squares.
        """
        everything, within, shift, rounding, signal = (
            np.mean(values, axis=0) for values in zip(*self.channels, strict=True)
        )
        error = within if self.cut_off <= max(FEW, CUT_OFF * self.elements) else everything
        scale = max(case.scale for case in self.cases)
        floor = max(float(np.median(rounding)), self.step**2 / 12, (self.unit_roundoff * scale) ** 2)
        noise = np.sqrt(np.maximum(rounding, floor))
        allowed = self.multiple * noise
        if self.upstream is not None and self.upstream.channels:
            _, carried, _, _ = self.upstream._noise()
            allowed = np.maximum(allowed, CARRIED * carried)
            of_whole = np.mean([case.shift for case in self.upstream.channels], axis=0)
            counted = np.clip(np.sign(shift) * of_whole, 0.0, np.abs(shift))
            error = np.maximum(error - np.square(shift) + np.square(counted), 0.0)
        return error, noise, allowed, signal

    def _worst_channel(self) -> tuple[float, float, int, float]:
        """Return of the worst channel: excess, what was allowed, its number, its root mean square error."""
        if not self.channels:
            excess_of_nan = math.inf if self.nonfinite else 0.0
            return excess_of_nan, 0.0, 0, excess_of_nan
        error, _, allowed, _ = self._noise()
        with np.errstate(divide="ignore", invalid="ignore"):
            excess = np.where(error > 0, np.sqrt(error) / allowed, 0.0)
        channel = int(np.argmax(excess))
        return float(excess[channel]), float(allowed[channel]), channel, float(math.sqrt(error[channel]))


def by_channel(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean of each channel (axis 1); of all values where there is no such axis."""
    axes = tuple(axis for axis in range(values.ndim) if axis != 1 or values.ndim < 2)
    return np.atleast_1d(np.mean(values, axis=axes))
