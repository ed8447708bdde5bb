"""An inspection on the terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from coordatt_deploy.inspection.result import BundleInspection, Finding, Inspection
from coordatt_deploy.plain_text import plain
from coordatt_deploy.plurals import counted, of_total
from coordatt_deploy.report.terminal.console import count, new_console, say, size
from coordatt_deploy.report.terminal.tables import Column, broken, show_below, show_table
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
            say(target, note, style="yellow")
        return
    _show(target, inspection)


def _show(console: Console, item: Inspection) -> None:
    console.print()
    say(console, item.subject, style="bold")
    work = ", ".join(f"{name} {count(value)}" for name, value in item.macs_by_work.items() if value)
    say(console, f"{counted(item.parameters, 'parameter')}, {size(item.bytes)}, {counted(item.macs, 'MAC')} ({work})")
    layers = sum(item.macs_by_work.get(name, 0) for name in (Work.CONVOLUTION, Work.LINEAR))
    say(console, f"of convolutions and linear layers alone, as papers and models count: {count(layers)} MACs")
    for kind, specs in (("takes", item.inputs), ("gives", item.outputs)):
        shapes = "; ".join(f"{spec.name} {_shape(spec.shape)} {spec.dtype}" for spec in specs)
        say(console, f"{kind} {shapes}")
    for name, said in ({} if item.about is None else item.about.said()).items():
        say(console, f"{name}: {said}")
    if item.needs is not None:
        say(console, needs_line(item.needs))
    say(console, "operators: " + ", ".join(f"{name} {number}" for name, number in item.operators.items()))
    if item.uncounted:
        say(console, f"not counted as MACs: {', '.join(item.uncounted)}", style="yellow")
    if item.attention_blocks:
        columns = (
            Column("kind"), Column("name", name=True), Column("channels", right=True),
            Column("height x width", right=True), Column("form", prose=True, rank=1),
        )  # fmt: skip
        blocks = [
            (block.kind, block.name, str(block.channels), f"{block.height or '?'}x{block.width or '?'}",
             block.form or "–")
            for block in item.attention_blocks
        ]  # fmt: skip
        show_table(console, "attention blocks", columns, blocks)
    else:
        console.print("no attention block was found")
    if item.layers:
        columns = (
            Column("layer", name=True), Column("weights", right=True), Column("share", right=True),
            Column("MACs", right=True), Column("operator", rank=1),
        )  # fmt: skip
        rows = []
        for layer in item.layers:
            share = f"{layer.bytes / item.bytes:.0%}" if item.bytes else "–"
            macs = "–" if layer.macs is None else count(layer.macs)
            rows.append((layer.layer, size(layer.bytes), share, macs, layer.operator))
        show_table(console, "where the bytes are", columns, rows)
    for delegate in item.delegates:
        parts = "" if delegate.partitions is None else f" in {counted(delegate.partitions, 'partition')}"
        console.print(f"{delegate.name}: {of_total(delegate.taken, delegate.operators, 'operator')}{parts}")
        for operator, number, reason in delegate.rejected:
            show_below(console, f"{number} x {operator}: {reason}", style="yellow")
        show_below(console, delegate.source, style="dim")
    if item.lint:
        say(console, "lint", style="bold italic")
        _show_findings(console, item.lint)
    for note in item.notes:
        say(console, note, style="dim")


def _show_findings(console: Console, lint: Sequence[Finding]) -> None:
    """One finding below the other, whole at any width: done by the tool or not, what, remedy, where."""
    for findings in _alike(lint):
        first = findings[0]
        done, style = ("applied", "green") if first.applied else ("to do", "yellow")
        head = Text("\n".join(broken(plain(f"{done} {first.rule}: {first.what}"), console.width)), no_wrap=True)
        head.stylize(style, 0, len(done))
        head.stylize("bold", len(done), len(done) + 1 + len(plain(first.rule)))
        console.print(head)
        places = ", ".join(finding.where for finding in findings[:3])
        places += f" and {len(findings) - 3} more" if len(findings) > 3 else ""
        show_below(console, f"remedy: {first.remedy}")
        show_below(console, f"at {places}" + (f", {first.line}" if first.line else ""), style="dim")


def _alike(lint: Sequence[Finding]) -> list[list[Finding]]:
    """The findings with those together that say the same of the same line."""
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for item in lint:
        key = (item.rule, item.line, item.what, item.remedy, item.applied)
        groups.setdefault(key, []).append(item)
    return list(groups.values())


def _shape(shape: Sequence[int | None]) -> str:
    return "x".join("?" if size is None else str(size) for size in shape)


def needs_line(needs: RuntimeNeeds) -> str:
    """Say which runtimes open a file, and why no older ones."""
    formats = ", ".join(f"{name} {version}" for name, version in needs.versions.items())
    if not needs.least:
        return f"needs a runtime that no published table knows, because of {needs.because} ({formats})"
    least = " or ".join(f"{name} {version}" for name, version in needs.least.items())
    return f"needs {least} or newer, because of {needs.because} ({formats})"
