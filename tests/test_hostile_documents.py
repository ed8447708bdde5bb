"""Documents and files of users that are hostile or broken: each ends in one line."""

import json
import struct

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from coordatt_deploy.documents import DocumentError, parse
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.files import inside, write_whole
from coordatt_deploy.formats import Format
from coordatt_deploy.graph import saved_graph
from coordatt_deploy.graph.saved_graph import load_graph, save_graph
from coordatt_deploy.inspection.file_macs import node_macs
from coordatt_deploy.inspection.run import inspect_artifact
from coordatt_deploy.loading.checkpoints import read_checkpoint
from coordatt_deploy.parity.tolerances import read_tolerances
from coordatt_deploy.runtimes.file_graph import FileGraph, Node


@pytest.mark.parametrize("text", [r'"\ud800"', r'{"a": ["\uDFFFx"]}', r'{"\ud83d": 1}'])
def test_half_of_a_surrogate_pair_is_refused(text):
    """
    No file could be written with it. Whole pairs are characters.
    """
    with pytest.raises(DocumentError, match="half of a surrogate pair"):
        parse(text)
    assert "\U0001f600" == parse(r'"\ud83d\ude00"')


def test_a_number_of_thousands_of_digits_is_refused():
    """
    Python refuses to read it in its own way.
    """
    with pytest.raises(DocumentError):
        parse("1" * 10_000)


def test_a_report_with_half_a_pair_is_written(tmp_path):
    """
    A folder's name may have one; the page shows it as an escape.
    """
    assert r"a\ud800b" == write_whole(tmp_path / "page.html", "a\ud800b").read_text()


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "loop/a", "x" * 5000])
def test_what_is_no_path_is_refused(tmp_path, name):
    """
    A null, half of a pair, links in a circle; or it names nothing.
    """
    (tmp_path / "loop").symlink_to("loop")

    try:
        assert not inside(tmp_path, name).exists()
    except (BundleError, OSError) as error:
        assert "\n" not in str(error)  # noqa: PT017 - either is one line of the command
    else:
        assert name.startswith("x")


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 100_000,
        "a = " + "{a = " * 50_000,
        "[onnx.fp32]\nmultiple = 1" + "0" * 400,
        "[onnx.fp32]\nmultiple = nan",
        "[onnx.fp32]\nmultiple = 1e300",
        "[onnx.fp32]\nmultiple = 1979-05-27",
        "[[onnx.fp32]]",
        "[onnx]\nfp32 = 3",
    ],
)
def test_a_hostile_tolerance_file_is_one_line(tmp_path, text):
    """
    Nested beyond what a parser takes, and numbers beyond what a tolerance is.
    """
    (tmp_path / "t.toml").write_text(text)

    with pytest.raises(UsageError, match=r"t\.toml"):
        read_tolerances(tmp_path / "t.toml")


def cyclic(depth):
    inner: dict[str, object] = {"epoch": 1}
    inner["model"] = inner
    for _ in range(depth):
        inner = {"state_dict": inner}
    return inner


def shared(depth):
    """A mapping that is reached in 2**depth ways."""
    inner: dict[str, object] = {}
    for _ in range(depth):
        inner = {"a": inner, "b": inner}
    return inner


@pytest.mark.parametrize("content", [cyclic(0), cyclic(30), shared(40), {"model": cyclic(2)}])
@pytest.mark.parametrize("new", [True, False])
def test_mappings_within_themselves_end(tmp_path, content, new):
    """
    A pickle may build them; nobody walks in the circle.
    """
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=new)

    with pytest.raises(UsageError, match="holds no state dict"):
        read_checkpoint(tmp_path / "a.pt")


def test_a_state_dict_in_itself_is_read_once(tmp_path):
    """
    The tensors are there all the same.
    """
    state: dict[str, object] = {"weight": torch.ones(2)}
    state["model"] = state
    torch.save(state, tmp_path / "a.pt")

    assert ["weight"] == list(read_checkpoint(tmp_path / "a.pt").state)


