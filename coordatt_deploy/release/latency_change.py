"""The latency of two files against each other: measured in one run, or from two documents of the same machine.

    regression      significant, and at least 1 + min_effect times as slow
    improvement     significant, and at least 1 + min_effect times as fast
    no difference   the whole interval lies within a factor of 1 + min_effect
    inconclusive    everything else

Significant is a p-value below 5 % after Holm's correction for the number of pairs: of five equal files hardly one is
called slower. The claim of no difference needs no correction: each holds for its own file at 95 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.plurals import counted
from coordatt_deploy.profile import compare
from coordatt_deploy.profile.compare import Outcome, PairComparison, compare_profiles
from coordatt_deploy.profile.paired import Paired, holm, seconds_needed
from coordatt_deploy.profile.pairs import PairMeasurement, PairSettings, measure_pair
from coordatt_deploy.profile.result import Profile
from coordatt_deploy.profile.turns import OpenFile, percents
from coordatt_deploy.progress import Stages
from coordatt_deploy.release.diff_result import Change, ChangeKind, DiffRow, LatencyChange
from coordatt_deploy.runtimes import runtime

SIGNIFICANCE: Final = 0.05
MEDIANS: Final = 0.01  # p below which the medians are believed to say something else than the figure compared
LONGEST: Final = 24 * 3600.0  # what would take longer is not promised


def decided(
    ratio: float, ci95: tuple[float, float], p: float, min_effect: float, significance: float = SIGNIFICANCE
) -> Change:
    """Return what B is against A.

    Args:
        ratio: B / A.
        ci95: Its interval.
        p: Corrected for the number of pairs.
        min_effect: The least change that counts: 0.03 for three per cent.
        significance: That p must be below.
    """
    if p < significance and max(ratio, 1 / ratio) >= 1 + min_effect:
        return Change.REGRESSION if ratio > 1 else Change.IMPROVEMENT
    within = 1 / (1 + min_effect) <= ci95[0] and ci95[1] <= 1 + min_effect
    return Change.NO_DIFFERENCE if within else Change.INCONCLUSIVE


# In one run ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Timed:
    """A pair that was timed, or why it was not.

    Attributes:
        path: Of the file in B.
        measured: None where it was not timed.
        verdict: Where it was not timed.
        change: Likewise.
        reason: Likewise.
    """

    path: str
    measured: PairMeasurement | None = None
    verdict: Change = Change.NOT_COMPARED
    change: str = ""
    reason: str = ""


def measured_changes(
    a: Bundle,
    b: Bundle,
    pairs: Sequence[tuple[Artifact, Artifact]],
    settings: PairSettings,
    stages: Stages,
    *,
    measure_identical: bool = False,
) -> tuple[DiffRow, ...]:
    """Time each pair on this machine, and return its row.

    Each bundle feeds its own first golden input. Equal bytes are not timed: they are the same file.

    Args:
        a: The bundle before.
        b: The bundle after.
        pairs: Their files.
        settings: How long, and what counts.
        stages: Shows the progress.
        measure_identical: Time equal bytes as well.

    Raises:
        BundleError: A file cannot be opened.
    """
    inputs = [{name: values[0] for name, values in bundle.golden("inputs").items()} for bundle in (a, b)]
    shapes = [{name: value.shape for name, value in side.items()} for side in inputs]
    timed = []
    for old, new in pairs:
        reason = _not_here(old, new, a, b)
        if old.sha256 == new.sha256 and not measure_identical:
            timed.append(Timed(new.path, verdict=Change.NO_DIFFERENCE, change="same bytes", reason="not timed"))
        elif shapes[0] != shapes[1]:
            text = f"inputs of other shapes: {_shapes(shapes[0])}, then {_shapes(shapes[1])}"
            timed.append(Timed(new.path, reason=text))
        elif reason is not None:
            timed.append(Timed(new.path, reason=reason))
        else:
            before, after = OpenFile(a.path(old.path), old, inputs[0]), OpenFile(b.path(new.path), new, inputs[1])
            name = f"{new.path}, {counted(settings.threads, 'thread')}, at most {settings.min_seconds:g} s"
            with stages.stage(name, 100) as step:
                timed.append(Timed(new.path, measure_pair(before, after, settings, percents(step))))
    return _rows(timed, settings)


def _not_here(old: Artifact, new: Artifact, a: Bundle, b: Bundle) -> str | None:
    """Why a pair cannot be timed on this machine; None where it can."""
    try:
        for artifact, bundle in ((old, a), (new, b)):
            with runtime(artifact.format).open_artifact(bundle.path(artifact.path), artifact) as runner:
                if runner.origin is not Origin.MEASURED:
                    return f"{runner.origin} with {runner.runtime}: its time says nothing of a device"
    except MissingDependencyError as error:
        return str(error)
    return None


def _shapes(shapes: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())


def _rows(timed: Sequence[Timed], settings: PairSettings) -> tuple[DiffRow, ...]:
    known = [item for item in timed if item.measured is not None and item.measured.known is not None]
    found = [item.measured.known.difference.p for item in known if item.measured and item.measured.known]
    corrected = {item.path: p for item, p in zip(known, holm(found), strict=True)}
    return tuple(_row(item, corrected.get(item.path), settings) for item in timed)


def _row(timed: Timed, p: float | None, settings: PairSettings) -> DiffRow:
    measured, subject = timed.measured, counted(settings.threads, "thread")
    if measured is None:
        return DiffRow(
            ChangeKind.LATENCY, timed.path, subject, None, None, timed.verdict, change=timed.change, reason=timed.reason
        )  # fmt: skip
    texts, figures = (_ms(measured.a_ms), _ms(measured.b_ms)), (measured.a_ms, measured.b_ms)
    known = measured.known
    if known is None or p is None:
        reason = "other processes disturbed too many samples to compare the rest; measure on a quieter machine"
        evidence = LatencyChange(None, None, None, batches=measured.batches, seconds=measured.seconds)
        return DiffRow(
            ChangeKind.LATENCY, timed.path, subject, *texts, Change.INCONCLUSIVE, *figures, reason=reason,
            latency=evidence,
        )  # fmt: skip
    difference, control = known.difference, known.control
    verdict = decided(difference.ratio, difference.ci95, p, settings.min_effect)
    reasons = [f"A against itself {_percent(control.ratio, control.ci95)}"]
    needed = None
    if _medians_disagree(known, verdict, settings.min_effect):
        verdict = Change.INCONCLUSIVE
        medians = known.medians.ratio if known.medians is not None else math.nan
        reasons.append(f"its medians differ by {medians - 1:+.1%}: it jumps between states")
    elif verdict is Change.INCONCLUSIVE:
        needed = seconds_needed(known, measured.seconds, settings.min_effect)
        reasons.append(_decides(needed, known, settings.min_effect))
    evidence = LatencyChange(
        ratio=difference.ratio, ci95=difference.ci95, p=p, control_ratio=control.ratio, control_ci95=control.ci95,
        floor=known.floor, figure=known.figure, batches=measured.batches, seconds=measured.seconds,
        seconds_needed=needed, differences=known.differences, controls=known.controls,
    )  # fmt: skip
    return DiffRow(
        ChangeKind.LATENCY, timed.path, subject, *texts, verdict, *figures,
        _percent(difference.ratio, difference.ci95), "; ".join(reasons), latency=evidence,
    )  # fmt: skip


def _ms(value: float) -> str | None:
    return f"{value:.3g} ms" if math.isfinite(value) else None


def _medians_disagree(known: Paired, verdict: Change, min_effect: float) -> bool:
    """Whether what is called no slower has medians that are slower, beyond doubt."""
    medians = known.medians
    if medians is None or verdict not in (Change.NO_DIFFERENCE, Change.IMPROVEMENT):
        return False
    return medians.value > 0 and medians.p_beyond(math.log1p(min_effect)) < MEDIANS


def _decides(needed: float, known: Paired, min_effect: float) -> str:
    if needed <= LONGEST:
        return f"about {_seconds(needed)} s decide: --min-seconds {_seconds(needed)}"
    if known.floor > known.control.error:
        return "copies of A differ more than their scatter explains, which no time mends: a quieter machine decides"
    return f"it lies at the edge of {min_effect:.1%}, where no time decides: another --min-effect does"


def _seconds(value: float) -> int:
    """Rounded up to two digits."""
    unit: int = 10 ** max(0, math.floor(math.log10(max(value, 1))) - 1)
    return math.ceil(value / unit) * unit


def _percent(ratio: float, ci95: tuple[float, float]) -> str:
    """``+5.0 % (+4.1 … +5.9)``."""
    low, high = (100 * (end - 1) for end in ci95)
    return f"{100 * (ratio - 1):+.1f} % ({low:+.1f} … {high:+.1f})"


# From two documents ----------------------------------------------------------------------------------------------


def document_changes(a: Profile, b: Profile, min_effect: float) -> tuple[DiffRow, ...]:
    """Compare the latencies of two documents of the same machine, inputs and threads; those that one lacks as well.

    Two runs minutes apart have no control: what a busy machine does between them is allowed for by a floor
    (``profile.compare``), so that small changes mostly stay inconclusive.
    """
    compared = compare_profiles(a, b, margin=min_effect)
    found = [item.comparison.p for item in compared if item.comparison.p is not None]
    corrected = iter(holm(found))
    medians = [{(item.path, item.latency.threads): item.latency.median_ms for item in side.results} for side in (a, b)]
    rows = [
        _compared(item, None if item.comparison.p is None else next(corrected), medians, min_effect)
        for item in compared
    ]  # fmt: skip
    both = {(item.path, item.threads) for item in compared}
    for key in dict.fromkeys([*medians[0], *medians[1]]):
        if key not in both:
            sides = [name for name, side in zip("AB", medians, strict=True) if key in side]
            reason = f"measured in {sides[0]} only" if len(sides) == 1 else "evaluated, not measured"
            subject = counted(key[1], "thread")
            rows.append(DiffRow(ChangeKind.LATENCY, key[0], subject, None, None, Change.NOT_COMPARED, reason=reason))
    return tuple(rows)


def _compared(
    item: PairComparison, p: float | None, medians: Sequence[dict[tuple[str, int], float]], min_effect: float
) -> DiffRow:
    found, key = item.comparison, (item.path, item.threads)
    figures = medians[0][key], medians[1][key]
    texts, subject = (_ms(figures[0]), _ms(figures[1])), counted(item.threads, "thread")
    evidence = LatencyChange(found.ratio, found.ci95, p)
    if found.ratio is None or found.ci95 is None or p is None:
        verdict, change = Change.INCONCLUSIVE, ""
    else:
        # Without a control what is assumed of the machine may be wrong, so that more is asked for.
        verdict = decided(found.ratio, found.ci95, p, min_effect, compare.SIGNIFICANCE)
        change = _percent(found.ratio, found.ci95)
    reason = ""
    if verdict is Change.NO_DIFFERENCE and found.outcome is Outcome.INCONCLUSIVE:
        verdict, reason = Change.INCONCLUSIVE, found.reason
    elif verdict is Change.INCONCLUSIVE:
        reason = "two runs apart do not tell; both files in one run do: coordatt-deploy diff BUNDLE BUNDLE"
    return DiffRow(
        ChangeKind.LATENCY, item.path, subject, *texts, verdict, *figures, change, reason, latency=evidence
    )  # fmt: skip
