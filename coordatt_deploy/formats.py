"""File formats: one row per format with everything that is known of it. Imports nothing of this package.

What a format *does* stands in its folders, ``exporters/<format>/`` and ``runtimes/<format>/``, whose modules are found
by name (``format_modules``). A new format is a row here, the two folders, its tolerances and its pip extra.
"""

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Final


class Format(enum.StrEnum):
    """A file format that a mobile runtime opens.

    The value is the name of its folders, of its pip extra, and what the command line calls it.
    """

    ONNX = "onnx"
    TFLITE = "tflite"
    COREML = "coreml"
    EXECUTORCH = "executorch"


class Precision(enum.StrEnum):
    """The number format that an artifact computes in."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


@dataclass(frozen=True, slots=True)
class Storage:
    """What values are rounded to between two operators; computing is in float32.

    Attributes:
        values: Type that activations are stored in.
        weight_bits: Of the integers that weights are stored as, one step per output channel; None: as the values.
        value_bits: Of the integers that activations are stored as, where they are.
    """

    values: Precision
    weight_bits: int | None = None
    value_bits: int = 8


class TargetCpu(enum.StrEnum):
    """The CPU family whose fastest form an artifact is written in."""

    ARM64 = "arm64"
    X86_64 = "x86_64"


class InputLayout(enum.StrEnum):
    """The order of the axes of images that files take."""

    NCHW = "nchw"
    NHWC = "nhwc"


class IoType(enum.StrEnum):
    """The type of an artifact's inputs and outputs."""

    INT8 = "int8"
    FP32 = "fp32"


@dataclass(frozen=True, slots=True)
class Package:
    """A Python package that a part of the work needs.

    Attributes:
        module: The name that it is imported by.
        distribution: The name that it is installed by.
        purpose: What it is needed for.
        extra: The pip extra that brings it.
        stand_in: Module and distribution of an older package that does as well; None where there is none.
    """

    module: str
    distribution: str
    purpose: str
    extra: str
    stand_in: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class FormatFacts:
    """What is known of a format.

    Attributes:
        title: As its makers spell it.
        suffix: Of its files, or of its folders.
        converter: The Python package that exporting needs, as it is imported.
        runtime_extra: The pip extra with what opens its files.
        runtimes: Distributions that open its files, each the predecessor of the one before it.
        packages: Everything that can have a hand in its files, in the order in which versions are listed.
        precisions: What its exporter writes where nothing is asked for; every other precision is a recipe of
            quantization, but for the next.
        precisions_if_asked: What its exporter writes as well, where it is asked for.
        recipes: Names of the recipes that it can express.
            Its int8 default comes first.
        precision_recipes: The recipe that a precision stands for where the exporter does not write it.
        io_types: Types that inputs and outputs of its quantized files can have; the first is the default.
        quantized_from: Precision of the float artifact that recipes start from.
        per_cpu: Whether there is a file for each CPU family.
        conversion_seconds: Of a MobileNetV2, roughly: the slowest is started first, so that it does not run alone.
        runner_modules: Modules beside its runner in ``runtimes/`` that the runner imports, and that go where it goes.
        runs_only_on: The systems that alone have its runtime, in words; None where Linux has it, on ARM boards as well.
        fixed_size_because: Why height and width cannot be dynamic; None where they can.
        native_systems: How the names of the systems begin that have its real runtime, in lower case; empty for all.
        elsewhere: What is done with its files on other systems.
        min_runtimes: What ``--min-runtime`` calls the runtime or system that files are written for.
        has_opset: Whether files are of an opset that can be chosen.
        input_layouts: In which images can be taken; the first is the usual one.
        one_layout_because: Why there is no other; None where there is.
        benchmark_tool: Its makers' program that times its files, whose output is read; None where none is.
    """

    title: str
    suffix: str
    converter: str
    runtime_extra: str
    runtimes: tuple[str, ...]
    packages: tuple[Package, ...]
    precisions: tuple[Precision, ...]
    recipes: tuple[str, ...]
    precision_recipes: Mapping[Precision, str]
    io_types: tuple[IoType, ...]
    quantized_from: Precision
    per_cpu: bool
    conversion_seconds: int
    fixed_size_because: str | None = None
    native_systems: tuple[str, ...] = ()
    elsewhere: str = ""
    runner_modules: tuple[str, ...] = ()
    runs_only_on: str | None = None
    min_runtimes: tuple[str, ...] = ()
    has_opset: bool = False
    input_layouts: tuple[str, ...] = ("NCHW",)
    one_layout_because: str | None = None
    precisions_if_asked: tuple[Precision, ...] = ()
    benchmark_tool: str | None = None

    @property
    def exported(self) -> tuple[Precision, ...]:
        """Every precision that its exporter writes."""
        return self.precisions + self.precisions_if_asked


