"""What each technique of the int8 recipes is worth: a file is written without it, and run beside the others.

    python benchmarks/int8_gains.py BUNDLE --format onnx                       the embedded default, on all its digits
    python benchmarks/int8_gains.py BUNDLE --calibration-data DIR --images DIR a network of your own

BUNDLE is what ``coordatt-deploy export`` wrote. Signal over noise is that of the first output against the reference in
float32, agreement is of the first class, and top-1 counts images whose folder names their class (or held-out digits).
"""

import argparse
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from coordatt_deploy.artifact_specs import RangeMethod
from coordatt_deploy.bundle import Bundle, open_bundle
from coordatt_deploy.conversion.quantized_artifact import measure_ranges, write
from coordatt_deploy.conversion.quantized_artifact import prepare as prepare_file
from coordatt_deploy.data.calibration import CalibrationSet, digits_calibration, load_calibration
from coordatt_deploy.data.digits import read_split, render
from coordatt_deploy.data.images import find_images, load_image, preprocess
from coordatt_deploy.formats import FORMATS, Format, TargetCpu
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.graph.graph import Graph
from coordatt_deploy.graph.saved_graph import load_graph
from coordatt_deploy.logs import captured, set_environment
from coordatt_deploy.quantization import rounding
from coordatt_deploy.quantization.recipes import Recipe, parse
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.tensors import decode, encode

BASE = replace(parse("static_wi8_ai8"), equalise=False, adjust=False)
DEFAULT = parse("static_wi8_ai8")
Labelled = tuple[NDArray[np.float32], NDArray[np.int64]]


def bias_alone(
    tensor: torch.Tensor, bias: torch.Tensor | None, inputs: torch.Tensor, targets: torch.Tensor, levels: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Round every weight to its nearest step, and shift the bias by what that costs the output in the mean."""
    groups = inputs.shape[0]
    flat = tensor.double().reshape(groups, targets.shape[2], -1)
    step = (flat.abs().amax(2, keepdim=True) / levels).clamp_min(1e-30)
    near = (flat / step).round() * step
    given = inputs[..., : flat.shape[2]].double() @ near.transpose(1, 2)
    shifted = None if bias is None else (targets.double() - given).mean(1).reshape(bias.shape)
    return near.reshape(tensor.shape), shifted


@contextmanager
def patched(fit: Callable[..., object]) -> Iterator[None]:
    """Let the rounding stage do something else with each layer."""
    before = rounding.fit
    rounding.fit = fit  # type: ignore[assignment]
    try:
        yield
    finally:
        rounding.fit = before


def variants() -> dict[str, tuple[Recipe, Callable[..., object] | None]]:
    """What is compared: the recipe, and what takes the place of rounding."""
    found: dict[str, tuple[Recipe, Callable[..., object] | None]] = {
        f"plain, ranges {method.value}": (replace(BASE, ranges=method), None) for method in RangeMethod
    }
    found["+ bias shift"] = (replace(BASE, adjust=True), bias_alone)
    found["+ weights rounded on data"] = (replace(BASE, adjust=True), None)
    found["+ equalisation"] = (replace(BASE, equalise=True), None)
    for method in (RangeMethod.MIN_MAX, RangeMethod.MSE):
        found[f"all, ranges {method.value}"] = (replace(DEFAULT, ranges=method), None)
    found["all (the default)"] = (DEFAULT, None)
    return found


def all_digits(bundle: Bundle) -> Labelled:
    """All 1,797 digits; those that are not held out have the class -1, which no answer equals."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.clip(np.round(digits.images * 255 / 16), 0, 255).astype(np.uint8)
    classes = np.full(len(pixels), -1)
    held_out = read_split("held_out")
    classes[held_out.indices] = held_out.labels
    return np.stack([preprocess(render(item), bundle.manifest.model.preprocessing) for item in pixels]), classes


def folder_of_classes(bundle: Bundle, folder: Path) -> Labelled:
    """Images in one folder per class, in the order of their names."""
    paths = find_images(folder)
    names = sorted({path.parent.name for path in paths})
    images = [preprocess(load_image(path), bundle.manifest.model.preprocessing) for path in paths]
    return np.stack(images), np.array([names.index(path.parent.name) for path in paths])


def reference(graph: Graph, images: NDArray[np.float32]) -> NDArray[np.float64]:
    """The first output for every image, in float32."""
    run, name = prepare(graph, dtype=torch.float32), graph.outputs[0]
    return np.concatenate([run({graph.inputs[0].name: image[None]})[name] for image in images]).astype(np.float64)


def outputs(
    bundle: Bundle, graph: Graph, kind: Format, recipe: Recipe, data: CalibrationSet, images: NDArray[np.float32]
) -> tuple[NDArray[np.float64], int]:
    """Write the artifact and run it on every image; returns the first output, and the file's bytes."""
    cpu = TargetCpu.ARM64 if kind is Format.ONNX else None
    with tempfile.TemporaryDirectory() as scratch, captured(Path(scratch) / "log"):
        folder, spec = Path(scratch), bundle.manifest.model
        prepared = prepare_file(graph, recipe, kind, spec, folder, target_cpu=cpu, data=data)
        path = folder / f"quantized{FORMATS[kind].suffix}"
        exported, request = write(prepared, recipe, measure_ranges(prepared, recipe, data), path, spec)
        artifact = exported.described(request, folder, recipe.name)
        found = []
        with runtime(kind).open_artifact(path, artifact) as runner:
            for image in images:
                given = runner.infer({item.name: encode(image[None], item) for item in artifact.inputs})
                found.append(decode(given[artifact.outputs[0].name], artifact.outputs[0])[0])
        return np.array(found), artifact.bytes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--format", type=Format, choices=list(Format), default=Format.ONNX)
    parser.add_argument("--calibration-data", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--only", nargs="*", help="Parts of the names of the variants.")
    options = parser.parse_args()
    set_environment()
    torch.set_num_threads(1)
    bundle = open_bundle(options.bundle)
    graph, manifest = load_graph(bundle.path("reference")), bundle.manifest
    inputs, preprocessing = manifest.inputs, manifest.model.preprocessing
    if options.calibration_data:
        data = load_calibration(options.calibration_data, inputs, preprocessing)
    else:
        data = digits_calibration(inputs, preprocessing)
    images, classes = folder_of_classes(bundle, options.images) if options.images else all_digits(bundle)
    expected, known = reference(graph, images), classes >= 0
    right = int((expected.argmax(1) == classes)[known].sum())
    print(
        f"{manifest.model.name}, {options.format}, static_wi8_ai8: {len(data)} calibration images, {len(images)} images"
    )
    print(f"| variant | SQNR, dB | agreement, % | top-1 of {int(known.sum())} (float {right}) |\n|---|---|---|---|")
    for name, (recipe, fit) in variants().items():
        if options.only and not any(part in name for part in options.only):
            continue
        with patched(fit or rounding.fit):
            given, _ = outputs(bundle, graph, options.format, recipe, data, images)
        ratio = 10 * np.log10(np.square(expected).sum() / np.square(given - expected).sum())
        same, hits = (given.argmax(1) == expected.argmax(1)).mean(), int((given.argmax(1) == classes)[known].sum())
        print(f"| {name} | {ratio:.1f} | {100 * same:.2f} | {hits} |", flush=True)


if __name__ == "__main__":
    main()
