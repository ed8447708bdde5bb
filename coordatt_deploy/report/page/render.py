"""``report.html``: one file that people forward. No script, nothing fetched; every name is escaped.

It is made from the documents in the bundle (``manifest.json``, ``reports/parity.json``, ``reports/profile.json``), so
that it says what those say. A document may come from a stranger: whatever does not fit raises ``ReportDamagedError``.
"""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import PurePosixPath
from typing import Any, Final

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.errors import BundleError
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.report.page.plots import DepthPoint, depth_plot, latency_plot, size_bar

Document = Mapping[str, Any]

# Nothing may be loaded and no script may run, whatever a hostile name smuggled in; styles are the page's own.
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
WORDS: Final = {
    "measured": "measured on the real runtime",
    "emulated": "run under emulation",
    "evaluated": "evaluated without the runtime",
}


@dataclass(frozen=True, slots=True)
class Contents:
    """All that a report tells.

    Attributes:
        manifest: Of the bundle.
        folder: Name of the bundle's folder, for the commands.
        parity: ``reports/parity.json``; None where parity was not run.
        profile: ``reports/profile.json``; None where nothing was timed.
        operators: By artifact path: how many of each operator, and a remark.
        made: When and by which version, for the foot of the page.
        accuracy: ``reports/evaluate.json``; None where accuracy was not measured.
    """

    manifest: Manifest
    folder: str
    parity: Document | None
    profile: Document | None
    operators: Mapping[str, tuple[Mapping[str, int], str | None]] = field(default_factory=dict)
    made: str = ""
    accuracy: Document | None = None


