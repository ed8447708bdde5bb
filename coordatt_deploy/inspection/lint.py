"""Say before an export what will fail or cost on a phone, where in the user's code, and what to do.

Every rule looks at the captured graph and gives one finding per place. ``applied`` means that this tool applies the
remedy itself when it exports; the others are for the user to decide. What formats make of an operator is measured
(``graph.operator_support``); what accelerators refuse is in ``delegates``.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import fx

from coordatt_deploy.formats import FORMATS, Format
from coordatt_deploy.graph.call_arguments import argument, pair, same_size, sizes, source
from coordatt_deploy.graph.graph import Graph, is_tensor, module_path, op_name
from coordatt_deploy.graph.lowering.blocks import Branches, Kind, Recognition
from coordatt_deploy.graph.lowering.decompose import decompose
from coordatt_deploy.graph.lowering.recognise import find_attention
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.graph.operator_support import refused
from coordatt_deploy.graph.operators import Trait, having
from coordatt_deploy.graph.passes.batchnorm import BATCH_NORM, form_of
from coordatt_deploy.inspection.result import Finding
from coordatt_deploy.manifest import FoldForm
from coordatt_deploy.user_code import source_line


@dataclass(frozen=True, slots=True)
class Hit:
    """Where a rule found something: the node, and what differs from the rule's own texts."""

    node: fx.Node
    what: str | None = None
    remedy: str | None = None
    applied: bool | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What the rules look at.

    Attributes:
        graph: Captured, not folded.
        found: Attention blocks and hard activations in it.
        rewritten: Nodes that lowering writes anew.
    """

    graph: Graph
    found: Recognition
    rewritten: frozenset[str]

    def calls(self, *op_names: str) -> Iterator[fx.Node]:
        """The calls of these operators, or all that give one tensor."""
        for node in self.graph.module.graph.nodes:
            if op_name(node) in op_names if op_names else is_tensor(node):
                yield node


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule.

    Attributes:
        name: Stable; part of the JSON output.
        finds: What it finds.
        remedy: What to do.
        applied: Whether the tool does it itself, unless a hit says otherwise.
        check: Finds the places.
    """

    name: str
    finds: str
    remedy: str
    applied: bool
    check: Callable[[Subject], Iterator[Hit]]


def lint(graph: Graph) -> tuple[Finding, ...]:
    """Apply every rule to a captured graph.

    Args:
        graph: As ``capture`` gives it: a folded or lowered graph no longer shows what the user wrote.
    """
    found = find_attention(graph)
    rewritten = {name for block in found.blocks for name in (*block.inner, block.output)}
    rewritten |= {name for item in found.activations for name in (item.output, *item.inner)}
    subject = Subject(graph, found, frozenset(rewritten))
    return tuple(_finding(graph, rule, hit) for rule in RULES for hit in rule.check(subject))


def _finding(graph: Graph, rule: Rule, hit: Hit) -> Finding:
    return Finding(
        rule=rule.name,
        where=graph.layer_of(hit.node.name) or hit.node.name,
        what=hit.what or rule.finds,
        remedy=hit.remedy or rule.remedy,
        applied=rule.applied if hit.applied is None else hit.applied,
        line=source_line(hit.node.meta.get("stack_trace") or ""),
    )


def _sides(node: fx.Node) -> tuple[int | torch.SymInt, ...]:
    """Height and width of a node's value."""
    return sizes(node)[-2:]


def _odd_adaptive_pools(subject: Subject) -> Iterator[Hit]:
    for node in subject.calls("adaptive_avg_pool2d", "adaptive_max_pool2d"):
        for have, want in zip(_sides(source(node)), pair(argument(node, 1, "output_size")), strict=True):
            known = isinstance(have, int)
            if isinstance(want, int) and want != 1 and (not known or (have != want and have % want)):
                what = f"{have} positions are pooled to {want}" if known else f"a dynamic size is pooled to {want}"
                yield Hit(node, f"{what}, which is no fixed window: it becomes dozens of slices and gathers")
                break


def _strip_pools(subject: Subject) -> Iterator[Hit]:
    for node in subject.calls("adaptive_avg_pool2d"):
        gone = [axis for axis, side in zip((2, 3), _sides(node), strict=True) if same_size(side, 1)]
        if len(gone) == 1:
            remedy = f"written as a mean over the axis: x.mean({gone[0]}, keepdim=True)"
            yield Hit(node, remedy=remedy, applied=node.name in subject.rewritten)


def _broadcast_copies(subject: Subject) -> Iterator[Hit]:
    for node in subject.calls(*having(Trait.BROADCASTS)):
        if str(sizes(source(node))) != str(sizes(node)):
            yield Hit(node, applied=node.name in subject.rewritten)


