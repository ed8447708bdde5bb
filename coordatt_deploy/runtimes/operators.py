"""Count the operators of an artifact, as its own format names them."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from coordatt_deploy.errors import BundleError, MissingDependencyError
from coordatt_deploy.specs import Format


@dataclass(frozen=True, slots=True)
class OperatorCount:
    """What a file is made of.

    Attributes:
        names: How many of each operator, most frequent first.
        remark: What the runtime does with them; None where nothing is to be said.
    """

    names: Mapping[str, int]
    remark: str | None = None

    @property
    def total(self) -> int:
        """Of all operators together."""
        return sum(self.names.values())


def count_operators(path: Path, kind: Format) -> OperatorCount:
    """Return the operators of the artifact at *path*.

    Raises:
        BundleError: The file cannot be read.
        MissingDependencyError: What reads the format is not installed.
    """
    try:
        if kind is Format.ONNX:
            return _onnx(path)
        return _tflite(path) if kind is Format.TFLITE else _coreml(path)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"counting operators of {kind} files needs {error.name}, which is not installed;"
            f" run: pip install 'coordatt-deploy[{kind}]'"
        ) from error


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _onnx(path: Path) -> OperatorCount:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(path, load_external_data=False)
    except (OSError, ValueError, DecodeError) as error:
        raise BundleError(f"{path.name} cannot be read as ONNX: {error}; build the bundle again") from error
    return OperatorCount(_sorted(Counter(node.op_type for node in model.graph.node)))


def _tflite(path: Path) -> OperatorCount:
    from coordatt_deploy.runtimes.litert import operators

    found = operators(path)
    delegated = sum(item.delegated for item in found.operators)
    remark = f"XNNPACK runs {delegated} of {len(found.operators)}, in {found.partitions} partitions"
    return OperatorCount(_sorted(Counter(item.name for item in found.operators)), remark)


def _coreml(path: Path) -> OperatorCount:
    from coordatt_deploy.runtimes.mlprogram import load

    return OperatorCount(_sorted(Counter(step.operator for step in load(path).steps)))
