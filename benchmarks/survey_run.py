"""One network of the survey, in a process of its own: export, parity, and the files held against torch directly.

    python -m benchmarks.survey_run NETWORK RESULT.json FOLDER FAULTS

The bundle is written below FOLDER. The result is written after the export and again when all is done, so that a crash
of a judge does not hide what was exported.
"""

import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from PIL import Image

from benchmarks.faults.__main__ import run as plant_faults
from benchmarks.faults.bench import Bench
from benchmarks.faults.planters import FAULTS
from benchmarks.survey_networks import BY_KEY, FAULTED, Network, build, normalised, photographs
from benchmarks.survey_results import ArtifactResult, FaultCount, NetworkResult, Verdict
from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, TensorSpec
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.conversion.export_run import export
from coordatt_deploy.conversion.plan import ExportPlan
from coordatt_deploy.conversion.refusals import NothingWrittenError
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import DeployError, InternalError
from coordatt_deploy.files import write_whole
from coordatt_deploy.formats import FORMATS, Format, Precision
from coordatt_deploy.graph.graph import tensor_outputs
from coordatt_deploy.host import tool_versions
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.manifest import RefusedFile
from coordatt_deploy.metrics import sqnr_db
from coordatt_deploy.parity.result import ArtifactParity
from coordatt_deploy.parity.run import ParityPlan, check_parity
from coordatt_deploy.parity.tolerances import BUILT_IN, for_untrained
from coordatt_deploy.progress import Stages

GOLDEN: Final = 4  # images; parity adds zeros and extremes
FAULT_CASES: Final = 2  # golden inputs that layers are judged on
FACTORY: Final = "benchmarks.survey_networks:build"


def plan(network: Network, folder: Path, formats: Sequence[Format]) -> ExportPlan:
    """Return what a user would ask for, with images of the kind that the network was settled on."""
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for index, image in enumerate(photographs(GOLDEN, network.side, seed=2)):
        Image.fromarray(image).save(images / f"{index}.png")
    name = network.key.replace(":", "_")
    return ExportPlan(
        model=ModelRequest(FACTORY, model_args={"network": network.key}, input_size=(network.side, network.side),
                           golden=images, name=name),
        formats=tuple(formats),
        output_dir=folder / name,
    )  # fmt: skip


def exported(network: Network, folder: Path) -> tuple[Bundle | None, tuple[ArtifactResult, ...]]:
    """Export to all formats; return the bundle, if there is a file in it, and a result for each file that is not."""
    shutil.rmtree(folder / network.key.replace(":", "_"), ignore_errors=True)  # of an earlier run
    try:
        bundle = export(plan(network, folder, tuple(Format)), Stages())
    except NothingWrittenError as error:
        return None, tuple(map(_refusal, error.refused))
    except DeployError as error:  # of the network, whatever the format
        verdict = Verdict.CRASHED if isinstance(error, InternalError) else Verdict.REFUSED
        return None, tuple(
            ArtifactResult(file_format, precision, verdict, str(error))
            for file_format in Format
            for precision in FORMATS[file_format].precisions
        )
    return bundle, tuple(map(_refusal, bundle.refused))


def _refusal(file: RefusedFile) -> ArtifactResult:
    """A refusal names the operator that the format cannot have; what ends in another way has crashed."""
    verdict = Verdict.REFUSED if file.operators else Verdict.CRASHED
    return ArtifactResult(file.format, Precision(file.precision), verdict, file.reason)


def judged(parity: ArtifactParity, bundle: Bundle) -> ArtifactResult:
    """Return what parity found of one file."""
    record, layers = parity.record(), parity.layers
    passed = parity.passed is True and (layers is None or layers.passed is True)
    verdict = Verdict.PASSED if passed else Verdict.FAILED if parity.provable else Verdict.UNPROVEN
    ratios = [item.sqnr_db for item in (*record.outputs, *record.layers) if item.sqnr_db is not None]
    finite = [ratio for ratio in ratios if math.isfinite(ratio)]
    rows = record.layers
    return ArtifactResult(
        format=record.format,
        precision=record.precision,
        verdict=verdict,
        detail="" if passed else "; ".join(filter(None, [record.problem, record.layers_problem, record.summary])),
        lowest_sqnr_db=round(min(finite), 1) if finite else None,
        layers=len(rows),
        mapped=round(bundle.layers(parity.artifact).coverage, 4),
        judged=round(sum(row.passed is not None for row in rows) / len(rows), 4) if rows else 0.0,
    )


# Directly ------------------------------------------------------------------------------------------------------------


