"""What the phones' accelerators take of a file, and what they leave to the CPU.

XNNPACK is asked itself: it runs on this machine. The GPU delegate and the Neural Engine are not here, so they are
tables with their sources. Google's is complete (the delegate's own list of operators). Apple publishes none; that table
holds only what measurements on devices or Apple's documentation say: what is not in it may still be refused.
"""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.formats import Format
from coordatt_deploy.logs import captured, log_folder
from coordatt_deploy.runtimes.file_graph import FileGraph

GPU_SOURCE: Final = (
    "https://github.com/google-ai-edge/LiteRT/blob/e3b6183f0e0435e97af09001d0001dee4b3b1120"
    "/tflite/delegates/gpu/common/model_builder.cc (NewOperationParser, IsAllAllowedTensors)"
)
# Every other operator is answered with "Operation is not supported".
GPU_TAKES: Final = frozenset({
    "ABS", "ADD", "ADD_N", "AVERAGE_POOL_2D", "BATCH_MATMUL", "CAST", "CONCATENATION", "CONV_2D", "COS", "CUMSUM",
    "DENSIFY", "DEPTHWISE_CONV_2D", "DEPTH_TO_SPACE", "DEQUANTIZE", "DIV", "EQUAL", "ELU", "EXP", "FLOOR", "FLOOR_DIV",
    "FLOOR_MOD", "FULLY_CONNECTED", "GATHER", "GELU", "GREATER", "GREATER_EQUAL", "HARD_SWISH", "LESS", "LESS_EQUAL",
    "LOGISTIC", "LOG", "LOGICAL_AND", "LSTM", "MAXIMUM", "MAX_POOL_2D", "MEAN", "MINIMUM", "MIRROR_PAD", "MUL", "NEG",
    "NOT_EQUAL", "ONE_HOT", "PACK", "PAD", "PADV2", "POW", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD", "QUANTIZE",
    "RELU", "RELU6", "RELU_N1_TO_1", "LEAKY_RELU", "PRELU", "RESHAPE", "RESIZE_BILINEAR", "RESIZE_NEAREST_NEIGHBOR",
    "RSQRT", "SELECT", "SELECT_V2", "SIGN", "SIN", "SLICE", "SOFTMAX", "SPACE_TO_DEPTH", "SPLIT", "SPLIT_V", "SQRT",
    "SQUARE", "SQUARED_DIFFERENCE", "STRIDED_SLICE", "SUB", "SUM", "TANH", "TILE", "TRANSPOSE", "TRANSPOSE_CONV",
    "UNPACK",
})  # fmt: skip
GPU_TYPES: Final = frozenset({"float32", "float16", "int8", "uint8"})
GPU_INDEX_OPERATORS: Final = frozenset({"CAST", "ONE_HOT", "SELECT", "SELECT_V2", "GATHER", "LOGICAL_AND"})
GPU_RANK: Final = 4


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the Neural Engine leaves an operator to the CPU, and who says so."""

    text: str
    source: str


_COMPUTE_PLANS = "compute plans recorded on devices, e.g. huggingface.co/mickekringai/kb-whisper-coreml"
_NO_PATH = Reason("the engine has no hardware path for it", "https://ane-guide.readthedocs.io, part 1, chapter 4")
ENGINE_REJECTS: Final[Mapping[str, Reason]] = {
    **dict.fromkeys(
        ("gather", "gather_nd", "gather_along_axis"), Reason("Core ML places it on the CPU", _COMPUTE_PLANS)
    ),
    **dict.fromkeys(("scatter", "scatter_nd", "scatter_along_axis", "reduce_prod", "lstm", "gru", "rnn"), _NO_PATH),
}
ENGINE_FP16: Final = Reason(
    "the engine computes in float16 only; a float32 program stays on CPU and GPU",
    "https://apple.github.io/coremltools/docs-guides/source/typed-execution.html",
)
ENGINE_FLEXIBLE: Final = Reason(
    "sizes within a range keep the whole program off the engine at every size but the default one",
    "https://github.com/apple/coremltools/issues/2370",
)
ENGINE_RANK: Final = 5
WHOLE: Final = "every operator"


@dataclass(frozen=True, slots=True)
class Delegate:
    """What one accelerator takes of a file.

    Attributes:
        name: ``xnnpack``, ``gpu`` or ``neural_engine``.
        operators: Of the file.
        taken: Of those, how many it runs.
        partitions: Stretches that it runs as one piece each; None where that is not known.
        rejected: The operators that it leaves to the CPU, with how many and why.
        source: Where this is known from.
    """

    name: str
    operators: int
    taken: int
    partitions: int | None
    rejected: tuple[tuple[str, int, str], ...]
    source: str

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON data."""
        return {
            "operators": self.operators,
            "taken": self.taken,
            "partitions": self.partitions,
            "rejected": [{"operator": name, "count": count, "reason": why} for name, count, why in self.rejected],
            "source": self.source,
        }


