"""Write a graph to a folder and read it back without running any code from it.

``graph.json`` lists the ATen calls, ``weights.safetensors`` the tensors. A bundle may come from a stranger, hence:

* no pickle, and only operators of the ``aten`` namespace that neither write nor touch files are looked up;
* what is read is interpreted node by node. ``torch.fx`` would print every name into Python source and execute that;
* a converter exports the graph again, and may print it then. So names are held to what the printer cannot mistake for
  code: nodes and inputs are identifiers, weights have no quote, backslash or control character in their names, and
  arguments have the names that the operator's schema gives them.
"""

import hashlib
import json
import keyword
import math
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NotRequired, TypedDict, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.node import Argument, Target
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.documents import SCHEMA_VERSION, from_json, parse, to_json
from coordatt_deploy.errors import BundleError
from coordatt_deploy.graph.call_arguments import outputs
from coordatt_deploy.graph.exported_program import set_shapes, symbolic_inputs
from coordatt_deploy.graph.graph import (
    RESERVED,
    RESERVED_AT_ROOT,
    DynamicBatch,
    DynamicSize,
    Graph,
    attach,
    static_shape,
    weight,
    weight_name,
)
from coordatt_deploy.graph.interpreted_graph import InterpretedGraph
from coordatt_deploy.layer_map import Layer, LayerMap
from coordatt_deploy.user_code import first_line, source_line

# Python's own functions that torch.export leaves in a graph: picking from a tuple, and arithmetic on sizes.
PLAIN: Final[Mapping[str, Target]] = {
    f"operator.{function.__name__}": function
    for function in (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod,
                     operator.neg)
}  # fmt: skip
LARGEST_VALUE: Final = 1 << 27  # numbers: 1 GiB in float64; an image of a megapixel with 64 channels has half of it
REFUSED: Final = frozenset({"from_file", "save", "load"})

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


class _Node(TypedDict):
    """An entry of ``nodes`` in a well-formed ``graph.json``; every field is checked before it is used."""

    name: str
    op: str
    target: str
    args: Json
    kwargs: Json
    line: NotRequired[str]


class _Document(TypedDict):
    """A well-formed ``graph.json``, as far as it is read without a type of ours."""

    nodes: list[_Node]
    inputs: list[dict[str, object]]
    outputs: list[str]
    layers: list[dict[str, object]]
    example_shapes: list[list[int]]
    dynamic: dict[str, int] | None
    batch: NotRequired[dict[str, int] | None]  # graphs of earlier versions have none