def page(contents: Contents) -> str:
    """Return the report as one HTML document.

    Raises:
        BundleError: A document is damaged.
    """
    try:
        body = "\n".join(_sections(contents))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError, OverflowError) as error:
        raise BundleError(
            f"a document in reports/ is damaged ({type(error).__name__}: {error});"
            " write it again with: coordatt-deploy parity BUNDLE, and coordatt-deploy profile BUNDLE"
        ) from error
    style = files("coordatt_deploy.report.page").joinpath("style.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(contents.manifest.model.name)}: deployment report</title>\n"
        f"<style>\n{style}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _sections(contents: Contents) -> Iterable[str]:
    yield _head(contents)
    yield "<main>"
    yield _cards(contents)
    if contents.parity is not None:
        yield _depth(contents.parity)
        yield _outputs(contents.parity)
    if contents.accuracy is not None:
        yield _accuracy(contents.accuracy, contents.manifest)
    if contents.profile is not None:
        yield _latency(contents.profile, start=100)
    yield _sizes(contents)
    if contents.parity is not None:
        yield _layer_tables(contents.parity)
    yield _host(contents)
    yield _commands(contents)
    yield f"</main><footer><p>{escape(contents.made)} This file is complete in itself; it loads nothing.</p></footer>"


def name(value: object) -> str:
    """Return a name from outside as inert text, kept from reordering what stands around it."""
    return f"<bdi>{escape(str(value)).replace('_', '_<wbr>')}</bdi>"


def file_name(path: str) -> str:
    """``mobilenetv2_ca_035_digits_fp32.onnx`` of an artifact's path."""
    return PurePosixPath(path).name


def _artifacts(parity: Document | None) -> list[Document]:
    return [] if parity is None else list(parity["artifacts"])


def _judged(parity: Document) -> list[Document]:
    """The torch graphs between capture and files, then the files; those that have layers."""
    graphs = [{"path": item["name"]} | dict(item) for item in parity.get("graphs", ())]
    return [item for item in (*graphs, *parity["artifacts"]) if item.get("layers")]


def _status(passed: bool | None) -> tuple[str, str, str]:
    return {True: ("good", "✓", "passed"), False: ("bad", "✗", "failed"), None: ("odd", "–", "not run")}[passed]


def _head(contents: Contents) -> str:
    model, entries = contents.manifest.model, _artifacts(contents.parity)
    failed = sum(item["passed"] is False for item in entries)
    skipped = sum(item["passed"] is None for item in entries)
    if not entries:
        kind, text = "odd", "Parity was not checked."
    elif failed:
        kind, text = "bad", f"✗ {failed} of {len(entries)} files do not compute the model's function."
    elif skipped:
        kind, text = "odd", f"{skipped} of {len(entries)} files could not be run here; the others passed."
    else:
        kind, text = "good", f"✓ All {len(entries)} files compute the model's function."
    height, width = model.preprocessing.size
    golden = len(contents.manifest.golden)
    facts = f"{height} × {width} input, attention: {model.attention or 'none'}, {golden} golden inputs"
    return (
        f"<header><p class='soft small'>Deployment report</p><h1>{name(model.name)}</h1>"
        f'<p class="headline {kind}" role="status">{escape(text)}</p>'
        f'<p class="soft small">{escape(facts)}; weights <code>{escape(model.source_sha256[:16])}</code></p></header>'
    )


def _cards(contents: Contents) -> str:
    timed = {item["path"]: item for item in (contents.profile or {"results": []})["results"][::-1]}
    verdicts = {item["path"]: item for item in _artifacts(contents.parity)}
    cards = [_card(artifact, verdicts.get(artifact.path), timed.get(artifact.path))
             for artifact in contents.manifest.artifacts]  # fmt: skip
    return f'<section><h2>Verdicts</h2><div class="grid">{"".join(cards)}</div></section>'


def _card(artifact: Artifact, verdict: Document | None, timed: Document | None) -> str:
    kind, mark, word = _status(verdict["passed"] if verdict else None)
    sentence = "Parity was not checked." if verdict is None else _sentence(verdict)
    facts = [("size", megabytes(artifact.bytes)), ("precision", artifact.recipe or artifact.precision.value)]
    if verdict is not None:
        facts.append(("runtime", f"{verdict['runtime'] or '–'} ({WORDS.get(verdict['origin'], 'not run')})"))
        if verdict["max_abs_error"] is not None:
            bound = "" if verdict["allowed"] is None else f", {verdict['allowed']:.3g} allowed"
            facts.append(("worst error", f"{verdict['max_abs_error']:.3g}{bound}"))
            least = (verdict.get("tolerance") or {}).get("min_sqnr_db")
            needed = "" if least is None else f", {least:g} dB needed"
            facts.append(("SQNR", decibel(verdict["sqnr_db"], verdict["exact"]) + needed))
        if verdict["top1_agreement"] is not None:
            facts.append(("top-1 agreement", f"{verdict['top1_agreement']:.1%}"))
        if verdict.get("sha256") not in (None, artifact.sha256):
            sentence += " This verdict is about an older file of the same name: run parity again."
            kind, mark, word = "odd", "!", "out of date"
    if timed is not None:
        facts.append(("median latency", f"{timed['median_ms']:.3g} ms ({timed['verdict']})"))
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts)
    return (
        f'<article class="card"><h3 class="id">{name(file_name(artifact.path))}</h3>'
        f'<span class="badge {kind}">{mark} {word}</span><p>{escape(sentence)}</p>{_warned(verdict, timed)}'
        f'<dl class="facts">{listed}</dl>'
        "</article>"
    )


def _warned(*documents: Document | None) -> str:
    """Return what parity or profile warned of, once."""
    texts = dict.fromkeys(document["warning"] for document in documents if document and document.get("warning"))
    return "".join(f'<p class="small odd">{escape(str(text)[:1].upper() + str(text)[1:])}.</p>' for text in texts)


def _sentence(verdict: Document) -> str:
    prefix = f"{verdict['path']}: "
    found = str(verdict.get("summary") or verdict.get("problem") or "").removeprefix(prefix)
    problem = verdict.get("problem")
    if problem and verdict["passed"] is not True and found not in str(problem):
        found = f"{problem}; {found}" if found else str(problem)
    found = found or ("outputs within tolerance" if verdict["passed"] else "")
    return found[:1].upper() + found[1:] + ("." if found and not found.endswith(".") else "")


