"""What LiteRT would die of is found before an interpreter sees the file, and healthy files are let through."""

import copy

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from coordatt_deploy.errors import BundleError
from coordatt_deploy.formats import Format
from coordatt_deploy.runtimes.reader import read_artifact
from coordatt_deploy.runtimes.tflite import runner
from coordatt_deploy.runtimes.tflite.file_check import check_file
from coordatt_deploy.runtimes.tflite.submodels import open_pieces


@pytest.fixture(scope="module")
def healthy(files):
    return files[Format.TFLITE][0].read_bytes()


def changed(content, change):
    model = schema.ModelT.InitFromPackedBuf(content, 0)
    change(model, model.subgraphs[0])
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def operator_of(graph, inputs=2):
    return next(operator for operator in graph.operators if len(operator.inputs) >= inputs)


def with_input(number, position=0):
    def change(_, graph):
        operator = operator_of(graph)
        operator.inputs = operator.inputs.copy()
        operator.inputs[position] = number

    return change


def constant(model, graph):
    return next(tensor for tensor in graph.tensors if model.buffers[tensor.buffer].data is not None)


def set_to(get, name, value):
    def change(model, graph):
        setattr(get(model, graph), name, value)

    return change


ATTACKS = {
    "input left out": (with_input(-1), "lacks input 0, which it needs"),
    "weight left out": (with_input(-1, 1), "lacks input 1"),
    "tensor beyond": (with_input(9999), r"names tensor 9999, of"),
    "tensor far below": (with_input(-(2**31)), r"names tensor -2147483648"),
    "output beyond": (set_to(lambda _, g: g.operators[0], "outputs", np.array([77], np.int32)), "names tensor 77"),
    "graph input beyond": (set_to(lambda _, g: g, "inputs", np.array([500], np.int32)), "the graph takes names"),
    "graph output left out": (set_to(lambda _, g: g, "outputs", np.array([-1], np.int32)), "names tensor -1"),
    "no subgraph": (set_to(lambda m, _: m, "subgraphs", []), "no subgraph"),
    "no operator code": (set_to(lambda m, _: m, "operatorCodes", []), "names operator code 0, of 0"),
    "code beyond": (set_to(lambda _, g: g.operators[0], "opcodeIndex", 40), "names operator code 40"),
    "buffer beyond": (set_to(constant, "buffer", 4000), "names buffer 4000"),
    "shape below zero": (set_to(constant, "shape", np.array([-5, 3], np.int32)), r"has the shape \(-5, 3\)"),
    "wild shape": (set_to(constant, "shape", np.array([2**30, 2**30], np.int32)), "beyond what a tensor can have"),
    "shape beyond its buffer": (set_to(constant, "shape", np.array([64, 64], np.int32)), "its buffer"),
    "computed by nothing": (set_to(lambda _, g: g, "operators", []), "computed by nothing"),
    "out of order": (lambda _, g: g.operators.reverse(), "which nothing before it computes"),
    "signature's subgraph": (set_to(lambda m, _: m.signatureDefs[0], "subgraphIndex", 9), "names subgraph 9"),
    "signature's tensor": (
        set_to(lambda m, _: m.signatureDefs[0].outputs[0], "tensorIndex", 900),
        "a signature names tensor 900",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_what_litert_would_read_beyond_is_refused(healthy, files, name, tmp_path):
    """
    One line that says what and where, on every path that opens a file.
    """
    change, said = ATTACKS[name]
    path = tmp_path / "net.tflite"
    path.write_bytes(changed(healthy, change))
    _, description, inner = files[Format.TFLITE]

    for use in (
        lambda: runner.open_artifact(path, description),
        lambda: runner.open_artifact(path, description, tensors=(inner,)),
        lambda: runner.operators(path),
        lambda: open_pieces(path, description, (inner,)),
        lambda: read_artifact(path),
    ):
        with pytest.raises(BundleError, match=said) as caught:
            use()
        assert "\n" not in str(caught.value)


def grid(scales, zeros, axis=0):
    found = schema.QuantizationParametersT()
    found.scale, found.zeroPoint = np.array(scales, np.float32), np.array(zeros, np.int64)
    found.quantizedDimension = axis
    return found


@pytest.mark.parametrize(
    ("scales", "zeros", "axis", "said"),
    [
        ([0.1] * 3, [0] * 2, 0, "3 scales and 2 zero points"),
        ([], [0], 0, "0 scales and 1 zero points"),
        ([0.1] * 99, [0] * 99, 0, "99 scales along axis 0"),
        ([0.1] * 4, [0] * 4, 7, "4 scales along axis 7"),
        ([0.1] * 4, [0] * 4, -1, "4 scales along axis -1"),
    ],
)
def test_grids_are_as_long_as_their_axis(healthy, scales, zeros, axis, said):
    """
    Kernels read a scale for each channel.
    """
    with pytest.raises(BundleError, match=said):
        check_file(changed(healthy, set_to(constant, "quantization", grid(scales, zeros, axis))), "net.tflite")


def test_a_healthy_file_may_lack_a_bias(healthy):
    """
    The negatives: what the schema allows to be left out may be.
    """

    def without_bias(_, graph):
        operator = copy.copy(operator_of(graph, 3))
        operator.inputs = operator.inputs.copy()
        operator.inputs[2] = -1
        graph.operators[graph.operators.index(operator_of(graph, 3))] = operator

    check_file(healthy, "net.tflite")
    check_file(changed(healthy, without_bias), "net.tflite")
    check_file(changed(healthy, set_to(constant, "quantization", grid([], []))), "net.tflite")


@pytest.mark.parametrize("cut", range(0, 400, 7))
def test_a_file_cut_anywhere_is_one_error(healthy, cut):
    """
    No table is believed to lie in the file.
    """
    with pytest.raises(BundleError, match=r"LiteRT cannot open net\.tflite"):
        check_file(healthy[: len(healthy) * cut // 400], "net.tflite")
