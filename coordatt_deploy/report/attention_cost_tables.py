"""What attention costs, as tables of texts that the terminal and Markdown show alike.

A ratio of latencies stands with its 95 % interval, and where files cannot be told apart in place of a number that would
say more than was measured.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from coordatt_deploy.attention_cost.plan import OFFICIAL, OURS
from coordatt_deploy.attention_cost.result import AttentionCost, CostFile, CostRow
from coordatt_deploy.formats import TargetCpu
from coordatt_deploy.models.registry import ATTENTION_BLOCKS
from coordatt_deploy.plurals import counted
from coordatt_deploy.profile.compare import Comparison, Outcome

NOTHING: Final = "–"
MILLION: Final = 1e6


@dataclass(frozen=True, slots=True)
class CostTable:
    """One table.

    Attributes:
        title: Above it.
        columns: The first is the network's; figures of the others are aligned right.
        rows: As many texts as there are columns.
        extra: Indices of columns that a narrow place leaves out.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    extra: tuple[int, ...] = ()


def tables(cost: AttentionCost) -> Iterator[CostTable]:
    """Yield the tables of each backbone: its networks, then latency, instructions, operators of each kind of file."""
    for rows in cost.of_backbones():
        yield _networks(rows)
        for kind in dict.fromkeys((file.format, file.precision) for file in rows[0].files):
            of_kind = [(row, [file for file in row.files if (file.format, file.precision) == kind]) for row in rows]
            name = f"{rows[0].backbone}, {' '.join(kind)}"
            yield from _latencies(name, of_kind)
            yield from _instructions(name, cost.target or "", of_kind)
            yield _files(name, of_kind)


def label(row: CostRow) -> str:
    """Return what tells a network from the others of its backbone: ``se``, ``cbam, silu``."""
    if row.is_plain:
        return "plain"
    if row.attention is None:
        return "as it came"
    tag = ATTENTION_BLOCKS[row.attention].tag or row.attention
    return tag if row.activation is None else f"{tag}, {row.activation}"


def told(found: Comparison | None) -> str:
    """Return what one latency costs more than another: ``+16.2 % (14.9 … 17.5)``, or that it is not known."""
    if found is None:
        return NOTHING
    if found.ratio is None or found.ci95 is None:
        return "not known"
    low, high = (100 * (value - 1) for value in found.ci95)
    interval = f"({low:+.1f} … {high:+.1f})"
    if found.outcome is Outcome.NO_DIFFERENCE:
        return f"none found {interval}"
    if found.outcome is Outcome.INCONCLUSIVE:
        return f"not known {interval}"
    return f"{100 * (found.ratio - 1):+.1f} % {interval}"


def footnote(cost: AttentionCost) -> str:
    """Say where the figures come from, and what they do not say."""
    versions = ", ".join(f"{name} {version}" for name, version in cost.host.versions.items())
    told = [f"files: {versions}"]
    if cost.settings is not None:
        threads = cost.settings.threads[0]
        told.append(f"latency: one image on {cost.host.cpu}, {cost.host.os}, {counted(threads, 'thread')},"
                    " files of one runtime in turns")  # fmt: skip
    if cost.target is not None:
        told.append("instructions are no latency: what one costs depends on the kernel and the chip")
    return "; ".join(told)


def _networks(rows: Sequence[CostRow]) -> CostTable:
    plain = next(row for row in rows if row.is_plain)
    height, width = plain.input_shape[2:]
    return CostTable(
        f"{plain.backbone} at {height}x{width}, and what attention adds to it",
        ("block", "parameters", "more", "MACs", "more"),
        tuple(
            (label(row), f"{row.parameters:,}", _share(row.parameters, plain.parameters),
             f"{row.macs / MILLION:.1f} M", _share(row.macs, plain.macs))
            for row in rows
        ),
    )  # fmt: skip


Kinds = Sequence[tuple[CostRow, Sequence[CostFile]]]


