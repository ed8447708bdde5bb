"""What this machine has, as tables."""

from collections.abc import Sequence

from coordatt_deploy.inspection.installation import Findings
from coordatt_deploy.plurals import counted
from coordatt_deploy.report.terminal.console import line, new_console, say, size
from coordatt_deploy.report.terminal.tables import Column, show_table
from coordatt_deploy.stage_cache.store import CacheStatus
from coordatt_deploy.targets import TargetStatus


def show_doctor(findings: Findings, targets: Sequence[TargetStatus] = (), cache: CacheStatus | None = None) -> None:
    """What is here and what is missing."""
    console = new_console()
    host = findings.host
    place = "" if host.container is None else f", in {host.container}"
    say(console, f"{host.cpu}, {host.cores_available} of {host.cores} cores, {host.os}, Python {host.python}{place}")
    say(console, f"CPU features: {', '.join(host.features) or 'none known'}")
    present = sum(part.version is not None for part in findings.parts)
    columns = (
        Column("package"), Column("version"), Column("for", prose=True), Column("to install", prose=True, rank=1),
    )  # fmt: skip
    rows = [
        (part.name, part.version or line("missing", style="yellow"), part.purpose, part.remedy or "")
        for part in findings.parts
    ]
    show_table(console, f"Packages: {present} of {len(findings.parts)} are here", columns, rows)
    for target in targets:
        counts = "counts instructions" if target.counts else target.counting_problem or ""
        remark = counts if target.state == "ready" else f"{target.reason or ''}; run: {target.command}"
        say(console, f"target {target.name}: {target.state}; {remark}".rstrip("; "))
    if cache is not None:
        problem = "" if cache.problem is None else f", not used: {cache.problem}"
        held = f"{counted(cache.entries, 'result')}, {size(cache.bytes)} of at most {size(cache.most_bytes)}"
        say(console, f"cache of builds: {held}, in {cache.folder}{problem}")
    for note in findings.notes:
        console.print(line(note, style="dim"))


def show_emptied(before: CacheStatus) -> None:
    """What was removed from the cache."""
    if before.problem is not None:
        say(new_console(), f"nothing was removed from {before.folder}: {before.problem}", style="yellow")
    else:
        say(new_console(), f"removed {counted(before.entries, 'result')}, {size(before.bytes)}")
