"""Fold BatchNorm into the convolution (or linear layer) before it, on the captured graph.

    convolution:  y = W * x + b
    batch norm:   z = gamma * (y - mean) / std + beta,   std = sqrt(var + epsilon)
    folded:       z = (W * gamma / std) * x + (b - mean) * gamma / std + beta

torch calls this *fuse*, structural re-parameterisation is another word for it. The factors are computed in float64 and
rounded once. A BatchNorm that cannot be folded is an error that names it, so that none is ever left by silence.
"""

import copy
from typing import Final

import numpy as np
import torch
from torch import fx
from torch.fx.node import Argument

from coordatt_deploy.errors import ConversionError
from coordatt_deploy.graph.call_arguments import argument, input_node
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import Graph, aten, attach, drop_unused_weights, erase_unused_reads, overloads, weight
from coordatt_deploy.graph.operators import Trait
from coordatt_deploy.layer_map import Part
from coordatt_deploy.manifest import FoldedBatchNorm, FoldReport

FOLDABLE: Final = overloads(Trait.FOLDS_BATCH_NORM)
BATCH_NORM: Final = aten.batch_norm.default


def fold_batchnorms(graph: Graph) -> tuple[Graph, FoldReport]:
    """Return the graph without BatchNorm, and what was done; *graph* itself is left alone.

    Raises:
        ConversionError: A BatchNorm cannot be folded; the text names each with its reason.
    """
    module = copy.deepcopy(graph.module)
    places: dict[str, Part | None] = {}
    reasons: dict[str, str] = {}
    pairs: list[tuple[str, str, str]] = []
    refused: list[tuple[str, str]] = []
    for norm in [node for node in module.graph.nodes if node.target is BATCH_NORM]:
        conv = norm.args[0]
        layer_id = graph.layer_of(norm.name) or norm.name
        reason = unsupported_reason(module, conv, norm)
        if reason is not None:
            refused.append((layer_id, reason))
            continue
        _fold(module, conv, norm)
        pairs.append((graph.layer_of(conv.name) or conv.name, layer_id, conv.name))
        places |= {conv.name: None, norm.name: Part(conv.name)}
        reasons[conv.name] = f"->{layer_id}"
        norm.replace_all_uses_with(conv)
        module.graph.erase_node(norm)
    if refused:
        raise ConversionError("BatchNorm is left: " + "; ".join(f"{name} ({reason})" for name, reason in refused))
    _give_plain_names(module)
    drop_unused_weights(module)
    folded = graph.edited(module, places, reasons)
    return folded, FoldReport.of(_errors(graph, folded, pairs))


def unsupported_reason(module: fx.GraphModule, conv: Argument, norm: fx.Node) -> str | None:
    """Why *norm* cannot be folded into *conv*; None if it can."""
    if norm.args[5] is True:
        return "it is in training mode; call model.eval() first"
    if weight(module, norm.args[3]) is None or weight(module, norm.args[4]) is None:
        return "it keeps no running statistics"
    if not isinstance(conv, fx.Node) or conv.target not in FOLDABLE:
        before = getattr(conv, "name", "an input")
        return f"it follows {before}, not a convolution; move it behind one, or write it as scale and shift"
    if len(conv.users) > 1:
        others = ", ".join(user.name for user in conv.users if user is not norm)
        return f"the convolution's own output is also used by {others}"
    if weight(module, conv.args[1]) is None:
        return "the convolution's weight is computed while the model runs"
    return None


def _fold(module: fx.GraphModule, conv: fx.Node, norm: fx.Node) -> None:
    """Give *conv* weights of its own: a convolution that is used twice may have two BatchNorms."""
    read = input_node(conv, 1, "weight")
    kernel, bias = weight(module, read), weight(module, argument(conv, 2, "bias"))
    gamma, beta, mean, var = (weight(module, item) for item in norm.args[1:5])
    if read is None or kernel is None or mean is None or var is None:  # unsupported_reason has refused these
        raise AssertionError(f"{norm.name} has no weights to fold")
    epsilon = norm.args[7]
    assert isinstance(epsilon, float)  # noqa: S101 - by the operator's schema
    factor = torch.rsqrt(var.double() + epsilon)  # (C_out,), gamma / std
    if gamma is not None:
        factor = factor * gamma.double()
    folded_kernel = kernel.double() * factor.reshape(-1, *[1] * (kernel.ndim - 1))
    shift = (bias.double() if bias is not None else torch.zeros_like(mean, dtype=torch.float64)) - mean.double()
    folded_bias = shift * factor + (beta.double() if beta is not None else 0.0)
    stem = str(read.target).removesuffix(".weight")
    names = (f"{stem}.weight", f"{stem}.bias")
    if len(read.users) > 1:
        names = (f"{stem}.weight_{conv.name}", f"{stem}.bias_{conv.name}")
    for name, tensor in zip(names, (folded_kernel, folded_bias), strict=True):
        attach(module, f"{name}_folded", tensor.to(kernel.dtype))
    with module.graph.inserting_before(conv):
        new_kernel, new_bias = (module.graph.get_attr(f"{name}_folded") for name in names)
    rest = tuple(conv.args[3:])
    conv.args = (conv.args[0], new_kernel, new_bias, *rest)
    conv.meta["val"] = norm.meta["val"]


def _give_plain_names(module: fx.GraphModule) -> None:
    """Give the folded weights the names of those that they replace, where nothing reads these any more."""
    erase_unused_reads(module)
    taken = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for node in module.graph.nodes:
        if node.op == "get_attr" and str(node.target).endswith("_folded"):
            plain = str(node.target).removesuffix("_folded")
            if plain not in taken:
                tensor = weight(module, node)
                assert tensor is not None  # noqa: S101 - get_attr of a buffer attached above
                path, _, leaf = plain.rpartition(".")
                owner = module.get_submodule(path)
                for name in (leaf, f"{leaf}_folded"):
                    if hasattr(owner, name):
                        delattr(owner, name)
                attach(module, plain, tensor)
                node.target = plain


def _errors(before: Graph, after: Graph, pairs: list[tuple[str, str, str]]) -> tuple[FoldedBatchNorm, ...]:
    """Measure each folded layer: both graphs run in float64 on the example input."""
    feeds = {spec.name: tensor.numpy() for spec, tensor in zip(before.inputs, before.example, strict=True)}
    where = {layer.layer_id: layer.parts[0].tensor for layer in before.layers.layers}
    old = run(before, feeds, nodes=frozenset(where[norm] for _, norm, _ in pairs))
    new = run(after, feeds, nodes=frozenset(node for _, _, node in pairs))
    report = []
    for layer, norm, node in pairs:
        error = float(np.max(np.abs(new[node] - old[where[norm]])))
        scale = float(np.max(np.abs(old[where[norm]])))
        report.append(FoldedBatchNorm(layer, norm, error, error / scale if scale else error))
    return tuple(report)