def _slice_assignments(subject: Subject) -> Iterator[Hit]:
    by_id = {layer.layer_id: layer.parts[0].tensor for layer in subject.graph.layers.layers if layer.parts}
    nodes = {node.name: node for node in subject.graph.module.graph.nodes}
    for layer_id in subject.graph.assignments:
        yield Hit(nodes[by_id[layer_id]], applied=True)
    for node in subject.calls(*having(Trait.ASSIGNS)):
        yield Hit(node, applied=False)


def _dynamic_sizes(subject: Subject) -> Iterator[Hit]:
    if subject.graph.dynamic is not None:
        yield Hit(next(node for node in subject.graph.module.graph.nodes if node.op == "placeholder"))


def _dynamic_batches(subject: Subject) -> Iterator[Hit]:
    if subject.graph.batch is not None:
        yield Hit(next(node for node in subject.graph.module.graph.nodes if node.op == "placeholder"))


def _many_axes(subject: Subject) -> Iterator[Hit]:
    for node in subject.calls():
        rank = node.meta["val"].ndim
        if rank > 4:
            who = "Core ML and TFLite's padding take five at most" if rank > 5 else "LiteRT's GPU delegate takes four"
            yield Hit(node, f"a tensor has {rank} axes; {who}")


def _delegate_rejects(subject: Subject) -> Iterator[Hit]:
    for node in subject.calls(*REFUSED):
        accelerators, remedy = REFUSED[op_name(node)]
        yield Hit(node, f"{op_name(node)} becomes {accelerators}", remedy)


def _unconvertible(subject: Subject) -> Iterator[Hit]:
    """What an export refuses, format by format: the table of operators has what was measured."""
    dynamic = subject.graph.is_dynamic
    for file_format in (item for item in Format if not (dynamic and FORMATS[item].fixed_size_because)):
        graph, _ = decompose(subject.graph, target_of(file_format).decompositions)
        for node, operator in refused(graph, file_format):
            what = f"{FORMATS[file_format].title} cannot have {operator.operator}: {operator.reason}"
            yield Hit(node, what, operator.remedy)


def _rewritten(subject: Subject) -> Iterator[Hit]:
    """What is written in the terms of other operators, and the formats whose converters need that."""
    titles: dict[str, dict[str, str]] = {}
    for file_format in Format:
        for item in decompose(subject.graph, target_of(file_format).decompositions)[1]:
            titles.setdefault(item.layer, {})[FORMATS[file_format].title] = item.operator
    for node in subject.graph.module.graph.nodes:
        found = titles.get(subject.graph.layer_of(node.name) or "")
        if found and node.name not in subject.rewritten:
            name = next(iter(found.values()))
            yield Hit(
                node, f"{name} in this form is refused or written wrongly by the converter for {' and '.join(found)}"
            )


def _unfoldable(subject: Subject) -> Iterator[Hit]:
    for node in subject.graph.module.graph.nodes:
        if node.target is BATCH_NORM:
            form, reason = form_of(subject.graph.module, node)
            if reason is not None:
                yield Hit(node, f"{_STAYS[form]}: {reason}")


_STAYS: Final = {
    FoldForm.SCALE_AND_SHIFT: "BatchNorm stays as a product and a sum",
    FoldForm.INPUT_STATISTICS: "BatchNorm stays as means, a product and a sum",
}


def _training_leftovers(subject: Subject) -> Iterator[Hit]:
    yield from (Hit(node) for node in subject.calls(*having(Trait.RANDOM)))


def _hard_activations(subject: Subject) -> Iterator[Hit]:
    nodes = {node.name: node for node in subject.graph.module.graph.nodes}
    blocks = {name for block in subject.found.blocks for name in block.inner}
    for item in subject.found.activations:
        if item.output not in blocks:
            yield Hit(nodes[item.output])


def _attention(subject: Subject) -> Iterator[Hit]:
    nodes = {node.name: node for node in subject.graph.module.graph.nodes}
    for block in subject.found.blocks:
        if block.kind is not Kind.COORDATT or not isinstance(block.anatomy, Branches):
            continue
        joined = any(len(strip.directions) > 1 for strip in block.anatomy.strips.values())
        how = (
            "its directions are concatenated, transposed and split again"
            if joined
            else "its gates broadcast one by one"
        )
        yield Hit(nodes[block.output], f"coordinate attention: {how}")


def _near_misses(subject: Subject) -> Iterator[Hit]:
    nodes = list(subject.calls())
    for miss in subject.found.near_misses:
        node = next((item for item in nodes if miss.where in (module_path(item), item.name)), nodes[0])
        yield Hit(node, f"{miss.where} begins like an attention block, but {miss.reason}")


def _wide_types(subject: Subject) -> Iterator[Hit]:
    for node in subject.calls():
        value = node.meta["val"]
        if str(value.dtype) in {"torch.float64", "torch.complex64", "torch.complex128"}:
            yield Hit(node, f"it computes in {str(value.dtype).removeprefix('torch.')}")


