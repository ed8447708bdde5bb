import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from rich.console import Console
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing
from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.documents import to_json
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.exporters import ExportRequest, exporter
from coordatt_deploy.files import sha256, size_bytes
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.graph.saved_graph import save_graph
from coordatt_deploy.inspection.attention import find_blocks
from coordatt_deploy.inspection.captured_graph import inspect_graph, inspect_source
from coordatt_deploy.inspection.file_macs import macs, parameters
from coordatt_deploy.inspection.result import Block
from coordatt_deploy.inspection.run import inspect_artifact, inspect_bundle, is_artifact, is_bundle
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.loaded_model import capture_source
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.models.factory import create_attention
from coordatt_deploy.report.terminal.inspection import show_inspection
from coordatt_deploy.runtimes.coreml.delegates import WHOLE, neural_engine
from coordatt_deploy.runtimes.coreml.reader import _stored_bytes
from coordatt_deploy.runtimes.file_graph import FileGraph, Node, Tensor
from coordatt_deploy.runtimes.reader import read_artifact
from coordatt_deploy.runtimes.tflite.delegates import GPU_TAKES, gpu

ZOO = Path(__file__).parents[1] / "zoo"
KEYS = {"parameters", "macs", "operators", "attention_blocks", "delegates", "lint"}


@pytest.fixture(scope="module")
def source():
    """The paper's block in the paper's own form, small, with expanded gates."""
    torch.manual_seed(0)
    return resolve(ModelRequest(f"{ZOO / 'official_network.py'}:mbv2_ca", input_size=(64, 48)))


@pytest.fixture(scope="module")
def graph(source):
    return capture_source(source)


def _export(source, graph, path, kind, precision=Precision.FP32, cpu=None):
    lowered, report = lower(fold_batchnorms(graph)[0], target_of(kind, cpu))
    exported = exporter(kind).export(lowered, ExportRequest(source.spec, precision, path, cpu))
    path.with_name(f"{path.stem}.layers.json").write_text(exported.layers.dump(), encoding="utf-8")
    return exported, report


@pytest.fixture(scope="module")
def files(source, graph, tmp_path_factory):
    """One artifact of each kind, with its layer map beside it."""
    folder = tmp_path_factory.mktemp("artifacts")
    wanted = {
        "arm64.onnx": (Format.ONNX, Precision.FP32, TargetCpu.ARM64),
        "x86.onnx": (Format.ONNX, Precision.FP32, TargetCpu.X86_64),
        "fp16.mlpackage": (Format.COREML, Precision.FP16, None),
        "fp32.mlpackage": (Format.COREML, Precision.FP32, None),
    }
    for name, (kind, precision, cpu) in wanted.items():
        _export(source, graph, folder / name, kind, precision, cpu)
    return folder


@pytest.fixture(scope="module")
def tflite(source, graph, tmp_path_factory):
    path = tmp_path_factory.mktemp("tflite") / "net.tflite"
    _export(source, graph, path, Format.TFLITE)
    return path


BLOCKS = (("coordatt", 96, 32, 24), ("coordatt", 96, 16, 12))


def test_a_model_is_described_with_the_documented_keys(source):
    """
    Parameters, multiply-accumulates, operators, attention blocks with their form, lint; strict JSON.
    """
    inspection = inspect_source(source)

    document = json.loads(json.dumps(to_json(inspection.record()), allow_nan=False))

    assert set(document) >= KEYS
    assert sum(item.numel() for item in source.module.parameters()) == document["parameters"]
    assert document["macs"] == sum(document["macs_by_work"].values())
    assert (
        Block("coordatt", "features.2.conv.6", 96, 32, 24, "concatenated"),
        Block("coordatt", "features.3.conv.6", 96, 16, 12, "concatenated"),
    ) == inspection.attention_blocks
    assert 16 == document["operators"]["conv2d"]
    assert {"rule", "where", "remedy", "applied"} <= set(document["lint"][0])
    assert {} == document["delegates"]
    assert ["image"] == [spec["name"] for spec in document["inputs"]]
    assert ["logits"] == [spec["name"] for spec in document["outputs"]]


def test_a_block_of_two_branches_says_so():
    """
    The form as the user wrote it.
    """
    source = resolve(ModelRequest(f"{ZOO / 'home_made.py'}:two_branches", input_size=(32, 32)))

    assert ["branches"] == [block.form for block in inspect_source(source).attention_blocks]


