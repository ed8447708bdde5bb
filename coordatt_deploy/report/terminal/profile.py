"""What artifacts cost, on the terminal: latency on this machine, instructions on another."""

from collections.abc import Mapping
from typing import Final

from rich.console import Console
from rich.text import Text

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.host import Host, HostState
from coordatt_deploy.plurals import counted
from coordatt_deploy.profile.instructions import InstructionProfile
from coordatt_deploy.profile.result import LatencyRecord, ProfileResult
from coordatt_deploy.progress import VERBOSITY, Verbosity
from coordatt_deploy.report.terminal.console import host_line, label, new_console, say
from coordatt_deploy.report.terminal.tables import Column, show_table

LATENCY: Final = (
    Column("artifact"), Column("threads", right=True), Column("median ms", right=True),
    Column("95 % interval", right=True, rank=1), Column("p90", right=True, rank=3), Column("p99", right=True, rank=3),
    Column("× fastest", right=True), Column("its interval", right=True, rank=2), Column("verdict"),
    Column("runtime", rank=5), Column("origin", rank=4),
)  # fmt: skip


def show_profile(bundle: Bundle, document: ProfileResult) -> None:
    """The fastest file; then latency per artifact and thread count, with the reason of each doubt below."""
    console = new_console()
    labels = {artifact.path: label(artifact) for artifact in bundle.manifest.artifacts}
    for text in _fastest(labels, document):
        say(console, text, style="bold")
    console.print()
    rows = []
    for item in document.results:
        ratio, interval = _against_fastest(item, document)
        rows.append((
            labels[item.path], str(item.threads), f"{item.median_ms:.3f}",
            "–" if item.ci95_ms is None else f"{item.ci95_ms[0]:.3f} … {item.ci95_ms[1]:.3f}",
            f"{item.p90_ms:.3f}", f"{item.p99_ms:.3f}", ratio, interval, item.verdict, item.runtime, item.origin,
        ))  # fmt: skip
    show_table(console, f"Latency of {bundle.manifest.model.name}", LATENCY, rows)
    _doubts(console, labels, document)
    say(console, host_line(document), style="dim")
    say(console, _machine(document.host), style="dim")


def _fastest(labels: Mapping[str, Text], document: ProfileResult) -> list[str]:
    """Say which file is the fastest, for each number of threads; those that were timed on their real runtime count."""
    told = []
    for threads in dict.fromkeys(item.threads for item in document.results):
        timed = [item for item in document.results if item.threads == threads and item.origin is not Origin.EVALUATED]
        if not timed:
            continue
        best = min(timed, key=lambda item: item.median_ms)
        interval = "" if best.ci95_ms is None else f" (95 %: {best.ci95_ms[0]:.3g} … {best.ci95_ms[1]:.3g})"
        doubt = "" if best.verdict == "stable" else f", {best.verdict}"
        who = f"fastest with {counted(threads, 'thread')}: {labels[best.path]}"
        told.append(f"{who}, {best.median_ms:.3g} ms{interval}{doubt}")
    return told


def _doubts(console: Console, labels: Mapping[str, Text], document: ProfileResult) -> None:
    """Say what is wrong with the figures."""
    for item in document.results:
        if item.verdict != "stable" and item.origin is not Origin.EVALUATED:
            threads = counted(item.threads, "thread")
            say(console, f"{labels[item.path]}, {threads}: {item.verdict}: {_why(item.reason)}", style="yellow")
    for path, warning in dict.fromkeys((item.path, item.warning) for item in document.results):
        if warning:
            say(console, f"{labels[path]}: {warning}", style="yellow")
    for left_out in document.skipped:
        say(console, f"{left_out.path}: not measured: {left_out.reason}", style="yellow")
    if document.interrupted:
        say(console, "interrupted: these are the samples taken until then", style="yellow")


def _why(reason: str) -> str:
    """The first reason of a doubt, and how many more there are; all of them if verbose."""
    first, *others = reason.split("; ")
    if not others or VERBOSITY.get() is Verbosity.VERBOSE:
        return reason
    return f"{first} (and {counted(len(others), 'more reason')}: --verbose)"


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


def _against_fastest(item: LatencyRecord, document: ProfileResult) -> tuple[str, str]:
    """Return the ratio of medians and its interval; empty for the fastest, and for one that took no turns."""
    rivals = [other for other in document.results if (other.threads, other.origin) == (item.threads, item.origin)]
    fastest = min(rivals, key=lambda other: other.median_ms).path
    for ratio in document.ratios:
        if ratio.threads == item.threads and {ratio.a, ratio.b} == {item.path, fastest}:
            value, interval = ratio.ratio, ratio.ci95
            if ratio.a == fastest:
                value, interval = 1 / value, None if interval is None else (1 / interval[1], 1 / interval[0])
            return f"{value:.2f}", "–" if interval is None else f"{interval[0]:.3f} … {interval[1]:.3f}"
    return "", ""


def show_instructions(bundle: Bundle, document: InstructionProfile) -> None:
    """Guest instructions per artifact, with the classes that matter."""
    labels = {artifact.path: label(artifact) for artifact in bundle.manifest.artifacts}
    results = document.results
    used = dict.fromkeys(name for item in results for name, count in item.classes.items() if count)
    title = f"Instructions per inference of {bundle.manifest.model.name} on {document.target} (emulated), in millions"
    # the classes of instructions are left out before the sum is
    classes = (Column(name, right=True, rank=2) for name in used)
    columns = (
        Column("artifact"), Column("all", right=True), Column("× fewest", right=True), *classes,
        Column("spread", right=True, rank=3), Column("runtime", rank=4),
    )  # fmt: skip
    fewest = min(item.instructions for item in results)
    rows: list[tuple[str | Text, ...]] = []
    for item in results:
        counts = [f"{item.classes.get(name, 0) / 1e6:.1f}" for name in used]
        total, ratio = f"{item.instructions / 1e6:.1f}", f"{item.instructions / fewest:.3f}"
        runtime = item.runtime.partition(" on ")[0]
        rows.append((labels[item.path], total, ratio, *counts, f"{item.spread:.1e}", runtime))
    console = new_console()
    least = min(results, key=lambda item: item.instructions)
    said = f"fewest instructions: {labels[least.path]}, {least.instructions / 1e6:.1f} million"
    say(console, said, style="bold")
    console.print()
    show_table(console, title, columns, rows)
    for left_out in document.skipped:
        say(console, f"{left_out.path}: not run: {left_out.reason}", style="yellow")
    say(console, "instructions are no latency: what one costs depends on the kernel and the chip", style="dim")
