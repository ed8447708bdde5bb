"""The Core ML exporter and runner together: what is written, what is read back, and where each layer is."""

import datetime
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Origin, Preprocessing
from coordatt_deploy.errors import BundleError, ConversionError, UsageError
from coordatt_deploy.exporters import Exporter, ExportRequest, exporter
from coordatt_deploy.exporters.coreml.export import export
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import DynamicSize
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.layer_map import restore
from coordatt_deploy.models.coordatt import CoordAtt
from coordatt_deploy.runtimes import Runtime, runtime
from coordatt_deploy.runtimes.coreml import runner as coreml_runtime
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools as ct
from coordatt_deploy.runtimes.coreml.evaluator.package import load, read_model

LABELS = ("apple", "bread", "cheese", "dates", "egg")
SPEC = ModelSpec("tiny", Preprocessing((32, 48)), LABELS, "coordatt", "ab" * 32)
# One rounding of the precision, and how many of them the sums of this small network may add up to.
STEP = {Precision.FP32: 2.0**-24, Precision.FP16: 2.0**-11}
ROUNDINGS = 16

# mypy checks the modules against their protocols here (PEP 544).
_runtime: Runtime = coreml_runtime
_exporter: Exporter = export


class Net(nn.Module):
    """Coordinate attention between two convolutions, a residual sum, hard-swish, and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.attention = CoordAtt(16)
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.Hardswish())
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        features = self.stem(image)
        features = features + self.depthwise(self.attention(features))
        return self.head(features.mean((2, 3)))


class Pooled(nn.Module):
    """Mean pooling and shapes that follow the input: right at every size."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.SiLU())
        self.gate = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, image):
        x = self.stem(image)
        x = x * torch.sigmoid(self.gate(x.mean(3, keepdim=True))) * torch.sigmoid(self.gate(x.mean(2, keepdim=True)))
        return self.head(x.mean((2, 3)))


def write(graph, folder, precision=Precision.FP32):
    """Export, and describe the artifact as a bundle does."""
    path = folder / f"net_{precision}.mlpackage"
    exported = export(graph, ExportRequest(SPEC, precision, path))
    artifact = Artifact(
        path.name, Format.COREML, precision, None, None, 0, "", exported.inputs, exported.outputs, "map.json"
    )
    return path, artifact, exported.layers


def image(height=32, width=48, seed=0):
    return np.random.default_rng(seed).normal(size=(1, 3, height, width)).astype(np.float32)


def contents(package):
    return {file.relative_to(package).as_posix(): file.read_bytes() for file in package.rglob("*") if file.is_file()}


def far(reference, value, precision):
    """How far *value* is from the reference, in units of what this network may differ by."""
    return np.abs(reference - value).max() / (ROUNDINGS * STEP[precision] * np.abs(reference).max())


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    return fold_batchnorms(capture(Net().eval(), (torch.randn(1, 3, 32, 48),)))[0]


@pytest.fixture(scope="module")
def written(graph, tmp_path_factory):
    folder = tmp_path_factory.mktemp("coreml")
    return {precision: write(graph, folder, precision) for precision in STEP}


@pytest.fixture
def copied(written, tmp_path):
    """A package that a test may damage, with its artifact."""
    path, artifact, _ = written[Precision.FP32]
    return Path(shutil.copytree(path, tmp_path / path.name)), artifact


@pytest.mark.parametrize("precision", STEP)
def test_the_package_computes_the_graph(precision, graph, written):
    """
    The saved file gives the float64 graph's logits up to the roundings of its precision.
    """
    path, artifact, _ = written[precision]

    with runtime(Format.COREML).open_artifact(path, artifact) as runner:
        actual = runner.infer({"image": image()})

    assert {"logits": np.dtype(np.float32)} == {name: value.dtype for name, value in actual.items()}
    assert far(run(graph, {"image": image()})["logits"], actual["logits"], precision) < 1