def test_the_largest_layers_stand_first(graph):
    """
    Where the bytes are: what a conv layer holds is its weights, and the shares add up.
    """
    inspection = inspect_graph(graph, "net")

    assert ["features.3.conv.7", "conv.0"] == [layer.layer for layer in inspection.layers[:2]]
    assert 32 * 96 * 4 == inspection.layers[0].bytes
    weights = sum(item.nbytes for name, item in graph.module.state_dict().items() if not name.endswith("tracked"))
    assert weights == inspection.bytes


@pytest.mark.parametrize("name", ["arm64.onnx", "x86.onnx", "fp16.mlpackage", "fp32.mlpackage"])
def test_files_are_read_without_running_them(name, files, graph):
    """
    Blocks are found in every form, named by the layer map; the work is that of the model.
    """
    inspection = inspect_artifact(files / name)
    model = inspect_graph(graph, "net")

    assert BLOCKS == tuple((item.kind, item.channels, item.height, item.width) for item in inspection.attention_blocks)
    assert ["features.2.conv.6", "features.3.conv.6"] == [item.name for item in inspection.attention_blocks]
    assert set(to_json(inspection.record())) >= KEYS
    assert inspection.bytes == size_bytes(files / name)
    if name.endswith(".mlpackage"):
        assert model.macs_by_work == inspection.macs_by_work
    # The forms move work between kinds (a mean as a matrix product, a gate by Resize), and pad channels with zeros.
    assert 0.9 * model.macs < inspection.macs < 1.3 * model.macs


@pytest.mark.slow
def test_a_tflite_file_is_read_and_xnnpack_is_asked(tflite, graph):
    """
    One partition, nothing left over, and nothing that the GPU delegate refuses.
    """
    inspection = inspect_artifact(tflite)
    by_name = {item.name: item for item in inspection.delegates}

    assert BLOCKS == tuple((item.kind, item.channels, item.height, item.width) for item in inspection.attention_blocks)
    work = inspect_graph(graph, "net").macs_by_work
    assert {key: work[key] for key in ("convolution", "linear", "pooling")} == {
        key: inspection.macs_by_work[key] for key in ("convolution", "linear", "pooling")
    }
    assert (1, ()) == (by_name["xnnpack"].partitions, by_name["xnnpack"].rejected)
    assert by_name["xnnpack"].operators == by_name["xnnpack"].taken == sum(inspection.operators.values())
    assert () == by_name["gpu"].rejected
    assert set(inspection.operators) <= GPU_TAKES


@pytest.mark.slow
def test_a_broadcast_copy_is_what_the_gpu_delegate_refuses(tmp_path):
    """
    ``expand`` of a computed tensor becomes BROADCAST_TO in a real conversion, and the table says no.
    """
    import litert_torch

    class Net(nn.Module):
        def forward(self, image):
            return image.mean(3, keepdim=True).expand(-1, -1, -1, 16)

    path = tmp_path / "net.tflite"
    litert_torch.convert(Net().eval(), (torch.randn(1, 3, 8, 8),)).export(str(path))

    (refused,) = gpu(read_artifact(path)).rejected

    assert ("BROADCAST_TO", 1) == refused[:2]


@pytest.mark.parametrize("name", ["official_network:mbv2_ca", "official_block:build", "timm_like:hard_swish"])
def test_blocks_are_found_in_files_of_the_official_exporter(name, tmp_path):
    """
    Expanded gates, transposes and splits: the structure is the same, whoever wrote the file.
    """
    file, _, factory = name.partition(":")
    source = resolve(ModelRequest(f"{ZOO / file}.py:{factory}", input_size=(64, 48)))
    path = tmp_path / "default.onnx"
    torch.onnx.export(source.module, source.example, path, dynamo=True, verbose=False, external_data=False)

    blocks = inspect_artifact(path).attention_blocks

    expected = inspect_source(source).attention_blocks
    assert [(item.kind, item.channels, item.height, item.width) for item in expected] == [
        (item.kind, item.channels, item.height, item.width) for item in blocks
    ]
    assert {None} == {item.form for item in blocks}


class _SqueezeExcite(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)

    def forward(self, image):
        x = torch.nn.functional.silu(self.stem(image))
        return x * self.up(torch.relu(self.down(x.mean((2, 3), keepdim=True)))).sigmoid()


