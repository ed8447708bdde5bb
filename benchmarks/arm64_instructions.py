"""What coordinate attention costs on ARM64, in guest instructions per inference, without ARM hardware.

The files of ``attention_cost.py``, whose cache it shares: MobileNetV2-1.0 at 224x224, plain and with the paper's block,
as ``torch.onnx.export`` and ``litert_torch.convert`` export it by default, and as this project does. The counts come
from the runtimes' real ARM64 kernels under QEMU; they repeat, so a run on any host gives the same figures.

    coordatt-deploy doctor --setup qemu-arm64
    python benchmarks/arm64_instructions.py --json arm64.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Final

from attention_cost_figures import noise
from attention_cost_files import ATTENTION, FULL, PLAIN, Way, build, described

from coordatt_deploy.documents import to_json
from coordatt_deploy.formats import Format, TargetCpu
from coordatt_deploy.logs import log_folder
from coordatt_deploy.targets import InstructionCount
from coordatt_deploy.targets.qemu_arm64.cpus import CPUS, DEFAULT_CPU
from coordatt_deploy.targets.qemu_arm64.target import count_instructions

WAYS: Final = (
    Way("default", Format.ONNX),
    Way("ours", Format.ONNX, cpu=TargetCpu.ARM64),
    Way("default", Format.TFLITE),
    Way("ours", Format.TFLITE),
)
# What the default exports cost when this was first measured, on another host: the ratio of attention to plain.
FIRST_MEASURED: Final = {Format.ONNX: 1.68, Format.TFLITE: 1.16}
AGREES_WITHIN: Final = 0.01
CLASSES: Final = ("fmla", "simd", "memory", "branch", "other")


def row(what: str, count: InstructionCount, ratio: float | None = None) -> str:
    """Return one line of the table."""
    shown = "".join(f"{count.classes[name] / 1e6:9.2f}" for name in CLASSES)
    return f"{what:28}{count.total / 1e6:9.2f}{shown}{count.spread:10.1e}{'' if ratio is None else f'{ratio:8.3f}'}"


def main() -> int:
    """Export, count, print the table; exit 1 where the ratios of the default exports are not reproduced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", default=DEFAULT_CPU, choices=list(CPUS))
    parser.add_argument("--json", type=Path, help="also write everything that was counted to this file")
    parser.add_argument("--cache", type=Path, default=log_folder().parent / "attention_cost", help="of converted files")
    options = parser.parse_args()
    counts: dict[Format, dict[tuple[str, str], InstructionCount]] = {way.format: {} for way in WAYS}
    results: list[dict[str, object]] = []
    print(f"millions of guest instructions per inference, {options.cpu}; the ratio is over the cheaper plain export")
    print(f"{'':28}{'total':>9}" + "".join(f"{name:>9}" for name in CLASSES) + f"{'spread':>10}{'ratio':>8}")
    for way, what, path in build(FULL, options.cache, WAYS):
        artifact, known = described(path, way), counts[way.format]
        count = known[way.export, what] = count_instructions(path, artifact, noise(artifact), cpu=options.cpu)
        plain = min(value.total for (_, model), value in known.items() if model == PLAIN)
        ratio = count.total / plain if what == ATTENTION else None
        print(row(f"{way.format} {way.export} {what}", count, ratio), flush=True)
        results.append({"format": way.format, "export": way.export, "model": what, "ratio": ratio} | to_json(count))
    agrees = True
    for kind, known in counts.items():
        ratio = known["default", ATTENTION].total / known["default", PLAIN].total
        deviation = ratio / FIRST_MEASURED[kind] - 1
        print(f"{kind}: default exports {ratio:.3f}, first measured {FIRST_MEASURED[kind]} ({deviation:+.2%})")
        agrees &= abs(deviation) <= AGREES_WITHIN or options.cpu != DEFAULT_CPU
    if options.json is not None:
        document = {"schema_version": 1, "cpu": options.cpu, "results": results}
        options.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
