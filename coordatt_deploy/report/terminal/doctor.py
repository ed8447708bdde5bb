"""What this machine has, as tables."""

from collections.abc import Sequence

from coordatt_deploy.inspection.installation import Findings
from coordatt_deploy.report.terminal.console import line, new_console, new_table
from coordatt_deploy.targets import TargetStatus


def show_doctor(findings: Findings, targets: Sequence[TargetStatus] = ()) -> None:
    """What is here and what is missing."""
    console = new_console()
    host = findings.host
    console.print(line(f"{host.cpu}, {host.cores_available} of {host.cores} cores, {host.os}, Python {host.python}"))
    console.print(line(f"CPU features: {', '.join(host.features) or 'none known'}"))
    table = new_table("Packages", "package", "version", "for", "to install")
    for part in findings.parts:
        table.add_row(part.name, part.version or line("missing", style="yellow"), part.purpose, line(part.remedy or ""))
    console.print(table)
    for target in targets:
        counts = "counts instructions" if target.counts else target.counting_problem or ""
        remark = counts if target.state == "ready" else f"{target.reason or ''}; run: {target.command}"
        console.print(line(f"target {target.name}: {target.state}; {remark}".rstrip("; ")))
    for note in findings.notes:
        console.print(line(note, style="dim"))
