import json
import os
import re
import sys
from types import ModuleType

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from coordatt_deploy import format_modules, host
from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Origin, Preprocessing, TensorSpec
from coordatt_deploy.bundle import open_bundle, save_golden
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.cli import main
from coordatt_deploy.documents import dump, load
from coordatt_deploy.errors import MissingDependencyError, UsageError
from coordatt_deploy.files import sha256
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.manifest import GoldenCase, Manifest
from coordatt_deploy.profile import rounds
from coordatt_deploy.profile.latency import ProfileSettings
from coordatt_deploy.profile.result import ProfileResult, profile_result
from coordatt_deploy.profile.run import profile_bundle
from coordatt_deploy.progress import Stages
from coordatt_deploy.report.terminal import profile
from coordatt_deploy.runtimes.onnx import runner as onnxruntime

SPEC = ModelSpec("net", Preprocessing((32, 48)), source_sha256="0" * 64)
IMAGE = TensorSpec("image", (1, 3, 32, 48), "float32", "NCHW")
LOGITS = TensorSpec("logits", (1, 8, 32, 48), "float32", "NCHW")
SHORT = ProfileSettings(samples=40, openings=2, min_seconds=0.0)


def redirect(monkeypatch, file_format, module):
    """Let *module* take the place of the format's runner."""
    runner, real = f"coordatt_deploy.runtimes.{file_format}.runner", format_modules.import_module
    monkeypatch.setattr(format_modules, "import_module", lambda name: real(module if name == runner else name))


