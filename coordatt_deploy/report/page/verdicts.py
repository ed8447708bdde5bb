"""What the page says of parity: what verdicts rest on, errors of outputs, agreement of every layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from coordatt_deploy.parity.layers import LayerVerdict
from coordatt_deploy.parity.reports import ParityRun, Standing
from coordatt_deploy.parity.result import ArtifactVerdict, ParityResult
from coordatt_deploy.parity.tolerances import Tolerance
from coordatt_deploy.plurals import counted, of_total
from coordatt_deploy.report.page.depth_plot import DepthPoint, depth_plot
from coordatt_deploy.report.page.figures import (
    Figure,
    Row,
    Table,
    artifact_label,
    decibel,
    file_name,
    finite,
    level,
    number,
    sentence,
)
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
class Depth:
    """Agreement along the depth of the network.

    Attributes:
        figures: One per file whose layers were judged.
        graphs: One per torch graph between capture and files.
        problem: Why there is none; None where that is not known.
    """

    figures: tuple[Figure, ...]
    graphs: tuple[Figure, ...] = ()
    problem: str | None = None

    @property
    def graphs_title(self) -> str:
        """Above the plots of the torch graphs."""
        return f"{counted(len(self.graphs), 'torch graph')} between the captured network and the files"


@dataclass(frozen=True, slots=True)
class Outputs:
    """Errors at the outputs; the notes say what was allowed and why."""

    table: Table
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Judged:
    """The layers of one file, or of one torch graph between capture and files; those of integers by their noise."""

    path: str
    label: str
    layers: tuple[LayerVerdict, ...]
    first_diverging_layer: str | None
    on_grid: bool = False


BADGES: Final = {
    True: Badge("good", "✓", "passed"),
    False: Badge("bad", "✗", "failed"),
    None: Badge("odd", "–", "not run"),
}
UNJUDGED: Final = Badge("odd", "–", "not judged")
UNPROVEN: Final = Badge("bad", "✗", "cannot be proven")
NOTHING: Final = "–"
NOT_WRITTEN: Final = Badge("bad", "✗", "not written")
OUT_OF_DATE: Final = Badge("odd", "!", "out of date")


def evidence(parity: ParityResult, standings: Sequence[Standing] = ()) -> Table:
    """Return what each verdict rests on: what ran the file, on which inputs, what was found and what was allowed."""
    known = {item.path: item for item in standings}
    rows = []
    for item in parity.artifacts:
        standing = known.get(item.path)
        run = None if standing is None else standing.run
        error = item.max_abs_error if item.judged_error is None else item.judged_error
        least = item.tolerance.min_sqnr_db if item.tolerance else None
        cells = (
            number(error), number(item.allowed), decibel(item.sqnr_db, exact=item.exact),
            NOTHING if least is None else f"{least:g} dB", number(item.top1_agreement, ".1%"),
        )  # fmt: skip
        names = artifact_label(item), item.runtime or NOTHING, WORDS[item.origin] if item.origin else "not run"
        note = verdict_sentence(item) if run is None else f"{sentence(covered_words(run))}. {verdict_sentence(item)}"
        rows.append(Row(names, cells, bad=item.passed is False, note=note))
    heads = ("file", "runtime", "how"), ("worst error", "allowed", "SQNR", "needed", "top-1 agreement")
    return Table("Evidence", *heads, tuple(rows), last="judged")


def covered_words(run: ParityRun) -> str:
    """``outputs and 131 of 136 layers, on 26 golden inputs, 2026-11-27``: what a run covered, where and when."""
    layers = "outputs"
    if run.covered.layers:
        layers += f" and {of_total(run.covered.layers, run.covered.layers_of, 'layer')}"
    kind = {GOLDEN: "golden input", HELD_OUT: "image"}.get(run.inputs.source, "input")
    inputs = counted(run.inputs.count, kind)
    if run.inputs.source == HELD_OUT:
        inputs += " set aside at calibration"
    elif run.inputs.source not in (GOLDEN, "unknown"):
        inputs += f" of {run.inputs.source}"
    version = run.tool_versions.get("coordatt-deploy")
    parts = [
        layers,
        f"on {inputs}",
        "" if run.place == HERE else f"on {run.place}",
        run.variant,
        (run.time or "").partition("T")[0],
        f"coordatt-deploy {version}" if version else "",
    ]
    return ", ".join(filter(None, parts))


def verdict_sentence(verdict: ArtifactVerdict) -> str:
    """Say what was found of a file."""
    found = (verdict.summary or verdict.problem or "").removeprefix(f"{verdict.path}: ")
    problem = verdict.problem
    if problem and verdict.passed is not True and found not in problem:
        found = f"{problem}; {found}" if found else problem
    found = found or ("outputs within tolerance" if verdict.passed else "")
    return sentence(found) + ("." if found and not found.endswith(".") else "")


def depth(parity: ParityResult) -> Depth:
    """Plot the agreement of every file along the depth of the network, each on the scale of its own layers."""
    judged = _judged(parity)
    if not judged:
        return Depth((), problem=next((item.layers_problem for item in parity.artifacts if item.layers_problem), None))
    graphs = {item.name for item in parity.graphs}
    figures: tuple[list[Figure], list[Figure]] = ([], [])
    for position, item in enumerate(judged, start=1):
        points = [_point(row) for row in item.layers]
        label, first = item.label, item.first_diverging_layer
        words = _depth_words(points, first)
        plot = depth_plot(position, f"SQNR along the depth of {label}", words, points, first)
        figures[item.path in graphs].append(Figure(label, plot, words))
    return Depth(tuple(figures[False]), tuple(figures[True]))


def _judged(parity: ParityResult) -> list[Judged]:
    """The files, then the torch graphs between capture and files; those that have layers."""
    graphs = [Judged(item.name, item.name, item.layers, item.first_diverging_layer) for item in parity.graphs]
    files = [
        Judged(
            item.path,
            artifact_label(item),
            item.layers,
            item.first_diverging_layer,
            on_grid=item.tolerance is not None and item.tolerance.weight_bits is not None,
        )
        for item in parity.artifacts
    ]
    return [item for item in (*files, *graphs) if item.layers]


def _point(row: LayerVerdict) -> DepthPoint:
    def decibels(value: float | None, error: float | None) -> float | None:
        if finite(value) is not None:
            return value
        if finite(error) is None:
            return math.nan if row.nonfinite else None
        return math.inf if error == 0.0 else math.nan

    whole = decibels(row.sqnr_db, row.max_abs_error)
    alone = decibels(row.local_sqnr_db, row.local_max_abs_error)
    judged = row.local_max_abs_error if row.local_judged_error is None else row.local_judged_error
    share = row.local_excess
    if share is None and judged is not None and row.local_allowed:
        share = judged / row.local_allowed
    return DepthPoint(
        row.layer_id, whole, alone, row.passed, finite(row.excess), finite(share), row.seen_through or None
    )


def _depth_words(points: Sequence[DepthPoint], first: str | None) -> str:
    seen = sum(point.whole_db is not None for point in points)
    text = f"{of_total(seen, len(points), 'layer')} seen"
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
            rows.append(Row((artifact_label(item), output.name), cells, bad=output.passed is False))
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
        tables.append(Table(item.label, *heads, tuple(_layer(row) for row in item.layers), last="note"))
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
