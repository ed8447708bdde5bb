"""What a model is made of, read off its captured graph."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.graph.call_arguments import outputs
from coordatt_deploy.graph.graph import Graph, is_call, layout, op_name, static_shape
from coordatt_deploy.graph.lowering.blocks import AttentionBlock, Branches
from coordatt_deploy.graph.lowering.recognise import find_attention
from coordatt_deploy.graph.macs import Work, count
from coordatt_deploy.inspection.lint import lint
from coordatt_deploy.inspection.result import Block, Inspection, LayerSize, largest
from coordatt_deploy.loading.factories import attention_warning
from coordatt_deploy.loading.loaded_model import LoadedModel, capture_source


def inspect_source(
    source: LoadedModel, subject: str | None = None, arguments: Mapping[str, object] | None = None
) -> Inspection:
    """Inspect a model that ``loading.load.resolve`` has built.

    Args:
        source: The model.
        subject: What the user calls it.
        arguments: The arguments of its factory: attention that they ask for and that is not there is a note.

    Raises:
        UsageError: torch.export cannot follow it.
    """
    graph = capture_source(source)
    found = inspect_graph(graph, subject or source.spec.name, source.notes)
    warning = attention_warning(subject or source.spec.name, arguments, len(found.attention_blocks))
    return found if warning is None else replace(found, notes=(*found.notes, warning))


def inspect_graph(graph: Graph, subject: str, notes: tuple[str, ...] = ()) -> Inspection:
    """Inspect a captured graph; BatchNorm's running statistics are not parameters."""
    counted = count(graph)
    statistics = sum(2 * (layer.shape[1] or 0) for layer in graph.layers.layers if layer.operator == "batch_norm")
    operators = Counter(op_name(node) for node in graph.module.graph.nodes if is_call(node))
    operators.pop("getitem", None)
    if graph.dynamic is not None:
        notes = (*notes, "multiply-accumulates are those of the captured size")
    if graph.batch is not None:
        notes = (*notes, "multiply-accumulates are those of one image")
    return Inspection(
        subject=subject,
        parameters=counted.parameters - statistics,
        macs=counted.macs,
        macs_by_work={work.value: counted.of(work) for work in Work},
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        attention_blocks=tuple(map(_block, find_attention(graph).blocks)),
        inputs=graph.inputs,
        outputs=_outputs(graph),
        bytes=sum(layer.weight_bytes for layer in counted.layers),
        layers=largest([LayerSize(item.layer, item.operator, item.weight_bytes, item.macs) for item in counted.layers]),
        lint=lint(graph),
        uncounted=counted.uncounted,
        notes=notes,
    )


def _block(block: AttentionBlock) -> Block:
    form = None
    if isinstance(block.anatomy, Branches):
        joined = any(len(strip.directions) > 1 for strip in block.anatomy.strips.values())
        form = "concatenated" if joined else "branches"
    return Block(block.kind, block.name, block.channels, block.height, block.width, form)


def _outputs(graph: Graph) -> tuple[TensorSpec, ...]:
    specs = []
    for node, name in zip(outputs(graph.module.graph), graph.outputs, strict=True):
        value = node.meta["val"]
        dtype = str(value.dtype).removeprefix("torch.")
        specs.append(TensorSpec(name, static_shape(value), dtype, layout(value.ndim)))
    return tuple(specs)
