"""The warning about int8 ONNX on x86 hosts whose sums saturate; files are written by onnx and ONNX Runtime."""

import dataclasses
import json
from xml.etree import ElementTree

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from click.testing import CliRunner
from exact_sums import exact_sums_of
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from coordatt_deploy import host
from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.bundle import open_bundle, save_golden
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.cli import main
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import BundleError
from coordatt_deploy.files import sha256
from coordatt_deploy.formats import Format, Precision, TargetCpu
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.manifest import GoldenCase, Manifest
from coordatt_deploy.parity.reports import read_reports
from coordatt_deploy.parity.tolerances import TOLERANCES, Tolerance
from coordatt_deploy.runtimes import provenance, runtime
from coordatt_deploy.runtimes.host_effects import host_effect
from coordatt_deploy.runtimes.onnx import runner as onnx_runner
from coordatt_deploy.runtimes.onnx.runner import session_options
from coordatt_deploy.runtimes.onnx.saturation import (
    WeightRange,
    has_integer_values,
    saturation_cause,
    saturation_risk,
    weight_range,
)

WIDE = WeightRange(tensors=3, wide=2, greatest=127)
SEVEN_BITS = WeightRange(tensors=3, wide=0, greatest=64)


def _model(operator="QuantizeLinear", **weights):
    graph = helper.make_graph(
        [helper.make_node(operator, ["x"], ["y"])],
        "weights",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph)


def _range(tmp_path, model):
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return weight_range(path)


@pytest.mark.parametrize("features", [("avx", "avx2", "fma"), ("avx512f", "avx512bw"), ()])
@pytest.mark.parametrize("machine", ["x86_64", "AMD64"])
def test_x86_without_vnni_and_eight_bit_weights_is_a_risk(machine, features):
    """
    The text names what was found.
    """
    reason = saturation_risk(WIDE, machine, features)

    assert "2 of 3 int8 weights" in reason
    assert "127" in reason


@pytest.mark.parametrize(
    ("weights", "machine", "features"),
    [
        (SEVEN_BITS, "x86_64", ("avx2",)),
        (WIDE, "x86_64", ("avx2", "avx512f", "avx512_vnni")),
        (WIDE, "x86_64", ("avx2", "avx_vnni")),
        (WIDE, "aarch64", ("asimd", "asimddp")),
        (WIDE, "arm64", ()),
        (WeightRange(0, 0, 0), "x86_64", ()),
    ],
)
def test_no_risk_where_nothing_can_saturate(weights, machine, features):
    """
    Seven-bit weights, VNNI, an ARM host, or a float file.
    """
    assert saturation_risk(weights, machine, features) is None


def test_the_file_says_how_wide_its_weights_are(tmp_path):
    """
    Convolutions and matrices count; depthwise kernels, zero points, biases and floats do not.
    """
    model = _model(
        dense=np.full((8, 4, 3, 3), -127, np.int8),
        pointwise=np.full((8, 4, 1, 1), 64, np.int8),
        grouped=np.full((8, 2, 3, 3), -65, np.int8),
        matrix=np.full((8, 4), 3, np.int8),
        depthwise=np.full((8, 1, 3, 3), 127, np.int8),
        zero_points=np.full(8, 127, np.int8),
        bias=np.full((8, 8), 1000, np.int32),
        unsigned=np.full((8, 8), 255, np.uint8),
        floats=np.full((8, 8), 1000.0, np.float32),
    )

    assert WeightRange(tensors=4, wide=2, greatest=127) == _range(tmp_path, model)


def test_the_lowest_number_counts_as_128(tmp_path):
    """
    The absolute value of -128 does not wrap around to -128.
    """
    assert _range(tmp_path, _model(w=np.array([[-128, 1]], np.int8))).greatest == 128


def test_weights_may_be_written_as_a_list_of_numbers(tmp_path):
    """
    onnx allows int32_data for int8 tensors; negative numbers take ten bytes there.
    """
    model = _model()
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.INT8, (2, 2), [-100, 3, 0, 64]))

    assert WeightRange(1, 1, 100) == _range(tmp_path, model)


def test_a_float_file_has_no_int8_weights(tmp_path):
    """
    So no host is a risk for it.
    """
    assert WeightRange(0, 0, 0) == _range(tmp_path, _model(w=np.ones((4, 4, 1, 1), np.float32)))


def test_what_is_no_onnx_file_is_refused(tmp_path):
    """
    Noise, and a file that ends in the middle.
    """
    path = tmp_path / "model.onnx"
    onnx.save(_model(w=np.full((64, 64), 100, np.int8)), path)
    whole = path.read_bytes()
    for content in (whole[:200], b"\xff" * 40, b"PK\x03\x04 not onnx at all"):
        path.write_bytes(content)
        with pytest.raises(BundleError, match="cannot be read as an ONNX file"):
            weight_range(path)


