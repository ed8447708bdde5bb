"""What the page says of parity: a card per file, errors of outputs, agreement of every layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.formats import facts as facts_of
from coordatt_deploy.manifest import Manifest, RefusedFile
from coordatt_deploy.parity.layers import LayerVerdict
from coordatt_deploy.parity.reports import ParityRun, Standing
from coordatt_deploy.parity.result import ArtifactVerdict, ParityResult
from coordatt_deploy.parity.tolerances import Tolerance
from coordatt_deploy.profile.result import LatencyRecord, ProfileResult
from coordatt_deploy.report.page.figures import (
    Figure,
    Row,
    Table,
    decibel,
    file_name,
    finite,
    level,
    megabytes,
    number,
    sentence,
)
from coordatt_deploy.report.page.headline import State, state_of
from coordatt_deploy.report.page.plots import DepthPoint, depth_plot
from coordatt_deploy.run_records import GOLDEN, HELD_OUT, HERE

WORDS: Final = {
    "measured": "measured on the real runtime",
    "emulated": "run under emulation",
    "evaluated": "evaluated without the runtime",
}


@dataclass(frozen=True, slots=True)
class Badge:
    """A verdict in one word: its colour, a mark for those who do not see colours, the word."""

    kind: str
    mark: str
    word: str


@dataclass(frozen=True, slots=True)
class Card:
    """The verdict on one file, with the reason, warnings and figures."""

    file: str
    badge: Badge
    sentence: str
    warnings: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Depth:
    """Agreement along the depth of the network.

    Attributes:
        figures: One per file or graph whose layers were judged.
        problem: Why there is none; None where that is not known.
    """

    figures: tuple[Figure, ...]
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Outputs:
    """Errors at the outputs; the notes say what was allowed and why."""

    table: Table
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """The layers of one file, or of one torch graph between capture and files; those of integers by their noise."""

    path: str
    layers: tuple[LayerVerdict, ...]
    first_diverging_layer: str | None
    on_grid: bool = False


BADGES: Final = {
    True: Badge("good", "✓", "passed"),
    False: Badge("bad", "✗", "failed"),
    None: Badge("odd", "–", "not run"),
}
UNPROVEN: Final = Badge("bad", "✗", "cannot be proven")
NOT_WRITTEN: Final = Badge("bad", "✗", "not written")
OUT_OF_DATE: Final = Badge("odd", "!", "out of date")


def cards(
    manifest: Manifest,
    parity: ParityResult | None,
    profile: ProfileResult | None,
    standings: Sequence[Standing] = (),
) -> tuple[Card, ...]:
    """Return a card for each file of the manifest, those that could not be written last."""
    # Of several numbers of threads the first one counts.
    timed = {item.path: item for item in reversed(profile.results)} if profile else {}
    verdicts = {item.path: item for item in parity.artifacts} if parity else {}
    known = {item.path: item for item in standings}
    written = (
        _card(item, verdicts.get(item.path), timed.get(item.path), known.get(item.path)) for item in manifest.artifacts
    )
    return (*written, *map(_refused_card, manifest.refused))


def _refused_card(file: RefusedFile) -> Card:
    facts = []
    for item in file.operators:
        at = f" at {item.line}" if item.line else ""
        facts.append((item.operator, f"in {item.layer}{at}: {item.reason}; {item.remedy}"))
    text = f"{facts_of(file.format).title} cannot have what is listed." if facts else f"{sentence(file.reason)}."
    return Card(file_name(file.path), NOT_WRITTEN, text, (), tuple(facts))


def _card(
    artifact: Artifact, verdict: ArtifactVerdict | None, timed: LatencyRecord | None, standing: Standing | None
) -> Card:
    badge = UNPROVEN if verdict and not verdict.provable else BADGES[verdict.passed if verdict else None]
    text = "Parity was not checked." if verdict is None else _sentence(verdict)
    facts = [("size", megabytes(artifact.bytes)), ("precision", artifact.recipe or artifact.precision.value)]
    if verdict is not None:
        facts += _evidence(verdict)
        if verdict.sha256 != artifact.sha256:
            text += " This verdict is about an older file of the same name: run parity again."
            badge = OUT_OF_DATE
    facts += [] if standing is None else _runs(standing)
    if state_of(artifact, verdict, standing) is State.FAILED:
        badge = BADGES[False]
    if timed is not None:
        facts.append(("median latency", f"{timed.median_ms:.3g} ms ({timed.verdict})"))
    warnings = dict.fromkeys(item.warning for item in (verdict, timed) if item is not None and item.warning)
    said = tuple(f"{sentence(warning)}." for warning in warnings if warning)
    return Card(file_name(artifact.path), badge, text, said, tuple(facts))


def _runs(standing: Standing) -> list[tuple[str, str]]:
    """Say what each run of the file covered, and what the further ones found."""
    facts = [] if standing.run is None else [("judged", covered_words(standing.run))]
    for run in standing.further:
        found = BADGES[run.result.passed]
        facts.append(("also judged", f"{found.mark} {found.word}: {covered_words(run)}"))
    return facts


def covered_words(run: ParityRun) -> str:
    """``outputs and 131 of 136 layers, on 26 golden inputs, 2026-11-27``: what a run covered, where and when."""
    layers = f"outputs and {run.covered.layers} of {run.covered.layers_of} layers" if run.covered.layers else "outputs"
    kind = {GOLDEN: "golden inputs", HELD_OUT: "images set aside at calibration"}.get(
        run.inputs.source, "inputs" if run.inputs.source == "unknown" else f"inputs of {run.inputs.source}"
    )
    version = run.tool_versions.get("coordatt-deploy")
    parts = [
        layers,
        f"on {run.inputs.count} {kind}",
        "" if run.place == HERE else f"on {run.place}",
        run.variant,
        (run.time or "").partition("T")[0],
        f"coordatt-deploy {version}" if version else "",
    ]
    return ", ".join(filter(None, parts))


def _evidence(verdict: ArtifactVerdict) -> list[tuple[str, str]]:
    origin = WORDS[verdict.origin] if verdict.origin else "not run"
    facts = [("runtime", f"{verdict.runtime or '–'} ({origin})")]
    error = verdict.max_abs_error if verdict.judged_error is None else verdict.judged_error
    if finite(error) is not None:
        bound = "" if finite(verdict.allowed) is None else f", {verdict.allowed:.3g} allowed"
        facts.append(("worst error", f"{error:.3g}{bound}"))
        least = verdict.tolerance.min_sqnr_db if verdict.tolerance else None
        needed = "" if least is None else f", {least:g} dB needed"
        facts.append(("SQNR", decibel(verdict.sqnr_db, exact=verdict.exact) + needed))
    if finite(verdict.top1_agreement) is not None:
        facts.append(("top-1 agreement", f"{verdict.top1_agreement:.1%}"))
    return facts


def _sentence(verdict: ArtifactVerdict) -> str:
    found = (verdict.summary or verdict.problem or "").removeprefix(f"{verdict.path}: ")
    problem = verdict.problem
    if problem and verdict.passed is not True and found not in problem:
        found = f"{problem}; {found}" if found else problem
    found = found or ("outputs within tolerance" if verdict.passed else "")
    return sentence(found) + ("." if found and not found.endswith(".") else "")


def depth(parity: ParityResult) -> Depth:
    """Plot every file's agreement along the depth of the network, all on one scale."""
    judged = _judged(parity)
    if not judged:
        return Depth((), next((item.layers_problem for item in parity.artifacts if item.layers_problem), None))
    points = [[_point(row) for row in item.layers] for item in judged]
    # Alone a layer may be off in the last digit of float64 only; where all files lie would be squeezed together.
    seen = [db for of_file in points for point in of_file if (db := finite(point.whole_db)) is not None]
    top = max([20.0, *seen]) + 15.0
    figures = []
    for position, (item, of_file) in enumerate(zip(judged, points, strict=True), start=1):
        label, first = file_name(item.path), item.first_diverging_layer
        words = _depth_words(of_file, first)
        plot = depth_plot(position, f"SQNR along the depth of {label}", words, of_file, first, top)
        figures.append(Figure(label, plot, words))
    return Depth(tuple(figures))


