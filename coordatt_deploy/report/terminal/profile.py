"""What artifacts cost, on the terminal: latency on this machine, instructions on another."""

from collections.abc import Mapping
from typing import Final

from rich.console import Console
from rich.text import Text

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.host import Host, HostState
from coordatt_deploy.profile.instructions import InstructionProfile
from coordatt_deploy.profile.result import LatencyRecord, ProfileResult
from coordatt_deploy.report.terminal.console import host_line, label, line, new_console, new_table

WIDE: Final = 130  # columns that the whole table needs


def show_profile(bundle: Bundle, document: ProfileResult) -> None:
    """Latency per artifact and thread count, each against the fastest, with the reason of each doubt below.

    A narrow terminal shows no percentiles and says runtime and origin below the table.
    """
    console = new_console()
    wide = console.width >= WIDE
    left = ("artifact", "runtime", "origin") if wide else ("artifact",)
    figures = ("threads", "median ms", "95 % interval", *(("p90", "p99") if wide else ()), "× fastest")
    table = new_table(f"Latency of {bundle.manifest.model.name}", *left, *figures, "verdict", right=figures)
    labels = {artifact.path: label(artifact) for artifact in bundle.manifest.artifacts}
    for item in document.results:
        cells: dict[str, str | Text] = {
            "artifact": labels[item.path],
            "runtime": item.runtime,
            "origin": item.origin,
            "threads": str(item.threads),
            "median ms": f"{item.median_ms:.3f}",
            "95 % interval": "–" if item.ci95_ms is None else f"{item.ci95_ms[0]:.3f} … {item.ci95_ms[1]:.3f}",
            "p90": f"{item.p90_ms:.3f}",
            "p99": f"{item.p99_ms:.3f}",
            "× fastest": _against_fastest(item, document, with_interval=wide),
            "verdict": item.verdict,
        }
        table.add_row(*(cells[column] for column in (*left, *figures, "verdict")))
    console.print(table)
    if not wide:
        runtimes = dict.fromkeys(f"{item.origin} with {item.runtime}" for item in document.results)
        console.print(line(f"{'; '.join(runtimes)}; {WIDE} columns show p90 and p99 as well", style="dim"))
    _doubts(console, labels, document)
    console.print(line(host_line(document), style="dim"))
    console.print(line(_machine(document.host), style="dim"))


def _doubts(console: Console, labels: Mapping[str, Text], document: ProfileResult) -> None:
    """Say what is wrong with the figures."""
    for item in document.results:
        if item.verdict != "stable" and item.origin is not Origin.EVALUATED:
            text = f"{labels[item.path]}, threads {item.threads}: {item.verdict}: {item.reason}"
            console.print(line(text, style="yellow"))
    for path, warning in dict.fromkeys((item.path, item.warning) for item in document.results):
        if warning:
            console.print(line(f"{path}: {warning}", style="yellow"))
    for left_out in document.skipped:
        console.print(line(f"{left_out.path}: not measured: {left_out.reason}", style="yellow"))
    if document.interrupted:
        console.print(line("interrupted: these are the samples taken until then", style="yellow"))


def _machine(host: Host) -> str:
    """Return what the machine was like: features, limits, and its state before and after."""
    before, after = host.before or HostState(), host.after or HostState()
    loads = (before.load_average or (0.0,))[0], (after.load_average or (0.0,))[0]
    clocks = max(before.frequency_mhz, default=0.0), max(after.frequency_mhz, default=0.0)
    told = [
        f"{host.cores_available} of {host.cores} cores",
        f"limited to {host.cpu_limit:g} cores" if host.cpu_limit else "",
        f"limited to {host.memory_limit_bytes / 2**30:.1f} GiB" if host.memory_limit_bytes else "",
        f"load {loads[0]:.1f} → {loads[1]:.1f}" if before.load_average else "",
        f"governor {before.governor}" if before.governor else "",
        f"{clocks[0]:.0f} → {clocks[1]:.0f} MHz" if before.frequency_mhz else "",
        f"{before.temperature_c:.0f} → {after.temperature_c or 0:.0f} °C" if before.temperature_c else "",
        ", ".join(host.features),
    ]
    return f"machine: {'; '.join(filter(None, told))}"


def _against_fastest(item: LatencyRecord, document: ProfileResult, *, with_interval: bool) -> str:
    """Return the ratio of medians; empty for the fastest, and for one that took no turns."""
    rivals = [other for other in document.results if (other.threads, other.origin) == (item.threads, item.origin)]
    fastest = min(rivals, key=lambda other: other.median_ms).path
    for ratio in document.ratios:
        if ratio.threads == item.threads and {ratio.a, ratio.b} == {item.path, fastest}:
            value, interval = ratio.ratio, ratio.ci95
            if ratio.a == fastest:
                value, interval = 1 / value, None if interval is None else (1 / interval[1], 1 / interval[0])
            if interval is None or not with_interval:
                return f"{value:.2f}"
            return f"{value:.3f} ({interval[0]:.3f} … {interval[1]:.3f})"
    return ""


def show_instructions(bundle: Bundle, document: InstructionProfile) -> None:
    """Guest instructions per artifact, with the classes that matter."""
    labels = {artifact.path: label(artifact) for artifact in bundle.manifest.artifacts}
    results = document.results
    used = dict.fromkeys(name for item in results for name, count in item.classes.items() if count)
    title = f"Instructions per inference of {bundle.manifest.model.name} on {document.target} (emulated), in millions"
    figures = ("all", "× fewest", *used, "spread")
    table = new_table(title, "artifact", "runtime", *figures, right=figures)
    fewest = min(item.instructions for item in results)
    for item in results:
        counts = [f"{item.classes.get(name, 0) / 1e6:.1f}" for name in used]
        total, ratio = f"{item.instructions / 1e6:.1f}", f"{item.instructions / fewest:.3f}"
        runtime = item.runtime.partition(" on ")[0]
        table.add_row(labels[item.path], runtime, total, ratio, *counts, f"{item.spread:.1e}")
    console = new_console()
    console.print(table)
    for left_out in document.skipped:
        console.print(line(f"{left_out.path}: not run: {left_out.reason}", style="yellow"))
    console.print(line("instructions are no latency: what one costs depends on the kernel and the chip", style="dim"))