def test_weights_in_another_file_are_refused(tmp_path):
    """
    They cannot be judged, and bundles never have them.
    """
    model = _model(w=np.full((64, 64), 100, np.int8))
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, size_threshold=0)

    with pytest.raises(BundleError, match="in another file"):
        weight_range(tmp_path / "model.onnx")


# The warning in the reports: a real int8 file, on a machine that is described otherwise than this one -----------------

AVX2 = dataclasses.replace(host.describe(), architecture="x86_64", cpu="a laptop of 2017", features=("avx", "avx2"))
VNNI = dataclasses.replace(AVX2, features=("avx", "avx2", "avx512f", "avx512_vnni"))
SPEC = ModelSpec("net", Preprocessing((8, 8)), source_sha256="0" * 64)
IMAGE = TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW")
LOGITS = TensorSpec("logits", (1, 16, 8, 8), "float32", "NCHW")
CASES = ("one", "two")


class Images(CalibrationDataReader):
    def __init__(self, images):
        self.left = iter({"image": image} for image in images)

    def get_next(self):
        return next(self.left, None)


def _save_float(path):
    """Weights of eight bits whose sums saturate nowhere, so that files give the same on every CPU that runs the tests.

    One weight in each channel is 127 steps and the others one at most: 255 x 127 + 255 is below 2^15.
    """
    generator = np.random.default_rng(0)
    weights = generator.choice([-1.0, 0.0, 1.0], (16, 27)) / 127
    weights[np.arange(16), generator.integers(0, 27, 16)] = generator.choice([-1.0, 1.0], 16)
    weights = weights.reshape(16, 3, 3, 3).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "weights"], ["logits"], pads=[1, 1, 1, 1])],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, IMAGE.shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, LOGITS.shape)],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(model, {provenance.KEY: SPEC.source_sha256})
    onnx.save(model, path)


def _int8_bundle(folder, *, reduce_range, target_cpu=None):
    """Write a bundle of a convolution, float and as ONNX Runtime's own quantizer makes it int8."""
    images = [np.random.default_rng(seed).uniform(-1, 1, IMAGE.shape).astype(np.float32) for seed in (1, 2)]
    with writing(folder, SPEC.source_sha256) as staging:
        (staging / "onnx").mkdir()
        (staging / "golden").mkdir()
        paths = {kind: staging / f"onnx/net_{kind.value}.onnx" for kind in (Precision.FP32, Precision.INT8)}
        _save_float(paths[Precision.FP32])
        quantize_static(
            paths[Precision.FP32], paths[Precision.INT8], Images(images), quant_format=QuantFormat.QDQ,
            per_channel=True, reduce_range=reduce_range, weight_type=QuantType.QInt8,
        )  # fmt: skip
        layers = staging / "onnx/net.layers.json"
        layers.write_text(LayerMap(()).dump())
        artifacts = tuple(
            Artifact(f"onnx/{path.name}", Format.ONNX, kind, None, target_cpu, path.stat().st_size, sha256(path),
                     (IMAGE,), (LOGITS,), "onnx/net.layers.json")
            for kind, path in paths.items()
        )  # fmt: skip
        with runtime(Format.ONNX).open_artifact(paths[Precision.FP32], artifacts[0]) as runner:
            outputs = [runner.infer({"image": image})["logits"] for image in images]
        values = {
            "inputs": {"image": images},
            "outputs": {"logits": [output.astype(np.float64) for output in outputs]},
            "rounding_fp32": {"logits": outputs},
            "rounding_fp16": {"logits": outputs},
        }
        for name, cases in values.items():
            save_golden(staging / f"golden/{name}.npz", cases)
        golden = tuple(GoldenCase(name) for name in CASES)
        finish(staging, Manifest(SPEC, (IMAGE,), (LOGITS,), artifacts, golden=golden))
    return open_bundle(folder)


@pytest.fixture
def on(monkeypatch):
    """Run a command of this tool on a machine described by its features."""
    tolerance = Tolerance(1.0, Precision.FP32, "eight bits", min_sqnr_db=20.0)
    monkeypatch.setitem(TOLERANCES, (Format.ONNX, Precision.INT8), tolerance)
    monkeypatch.setitem(TOLERANCES, (Format.ONNX, Precision.FP32), tolerance)

    def run(machine, *arguments):
        monkeypatch.setattr(host, "describe", lambda: machine)
        done = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return run


