"""What two files differ by that needs no measuring: size, operators, what accelerators take, and parity.

* Size is exact: growth beyond what is allowed is a regression.
* Operators are information: what more of them cost, latency and size say.
* Of an accelerator more partitions, or more operators left to the CPU, are a regression: each is a way to the CPU and
  back on a phone, which no latency on this machine shows.
* Parity: a file that passed and fails is a regression. How near it comes to the reference is information.
"""

from collections.abc import Iterator, Mapping

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.errors import DeployError
from coordatt_deploy.parity.result import ArtifactVerdict
from coordatt_deploy.release.diff_result import Change, ChangeKind, DiffRow
from coordatt_deploy.release.figures import BundleFigures, size_text
from coordatt_deploy.runtimes.delegate import Delegate


def size_change(a: BundleFigures, b: BundleFigures, old: Artifact, new: Artifact, allowed: float) -> DiffRow:
    """Compare sizes; *allowed* is the growth that is no regression, 0.01 for one per cent."""
    before, after = a.size(old).value or 0.0, b.size(new).value or 0.0
    growth = after / before - 1 if before else 0.0
    verdict = Change.NO_DIFFERENCE
    if abs(growth) > allowed:
        verdict = Change.REGRESSION if growth > 0 else Change.IMPROVEMENT
    change = "same" if after == before else f"{after - before:+,.0f} B ({growth:+.1%})"
    reason = f"more than the {100 * allowed:.3g} % that it may grow by"
    return DiffRow(
        ChangeKind.SIZE, new.path, "", size_text(before), size_text(after), verdict, before, after, change,
        reason if verdict is Change.REGRESSION else "",
    )  # fmt: skip


def operator_change(a: BundleFigures, b: BundleFigures, old: Artifact, new: Artifact) -> DiffRow:
    """Compare how many there are of each operator."""
    try:
        before, after = a.inspected(old.path).operators, b.inspected(new.path).operators
    except DeployError as error:
        return _unread(ChangeKind.OPERATORS, new, error)
    totals = sum(before.values()), sum(after.values())
    change = _counts(before, after)
    verdict = Change.CHANGED if change else Change.NO_DIFFERENCE
    return DiffRow(
        ChangeKind.OPERATORS, new.path, "", str(totals[0]), str(totals[1]), verdict,
        float(totals[0]), float(totals[1]), change or "same",
    )  # fmt: skip


def _counts(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    """``+2 Transpose, -1 Conv``: the greatest change first."""
    changes = {name: after.get(name, 0) - before.get(name, 0) for name in {*before, *after}}
    ordered = sorted(
        ((name, count) for name, count in changes.items() if count), key=lambda item: (-abs(item[1]), item)
    )
    return ", ".join(f"{count:+d} {name}" for name, count in ordered)


def partition_changes(a: BundleFigures, b: BundleFigures, old: Artifact, new: Artifact) -> Iterator[DiffRow]:
    """Compare what each accelerator takes; nothing of a format of whose accelerators nothing is known."""
    try:
        before = {item.name: item for item in a.inspected(old.path).delegates}
        after = {item.name: item for item in b.inspected(new.path).delegates}
    except DeployError as error:
        yield _unread(ChangeKind.PARTITIONS, new, error)
        return
    for name in before:
        if name in after:
            yield _delegate(name, before[name], after[name], new.path)


def _delegate(name: str, old: Delegate, new: Delegate, path: str) -> DiffRow:
    left = [item.operators - item.taken for item in (old, new)]
    pieces = [item.partitions for item in (old, new)]
    worse = left[1] > left[0] or (None not in pieces and (pieces[1] or 0) > (pieces[0] or 0))
    better = left[1] < left[0] or (None not in pieces and (pieces[1] or 0) < (pieces[0] or 0))
    verdict = Change.REGRESSION if worse else Change.IMPROVEMENT if better else Change.NO_DIFFERENCE
    new_to_cpu = _counts(_rejected(old), _rejected(new))
    reason = "more changes between the accelerator and the CPU" if worse else ""
    return DiffRow(
        ChangeKind.PARTITIONS, path, name, _taken(old), _taken(new), verdict,
        None if pieces[0] is None else float(pieces[0]), None if pieces[1] is None else float(pieces[1]),
        f"left to the CPU: {new_to_cpu}" if new_to_cpu else "", reason,
    )  # fmt: skip


def _rejected(item: Delegate) -> dict[str, int]:
    counts: dict[str, int] = {}
    for operator, count, _ in item.rejected:
        counts[operator] = counts.get(operator, 0) + count
    return counts


def _taken(item: Delegate) -> str:
    pieces = "" if item.partitions is None else f" in {item.partitions}"
    return f"{item.taken} of {item.operators}{pieces}"


def parity_change(a: BundleFigures, b: BundleFigures, old: Artifact, new: Artifact) -> DiffRow:
    """Compare the verdicts that ``parity`` left on the bytes that both files have now."""
    verdicts = a.verdicts.get(old.path), b.verdicts.get(new.path)
    passed = [None if item is None else item.passed for item in verdicts]
    texts = _parity_text(verdicts[0]), _parity_text(verdicts[1])
    decibels = _decibels(verdicts[0]), _decibels(verdicts[1])

    def row(verdict: Change, reason: str = "") -> DiffRow:
        return DiffRow(ChangeKind.PARITY, new.path, "", *texts, verdict, *decibels, reason=reason)

    unknown = [
        f"coordatt-deploy parity {figures.bundle.root}" for figures, item in ((a, passed[0]), (b, passed[1]))
        if item is None
    ]  # fmt: skip
    if len(unknown) == 2:
        return row(Change.NOT_COMPARED, f"neither was judged: {' and '.join(unknown)}")
    if passed[1] is False and passed[0] is not False:
        why = [item.problem or item.summary or "" for item in verdicts[1:] if item is not None]
        return row(Change.REGRESSION, (why[0] or "beyond its tolerance") + ("; A was not judged" if unknown else ""))
    if unknown:
        return row(Change.INCONCLUSIVE, f"only one of the two was judged; {unknown[0]} decides")
    if passed[0] is passed[1]:
        return row(Change.NO_DIFFERENCE if passed[0] else Change.CHANGED, "" if passed[0] else "both fail")
    return row(Change.IMPROVEMENT)


def _decibels(verdict: ArtifactVerdict | None) -> float | None:
    return None if verdict is None or verdict.exact else verdict.sqnr_db


def _parity_text(verdict: ArtifactVerdict | None) -> str | None:
    if verdict is None or verdict.passed is None:
        return None
    found = "equal" if verdict.exact else f"{verdict.sqnr_db:.1f} dB" if verdict.sqnr_db is not None else ""
    return ", ".join(filter(None, ("passed" if verdict.passed else "failed", found)))


def _unread(kind: ChangeKind, new: Artifact, error: DeployError) -> DiffRow:
    return DiffRow(kind, new.path, "", None, None, Change.NOT_COMPARED, reason=str(error))