def _judged(parity: ParityResult) -> list[Judged]:
    """The torch graphs between capture and files, then the files; those that have layers."""
    graphs = [Judged(item.name, item.layers, item.first_diverging_layer) for item in parity.graphs]
    files = [
        Judged(
            item.path,
            item.layers,
            item.first_diverging_layer,
            on_grid=item.tolerance is not None and item.tolerance.weight_bits is not None,
        )
        for item in parity.artifacts
    ]
    return [item for item in (*graphs, *files) if item.layers]


def _point(row: LayerVerdict) -> DepthPoint:
    def decibels(value: float | None, error: float | None) -> float | None:
        if finite(value) is not None:
            return value
        if finite(error) is None:
            return math.nan if row.nonfinite else None
        return math.inf if error == 0.0 else math.nan

    whole = decibels(row.sqnr_db, row.max_abs_error)
    alone = decibels(row.local_sqnr_db, row.local_max_abs_error)
    return DepthPoint(row.layer_id, whole, alone, row.passed)


def _depth_words(points: Sequence[DepthPoint], first: str | None) -> str:
    seen = sum(point.whole_db is not None for point in points)
    text = f"{seen} of {len(points)} layers seen"
    levels = [(db, point.layer) for point in points if (db := finite(point.whole_db)) is not None]
    if levels:
        lowest, layer = min(levels, key=lambda pair: pair[0])
        text += f", lowest {lowest:.0f} dB at {layer}"
    return f"{text}; " + (f"first beyond tolerance: {first}." if first else "all within tolerance.")


