"""One quantized artifact, from the captured graph or from a float artifact that exists: prepare, measure, write.

    prepare    fold, even out the channels, lower for the runtime, round the weights; export that as a float artifact
    measure    run the float artifact on the calibration data and choose the range of every activation
    write      let the format's own quantizer put integers in their place

The steps are apart because a search over recipes repeats only the last two.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, ModelSpec
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.errors import ConversionError, UsageError
from coordatt_deploy.exporters import Exported, ExportRequest, exporter, quantizer
from coordatt_deploy.formats import FORMATS, Format, Precision, TargetCpu
from coordatt_deploy.graph.graph import Graph
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.graph.operator_support import check_supported
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.graph.passes.input_normalisation import fold_normalisation, is_baked
from coordatt_deploy.manifest import EqualiseReport, LoweringReport, RoundingReport
from coordatt_deploy.quantization.equalise import equalise
from coordatt_deploy.quantization.ranges import Range, input_range, measure
from coordatt_deploy.quantization.recipes import Recipe, precision_of
from coordatt_deploy.quantization.rounding import round_weights
from coordatt_deploy.runtime_versions import NO_LIMITS, RuntimeLimits
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.tensors import encode


@dataclass(frozen=True, slots=True)
class Prepared:
    """A float artifact ready to be quantized.

    Attributes:
        path: Of the file.
        artifact: Its description.
        exported: Its inputs, outputs and layer map.
        lowering: What lowering did; None for an artifact that existed.
        equalise: What evening out channels did; None where it was not done.
        rounding: What rounding weights on data did; None where it was not done.
        at_once: Images of a calibration case: the batch, and of a dynamic one the smallest.
    """

    path: Path
    artifact: Artifact
    exported: Exported
    lowering: LoweringReport | None = None
    equalise: EqualiseReport | None = None
    rounding: RoundingReport | None = None
    at_once: int = 1


def existing(path: Path, artifact: Artifact, exported: Exported, at_once: int = 1) -> Prepared:
    """Take a float artifact as it is."""
    return Prepared(path, artifact, exported, at_once=at_once)


def prepare(
    graph: Graph,
    recipe: Recipe,
    kind: Format,
    spec: ModelSpec,
    folder: Path,
    *,
    target_cpu: TargetCpu | None = None,
    data: CalibrationSet | None = None,
) -> Prepared:
    """Export *graph* as the float artifact that *recipe* starts from.

    Args:
        graph: As it was captured; it is left alone.
        recipe: Says what is done to the weights.
        kind: Format.
        spec: For the artifact's metadata.
        folder: An empty one; the artifact is written there.
        target_cpu: Whose form the artifact has (ONNX).
        data: Calibration data; not used by recipes that need none.

    Raises:
        UsageError: The recipe needs calibration data and there is none.
        ConversionError: A converter refused the graph.
    """
    if recipe.needs_calibration and data is None:
        raise UsageError(f"{recipe.name} needs calibration data: give --calibration-data with a folder of images")
    lowered, lowering, equalised = lower_and_equalise(graph, recipe, kind, target_cpu=target_cpu, data=data)
    rounding = None
    if data is not None and recipe.needs_calibration and recipe.adjust:
        lowered, rounding = round_weights(
            lowered,
            data,
            method=recipe.ranges,
            activations=recipe.activations == "int8",  # finer ones add no noise worth looking at
            levels=quantizer(kind).weight_levels(target_cpu),
            float_layers=frozenset(recipe.float_layers),
        )
    check_supported(lowered, kind)
    request = ExportRequest(spec, FORMATS[kind].quantized_from, folder / f"float{FORMATS[kind].suffix}", target_cpu)
    exported = exporter(kind).export(lowered, request)
    made = exported.described(request, folder)
    return Prepared(request.path, made, exported, lowering, equalised, rounding, graph.images_at_once)


def lower_and_equalise(
    graph: Graph,
    recipe: Recipe,
    kind: Format,
    *,
    target_cpu: TargetCpu | None = None,
    data: CalibrationSet | None = None,
) -> tuple[Graph, LoweringReport, EqualiseReport | None]:
    """Fold *graph*, even out its channels where the recipe asks for it, and lower it; see ``prepare``.

    Returns:
        The lowered graph, what lowering did, and what evening out channels did where the recipe asks for it.
    """
    folded = fold_batchnorms(graph)[0]
    if is_baked(folded):
        folded = fold_normalisation(folded)[0]
    equalised = None
    if data is not None and recipe.needs_calibration and recipe.equalise:
        folded, equalised = equalise(folded, data)
    lowered, report = lower(folded, target_of(kind, target_cpu, integer=recipe.needs_calibration))
    return lowered, report, equalised


def measure_ranges(prepared: Prepared, recipe: Recipe, data: CalibrationSet | None) -> dict[str, Range] | None:
    """Run the float artifact on *data* and return the range of every activation; None where the recipe asks for none.

    Raises:
        UsageError: The recipe needs calibration data and there is none.
        ConversionError: The float artifact gives NaN or infinity on the data.
    """
    if not recipe.needs_calibration:
        return None
    if data is None:
        raise UsageError(f"{recipe.name} needs calibration data: give --calibration-data with a folder of images")
    kind, inputs = prepared.artifact.format, prepared.artifact.inputs
    wanted = quantizer(kind).activations(prepared.path, prepared.exported)
    with runtime(kind).open_artifact(prepared.path, prepared.artifact, tensors=wanted) as runner:

        def passes() -> Iterator[dict[str, NumberArray]]:
            for feeds in data.feeds(prepared.at_once):
                values = runner.infer({spec.name: encode(feeds[spec.name], spec) for spec in inputs})
                yield {name: _without_masks(values[name]) for name in wanted}

        ranges = measure(passes, recipe.ranges)
    for name, found in ranges.items():
        if not np.isfinite([found.low, found.high]).all():
            remedy = "are the calibration data what the network was made for?"
            if FORMATS[kind].quantized_from is Precision.FP16:
                remedy = "float16, which its integers stand in, ends at 65504: use its float32 file, or another format"
            raise ConversionError(
                f"the float {kind} artifact gives NaN or infinity at {name} on the calibration data; {remedy}"
            )
    return ranges | {spec.name: input_range(data.arrays[spec.name]) for spec in inputs}


def _without_masks(value: NumberArray) -> NumberArray:
    """Take minus infinity, which a mask puts before a softmax, for the least number: no grid can hold either."""
    return np.nan_to_num(value, nan=np.nan, posinf=np.inf)


def write(
    prepared: Prepared,
    recipe: Recipe,
    ranges: Mapping[str, Range] | None,
    path: Path,
    spec: ModelSpec,
    limits: RuntimeLimits = NO_LIMITS,
) -> tuple[Exported, ExportRequest]:
    """Write the quantized artifact to *path*.

    Raises:
        UsageError: The format cannot express the recipe, or it names unknown layers.
        ConversionError: The format's quantizer refused the file.
    """
    artifact = prepared.artifact
    request = ExportRequest(spec, precision_of(recipe, artifact.precision), path, artifact.target_cpu, limits=limits)
    return quantizer(artifact.format).quantize(prepared.path, prepared.exported, recipe, ranges, request), request
