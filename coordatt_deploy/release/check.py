"""``check``: hold every file of a bundle to its budgets.

A figure with an interval keeps a budget where all of the interval does, and exceeds it where none does; between is
undecided, as is a figure that is not known, and one that was not measured on a CPU. What undecided counts as is said by
the file of budgets.
"""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle, open_bundle
from coordatt_deploy.errors import BundleError, UsageError, nearest
from coordatt_deploy.profile.compare import Design, compare_latencies
from coordatt_deploy.profile.latency import Latency
from coordatt_deploy.profile.reports import LatencyRun
from coordatt_deploy.profile.result import yardstick
from coordatt_deploy.release.budgets import BASELINE, Budget, BudgetKind, Budgets, Undecided, read_budgets, selectors
from coordatt_deploy.release.figures import BundleFigures, Figure
from coordatt_deploy.release.result import BudgetResult, BudgetVerdict, CheckResult

LEAST: Final = frozenset({BudgetKind.PARITY, BudgetKind.ACCURACY})  # whose limits are the least that is asked for


def check(bundle: Bundle, path: Path) -> CheckResult:
    """Hold a bundle to the budgets in a file.

    Raises:
        UsageError: The file is none of budgets, names a file that the bundle does not have, or its baseline is none.
        BundleError: A document of the bundle is damaged.
    """
    budgets = read_budgets(path)
    _check_paths(bundle, budgets)
    baseline = None if budgets.baseline is None else BundleFigures(_baseline(budgets))
    own = BundleFigures(bundle)
    results = tuple(row for budget in budgets.budgets for row in _held(own, budget, budgets, baseline))
    failing = {BudgetVerdict.EXCEEDED}
    if budgets.undecided is Undecided.FAIL:
        failing.add(BudgetVerdict.UNDECIDED)
    passed = not any(row.verdict in failing for row in results)
    return CheckResult(str(bundle.root), str(path), budgets.undecided, passed, results)


def _check_paths(bundle: Bundle, budgets: Budgets) -> None:
    paths = [item.path for item in bundle.manifest.artifacts]
    for budget in budgets.budgets:
        for name in filter(None, (budget.selector, budget.limit.of)):
            if "/" in name and name not in paths:
                raise UsageError(f"{budgets.path}: {budget.name}: the bundle has no {name!r}; {nearest(name, paths)}")


def _baseline(budgets: Budgets) -> Bundle:
    try:
        return open_bundle(budgets.baseline or Path())
    except BundleError as error:
        raise UsageError(f"{budgets.path}: the baseline cannot be used: {error}") from None


def _held(
    own: BundleFigures, budget: Budget, budgets: Budgets, baseline: BundleFigures | None
) -> Iterator[BudgetResult]:
    """Hold every file that a budget is about, and no narrower one, to it."""
    rivals = {item.selector for item in budgets.budgets if (item.kind, item.operator) == (budget.kind, budget.operator)}
    named = [item for item in own.bundle.manifest.artifacts if budget.selector in selectors(item)]
    for artifact in named:
        narrowest = next(name for name in selectors(artifact) if name in rivals)
        if narrowest == budget.selector:
            for figure in own.figures(budget, artifact):
                yield _judged(own, budget, artifact, figure, baseline)
    if not named:
        refused = [item.reason for item in own.bundle.manifest.refused if item.path == budget.selector]
        why = refused[0] if refused else f"the bundle has no file of {budget.selector}"
        yield _row(budget, None, Figure(None), None, BudgetVerdict.UNDECIDED, why)


def _judged(
    own: BundleFigures, budget: Budget, artifact: Artifact, figure: Figure, baseline: BundleFigures | None
) -> BudgetResult:
    of = budget.limit.of
    if of is None:
        return _against(budget, artifact, figure, budget.limit.value)
    if figure.missing is not None:
        return _row(budget, artifact, figure, None, BudgetVerdict.UNDECIDED, figure.missing)
    other, where = _other(own, baseline, artifact, of)
    if other is None:
        return _row(budget, artifact, figure, None, BudgetVerdict.UNDECIDED, where)
    holder = baseline if of == BASELINE and baseline is not None else own
    plain = replace(budget, limit=replace(budget.limit, of=None))
    theirs = next((item for item in holder.figures(plain, other) if item.place == figure.place), None)
    if theirs is None or theirs.value is None:
        reason = f"of {where}: {theirs.missing if theirs and theirs.missing else 'the figure is not known there'}"
        return _row(budget, artifact, figure, None, BudgetVerdict.UNDECIDED, reason)
    allowed = budget.limit.value * theirs.value
    if budget.kind is not BudgetKind.LATENCY:
        if doubt := theirs.doubt:
            return _row(budget, artifact, figure, allowed, BudgetVerdict.UNDECIDED, f"of {where}: {doubt}")
        return _against(budget, artifact, figure, allowed)
    for doubt, place in ((figure.doubt, artifact.path), (theirs.doubt, where)):
        if doubt is not None:
            return _row(budget, artifact, figure, allowed, BudgetVerdict.UNDECIDED, f"{place}: {doubt}")
    ratio, problem = _ratio(own, holder, artifact, other)
    if ratio is None:
        return _row(budget, artifact, figure, allowed, BudgetVerdict.UNDECIDED, problem)
    text = f"{ratio[0]:.3f} to {ratio[1]:.3f} × {where}"
    verdict = _verdict(ratio, budget.limit.value, least=False)
    found = replace(figure, text=f"{figure.text}, {text}")
    reason = _undecided(budget.kind, text) if verdict is BudgetVerdict.UNDECIDED else ""
    return _row(budget, artifact, found, allowed, verdict, reason)