def save_convolution(path, kernel):
    """Write an ONNX network of one convolution."""
    weights = numpy_helper.from_array(np.ones((8, 3, kernel, kernel), np.float32), "weights")
    node = helper.make_node("Conv", ["image", "weights"], ["logits"], pads=[kernel // 2] * 4)
    graph = helper.make_graph(
        [node],
        "net",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, IMAGE.shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, LOGITS.shape)],
        [weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


@pytest.fixture
def write_bundle(tmp_path):
    """Write a bundle with an artifact for each (format, kernel size); all files are ONNX inside."""

    def write(*kinds, name="net"):
        with writing(tmp_path / name, SPEC.source_sha256) as staging:
            artifacts = []
            for kind, kernel in kinds:
                path = staging / kind / f"net_{kernel}.{kind}"
                path.parent.mkdir(exist_ok=True)
                save_convolution(path, kernel)
                layers = path.with_suffix(".layers.json")
                layers.write_text("{}")
                artifacts.append(
                    Artifact(
                        f"{kind}/{path.name}", kind, Precision.FP32, None, None, path.stat().st_size, sha256(path),
                        (IMAGE,), (LOGITS,), f"{kind}/{layers.name}",
                    )
                )  # fmt: skip
            (staging / "golden").mkdir()
            save_golden(staging / "golden/inputs.npz", {"image": [np.ones(IMAGE.shape, np.float32)] * 2})
            for file in ("outputs", "rounding_fp32", "rounding_fp16"):
                save_golden(staging / f"golden/{file}.npz", {"logits": [np.zeros(LOGITS.shape)] * 2})
            golden = (GoldenCase("one"), GoldenCase("two"))
            finish(staging, Manifest(SPEC, (IMAGE,), (LOGITS,), tuple(artifacts), golden=golden))
        return open_bundle(tmp_path / name)

    return write


@pytest.fixture
def evaluator(monkeypatch):
    """A runtime for Core ML artifacts that is no real one, as the evaluator is none."""

    class Evaluator(onnxruntime.OnnxRuntimeRunner):
        runtime = "evaluator 1"
        origin = Origin.EVALUATED

    def open_artifact(path, artifact, *, threads=1, tensors=()):
        runner = onnxruntime.open_artifact(path, artifact, threads=threads, tensors=tensors)
        runner.__class__ = Evaluator
        return runner

    module = ModuleType("made_up_evaluator")
    module.open_artifact = open_artifact
    monkeypatch.setitem(sys.modules, "made_up_evaluator", module)
    redirect(monkeypatch, Format.COREML, "made_up_evaluator")


class Recorder:
    """Progress that remembers."""

    def __init__(self):
        self.stages = []

    def start(self, stage, total):
        self.stages.append([stage, total, 0])
        return len(self.stages) - 1

    def advance(self, handle):
        self.stages[handle][2] += 1

    def finish(self, handle):
        pass


def test_every_artifact_is_profiled(write_bundle):
    """
    Real runtime, real clock: both artifacts have samples, a cold start and the same rounds, and the larger is slower.
    """
    bundle = write_bundle((Format.ONNX, 1), (Format.ONNX, 15))
    recorder = Recorder()

    profile = profile_bundle(bundle, SHORT, Stages(recorder))
    document = json.loads(dump(profile_result(profile)))
    small, large = document["results"]

    assert ["onnx/net_1.onnx", "onnx/net_15.onnx"] == [small["path"], large["path"]]
    assert {40} == {len(item["samples_ns"]) for item in document["results"]}
    assert all(item["load_ms"] > 0 and item["first_inference_ms"] > 0 for item in document["results"])
    assert {"measured"} == {item["origin"] for item in document["results"]}
    assert small["runtime"].startswith("onnxruntime ")
    assert small["median_ms"] < large["median_ms"]
    assert ["onnx/net_1.onnx", "onnx/net_15.onnx"] == [document["ratios"][0]["a"], document["ratios"][0]["b"]]
    assert document["host"]["before"]["uptime_ms"] == profile.host.before.uptime_ms
    assert profile == load(ProfileResult, json.dumps(document, allow_nan=False)).profile()
    assert [["cold start", 2, 2], ["latency, 1 thread", 100, 100]] == recorder.stages


@pytest.mark.usefixtures("evaluator")
def test_an_evaluators_time_is_no_latency(write_bundle):
    """
    What an evaluator runs takes no turns with the others, has no cold start, no ratio, and says that it is unusable.
    """
    bundle = write_bundle((Format.COREML, 3), (Format.ONNX, 1))

    document = json.loads(dump(profile_result(profile_bundle(bundle, SHORT))))
    results = {item["path"]: item for item in document["results"]}
    evaluated = results["coreml/net_3.coreml"]

    assert ("evaluated", "evaluator 1", "unusable", None) == tuple(
        evaluated[key] for key in ("origin", "runtime", "verdict", "load_ms")
    )
    assert 3 == len(evaluated["samples_ns"])
    assert 40 == len(results["onnx/net_1.onnx"]["samples_ns"])
    assert [] == document["ratios"]


def test_a_missing_runtime_skips_its_artifacts(write_bundle, monkeypatch):
    """
    A board with one runtime profiles what that opens; the rest is named with the install line.
    """
    redirect(monkeypatch, Format.TFLITE, "no_such_runtime")
    bundle = write_bundle((Format.ONNX, 1), (Format.TFLITE, 1))

    document = json.loads(dump(profile_result(profile_bundle(bundle, SHORT))))

    assert ["onnx/net_1.onnx"] == [item["path"] for item in document["results"]]
    assert ["tflite/net_1.tflite"] == [item["path"] for item in document["skipped"]]
    assert "pip install" in document["skipped"][0]["reason"]


def test_no_runtime_at_all_is_an_error(write_bundle, monkeypatch):
    """
    With nothing to measure the missing package is the answer, exit code 3.
    """
    redirect(monkeypatch, Format.TFLITE, "no_such_runtime")

    with pytest.raises(MissingDependencyError, match="no_such_runtime") as missing:
        profile_bundle(write_bundle((Format.TFLITE, 1)), SHORT)

    assert 3 == missing.value.exit_code


def test_a_format_that_the_bundle_lacks_is_refused(write_bundle):
    """
    Asking for what is not there is a mistake of the caller.
    """
    with pytest.raises(UsageError, match="no artifact in coreml"):
        profile_bundle(write_bundle((Format.ONNX, 1)), SHORT, formats=[Format.COREML])


@pytest.mark.usefixtures("evaluator")
def test_interruption_keeps_the_artifacts_measured_so_far(write_bundle, monkeypatch):
    """
    Ctrl-C while the evaluator runs keeps what the real runtimes gave, flagged.
    """
    bundle = write_bundle((Format.ONNX, 1), (Format.COREML, 3))
    module = sys.modules["made_up_evaluator"]
    opened, original = [], module.open_artifact

    def interrupted(*arguments, **options):
        opened.append(1)
        if len(opened) > 1:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(module, "open_artifact", interrupted)

    profile = profile_bundle(bundle, SHORT)

    assert profile.interrupted
    assert ["onnx/net_1.onnx"] == [item.path for item in profile.results]


def test_interruption_before_any_sample_is_an_interruption(write_bundle, monkeypatch):
    """
    With nothing to keep there is no profile.
    """
    bundle = write_bundle((Format.ONNX, 1))

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("coordatt_deploy.profile.run.cold_start", interrupted)

    with pytest.raises(KeyboardInterrupt):
        profile_bundle(bundle, SHORT)


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def command(write_bundle, tmp_path, monkeypatch):
    """Run a command on a bundle of two networks; the cache for targets is empty."""
    bundle = write_bundle((Format.ONNX, 1), (Format.ONNX, 15))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments):
        name, *options = map(str, arguments)
        return CliRunner().invoke(main, [name, str(bundle.root), *options])

    return run


BRIEF = ("--samples", 40, "--min-seconds", 0)


def test_the_table_compares_with_the_fastest(command):
    """
    Each other artifact of the same run has the ratio of its median to the fastest, with its interval.
    """
    shown = command("profile", *BRIEF).stdout
    document = json.loads(command("profile", *BRIEF, "--json").stdout)

    rows = [re.search(r"(\d+\.\d\d)  +(\d+\.\d{3}) … (\d+\.\d{3}) ", line) for line in shown.splitlines()]
    (row,) = [found for found in rows if found and found[0].startswith(found[1])]
    assert 1 < float(row[2]) <= float(row[1]) + 0.005
    assert float(row[1]) - 0.005 <= float(row[3])
    (ratio,) = document["ratios"]
    assert ratio["ci95"][0] <= ratio["ratio"] <= ratio["ci95"][1] < 1
    assert f"machine: {host.available_cores()} of {os.cpu_count()} cores; " in shown


def test_a_narrow_terminal_shows_whole_words(command, monkeypatch):
    """
    At 80 columns nothing is broken in the midst of a figure; what all have in common stands below.
    """
    monkeypatch.setattr(profile, "new_console", lambda: Console(width=80))

    shown = command("profile", *BRIEF).stdout

    table, _, typed = shown.partition("next:\n")
    assert max(map(len, table.splitlines())) <= 80
    assert 1 == typed.count("\n")  # a command to type is one line, which the terminal wraps
    figures = r"\d+\.\d{3}  \d+\.\d{3} … \d+\.\d{3} +(\d+\.\d\d)? .*\b(stable|noisy|unusable) *$"
    assert re.search(rf"^onnx fp32 +1 +{figures}", shown, re.MULTILINE)
    assert "origin of all: measured" in " ".join(shown.split())


def test_what_was_interrupted_says_so(command, monkeypatch):
    """
    Ctrl-C in the midst of the rounds: the samples so far are shown, written, and called incomplete.
    """
    original, taken = rounds._Turn.take, []

    def take(turn):
        taken.append(turn)
        if len(taken) > 3:  # one round of the yardstick and the two networks
            raise KeyboardInterrupt
        original(turn)

    monkeypatch.setattr(rounds._Turn, "take", take)

    result = command("profile", *BRIEF)

    assert 0 == result.exit_code
    assert "interrupted: these are the samples taken until then" in result.stdout
    assert "samples, 20 are the least" in result.stdout


def test_what_was_not_measured_is_named(write_bundle, monkeypatch):
    """
    An artifact whose runtime is missing stands below the table, with the line that installs it.
    """
    bundle = write_bundle((Format.ONNX, 1), (Format.TFLITE, 1))
    redirect(monkeypatch, Format.TFLITE, "no_such_runtime")

    result = CliRunner().invoke(main, ["profile", str(bundle.root), *map(str, BRIEF)])

    assert "tflite/net_1.tflite: not measured: " in result.stdout
    assert "pip install" in result.stdout


@pytest.mark.parametrize("name", ["parity", "profile"])
@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("qemu-arm46", 2, "unknown target 'qemu-arm46'; did you mean qemu-arm64"),
        ("qemu-arm64:cortex-a35", 2, "target qemu-arm64 has no cpu 'cortex-a35'; did you mean cortex-a"),
        ("qemu-arm64:", 2, "has no cpu ''"),
        ("qemu-arm64", 3, "is not built: there is no"),
    ],
)
def test_targets_that_cannot_be_used(command, name, target, code, words):
    """
    A slip is answered with the nearest name, exit code 2; a box that is not built with the command that builds it, 3.
    """
    result = command(name, "--target", target)

    assert code == result.exit_code
    assert words in result.stderr
    assert ("run: coordatt-deploy doctor --setup qemu-arm64" in result.stderr) == (code == 3)
    assert "" == result.stdout


@pytest.mark.parametrize("threads", ["99", "1,99"])
def test_threads_beyond_the_machine_are_refused(command, threads):
    """
    With the number of cores that this process has.
    """
    result = command("profile", "--threads", threads)

    assert 2 == result.exit_code
    assert f"threads is {threads}, but this process has {host.available_cores()} core" in result.stderr


@pytest.mark.parametrize("option", [("--threads", 1), ("--samples", 50), ("--min-seconds", 1), ("--cpu-affinity", 0)])
def test_counting_takes_no_option_of_the_clock(command, option):
    """
    An option that would do nothing is refused.
    """
    result = command("profile", "--target", "qemu-arm64", *option)

    assert 2 == result.exit_code
    assert f"{option[0]} is for latency" in result.stderr