def _depth(parity: Document) -> str:
    judged = _judged(parity)
    if not judged:
        why = next((i["layers_problem"] for i in parity["artifacts"] if i.get("layers_problem")), None)
        because = f": {escape(why)}" if why else ""
        return f"<section><h2>Layer by layer</h2><p>Layers were not judged{because}.</p></section>"
    points = {item["path"]: [_point(row) for row in item["layers"]] for item in judged}
    # Alone a layer may be off in the last digit of float64 only; where all files lie would be squeezed together.
    finite = [q.whole_db for p in points.values() for q in p if q.whole_db is not None and math.isfinite(q.whole_db)]
    top = max([20.0, *finite]) + 15.0
    figures = []
    for number, item in enumerate(judged, start=1):
        label = file_name(item["path"])
        plot = depth_plot(number, f"SQNR along the depth of {label}", _depth_words(item, points[item["path"]]),
                          points[item["path"]], item["first_diverging_layer"], top)  # fmt: skip
        figures.append(
            f'<figure class="card"><h3 class="id">{name(label)}</h3>{plot}'
            f"<figcaption>{escape(_depth_words(item, points[item['path']]))}</figcaption></figure>"
        )
    return (
        "<section><h2>Agreement along the depth of the network</h2>"
        '<p class="small">Signal to noise of every layer against the float64 reference; higher is nearer. '
        '<span class="key"></span> the file ran from its own input, so errors add up. '
        '<span class="key dotted"></span> the layer alone, fed with the reference: its own error. '
        "On the line marked “=” both are equal to the last digit.</p>"
        f'<div class="grid plots">{"".join(figures)}</div></section>'
    )


def _point(row: Document) -> DepthPoint:
    def level(value: float | None, error: float | None) -> float | None:
        if value is not None:
            return float(value)
        if error is None:
            return math.nan if row["nonfinite"] else None
        return math.inf if error == 0.0 else math.nan

    whole = level(row["sqnr_db"], row["max_abs_error"])
    alone = level(row["local_sqnr_db"], row["local_max_abs_error"])
    return DepthPoint(str(row["layer_id"]), whole, alone, row["passed"])


def _depth_words(item: Document, points: Sequence[DepthPoint]) -> str:
    seen = [p for p in points if p.whole_db is not None]
    finite = [p for p in seen if p.whole_db is not None and math.isfinite(p.whole_db)]
    text = f"{len(seen)} of {len(points)} layers seen"
    if finite:
        worst = min(finite, key=lambda p: p.whole_db or 0.0)
        text += f", lowest {worst.whole_db:.0f} dB at {worst.layer}"
    first = item["first_diverging_layer"]
    return f"{text}; " + (f"first beyond tolerance: {first}." if first else "all within tolerance.")


def _outputs(parity: Document) -> str:
    rows = []
    for item in parity["artifacts"]:
        for output in item["outputs"]:
            agreement = "–" if output["top1_agreement"] is None else f"{output['top1_agreement']:.1%}"
            cells = (
                number(output["max_abs_error"]), number(output["allowed"]), decibel(output["sqnr_db"], False),
                number(output["cosine"], ".9g"), agreement,
                "–" if output["allowed"] is None else f"{output['mismatched']:,} of {output['elements']:,}",
            )  # fmt: skip
            rows.append(_row((file_name(item["path"]), output["name"]), cells, bad=output["passed"] is False))
    reasons: dict[str, list[str]] = {}
    for item in parity["artifacts"]:
        if tolerance := item.get("tolerance"):
            text = f"{_asked(tolerance)}. Why: {tolerance['reason']}."
            kinds = reasons.setdefault(text, [])
            kind = f"{item['format']} {item['recipe'] or item['precision']}"
            kinds += [kind] if kind not in kinds else []
    allowed = [f"Allowed for {', '.join(kinds)}: {text}" for text, kinds in reasons.items()]
    drift = [
        f"{file_name(item['path'])}: keeping inner tensors for the layer table changed the outputs by up to"
        f" {item['marked_difference']:.2g}; verdicts on outputs come from the unmarked file."
        for item in parity["artifacts"]
        if item.get("marked_difference")
    ]
    heads = ("file", "output"), ("worst error", "allowed", "SQNR", "cosine", "top-1 agreement", "beyond")
    notes = "".join(f'<p class="small soft">{escape(text)}</p>' for text in [*allowed, *drift])
    return f"<section><h2>Output errors</h2>{_table('Output errors', *heads, rows)}{notes}</section>"