def save_graph(
    graph: Graph, folder: Path, state: Mapping[str, torch.Tensor] | None = None, *, lines: bool = False
) -> None:
    """Write *graph* into *folder*, which exists.

    Args:
        graph: Any stage's.
        folder: For ``graph.json`` and ``weights.safetensors``.
        state: The model's state, of which all is kept, read by the graph or not, so that ``source_weights`` can hash it
            anew; None for a graph that no hash speaks of.
        lines: Keep the lines of the user's code, for messages; a bundle that travels must not hold them.
    """
    weights: dict[str, torch.Tensor] = {}
    nodes = []
    for node in graph.module.graph.nodes:
        if node.op == "get_attr":
            tensor = weight(graph.module, node)
            assert tensor is not None  # noqa: S101 - a captured graph reads tensors only
            weights[str(node.target)] = tensor.detach().contiguous()
        entry = {
            "name": node.name,
            "op": node.op,
            "target": _target_name(node),
            "args": _encode(node.args),
            "kwargs": _encode(node.kwargs),
        }
        line = source_line(node.meta.get("stack_trace") or "") if lines else None
        nodes.append(entry if line is None else entry | {"line": line})
    kept = {} if state is None else {name: value.detach() for name, value in state.items() if _hashed(name)}
    stored = {name: weight_name(name) for name in sorted(kept)}
    document: dict[str, object] = {
        "schema_version": SCHEMA_VERSION,
        "inputs": to_json(graph.inputs),
        "outputs": list(graph.outputs),
        "example_shapes": [list(tensor.shape) for tensor in graph.example],
        "dynamic": to_json(graph.dynamic),
        "batch": to_json(graph.batch),
        "layers": to_json(graph.layers.layers),
        "nodes": nodes,
    }
    if kept and all(_same(weights.setdefault(stored[name], value), value) for name, value in kept.items()):
        document["state"] = stored
    (folder / "graph.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    save_file({name: weights[name].clone() for name in sorted(weights)}, folder / "weights.safetensors")


def graph_digest(folder: Path) -> str:
    """Return the sha256 of the graph that ``save_graph`` wrote, without the lines of the user's code in it."""
    document = json.loads((folder / "graph.json").read_text(encoding="utf-8"))
    for node in document["nodes"]:
        node.pop("line", None)
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _hashed(name: str) -> bool:
    return not name.endswith("num_batches_tracked")


def load_graph(folder: Path) -> Graph:
    """Read what ``save_graph`` wrote.

    Raises:
        BundleError: A file is missing or damaged, or a call is not one that a captured graph makes.
    """
    try:
        document = parse((folder / "graph.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "weights.safetensors")
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise BundleError(f"{folder.name} holds no captured graph: {error}") from error
    if not isinstance(document, dict):
        raise BundleError(f"graph.json holds a {type(document).__name__}, expected an object")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(f"graph.json: schema_version is {document.get('schema_version')}, expected {SCHEMA_VERSION}")
    try:
        return _build(cast("_Document", document), weights)
    except BundleError:
        raise
    except Exception as error:  # torch raises whatever the calls of the file lead it to
        what = f"{type(error).__name__}: {first_line(error)}"
        raise BundleError(f"graph.json describes no graph: {what}") from error


def _build(document: _Document, weights: Mapping[str, torch.Tensor]) -> Graph:
    root, graph = nn.Module(), fx.Graph()
    for name, tensor in weights.items():
        _check_weight_name(name)
        attach(root, name, tensor)
    nodes: dict[str, fx.Node] = {}
    for item in document["nodes"]:
        node = _add_node(graph, item, nodes, weights)
        if node.name != item["name"]:
            raise BundleError(f"graph.json: {item['name']!r} cannot be the name of a node, or stands there twice")
        if "line" in item:
            node.meta["source_line"] = str(item["line"])
        nodes[node.name] = node
    *others, last = (node.op for node in graph.nodes) if nodes else ("nothing",)
    if last != "output" or "output" in others:
        raise BundleError("graph.json: a captured graph ends with its output, and has one")
    module = InterpretedGraph(root, graph)
    generator = torch.Generator().manual_seed(0)
    for shape in document["example_shapes"]:
        _check_size(shape, "an input")
    example = tuple(torch.randn(shape, generator=generator) for shape in document["example_shapes"])
    dynamic, batch = document["dynamic"], document.get("batch")
    read = Graph(
        module,
        from_json(tuple[TensorSpec, ...], document["inputs"]),
        tuple(document["outputs"]),
        LayerMap(from_json(tuple[Layer, ...], document["layers"])),
        example,
        None if dynamic is None else DynamicSize(**dynamic),
        None if batch is None else _batch(from_json(DynamicBatch, batch)),
    )
    places = ((layer.layer_id, part.tensor) for layer in read.layers.layers for part in layer.parts)
    if (lost := next((pair for pair in places if pair[1] not in nodes), None)) is not None:
        raise BundleError(f"graph.json: layer {lost[0]!r} is at {lost[1]!r}, which is no node of the graph")
    placeholders = [node.name for node in graph.nodes if node.op == "placeholder"]
    if len(placeholders) != len(example) or len(read.inputs) != len(example):
        raise BundleError(
            f"graph.json: {len(placeholders)} placeholders, {len(read.inputs)} inputs and {len(example)} example"
            " shapes; a captured graph has as many of each"
        )
    given = outputs(graph)
    if len(given) != len(read.outputs) or not given:
        raise BundleError(f"graph.json: the graph returns {len(given)} values, and {len(read.outputs)} have a name")
    annotate(read)
    if not all(isinstance(node.meta.get("val"), torch.Tensor) for node in given):
        raise BundleError("graph.json: the graph returns what is no tensor")
    for node in read.module.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, torch.Tensor):
            _check_size(static_shape(value), node.name)
    return read


def _batch(bounds: DynamicBatch) -> DynamicBatch:
    if not 1 <= bounds.minimum < bounds.maximum:
        raise BundleError(f"graph.json: a batch from {bounds.minimum} to {bounds.maximum} is no range")
    return bounds


def _check_size(shape: Sequence[int | None], what: str) -> None:
    """Refuse a value that no network of images has, before anybody makes room for it; a dynamic size counts as 1."""
    if math.prod(size or 1 for size in shape) > LARGEST_VALUE:
        raise BundleError(f"graph.json: {what} has the shape {tuple(shape)}, more than {LARGEST_VALUE:,} numbers")


def _add_node(
    graph: fx.Graph, item: _Node, nodes: Mapping[str, fx.Node], weights: Mapping[str, torch.Tensor]
) -> fx.Node:
    """Append one node of the file.

    Raises:
        BundleError: It is not one that a captured graph has, or a name in it could be taken for code.
    """
    op, name, target = item["op"], item["name"], item["target"]
    if not _is_name(name):
        raise BundleError(f"graph.json: {name!r} is not the name of a node; letters, digits and _ are")
    args, kwargs = _decode(item["args"], nodes), _decode(item["kwargs"], nodes)
    if not isinstance(args, list) or not isinstance(kwargs, dict):
        raise BundleError(f"graph.json: the arguments of {name} are not a list and an object")
    if op == "call_function":
        function = _resolve(target)
        _check_keywords(name, function, args, kwargs)
        return graph.create_node(op, function, tuple(args), kwargs, name=name)
    if op not in {"placeholder", "get_attr", "output"}:
        raise BundleError(f"graph.json: a captured graph has no node of kind {op!r}")
    if kwargs or (args and op != "output") or (op == "output" and len(args) != 1):
        raise BundleError(f"graph.json: {name} is a node of kind {op} and has arguments that such a node never has")
    if op == "placeholder" and not _is_name(target):
        raise BundleError(f"graph.json: {target!r} is not the name of an input; letters, digits and _ are")
    if op == "get_attr" and target not in weights:
        raise BundleError(f"graph.json: {name} reads {target!r}, which is not among the weights")
    if op == "output" and target != "output":
        raise BundleError(f"graph.json: the output's target is {target!r}, expected 'output'")
    return graph.create_node(op, target, tuple(args), kwargs, name=name)


def _is_name(value: object) -> bool:
    """Whether a value of the file is a plain identifier, which no printer of Python source can mistake for more."""
    return isinstance(value, str) and value.isidentifier() and not keyword.iskeyword(value)


def _check_weight_name(name: str) -> None:
    parts = name.split(".")
    printable = all(part and part.isprintable() and not set(part) & set("\"'\\") for part in parts)
    if not printable or not RESERVED.isdisjoint(parts) or parts[0] in RESERVED_AT_ROOT:
        raise BundleError(f"weights.safetensors: {name!r} is not the name of a weight of a module")


def _check_keywords(name: str, function: Target, args: Sequence[Argument], kwargs: Mapping[str, Argument]) -> None:
    """Hold the names of arguments to the operator's schema; Python's own functions take none by name."""
    schema = getattr(function, "_schema", None)
    allowed = set() if schema is None else {argument.name for argument in schema.arguments}
    if schema is not None and len(args) > len(schema.arguments):
        raise BundleError(f"graph.json: {name} gives {len(args)} arguments, {function} takes {len(schema.arguments)}")
    for key in kwargs:
        if key not in allowed:
            raise BundleError(f"graph.json: {name} gives an argument {key!r}, which {function} does not have")


def annotate(graph: Graph) -> None:
    """Give every node of the graph its value's shape and type (``meta["val"]``), symbolic where sizes are."""
    if not graph.is_dynamic:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            FakeTensorProp(graph.module, mode).propagate(*graph.example)
        return
    inputs, mode = symbolic_inputs(graph.example, graph.dynamic, graph.batch)
    set_shapes(graph.module, inputs, mode)


def _target_name(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)  # aten.conv2d.default
    name = f"operator.{getattr(target, '__name__', target)}"
    if name not in PLAIN:
        raise BundleError(f"the captured graph calls {target}, which the bundle cannot describe")
    return name


def _resolve(name: str) -> Target:
    if name in PLAIN:
        return PLAIN[name]
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    if namespace != "aten" or packet in REFUSED or not hasattr(torch.ops.aten, packet):
        raise BundleError(f"graph.json: refused to look up {name!r}; a captured graph calls aten operators only")
    found = getattr(getattr(torch.ops.aten, packet), overload, None)
    if found is None or found._schema.is_mutable:
        raise BundleError(f"graph.json: {name!r} is no operator without side effects")
    return found  # type: ignore[no-any-return]


def _encode(value: Argument) -> Json:
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if isinstance(value, Mapping):
        return {"dict": {key: _encode(item) for key, item in value.items()}}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise BundleError(f"the captured graph holds a constant of type {type(value).__name__}, which cannot be written")


def _decode(value: Json, nodes: Mapping[str, fx.Node]) -> Argument:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, item),) = value.items()
    if tag == "node" and isinstance(item, str):
        return nodes[item]
    if tag == "dict" and isinstance(item, dict):
        return {key: _decode(entry, nodes) for key, entry in item.items()}
    if tag == "float" and isinstance(item, (str, int, float)):
        return float(item)
    if tag == "device":
        return torch.device("cpu")
    found = getattr(torch, item, None) if tag == "torch" and isinstance(item, str) else None
    if not isinstance(found, (torch.dtype, torch.memory_format, torch.layout)):
        raise BundleError(f"graph.json: {item!r} is no type of torch")
    return found