def test_a_checkpoint_with_a_damaged_directory_is_one_line(tmp_path):
    """
    It ends like an archive and is none.
    """
    torch.save({"weight": torch.ones(2)}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    at = content.rindex(b"PK\x01\x02")
    (tmp_path / "a.pt").write_bytes(content[:at] + b"XX" + content[at + 2 :])

    with pytest.raises(UsageError, match=r"checkpoint a\.pt"):
        read_checkpoint(tmp_path / "a.pt")


@pytest.fixture
def graph_folder(shared_graph, tmp_path):
    save_graph(shared_graph, tmp_path)
    return tmp_path


def edited(folder, change):
    document = json.loads((folder / "graph.json").read_text())
    change(document)
    (folder / "graph.json").write_text(json.dumps(document))
    return folder


GRAPHS = {
    "nodes are no list": lambda d: d.update(nodes=3),
    "a node is no object": lambda d: d["nodes"].insert(0, "x"),
    "no shapes": lambda d: d.pop("example_shapes"),
    "shape of texts": lambda d: d.update(example_shapes=[["a", "b"]]),
    "shape below zero": lambda d: d.update(example_shapes=[[-1, 3, 8, 8]]),
    "huge input": lambda d: d.update(example_shapes=[[1, 3, 1 << 20, 1 << 20]]),
    "two dictionaries in one": lambda d: d["nodes"][-1].update(args=[{"a": 1, "b": 2}]),
    "fewer names than outputs": lambda d: d.update(outputs=[]),
    "more names than outputs": lambda d: d.update(outputs=["a", "b"]),
    "an output that is a number": lambda d: d["nodes"][-1].update(args=[[3]]),
    "layers of another kind": lambda d: d.update(layers=[[]]),
    "dynamic of another kind": lambda d: d.update(dynamic={"a": 1}),
    "batch of another kind": lambda d: d.update(batch={"minimum": "a", "maximum": 2}),
    "batch from nothing": lambda d: d.update(batch={"minimum": 0, "maximum": 2}),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_misshapen_graph_is_one_line(graph_folder, name):
    """
    Whatever it makes torch or Python raise.
    """
    with pytest.raises(BundleError) as caught:
        load_graph(edited(graph_folder, GRAPHS[name]))

    assert "\n" not in str(caught.value)


def test_a_value_beyond_any_network_is_refused(graph_folder, monkeypatch):
    """
    By its shape, before there is room for it.
    """
    load_graph(graph_folder)
    monkeypatch.setattr(saved_graph, "LARGEST_VALUE", 1000)

    with pytest.raises(BundleError, match="more than 1,000 numbers"):
        load_graph(graph_folder)


def onnx_file(path, nodes):
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 3, 4, 4])],
        [helper.make_tensor("weight", TensorProto.FLOAT, [3], np.ones(3, np.float32))],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
    return path


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([("Mul", ["logits", "image"], ["a"]), ("Sigmoid", ["a"], ["logits"])], "which a later operator gives"),
        ([("Sigmoid", ["logits"], ["logits"])], "which a later operator gives"),
        ([("Conv", ["image"], [])], "cannot be read as ONNX"),
    ],
)
def test_graphs_that_no_runtime_takes_are_one_line(tmp_path, nodes, said):
    """
    Circles end nobody's search for attention blocks, and operators without their tensors are named.
    """
    path = onnx_file(tmp_path / "a.onnx", [helper.make_node(*node) for node in nodes])

    with pytest.raises(BundleError, match=said):
        inspect_artifact(path)


@pytest.mark.parametrize("operator", ["Conv", "Gemm", "MatMul", "ConvTranspose"])
def test_an_operator_without_its_tensors_is_named(operator):
    """
    Where nothing else has read the graph before.
    """
    node = Node(operator, (), ())
    graph = FileGraph(Format.ONNX, (node,), {}, (), ())

    with pytest.raises(BundleError, match=f"{operator} lacks inputs, outputs or axes"):
        node_macs(graph, node)


def test_a_safetensors_header_that_lies_is_one_line(tmp_path):
    """
    Its length, and offsets beyond the file.
    """
    for header in (
        b"{}" * 40,
        json.dumps({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 8]}}).encode(),
    ):
        (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)

        with pytest.raises(UsageError, match=r"a\.safetensors"):
            read_checkpoint(tmp_path / "a.safetensors")