def _asked(tolerance: Document) -> str:
    asked = []
    if tolerance.get("weight_bits") is not None:
        asked.append(
            f"at every layer, in each channel {tolerance['multiple']:g} times the noise of torch rounding weights to"
            f" {tolerance['weight_bits']} bits and values to {tolerance['basis']} on the same inputs"
        )
    elif tolerance.get("min_sqnr_db") is None:
        asked.append(
            f"{tolerance['multiple']:g} times the rounding error of torch in {tolerance['basis']} on the same inputs"
        )
    if tolerance.get("min_sqnr_db") is not None:
        asked.append(f"an SQNR of at least {tolerance['min_sqnr_db']:g} dB")
    if tolerance.get("min_top1_agreement") is not None:
        asked.append(f"the reference's class in {tolerance['min_top1_agreement']:.0%} of the images")
    return "; ".join(asked)


def _accuracy(document: Document, manifest: Manifest) -> str:
    dataset, subjects = document["dataset"], document["subjects"]
    rows = []
    for item in subjects:
        low, high = item["interval_points"] or (None, None)
        compared = item["difference_points"] is not None
        cells = (
            number(item["top1"], ".2%"), number(item["top5"], ".2%"), number(item["difference_points"], "+.2f"),
            f"{low:+.2f} … {high:+.2f}" if compared else "–",
            f"{item['lost']:,} / {item['gained']:,}" if compared else "–", number(item["agreement"], ".2%"),
            decibel(item["sqnr_db"], item["exact"]),
        )  # fmt: skip
        rows.append(_row((file_name(item["name"]), item["runtime"] or "–"), cells, bad=item["passed"] is False))
    texts = [f"{file_name(item['name'])}: {text}" for item in subjects for text in (item["problem"], item["warning"])
             if text]  # fmt: skip
    hashes = {artifact.path: artifact.sha256 for artifact in manifest.artifacts}
    older = [item for item in subjects if item["path"] is not None and hashes.get(item["path"]) != item["sha256"]]
    texts += [f"{file_name(item['name'])}: figures of an older file of this name; run evaluate again" for item in older]
    texts += document["notes"]
    if dataset["unreadable"]:
        names = ", ".join(str(item["image"]) for item in dataset["unreadable"][:5])
        texts.append(f"{len(dataset['unreadable'])} images could not be read and are in no figure: {names}")
    allowed = document["max_drop_points"]
    limit = "" if allowed is None else f" At most {allowed:g} points may be lost."
    heads = ("file", "runtime"), ("top-1", "top-5", "difference", "95 % interval", "lost / gained", "agreement", "SQNR")
    notes = "".join(f'<p class="small soft">{escape(str(text))}.</p>' for text in texts)
    return (
        "<section><h2>Accuracy on labelled images</h2>"
        f'<p class="small">{dataset["images"]:,} images of {escape(str(dataset["source"]))} in {dataset["classes"]}'
        " classes. The difference is in percentage points of top-1 to the first row; lost are the images that only the"
        f" first row gets right.{limit}</p>{_table('Accuracy', *heads, rows)}{notes}</section>"
    )