def test_every_parity_report_warns_where_int8_can_saturate(on, tmp_path):
    """
    Terminal, JSON, JUnit, Markdown and HTML name the target that settles it, for the int8 file only.
    """
    bundle = _int8_bundle(tmp_path / "net", reduce_range=False)
    target, path = f"coordatt-deploy parity {bundle.root} --target qemu-arm64", "onnx/net_int8.onnx"

    shown = on(AVX2, "parity", bundle.root, "--outputs-only", "--markdown", tmp_path / "summary.md")
    document = json.loads(on(AVX2, "parity", bundle.root, "--outputs-only", "--json"))
    on(AVX2, "report", bundle.root)

    warnings = {item["path"]: item["warning"] for item in document["artifacts"]}
    assert warnings["onnx/net_fp32.onnx"] is None
    assert target in warnings[path]
    assert document == json.loads(dump(read_reports((bundle.root / "reports/parity.json").read_text()).result()))
    assert "onnx int8: this x86 CPU has no VNNI" in " ".join(shown.split())
    suites = ElementTree.parse(bundle.root / "reports/junit.xml").findall("testsuite")  # noqa: S314 - our own
    said = {suite.get("name"): suite.findtext("testcase[@name='verdict']/system-out") for suite in suites}
    assert {"onnx/net_fp32.onnx": None, path: warnings[path]} == said
    assert "qemu-arm64" in (tmp_path / "summary.md").read_text()
    assert 1 == (bundle.root / "reports/report.html").read_text().count(target)


def test_profile_warns_as_well(on, tmp_path):
    """
    The figure is right, but it was the time of a computation that another CPU does not do.
    """
    bundle = _int8_bundle(tmp_path / "net", reduce_range=False)
    command = ("profile", bundle.root, "--samples", 20, "--min-seconds", 0)

    shown = on(AVX2, *command)
    document = json.loads(on(AVX2, *command, "--json"))

    assert [False, True] == [bool(item["warning"]) for item in document["results"]]
    assert "--target qemu-arm64" in " ".join(shown.split())
    assert document["host"]["cpu"] == AVX2.cpu


@pytest.mark.parametrize(
    ("machine", "reduce_range"),
    [(VNNI, False), (AVX2, True), (dataclasses.replace(AVX2, architecture="aarch64", features=("asimd",)), False)],
    ids=["vnni", "seven bits", "arm"],
)
def test_nothing_is_said_where_nothing_can_saturate(on, tmp_path, machine, reduce_range):
    """
    A CPU with VNNI, weights of seven bits, an ARM board.
    """
    bundle = _int8_bundle(tmp_path / "net", reduce_range=reduce_range)

    document = json.loads(on(machine, "parity", bundle.root, "--outputs-only", "--json"))

    assert [None, None] == [item["warning"] for item in document["artifacts"]]
    assert "VNNI" not in on(machine, "parity", bundle.root, "--outputs-only")


def test_a_file_that_cannot_be_read_is_said_to_be_unknown(tmp_path):
    """
    Weights elsewhere: not silently taken for safe.
    """
    onnx.save(
        _model(w=np.full((64, 64), 100, np.int8)), tmp_path / "net.onnx", save_as_external_data=True, size_threshold=0
    )

    assert "cannot be told" in saturation_cause(tmp_path / "net.onnx", AVX2)
    assert saturation_cause(tmp_path / "net.onnx", VNNI) is None
    tflite = Artifact("none", Format.TFLITE, Precision.INT8, None, None, 1, "", (IMAGE,), (LOGITS,), "")
    assert host_effect(tmp_path / "none", tflite, AVX2) is None


# A file that is made for a CPU is judged by what that CPU computes ----------------------------------------------------


def test_weights_alone_saturate_nothing(tmp_path):
    """
    Int8 weights that are read into float multiply no integers: no warning for a right file.
    """
    path = tmp_path / "net.onnx"
    onnx.save(_model("Identity", w=np.full((64, 64), 100, np.int8)), path)

    assert not has_integer_values(path)
    assert saturation_cause(path, AVX2) is None

    onnx.save(_model("QuantizeLinear", w=np.full((64, 64), 100, np.int8)), path)

    assert "no VNNI" in saturation_cause(path, AVX2)


@pytest.mark.parametrize(("target_cpu", "foreign"), [(TargetCpu.ARM64, True), (TargetCpu.X86_64, False), (None, False)])
def test_a_file_made_for_another_cpu_is_judged_by_that(tmp_path, target_cpu, foreign):
    """
    One made for x86-64, or for no CPU in particular, is judged as it runs.
    """
    bundle = _int8_bundle(tmp_path / "net", reduce_range=False, target_cpu=target_cpu)
    artifact = bundle.manifest.artifacts[1]

    assert foreign == host_effect(bundle.path(artifact.path), artifact, AVX2).foreign
    assert host_effect(bundle.path(artifact.path), artifact, VNNI) is None


def _kernels(path, tmp_path, *, exact_sums):
    """The operators that ONNX Runtime really runs of a file."""
    options = session_options(1, exact_sums=exact_sums)
    options.optimized_model_filepath = str(tmp_path / f"optimized_{exact_sums}.onnx")
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}