def test_squeeze_excite_is_told_apart_and_silu_is_no_gate(tmp_path):
    """
    One gate per channel; x * sigmoid(x) is as large as x and gates nothing.
    """
    path = tmp_path / "net.onnx"
    torch.onnx.export(
        _SqueezeExcite().eval(), (torch.randn(1, 3, 16, 24),), path, dynamo=True, verbose=False, external_data=False
    )

    (block,) = inspect_artifact(path).attention_blocks

    assert ("squeeze_excite", 16, 8, 12) == (block.kind, block.channels, block.height, block.width)


@pytest.mark.parametrize("kind", ["eca", "cbam", "timm_ela", "coordatt", "squeeze_excite"])
@pytest.mark.parametrize("ours", [False, True], ids=["the official exporter's", "ours"])
def test_blocks_are_told_apart_in_files_by_what_their_gates_are_made_with(kind, ours, tmp_path):
    """
    In files that stand in no bundle, whoever wrote them.
    """
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), create_attention(kind, 32), nn.Conv2d(32, 4, 1)).eval()
    path = tmp_path / "net.onnx"
    if ours:
        lowered, _ = lower(fold_batchnorms(capture(module, (torch.randn(1, 3, 16, 24),)))[0], target_of(Format.ONNX))
        request = ExportRequest(ModelSpec("net", Preprocessing((16, 24))), Precision.FP32, path, TargetCpu.ARM64)
        exporter(Format.ONNX).export(lowered, request)
    else:
        torch.onnx.export(module, (torch.randn(1, 3, 16, 24),), path, dynamo=True, verbose=False, external_data=False)

    (block,) = inspect_artifact(path).attention_blocks

    assert (kind, 32, 8, 12) == (block.kind, block.channels, block.height, block.width)


def test_a_gate_from_elsewhere_is_no_attention():
    """
    A product with a smaller tensor that does not come from the feature map is something else.
    """
    tensors = {
        **dict.fromkeys("xyv", Tensor((1, 8, 4, 6), "float32")),
        **dict.fromkeys("zg", Tensor((1, 8, 4, 1), "float32")),
        **dict.fromkeys("wp", Tensor((1, 8, 1, 6), "float32")),
    }
    nodes = (
        Node("Sigmoid", ("z",), ("g",)), Node("Mul", ("x", "g"), ("y",)),
        Node("ReduceMean", ("x",), ("p",)), Node("Sigmoid", ("p",), ("w",)), Node("Mul", ("y", "w"), ("v",)),
    )  # fmt: skip
    graph = FileGraph(Format.ONNX, nodes, tensors, (), ())
    own = replace(graph, nodes=(Node("ReduceMean", ("x",), ("z",)), *nodes))

    assert () == find_blocks(graph)
    assert ["coordatt"] == [block.kind for block in find_blocks(own)]


def test_the_neural_engine_refuses_float32_programs_as_a_whole(files):
    """
    It computes in float16; the fp16 package of the same model is not known to be refused anything.
    """
    wide, narrow = (neural_engine(read_artifact(files / name)) for name in ("fp32.mlpackage", "fp16.mlpackage"))

    assert [WHOLE] == [name for name, _, _ in wide.rejected]
    assert 0 == wide.taken
    assert () == narrow.rejected
    assert narrow.operators == narrow.taken


def test_the_tables_answer_by_operator_type_and_rank():
    """
    An unknown operator, five axes, whole numbers; gathers and ranges in Core ML.
    """
    tensors = {
        "a": Tensor((1, 4, 4, 3), "float32"), "b": Tensor((1, 2, 2, 4, 3), "float32"), "i": Tensor((1, 4), "int64"),
        "h": Tensor((1, 3, 4, 4), "float16"),
    }  # fmt: skip
    nodes = (
        Node("MUL", ("a", "a"), ("a",)), Node("TOPK_V2", ("a",), ("a",)),
        Node("RESHAPE", ("a",), ("b",)), Node("ADD", ("i", "i"), ("i",)),
    )  # fmt: skip
    refused = {name: why for name, _, why in gpu(FileGraph(Format.TFLITE, nodes, tensors, (), ())).rejected}
    assert {"TOPK_V2", "RESHAPE", "ADD"} == set(refused)
    assert "5 axes" in refused["RESHAPE"]
    assert "int64" in refused["ADD"]

    program = FileGraph(
        Format.COREML, (Node("gather", ("h",), ("h",)), Node("mul", ("h",), ("h",))), {"h": tensors["h"]}, (), ()
    )
    assert ["gather"] == [name for name, _, _ in neural_engine(program).rejected]
    assert [WHOLE] == [name for name, _, _ in neural_engine(replace(program, flexible=True)).rejected]