def _latency(profile: Document, start: int) -> str:
    figures, rows, raw = [], [], []
    for index, item in enumerate(profile["results"]):
        samples = [float(value) / 1e6 for value in item["samples_ns"]]
        label = f"{file_name(item['path'])}, {item['threads']} thread{'s' * (item['threads'] != 1)}"
        low, high = item["ci95_ms"] if item["ci95_ms"] else (math.nan, math.nan)
        words = (
            f"{len(samples)} calls on {item['runtime']} ({WORDS[item['origin']]}): median {item['median_ms']:.3g} ms,"
            f" 95 % interval {low:.3g} to {high:.3g} ms, 99 % of calls within {item['p99_ms']:.3g} ms;"
            f" {item['verdict']}."
        )
        if item["verdict"] != "stable":
            words += f" {item['reason'].capitalize()}."
        plot = latency_plot(start + index, f"Latency of {label}", words, samples, float(item["median_ms"]), (low, high))
        figures.append(
            f'<figure class="card"><h3 class="id">{name(label)}</h3>{plot}'
            f"<figcaption>{escape(words)}</figcaption></figure>"
        )
        cells = (
            f"{item['median_ms']:.3f}", f"{low:.3f} … {high:.3f}", f"{item['p90_ms']:.3f}", f"{item['p99_ms']:.3f}",
            number(item["load_ms"], ".1f"), number(item["first_inference_ms"], ".2f"),
            "–" if item["peak_memory_bytes"] is None else megabytes(item["peak_memory_bytes"]),
        )  # fmt: skip
        rows.append(_row((label, item["verdict"]), cells, bad=False))
        raw.append(f"<h3 class='id'>{name(label)}</h3><pre>{escape(' '.join(map(str, item['samples_ns'])))}</pre>")
    heads = ("file, threads", "verdict"), ("median ms", "95 % interval", "p90", "p99", "load", "first call", "memory")
    return (
        "<section><h2>Latency on this machine</h2>"
        '<p class="small">Above, how often which time was measured; below, every single call, the first on top. '
        "The line is the median, the band its 95 % interval. "
        "Evaluated files say nothing about the speed of a phone.</p>"
        f'<div class="grid plots">{"".join(figures)}</div>{_table("Latency", *heads, rows)}'
        f"<details><summary>Raw samples in nanoseconds</summary>{''.join(raw)}</details></section>"
    )


def _sizes(contents: Contents) -> str:
    artifacts = contents.manifest.artifacts
    greatest = max((item.bytes for item in artifacts), default=1) or 1
    totals = {path: str(sum(counts.values())) for path, (counts, _) in contents.operators.items()}
    rows = "".join(
        f'<tr><td class="name id">{name(file_name(item.path))}</td><td class="n">{megabytes(item.bytes)}</td>'
        f"<td>{size_bar(item.bytes / greatest)}</td>"
        f'<td class="n">{totals.get(item.path, "–")}</td></tr>'
        for item in artifacts
    )
    table = _wrapped(
        "Sizes",
        "<tr><th>file</th><th class='n'>size</th><th><span class='soft'>of the greatest</span></th>"
        f"<th class='n'>operators</th></tr>{rows}",
    )
    lists = []
    for path, (counts, remark) in contents.operators.items():
        listed = ", ".join(f"{count} × {kind}" for kind, count in counts.items())
        lists.append(f"<p class='small'><b class='id'>{name(file_name(path))}</b>: {escape(listed)}."
                     f"{f' {escape(remark)}.' if remark else ''}</p>")  # fmt: skip
    fold = contents.manifest.fold
    folded = ""
    if fold is not None and fold.folded:
        folded = (
            f"<p class='small'>{fold.folded} BatchNorms were folded into convolutions; greatest change of any of"
            f" these layers, in float64: {fold.max_relative_error:.2g} of its greatest value.</p>"
        )
    return f"<section><h2>Sizes and operators</h2>{table}{''.join(lists)}{folded}</section>"


def _layer_tables(parity: Document) -> str:
    parts = []
    for item in _judged(parity):
        rows = []
        for row in item["layers"]:
            note = str(row["note"] or "")
            if row["seen_through"]:
                note = f"seen through {row['seen_through']}" + (f"; {note}" if note != "fused" else "")
            if row["inherits"]:
                note = f"inherits; {note}".strip("; ")
            point = _point(row)
            cells = (level(point.whole_db), number(row["max_abs_error"]), level(point.alone_db),
                     number(row["local_max_abs_error"]), number(row["local_allowed"]))  # fmt: skip
            rows.append(_row((row["layer_id"],), cells, bad=row["passed"] is False, last=note))
        heads = ("layer",), ("SQNR dB", "worst error", "local SQNR dB", "local error", "allowed")
        table = _table(f"Layers of {file_name(item['path'])}", *heads, rows, last="note")
        parts.append(
            f"<details><summary>{name(file_name(item['path']))}, {len(rows)} layers</summary>{table}</details>"
        )
    return f"<section><h2>Every layer</h2>{''.join(parts)}</section>" if parts else ""