def _other(
    own: BundleFigures, baseline: BundleFigures | None, artifact: Artifact, of: str
) -> tuple[Artifact | None, str]:
    """Return the file that a limit is relative to and what it is called, or None and why there is none."""
    if of != BASELINE:
        found = [item for item in own.bundle.manifest.artifacts if of in selectors(item)]
        if len(found) == 1:
            return found[0], found[0].path
        return (
            None,
            f"{of} is {len(found)} files of the bundle, not one" if found else f"the bundle has no file of {of}",
        )
    role = selectors(artifact)[1]
    others = () if baseline is None else baseline.bundle.manifest.artifacts
    same = next((item for item in others if selectors(item)[1] == role), None)
    return same, f"the baseline's {same.path}" if same else f"the baseline has no file of {role}"


def _ratio(
    own: BundleFigures, holder: BundleFigures, artifact: Artifact, other: Artifact
) -> tuple[tuple[float, float] | None, str]:
    """Return the 95 % interval of a latency over another's, or None and why it is not known."""
    mine, theirs = own.latency(artifact.path), holder.latency(other.path)
    if mine is None or theirs is None:
        return None, "not both were timed"
    if mine.result.threads != theirs.result.threads:
        return None, f"timed with {mine.result.threads} and {theirs.result.threads} threads"
    if holder is own and mine.time == theirs.time:
        compared = compare_latencies(_samples(theirs), _samples(mine), design=Design.SAME_RUN)
        return compared.ci95, compared.reason
    here, there = own.session_of(mine), holder.session_of(theirs)
    if here is None or there is None or not here.host.same_machine(there.host):
        return None, "timed on unlike machines; time both on one, best in one run: coordatt-deploy diff"
    threads = mine.result.threads
    before, after = (
        next((yardstick(item) for item in session.yardsticks if item.threads == threads), None)
        for session in (there, here)
    )
    pair = None if before is None or after is None else (before, after)
    compared = compare_latencies(_samples(theirs), _samples(mine), design=Design.TWO_RUNS, yardsticks=pair)
    return compared.ci95, compared.reason


def _samples(run: LatencyRun) -> Latency:
    return run.result.latency().latency


def _against(budget: Budget, artifact: Artifact, figure: Figure, allowed: float) -> BudgetResult:
    if figure.value is None or figure.missing is not None:
        return _row(budget, artifact, figure, allowed, BudgetVerdict.UNDECIDED, figure.missing or "not known")
    if figure.doubt is not None:
        return _row(budget, artifact, figure, allowed, BudgetVerdict.UNDECIDED, figure.doubt)
    least = budget.kind in LEAST and not budget.limit.is_drop
    interval = figure.interval or (figure.value, figure.value)
    verdict = _verdict(interval, allowed, least=least)
    shown = f"{interval[0]:.4g} to {interval[1]:.4g}" if figure.interval else figure.text
    reason = _undecided(budget.kind, shown) if verdict is BudgetVerdict.UNDECIDED else ""
    return _row(budget, artifact, figure, allowed, verdict, reason)


def _verdict(interval: tuple[float, float], allowed: float, *, least: bool) -> BudgetVerdict:
    low, high = interval
    if math.isnan(low) or math.isnan(high):
        return BudgetVerdict.EXCEEDED
    if least:
        low, high, allowed = -high, -low, -allowed
    if high <= allowed:
        return BudgetVerdict.WITHIN
    return BudgetVerdict.EXCEEDED if low > allowed else BudgetVerdict.UNDECIDED


def _undecided(kind: BudgetKind, interval: str) -> str:
    more = {
        BudgetKind.LATENCY: "measure longer, with profile --min-seconds, on a quieter machine",
        BudgetKind.ACCURACY: "evaluate on more images",
    }.get(kind, "")
    return "; ".join(filter(None, (f"the limit lies inside the interval, {interval}", more)))


def _row(
    budget: Budget, artifact: Artifact | None, figure: Figure, allowed: float | None, verdict: BudgetVerdict, why: str
) -> BudgetResult:
    return BudgetResult(
        kind=budget.kind,
        budget=budget.name,
        line=budget.line,
        path=None if artifact is None else artifact.path,
        place=figure.place,
        limit=budget.limit.text,
        found=figure.text or None,
        value=figure.value,
        allowed=allowed,
        verdict=verdict,
        reason=why,
    )