@pytest.mark.parametrize("precision", STEP)
def test_every_layer_is_where_the_map_says(precision, graph, written):
    """
    Each mapped tensor of the file holds the value of its layer, and the map covers the network.
    """
    path, artifact, layers = written[precision]
    mapped = [layer for layer in layers.layers if layer.parts]
    before = {layer.layer_id: layer for layer in graph.layers.layers}
    nodes = frozenset(part.tensor for layer in mapped for part in before[layer.layer_id].parts)
    tensors = tuple({part.tensor for layer in mapped for part in layer.parts})

    reference = run(graph, {"image": image()}, nodes=nodes)
    with coreml_runtime.open_artifact(path, artifact, tensors=tensors) as runner:
        values = runner.infer({"image": image()})

    for layer in mapped:
        expected = restore(before[layer.layer_id], reference)
        assert far(expected, restore(layer, values), precision) < 1, layer.layer_id
    assert layers.coverage == 1.0
    assert len(layers.layers) - 2 == len(mapped)  # two BatchNorms were folded; the convolutions are seen through them


def test_a_wrong_map_would_be_noticed(graph, written):
    """
    The comparison above tells a layer from its neighbour.
    """
    path, artifact, layers = written[Precision.FP32]
    gates = [layer for layer in layers.layers if layer.operator == "sigmoid"]
    first, second = (layer.parts[0].tensor for layer in gates)
    nodes = frozenset(part.tensor for layer in graph.layers.layers for part in layer.parts)
    reference = run(graph, {"image": image()}, nodes=nodes)

    with coreml_runtime.open_artifact(path, artifact, tensors=(first, second)) as runner:
        values = runner.infer({"image": image()})
    expected = restore(next(item for item in graph.layers.layers if item.layer_id == gates[0].layer_id), reference)

    assert far(expected, values[first], Precision.FP32) < 1
    assert far(expected, np.broadcast_to(values[second].mean(), expected.shape), Precision.FP32) > 100


def test_a_changed_weight_is_noticed(graph, copied):
    """
    One weight of the file changed by 10 % takes the logits out of what rounding explains.
    """
    path, artifact = copied
    weights = path / "Data/com.apple.CoreML/weights/weight.bin"
    kernel = dict(graph.module.named_buffers())["head.weight"].numpy().copy()
    data, old = weights.read_bytes(), kernel.tobytes()
    assert 1 == data.count(old)
    kernel[0, 0] *= 1.1
    weights.write_bytes(data.replace(old, kernel.tobytes()))

    with coreml_runtime.open_artifact(path, artifact) as runner:
        actual = runner.infer({"image": image()})["logits"]

    assert far(run(graph, {"image": image()})["logits"], actual, Precision.FP32) > 1


@pytest.mark.parametrize("precision", STEP)
def test_exporting_twice_gives_the_same_bytes(precision, graph, written, tmp_path):
    """
    The same graph and request give the same files, byte for byte, whatever else the process has built in between.
    """
    for operator in ("const", "transpose", "cast", "mul"):
        ct.converters.mil.mil.Builder._get_free_name(operator)
    again, _, layers = write(graph, tmp_path, precision)

    assert contents(written[precision][0]) == contents(again)
    assert written[precision][2] == layers


@pytest.mark.slow
def test_another_process_gives_the_same_bytes(tmp_path):
    """
    Neither the order of sets nor the folder has a say in the file.
    """
    script = (
        "import sys; from pathlib import Path; import torch; from torch import nn\n"
        "from coordatt_deploy.graph.capture import capture\n"
        "from coordatt_deploy.exporters import ExportRequest\n"
        "from coordatt_deploy.exporters.coreml import export as coreml\n"
        "from coordatt_deploy.artifact_specs import ModelSpec, Precision, Preprocessing\n"
        "torch.manual_seed(0)\n"
        "net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Hardswish(), nn.Conv2d(8, 8, 3, groups=8), nn.GELU()).eval()\n"
        "path = Path(sys.argv[1]) / 'net.mlpackage'\n"
        "graph = capture(net, (torch.zeros(1, 3, 16, 16),))\n"
        "coreml.export(graph, ExportRequest(ModelSpec('n', Preprocessing((16, 16))), Precision.FP16, path))\n"
    )
    packages = []
    for seed in ("1", "2"):
        folder = tmp_path / ("x" * int(seed))
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", script, folder], env=environment, check=True, capture_output=True)
        packages.append(contents(folder / "net.mlpackage"))

    assert packages[0] == packages[1]