def _latencies(name: str, rows: Kinds) -> Iterator[CostTable]:
    for cpu in _forms(rows, lambda file: file.latency is not None):
        pairs = [(row, _pair(files, cpu)) for row, files in rows]
        form = "" if cpu is None else f", form for {cpu}"
        yield CostTable(
            f"Latency of {name}{form}: cost over the faster plain file, with 95 % interval",
            ("block", "default", "ms", "ours", "ms", "ours over default"),
            tuple(
                (label(row), _over_plain(default), _ms(default),
                 _over_plain(ours), _ms(ours), _over_default(ours))
                for row, (default, ours) in pairs
            ),
            extra=(2, 4, 5),
        )  # fmt: skip


def _instructions(name: str, target: str, rows: Kinds) -> Iterator[CostTable]:
    for cpu in _forms(rows, lambda file: file.instructions is not None):
        pairs = [(row, _pair(files, cpu)) for row, files in rows]
        yield CostTable(
            f"Instructions of {name} on {target}, in millions, and over the cheaper plain file",
            ("block", "default", "over", "ours", "over", "ours / default"),
            tuple(
                (label(row), _millions(default), _times(default, plain=True),
                 _millions(ours), _times(ours, plain=True),
                 _times(ours, plain=False))
                for row, (default, ours) in pairs
            ),
        )  # fmt: skip


def _files(name: str, rows: Kinds) -> CostTable:
    """Size and operators; of several forms the first: they differ little in either."""
    cpu = next((file.target_cpu for file in rows[0][1] if file.export == OURS), None)
    pairs = [(row, _pair(files, cpu)) for row, files in rows]
    pieces = any(file.partitions is not None for _, files in rows for file in files)
    columns = ("block", "default kB", "ours kB", "default operators", "ours operators")
    return CostTable(
        f"Files of {name}" + ("" if cpu is None else f", form for {cpu}"),
        columns + (("default partitions", "ours partitions") if pieces else ()),
        tuple(
            (label(row), *(_kilobytes(file) for file in pair), *(_operators(file) for file in pair),
             *((_partitions(file) for file in pair) if pieces else ()))
            for row, pair in pairs
        ),
    )  # fmt: skip


def _forms(rows: Kinds, has: Callable[[CostFile], bool]) -> list[TargetCpu | None]:
    """The CPU families whose form of our files has a figure; None for files that have one form."""
    return list(dict.fromkeys(
        file.target_cpu for _, files in rows for file in files if file.export == OURS and has(file)
    ))  # fmt: skip


def _pair(files: Sequence[CostFile], cpu: TargetCpu | None) -> tuple[CostFile | None, CostFile | None]:
    """The official converter's file and ours in the form for *cpu*; None for one that could not be written."""
    written = [file for file in files if file.refused is None]
    default = next((file for file in written if file.export == OFFICIAL), None)
    ours = next((file for file in written if (file.export, file.target_cpu) == (OURS, cpu)), None)
    return default, ours


def _share(value: int, plain: int) -> str:
    return "" if value == plain else f"{100 * (value / plain - 1):+.2f} %"


def _ms(file: CostFile | None) -> str:
    return NOTHING if file is None or file.latency is None else f"{file.latency.median_ms:.3f}"


def _millions(file: CostFile | None) -> str:
    return NOTHING if file is None or file.instructions is None else f"{file.instructions / MILLION:.2f}"


def _kilobytes(file: CostFile | None) -> str:
    return NOTHING if file is None or file.bytes is None else f"{file.bytes / 1e3:,.0f}"


def _over_plain(file: CostFile | None) -> str:
    return told(None if file is None else file.latency_over_plain)


def _over_default(file: CostFile | None) -> str:
    return told(None if file is None else file.latency_over_default)


def _times(file: CostFile | None, *, plain: bool) -> str:
    if file is None:
        return NOTHING
    ratio = file.instructions_over_plain if plain else file.instructions_over_default
    return NOTHING if ratio is None else f"{ratio:.3f}"


def _operators(file: CostFile | None) -> str:
    return NOTHING if file is None or file.operators is None else f"{file.operators:,}"


def _partitions(file: CostFile | None) -> str:
    return NOTHING if file is None or file.partitions is None else f"{file.partitions:,}"