def _host(contents: Contents) -> str:
    facts: list[tuple[str, str]] = []
    if contents.profile is not None:
        host = contents.profile["host"]
        memory = "unknown" if host["memory_bytes"] is None else f"{host['memory_bytes'] / 2**30:.1f} GiB"
        load = host["before"]["load_average"] if host.get("before") else None
        facts = [
            (
                "processor",
                f"{host['cpu']} ({host['architecture']}), {host['cores_available']} of {host['cores']} cores",
            ),
            ("features", ", ".join(host["features"]) or "none known"),
            ("memory", memory),
            ("system", f"{host['os']}, Python {host['python']}"),
            ("container", str(host["container"] or "none")),
            ("load before", "unknown" if not load else ", ".join(f"{value:.1f}" for value in load)),
        ]
    versions = ", ".join(f"{key} {value}" for key, value in contents.manifest.tool_versions.items())
    listed = "".join(f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in facts)
    return (
        f'<section><h2>Machine and versions</h2><dl class="facts">{listed}'
        f"<dt>versions</dt><dd>{escape(versions)}</dd></dl></section>"
    )


def _commands(contents: Contents) -> str:
    folder = shlex.quote(contents.folder)
    lines = [contents.manifest.command or "coordatt-deploy build", f"coordatt-deploy parity {folder} --layers"]
    settings = (contents.profile or {}).get("settings", {})
    options = [
        f"--{key.replace('_', '-')} {','.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in settings.items()
        if key in ("threads", "warmups", "samples", "min_seconds", "cpu_affinity") and value not in ([], None)
    ]
    lines.append(" ".join(["coordatt-deploy profile", folder, *options]))
    lines.append(f"coordatt-deploy report {folder}")
    return f"<section><h2>Repeat it</h2><pre>{escape(chr(10).join(lines))}</pre></section>"


def _row(names: Sequence[object], cells: Sequence[str], *, bad: bool, last: str | None = None) -> str:
    first = "".join(f'<td class="{"name id" if not i else ""}">{name(value)}</td>' for i, value in enumerate(names))
    rest = "".join(f'<td class="n">{escape(cell)}</td>' for cell in cells)
    tail = "" if last is None else f"<td>{escape(last)}</td>"
    return f"<tr{' class=bad' if bad else ''}>{first}{rest}{tail}</tr>"


def _table(
    label: str, names: Sequence[str], figures: Sequence[str], rows: Sequence[str], *, last: str | None = None
) -> str:
    heads = "".join(f"<th>{escape(text)}</th>" for text in names)
    heads += "".join(f'<th class="n">{escape(text)}</th>' for text in figures)
    heads += "" if last is None else f"<th>{escape(last)}</th>"
    return _wrapped(label, f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody>")


def _wrapped(label: str, rows: str) -> str:
    return f'<div class="scroll" role="region" aria-label="{escape(label)}" tabindex="0"><table>{rows}</table></div>'


def megabytes(count: int) -> str:
    """``1.97 MB``."""
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def number(value: float | None, form: str = ".3g") -> str:
    """Format a figure; a dash where there is none."""
    return "–" if value is None else format(float(value), form)


def decibel(value: float | None, exact: bool) -> str:
    """``125.6 dB``; JSON has no infinity, so equal values come as *exact*."""
    return ("equal" if exact else "–") if value is None else f"{float(value):.1f} dB"


def level(value: float | None) -> str:
    """A figure of the layer table in dB."""
    if value is None:
        return "–"
    return "equal" if value == math.inf else ("NaN" if math.isnan(value) else f"{value:.1f}")