def direct_sqnr_db(path: Path, artifact: Artifact, image: NumberArray, wanted: Mapping[str, NumberArray]) -> float:
    """Run a file by its runtime alone on one image (1, 3, H, W); the lowest SQNR of its outputs against torch."""
    spec = artifact.inputs[0]
    feed = image.transpose(0, 2, 3, 1) if spec.layout == "NHWC" else image
    given = RUN_BY[artifact.format](path, spec.name, np.ascontiguousarray(feed))
    specs = {item.name: item for item in artifact.outputs}
    return min(sqnr_db([_channels_first(given[name], specs[name])], [value]) for name, value in wanted.items())


def _channels_first(value: NumberArray, spec: TensorSpec) -> NumberArray:
    return value.transpose(0, 3, 1, 2) if spec.layout == "NHWC" else value


def _run_onnx(path: Path, name: str, feed: NumberArray) -> dict[str, NumberArray]:
    import onnxruntime  # only where there is such a file

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: feed}), strict=True))


def _run_tflite(path: Path, name: str, feed: NumberArray) -> dict[str, NumberArray]:
    from ai_edge_litert.interpreter import Interpreter  # only where there is such a file

    runner = Interpreter(model_path=str(path), num_threads=1).get_signature_runner()
    given: dict[str, NumberArray] = runner(**{name: feed})
    return given


def _run_executorch(path: Path, name: str, feed: NumberArray) -> dict[str, NumberArray]:  # noqa: ARG001 - one input
    from executorch.extension.pybindings import _C as executorch  # noqa: N811 - only where there is such a file

    module = executorch._load_for_executorch(str(path))  # from a buffer it would not keep the bytes alive
    names = json.loads(module.run_method("coordatt_deploy_metadata", [])[0])["outputs"]
    made = module.forward([torch.from_numpy(feed)])
    return {output: value.numpy() for output, value in zip(names, made, strict=True)}


RUN_BY: Final = {Format.ONNX: _run_onnx, Format.TFLITE: _run_tflite, Format.EXECUTORCH: _run_executorch}


def hold_against_torch(network: Network, bundle: Bundle, results: Sequence[ArtifactResult]) -> list[ArtifactResult]:
    """Add what the runtimes themselves give, for the formats whose runtime is here."""
    module = build(network.key).double()
    image = normalised(photographs(1, network.side, seed=3))
    with torch.no_grad():
        outputs = tensor_outputs(module(torch.from_numpy(image).double()))
    names = [spec.name for spec in bundle.manifest.outputs]
    wanted = {name: output.numpy() for name, output in zip(names, outputs, strict=True)}
    found = []
    for result in results:
        artifact = next((item for item in bundle.manifest.artifacts
                         if (item.format, item.precision) == (result.format, result.precision)), None)  # fmt: skip
        if artifact is not None and artifact.format in RUN_BY:
            ratio = direct_sqnr_db(bundle.path(artifact.path), artifact, image, wanted)
            result = replace(result, direct_sqnr_db=round(ratio, 1) if math.isfinite(ratio) else None)
        found.append(result)
    return found


def planted(bundle: Bundle, count: int, first: int) -> Iterator[FaultCount]:
    """Plant faults into every file of a bundle, *count* into each, and say how many were named.

    Each file begins with another kind than the one before, from the kind *first* on, so that few seeds see many kinds.
    """
    bench = Bench(bundle.root, FAULT_CASES)
    for index, artifact in enumerate(bench.bundle.manifest.artifacts):
        tally = plant_faults(bench, artifact, list(FAULTS), count, first + count * index)
        counts = tally.counts
        yield FaultCount(artifact.path, counts["", "planted"], counts["", "named"], tuple(tally.missed))


def examine(network: Network, target: Path, folder: Path, faults: int = 0) -> NetworkResult:
    """Do all that is to be done with one network, and write down in *target* how far it came."""
    parameters = sum(parameter.numel() for parameter in build(network.key).parameters())
    bundle, refused = exported(network, folder)
    files = list(refused)
    result = NetworkResult(network.key, network.side, parameters, refused, versions=tool_versions())
    write_whole(target, dump(result))
    if bundle is not None:
        report = check_parity(bundle, ParityPlan(tolerances=for_untrained(BUILT_IN)), Stages())
        files += [judged(parity, bundle) for parity in report.artifacts]
        write_whole(target, dump(replace(result, artifacts=tuple(files))))
        files = hold_against_torch(network, bundle, files)
    order = list(Format)
    result = replace(result, artifacts=tuple(sorted(files, key=lambda item: order.index(item.format))))
    write_whole(target, dump(result))
    if bundle is not None and faults:
        first = FAULTED.index(network.key) * faults * len(bundle.manifest.artifacts)
        result = replace(result, faults=tuple(planted(bundle, faults, first)))
        write_whole(target, dump(result))
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    examine(BY_KEY[sys.argv[1]], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