FORMATS: Final[Mapping[Format, FormatFacts]] = {
    Format.TFLITE: FormatFacts(
        title="TFLite",
        suffix=".tflite",
        converter="litert_torch",
        runtime_extra="runtime",
        runtimes=("ai-edge-litert", "tflite-runtime"),
        packages=(
            Package("litert_torch", "litert-torch", "TFLite export", "tflite"),
            Package(
                "ai_edge_litert", "ai-edge-litert", "running TFLite", "runtime", ("tflite_runtime", "tflite-runtime")
            ),
            Package("ai_edge_quantizer", "ai-edge-quantizer", "TFLite quantization", "tflite"),
        ),
        precisions=(Precision.FP32,),
        recipes=(
            "static_wi8_ai8", "static_wi8_ai16", "dynamic_wi8_afp32", "weight_only_wi8_afp32",
            "weight_only_wfp16_afp32",
        ),
        precision_recipes={Precision.INT8: "static_wi8_ai8", Precision.FP16: "weight_only_wfp16_afp32"},
        io_types=(IoType.INT8, IoType.FP32),
        quantized_from=Precision.FP32,
        per_cpu=False,
        conversion_seconds=20,
        fixed_size_because="the memory of every tensor is planned when the file is written",
        runner_modules=("file_check", "flatbuffer"),
        min_runtimes=("tflite",),
        input_layouts=("NHWC",),
        one_layout_because="its convolutions read the channels last, and the other order costs a copy of each image",
        benchmark_tool="benchmark_model",
    ),
    Format.ONNX: FormatFacts(
        title="ONNX",
        suffix=".onnx",
        converter="onnx",
        runtime_extra="runtime",
        runtimes=("onnxruntime",),
        packages=(
            Package("onnx", "onnx", "ONNX export", "onnx"),
            Package("onnxscript", "onnxscript", "ONNX export", "onnx"),
            Package("onnxsim", "onnxsim", "ONNX export", "onnx"),
            Package("onnxruntime", "onnxruntime", "running ONNX", "runtime"),
        ),
        precisions=(Precision.FP32,),
        recipes=("static_wi8_ai8", "weight_only_wi8_afp32"),
        precision_recipes={Precision.INT8: "static_wi8_ai8"},
        io_types=(IoType.FP32, IoType.INT8),
        quantized_from=Precision.FP32,
        per_cpu=True,
        conversion_seconds=5,
        min_runtimes=("onnxruntime",),
        has_opset=True,
        input_layouts=("NCHW", "NHWC"),
        precisions_if_asked=(Precision.FP16,),
        benchmark_tool="onnxruntime_perf_test",
    ),
    Format.COREML: FormatFacts(
        title="Core ML",
        suffix=".mlpackage",
        converter="coremltools",
        runtime_extra="coreml",
        runtimes=("coremltools",),
        packages=(Package("coremltools", "coremltools", "Core ML export, ML Program evaluator", "coreml"),),
        precisions=(Precision.FP32, Precision.FP16),
        recipes=("static_wi8_ai8", "weight_only_wi8", "palettized_w8", "palettized_w6", "palettized_w4"),
        precision_recipes={Precision.INT8: "static_wi8_ai8"},
        io_types=(IoType.FP32,),
        quantized_from=Precision.FP16,
        per_cpu=False,
        conversion_seconds=10,
        native_systems=("darwin", "macos"),
        elsewhere="are evaluated from the saved ML Program here; the real runtime needs macOS",
        runs_only_on="Apple's systems",
        min_runtimes=("ios",),
        one_layout_because="its convolutions read the channels first; with --bake-preprocessing the file takes images",
    ),
    Format.EXECUTORCH: FormatFacts(
        title="ExecuTorch",
        suffix=".pte",
        converter="executorch",
        runtime_extra="executorch",
        runtimes=("executorch",),
        packages=(Package("executorch", "executorch", "ExecuTorch export, running ExecuTorch", "executorch"),),
        precisions=(Precision.FP32,),
        recipes=("static_wi8_ai8",),
        precision_recipes={Precision.INT8: "static_wi8_ai8"},
        io_types=(IoType.FP32,),
        quantized_from=Precision.FP32,
        per_cpu=False,
        conversion_seconds=25,
        fixed_size_because="the memory of every tensor is planned when the file is written",
        runs_only_on="machines with torch",
        benchmark_tool="executor_runner",
    ),
}  # fmt: skip


# The extra that is named where torch itself is missing: the smallest that brings it.
TORCH_EXTRA: Final = Format.ONNX.value


def facts(file_format: Format) -> FormatFacts:
    """Return the row of a format."""
    return FORMATS[file_format]


def format_of(path: PurePath) -> Format | None:
    """Return the format of the artifact at *path*, by its suffix; None for what is not an artifact."""
    return next((file_format for file_format, row in FORMATS.items() if row.suffix == path.suffix), None)


def suffixes() -> str:
    """Return the suffixes of all formats, for texts: ``.onnx, .tflite or .mlpackage``."""
    *others, last = (FORMATS[file_format].suffix for file_format in Format)
    return f"{', '.join(others)} or {last}"


def slowest_first(file_format: Format) -> int:
    """Key that sorts conversions so that the slowest is started first."""
    return -FORMATS[file_format].conversion_seconds
