"""What a model, an artifact or a bundle is made of, and what will trouble it on a phone. Nothing is executed.

A file is read as the graph it holds (``artifact_graph``); a model as the graph it is captured as (``model_inspection``,
which needs torch). The answer has the same keys for both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from coordatt_deploy.bundle import MANIFEST, Bundle, open_bundle, size_bytes
from coordatt_deploy.errors import BundleError, DeployError
from coordatt_deploy.inspection import artifact_graph
from coordatt_deploy.inspection.artifact_attention import find_blocks
from coordatt_deploy.inspection.artifact_graph import FileGraph, format_of, read_artifact
from coordatt_deploy.inspection.delegates import Delegate, delegates
from coordatt_deploy.layers import LayerMap
from coordatt_deploy.specs import TensorSpec, to_json

SHOWN: Final = 10  # layers in the list of the largest


@dataclass(frozen=True, slots=True)
class Block:
    """An attention block.

    Attributes:
        kind: ``coordatt`` or ``squeeze_excite``.
        name: Path of the module that holds it, or the tensor that it gives.
        channels: Of the feature map.
        height: None where dynamic.
        width: None where dynamic.
        form: How it is written: ``concatenated`` or ``branches`` in a model, the lowered form in an artifact; None
            where it is not known.
    """

    kind: str
    name: str
    channels: int
    height: int | None
    width: int | None
    form: str | None


@dataclass(frozen=True, slots=True)
class LayerSize:
    """Where bytes and work lie.

    Attributes:
        layer: Layer id, or the tensor that the operator gives.
        operator: As the model or format names it.
        bytes: Of the weights that no earlier layer has.
        macs: Multiply-accumulates; None where they were not counted by layer.
    """

    layer: str
    operator: str
    bytes: int
    macs: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that will fail or cost on a phone.

    Attributes:
        rule: Name of the rule of ``lint``.
        where: Layer id.
        what: What it is there.
        remedy: What to do about it.
        applied: Whether an export by this tool does it.
        line: ``file:line`` of the user's code; None where it is not known.
    """

    rule: str
    where: str
    what: str
    remedy: str
    applied: bool
    line: str | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """The answer.

    Attributes:
        subject: What was inspected.
        parameters: Elements of the weights. A model counts what training adjusts; a file counts what it holds, with
            BatchNorm folded and constants added.
        macs: Multiply-accumulates of one inference, pools and gates included.
        macs_by_work: The same by what they are spent on: convolution, linear, pooling, elementwise.
        operators: How many of each.
        attention_blocks: In execution order.
        inputs: Names, shapes, types.
        outputs: Names, shapes, types.
        bytes: On disk, or of the weights of a model.
        layers: The largest by weights, largest first.
        delegates: What accelerators take of it; only known of files.
        lint: What will fail or cost; only known of models.
        uncounted: Operators whose work no rule counts.
        notes: What else is to be said.
    """

    subject: str
    parameters: int
    macs: int
    macs_by_work: Mapping[str, int]
    operators: Mapping[str, int]
    attention_blocks: tuple[Block, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    bytes: int
    layers: tuple[LayerSize, ...]
    delegates: tuple[Delegate, ...] = ()
    lint: tuple[Finding, ...] = ()
    uncounted: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the answer as plain JSON data."""
        document = {item.name: to_json(getattr(self, item.name)) for item in fields(self) if item.name != "delegates"}
        return document | {
            "delegates": {item.name: item.to_json() for item in self.delegates},
        }


@dataclass(frozen=True, slots=True)
class BundleInspection:
    """The model of a bundle, and each of its files.

    Attributes:
        bundle: Its folder.
        reference: The captured model; None where torch is not installed.
        artifacts: By path, in the order of the manifest.
        notes: What could not be read, and why.
    """

    bundle: Path
    reference: Inspection | None
    artifacts: Mapping[str, Inspection]
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the keys of the reference, and the artifacts beside them."""
        document: dict[str, Any] = dict.fromkeys(("parameters", "macs", "operators", "attention_blocks", "lint"))
        document["delegates"] = {}
        notes = list(self.notes)
        if self.reference is not None:
            document = self.reference.to_json()
            notes = [*self.reference.notes, *notes]
        artifacts = {path: item.to_json() for path, item in self.artifacts.items()}
        return document | {"subject": str(self.bundle), "notes": notes, "artifacts": artifacts}


def inspect_artifact(path: Path) -> Inspection:
    """Inspect an ONNX, TFLite or Core ML file; one that lies in a bundle is named by its layer map and manifest.

    Raises:
        UsageError: It is missing or of another format.
        BundleError: It is damaged.
        MissingDependencyError: What reads the format is not installed.
    """
    graph = read_artifact(path)
    names = _layer_names(path)
    spent = artifact_graph.macs(graph)
    notes = []
    if graph.flexible:
        notes.append("dynamic axes count as 1, so the multiply-accumulates are a lower bound")
    return Inspection(
        subject=str(path),
        parameters=artifact_graph.parameters(graph),
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
        from coordatt_deploy.graph.reference import load_graph
        from coordatt_deploy.inspection.models import inspect_graph

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


def _forms(path: Path) -> dict[str, str]:
    """Lowered form by the name of the block, from the manifest of the bundle that the file lies in."""
    root = path.resolve().parent.parent
    if not is_bundle(root):
        return {}
    try:
        manifest = open_bundle(root, verify=False).manifest
    except BundleError:
        return {}
    report = manifest.lowering.get(path.resolve().relative_to(root).as_posix(), {})
    return {block["name"]: block["form"] for block in report.get("blocks", ())}


def _blocks(path: Path, graph: FileGraph, names: Mapping[str, str]) -> tuple[Block, ...]:
    forms = _forms(path)
    blocks = []
    for found in find_blocks(graph):
        name = names.get(found.output, found.output).rpartition(":")[0] or names.get(found.output, found.output)
        blocks.append(Block(found.kind, name, found.channels, found.height, found.width, forms.get(name)))
    return tuple(blocks)


def _largest(graph: FileGraph, names: Mapping[str, str]) -> tuple[LayerSize, ...]:
    seen: set[str] = set()
    sizes = []
    for node in graph.nodes:
        weights = [name for name in dict.fromkeys(node.inputs) if graph.is_weight(name) and name not in seen]
        seen.update(weights)
        total = sum(graph.tensors[name].bytes or 0 for name in weights)
        output = node.outputs[0] if node.outputs else ""
        rule = artifact_graph.WORK.get(node.operator)
        spent = 0 if rule is None else rule[1](graph, node)
        sizes.append(LayerSize(names.get(output, output), node.operator, total, spent))
    return largest(sizes)


def largest(sizes: list[LayerSize]) -> tuple[LayerSize, ...]:
    """The first ``SHOWN`` by bytes."""
    return tuple(sorted((item for item in sizes if item.bytes), key=lambda item: -item.bytes)[:SHOWN])
