import json

import numpy as np
import pytest
import torch
from torch import nn

from coordatt_deploy.errors import BundleError
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.exported_program import program
from coordatt_deploy.graph.graph import DynamicBatch, DynamicSize
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.graph.saved_graph import load_graph, save_graph

FEEDS = {"image": np.random.default_rng(0).standard_normal((1, 3, 32, 48)).astype(np.float32)}


@pytest.mark.parametrize(
    ("dynamic", "batch"),
    [(None, None), (DynamicSize(32, 96), None), (None, DynamicBatch(1, 8)), (DynamicSize(32, 96), DynamicBatch(1, 8))],
    ids=["static", "dynamic", "batch", "both"],
)
def test_a_graph_survives_its_folder(tiny, tmp_path, dynamic, batch):
    """
    Same function to the last bit, same layers and bounds, and it can be exported again.
    """
    graph = capture(tiny, (torch.randn(1 if batch is None else 2, 3, 32, 48),), dynamic=dynamic, batch=batch)
    folded, _ = fold_batchnorms(graph)
    save_graph(folded, tmp_path)

    read = load_graph(tmp_path)

    assert np.array_equal(run(folded, FEEDS)["logits"], run(read, FEEDS)["logits"])
    assert (folded.layers, folded.inputs, folded.outputs) == (read.layers, read.inputs, read.outputs)
    assert (dynamic, batch) == (read.dynamic, read.batch)
    assert list(program(folded)[1]) == list(program(read)[1])


def test_a_graph_of_an_earlier_version_has_no_batch(tiny_graph, tmp_path):
    """
    It is read as it was meant: static.
    """
    save_graph(tiny_graph, tmp_path)
    document = json.loads((tmp_path / "graph.json").read_text())
    assert document.pop("batch") is None
    (tmp_path / "graph.json").write_text(json.dumps(document))

    assert load_graph(tmp_path).batch is None


def test_a_call_that_an_exporter_puts_into_a_module_still_runs(tiny_graph, tmp_path):
    """
    The exporter for TFLite names the calls of a graph, one read from a bundle as well, by modules around them.
    """
    save_graph(tiny_graph, tmp_path)
    module = load_graph(tmp_path).module
    expected = module(torch.from_numpy(FEEDS["image"]))[0]
    call = next(node for node in module.graph.nodes if node.op == "call_function" and node.name == "relu6")

    module.add_module("named", nn.ReLU6())
    call.op, call.target = "call_module", "named"

    assert torch.equal(expected, module(torch.from_numpy(FEEDS["image"]))[0])


def test_the_same_graph_gives_the_same_bytes(tiny_graph, tmp_path):
    """
    Nothing in the folder depends on when or where it was written.
    """
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_graph(tiny_graph, tmp_path / name)

    for file in ("graph.json", "weights.safetensors"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


@pytest.mark.parametrize(
    "target",
    ["os.system", "builtins.eval", "aten.from_file.default", "aten.add_.Tensor", "aten.nothing.default",
     "aten.__class__.x", "quantized.add.default"],
)  # fmt: skip
def test_only_harmless_calls_are_looked_up(tiny_graph, tmp_path, target):
    """
    A bundle from a stranger cannot make this machine call what it likes.
    """
    save_graph(tiny_graph, tmp_path)
    document = json.loads((tmp_path / "graph.json").read_text())
    next(node for node in document["nodes"] if node["op"] == "call_function")["target"] = target
    (tmp_path / "graph.json").write_text(json.dumps(document))

    with pytest.raises(BundleError):
        load_graph(tmp_path)


@pytest.mark.parametrize("damage", ["graph", "weights", "node"])
def test_damage_is_one_line(tiny_graph, tmp_path, damage):
    """
    Truncated JSON, truncated weights, a reference to a node that is not there.
    """
    save_graph(tiny_graph, tmp_path)
    file = tmp_path / ("weights.safetensors" if damage == "weights" else "graph.json")
    content = file.read_bytes()
    file.write_bytes(content.replace(b'"node": "image"', b'"node": "nobody"') if damage == "node" else content[:-100])

    with pytest.raises(BundleError) as caught:
        load_graph(tmp_path)

    assert "\n" not in str(caught.value)


def test_a_layer_that_is_at_no_node_is_refused(tiny_graph, tmp_path):
    """
    By the names of both: whoever judges layers looks the node up.
    """
    save_graph(tiny_graph, tmp_path)
    document = json.loads((tmp_path / "graph.json").read_text())
    layer = next(item for item in document["layers"] if item["parts"])
    layer["parts"][0]["tensor"] = "%s%n"
    (tmp_path / "graph.json").write_text(json.dumps(document))

    with pytest.raises(BundleError, match=f"layer '{layer['layer_id']}' is at '%s%n', which is no node"):
        load_graph(tmp_path)


def test_a_graph_of_a_bundle_that_cannot_be_run_is_one_line(shared_graph, tmp_path):
    """
    Shapes alone do not tell: an index beyond its tensor is seen when it is run.
    """
    save_graph(shared_graph, tmp_path)
    document = json.loads((tmp_path / "graph.json").read_text())
    name = next(node["name"] for node in document["nodes"] if node["op"] == "placeholder")
    odd = {"name": "odd", "op": "call_function", "target": "aten.index_select.default", "kwargs": {"dict": {}}}
    index = {"name": "index", "op": "call_function", "target": "aten.full.default", "kwargs": {"dict": {}}}
    index["args"] = [[2], 99]
    index["kwargs"] = {"dict": {"dtype": {"torch": "int64"}}}
    odd["args"] = [{"node": name}, 1, {"node": "index"}]
    document["nodes"][-1:-1] = [index, odd]
    document["nodes"][-1]["args"] = [[{"node": "odd"}]]
    (tmp_path / "graph.json").write_text(json.dumps(document))
    graph = load_graph(tmp_path)

    with pytest.raises(BundleError, match="captured graph cannot be run") as caught:
        run(graph, {graph.inputs[0].name: graph.example[0].numpy()})

    assert "\n" not in str(caught.value)
