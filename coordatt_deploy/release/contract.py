"""What an app relies on beside the numbers: a change of it breaks the app, however good the file is.

Preprocessing and labels are the app's own code or a copy of the manifest's; names, shapes, types and layouts of inputs
and outputs stand in its calls; and a file that needs a newer runtime does not open on phones that have the old one.
Scale and zero point of an integer tensor change with each calibration: they are told, since an app should read them
from the file, and fail where it has them in its code.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, TensorSpec
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.release.diff_result import Change, ChangeKind, DiffRow

SHOWN: Final = 3  # labels that a row names


def contract_of_model(a: Manifest, b: Manifest) -> Iterator[DiffRow]:
    """Yield a row for preprocessing, for labels, and for each input and output of the model."""
    yield _preprocessing(a.model, b.model)
    yield _labels(a.model.labels, b.model.labels)
    yield from _tensors("input", a.inputs, b.inputs, None)
    yield from _tensors("output", a.outputs, b.outputs, None)


def contract_of_file(a: Artifact, b: Artifact) -> Iterator[DiffRow]:
    """Yield a row for what differs in the inputs, outputs and needs of two files; none where nothing does."""
    rows = [*_tensors("input", a.inputs, b.inputs, b.path), *_tensors("output", a.outputs, b.outputs, b.path)]
    yield from (row for row in rows if row.verdict is not Change.NO_DIFFERENCE)
    if a.app != b.app:
        text = "what an app gives and gets is described otherwise"
        yield DiffRow(ChangeKind.CONTRACT, b.path, "app interface", None, None, Change.REGRESSION, reason=text)
    if a.needs is not None and b.needs is not None:
        yield from _needs(a.needs.least, b.needs.least, b.path)


def _preprocessing(a: ModelSpec, b: ModelSpec) -> DiffRow:
    names = [field.name for field in dataclasses.fields(a.preprocessing)]
    pairs = {name: (getattr(a.preprocessing, name), getattr(b.preprocessing, name)) for name in names}
    pairs["pixels"] = (a.pixels, b.pixels)
    changed = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
    before, after = (", ".join(f"{name} {pair[side]}" for name, pair in changed.items()) for side in (0, 1))
    return _row("preprocessing", before, after, None, "an app must prepare images otherwise")


def _labels(a: tuple[str, ...] | None, b: tuple[str, ...] | None) -> DiffRow:
    if a == b:
        return _row("labels", "", "", None, "")
    if a is None or b is None:
        return _row("labels", _count(a), _count(b), None, "the classes are named on one side only")
    places = [place for place in range(max(len(a), len(b))) if a[place : place + 1] != b[place : place + 1]]
    first = [(_at(a, place), _at(b, place)) for place in places[:SHOWN]]
    more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
    before, after = (", ".join(pair[side] for pair in first) + more for side in (0, 1))
    return _row("labels", before, after, None, "an app names classes otherwise")


def _count(labels: Sequence[str] | None) -> str:
    return "none" if labels is None else str(len(labels))


def _at(labels: Sequence[str], place: int) -> str:
    return f"{place}: {labels[place]}" if place < len(labels) else f"{place}: –"


def _tensors(
    what: str, before: Sequence[TensorSpec], after: Sequence[TensorSpec], path: str | None
) -> Iterator[DiffRow]:
    old, new = {item.name: item for item in before}, {item.name: item for item in after}
    for name in dict.fromkeys([*old, *new]):
        mine, theirs = old.get(name), new.get(name)
        subject = f"{what} {name}"
        if mine is None or theirs is None:
            reason = "is gone" if theirs is None else "is new"
            yield _row(subject, _text(mine), _text(theirs), path, f"{subject} {reason}")
            continue
        row = _row(subject, _text(mine), _text(theirs), path, "an app must feed or read it otherwise")
        grids = (mine.scale, mine.zero_point), (theirs.scale, theirs.zero_point)
        if row.verdict is Change.NO_DIFFERENCE and grids[0] != grids[1]:
            texts = _grid(mine), _grid(theirs)
            reason = "an app that reads them from the file is safe, one that has them in its code is not"
            row = DiffRow(ChangeKind.CONTRACT, path, f"{subject}, grid", *texts, Change.CHANGED, reason=reason)
        yield row
    if [*old] != [*new] and set(old) == set(new):
        order = (", ".join(old), ", ".join(new))
        yield _row(f"order of {what}s", *order, path, "an app that takes them by position takes the wrong one")


def _grid(spec: TensorSpec) -> str:
    return "no grid" if spec.scale is None else f"scale {spec.scale:.6g}, zero point {spec.zero_point}"


def _text(spec: TensorSpec | None) -> str:
    if spec is None:
        return "–"
    sizes = "x".join("?" if size is None else str(size) for size in spec.shape)
    return f"{sizes} {spec.dtype} {spec.layout}"


def _needs(before: Mapping[str, str], after: Mapping[str, str], path: str) -> Iterator[DiffRow]:
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if old == new or old is None or new is None:
            continue
        raised = _version(new) > _version(old)
        reason = "runtimes older than that no longer open it" if raised else ""
        verdict = Change.REGRESSION if raised else Change.IMPROVEMENT
        yield DiffRow(ChangeKind.CONTRACT, path, f"least {name}", old, new, verdict, reason=reason)


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdecimal())


def _row(subject: str, before: str, after: str, path: str | None, reason: str) -> DiffRow:
    if before == after:
        return DiffRow(ChangeKind.CONTRACT, path, subject, before or None, after or None, Change.NO_DIFFERENCE)
    return DiffRow(ChangeKind.CONTRACT, path, subject, before, after, Change.REGRESSION, reason=reason)
