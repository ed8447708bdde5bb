"""Write in-place operators as functions, so that every node of a captured graph keeps one value.

    y = relu6_(x)                       ->  y = relu6(x), and whoever reads x afterwards reads y
    x[:, a:b] = s   (a slice of x)      ->  x = concat(x[:, :a], s, x[:, b:])

``torch.export`` keeps what the user wrote, ``ReLU6(inplace=True)`` included. As long as nothing reads the overwritten
tensor, or a view of it, by another name, exchanging the operator is all there is to do and the graph is the one of the
same network without ``inplace``. Otherwise torch's own functionalization does it, and what that takes apart is put
together again.
"""

from collections.abc import Iterator
from typing import Final

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.fx.node import Argument, Target

from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.call_arguments import argument, integer
from coordatt_deploy.graph.graph import aten, module_path, overloads
from coordatt_deploy.graph.operators import Trait
from coordatt_deploy.graph.passes.subgraphs import casts, without_subgraphs

DROPOUTS: Final = overloads(Trait.DROPOUT)  # they give their input back although their schema does not say so


def functional(program: ExportedProgram) -> ExportedProgram:
    """Return the program in a form in which ``exchange`` can write every operator as a function.

    Raises:
        UsageError: The model overwrites one of its own weights or buffers, or tensors while autocast is on.
    """
    signature = program.graph_signature
    own = {**signature.inputs_to_parameters, **signature.inputs_to_buffers,
           **signature.inputs_to_lifted_tensor_constants}  # fmt: skip
    graph = without_subgraphs(program.graph_module)
    aliases = _Aliases(graph)
    simple = True
    for node in mutations(graph):
        target = aliases.root(_written(node))
        if target.name in own:
            raise UsageError(_own_state(own[target.name], node))
        simple = simple and _counterpart(node) is not None and not aliases.read_later(node)
    if not simple and casts(program.graph_module):
        raise UsageError(
            "the model overwrites tensors and computes in half precision under torch.autocast; the files choose their"
            " own precision, so leave autocast out or call it with enabled=False"
        )
    return program if simple else program.run_decompositions({})


def functionalise(module: fx.GraphModule) -> tuple[str, ...]:
    """Write the in-place operators of a flat graph as functions, in place.

    Returns:
        The names of the nodes that stand for a slice assignment.
    """
    position = {node: index for index, node in enumerate(module.graph.nodes)}
    for node in list(mutations(module.graph)):
        counterpart = _counterpart(node)
        assert counterpart is not None  # noqa: S101 - ``functional`` has seen to it
        written = _written(node)
        node.target = counterpart
        now = position[node]
        written.replace_all_uses_with(node, delete_user_cb=lambda user, now=now: position[user] > now)  # type: ignore[misc]
    for node in list(module.graph.nodes):
        _put_together(module.graph, node)
    assigned = [name for node in list(module.graph.nodes) if (name := _as_concat(module.graph, node)) is not None]
    module.graph.eliminate_dead_code()
    return tuple(name for name in assigned if any(node.name == name for node in module.graph.nodes))


def mutations(graph: fx.Graph) -> Iterator[fx.Node]:
    """Give the calls that overwrite one of their arguments."""
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            yield node


def _written(node: fx.Node) -> fx.Node:
    """The tensor that an in-place operator overwrites: by convention its first argument, or ``out``."""
    for index, declared in enumerate(_schema(node).arguments):
        if declared.alias_info is not None and declared.alias_info.is_write:
            value = argument(node, index, declared.name)
            if isinstance(value, fx.Node):
                return value
    raise UsageError(f"the model calls {node.target}, which overwrites no tensor that can be followed")


def _schema(node: fx.Node) -> torch._C.FunctionSchema:
    """The schema of a call that ``mutations`` gave."""
    assert isinstance(node.target, torch._ops.OpOverload)  # noqa: S101
    return node.target._schema


def _counterpart(node: fx.Node) -> Target | None:
    """``aten.relu.default`` for ``aten.relu_.default``; None where no operator has the same signature."""
    target = node.target
    assert isinstance(target, torch._ops.OpOverload)  # noqa: S101 - ``mutations`` gives such calls alone
    name = target.overloadpacket.__name__
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    found = getattr(packet, target._overloadname, None)
    same = found is not None and [a.name for a in found._schema.arguments] == [a.name for a in target._schema.arguments]
    return found if same else None


def _own_state(name: str, node: fx.Node) -> str:
    where = module_path(node)
    layer = f"layer {where!r}" if where else "the model"
    if name.endswith("num_batches_tracked"):
        return f"{layer} is in training mode although the model is not; call model.eval() after everything else"
    return (
        f"{layer} overwrites its own {name} while it runs, and a file for a phone keeps no state between two inputs;"
        " make it an input and an output, or leave it out at inference"
    )