def test_no_time_and_no_place_in_the_file(written):
    """
    No date, no path and no name of this machine is in any file of the package.
    """
    path, _, _ = written[Precision.FP32]
    today = datetime.datetime.now(tz=datetime.UTC).date()
    wanted = [str(path.parent), str(Path.cwd()), os.uname().nodename, str(today), str(today.year) + "-"]

    assert {"Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"} == set(
        contents(path)
    )
    for name, data in contents(path).items():
        assert [] == [text for text in wanted if text.encode() in data], name


def test_opening_it_elsewhere_changes_nothing(copied):
    """
    coremltools' own reader, which rewrites the manifest of what it opens, finds it in its own form already.
    """
    path, _ = copied
    before = contents(path)

    ct.models.MLModel(str(path), skip_model_load=True)

    assert before == contents(path)


@pytest.mark.parametrize("precision", STEP)
def test_metadata(precision, written):
    """
    Preprocessing, labels and provenance can be read back, and Xcode has something to show.
    """
    model, _ = read_model(written[precision][0])
    described = model.description.metadata
    values = described.userDefined

    assert SPEC.preprocessing == Preprocessing.from_json(json.loads(values["preprocessing"]))
    assert list(LABELS) == json.loads(values["labels"])
    assert (SPEC.source_sha256, precision.value) == (values["source_sha256"], values["precision"])
    assert torch.__version__ == values["torch"]
    assert f"tiny with coordatt attention, 5 classes, {precision}" == described.shortDescription
    assert all((described.author, described.license, described.versionString))
    assert [("image", 65568)] == [(f.name, f.type.multiArrayType.dataType) for f in model.description.input]
    assert [("logits", 65568)] == [(f.name, f.type.multiArrayType.dataType) for f in model.description.output]


def test_fp16_packages_store_fp16(written):
    """
    An fp16 package is half as large and keeps its inner tensors in fp16; its input and output stay float32.
    """
    sizes = {}
    for precision, (path, _, _) in written.items():
        program = load(path)
        sizes[precision] = len(contents(path)["Data/com.apple.CoreML/weights/weight.bin"])
        inner = {port.dtype for step in program.steps[1:-1] for port in step.outputs}
        assert {"float16" if precision is Precision.FP16 else "float32"} == inner
        assert "float32" == program.inputs[0].dtype == program.outputs[0].dtype

    assert sizes[Precision.FP16] < 0.7 * sizes[Precision.FP32]


def test_every_result_says_who_computed_it(written):
    """
    Off macOS it is the evaluator, under its own name.
    """
    path, artifact, _ = written[Precision.FP32]
    with coreml_runtime.open_artifact(path, artifact) as runner:
        evaluated = not coreml_runtime.core_ml_works()

        assert (Origin.EVALUATED if evaluated else Origin.MEASURED) is runner.origin
        assert runner.runtime.startswith("ML Program evaluator " if evaluated else "Core ML, macOS ")
        assert (artifact.inputs, artifact.outputs) == (runner.inputs, runner.outputs)


def test_threads_do_not_change_the_result(written):
    """
    One thread and two give the same logits to within a rounding.
    """
    path, artifact, _ = written[Precision.FP32]
    results = []
    for threads in (1, 2):
        with coreml_runtime.open_artifact(path, artifact, threads=threads) as runner:
            results.append(runner.infer({"image": image()})["logits"])

    assert far(results[0], results[1], Precision.FP32) < 1


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "the inputs given are none; the package takes image"),
        ({"picture": image()}, "the inputs given are picture; the package takes image"),
        ({"image": image().astype(np.float64)}, "image is float64, the package takes float32"),
        ({"image": image(48, 32)}, "image is 1 × 3 × 48 × 32, the package takes 1 × 3 × 32 × 48"),
        ({"image": image()[0]}, "image is 3 × 32 × 48, the package takes 1 × 3 × 32 × 48"),
    ],
)
def test_feeds_that_do_not_fit(feeds, message, written):
    """
    What was given and what is taken stand in one line.
    """
    path, artifact, _ = written[Precision.FP32]
    with coreml_runtime.open_artifact(path, artifact) as runner, pytest.raises(UsageError) as caught:
        runner.infer(feeds)

    assert message == str(caught.value)


