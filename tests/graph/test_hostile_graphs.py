"""A bundle's graph comes from a stranger: reading, running and exporting it runs none of its words as code."""

import copy
import itertools
import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import fx

from coordatt_deploy.errors import BundleError, ConversionError
from coordatt_deploy.graph import saved_graph
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.exported_program import program
from coordatt_deploy.graph.interpreted_graph import InterpretedGraph
from coordatt_deploy.graph.saved_graph import load_graph, save_graph

CASES = 500
SEED = 20261126

# What torch.fx prints is Python: each of these ends a name, a string, a call or a line, and starts a statement.
BREAKS = (
    "", " ", "=", "\r", "\n", "\r\n", "\x00", "\x0b", "\x0c", "\x1b", "\x85", "\u2028", "\u2029", "\t", ";", ":",
    ",", ")", "]", "}", '"', "'", '"""', "\\", '")', "')", "x=", "x,", "x)", "x:", "x;", "#", "\\\n", "\\x0a", "{",
    "lambda:", "self.", "ﬁ", "=0):", ".",
)  # fmt: skip
PLACES = (
    "input_name",
    "input_target",
    "node_name",
    "output_target",
    "keyword",
    "weight",
    "string",
    "operator",
    "layer",
    "output",
)


@pytest.fixture(scope="module")
def saved(shared_graph, tmp_path_factory):
    folder = tmp_path_factory.mktemp("graph")
    save_graph(shared_graph, folder)
    return json.loads((folder / "graph.json").read_text()), load_file(folder / "weights.safetensors")


def payload(marker):
    return f"__import__('pathlib').Path({str(marker)!r}).touch()"


def plant(document, weights, place, text):
    """Put *text* into one place of the document; return the document and the weights as a stranger would write them."""
    document, weights = copy.deepcopy(document), dict(weights)
    nodes = document["nodes"]
    call = next(node for node in nodes if node["op"] == "call_function")
    if place in {"input_name", "input_target"}:
        next(node for node in nodes if node["op"] == "placeholder")[place.removeprefix("input_")] = text
    elif place == "node_name":
        call["name"] = text
    elif place == "output_target":
        nodes[-1]["target"] = text
    elif place == "keyword":
        call["kwargs"] = {"dict": {text: 1}}
    elif place == "string":
        call["args"].append(text)
    elif place == "operator":
        call["target"] = f"aten.{text}"
    elif place == "layer":
        document["layers"][0]["layer_id"] = text
    elif place == "output":
        document["outputs"] = [text]
    elif place == "weight":
        node = next(node for node in nodes if node["op"] == "get_attr")
        weights[text] = weights.pop(node["target"])
        node["target"] = text
    if place == "input_name":  # the calls still find it
        document = json.loads(json.dumps(document).replace('{"node": "image"}', json.dumps({"node": text})))
    return document, weights


def write(folder, document, weights):
    folder.mkdir(exist_ok=True)
    (folder / "graph.json").write_text(json.dumps(document))
    save_file({name: tensor.clone() for name, tensor in weights.items()}, folder / "weights.safetensors")


def use(folder):
    """Do with the graph all that commands do: run it, copy it, edit it, export it again."""
    graph = load_graph(folder)
    run(graph, {spec.name: torch.zeros([size or 32 for size in spec.shape]).numpy() for spec in graph.inputs})
    copied = copy.deepcopy(graph.module)
    copied.recompile()
    copied(*graph.example)
    return graph


def test_500_hostile_graphs_run_nothing(saved, tmp_path):
    """
    Names, targets, keywords and operators with every control character and Python syntax: refused, or harmless text.
    """
    marker, folder = tmp_path / "marker", tmp_path / "graph"
    wanted = random.Random(SEED).sample(list(itertools.product(PLACES, BREAKS, BREAKS)), CASES)  # noqa: S311
    refused = 0
    write(folder, *saved)
    program(use(folder))  # nothing is wrong with the graph itself

    for place, before, after in wanted:
        write(folder, *plant(*saved, place, f"image{before}{payload(marker)}{after}"))
        try:
            graph = use(folder)
            if place not in {"layer", "output"}:  # nothing prints those
                program(graph)
        except (BundleError, ConversionError):
            refused += 1
        assert not marker.exists(), (place, before, after)

    assert CASES / 2 < refused < CASES  # words that are shown as text only, layer ids for instance, are no harm


@pytest.mark.parametrize(
    ("place", "text"),
    [
        ("input_target", "image={}"),
        ("keyword", "a=None)\r{}\rdef f():\r    dict(b"),
        ("weight", 'training"), exec("""{}"""), ("y'),
    ],
)
def test_the_same_graph_printed_by_fx_would_run_it(saved, tmp_path, monkeypatch, place, text):
    """
    The attacks are real: with torch's own graph module and no look at the names, each leaves its marker.
    """
    marker = tmp_path / "marker"
    code = payload(marker).replace(".", "\\x2e") if place == "weight" else payload(marker)  # fx splits at dots
    write(tmp_path / "graph", *plant(*saved, place, text.replace("{}", code)))
    with pytest.raises(BundleError):
        load_graph(tmp_path / "graph")
    assert not marker.exists()

    monkeypatch.setattr(saved_graph, "InterpretedGraph", fx.GraphModule)
    monkeypatch.setattr(saved_graph, "_is_name", lambda _: True)
    monkeypatch.setattr(saved_graph, "_check_weight_name", lambda _: None)
    monkeypatch.setattr(saved_graph, "_check_keywords", lambda *_: None)
    try:  # how far it gets differs; the harm is done when the source is compiled or called
        graph = load_graph(tmp_path / "graph")
        graph.module(*graph.example)
    except Exception:  # noqa: BLE001, S110
        pass

    assert marker.exists()


def test_a_graph_that_was_read_is_never_printed(shared_graph, tmp_path):
    """
    Also its copies are run node by node, and give what the captured graph gives.
    """
    save_graph(shared_graph, tmp_path)
    read = load_graph(tmp_path).module
    copied = copy.deepcopy(read)

    assert isinstance(copied, InterpretedGraph)
    assert not hasattr(read, "_code")
    assert not hasattr(copied, "_code")
    expected = shared_graph.module(*shared_graph.example)[0]
    assert torch.equal(expected, copied(*shared_graph.example)[0])


@pytest.mark.parametrize("text", ["[]", "null", "3", '{"schema_version": 1}', "[" * 100_000])
def test_a_file_that_holds_no_object_is_one_line(saved, tmp_path, text):
    """
    Valid JSON of another kind, and JSON nested deeper than any parser goes.
    """
    write(tmp_path, *saved)
    (tmp_path / "graph.json").write_text(text)

    with pytest.raises(BundleError) as caught:
        load_graph(tmp_path)

    assert "\n" not in str(caught.value)