def outputs(parity: ParityResult) -> Outputs:
    """Return the errors of every output, with what was allowed and why."""
    rows = []
    for item in parity.artifacts:
        for output in item.outputs:
            beyond = f"{output.mismatched:,} of {output.elements:,}"
            cells = (
                number(output.error_of_worst_case), number(output.allowed), decibel(output.sqnr_db, exact=False),
                number(output.cosine, ".9g"), number(output.top1_agreement, ".1%"),
                "–" if finite(output.allowed) is None else beyond,
            )  # fmt: skip
            rows.append(Row((file_name(item.path), output.name), cells, bad=output.passed is False))
    drift = [
        f"{file_name(item.path)}: keeping inner tensors for the layer table changed the outputs by up to"
        f" {item.marked_difference:.2g}; verdicts on outputs come from the unmarked file."
        for item in parity.artifacts
        if finite(item.marked_difference)
    ]
    heads = ("file", "output"), ("worst error", "allowed", "SQNR", "cosine", "top-1 agreement", "beyond")
    return Outputs(Table("Output errors", *heads, tuple(rows)), (*_allowances(parity), *drift))


def _allowances(parity: ParityResult) -> list[str]:
    """Say each tolerance once, with the kinds of files that it was applied to."""
    kinds: dict[str, dict[str, None]] = {}
    for item in parity.artifacts:
        if item.tolerance is not None:
            text = f"{_asked(item.tolerance)}. Why: {item.tolerance.reason}."
            kinds.setdefault(text, {})[f"{item.format} {item.recipe or item.precision}"] = None
    return [f"Allowed for {', '.join(names)}: {text}" for text, names in kinds.items()]


def _asked(tolerance: Tolerance) -> str:
    asked = []
    if tolerance.weight_bits is not None:
        asked.append(
            f"at every layer, in each channel {tolerance.multiple:g} times the noise of torch rounding weights to"
            f" {tolerance.weight_bits} bits and values to {tolerance.basis} on the same inputs"
        )
    elif tolerance.min_sqnr_db is None:
        asked.append(
            f"{tolerance.multiple:g} times the rounding error of torch in {tolerance.basis} on the same inputs"
        )
    if tolerance.min_sqnr_db is not None:
        asked.append(f"an SQNR of at least {tolerance.min_sqnr_db:g} dB")
    if tolerance.min_top1_agreement is not None:
        asked.append(f"the reference's class in {tolerance.min_top1_agreement:.0%} of the images")
    return "; ".join(asked)


def layer_tables(parity: ParityResult) -> tuple[Table, ...]:
    """Return a table of every layer for each file and graph; labels name the file."""
    tables = []
    for item in _judged(parity):
        judged = "local noise of the channel" if item.on_grid else "local error"
        heads = ("layer",), ("SQNR dB", "greatest error", "local SQNR dB", judged, "allowed")
        tables.append(Table(file_name(item.path), *heads, tuple(_layer(row) for row in item.layers), last="note"))
    return tuple(tables)


def _layer(row: LayerVerdict) -> Row:
    note = row.note or ""
    if row.seen_through:
        note = f"seen through {row.seen_through}" + (f"; {note}" if note != "fused" else "")
    if row.inherits:
        note = f"inherits; {note}".strip("; ")
    point = _point(row)
    judged = row.local_max_abs_error if row.local_judged_error is None else row.local_judged_error
    cells = (
        level(point.whole_db), number(row.max_abs_error), level(point.alone_db), number(judged),
        number(row.local_allowed),
    )  # fmt: skip
    return Row((row.layer_id,), cells, bad=row.passed is False, note=note)
