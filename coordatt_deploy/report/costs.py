"""What artifacts cost, on the terminal: latency on this machine, instructions on another."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from coordatt_deploy.bundle import Bundle
from coordatt_deploy.report.screen import host_line, label, new_console, new_table

Document = Mapping[str, Any]


def show_profile(bundle: Bundle, document: Document) -> None:
    """Latency per artifact and thread count, each against the fastest, with the reason of each doubt below."""
    table = new_table(
        f"Latency of {bundle.manifest.model.name}",
        "artifact", "runtime", "origin", "threads", "median ms", "95 % interval", "p90", "p99", "× fastest",
        "verdict", right=("threads", "median ms", "95 % interval", "p90", "p99", "× fastest"),
    )  # fmt: skip
    labels = {artifact.path: label(artifact) for artifact in bundle.manifest.artifacts}
    for item in document["results"]:
        low, high = item["ci95_ms"]
        table.add_row(
            labels[item["path"]],
            item["runtime"],
            item["origin"],
            str(item["threads"]),
            f"{item['median_ms']:.3f}",
            f"{low:.3f} … {high:.3f}",
            f"{item['p90_ms']:.3f}",
            f"{item['p99_ms']:.3f}",
            _against_fastest(item, document),
            item["verdict"],
        )
    console = new_console()
    console.print(table)
    for item in document["results"]:
        if item["verdict"] != "stable" and item["origin"] != "evaluated":
            text = f"{labels[item['path']]}, threads {item['threads']}: {item['verdict']}: {item['reason']}"
            console.print(Text(text, style="yellow"))
    for path, warning in dict.fromkeys((item["path"], item["warning"]) for item in document["results"]):
        if warning:
            console.print(Text(f"{path}: {warning}", style="yellow"))
    for item in document["skipped"]:
        console.print(Text(f"{item['path']}: not measured: {item['reason']}", style="yellow"))
    if document["interrupted"]:
        console.print(Text("interrupted: these are the samples taken until then", style="yellow"))
    console.print(Text(host_line(document), style="dim"))


def _against_fastest(item: Document, document: Document) -> str:
    """Return the ratio of medians with its 95 % interval; empty for the fastest, or one that took no turns."""
    rivals = [
        other
        for other in document["results"]
        if (other["threads"], other["origin"]) == (item["threads"], item["origin"])
    ]
    fastest = min(rivals, key=lambda other: other["median_ms"])["path"]
    for ratio in document["ratios"]:
        if ratio["threads"] == item["threads"] and {ratio["a"], ratio["b"]} == {item["path"], fastest}:
            value, (low, high) = ratio["ratio"], ratio["ci95"]
            if ratio["a"] == fastest:
                value, low, high = 1 / value, 1 / high, 1 / low
            return f"{value:.3f} ({low:.3f} … {high:.3f})"
    return ""


def show_instructions(bundle: Bundle, document: Document) -> None:
    """Guest instructions per artifact, with the classes that matter."""
    labels = {artifact.path: label(artifact) for artifact in bundle.manifest.artifacts}
    results: Sequence[Document] = document["results"]
    used = dict.fromkeys(name for item in results for name, count in item["classes"].items() if count)
    title = (
        f"Instructions per inference of {bundle.manifest.model.name} on {document['target']} (emulated), in millions"
    )
    figures = ("all", "× fewest", *used, "spread")
    table = new_table(title, "artifact", "runtime", *figures, right=figures)
    fewest = min(item["instructions"] for item in results)
    for item in results:
        counts = [f"{item['classes'].get(name, 0) / 1e6:.1f}" for name in used]
        total, ratio = f"{item['instructions'] / 1e6:.1f}", f"{item['instructions'] / fewest:.3f}"
        runtime = item["runtime"].partition(" on ")[0]
        table.add_row(labels[item["path"]], runtime, total, ratio, *counts, f"{item['spread']:.1e}")
    console = new_console()
    console.print(table)
    for item in document["skipped"]:
        console.print(Text(f"{item['path']}: not run: {item['reason']}", style="yellow"))
    console.print(Text("instructions are no latency: what one costs depends on the kernel and the chip", style="dim"))
