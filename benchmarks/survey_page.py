"""docs/models.md, made from the document of the survey."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from benchmarks.survey_results import ArtifactResult, NetworkResult, Survey, Verdict
from coordatt_deploy.formats import FORMATS, Format, Precision

PAGE: Final = Path(__file__).parents[1] / "docs" / "models.md"
COLUMNS: Final = tuple((kind, precision) for kind in Format for precision in FORMATS[kind].precisions)
LONGEST: Final = 300  # letters of a reason; the whole of it stands in the document


def page(survey: Survey) -> str:
    """Return the survey for people, in Markdown."""
    verdicts = [item.verdict for item in survey.results]
    passed = verdicts.count(Verdict.PASSED)
    lines = [
        "# Models",
        "",
        "What became of published networks that this project does not know. `make survey` takes each the way of a",
        "user's: `export` to every format, `parity` of its outputs and of every layer. The files are also run by",
        "ONNX Runtime and LiteRT **directly**, on a random image, and held against torch in float64. Weights are",
        "random, with BatchNorm statistics settled on random images that have the spectrum of photographs, and inputs",
        "are small: what is shown is that every layer computes what torch computes, not how well a network classifies.",
        "",
        f"**{passed} of {len(verdicts)} networks passed in every format.**"
        + "".join(f" {verdicts.count(item)} {item}." for item in Verdict if item is not Verdict.PASSED
                  and item in verdicts),
        "",
        "Under each format: the verdict; the lowest SQNR of any layer or output on the golden images, and in brackets",
        "that of the outputs when the runtime itself runs the file; the share of the layers that are in the file / on",
        "which there is a verdict. *Unproven* says that torch's own rounding does not reproduce the network.",
    ]  # fmt: skip
    for library in dict.fromkeys(item.network.partition(":")[0] for item in survey.results):
        rows = [item for item in survey.results if item.network.startswith(f"{library}:")]
        lines += ["", f"## {library}", "", *_table(rows)]
    lines += ["", *_reasons(survey.results), *_faults(survey.results), *_made_with(survey)]
    return "\n".join(lines).rstrip() + "\n"


def _table(rows: Iterable[NetworkResult]) -> list[str]:
    titles = [f"{FORMATS[kind].title} {precision}" for kind, precision in COLUMNS]
    lines = [f"| network | input | parameters | {' | '.join(titles)} |", "|---|--:|--:|" + "---|" * len(titles)]
    for row in rows:
        cells = [_cell(row, kind, precision) for kind, precision in COLUMNS]
        parameters = "–" if row.parameters is None else f"{row.parameters / 1e6:.2f} M"
        name = row.network.partition(":")[2]
        lines.append(f"| {name} | {row.side}×{row.side} | {parameters} | {' | '.join(cells)} |")
    return lines


def _cell(row: NetworkResult, kind: Format, precision: Precision) -> str:
    found = [item for item in row.artifacts if (item.format, item.precision) == (kind, precision)]
    return "; ".join(map(_words, found)) or "crashed"


def _words(item: ArtifactResult) -> str:
    if not item.layers:
        return item.verdict.value
    decibels = "–" if item.lowest_sqnr_db is None else f"{item.lowest_sqnr_db:.0f} dB"
    direct = "" if item.direct_sqnr_db is None else f" ({item.direct_sqnr_db:.0f} dB)"
    verdict = item.verdict.value if item.verdict is Verdict.PASSED else f"**{item.verdict.value}**"
    return f"{verdict}, {decibels}{direct}, {item.mapped:.0%}/{item.judged:.0%}"


def _reasons(results: Iterable[NetworkResult]) -> list[str]:
    lines = []
    for row in results:
        for item in row.artifacts:
            if item.verdict is not Verdict.PASSED:
                where = f"{FORMATS[item.format].title} {item.precision}"
                lines.append(f"* {row.network}, {where}, {item.verdict} (sources {row.sources}): {_text(item.detail)}")
        if row.problem is not None:
            lines.append(f"* {row.network}: {_text(row.problem)}")
    said = "Each with the commit that it was measured at; a later one may have mended it and not been measured yet."
    return ["## Not passed", "", said, "", *lines, ""] if lines else []


def _text(reason: str) -> str:
    one = " ".join(reason.split()).replace("<", "\\<")
    return one if len(one) <= LONGEST else f"{one[:LONGEST].rstrip()} …"


def _faults(results: Iterable[NetworkResult]) -> list[str]:
    planted = [row for row in results if row.faults]
    if not planted:
        return []
    lines = [
        "## Planted faults",
        "",
        "`python -m benchmarks.survey --faults N` edits the files of ten of the networks in one place at a time, N",
        "times each (`benchmarks/faults`), and counts those of which `parity` names the layer. [Parity](parity.md) has",
        "the same for the embedded default.",
        "",
        "| network | planted | named |",
        "|---|--:|--:|",
    ]
    lines += [f"| {row.network} | {_sum(row, 'planted')} | {_sum(row, 'named')} |" for row in planted]
    return [*lines, ""]


def _sum(row: NetworkResult, field: str) -> int:
    return sum(getattr(item, field) for item in row.faults)


def _made_with(survey: Survey) -> list[str]:
    sources = sorted({item.sources for item in survey.results})
    versions: dict[str, str] = {}
    for item in survey.results:
        versions |= item.versions
    said = ", ".join(f"{name} {text}" for name, text in sorted(versions.items()))
    left = [f"{name} ({reason})" for name, reason in survey.left_out.items()]
    return [
        "## Made with",
        "",
        "`make survey`, then `python -m benchmarks.survey --write-docs`; sources "
        + _listed(sources)
        + "; "
        + said
        + ".",
        *([f"Left out, because they could not be imported: {', '.join(left)}."] if left else []),
    ]


def _listed(sources: Sequence[str]) -> str:
    return ", ".join(sources) or "unknown"