def test_work_and_parameters_of_a_file_by_hand(tmp_path):
    """
    One convolution, one pool, one product: figures that fit on a line.
    """
    from onnx import TensorProto, helper, numpy_helper

    kernel = numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "kernel")
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["x"], kernel_shape=[3, 3]),
        helper.make_node("AveragePool", ["x"], ["p"], kernel_shape=[2, 4], strides=[2, 4]),
        helper.make_node("Mul", ["p", "p"], ["y"]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 10, 10])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 4, 2])
    model = helper.make_model(helper.make_graph(nodes, "net", [image], [result], [kernel]))
    onnx.save(model, tmp_path / "net.onnx")

    graph = read_artifact(tmp_path / "net.onnx")

    assert {"convolution": 8 * 64 * 27, "linear": 0, "pooling": 64 * 8, "elementwise": 64} == macs(graph)
    assert 8 * 27 == parameters(graph)
    (layer,) = inspect_artifact(tmp_path / "net.onnx").layers
    assert ("x", "Conv", 8 * 27 * 4, 8 * 64 * 27) == (layer.layer, layer.operator, layer.bytes, layer.macs)


@pytest.mark.parametrize("name", ["net.onnx", "net.tflite", "net.mlpackage"])
def test_a_damaged_file_is_one_line(name, tmp_path):
    """
    Whatever the bytes are; a missing file and one of another kind are bad usage.
    """
    path = tmp_path / name
    with pytest.raises(UsageError, match="does not exist"):
        inspect_artifact(path)
    if name.endswith(".mlpackage"):
        path.mkdir()
        (path / "Manifest.json").write_text("{")
    else:
        path.write_bytes(b"\x18\x00\x00\x00TFL3" + bytes(range(256)))
    with pytest.raises(BundleError) as caught:
        inspect_artifact(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UsageError, match="is no artifact; expected a file that ends in"):
        inspect_artifact(tmp_path / "net.pth")


@pytest.fixture(scope="module")
def bundle(source, graph, tmp_path_factory):
    """A bundle with its reference and one artifact."""
    root = tmp_path_factory.mktemp("bundle") / "net"
    with writing(root, source.spec.source_sha256) as staging:
        for folder in ("reference", "onnx"):
            (staging / folder).mkdir()
        save_graph(graph, staging / "reference")
        path = staging / "onnx" / "net_fp32.onnx"
        exported, report = _export(source, graph, path, Format.ONNX)
        artifact = Artifact(
            "onnx/net_fp32.onnx", Format.ONNX, Precision.FP32, None, None, size_bytes(path), sha256(path),
            exported.inputs, exported.outputs, "onnx/net_fp32.layers.json",
        )  # fmt: skip
        finish(
            staging,
            Manifest(source.spec, graph.inputs, (), (artifact,), lowering={"onnx/net_fp32.onnx": to_json(report)}),
        )
    return root


def test_a_bundle_shows_its_model_and_its_files(bundle, graph):
    """
    The keys are those of the model; each file stands beside it, with the form that lowering wrote.
    """
    inspection = inspect_bundle(open_bundle(bundle))

    document = json.loads(json.dumps(to_json(inspection.record()), allow_nan=False))

    assert is_bundle(bundle)
    assert not is_artifact(bundle)
    assert set(document) >= KEYS | {"artifacts"}
    assert inspect_graph(graph, "net").macs == document["macs"]
    blocks = document["artifacts"]["onnx/net_fp32.onnx"]["attention_blocks"]
    assert ["channels_last", "channels_last"] == [block["form"] for block in blocks]
    assert ["concatenated", "concatenated"] == [block["form"] for block in document["attention_blocks"]]
    assert 2 == sum(item["rule"] == "attention-form" for item in document["lint"])


