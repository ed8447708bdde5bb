"""Write a graph to a folder and read it back without running any code from it.

``graph.json`` lists the ATen calls, ``weights.safetensors`` holds the tensors. A bundle may come from a stranger, hence
no pickle: only operators of the ``aten`` namespace that neither write nor touch files are looked up when it is read.
"""

import json
import math
import operator
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from coordatt_deploy.errors import BundleError
from coordatt_deploy.graph.capture import DynamicSize, Graph, attach, is_call, weight
from coordatt_deploy.layers import Layer, LayerMap
from coordatt_deploy.specs import SCHEMA_VERSION, TensorSpec, from_json, to_json

# Python's own functions that torch.export leaves in a graph: picking from a tuple, and arithmetic on sizes.
PLAIN: Final[Mapping[str, Callable[..., Any]]] = {
    f"operator.{function.__name__}": function
    for function in (operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.mod,
                     operator.neg)
}  # fmt: skip
REFUSED: Final = frozenset({"from_file", "save", "load"})


def save_graph(graph: Graph, folder: Path) -> None:
    """Write *graph* into *folder*, which exists."""
    weights: dict[str, torch.Tensor] = {}
    nodes = []
    for node in graph.module.graph.nodes:
        if node.op == "get_attr":
            tensor = weight(graph.module, node)
            assert tensor is not None  # noqa: S101 - a captured graph reads tensors only
            weights[str(node.target)] = tensor.detach().contiguous()
        nodes.append(
            {
                "name": node.name,
                "op": node.op,
                "target": _target_name(node),
                "args": _encode(node.args),
                "kwargs": _encode(node.kwargs),
            }
        )
    document = {
        "schema_version": SCHEMA_VERSION,
        "inputs": to_json(graph.inputs),
        "outputs": list(graph.outputs),
        "example_shapes": [list(tensor.shape) for tensor in graph.example],
        "dynamic": to_json(graph.dynamic),
        "layers": to_json(graph.layers.layers),
        "nodes": nodes,
    }
    (folder / "graph.json").write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    save_file({name: weights[name].clone() for name in sorted(weights)}, folder / "weights.safetensors")


def load_graph(folder: Path) -> Graph:
    """Read what ``save_graph`` wrote.

    Raises:
        BundleError: A file is missing or damaged, or a call is not one that a captured graph makes.
    """
    try:
        document = from_json((folder / "graph.json").read_text(encoding="utf-8"))
        weights = load_file(folder / "weights.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise BundleError(f"{folder.name} holds no captured graph: {error}") from error
    if document.get("schema_version") != SCHEMA_VERSION:
        raise BundleError(f"graph.json: schema_version is {document.get('schema_version')}, expected {SCHEMA_VERSION}")
    try:
        return _build(document, weights)
    except (KeyError, TypeError, IndexError, AttributeError, RuntimeError) as error:
        raise BundleError(f"graph.json describes no graph: {type(error).__name__}: {error}") from error


def _build(document: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> Graph:
    root, graph = nn.Module(), fx.Graph()
    for name, tensor in weights.items():
        attach(root, name, tensor)
    nodes: dict[str, fx.Node] = {}
    for item in document["nodes"]:
        args, kwargs = _decode(item["args"], nodes), _decode(item["kwargs"], nodes)
        op = item["op"]
        if op == "call_function":
            target: Any = _resolve(item["target"])
        elif op in {"placeholder", "get_attr", "output"}:
            target = item["target"]
        else:
            raise BundleError(f"graph.json: a captured graph has no node of kind {op!r}")
        nodes[item["name"]] = graph.create_node(op, target, tuple(args), kwargs, name=item["name"])
    module = fx.GraphModule(root, graph)
    generator = torch.Generator().manual_seed(0)
    example = tuple(torch.randn(shape, generator=generator) for shape in document["example_shapes"])
    dynamic = document["dynamic"]
    read = Graph(
        module,
        tuple(TensorSpec.from_json(item) for item in document["inputs"]),
        tuple(document["outputs"]),
        LayerMap(tuple(Layer.from_json(item) for item in document["layers"])),
        example,
        None if dynamic is None else DynamicSize(**dynamic),
    )
    annotate(read)
    return read


def annotate(graph: Graph) -> None:
    """Give every node of the graph its value's shape and type (``meta["val"]``), symbolic where sizes are."""
    if graph.dynamic is None:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            FakeTensorProp(graph.module, mode).propagate(*graph.example)
        return
    symbols = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    shapes = tuple(symbols if tensor.ndim == 4 else None for tensor in graph.example)
    exported = torch.export.export(graph.module, graph.example, dynamic_shapes=shapes, strict=False)
    calls = [node for node in exported.graph.nodes if is_call(node)]
    names = {str(getattr(node.target, "__name__", node.target)): None for node in calls}
    mine = [
        node
        for node in graph.module.graph.nodes
        if node.op == "call_function" and str(getattr(node.target, "__name__", node.target)) in names
    ]
    for node, twin in zip(mine, calls, strict=True):
        node.meta["val"] = twin.meta["val"]


def _target_name(node: fx.Node) -> str:
    if node.op != "call_function":
        return str(node.target)
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)  # aten.conv2d.default
    name = f"operator.{target.__name__}"
    if name not in PLAIN:
        raise BundleError(f"the captured graph calls {target}, which the bundle cannot describe")
    return name


def _resolve(name: str) -> Callable[..., Any]:
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


def _encode(value: Any) -> Any:
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


def _decode(value: Any, nodes: Mapping[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_decode(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, item),) = value.items()
    if kind == "node":
        return nodes[item]
    if kind == "dict":
        return {key: _decode(entry, nodes) for key, entry in item.items()}
    if kind == "float":
        return float(item)
    if kind == "device":
        return torch.device("cpu")
    found = getattr(torch, item, None) if kind == "torch" else None
    if not isinstance(found, (torch.dtype, torch.memory_format, torch.layout)):
        raise BundleError(f"graph.json: {item!r} is no type of torch")
    return found
