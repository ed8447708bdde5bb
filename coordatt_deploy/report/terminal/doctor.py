"""What this machine has, as tables."""

from collections.abc import Sequence

from coordatt_deploy.inspection.installation import Findings
from coordatt_deploy.report.terminal.console import line, new_console, say
from coordatt_deploy.report.terminal.tables import Column, show_table
from coordatt_deploy.targets import TargetStatus


def show_doctor(findings: Findings, targets: Sequence[TargetStatus] = ()) -> None:
    """What is here and what is missing."""
    console = new_console()
    host = findings.host
    say(console, f"{host.cpu}, {host.cores_available} of {host.cores} cores, {host.os}, Python {host.python}")
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
    for note in findings.notes:
        console.print(line(note, style="dim"))
