import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer import quantizer, recipe
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Origin, Preprocessing, TensorSpec
from coordatt_deploy.errors import BundleError, InferenceError, UsageError
from coordatt_deploy.exporters import ExportRequest
from coordatt_deploy.exporters.tflite.export import export
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.runtimes import argument_checks, runtime
from coordatt_deploy.runtimes.onnx import runner as onnxruntime
from coordatt_deploy.runtimes.onnx import submodels
from coordatt_deploy.runtimes.tflite import runner as litert
from coordatt_deploy.runtimes.tflite.metadata import read_metadata
from coordatt_deploy.tensors import decode, encode

RNG = np.random.default_rng(11)
KERNEL = RNG.normal(size=(4, 3, 1, 1)).astype(np.float32)
HEAD = RNG.normal(size=(4, 5)).astype(np.float32)


def reference(image):
    """What both files of this module compute, in float64: (N, 3, H, W) to the clip's result and the logits."""
    features = np.einsum("oc,nchw->nohw", KERNEL[:, :, 0, 0].astype(np.float64), image).clip(0, 6)
    return features, features.mean((2, 3)) @ HEAD


def onnx_model():
    nodes = [
        helper.make_node("Conv", ["image", "kernel"], ["convolution"]),
        helper.make_node("Clip", ["convolution", "low", "high"], ["clip"]),
        helper.make_node("ReduceMean", ["clip", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
    ]
    weights = {
        "kernel": KERNEL, "head": HEAD, "low": np.float32(0), "high": np.float32(6), "axes": np.array([2, 3], np.int64),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 6, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 5])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 1, bias=False)
        self.head = nn.Linear(4, 5, bias=False)
        self.convolution.weight.data = torch.from_numpy(KERNEL)
        self.head.weight.data = torch.from_numpy(HEAD.T.copy())

    def forward(self, image):
        return self.head(nn.functional.relu6(self.convolution(image)).mean((2, 3)))


def artifact(kind, inputs, outputs, precision=Precision.FP32):
    return Artifact(f"small.{kind}", kind, precision, None, None, 0, "", inputs, outputs, "")


