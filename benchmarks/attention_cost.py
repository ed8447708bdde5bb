"""What coordinate attention costs: our artifacts, the official exporters' defaults and the plain backbone in turns.

The same module with the same weights, exported by every way. *Plain* is the backbone without attention by the official
default or by us, whichever is the faster. Latencies are taken in turns in one process, on one thread unless told
otherwise, and compared by their medians with 95 % intervals; time that other processes took is taken out. ARM64
instructions are those of the runtimes' real kernels under QEMU, and repeat on any host. *Three passes* is what reading
every gated feature map once, reading it again and writing it costs here, on top of the plain backbone: the floor
without a fused kernel.

    coordatt-deploy doctor --setup qemu-arm64
    python benchmarks/attention_cost.py --json attention_cost.json

A first run converts 18 files, which takes minutes; they are kept in a cache. ``--quick`` takes a small network.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from attention_cost_figures import FLOOR, instructions, latencies, structure
from attention_cost_files import ATTENTION, FULL, PLAIN, QUICK, WAYS, Network, Way, build

from coordatt_deploy import host
from coordatt_deploy.documents import to_json
from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.logs import log_folder, set_environment
from coordatt_deploy.profile.latency import Latency, ProfileSettings
from coordatt_deploy.profile.statistics import Ratio, median_ratio
from coordatt_deploy.targets.qemu_arm64.cpus import CPUS, DEFAULT_CPU

MILLION: Final = 1e6


@dataclass(frozen=True, slots=True)
class Group:
    """Files of one runtime and precision, which are compared with one another."""

    title: str
    format: Format
    precision: Precision = Precision.FP32


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure of the table and what it must not exceed on the full network.

    Attributes:
        group: Of the files.
        figure: ``latency``, ``instructions``, ``partitions`` or ``operators``.
        cpu: Whose form is judged.
        over_plain: Greatest ratio to *plain*, or greatest count; first what hand-written forms reach, then the goal.
        over_default: Greatest ratio to the official default of the same module.
    """

    group: Group
    figure: str
    over_plain: tuple[float, float]
    over_default: float | None = None
    cpu: TargetCpu | None = None


