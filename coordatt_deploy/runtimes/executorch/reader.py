"""Read an ExecuTorch file: its metadata, its graph, and what XNNPACK takes of it.

The file says itself what is inside of delegates; nothing is run, and torch is not needed.
"""

import json
from collections import Counter
from pathlib import Path

from coordatt_deploy.artifact_specs import About, AppInterface, TensorSpec
from coordatt_deploy.errors import BundleError
from coordatt_deploy.formats import Format
from coordatt_deploy.host import Host
from coordatt_deploy.plurals import counted
from coordatt_deploy.runtime_versions import RuntimeNeeds
from coordatt_deploy.runtimes.delegate import Delegate
from coordatt_deploy.runtimes.executorch.flatbuffer_schema import Record
from coordatt_deploy.runtimes.executorch.program_file import METADATA_METHOD, ProgramFile, opened
from coordatt_deploy.runtimes.executorch.tensors import (
    VIEW,
    constants,
    sources,
    value_name,
)
from coordatt_deploy.runtimes.executorch.tensors import (
    operators as operators_of,
)
from coordatt_deploy.runtimes.executorch.vocabulary import VOCABULARY
from coordatt_deploy.runtimes.file_graph import FileGraph, Node, OperatorCount, Tensor, most_frequent_first, spec_of
from coordatt_deploy.runtimes.vocabulary import Vocabulary


def _file(path: Path) -> ProgramFile:
    import executorch  # noqa: F401 - its schemas say how to read, and its absence should name it

    try:
        content = path.read_bytes()
    except OSError as error:
        raise BundleError(f"{path.name} cannot be read: {error}") from error
    return opened(content, path.name)


def metadata(path: Path) -> dict[str, object]:
    """See ``Reader.metadata``."""
    for plan in _file(path).program.execution_plan:
        if plan.name == METADATA_METHOD and plan.outputs:
            text = plan.values[plan.outputs[0]].val.string_val
            try:
                found: dict[str, object] = json.loads(text)
            except ValueError as error:
                raise BundleError(f"{path.name} is damaged: its metadata is no JSON: {error}") from None
            return found
    return {}


def graph(path: Path) -> FileGraph:
    """See ``Reader.graph``."""
    file = _file(path)
    tensors = {name: Tensor(source.shape, source.dtype) for name, source in sources(file).items()}
    tensors |= {name: Tensor(shape, dtype, size) for name, (shape, dtype, size) in constants(file).items()}
    nodes = [Node(item.name, item.inputs, item.outputs, _window(item.record)) for item in operators_of(file)]

    def described(indices: list[int]) -> tuple[TensorSpec, ...]:
        return tuple(spec_of(value_name(index), tensors) for index in indices)

    return FileGraph(
        format=Format.EXECUTORCH,
        nodes=tuple(nodes),
        tensors=tensors,
        inputs=described(file.method.inputs),
        outputs=described(file.method.outputs),
    )


def _window(record: Record) -> tuple[int, ...] | None:
    pool = record.xnode_union if hasattr(record, "xnode_union") else record
    return (pool.pooling_height, pool.pooling_width) if hasattr(pool, "pooling_height") else None


def operators(path: Path) -> OperatorCount:
    """See ``Reader.operators``."""
    file = _file(path)
    found = list(operators_of(file))
    inside = sum(item.delegate is not None for item in found)
    remark = f"XNNPACK runs {inside} of {len(found)}, in {counted(len(file.graphs), 'partition')}"
    return OperatorCount(most_frequent_first(item.name for item in found), remark)


def vocabulary() -> Vocabulary:
    """See ``Reader.vocabulary``."""
    return VOCABULARY


def delegates(path: Path, graph: FileGraph) -> tuple[Delegate, ...]:  # noqa: ARG001 - the file says more
    """See ``Reader.delegates``."""
    file = _file(path)
    found = [item for item in operators_of(file) if item.name != VIEW]  # which only calls a value otherwise
    left = Counter(item.name for item in found if item.delegate is None)
    return (
        Delegate(
            name="xnnpack",
            operators=len(found),
            taken=len(found) - sum(left.values()),
            partitions=len(file.graphs),
            rejected=tuple(
                (name, count, "a portable kernel runs it, ten times slower") for name, count in left.items()
            ),
            source="the file",
        ),
    )


def about(path: Path) -> About:
    """See ``Reader.about``; another tool's file says nothing in our terms."""
    values = metadata(path)
    return About(**{name: str(values[name]) for name in ("author", "license", "description") if values.get(name)})


def runtime_needs(path: Path) -> RuntimeNeeds:
    """See ``Reader.runtime_needs``; ExecuTorch publishes no table of what its versions open."""
    version = _file(path).program.version
    return RuntimeNeeds({}, f"version {version} of the program's schema", {"schema": version})


def host_effect(path: Path, machine: Host) -> str | None:  # noqa: ARG001 - its kernels add in 32 bits everywhere
    """See ``Reader.host_effect``."""
    return None


def app_interface(path: Path) -> AppInterface | None:  # noqa: ARG001 - an app meets the tensors
    """See ``Reader.app_interface``."""
    return None