LOGITS = TensorSpec("logits", (1, 5), "float32", "NC")
ONNX = artifact(Format.ONNX, (TensorSpec("image", (1, 3, 6, 8), "float32", "NCHW"),), (LOGITS,))
TFLITE = artifact(Format.TFLITE, (TensorSpec("image", (1, 6, 8, 3), "float32", "NHWC"),), (LOGITS,))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One small network as a file of each format, with its description and the name of its inner tensor."""
    folder = tmp_path_factory.mktemp("runtimes")
    onnx_path, tflite_path = folder / "small.onnx", folder / "small.tflite"
    onnx.save(onnx_model(), onnx_path)
    spec = ModelSpec("small", Preprocessing((6, 8)))
    export(capture(Small().eval(), (torch.randn(1, 3, 6, 8),)), ExportRequest(spec, Precision.FP32, tflite_path))
    return {Format.ONNX: (onnx_path, ONNX, "clip"), Format.TFLITE: (tflite_path, TFLITE, ":relu6")}


@pytest.fixture(params=[Format.ONNX, Format.TFLITE])
def file(request, files):
    return files[request.param]


def feeds_for(description, image):
    spec = description.inputs[0]
    return {"image": np.ascontiguousarray(image if spec.layout == "NCHW" else image.transpose(0, 2, 3, 1))}


def image_of(seed):
    return np.random.default_rng(seed).normal(0, 3, (1, 3, 6, 8)).astype(np.float32)


def test_outputs_are_those_of_the_model(file):
    """
    A runner gives the artifact's outputs by their stable names, measured, with the runtime's name and version.
    """
    path, description, _ = file
    image = image_of(1)

    with runtime(description.format).open_artifact(path, description) as runner:
        actual = runner.infer(feeds_for(description, image))

    assert ["logits"] == list(actual)
    np.testing.assert_allclose(actual["logits"], reference(image)[1], rtol=1e-5, atol=1e-5)
    assert Origin.MEASURED is runner.origin
    package, version = runner.runtime.split(" ")
    assert package in {"onnxruntime", "ai-edge-litert", "tflite-runtime"}
    assert version[0].isdigit()
    assert description.inputs == runner.inputs
    assert description.outputs == runner.outputs


def test_inner_tensors_come_by_name(file):
    """
    A runner opened with inner tensors gives them beside the outputs, which stay what they are.
    """
    path, description, inner = file
    image = image_of(2)
    with runtime(description.format).open_artifact(path, description) as runner:
        plain = runner.infer(feeds_for(description, image))

    with runtime(description.format).open_artifact(path, description, tensors=(inner, "logits", inner)) as runner:
        actual = runner.infer(feeds_for(description, image))

    assert {"logits", inner} == set(actual)
    np.testing.assert_allclose(actual["logits"], plain["logits"], rtol=1e-5, atol=1e-5)
    features = actual[inner] if description.format is Format.ONNX else actual[inner].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(features, reference(image)[0], rtol=1e-5, atol=1e-5)


def test_results_are_the_callers_to_keep(file):
    """
    A second run does not write into what the first one gave, nor does a runner that is closed.
    """
    path, description, inner = file
    with runtime(description.format).open_artifact(path, description, tensors=(inner,)) as runner:
        first = runner.infer(feeds_for(description, image_of(3)))
        kept = {name: array.copy() for name, array in first.items()}
        second = runner.infer(feeds_for(description, image_of(4)))

    for name, array in kept.items():
        np.testing.assert_array_equal(array, first[name])
        assert not np.array_equal(array, second[name])
    with pytest.raises(ValueError, match="closed"):
        runner.infer(feeds_for(description, image_of(3)))


def test_runs_repeat_bit_for_bit(file):
    """
    The same feed gives the same bits, in one runner and in another with the same number of threads.
    """
    path, description, _ = file
    results = []
    for _ in range(2):
        with runtime(description.format).open_artifact(path, description, threads=2) as runner:
            results += [runner.infer(feeds_for(description, image_of(5)))["logits"] for _ in range(2)]

    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)


def test_feeds_need_not_be_contiguous(file):
    """
    A transposed view is fed as what it shows, not as what lies in memory.
    """
    path, description, _ = file
    feeds = feeds_for(description, image_of(6))
    view = {"image": np.asfortranarray(feeds["image"])}

    with runtime(description.format).open_artifact(path, description) as runner:
        expected, actual = runner.infer(feeds)["logits"], runner.infer(view)["logits"]

    np.testing.assert_array_equal(expected, actual)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: {}, "no array was given for input image"),
        (lambda feeds: {"imgae": feeds["image"]}, "no input 'imgae'; did you mean image"),
        (lambda feeds: feeds | {"mask": feeds["image"]}, "no input 'mask'"),
        (lambda feeds: {"image": feeds["image"].astype(np.float64)}, "image is float64, the artifact takes float32"),
        (lambda feeds: {"image": feeds["image"][:, :, 1:]}, r"image has shape \(.*, the artifact takes \("),
        (lambda feeds: {"image": feeds["image"][0]}, r"image has shape \(., ., .\)"),
        (lambda feeds: {"image": np.concatenate([feeds["image"]] * 2)}, r"image has shape \(2"),
    ],
)
def test_wrong_feeds_are_refused(file, change, message):
    """
    What does not fit is a usage error that says what was received and what is taken.
    """
    path, description, _ = file

    with (
        runtime(description.format).open_artifact(path, description) as runner,
        pytest.raises(UsageError, match=message),
    ):
        runner.infer(change(feeds_for(description, image_of(7))))


@pytest.mark.parametrize("damage", [lambda _: b"", lambda _: b"not a model", lambda c: c[:40], lambda c: c[:-40]])
def test_damaged_files_are_bundle_errors(file, damage, tmp_path):
    """
    An empty file, text and a truncated file are named instead of crashing the process.
    """
    path, description, _ = file
    broken = tmp_path / "broken.bin"
    broken.write_bytes(damage(path.read_bytes()))

    with pytest.raises(BundleError, match=r"cannot open broken\.bin"):
        runtime(description.format).open_artifact(broken, description)


def test_missing_file_is_a_bundle_error(file, tmp_path):
    """
    A file that is not there is named.
    """
    _, description, _ = file

    with pytest.raises(BundleError, match="nothing"):
        runtime(description.format).open_artifact(tmp_path / "nothing", description)


def test_unknown_inner_tensor_is_a_bundle_error(file):
    """
    A layer map that names a tensor the file doesn't have belongs to another file.
    """
    path, description, _ = file

    with pytest.raises(BundleError, match="nowhere"):
        runtime(description.format).open_artifact(path, description, tensors=("nowhere",))


@pytest.mark.parametrize(
    "wrong",
    [
        {"inputs": (TensorSpec("picture", (1, 3, 6, 8), "float32", "NCHW"),)},
        {"inputs": (TensorSpec("image", (1, 3, 6, 9), "float32", "NCHW"),)},
        {"inputs": (TensorSpec("image", (1, 3, 48), "float32", "NCH"),)},
        {"outputs": (TensorSpec("logits", (1, 5), "int8", "NC", 0.1, 0),)},
        {"outputs": (LOGITS, TensorSpec("boxes", (1, 4), "float32", "NC"))},
    ],
)
def test_a_file_that_is_not_what_the_manifest_says_is_refused(files, wrong):
    """
    Names, shapes and dtypes of the manifest are compared with the file when it is opened.
    """
    path, _, _ = files[Format.ONNX]
    fields = {"inputs": ONNX.inputs, "outputs": ONNX.outputs} | wrong

    with pytest.raises(BundleError, match="manifest"):
        onnxruntime.open_artifact(path, artifact(Format.ONNX, **fields))


def test_fewer_than_one_thread_is_refused(file):
    """
    Zero threads, which some runtimes read as all cores, is a usage error.
    """
    path, description, _ = file

    with pytest.raises(UsageError, match="threads is 0"):
        runtime(description.format).open_artifact(path, description, threads=0)


def test_a_dynamic_axis_takes_any_size():
    """
    Where the artifact has no fixed size, every size fits; the other axes still count.
    """
    spec = TensorSpec("image", (1, 3, None, None), "float32", "NCHW")

    assert ["image"] == list(argument_checks.checked({"image": np.zeros((1, 3, 5, 9), np.float32)}, [spec]))
    with pytest.raises(UsageError, match=r"takes \(1, 3, \?, \?\)"):
        argument_checks.checked({"image": np.zeros((1, 4, 5, 9), np.float32)}, [spec])


def frozen(path, window=8):
    """The small network for any width, its mean over columns frozen to a pool with a *window*."""
    model = onnx_model()
    (mean,) = [node for node in model.graph.node if node.op_type == "ReduceMean"]
    pool = helper.make_node("AveragePool", ["clip"], ["pooled"], kernel_shape=[1, window])
    mean.input[0] = "pooled"
    model.graph.node.insert(2, pool)
    model.graph.input[0].type.tensor_type.shape.dim[3].dim_param = "width"
    onnx.save(model, path)
    return replace(ONNX, inputs=(TensorSpec("image", (1, 3, 6, None), "float32", "NCHW"),))


def test_an_input_that_an_operator_refuses(tmp_path):
    """
    The error names the runtime, the input's shape and the operator; other inputs still run.
    """
    path = tmp_path / "frozen.onnx"
    with onnxruntime.open_artifact(path, frozen(path)) as runner:
        assert (1, 5) == runner.infer({"image": np.zeros((1, 3, 6, 8), np.float32)})["logits"].shape
        with pytest.raises(InferenceError, match=r"cannot run it on image 1 x 3 x 6 x 5.*AveragePool"):
            runner.infer({"image": np.zeros((1, 3, 6, 5), np.float32)})


def test_pieces_but_for_one_that_is_refused(tmp_path):
    """
    It is left out, and the others are run on what they are given.
    """
    path = tmp_path / "frozen.onnx"
    image = RNG.normal(size=(1, 3, 6, 5)).astype(np.float32)
    features, logits = reference(image)
    given = {"clip": features, "pooled": features.mean(3, keepdims=True)}
    with submodels.open_pieces(path, frozen(path), ("clip", "pooled", "logits")) as pieces:
        made = pieces.infer({"image": image}, given)

    assert {"clip", "logits"} == made.keys()
    np.testing.assert_allclose(made["clip"], features, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made["logits"], logits, rtol=1e-5, atol=1e-5)


def test_inner_integers_of_onnx_are_refused(tmp_path):
    """
    A quantized tensor has no value without its scale: the map must name the dequantized one, which is then given.
    """
    model = onnx_model()
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(6 / 255), "scale"), numpy_helper.from_array(np.uint8(0), "zero")]
    )
    nodes = list(model.graph.node)
    nodes[2].input[0] = "clip_dequantized"
    nodes[2:2] = [
        helper.make_node("QuantizeLinear", ["clip", "scale", "zero"], ["clip_quantized"]),
        helper.make_node("DequantizeLinear", ["clip_quantized", "scale", "zero"], ["clip_dequantized"]),
    ]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    path = tmp_path / "quantized.onnx"
    onnx.save(model, path)
    image = image_of(8)

    with pytest.raises(BundleError, match=r"clip_quantized is tensor.uint8.*DequantizeLinear"):
        onnxruntime.open_artifact(path, ONNX, tensors=("clip_quantized",))
    with onnxruntime.open_artifact(path, ONNX, tensors=("clip_dequantized",)) as runner:
        actual = runner.infer({"image": image})["clip_dequantized"]
    np.testing.assert_allclose(actual, reference(image)[0], atol=0.51 * 6 / 255)


def test_added_outputs_are_what_the_onnx_package_would_add(files):
    """
    The bytes appended for an inner tensor parse to the same message as an output added with onnx itself.
    """
    path, _, _ = files[Format.ONNX]
    name = "clip" + "x" * 200  # a length that takes two bytes
    expected = onnx.load(path)
    expected.graph.output.append(onnx.ValueInfoProto(name="clip"))
    expected.graph.output.append(onnx.ValueInfoProto(name=name))

    actual = onnx.load_from_string(onnxruntime.with_outputs(path.read_bytes(), ("clip", name)))

    assert expected == actual


def test_telemetry_leaves_nothing_behind(files, tmp_path):
    """
    Opening and running an ONNX file writes no device id and no event store into the home folder.
    """
    path, _, _ = files[Format.ONNX]
    script = (
        "import sys, numpy; from pathlib import Path\n"
        "from coordatt_deploy.runtimes.onnx import runner as onnxruntime\n"
        "from coordatt_deploy.artifact_specs import Artifact, TensorSpec\n"
        "from coordatt_deploy.formats import Format, Precision\n"
        "image = TensorSpec('image', (1, 3, 6, 8), 'float32', 'NCHW')\n"
        "logits = TensorSpec('logits', (1, 5), 'float32', 'NC')\n"
        "described = Artifact('', Format.ONNX, Precision.FP32, None, None, 0, '', (image,), (logits,), '')\n"
        "with onnxruntime.open_artifact(Path(sys.argv[1]), described) as runner:\n"
        "    runner.infer({'image': numpy.zeros((1, 3, 6, 8), numpy.float32)})\n"
    )
    kept = {key: value for key, value in os.environ.items() if key not in {"ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"}}
    environment = kept | {"HOME": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", script, str(path)], env=environment, cwd=tmp_path, check=True)

    assert [] == list(tmp_path.rglob("*"))


def test_runtimes_and_metadata_need_no_torch(files):
    """
    The lower half of the pipeline runs where neither torch nor a converter is installed.
    """
    script = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'onnx', 'litert_torch', 'ai_edge_quantizer', 'coremltools']))\n"
        "from pathlib import Path\n"
        "from coordatt_deploy.runtimes.tflite import metadata as tflite_file, runner as litert\n"
        "print(litert.operators(Path(sys.argv[1])).partitions, tflite_file.read_metadata(Path(sys.argv[1]))['model'])\n"
    )
    path, _, _ = files[Format.TFLITE]
    finished = subprocess.run([sys.executable, "-c", script, str(path)], check=True, text=True, capture_output=True)

    assert "1 small\n" == finished.stdout


def test_operators_are_listed_with_who_runs_them(files):
    """
    XNNPACK takes all of a plain float network in one partition; each operator names its result.
    """
    path, _, _ = files[Format.TFLITE]

    delegation = litert.operators(path)

    assert 1 == delegation.partitions
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    (subgraph,) = model.subgraphs
    codes = [model.operatorCodes[operation.opcodeIndex].builtinCode for operation in subgraph.operators]
    assert codes == [getattr(schema.BuiltinOperator, operator.name) for operator in delegation.operators]
    results = [subgraph.tensors[operation.outputs[0]].name.decode() for operation in subgraph.operators]
    assert results == [operator.tensor for operator in delegation.operators]
    assert {"CONV_2D", "MEAN", "FULLY_CONNECTED"} <= {operator.name for operator in delegation.operators}
    assert all(operator.delegated for operator in delegation.operators)


def test_an_operator_that_xnnpack_leaves_is_told_apart(tmp_path):
    """
    An operator that XNNPACK does not know splits the network into two partitions and is listed as not delegated.
    """

    class Split(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first = nn.Conv2d(3, 8, 3, padding=1)
            self.second = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, image):
            return self.second(torch.cumsum(self.first(image), 1)).mean((2, 3))

    path = tmp_path / "split.tflite"
    spec = ModelSpec("split", Preprocessing((6, 8)))
    export(capture(Split().eval(), (torch.randn(1, 3, 6, 8),)), ExportRequest(spec, Precision.FP32, path))

    delegation = litert.operators(path)

    assert 2 == delegation.partitions
    assert {"CUMSUM"} == {operator.name for operator in delegation.operators if not operator.delegated}


def test_inner_integers_of_tflite_come_dequantized(files, tmp_path):
    """
    In an int8 file the inner tensors are given as the floats they stand for, within the grid's own error.
    """
    path, _, inner = files[Format.TFLITE]
    samples = [{"image": feeds_for(TFLITE, image_of(seed))["image"]} for seed in range(8)]
    quantization = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
    result = quantization.quantize(quantization.calibrate({"serving_default": samples}))
    int8_path = tmp_path / "int8.tflite"
    int8_path.write_bytes(result.quantized_model)
    details = {item["name"]: item for item in litert.Interpreter(str(int8_path)).get_tensor_details()}
    step = details[inner]["quantization_parameters"]["scales"][0]
    image, logits = (int8_spec(spec, details[spec.name]) for spec in (TFLITE.inputs[0], LOGITS))
    described = artifact(Format.TFLITE, (image,), (logits,), Precision.INT8)
    sample = image_of(0)

    with litert.open_artifact(int8_path, described, tensors=(inner,)) as runner:
        actual = runner.infer({"image": encode(sample, image)})

    assert np.dtype(np.int8) == details[inner]["dtype"]
    assert np.dtype(np.int8) == actual["logits"].dtype
    assert np.dtype(np.float32) == actual[inner].dtype
    expected = reference(decode(encode(sample, image), image))[0].transpose(0, 2, 3, 1)
    error = np.abs(actual[inner] - expected)
    assert 0 < error.max() < 4 * step  # half a step of rounding, and the weights' own


def int8_spec(spec, detail):
    parameters = detail["quantization_parameters"]
    return replace(
        spec, dtype="int8", scale=float(parameters["scales"][0]), zero_point=int(parameters["zero_points"][0])
    )


@pytest.mark.parametrize("channel", [0, 1])
def test_dequantizing_per_channel_follows_the_channel_axis(channel):
    """
    Each channel takes its own scale and zero point, along the axis that the file names.
    """
    values = np.array([[-128, 0], [5, 127]], dtype=np.int8)
    parameters = {"scales": np.array([0.5, 2.0]), "zero_points": np.array([0, 1]), "quantized_dimension": channel}

    expected = [[-64.0, 0.0], [8.0, 252.0]] if channel == 0 else [[-64.0, -2.0], [2.5, 252.0]]

    assert expected == litert.dequantized(values, {"quantization_parameters": parameters}).tolist()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: b"text", "no TFLite file"),
        (lambda content: content[:8] + b"\xff" * 64, "damaged"),
        (lambda content: content[:64], "damaged"),
        (lambda content: content.replace(b'{"model"', b'{"model}', 1), "damaged"),
    ],
)
def test_damaged_metadata_is_a_bundle_error(files, damage, message, tmp_path):
    """
    A file that is no FlatBuffer, is cut off, or holds no JSON where it should is named and refused.
    """
    path, _, _ = files[Format.TFLITE]
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(damage(path.read_bytes()))

    with pytest.raises(BundleError, match=message):
        read_metadata(broken)


def test_foreign_file_has_no_metadata_of_ours(files, tmp_path):
    """
    A TFLite file of another tool is told from a damaged one.
    """
    import flatbuffers

    path, _, _ = files[Format.TFLITE]
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    model.metadata = None
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    foreign = tmp_path / "foreign.tflite"
    foreign.write_bytes(bytes(builder.Output()))

    with pytest.raises(BundleError, match="written by another tool"):
        read_metadata(foreign)
