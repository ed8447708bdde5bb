"""Read a TFLite file: its metadata and its graph.

Packages are imported by the functions that need them, for metadata is read where none of them is installed.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from coordatt_deploy.artifact_specs import About, AppInterface
from coordatt_deploy.errors import BundleError
from coordatt_deploy.formats import Format
from coordatt_deploy.host import Host
from coordatt_deploy.plurals import counted
from coordatt_deploy.runtime_versions import RuntimeNeeds
from coordatt_deploy.runtimes.argument_checks import first_line
from coordatt_deploy.runtimes.delegate import Delegate
from coordatt_deploy.runtimes.file_graph import FileGraph, Node, OperatorCount, Tensor, most_frequent_first, spec_of
from coordatt_deploy.runtimes.tflite import needs
from coordatt_deploy.runtimes.tflite.delegates import gpu, xnnpack
from coordatt_deploy.runtimes.tflite.file_check import check_file
from coordatt_deploy.runtimes.tflite.flatbuffer import IDENTIFIER
from coordatt_deploy.runtimes.tflite.metadata import read_metadata
from coordatt_deploy.runtimes.tflite.vocabulary import VOCABULARY
from coordatt_deploy.runtimes.vocabulary import Vocabulary

if TYPE_CHECKING:
    from ai_edge_litert import schema_py_generated as schema

T = TypeVar("T")


def metadata(path: Path) -> dict[str, object]:
    """See ``Reader.metadata``."""
    return read_metadata(path)


def graph(path: Path) -> FileGraph:
    """See ``Reader.graph``."""
    return _of_model(path, _graph)


def about(path: Path) -> About:
    """See ``Reader.about``; another tool's file says nothing in our terms."""
    try:
        values = read_metadata(path)
    except BundleError:
        return About()
    said = {name: str(values[name]) for name in ("author", "license", "description") if values.get(name)}
    return About(**said)


def runtime_needs(path: Path) -> RuntimeNeeds:
    """See ``Reader.runtime_needs``."""
    return _of_model(path, needs.runtime_needs)


def _of_model(path: Path, read: "Callable[[schema.ModelT], T]") -> T:
    """Return what *read* makes of the model in a file.

    Raises:
        BundleError: It is no TFLite file, or damaged.
    """
    import flatbuffers  # noqa: F401 - the schema needs it, and its absence should name it
    from ai_edge_litert import schema_py_generated as schema

    content = path.read_bytes()
    if content[4:8] != IDENTIFIER:
        raise BundleError(f"{path.name} is no TFLite file: it has no TFL3 mark")
    check_file(content, path.name)
    try:
        return read(schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0)))
    except Exception as error:  # a damaged FlatBuffer makes the generated reader raise many kinds
        raise BundleError(f"{path.name} cannot be read as TFLite: {first_line(error)}") from error


def _graph(model: "schema.ModelT") -> FileGraph:
    from ai_edge_litert import schema_py_generated as schema

    graph = model.subgraphs[0]
    operator_names = _names(schema.BuiltinOperator)
    codes = [_operator_name(code, operator_names) for code in model.operatorCodes]
    dtypes = _names(schema.TensorType)
    names = [tensor.name.decode() for tensor in graph.tensors]
    tensors = {}
    for name, tensor in zip(names, graph.tensors, strict=True):
        signature = tensor.shapeSignature if tensor.shapeSignature is not None else tensor.shape
        shape = tuple(int(size) if size >= 0 else None for size in (signature if signature is not None else ()))
        data = model.buffers[tensor.buffer].data
        held = None if data is None or len(data) == 0 else len(data)
        tensors[name] = Tensor(shape, dtypes[tensor.type].lower(), held)
    nodes = []
    for operator in graph.operators:
        options = operator.builtinOptions
        window = (options.filterHeight, options.filterWidth) if hasattr(options, "filterHeight") else None
        nodes.append(
            Node(
                codes[operator.opcodeIndex],
                tuple(names[index] if index >= 0 else "" for index in operator.inputs),
                tuple(names[index] for index in operator.outputs),
                window,
            )
        )
    inputs = tuple(spec_of(names[index], tensors, "NHWC") for index in graph.inputs)
    return FileGraph(
        format=Format.TFLITE,
        nodes=tuple(nodes),
        tensors=tensors,
        inputs=inputs,
        outputs=tuple(spec_of(names[index], tensors, "NHWC") for index in graph.outputs),
        flexible=any(None in spec.shape for spec in inputs),
    )


def _names(enumeration: type) -> dict[int, str]:
    """The names in one of the schema's enumerations, by number; the first of those that share one."""
    found: dict[int, str] = {}
    for name, number in vars(enumeration).items():
        if not name.startswith("_"):
            found.setdefault(number, name)
    return found


def _operator_name(code: "schema.OperatorCodeT", names: Mapping[int, str]) -> str:
    number = max(code.builtinCode, code.deprecatedBuiltinCode)
    name = names[number]
    return f"CUSTOM {code.customCode.decode()}" if name == "CUSTOM" and code.customCode else name


def operators(path: Path) -> OperatorCount:
    """See ``Reader.operators``."""
    # LiteRT is an extra: the words of the format are there without
    from coordatt_deploy.runtimes.tflite import runner

    found = runner.operators(path)
    delegated = sum(item.delegated for item in found.operators)
    remark = f"XNNPACK runs {delegated} of {len(found.operators)}, in {counted(found.partitions, 'partition')}"
    return OperatorCount(most_frequent_first(item.name for item in found.operators), remark)


def vocabulary() -> Vocabulary:
    """See ``Reader.vocabulary``."""
    return VOCABULARY


def delegates(path: Path, graph: FileGraph) -> tuple[Delegate, ...]:
    """See ``Reader.delegates``."""
    asked = xnnpack(path)
    return (gpu(graph),) if asked is None else (asked, gpu(graph))


def host_effect(path: Path, machine: Host) -> str | None:  # noqa: ARG001 - its kernels add in 32 bits everywhere
    """See ``Reader.host_effect``."""
    return None


def app_interface(path: Path) -> AppInterface | None:  # noqa: ARG001 - an app meets the tensors
    """See ``Reader.app_interface``."""
    return None
