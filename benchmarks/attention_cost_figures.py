"""What ``attention_cost`` measures of its files: structure, latency side by side, ARM64 instructions, and the floor."""

import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnxruntime
import torch
from attention_cost_files import Network, Way, described, module
from torch import nn

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.formats import Format
from coordatt_deploy.logs import captured, log_folder
from coordatt_deploy.models.coordatt import CoordAtt
from coordatt_deploy.profile.latency import Measurement, ProfileSettings
from coordatt_deploy.profile.rounds import Call, measure_openings
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools
from coordatt_deploy.runtimes.tflite import runner
from coordatt_deploy.targets.qemu_arm64 import target

FLOOR: Final = "three passes"
Files = Mapping[str, tuple[Way, Path]]


def structure(way: Way, path: Path) -> dict[str, int]:
    """Count what a runtime makes of a file: operators, and what they were chosen to avoid."""
    if way.format is Format.TFLITE:
        with captured(log_folder() / "attention_cost.log"):
            found = runner.operators(path)
        transposes = sum(item.name == "TRANSPOSE" for item in found.operators)
        return {"operators": len(found.operators), "partitions": found.partitions, "transposes": transposes}
    if way.format is Format.ONNX:
        kinds = optimised(path)
        return {
            "operators": kinds.total(),
            "reorders": kinds["ReorderInput"] + kinds["ReorderOutput"],
            "transposes": kinds["Transpose"],
        }
    program = coremltools.utils.load_spec(str(path)).mlProgram.functions["main"]
    kinds = Counter(item.type for item in program.block_specializations[program.opset].operations)
    return {"operators": kinds.total() - kinds["const"], "transposes": kinds["transpose"]}


def optimised(path: Path) -> Counter[str]:
    """Count the operators of the graph that ONNX Runtime makes of a file on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimised.onnx")
        options.log_severity_level = 3  # it warns that such a file is for this machine only
        onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def latencies(files: Files, network: Network, settings: ProfileSettings, threads: int = 1) -> Measurement:
    """Time *files*, and three passes over the gated maps, in turns."""
    order = random.Random(settings.seed)  # noqa: S311 - an order, not a secret
    passes = three_passes(network, threads)

    @contextmanager
    def open_calls() -> Iterator[Mapping[str, Call]]:
        with ExitStack() as stack:
            calls: dict[str, Call] = {}
            for name, (way, path) in order.sample(list(files.items()), len(files)):
                artifact = described(path, way)
                runner = stack.enter_context(runtime(way.format).open_artifact(path, artifact, threads=threads))
                calls[name] = partial(runner.infer, noise(artifact))
            yield calls | {FLOOR: passes}

    return measure_openings(open_calls, settings)


def noise(artifact: Artifact) -> dict[str, np.ndarray]:
    """Return an input of the kind that the file takes."""
    rng = np.random.default_rng(7)
    (spec,) = artifact.inputs
    shape = tuple(size or 1 for size in spec.shape)
    if spec.dtype == "int8":
        return {spec.name: rng.integers(-128, 128, shape, np.int8)}
    return {spec.name: rng.standard_normal(shape, np.float32)}


def three_passes(network: Network, threads: int) -> Callable[[], None]:
    """Return what reads every gated feature map once, and then reads and writes it: pools and gates cannot do less."""
    maps = [torch.rand(shape) for shape in gated_maps(network)]
    results = [torch.empty_like(one) for one in maps]

    def run() -> None:
        for one, result in zip(maps, results, strict=True):
            torch.sum(one)
            torch.mul(one, 0.5, out=result)

    torch.set_num_threads(threads)
    return run


def gated_maps(network: Network) -> list[tuple[int, ...]]:
    """Return the shapes of the feature maps that attention gates, in execution order."""
    net = module(dict(network.models)["attention"])
    shapes: list[tuple[int, ...]] = []

    def note(_layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        shapes.append(tuple(inputs[0].shape))

    for layer in net.modules():
        if isinstance(layer, CoordAtt):
            layer.register_forward_pre_hook(note)
    with torch.no_grad():
        net(torch.zeros(network.shape))
    return shapes


def instructions(way: Way, path: Path, cpu: str, cache: Path) -> int:
    """Return the ARM64 instructions of one inference, counted or from *cache*.

    Raises:
        MissingDependencyError: The emulated machine is not built here.
    """
    known = json.loads(cache.read_text(encoding="utf-8")) if cache.exists() else {}
    key = f"{path.name} {cpu}"
    if key not in known:
        artifact = described(path, way)
        counted = target.count_instructions(path, artifact, noise(artifact), cpu=cpu, inferences=1)
        known[key] = counted.total
        cache.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    return int(known[key])