class _Aliases:
    """Which nodes of a graph may share memory."""

    def __init__(self, graph: fx.Graph) -> None:
        self.parent: dict[fx.Node, fx.Node] = {}
        self.position = {node: index for index, node in enumerate(graph.nodes)}
        for node in graph.nodes:
            source = self._viewed(node)
            if source is not None:
                self.parent[node] = source

    @staticmethod
    def _viewed(node: fx.Node) -> fx.Node | None:
        """The argument whose memory the result shares."""
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], fx.Node):
            return None
        if not isinstance(node.target, torch._ops.OpOverload):  # getitem
            return node.args[0]
        schema = node.target._schema
        if schema.is_mutable:
            return _written(node)
        if node.target in DROPOUTS or any(item.alias_info is not None for item in schema.returns):
            return node.args[0]
        return None

    def root(self, node: fx.Node) -> fx.Node:
        while node in self.parent:
            node = self.parent[node]
        return node

    def read_later(self, node: fx.Node) -> bool:
        """Whether the tensor that *node* overwrites is read afterwards under a name that existed before."""
        written, now = _written(node), self.position[node]
        group = [item for item in self.position if self.position[item] < now and self.root(item) is self.root(written)]
        return any(self.position[user] > now for item in group if item is not written for user in item.users)


def _put_together(graph: fx.Graph, node: fx.Node) -> None:
    """Undo what functionalization takes apart: BatchNorm's tuple, and copies of a tensor of the same shape."""
    if node.target is aten._native_batch_norm_legit_no_training.default:
        source, gamma, beta, mean, variance, momentum, epsilon = node.args
        _as_batch_norm(graph, node, (source, gamma, beta, mean, variance, False, momentum, epsilon, False))
    elif node.target is aten._native_batch_norm_legit.no_stats:
        source, gamma, beta, training, momentum, epsilon = node.args
        _as_batch_norm(graph, node, (source, gamma, beta, None, None, training, momentum, epsilon, False))
    elif node.target is aten.copy.default:
        into, source = node.args[:2]
        old, new = (item.meta["val"] for item in (into, source))  # type: ignore[union-attr]
        if old.shape == new.shape and old.dtype == new.dtype:
            node.replace_all_uses_with(source)  # type: ignore[arg-type]
            graph.erase_node(node)


def _as_batch_norm(graph: fx.Graph, node: fx.Node, args: tuple[Argument, ...]) -> None:
    """Put BatchNorm's own operator in the place of the one that gives its statistics as well."""
    (first,) = [user for user in node.users if user.args[1] == 0]
    with graph.inserting_before(node):
        norm = graph.call_function(aten.batch_norm.default, args)
    norm.meta = dict(first.meta)
    first.replace_all_uses_with(norm)
    for unused in [*node.users, node]:
        graph.erase_node(unused)


def _as_concat(graph: fx.Graph, node: fx.Node) -> str | None:
    """Write a slice assignment as a concatenation, which every runtime has; None where *node* is not one."""
    if node.target is not aten.slice_scatter.default:
        return None
    base, source = node.args[:2]
    assert isinstance(base, fx.Node)  # noqa: S101 - the schema takes tensors
    assert isinstance(source, fx.Node)  # noqa: S101
    axis = integer(node, 2, "dim", 0)
    size: int | torch.SymInt = base.meta["val"].shape[axis]
    start, end = argument(node, 3, "start"), argument(node, 4, "end")
    bounds = [
        value for value in (0 if start is None else start, size if end is None else end) if isinstance(value, int)
    ]
    if argument(node, 5, "step", 1) != 1 or not isinstance(size, int) or len(bounds) != 2:
        return None
    begin, stop = (min(max(value + size if value < 0 else value, 0), size) for value in bounds)
    same_slice = source.target is aten.slice.Tensor and source.args == (base, *node.args[2:])
    if same_slice or stop <= begin:
        node.replace_all_uses_with(base)
        graph.erase_node(node)
        return None
    with graph.inserting_before(node):
        before = _slice(graph, node, axis, 0, begin) if begin > 0 else None
        after = _slice(graph, node, axis, stop, size) if stop < size else None
        parts = [part for part in (before, source, after) if part is not None]
        whole = source if len(parts) == 1 else graph.call_function(aten.cat.default, (parts, axis))
    if whole is not source:
        whole.meta = dict(node.meta)
    node.replace_all_uses_with(whole)
    graph.erase_node(node)
    return whole.name


def _slice(graph: fx.Graph, assignment: fx.Node, axis: int, start: int, stop: int) -> fx.Node:
    """The stretch of the overwritten tensor that the assignment leaves alone."""
    part = graph.call_function(aten.slice.Tensor, (assignment.args[0], axis, start, stop))
    part.meta = {**assignment.meta, "val": assignment.meta["val"].narrow(axis, start, stop - start)}
    return part
