"""What a model, an artifact or a bundle is made of, and what will trouble it on a phone. Nothing is executed.

A file is read as the graph it holds (``runtimes.reader``); a model as the graph it is captured as (``captured_graph``,
which needs torch). The answer has the same keys for both.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from coordatt_deploy.bundle import Bundle, open_bundle
from coordatt_deploy.errors import BundleError, DeployError
from coordatt_deploy.files import size_bytes
from coordatt_deploy.formats import format_of
from coordatt_deploy.inspection import file_macs
from coordatt_deploy.inspection.attention import find_blocks
from coordatt_deploy.inspection.result import Block, BundleInspection, Inspection, LayerSize, largest
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.manifest import MANIFEST, LoweredBlock
from coordatt_deploy.runtimes.file_graph import FileGraph
from coordatt_deploy.runtimes.reader import delegates, read_about, read_artifact, runtime_needs


def inspect_artifact(path: Path) -> Inspection:
    """Inspect an ONNX, TFLite or Core ML file; one that lies in a bundle is named by its layer map and manifest.

    Raises:
        UsageError: It is missing or of another format.
        BundleError: It is damaged.
        MissingDependencyError: What reads the format is not installed.
    """
    graph = read_artifact(path)
    names = _layer_names(path)
    spent = file_macs.macs(graph)
    notes = []
    if graph.flexible:
        notes.append("dynamic axes count as 1, so the multiply-accumulates are a lower bound")
    return Inspection(
        subject=str(path),
        parameters=file_macs.parameters(graph),
        macs=sum(spent.values()),
        macs_by_work=spent,
        operators=graph.operators(),
        attention_blocks=_blocks(path, graph, names),
        inputs=graph.inputs,
        outputs=graph.outputs,
        bytes=size_bytes(path),
        layers=_largest(graph, names),
        delegates=delegates(path, graph),
        notes=tuple(notes),
        needs=runtime_needs(path, graph.format),
        about=read_about(path, graph.format),
    )


def inspect_bundle(bundle: Bundle) -> BundleInspection:
    """Inspect the captured model of a bundle and every file in it."""
    notes: list[str] = []
    artifacts = {}
    for artifact in bundle.manifest.artifacts:
        try:
            artifacts[artifact.path] = inspect_artifact(bundle.path(artifact.path))
        except DeployError as error:
            notes.append(f"{artifact.path} was not inspected: {error}")
    reference = None
    if find_spec("torch") is None:
        notes.append("the captured model was not inspected: that needs torch")
    else:
        # torch, if it is there: files are inspected without
        from coordatt_deploy.graph.saved_graph import load_graph
        from coordatt_deploy.inspection.captured_graph import inspect_graph

        reference = inspect_graph(load_graph(bundle.path("reference")), bundle.manifest.model.name)
    return BundleInspection(bundle.root, reference, artifacts, tuple(notes))


def is_bundle(path: Path) -> bool:
    """Whether *path* is a folder with a manifest."""
    return (path / MANIFEST).is_file()


def is_artifact(path: Path) -> bool:
    """Whether *path* has the suffix of an artifact."""
    return format_of(path) is not None


def _layer_names(path: Path) -> dict[str, str]:
    """Layer id by tensor, from the layer map beside the file; empty where there is none."""
    beside = path.with_name(f"{path.stem}.layers.json")
    if not beside.is_file():
        return {}
    try:
        layers = LayerMap.load(beside).layers
    except BundleError:
        return {}
    names: dict[str, str] = {}
    for layer in layers:
        for part in layer.parts:
            names.setdefault(part.tensor, layer.layer_id)
    return names


def _written(path: Path) -> tuple[LoweredBlock, ...]:
    """The blocks that the file was written with, from the manifest of the bundle that it lies in."""
    root = path.resolve().parent.parent
    if not is_bundle(root):
        return ()
    try:
        manifest = open_bundle(root, verify=False).manifest
    except BundleError:
        return ()
    report = manifest.lowering.get(path.resolve().relative_to(root).as_posix())
    return () if report is None else report.blocks


def _blocks(path: Path, graph: FileGraph, names: Mapping[str, str]) -> tuple[Block, ...]:
    """The blocks that the manifest knows; without one, those that are found by the structure of the file."""
    written = _written(path)
    if written:
        return tuple(Block(item.kind, item.name, item.channels, item.height, item.width, item.form) for item in written)
    blocks = []
    for found in find_blocks(graph):
        name = names.get(found.output, found.output).rpartition(":")[0] or names.get(found.output, found.output)
        blocks.append(Block(found.kind, name, found.channels, found.height, found.width, None))
    return tuple(blocks)


def _largest(graph: FileGraph, names: Mapping[str, str]) -> tuple[LayerSize, ...]:
    seen: set[str] = set()
    sizes = []
    for node in graph.nodes:
        weights = [name for name in dict.fromkeys(node.inputs) if graph.is_weight(name) and name not in seen]
        seen.update(weights)
        total = sum(graph.tensors[name].bytes or 0 for name in weights)
        output = node.outputs[0] if node.outputs else ""
        spent = file_macs.node_macs(graph, node)
        sizes.append(LayerSize(names.get(output, output), node.operator, total, spent))
    return largest(sizes)