def test_a_map_of_another_file_is_refused(written):
    """
    A tensor that the package does not have is named when it is opened.
    """
    path, artifact, _ = written[Precision.FP32]

    with pytest.raises(
        BundleError, match=r"net_fp32\.mlpackage has no tensor mul_99: the layer map belongs to another"
    ):
        coreml_runtime.open_artifact(path, artifact, tensors=("hardtanh", "mul_99"))


def test_a_manifest_of_another_file_is_refused(written):
    """
    Inputs and outputs must have the names that the manifest gives.
    """
    path, artifact, _ = written[Precision.FP32]
    other = replace(artifact, outputs=(replace(artifact.outputs[0], name="scores"),))

    with pytest.raises(BundleError, match="has the outputs logits; the manifest says scores"):
        coreml_runtime.open_artifact(path, other)


@pytest.mark.parametrize("precision", STEP)
def test_dynamic_sizes(precision, tmp_path):
    """
    A graph of dynamic size is right at sizes that it was not captured at, and refuses those outside its bounds.
    """
    torch.manual_seed(0)
    graph = capture(Pooled().eval(), (torch.randn(1, 3, 48, 64),), dynamic=DynamicSize(32, 96))
    path, artifact, layers = write(graph, tmp_path, precision)

    assert (1, 3, None, None) == artifact.inputs[0].shape
    assert 1.0 == layers.coverage
    with coreml_runtime.open_artifact(path, artifact) as runner:
        for height, width in ((48, 64), (96, 32), (33, 71)):
            feeds = {"image": image(height, width)}
            assert far(run(graph, feeds)["logits"], runner.infer(feeds)["logits"], precision) < 1
        with pytest.raises(UsageError, match="image is 1 × 3 × 97 × 64, axis 2 of the package takes 32 to 96"):
            runner.infer({"image": image(97, 64)})


def test_a_graph_that_coremltools_cannot_convert(tmp_path):
    """
    The converter's refusal becomes one of ours, and nothing is written.
    """

    class Sorted(nn.Module):
        def forward(self, image):
            return torch.linalg.svdvals(image.mean((0, 1)))

    graph = capture(Sorted().eval(), (torch.randn(1, 3, 8, 8),))
    with pytest.raises(ConversionError, match=r"coremltools cannot convert it: .*svd"):
        write(graph, tmp_path)
    assert [] == list(tmp_path.iterdir())


def test_the_exporter_is_found_by_its_format():
    """
    The table of exporters leads here.
    """
    assert export is exporter(Format.COREML).export


def int8_weights(model):
    config = ct.optimize.coreml.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
    return ct.optimize.coreml.linear_quantize_weights(model, ct.optimize.coreml.OptimizationConfig(config))


def asymmetric_weights(model):
    config = ct.optimize.coreml.OpLinearQuantizerConfig(mode="linear", weight_threshold=0)
    return ct.optimize.coreml.linear_quantize_weights(model, ct.optimize.coreml.OptimizationConfig(config))


def palettized_weights(model):
    config = ct.optimize.coreml.OpPalettizerConfig(mode="uniform", nbits=4, weight_threshold=0)
    return ct.optimize.coreml.palettize_weights(model, ct.optimize.coreml.OptimizationConfig(config))


def sparse_weights(model):
    config = ct.optimize.coreml.OpMagnitudePrunerConfig(target_sparsity=0.7, weight_threshold=0)
    return ct.optimize.coreml.prune_weights(model, ct.optimize.coreml.OptimizationConfig(config))


COMPRESSED = {
    int8_weights: "constexpr_affine_dequantize",
    asymmetric_weights: "constexpr_affine_dequantize",
    palettized_weights: "constexpr_lut_to_dense",
    sparse_weights: "constexpr_sparse_to_dense",
}


@pytest.mark.parametrize("precision", STEP)
@pytest.mark.parametrize("compress", COMPRESSED)
def test_compressed_weights(compress, precision, written, tmp_path):
    """
    A network with compressed weights computes what coremltools' own decompression of it computes.
    """
    path, artifact, _ = written[precision]
    original = ct.models.MLModel(str(shutil.copytree(path, tmp_path / "original.mlpackage")), skip_model_load=True)
    small = compress(original)
    plain = ct.optimize.coreml.decompress_weights(small)
    results = {}
    for name, model in (("original", original), ("small", small), ("plain", plain)):
        model.save(str(tmp_path / f"{name}_saved.mlpackage"))
        with coreml_runtime.open_artifact(tmp_path / f"{name}_saved.mlpackage", artifact) as runner:
            results[name] = runner.infer({"image": image()})["logits"]
    model, _ = read_model(tmp_path / "small_saved.mlpackage")
    function = model.mlProgram.functions["main"]

    assert COMPRESSED[compress] in {
        operation.type for operation in function.block_specializations[function.opset].operations
    }
    np.testing.assert_allclose(results["small"], results["plain"], rtol=1e-6, atol=1e-6)
    assert not np.array_equal(results["small"], results["original"])


