"""What coordinate attention costs on ARM64, in guest instructions per inference, without ARM hardware.

MobileNetV2-1.0 at 224x224, plain and with the paper's block, each exported twice: as ``torch.onnx.export`` and
``litert_torch.convert`` do it by default, and as this project does. The counts come from the runtimes' real ARM64
kernels under QEMU; they repeat, so a run on any host gives the same figures.

    coordatt-deploy doctor --setup qemu-arm64
    python benchmarks/arm64_instructions.py --json arm64.json
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import litert_torch
import numpy as np
import onnxruntime
import torch
from torch import nn

from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.fold import fold_batchnorms
from coordatt_deploy.graph.lower import lower, target_of
from coordatt_deploy.models import create_model
from coordatt_deploy.quiet import captured
from coordatt_deploy.runtimes import litert
from coordatt_deploy.specs import Artifact, Format, ModelSpec, Precision, Preprocessing, TargetCpu, TensorSpec, to_json
from coordatt_deploy.targets.counts import InstructionCount
from coordatt_deploy.targets.cpus import CPUS, DEFAULT_CPU
from coordatt_deploy.targets.qemu_arm64 import count_instructions

SHAPE: Final = (1, 3, 224, 224)
MODELS: Final = {"plain": "mobilenetv2_100", "attention": "mobilenetv2_ca_100"}
FORMATS: Final = (Format.ONNX, Format.TFLITE)

# What the default exports cost when this was first measured, on another host: the ratio of attention to plain.
FIRST_MEASURED: Final = {Format.ONNX: 1.68, Format.TFLITE: 1.16}
AGREES_WITHIN: Final = 0.01


def network(name: str) -> nn.Module:
    """Build a model with fresh weights and statistics of BatchNorm that are not the identity."""
    module = create_model(name)
    generator = torch.Generator().manual_seed(1)
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0.0, 0.1, generator=generator)
            layer.running_var.uniform_(0.5, 1.5, generator=generator)
    return module


def export_default(module: nn.Module, kind: Format, path: Path) -> None:
    """Export as the official converter does without being told more than the input."""
    image = torch.rand(SHAPE, generator=torch.Generator().manual_seed(7))
    if kind is Format.ONNX:
        torch.onnx.export(module, (image,), path, dynamo=True, external_data=False, verbose=False)
    else:
        moved = litert_torch.to_channel_last_io(module, args=[0])
        litert_torch.convert(moved, (image.permute(0, 2, 3, 1).contiguous(),)).export(str(path))


def export_ours(module: nn.Module, kind: Format, path: Path) -> None:
    """Export as ``coordatt-deploy export --target-cpu arm64`` does."""
    graph, _ = fold_batchnorms(capture(module, (torch.zeros(SHAPE),)))
    cpu = TargetCpu.ARM64 if kind is Format.ONNX else None
    graph, _ = lower(graph, target_of(kind, cpu))
    spec = ModelSpec("benchmark", Preprocessing((SHAPE[2], SHAPE[3])))
    exporter(kind).export(graph, ExportRequest(spec, Precision.FP32, path, cpu))


def described(path: Path, kind: Format) -> Artifact:
    """Describe a file by itself: the official exporters write no bundle."""
    if kind is Format.ONNX:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        inputs, outputs = (
            tuple(TensorSpec(item.name, tuple(item.shape), "float32", "NCHW"[: len(item.shape)]) for item in items)
            for items in (session.get_inputs(), session.get_outputs())
        )
    else:
        runner = litert.Interpreter(str(path)).get_signature_runner(litert.SIGNATURE)
        inputs, outputs = (
            tuple(
                TensorSpec(name, tuple(map(int, item["shape"])), "float32", "NHWC" if len(item["shape"]) == 4 else "NC")
                for name, item in details.items()
            )
            for details in (runner.get_input_details(), runner.get_output_details())
        )
    return Artifact(path.name, kind, Precision.FP32, None, None, 0, "", inputs, outputs, "")


def counted(path: Path, kind: Format, cpu: str) -> InstructionCount:
    """Count the instructions of one file on noise."""
    artifact = described(path, kind)
    shape = tuple(size or 1 for size in artifact.inputs[0].shape)
    image = np.random.default_rng(7).random(shape, np.float32)
    return count_instructions(path, artifact, {artifact.inputs[0].name: image}, cpu=cpu)


def row(what: str, count: InstructionCount, ratio: float | None = None) -> str:
    """Return one line of the table."""
    shown = "".join(f"{count.classes[name] / 1e6:9.2f}" for name in ("fmla", "simd", "memory", "branch", "other"))
    return f"{what:28}{count.total / 1e6:9.2f}{shown}{count.spread:10.1e}{'' if ratio is None else f'{ratio:8.3f}'}"


def main() -> int:
    """Export, count, print the table; exit 1 where the ratios of the default exports are not reproduced."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cpu", default=DEFAULT_CPU, choices=list(CPUS))
    parser.add_argument("--json", type=Path, help="also write everything that was counted to this file")
    options = parser.parse_args()
    exports: dict[str, Callable[[nn.Module, Format, Path], None]] = {"default": export_default, "ours": export_ours}
    results: list[dict[str, object]] = []
    agrees = True
    print(f"millions of guest instructions per inference, {options.cpu}; the ratio is over the cheaper plain export")
    print(f"{'':28}{'total':>9}" + "".join(f"{name:>9}" for name in ("fmla", "simd", "memory", "branch", "other"))
          + f"{'spread':>10}{'ratio':>8}")  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for kind in FORMATS:
            counts = {}
            for how, export in exports.items():
                for what, name in MODELS.items():
                    path = Path(folder) / f"{name}_{how}.{kind}"
                    with captured(Path(folder) / "converters.log"):
                        export(network(name), kind, path)
                    count = counts[how, what] = counted(path, kind, options.cpu)
                    plain = min(value.total for (_, model), value in counts.items() if model == "plain")
                    ratio = count.total / plain if what == "attention" else None
                    print(row(f"{kind} {how} {what}", count, ratio), flush=True)
                    results.append({"format": kind, "export": how, "model": name, "ratio": ratio} | to_json(count))
            ratio = counts["default", "attention"].total / counts["default", "plain"].total
            deviation = ratio / FIRST_MEASURED[kind] - 1
            print(f"{kind}: default exports {ratio:.3f}, first measured {FIRST_MEASURED[kind]} ({deviation:+.2%})")
            agrees &= abs(deviation) <= AGREES_WITHIN or options.cpu != DEFAULT_CPU
    if options.json is not None:
        document = {"schema_version": 1, "cpu": options.cpu, "results": results}
        options.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
