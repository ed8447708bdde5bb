"""The embedded default from weights to verdict, through the command line, with the real converters and runtimes."""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from ai_edge_litert import schema_py_generated as schema
from click.testing import CliRunner

from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.cli import main
from coordatt_deploy.files import sha256

pytestmark = pytest.mark.slow


def _command(*arguments):
    command = [sys.executable, "-m", "coordatt_deploy", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The demo's bundle, built once."""
    folder = tmp_path_factory.mktemp("demo") / "digits"
    result = _command("build", "--output-dir", folder, "--json")
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return folder, json.loads(result.stdout, parse_constant=pytest.fail)


def test_the_demo_writes_five_artifacts_that_pass(bundle):
    """
    ONNX, TFLite and ExecuTorch fp32, Core ML fp32 and fp16, each proven and timed, with its origin.
    """
    folder, document = bundle
    artifacts = {(item["format"], item["precision"]): item for item in document["artifacts"]}

    float32 = {(name, "fp32") for name in ("onnx", "tflite", "coreml", "executorch")}
    assert {*float32, ("coreml", "fp16")} == set(artifacts)
    for item in artifacts.values():
        assert item["passed"] is True
        assert item["first_diverging_layer"] is None
        assert item["median_ms"] > 0
        assert item["top1_agreement"] == 1.0
        assert (folder / item["path"]).exists()
        assert item["origin"] == (
            "evaluated" if item["format"] == "coreml" and sys.platform != "darwin" else "measured"
        )


def test_nine_tenths_of_the_layers_are_mapped(bundle):
    """
    In every float artifact.
    """
    opened = open_bundle(bundle[0])

    for artifact in opened.manifest.artifacts:
        assert opened.layers(artifact).coverage >= 0.9


def test_the_reports_are_strict_json_with_the_promised_keys(bundle):
    """
    parity.json and profile.json as documented.
    """
    parity = json.loads((bundle[0] / "reports" / "parity.json").read_text(), parse_constant=pytest.fail)
    profile = json.loads((bundle[0] / "reports" / "profile.json").read_text(), parse_constant=pytest.fail)

    assert next(iter(parity)) == next(iter(profile)) == "schema_version"
    assert all(run["result"]["passed"] for run in parity["runs"])
    about = {"kind", "artifact", "sha256", "place", "inputs", "covered", "settings", "tool_versions", "time"}
    assert all(about <= set(run) for run in [*parity["runs"], *profile["runs"]])
    assert {"here"} == {run["place"] for run in parity["runs"]}
    assert all(0 < run["covered"]["layers"] <= run["covered"]["layers_of"] for run in parity["runs"])
    keys = {
        "path",
        "format",
        "precision",
        "runtime",
        "origin",
        "passed",
        "max_abs_error",
        "sqnr_db",
        "cosine",
        "top1_agreement",
    }
    assert all(keys <= set(item) for item in (run["result"] for run in parity["runs"]))
    keys = {"path", "format", "precision", "target_cpu", "runtime", "origin", "threads", "median_ms", "p90_ms"}
    keys |= {"samples_ns", "ci95_ms", "verdict", "reason", "load_ms", "first_inference_ms", "peak_memory_bytes"}
    results = [run["result"] for run in profile["runs"]]
    assert all(keys <= set(item) for item in results)
    assert all(len(item["samples_ns"]) >= 100 for item in results if item["origin"] == "measured")


def _double_one_weight_onnx(path, rng):
    model = onnx.load(path)
    weights = [item for item in model.graph.initializer if len(item.dims) == 4]
    chosen = weights[rng.integers(len(weights))]
    values = onnx.numpy_helper.to_array(chosen).copy()
    flat = values.reshape(-1)
    flat[_usual(flat)] *= 2
    chosen.CopyFrom(onnx.numpy_helper.from_array(values, chosen.name))
    path.write_bytes(model.SerializeToString())


def _double_one_weight_tflite(path, rng):
    content = bytearray(path.read_bytes())
    model = schema.ModelT.InitFromPackedBuf(bytes(content), 0)
    graph = model.subgraphs[0]
    kernels = [
        tensor for tensor in graph.tensors if len(tensor.shape) == 4 and model.buffers[tensor.buffer].data is not None
    ]
    data = model.buffers[kernels[rng.integers(len(kernels))].buffer].data.tobytes()
    values = np.frombuffer(data, np.float32).copy()
    values[_usual(values)] *= 2
    start = bytes(content).index(data)
    content[start : start + len(data)] = values.tobytes()
    path.write_bytes(bytes(content))


def _double_one_weight_coreml(path, rng):
    from coordatt_deploy.runtimes.coreml.evaluator.package import load

    kernels = [
        np.asarray(value) for value in load(path).constants.values() if np.ndim(value) == 4 and np.size(value) > 50
    ]
    kernel = kernels[rng.integers(len(kernels))]
    file = next(path.rglob("weight.bin"))
    content = file.read_bytes()
    # the evaluator holds float16 weights in float32; the file does not
    stored = next(dtype for dtype in (np.float32, np.float16) if kernel.astype(dtype).tobytes() in content)
    values = kernel.astype(stored).reshape(-1)
    start = content.index(values.tobytes())
    values[_usual(values)] *= 2
    file.write_bytes(content[:start] + values.tobytes() + content[start + values.nbytes :])


def _double_one_weight_executorch(path, rng):
    from coordatt_deploy.runtimes.executorch.program_file import opened, packed, tensor

    file = opened(path.read_bytes(), path.name)
    (graph,) = file.graphs.values()
    kernels = [inner for inner in map(tensor, graph.xvalues) if len(inner.dims) == 4 and inner.constant_buffer_idx]
    key = graph.constant_data[kernels[rng.integers(len(kernels))].constant_buffer_idx].named_key
    place = next(named.segment_index for named in file.program.named_data if named.key == key)
    values = np.frombuffer(file.segments[place], np.float32).copy()
    values[_usual(values)] *= 2
    file.segments[place] = values.tobytes()
    path.write_bytes(packed(file))


def _usual(values):
    """Index of a weight of median size: neither the largest nor nearly zero."""
    return int(np.argsort(np.abs(values))[len(values) // 2])


EDITS = {
    "onnx": _double_one_weight_onnx,
    "tflite": _double_one_weight_tflite,
    "coreml": _double_one_weight_coreml,
    "executorch": _double_one_weight_executorch,
}


def _with_a_doubled_weight(root, copy, kind, precision):
    """Copy the bundle, double one weight of an artifact, and rewrite its hash: only running it can tell."""
    shutil.copytree(root, copy)
    document = json.loads((copy / "manifest.json").read_text())
    entry = next(item for item in document["artifacts"] if (item["format"], item["precision"]) == (kind, precision))
    EDITS[kind](copy / entry["path"], np.random.default_rng(0))
    entry["sha256"] = sha256(copy / entry["path"])
    (copy / "manifest.json").write_text(json.dumps(document))


@pytest.mark.parametrize("artifact", ["onnx-fp32", "tflite-fp32", "coreml-fp32", "coreml-fp16", "executorch-fp32"])
def test_one_changed_weight_fails_parity_and_restoring_it_passes(bundle, tmp_path, artifact):
    """
    With the hash in the manifest rewritten, only running the file can tell; the verdict names a layer.
    """
    kind, precision = artifact.split("-")
    copy = tmp_path / "bundle"
    _with_a_doubled_weight(bundle[0], copy, kind, precision)

    changed = CliRunner().invoke(main, ["parity", str(copy), "--format", kind, "--json"])
    verdicts = {item["precision"]: item for item in json.loads(changed.stdout)["artifacts"]}
    restored = CliRunner().invoke(main, ["parity", str(bundle[0]), "--format", kind])

    assert changed.exit_code == 1
    assert verdicts[precision]["passed"] is False
    assert verdicts[precision]["first_diverging_layer"]
    assert restored.exit_code == 0


def test_arm64_kernels_compute_the_same(bundle, tmp_path):
    """
    Under QEMU the float artifacts pass, with the CPU in their runtime's name; a changed weight fails there as well.

    The reports of the machine itself stay as they are.
    """
    target = ("--target", "qemu-arm64:cortex-a76")
    assert _command("doctor", "--setup", "qemu-arm64").returncode == 0
    copy = tmp_path / "bundle"
    _with_a_doubled_weight(bundle[0], copy, "tflite", "fp32")

    here = {path.name: path.read_bytes() for path in (bundle[0] / "reports").iterdir()}

    whole = _command("parity", bundle[0], *target, "--json")
    changed = _command("parity", copy, *target, "--format", "tflite", "--json")

    document = json.loads(whole.stdout, parse_constant=pytest.fail)
    assert (0, True, 1) == (whole.returncode, document["passed"], changed.returncode), whole.stderr + changed.stderr
    assert {"onnx", "tflite"} == {item["format"] for item in document["artifacts"]}
    assert {"coreml", "executorch"} == {item["path"].partition("/")[0] for item in document["skipped"]}
    for item in document["artifacts"]:
        assert ("emulated", True) == (item["origin"], item["passed"])
        assert item["runtime"].endswith("on qemu-arm64:cortex-a76")
    assert json.loads(changed.stdout)["artifacts"][0]["passed"] is False
    after = {path.name: path.read_bytes() for path in (bundle[0] / "reports").iterdir()}
    new = {"parity-qemu-arm64-cortex-a76.json", "junit-qemu-arm64-cortex-a76.xml"}
    assert here | {name: after[name] for name in new} == after


def test_arm64_instructions_are_counted_per_artifact(bundle):
    """
    By class, with the ratio of each pair; int8's instructions are not used by float files.
    """
    result = _command("profile", bundle[0], "--target", "qemu-arm64", "--json")
    document = json.loads(result.stdout, parse_constant=pytest.fail)
    onnx_file, tflite_file = document["results"]
    (ratio,) = document["ratios"]

    assert (0, "schema_version") == (result.returncode, next(iter(document)))
    for item in (onnx_file, tflite_file):
        assert item["origin"] == "emulated"
        assert item["instructions"] == sum(item["classes"].values())
        assert item["classes"]["fmla"] > 0 == item["classes"]["sdot"] == item["classes"]["smmla"]
    assert ratio["ratio"] == onnx_file["instructions"] / tflite_file["instructions"]
    assert {"coreml", "executorch"} == {item["path"].partition("/")[0] for item in document["skipped"]}


def test_two_builds_give_the_same_bytes(bundle, tmp_path):
    """
    Every artifact, every layer map, the reference and the golden data.
    """
    again = tmp_path / "again"
    assert _command("export", "--output-dir", again).returncode == 0
    first, second = open_bundle(bundle[0]).manifest, open_bundle(again).manifest

    assert [(item.path, item.sha256) for item in first.artifacts] == [
        (item.path, item.sha256) for item in second.artifacts
    ]
    assert first.files == second.files


def test_exporting_again_adds_and_keeps(bundle, tmp_path):
    """
    A second export into the bundle of the same weights adds an artifact and keeps the others.
    """
    copy = tmp_path / "bundle"
    shutil.copytree(bundle[0], copy)
    before = {item.path for item in open_bundle(copy).manifest.artifacts}

    result = _command("export", "--format", "onnx", "--target-cpu", "x86_64", "--output-dir", copy)
    after = {item.path for item in open_bundle(copy).manifest.artifacts}

    assert result.returncode == 0, result.stderr
    assert before < after
    assert {"x86_64"} == {path.removesuffix(".onnx").rpartition("fp32_")[2] for path in after - before}


def test_piped_output_is_plain_text(bundle):
    """
    No escape codes and no progress bar where nobody looks at a terminal: what takes seconds says so in lines of its
    own with the time, and with -q in none.
    """
    result = _command("parity", bundle[0], "--format", "onnx", "--outputs-only")
    quiet = _command("parity", "-q", bundle[0], "--format", "onnx", "--outputs-only")

    assert (result.returncode, quiet.returncode) == (0, 0)
    assert "\x1b" not in result.stdout + result.stderr + quiet.stdout
    assert "passed" in result.stdout
    assert all(re.match(r"\d+:\d\d \w", line) for line in result.stderr.splitlines()), result.stderr
    assert quiet.stderr == ""