def test_a_file_that_cannot_be_read_is_a_note_and_not_the_end(bundle):
    """
    The others are still shown.
    """
    opened = open_bundle(bundle)
    lost = replace(opened.manifest.artifacts[0], path="onnx/lost.onnx")
    broken = replace(opened, manifest=replace(opened.manifest, artifacts=(lost, *opened.manifest.artifacts)))

    inspection = inspect_bundle(broken)

    assert ["onnx/net_fp32.onnx"] == list(inspection.artifacts)
    assert "onnx/lost.onnx was not inspected" in inspection.notes[0]


def test_the_tables_show_what_the_json_holds(source, bundle, files):
    """
    Names, figures, remedies and delegates reach the screen.
    """
    console = Console(width=200, record=True, file=io.StringIO())
    for item in (
        inspect_source(source),
        inspect_bundle(open_bundle(bundle)),
        inspect_artifact(files / "fp32.mlpackage"),
    ):
        show_inspection(item, console)

    text = console.export_text()

    for expected in ("19,066 parameters", "features.2.conv.6", "channels_last", "attention-form", "x.mean(3,",
                     "neural_engine: 0 of", "float16 only", "where the bytes are"):  # fmt: skip
        assert expected in text


class _Images(CalibrationDataReader):
    def __init__(self, shape):
        self.left = iter({"image": np.random.default_rng(seed).normal(size=shape).astype(np.float32)}
                         for seed in range(2))  # fmt: skip

    def get_next(self):
        return next(self.left, None)


@pytest.mark.parametrize("name", ["arm64.onnx", "x86.onnx"])
def test_an_int8_file_is_read_like_the_float_one(name, files, tmp_path):
    """
    Weights behind a DequantizeLinear are the convolution's, and grids are no parameters; blocks are found through them.
    """
    path = tmp_path / name
    quantize_static(files / name, path, _Images((1, 3, 64, 48)), per_channel=True, quant_format=QuantFormat.QDQ,
                    weight_type=QuantType.QInt8)  # fmt: skip

    found, whole = inspect_artifact(path), inspect_artifact(files / name)

    assert whole.macs_by_work == found.macs_by_work
    assert BLOCKS == tuple((item.kind, item.channels, item.height, item.width) for item in found.attention_blocks)
    assert {None} == {item.form for item in found.attention_blocks}
    assert 0.99 * whole.parameters < found.parameters < 1.02 * whole.parameters
    heaviest = found.layers[0]
    assert heaviest.operator in ("Conv", "MatMul", "Gemm")
    assert heaviest.macs == whole.layers[0].macs
    assert 0.2 < heaviest.bytes / whole.layers[0].bytes < 0.3


@pytest.mark.parametrize("size", [(64, 48), (64, 64)], ids=["oblong", "square"])
def test_blocks_are_found_in_core_ml_files_that_stand_in_no_bundle(size, tmp_path):
    """
    Both gates in one convolution, parted by a split, all their products by a product of matrices.
    """
    torch.manual_seed(0)
    asked = resolve(ModelRequest(f"{ZOO / 'official_network.py'}:mbv2_ca", input_size=size))
    captured = capture_source(asked)
    _export(asked, captured, tmp_path / "net.mlpackage", Format.COREML, Precision.FP16)
    (tmp_path / "net.layers.json").unlink()

    blocks = inspect_artifact(tmp_path / "net.mlpackage").attention_blocks

    expected = [("coordatt", 96, size[0] // divisor, size[1] // divisor) for divisor in (2, 4)]
    assert expected == [(item.kind, item.channels, item.height, item.width) for item in blocks]


@pytest.mark.parametrize(("dtype", "elements", "held"), [("uint4", 72, 36), ("uint6", 8, 6), ("int32", 3, 12)])
def test_stored_values_of_few_bits_share_bytes(dtype, elements, held):
    """
    A palettized layer is as large as its indices, never larger than its file.
    """
    assert held == _stored_bytes((elements,), dtype)


def test_what_is_counted_is_said(source):
    """
    The figure that models lists, and the one with pools and gates, each by its name.
    """
    inspection = inspect_source(source)
    console = Console(width=160, file=io.StringIO())
    show_inspection(inspection, console)

    layers = sum(inspection.macs_by_work[name] for name in ("convolution", "linear"))
    assert f"as papers and models count: {layers:,} MACs" in console.file.getvalue()
    assert f"{inspection.macs:,} MACs (" in console.file.getvalue()