ORT, LITERT = Group("ONNX Runtime", Format.ONNX), Group("LiteRT fp32", Format.TFLITE)
LITERT_INT8 = Group("LiteRT int8", Format.TFLITE, Precision.INT8)
CORE_ML = Group("Core ML", Format.COREML)
BARS: Final = (
    Bar(ORT, "latency", (1.32, 1.20), 0.75, TargetCpu.X86_64),
    Bar(ORT, "instructions", (1.23, 1.12), 0.73, TargetCpu.ARM64),
    Bar(LITERT, "latency", (1.16, 1.10), 0.94),
    Bar(LITERT, "instructions", (1.10, 1.06), 0.95),
    Bar(LITERT_INT8, "instructions", (1.26, 1.15), 0.83),
    Bar(LITERT_INT8, "partitions", (1, 1)),
    Bar(CORE_ML, "operators", (300, 275)),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file and what was found out about it."""

    way: Way
    what: str
    path: Path
    structure: Mapping[str, int]
    instructions: int | None = None

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.way} {self.what}"

    def value(self, figure: str) -> float | None:
        """Return a figure that needs no clock; None if it was not found out."""
        return self.instructions if figure == "instructions" else self.structure.get(figure)


def main() -> int:
    """Build, measure, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small network and few samples: does it work at all")
    parser.add_argument("--cpu", default=DEFAULT_CPU, choices=list(CPUS), help="that instructions are counted on")
    parser.add_argument("--samples", type=int, default=300, help="of each file's latency")
    parser.add_argument("--threads", type=int, default=1, help="of each file's latency; the bars are for one")
    parser.add_argument("--without", nargs="*", default=[], choices=["latency", "instructions"], help="leave out")
    parser.add_argument("--cache", type=Path, default=log_folder().parent / "attention_cost", help="of converted files")
    parser.add_argument("--json", type=Path, help="also write every figure to this file")
    options = parser.parse_args()
    set_environment()
    network = QUICK if options.quick else FULL
    entries = tuple(_entries(network, options))
    settings = ProfileSettings(samples=60 if options.quick else options.samples, openings=6, min_seconds=0.0)
    timed = {} if "latency" in options.without else _timed(entries, network, settings, options.threads)
    rows = [_row(bar, entries, timed) for bar in BARS]
    _print(rows, entries, timed, options)
    if options.json is not None:
        document = _document(rows, entries, timed, options, network)
        options.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0


def _entries(network: Network, options: argparse.Namespace) -> Iterable[Entry]:
    counting = "instructions" not in options.without
    for way, what, path in build(network, options.cache, WAYS):
        count = None
        if counting and way.format is not Format.COREML and way.cpu is not TargetCpu.X86_64:
            try:
                print(f"counting {path.name}", file=sys.stderr, flush=True)
                count = instructions(way, path, options.cpu, options.cache / "instructions.json")
            except MissingDependencyError as error:
                print(f"no instructions: {error}", file=sys.stderr)
                counting = False
        yield Entry(way, what, path, structure(way, path), count)


def _timed(
    entries: Sequence[Entry], network: Network, settings: ProfileSettings, threads: int
) -> dict[Group, Mapping[str, Latency]]:
    timed = {}
    for group in (ORT, LITERT, LITERT_INT8):
        print(f"timing {group.title}", file=sys.stderr, flush=True)
        files = {entry.name: (entry.way, entry.path) for entry in _of(group, entries)}
        timed[group] = latencies(files, network, settings, threads).latencies
    return timed


def _of(group: Group, entries: Sequence[Entry]) -> list[Entry]:
    return [item for item in entries if (item.way.format, item.way.precision) == (group.format, group.precision)]


def ratio(a: Latency, b: Latency) -> Ratio:
    """Return median(a) / median(b) over the rounds of which it is known what other processes took of them."""
    rounds_a, rounds_b = a.undisturbed, b.undisturbed
    count = min(len(rounds_a), len(rounds_b))
    known = np.isfinite(rounds_a[:count]).all(axis=1) & np.isfinite(rounds_b[:count]).all(axis=1)
    return median_ratio(rounds_a[:count][known], rounds_b[:count][known])


def median_ms(latency: Latency) -> float:
    """Return the median without what other processes took."""
    return float(np.nanmedian(latency.undisturbed)) / MILLION


def _row(bar: Bar, entries: Sequence[Entry], timed: Mapping[Group, Mapping[str, Latency]]) -> dict[str, Any]:
    """Compare ours with attention with *plain* and with the official default."""
    files = _of(bar.group, entries)
    (ours,) = (item for item in files if (item.way.export, item.what, item.way.cpu) == ("ours", ATTENTION, bar.cpu))
    (default,) = (item for item in files if (item.way.export, item.what) == ("default", ATTENTION))
    plains = [item for item in files if item.what == PLAIN and item.way.cpu in {None, bar.cpu}]
    row: dict[str, Any] = {"bar": f"{bar.group.title} {bar.figure}", "form": bar.cpu and str(bar.cpu)}
    row |= {"at_most": list(bar.over_plain), "at_most_over_default": bar.over_default}
    if bar.figure == "latency":
        if bar.group not in timed:
            return row
        found = timed[bar.group]
        plain = min((found[item.name] for item in plains), key=median_ms)
        floor = ratio(found[FLOOR], plain)
        row |= {"plain": median_ms(plain), "default": median_ms(found[default.name])}
        row |= {"ours": median_ms(found[ours.name])}
        row |= {"over_plain": to_json(ratio(found[ours.name], plain))}
        row |= {"default_over_plain": to_json(ratio(found[default.name], plain))}
        row |= {"over_default": to_json(ratio(found[ours.name], found[default.name]))}
        return row | {"three_passes_over_plain": 1 + floor.value}
    values = {"ours": ours.value(bar.figure), "default": default.value(bar.figure)}
    if bar.figure != "instructions" or None in values.values():
        return row | values
    plain_count = min(item.value(bar.figure) or np.inf for item in plains)
    row |= {"plain": plain_count / MILLION} | {key: value / MILLION for key, value in values.items() if value}
    row |= {"over_plain": {"value": values["ours"] / plain_count}}
    row |= {"default_over_plain": {"value": values["default"] / plain_count}}
    return row | {"over_default": {"value": values["ours"] / values["default"]}}


def _print(
    rows: Sequence[Mapping[str, Any]],
    entries: Sequence[Entry],
    timed: Mapping[Group, Mapping[str, Latency]],
    options: argparse.Namespace,
) -> None:
    here = host.describe()
    print(f"{here.cpu} ({', '.join(here.features)}), {here.cores} cores")
    print(f"threads: {options.threads}; instructions: {options.cpu}")
    print("latency in ms, instructions in millions per inference; [95 % interval]; bars hold for the full network\n")
    print(f"{'':34}{'plain':>9}{'default':>9}{'ours':>9}  {'over plain':22}{'at most':12}{'over default':22}at most")
    for row in rows:
        name = row["bar"] + (f" ({row['form']})" if row["form"] else "")
        values = "".join(f"{_number(row.get(key)):>9}" for key in ("plain", "default", "ours"))
        first, then = row["at_most"]
        bars = f"{first}, {then}" if first != then else f"{first}"
        limit = "" if row["at_most_over_default"] is None else row["at_most_over_default"]
        print(
            f"{name:34}{values}  {_ratio(row.get('over_plain')):22}{bars:12}{_ratio(row.get('over_default')):22}{limit}"
        )
    for row in rows:
        if "three_passes_over_plain" in row:
            print(
                f"\n{row['bar']}: three passes over the gated maps alone would be {row['three_passes_over_plain']:.3f}"
            )
    print(f"\n{'':44}{'median ms':>11}{'M instr.':>10}  structure")
    for entry in entries:
        latency = next((found[entry.name] for found in timed.values() if entry.name in found), None)
        told = ", ".join(f"{key} {value}" for key, value in entry.structure.items())
        count = None if entry.instructions is None else entry.instructions / MILLION
        print(f"{entry.name:44}{_number(latency and median_ms(latency)):>11}{_number(count):>10}  {told}")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if isinstance(value, int) else f"{value:.2f}"


def _ratio(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "-"
    interval = f" [{found['low']:.3f}, {found['high']:.3f}]" if "low" in found else ""
    return f"{found['value']:.3f}{interval}"


def _document(
    rows: Sequence[Mapping[str, Any]],
    entries: Sequence[Entry],
    timed: Mapping[Group, Mapping[str, Latency]],
    options: argparse.Namespace,
    network: Network,
) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "host": to_json(host.describe()),
        "cpu_of_instructions": options.cpu,
        "threads": options.threads,
        "network": to_json(network),
        "bars": list(rows),
        "files": [
            {"name": item.name, "file": item.path.name, "instructions": item.instructions} | dict(item.structure)
            for item in entries
        ],
        "latencies": {
            group.title: {
                name: {"median_ms": median_ms(item), "preempted": item.preempted, "verdict": to_json(item.verdict),
                       "samples_ns": item.samples_ns, "lost_ns": item.lost_ns}
                for name, item in found.items()
            }
            for group, found in timed.items()
        },
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