def test_exact_sums_run_in_float_between_the_grids(tmp_path):
    """
    The convolution that adds integers is gone; without the option it is there.
    """
    path = _int8_bundle(tmp_path / "net", reduce_range=False).path("onnx/net_int8.onnx")

    assert not {"QLinearConv", "ConvInteger"} & _kernels(path, tmp_path, exact_sums=True)
    assert {"QLinearConv", "ConvInteger"} & _kernels(path, tmp_path, exact_sums=False)


def test_exact_sums_are_what_integers_give(tmp_path):
    """
    The same file in torch: grids read from it, sums of whole numbers in float64, nothing of ONNX Runtime.
    """
    bundle = _int8_bundle(tmp_path / "net", reduce_range=False)
    path, artifact = bundle.path("onnx/net_int8.onnx"), bundle.manifest.artifacts[1]
    image = bundle.golden("inputs")["image"][0]

    with runtime(Format.ONNX).open_artifact(path, artifact, exact_sums=True) as runner:
        found = runner.infer({"image": image})["logits"]

    expected, step = _in_torch(path, image)
    steps = np.abs(found - expected) / step
    assert steps.max() <= 1.001  # one step where the last digit of float32 decides between two
    assert (steps > 0.001).mean() < 0.001


def _in_torch(path, image):
    """What the one convolution of an int8 file gives on its grids, and the step of the last one."""
    graph = onnx.load(path).graph
    values = {item.name: torch.tensor(numpy_helper.to_array(item)) for item in graph.initializer}
    values["image"] = torch.tensor(image)
    step = 0.0
    for node in graph.node:
        given = [values[name] for name in node.input]
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            scale, zero = (item.double() for item in given[1:])
            if scale.ndim:
                scale, zero = (item.reshape([-1 if at == axis else 1 for at in range(given[0].ndim)])
                               for item in (scale, zero))  # fmt: skip
        if node.op_type == "QuantizeLinear":
            info = torch.iinfo(given[2].dtype)
            made, step = torch.clamp(torch.round(given[0].double() / scale) + zero, info.min, info.max), float(scale)
        elif node.op_type == "DequantizeLinear":
            made = (given[0].double() - zero) * scale
        else:
            assert node.op_type == "Conv"
            made = torch.nn.functional.conv2d(*(item.double() for item in given), padding=1)
        values[node.output[0]] = made
    return values["logits"].numpy(), step


def test_the_verdict_says_how_it_was_judged(on, tmp_path):
    """
    Terminal, JSON, JUnit, Markdown and page: judged without this CPU's saturation, and what it is as it runs here.
    """
    bundle = _int8_bundle(tmp_path / "net", reduce_range=False, target_cpu=TargetCpu.ARM64)

    shown = on(AVX2, "parity", bundle.root, "--outputs-only", "--markdown", tmp_path / "summary.md")
    document = json.loads(on(AVX2, "parity", bundle.root, "--outputs-only", "--json"))
    on(AVX2, "report", bundle.root)

    float_file, file = document["artifacts"]
    assert (None, None) == (float_file["warning"], float_file["as_run_here"])
    assert file["passed"]
    assert abs(file["as_run_here"]["sqnr_db"] - file["sqnr_db"]) < 3  # these sums saturate nowhere
    said = "judged without this CPU's saturation, as arm64 computes it"
    assert file["warning"].startswith(said)
    assert f"as it runs here: SQNR {file['as_run_here']['sqnr_db']:.1f} dB" in file["warning"]
    for text in (" ".join(shown.split()), (bundle.root / "reports/junit.xml").read_text()):
        assert said in text
    assert "Judged without this CPU&#39;s saturation" in (bundle.root / "reports/report.html").read_text()
    assert "as arm64 computes it" in (tmp_path / "summary.md").read_text()


def test_parity_opens_such_a_file_with_exact_sums(on, tmp_path, monkeypatch):
    """
    Outputs and layers alike; once more as it runs, for information; a file made for this CPU only as it runs.
    """
    opened = []
    start = onnx_runner.start_session

    def watched(path, options, inner=()):
        opened.append((path.name, exact_sums_of(options)))
        return start(path, options, inner)

    monkeypatch.setattr(onnx_runner, "start_session", watched)
    provenance_read = False  # it is opened as it runs to read what it was made from
    for cpu, ways in ((TargetCpu.ARM64, [provenance_read, True, False]), (TargetCpu.X86_64, [provenance_read, False])):
        bundle = _int8_bundle(tmp_path / cpu, reduce_range=False, target_cpu=cpu)
        opened.clear()
        on(AVX2, "parity", bundle.root, "--outputs-only")
        assert ways == [exact for name, exact in opened if name == "net_int8.onnx"]
