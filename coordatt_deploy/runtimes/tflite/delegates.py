"""What XNNPACK and LiteRT's GPU delegate take of a TFLite file.

XNNPACK is asked itself: it runs on this machine. The GPU delegate is not here; its table is complete, for it is the
delegate's own list of operators.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Final

from coordatt_deploy.errors import MissingDependencyError
from coordatt_deploy.logs import captured, log_folder
from coordatt_deploy.runtimes.delegate import Delegate, looked_up
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


def xnnpack(path: Path) -> Delegate | None:
    """Ask XNNPACK itself what it takes of the TFLite file at *path*; None where LiteRT is not installed."""
    try:
        # LiteRT is an extra
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
    return looked_up("gpu", graph, reasons, GPU_SOURCE)