def test_marked_tensors_become_outputs(copied):
    """
    Marking inner tensors as outputs, as Core ML needs it, leaves a valid package with the same values.
    """
    path, _ = copied
    before = load(path)
    wanted = ["hardtanh", "sigmoid", "logits"]
    expected = before.evaluate({"image": image()}, wanted)

    coreml_runtime.mark_outputs(path, ("hardtanh", "sigmoid"))
    after = load(path)

    assert ["logits", "hardtanh", "sigmoid"] == [port.name for port in after.outputs]
    for name, value in after.evaluate({"image": image()}, wanted).items():
        np.testing.assert_array_equal(expected[name], value)
    model, _ = read_model(path)
    assert [(1, 5), (1, 16, 16, 24), (1, 16, 16, 1)] == [
        tuple(feature.type.multiArrayType.shape) for feature in model.description.output
    ]


class StandIn:
    """Core ML's place in the test below: given a package on disk and feeds, it gives every output of the package."""

    def __init__(self, package, compute_units):
        assert compute_units is ct.ComputeUnit.CPU_ONLY
        self.program = load(Path(package))

    def predict(self, feeds):
        return self.program.evaluate(feeds, [port.name for port in self.program.outputs])


def test_the_mac_runner_hands_core_ml_a_copy(written, monkeypatch):
    """
    What surrounds Core ML on a Mac: a marked copy is opened on the CPU, results carry their names, the copy goes away.
    """
    path, artifact, _ = written[Precision.FP16]
    before = contents(path)
    opened = []
    monkeypatch.setattr(coreml_runtime, "core_ml_works", lambda: True)
    monkeypatch.setattr(
        ct.models,
        "MLModel",
        lambda package, compute_units: opened.append(Path(package)) or StandIn(package, compute_units),
    )

    with coreml_runtime.open_artifact(path, artifact, tensors=("hardtanh_cast_fp16", "logits")) as runner:
        values = runner.infer({"image": image()})
        assert opened[0] != path
        assert opened[0].exists()
        with pytest.raises(UsageError, match="image is float64"):
            runner.infer({"image": image().astype(np.float64)})

    assert Origin.MEASURED is runner.origin
    assert {"logits", "hardtanh_cast_fp16"} == set(values)
    assert np.float32 == values["hardtanh_cast_fp16"].dtype
    assert not opened[0].exists()
    assert before == contents(path)


def test_importing_it_says_nothing():
    """
    coremltools' warnings about other frameworks stay off the screen.
    """
    script = "import coordatt_deploy.runtimes.coreml.runner, coordatt_deploy.exporters.coreml.export"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


@pytest.mark.slow
def test_a_whole_network_agrees_with_onnx_runtime(tmp_path):
    """
    MobileNetV2 with coordinate attention: the evaluated package and ONNX Runtime differ by float32 roundings only.
    """
    import onnxruntime

    from coordatt_deploy.exporters.onnx.export import export
    from coordatt_deploy.models import create_model

    torch.manual_seed(0)
    net = create_model("mobilenetv2_ca_035").eval()
    graph = fold_batchnorms(capture(net, (torch.randn(1, 3, 64, 96),)))[0]
    path, artifact, layers = write(graph, tmp_path)
    export(graph, ExportRequest(SPEC, Precision.FP32, tmp_path / "net.onnx"))
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])

    feeds = {"image": image(64, 96)}
    (other,) = session.run(["logits"], feeds)
    with coreml_runtime.open_artifact(path, artifact) as runner:
        logits = runner.infer(feeds)["logits"]

    reference = run(graph, feeds)["logits"]
    assert far(reference, logits, Precision.FP32) < 1
    assert far(other, logits, Precision.FP32) < 1
    assert layers.coverage >= 0.9