def delegates(path: Path, graph: FileGraph) -> tuple[Delegate, ...]:
    """Return what the accelerators of the file's format take of it; ONNX files have none of these."""
    if graph.format is Format.TFLITE:
        asked = xnnpack(path)
        return (gpu(graph),) if asked is None else (asked, gpu(graph))
    return (neural_engine(graph),) if graph.format is Format.COREML else ()


def xnnpack(path: Path) -> Delegate | None:
    """Ask XNNPACK itself what it takes of the TFLite file at *path*; None where LiteRT is not installed."""
    try:
        from coordatt_deploy.runtimes.tflite.runner import LitertRunner, operators
    except (ModuleNotFoundError, MissingDependencyError):
        return None
    log = log_folder() / f"inspect-{os.getpid()}.log"
    with captured(log):  # LiteRT announces its delegates
        found = operators(path)
    log.unlink(missing_ok=True)
    left = Counter(item.name for item in found.operators if not item.delegated)
    return Delegate(
        name="xnnpack",
        operators=len(found.operators),
        taken=sum(item.delegated for item in found.operators),
        partitions=found.partitions,
        rejected=tuple((name, count, "XNNPACK leaves it to TFLite's own kernels") for name, count in left.items()),
        source=f"asked: {LitertRunner.runtime}",
    )


def gpu(graph: FileGraph) -> Delegate:
    """Look up what LiteRT's GPU delegate takes of a TFLite file."""
    reasons: Counter[tuple[str, str]] = Counter()
    for node in graph.nodes:
        tensors = [graph.tensors[name] for name in (*node.inputs, *node.outputs) if name in graph.tensors]
        rank = max((len(tensor.shape or ()) for tensor in tensors), default=0)
        computed = [tensor for tensor in tensors if tensor.bytes is None]
        odd = sorted({tensor.dtype for tensor in computed} - GPU_TYPES)
        if node.operator not in GPU_TAKES:
            reasons[node.operator, "the delegate has no such operator"] += 1
        elif rank > GPU_RANK:
            reasons[node.operator, f"it has a tensor of {rank} axes; the delegate takes {GPU_RANK}"] += 1
        elif odd and node.operator not in GPU_INDEX_OPERATORS:
            reasons[node.operator, f"it computes in {', '.join(odd)}"] += 1
    return _looked_up("gpu", graph, reasons, GPU_SOURCE)


def neural_engine(graph: FileGraph) -> Delegate:
    """Look up what is known of the Neural Engine's refusals in an ML Program."""
    whole: Reason | None = None
    kinds = Counter(tensor.dtype for tensor in graph.tensors.values() if tensor.bytes is None)
    if kinds["float32"] > kinds["float16"]:
        whole = ENGINE_FP16
    elif graph.flexible:
        whole = ENGINE_FLEXIBLE
    if whole is not None:
        everything = {(WHOLE, whole.text): len(graph.nodes)}
        return _looked_up("neural_engine", graph, everything, whole.source)
    reasons: Counter[tuple[str, str]] = Counter()
    sources = []
    for node in graph.nodes:
        rank = max((len(graph.shape(name)) for name in (*node.inputs, *node.outputs)), default=0)
        known = ENGINE_REJECTS.get(node.operator)
        if known is not None:
            reasons[node.operator, known.text] += 1
            sources.append(known.source)
        elif rank > ENGINE_RANK:
            reasons[node.operator, f"it has a tensor of {rank} axes; Core ML takes {ENGINE_RANK}"] += 1
    source = "; ".join(dict.fromkeys(sources)) or "nothing in it is known to be refused; Apple publishes no list"
    return _looked_up("neural_engine", graph, reasons, source)


def _looked_up(name: str, graph: FileGraph, reasons: Mapping[tuple[str, str], int], source: str) -> Delegate:
    rejected = tuple((operator, count, why) for (operator, why), count in reasons.items())
    taken = len(graph.nodes) - sum(reasons.values())
    return Delegate(name, len(graph.nodes), taken, None, rejected, source)