_GATHERS = "GATHER_ND on TFLite (LiteRT's GPU delegate refuses it) and gather in Core ML (off the Neural Engine)"
_SCATTERS = "a scatter, which neither LiteRT's GPU delegate nor the Neural Engine runs"
_SORTS = "a sort, which LiteRT's GPU delegate refuses"
_OUTSIDE = "do it outside of the network, on the CPU, or replace it by slices"
REFUSED: Final[Mapping[str, tuple[str, str]]] = {
    **dict.fromkeys(("index", "index_select", "gather", "grid_sampler", "grid_sampler_2d"), (_GATHERS, _OUTSIDE)),
    **dict.fromkeys(("scatter", "scatter_add", "index_add"), (_SCATTERS, _OUTSIDE)),
    **dict.fromkeys(("topk", "sort", "argsort"), (_SORTS, "select the best results outside of the network")),
    **dict.fromkeys(("argmax", "argmin"), ("ARG_MAX, which LiteRT's GPU delegate refuses",
                                           "return the scores and take the greatest outside of the network")),
    "flip": ("REVERSE_V2, which LiteRT's GPU delegate refuses", "reverse the weights of the next layer instead"),
    "roll": ("a gather in Core ML, off the Neural Engine", "write it as two slices and torch.cat"),
    "round": ("ROUND, which LiteRT's GPU delegate refuses", "leave rounding to the app"),
    "ceil": ("CEIL, which LiteRT's GPU delegate refuses", "write -torch.floor(-x)"),
    "unfold": ("gathers and tensors of six axes", "write it as a convolution with fixed weights"),
    "im2col": ("gathers and tensors of six axes", "write it as a convolution with fixed weights"),
}  # fmt: skip

RULES: Final = (
    Rule("attention-form", "coordinate attention as its authors write it",
         "written anew for each runtime: two branches, gates applied where they are cheapest", True, _attention),
    Rule("attention-near-miss", "something begins like an attention block and is none that can be rewritten",
         "write the block as in the paper; it is exported as it stands, correct but slow", False, _near_misses),
    Rule("hard-activation", "hard-swish or hard-sigmoid: XNNPACK takes HARD_SWISH in float only, so in int8 it cuts the"
         " graph, and spelled out it is several operators elsewhere",
         "written as the one operator that a runtime has, and spelled out for TFLite", True, _hard_activations),
    Rule("strip-adaptive-pool", "adaptive pooling along one axis: converters fix its kernel, silently so with dynamic"
         " sizes", "written as a mean over the axis: x.mean(3, keepdim=True)", True, _strip_pools),
    Rule("odd-adaptive-pool", "adaptive pooling to a size that does not divide the feature map",
         "use avg_pool2d with a kernel and a stride, or pool to a size that divides the feature map", False,
         _odd_adaptive_pools),
    Rule("broadcast-copy", "expand or repeat copies a tensor: Expand in ONNX, BROADCAST_TO in TFLite (LiteRT's GPU"
         " delegate refuses it), tile in Core ML", "leave it out: products and sums broadcast by themselves", False,
         _broadcast_copies),
    Rule("slice-assignment", "a slice is assigned in place: ScatterND in ONNX, scatter in Core ML",
         "written as a concatenation of the parts", True, _slice_assignments),
    Rule("dynamic-size", "the input size is dynamic: TFLite cannot have it, Core ML leaves the Neural Engine at every"
         " size but the default one, and forms that need a size are out of reach",
         "export the sizes that the app needs with --input-size, one bundle each", False, _dynamic_sizes),
    Rule("dynamic-batch", "the batch is dynamic: TFLite cannot have it, and Core ML leaves the Neural Engine at every"
         " batch but the default one", "export the batch that the app needs with --input-shape, one bundle each", False,
         _dynamic_batches),
    Rule("many-axes", "a tensor has more axes than accelerators take", "keep to four: merge axes before permuting",
         False, _many_axes),
    Rule("delegate-rejects", "an operator that an accelerator leaves to the CPU", _OUTSIDE, False, _delegate_rejects),
    Rule("unconvertible", "an operator that a format cannot have", "replace it", False, _unconvertible),
    Rule("rewritten-operator", "an operator that a converter refuses or writes wrongly",
         "written in the terms of other operators, which compute the same", True, _rewritten),
    Rule("unfoldable-batch-norm", "a BatchNorm that cannot be folded into a convolution",
         "put it directly behind a convolution whose result nothing else uses", False, _unfoldable),
    Rule("training-leftover", "random numbers at inference: noise or drops that training needs",
         "make them follow self.training, so that eval() switches them off", False, _training_leftovers),
    Rule("wide-type", "float64 or complex numbers, which phones compute on the CPU or not at all",
         "compute in float32: torch.float32 constants, .float()", False, _wide_types),
)  # fmt: skip
