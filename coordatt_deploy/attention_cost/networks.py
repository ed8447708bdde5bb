"""The networks of a comparison: one of this package's, or a user's own with its attention blocks exchanged."""

import copy
from dataclasses import replace

import torch
from torch import nn

from coordatt_deploy.attention_cost.plan import CostPlan, Subject, block_options
from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.graph import Graph, is_call
from coordatt_deploy.graph.lowering.blocks import AttentionBlock
from coordatt_deploy.graph.lowering.recognise import find_attention
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.loaded_model import LoadedModel, capture_source
from coordatt_deploy.models.factory import create_attention


def network(plan: CostPlan, subject: Subject) -> LoadedModel:
    """Build the network of *subject*.

    Raises:
        UsageError: See ``load.resolve``; it takes more than one image, or its blocks cannot be exchanged.
    """
    source = resolve(plan.request(subject))
    if len(source.inputs) != 1 or source.example[0].ndim != 4:
        raise UsageError(f"{subject.backbone} takes {', '.join(source.inputs)}; attention-cost is for one image")
    if subject.backbone in plan.backbones or subject.untouched:
        return source
    return replace(source, module=exchanged(source, subject))


def exchanged(source: LoadedModel, subject: Subject) -> nn.Module:
    """Return the module with every attention block exchanged, or taken out where *subject* is plain.

    Raises:
        UsageError: It has none, or one is no module of its own.
    """
    graph = capture_source(source)
    blocks = find_attention(graph).blocks
    if not blocks:
        raise UsageError(
            f"no attention block was recognised in {subject.backbone}, so there is none to exchange; coordatt-deploy"
            " inspect says what is found"
        )
    module = copy.deepcopy(source.module)
    for block in blocks:
        _check_alone(graph, block, module)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            new = nn.Identity() if subject.attention is None else _new(subject, block)
        parent, _, name = block.name.rpartition(".")
        setattr(module.get_submodule(parent), name, new)
    return module.eval()


def _new(subject: Subject, block: AttentionBlock) -> nn.Module:
    assert subject.attention is not None  # noqa: S101 - asked by whoever calls
    return create_attention(subject.attention, block.channels, **block_options(subject))


def _check_alone(graph: Graph, block: AttentionBlock, module: nn.Module) -> None:
    """Refuse a block whose module does something else as well.

    Raises:
        UsageError: It does, or there is no such module.
    """
    own = {block.output, *block.inner}
    for node in graph.module.graph.nodes:
        path = (graph.layer_of(node.name) or "").partition(":")[0]
        if is_call(node) and node.name not in own and (path == block.name or path.startswith(f"{block.name}.")):
            raise UsageError(
                f"{block.name} holds a {block.kind} block and {node.name} beside it, so it cannot be exchanged; put the"
                " block into a module of its own"
            )
    if block.name not in dict(module.named_modules()) or not block.name:
        raise UsageError(f"the {block.kind} block at {block.output} is in no module of its own and cannot be exchanged")
