"""An inspection on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from coordatt_deploy.inspection.result import BundleInspection, Finding, Inspection
from coordatt_deploy.report.terminal.console import PlainTable, count, line, new_console, size
from coordatt_deploy.runtime_versions import RuntimeNeeds
from coordatt_deploy.runtimes.vocabulary import Work


def show_inspection(inspection: Inspection | BundleInspection, console: Console | None = None) -> None:
    """Print what ``inspect`` found, the model before its files."""
    target = console or new_console()
    if isinstance(inspection, BundleInspection):
        if inspection.reference is not None:
            _show(target, inspection.reference)
        for item in inspection.artifacts.values():
            _show(target, item)
        for note in inspection.notes:
            target.print(line(note, style="yellow"))
        return
    _show(target, inspection)


def _show(console: Console, item: Inspection) -> None:
    console.print()
    console.print(line(item.subject, style="bold"))
    work = ", ".join(f"{name} {count(value)}" for name, value in item.macs_by_work.items() if value)
    console.print(f"{count(item.parameters)} parameters, {size(item.bytes)}, {count(item.macs)} MACs ({work})")
    layers = sum(item.macs_by_work.get(name, 0) for name in (Work.CONVOLUTION, Work.LINEAR))
    console.print(line(f"of convolutions and linear layers alone, as papers and models count: {count(layers)} MACs"))
    for kind, specs in (("takes", item.inputs), ("gives", item.outputs)):
        shapes = "; ".join(f"{spec.name} {_shape(spec.shape)} {spec.dtype}" for spec in specs)
        console.print(line(f"{kind} {shapes}"))
    for name, said in ({} if item.about is None else item.about.said()).items():
        console.print(line(f"{name}: {said}"))
    if item.needs is not None:
        console.print(line(needs_line(item.needs)))
    console.print(line("operators: " + ", ".join(f"{name} {number}" for name, number in item.operators.items())))
    if item.uncounted:
        console.print(line(f"not counted as MACs: {', '.join(item.uncounted)}", style="yellow"))
    if item.attention_blocks:
        table = _table("attention blocks", ("kind", "name", "channels", "height x width", "form"))
        for block in item.attention_blocks:
            where = f"{block.height or '?'}x{block.width or '?'}"
            table.add_row(block.kind, line(block.name), str(block.channels), where, block.form or "–")
        console.print(table)
    else:
        console.print("no attention block was found")
    if item.layers:
        table = _table("where the bytes are", ("layer", "operator", "weights", "share", "MACs"))
        for layer in item.layers:
            share = f"{layer.bytes / item.bytes:.0%}" if item.bytes else "–"
            macs = "–" if layer.macs is None else count(layer.macs)
            table.add_row(line(layer.layer), layer.operator, size(layer.bytes), share, macs)
        console.print(table)
    for delegate in item.delegates:
        parts = (
            ""
            if delegate.partitions is None
            else f" in {delegate.partitions} partition{'' if delegate.partitions == 1 else 's'}"
        )
        console.print(f"{delegate.name}: {delegate.taken} of {delegate.operators} operators{parts}")
        for operator, number, reason in delegate.rejected:
            console.print(line(f"  {number} x {operator}: {reason}", style="yellow"))
        console.print(line(f"  {delegate.source}", style="dim"))
    if item.lint:
        console.print(line("lint", style="bold italic"))
        console.print(_findings(item.lint))
    for note in item.notes:
        console.print(line(note, style="dim"))


def _findings(lint: Sequence[Finding]) -> Table:
    """One finding below the other, whole at any width: done by the tool or not, what, remedy, where."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for findings in _alike(lint):
        first = findings[0]
        done = line("applied", style="green") if first.applied else line("to do", style="yellow")
        places = ", ".join(finding.where for finding in findings[:3])
        places += f" and {len(findings) - 3} more" if len(findings) > 3 else ""
        grid.add_row(done, Text.assemble(line(first.rule, "bold"), line(f": {first.what}")))
        grid.add_row("", line(f"remedy: {first.remedy}"))
        grid.add_row("", line(f"at {places}" + (f", {first.line}" if first.line else ""), style="dim"))
    return grid


def _alike(lint: Sequence[Finding]) -> list[list[Finding]]:
    """The findings with those together that say the same of the same line."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for item in lint:
        key = (item.rule, item.line, item.what, item.remedy, item.applied)
        groups.setdefault(key, []).append(item)
    return list(groups.values())


def _shape(shape: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = PlainTable(title=line(title), title_justify="left", title_style="bold", header_style="bold")
    for column in columns:
        table.add_column(line(column), overflow="fold")
    return table


def needs_line(needs: RuntimeNeeds) -> str:
    """Say which runtimes open a file, and why no older ones."""
    formats = ", ".join(f"{name} {version}" for name, version in needs.versions.items())
    if not needs.least:
        return f"needs a runtime that no published table knows, because of {needs.because} ({formats})"
    least = " or ".join(f"{name} {version}" for name, version in needs.least.items())
    return f"needs {least} or newer, because of {needs.because} ({formats})"
