"""Golden inputs and what the reference makes of them.

Real images (the packaged digits, or the user's), and tensors that no photograph gives: zeros, black, white, noise and a
checkerboard, because a wrong bias hides behind images and a wrong weight behind zeros. For dynamic sizes two sizes that
the capture never saw, neither of them square; for a dynamic batch several images beside each other, all different.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from coordatt_deploy.artifact_specs import Preprocessing, TensorSpec
from coordatt_deploy.bundle import save_golden
from coordatt_deploy.data.images import as_grey, as_png, normalise, preprocess
from coordatt_deploy.documents import SCHEMA_VERSION, JsonObject, JsonValue
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.graph.float16_range import prepare_in_float16
from coordatt_deploy.graph.graph import Graph, tensor_outputs
from coordatt_deploy.manifest import GoldenCase
from coordatt_deploy.stage_cache.store import CachedStage

ROUNDINGS: Final = ("golden/rounding_fp32.npz", "golden/rounding_fp16.npz")
SHOWN_OUTPUTS: Final = 10_000  # values; larger outputs are in outputs.npz alone

Arrays = list[NDArray[np.float32]]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Roundings:
    """That the captured graph was run in float32 and float16 on the golden inputs; what it gave is in files."""


@dataclass(frozen=True, slots=True)
class GoldenInputs:
    """The cases and, per input of the model, one array per case (N, C, H, W) float32."""

    cases: tuple[GoldenCase, ...]
    feeds: dict[str, Arrays]
    images: tuple[tuple[str, Image.Image], ...] = ()


def golden_inputs(
    inputs: Sequence[TensorSpec],
    preprocessing: Preprocessing,
    images: Sequence[tuple[str, Image.Image, int | None]],
    sizes: Sequence[tuple[int, int]] = (),
    batches: Sequence[int] = (),
) -> GoldenInputs:
    """Make the golden inputs of a model.

    Args:
        inputs: Of the captured graph; the first takes the images, further ones get noise.
        preprocessing: How an image becomes the first input.
        images: Name, image and class of each real image.
        sizes: Further (H, W) for dynamic models.
        batches: Of a dynamic batch: the smallest, which all cases have that are not of another, and further ones.
    """
    cases: list[GoldenCase] = []
    pictures, values = [], []
    channels = len(preprocessing.mean)
    has_pixels = len(inputs[0].shape) == 4 and inputs[0].shape[1] == channels
    takes_images = has_pixels and preprocessing.takes_images
    for name, image, label in images:
        path = f"golden/images/{name}.png" if takes_images else None
        cases.append(GoldenCase(name, path, label) if path else GoldenCase(f"noise_{len(cases):02d}"))
        pictures += [(path, _in_its_channels(image, preprocessing))] if path else []
        values.append(
            preprocess(image, preprocessing)[None]
            if preprocessing.takes_images
            else normalise(_random_pixels(preprocessing.size, channels, seed=len(cases)), preprocessing)[None]
        )
    for name, pixels in _made_up(preprocessing.size):
        cases.append(GoldenCase(name))
        values.append(_as_tensor(pixels, preprocessing))
    cases.append(GoldenCase("zeros"))
    values.append(np.zeros_like(values[0]))
    whole = list(values)
    for size in sizes:
        cases.append(GoldenCase(f"noise_{size[0]}x{size[1]}"))
        values.append(_as_tensor(_random_pixels(size, 3), replace(preprocessing, size=size)))
    smallest = inputs[0].shape[0] or min(batches, default=1)
    values = _batched(values, smallest)
    for index, batch in enumerate(item for item in batches if item != smallest):
        other = (None, *sizes)[index % (len(sizes) + 1)]  # of both kinds together where both are dynamic
        cases.append(GoldenCase(f"batch_of_{batch}" + (f"_{other[0]}x{other[1]}" if other else "")))
        beside = [whole[(index + place) % len(whole)] for place in range(batch)]
        if other is not None:
            resized = replace(preprocessing, size=other)
            beside = [_as_tensor(_random_pixels(other, 3, seed=place), resized) for place in range(batch)]
        values.append(np.concatenate(beside))
    feeds: dict[str, Arrays] = {}
    for position, spec in enumerate(inputs):
        feeds[spec.name] = (
            values
            if position == 0 and has_pixels
            else [_noise(_shape(spec, value), seed=index) for index, value in enumerate(values)]
        )
    return GoldenInputs(tuple(cases), feeds, tuple(pictures))


def _shape(spec: TensorSpec, images: NDArray[np.float32]) -> tuple[int, ...]:
    """The shape of an input in one case: batch, height and width that are dynamic are the same in all inputs."""
    beside = images.shape if len(spec.shape) == images.ndim else (len(images), *(1,) * (len(spec.shape) - 1))
    return tuple(own if size is None else size for size, own in zip(spec.shape, beside, strict=True))


def _batched(values: Arrays, batch: int) -> Arrays:
    """Put further cases of the same size beside each, for a model that takes several images at once."""
    if batch == 1:
        return values
    together = []
    for index, value in enumerate(values):
        others = [item for item in values[index + 1 :] + values[:index] if item.shape == value.shape] or [value]
        together.append(np.concatenate([value, *(others[place % len(others)] for place in range(batch - 1))]))
    return together


def _made_up(size: tuple[int, int]) -> list[tuple[str, Pixels]]:
    """Pixels (H, W, 3) that no photograph has."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    checker = ((rows // 4 + columns // 4) % 2 * 255).astype(np.uint8)
    ramp = np.stack([rows * 255 // max(height - 1, 1), columns * 255 // max(width - 1, 1), 255 - checker // 2], axis=-1)
    return [
        ("black", np.zeros((height, width, 3), np.uint8)),
        ("white", np.full((height, width, 3), 255, np.uint8)),
        ("noise", _random_pixels(size, 3)),
        ("checkerboard", np.stack([checker] * 3, axis=-1)),
        ("ramp", ramp.astype(np.uint8)),
    ]


def _as_tensor(pixels: Pixels, preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Preprocess colours as an image, or repeat them over the channels that no image has."""
    if preprocessing.takes_images:
        return preprocess(Image.fromarray(pixels), preprocessing)[None]
    repeated = np.take(pixels, np.arange(len(preprocessing.mean)) % 3, axis=2)
    return normalise(repeated, preprocessing)[None]


def _in_its_channels(image: Image.Image, preprocessing: Preprocessing) -> Image.Image:
    """The image as the model is given it: grey for a network of one channel."""
    return as_grey(image) if preprocessing.colour == "GREY" else image


def _random_pixels(size: tuple[int, int], channels: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)


def _noise(shape: tuple[int, ...], seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def write_golden(
    folder: Path,
    golden: GoldenInputs,
    graph: Graph,
    module: nn.Module,
    progress: Callable[[], None] = lambda: None,
    roundings: CachedStage | None = None,
) -> None:
    """Run the reference on every case and write ``golden/`` into *folder*.

    ``outputs.npz`` holds the module's own float64 results. ``rounding_fp32.npz`` and ``rounding_fp16.npz`` hold what
    torch makes of them in float32, and in float32 with every value rounded to float16 that float16 holds.

    Args:
        folder: Of the bundle.
        golden: The inputs.
        graph: The captured graph.
        module: The user's module in float64.
        progress: Called once per case.
        roundings: Where the captured graph's results may be already; the module's own are never taken from anywhere.
    """
    shutil.rmtree(folder / "golden" / "images", ignore_errors=True)  # of an earlier export
    for earlier in (folder / "golden").glob("*.npz"):
        earlier.unlink()  # folders are of images set aside for artifacts that stay
    (folder / "golden" / "images").mkdir(parents=True)
    for path, image in golden.images:
        as_png(image).save(folder / path)
    save_golden(folder / "golden" / "inputs.npz", golden.feeds)
    reused = roundings is not None and roundings.take(folder, Roundings) is not None
    runs = (
        {}
        if reused
        else {"rounding_fp32": prepare(graph, dtype=torch.float32), "rounding_fp16": prepare_in_float16(graph)}
    )
    results: dict[str, dict[str, list[NDArray[np.float64]]]] = {name: {} for name in ("outputs", *runs)}
    for index in range(len(golden.cases)):
        feeds = {name: values[index] for name, values in golden.feeds.items()}
        with torch.no_grad():
            tensors = [torch.from_numpy(feeds[spec.name]) for spec in graph.inputs]
            returned = module(*(tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors))
        leaves = tensor_outputs(returned)
        found = {
            "outputs": {name: leaf.numpy() for name, leaf in zip(graph.outputs, leaves, strict=True)},
            **{name: run(feeds) for name, run in runs.items()},
        }
        for kind, values in found.items():
            for name, value in values.items():
                results[kind].setdefault(name, []).append(value)
        progress()
    for kind, arrays in results.items():
        save_golden(folder / "golden" / f"{kind}.npz", arrays)
    if roundings is not None and not reused:
        roundings.keep(folder, Roundings())
    if golden.images:
        text = json.dumps(_expected(golden, graph, results["outputs"]), indent=1, allow_nan=False)
        (folder / "golden" / "images" / "expected.json").write_text(text + "\n", encoding="utf-8")


def _expected(golden: GoldenInputs, graph: Graph, outputs: dict[str, list[NDArray[np.float64]]]) -> JsonObject:
    """Return what an app's own test needs of each image: some places of the tensor, and the outputs."""
    first = graph.inputs[0].name
    images: list[JsonValue] = []
    for index, case in enumerate(golden.cases):
        if case.image is None:
            continue
        tensor = golden.feeds[first][index]
        rows, columns = (sorted({0, size // 3, size // 2, size - 1}) for size in tensor.shape[2:])
        images.append({
            "image": Path(case.image).name,
            "label": case.label,
            "tensor": {
                "name": first,
                "shape": list(tensor.shape),
                "layout": "NCHW",
                "mean": float(tensor.mean(dtype=np.float64)),
                "places": [
                    {"row": row, "column": column, "channels": [float(value) for value in tensor[0, :, row, column]]}
                    for row in rows
                    for column in columns
                ],
            },
            "outputs": {
                name: [float(value) for value in values[index].ravel()]
                for name, values in outputs.items()
                if values[index].size <= SHOWN_OUTPUTS and np.isfinite(values[index]).all()
            },
        })  # fmt: skip
    return {"schema_version": SCHEMA_VERSION, "images": images}
