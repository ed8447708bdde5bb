"""What of a build is reused, and what is made anew: by the captured graph, the weights and the options."""

import json
import os
import py_compile
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.conversion.export_run import export
from coordatt_deploy.conversion.float_artifact import plan_float_jobs
from coordatt_deploy.conversion.plan import ExportPlan, Job
from coordatt_deploy.conversion.reuse import Reuse, reuse_of
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.files import files_below, sha256
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.saved_graph import graph_digest, save_graph
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.parity.earlier_proofs import proof_stage
from coordatt_deploy.parity.run import ParityPlan, check_parity
from coordatt_deploy.progress import Stages
from coordatt_deploy.quantization.recipes import load_recipe
from coordatt_deploy.runtime_versions import RuntimeLimits
from coordatt_deploy.stage_cache.store import StageCache
from coordatt_deploy.user_code import import_file

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, 2, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, image):
        return self.head(torch.relu(self.conv(image) * 0.5).mean((2, 3)))
"""
FP32, BOTH = "coreml/net_fp32.mlpackage", ["coreml/net_fp16.mlpackage", "coreml/net_fp32.mlpackage"]


class Scaled(nn.Module):
    def __init__(self, factor):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.factor = nn.Conv2d(3, 4, 1), factor

    def forward(self, image):
        return self.conv(image) * self.factor


def saved(folder, factor=0.5, weight=None, *, lines=False):
    """A captured graph in a folder of its own."""
    module = Scaled(factor).eval()
    if weight is not None:
        with torch.no_grad():
            module.conv.weight[0, 0] = weight
    folder.mkdir()
    save_graph(capture(module, (torch.zeros(1, 3, 8, 8),)), folder, lines=lines)
    return folder


def test_a_changed_constant_is_another_graph_and_a_changed_weight_are_other_weights(tmp_path):
    """
    The lines of the user's code are none of it.
    """
    first, again = saved(tmp_path / "a"), saved(tmp_path / "b", lines=True)
    constant, weight = saved(tmp_path / "c", 0.25), saved(tmp_path / "d", weight=3.0)

    def hashes(folder):
        return graph_digest(folder), sha256(folder / "weights.safetensors")

    assert "line" in (again / "graph.json").read_text()
    assert hashes(first) == hashes(again)
    assert (False, True) == tuple(one == other for one, other in zip(hashes(first), hashes(constant), strict=True))
    assert (True, False) == tuple(one == other for one, other in zip(hashes(first), hashes(weight), strict=True))


@pytest.fixture
def reuse(tmp_path):
    graph = saved(tmp_path / "graph")
    return reuse_of(StageCache(tmp_path / "cache"), graph, graph)


SPEC = ModelSpec("net", Preprocessing(size=(8, 8)), "0" * 64)


def float_key(reuse, tmp_path, *, spec=SPEC, kind=Format.ONNX, precision=Precision.FP32, limits=None, feeds=None):
    limits = RuntimeLimits() if limits is None else limits
    jobs = plan_float_jobs([(kind, precision, None)], spec, tmp_path, tmp_path / "bundle", feeds or {}, limits)
    return reuse.floats(jobs)[0].stage.key


def test_a_float_file_follows_from_its_own_options_alone(reuse, tmp_path):
    """
    Of what else the build was asked for it knows nothing; what changes it names the part.
    """
    (tmp_path / "bundle").mkdir()
    key = float_key(reuse, tmp_path)
    new = {
        "model": float_key(reuse, tmp_path, spec=replace(SPEC, labels=("a", "b"))),
        "options": float_key(reuse, tmp_path, limits=RuntimeLimits({}, 17)),
        "graph": float_key(replace(reuse, folded=("x", reuse.folded[1])), tmp_path),
        "weights": float_key(replace(reuse, folded=(reuse.folded[0], "x")), tmp_path),
    }

    assert key == float_key(reuse, tmp_path)
    assert {name: (name,) for name in new} == {name: key.differing(other) for name, other in new.items()}
    assert [None] == [job.stage for job in Reuse().floats(reuse.floats([]) or _jobs(tmp_path))]


def _jobs(tmp_path):
    return plan_float_jobs([(Format.ONNX, Precision.FP32, None)], SPEC, tmp_path, tmp_path / "bundle", {})


def test_an_int8_file_follows_from_recipe_data_and_the_float_file(reuse, tmp_path):
    """
    Images of other values, another recipe, another float file: each is another key.
    """
    data = CalibrationSet("photos", {"image": torch.zeros(4, 3, 8, 8).numpy()}, ("a", "b", "c", "d"), 0)
    other = CalibrationSet("photos", {"image": torch.ones(4, 3, 8, 8).numpy()}, ("a", "b", "c", "d"), 0)
    recipe = load_recipe("static_wi8_ai8")
    log = tmp_path / "log"
    job = Job(Format.ONNX, recipe, None, SPEC, tmp_path, "onnx/n.onnx", None, data, log)

    def key(job):
        return reuse.quantized([job])[0].stage.key

    new = {
        "calibration data": key(replace(job, data=other)),
        "options": key(replace(job, float_tail=("head",))),
        "model": key(replace(job, spec=replace(SPEC, labels=("a",)))),
    }

    assert key(job) == key(replace(job, log=tmp_path / "elsewhere"))
    assert {name: (name,) for name in new} == {name: key(job).differing(other) for name, other in new.items()}


# Real builds ---------------------------------------------------------------------------------------------------------


def plan_of(folder, cache, *precisions, formats=(Format.COREML,)):
    """Export the net of *folder*, with its own images made up."""
    model = ModelRequest(str(folder / "net.py:Net"), input_size=(32, 32))
    return ExportPlan(
        model,
        formats=formats,
        precisions=precisions or None,
        output_dir=folder / f"bundle{time.time_ns()}",
        cache=cache,
    )


def built(folder, cache, *precisions):
    sys.modules.pop("net", None)  # as in another process
    bundle = export(plan_of(folder, cache, *precisions), Stages())
    report = check_parity(bundle, ParityPlan(cache=cache), Stages())
    assert report.passed
    return bundle, report


def contents(bundle, *, below=""):
    """Everything but the manifest and the reports."""
    root = bundle.root
    paths = {file.relative_to(root).as_posix(): file for file in files_below(root)}
    left_out = ("manifest.json", "reports/")
    return {name: sha256(file) for name, file in paths.items() if name.startswith(below) and name.partition(".json")[0]
            and not name.startswith(left_out)}  # fmt: skip


@pytest.mark.slow
def test_a_second_build_redoes_what_depends_on_what_was_changed(tmp_path):
    """
    Nothing changed: all is reused, byte for byte. One more precision: that file alone is made and proven. A comment: no
    difference. A damaged result: made anew, the same bytes. A constant of ``forward``: everything anew.
    """
    (tmp_path / "net.py").write_text(NET)
    cache = StageCache(tmp_path / "cache")

    first, proof = built(tmp_path, cache, Precision.FP32)
    assert (frozenset(), [None]) == (first.reused, [item.earlier for item in proof.artifacts])

    (tmp_path / "net.py").write_text("# nothing but a comment\n" + NET)
    second, proven = built(tmp_path, cache, Precision.FP32, Precision.FP16)
    assert {FP32} == second.reused
    assert [False, True] == [
        item.earlier is not None for item in sorted(proven.artifacts, key=lambda i: i.artifact.path)
    ]
    assert contents(first).items() <= contents(second).items()
    # what was proven says when, and is in the reports as it was written then
    (earlier,) = [item for item in proven.artifacts if item.earlier is not None]
    kept = json.loads((second.root / "reports" / "parity.json").read_text())["runs"]
    before = json.loads((first.root / "reports" / "parity.json").read_text())["runs"]
    assert earlier.earlier.time in [run["time"] for run in kept]
    assert earlier.record() == replace(proof.artifacts[0].record(), sha256=earlier.artifact.sha256)
    assert before[0]["result"] == next(run for run in kept if run["artifact"] == FP32)["result"]

    # a proof is of these bytes: of the file, its map, the reference, the golden values
    stage = proof_stage(cache, second, earlier.artifact, 1, None)
    layers = second.path(earlier.artifact.layers)
    for path in (layers, second.path("reference/graph.json"), second.path("golden/outputs.npz")):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert stage.key.digest != proof_stage(cache, second, earlier.artifact, 1, None).key.digest
        path.write_bytes(data)
    assert stage == proof_stage(cache, second, earlier.artifact, 1, None)
    assert 1 == len(stage.key.differing(proof_stage(cache, second, earlier.artifact, 2, None).key))
    weights = next(file for file in second.path(FP32).rglob("weight.bin"))
    weights.write_bytes(weights.read_bytes() + b"x")
    assert None is proof_stage(cache, second, earlier.artifact, 1, None)

    for entry in cache.folder.glob("*/files/coreml/*_fp32.mlpackage/Data/com.apple.CoreML/weights/weight.bin"):
        entry.write_bytes(entry.read_bytes()[:-1] + b"?")
    third, _ = built(tmp_path, cache, Precision.FP32)
    assert (frozenset(), contents(first)) == (third.reused, contents(third))

    (tmp_path / "net.py").write_text(NET.replace("0.5", "0.25"))
    fourth, proof = built(tmp_path, cache, Precision.FP32)
    assert (frozenset(), [None]) == (fourth.reused, [item.earlier for item in proof.artifacts])
    assert contents(first)["golden/outputs.npz"] != contents(fourth)["golden/outputs.npz"]


def test_a_constant_is_seen_whatever_the_time_of_its_file(tmp_path):
    """
    The file has the size and the time that it had, and so has a file that it imports; Python alone would see neither.
    """
    (tmp_path / "part_of_net.py").write_text("FACTOR = 0.5\n")
    (tmp_path / "net_in_time.py").write_text("from part_of_net import FACTOR\n\nOTHER = 0.5\n")
    seen = []
    for constant in ("0.5", "0.7"):
        for name in ("part_of_net", "net_in_time"):
            file = tmp_path / f"{name}.py"
            file.write_text(file.read_text().replace("0.5", constant))
            os.utime(file, (1_000_000_000, 1_000_000_000))
            sys.modules.pop(name, None)
        code = import_file(tmp_path / "net_in_time.py")
        seen.append((code.FACTOR, code.OTHER))
        for name in ("part_of_net", "net_in_time"):
            py_compile.compile(str(tmp_path / f"{name}.py"))

    assert [(0.5, 0.5), (0.7, 0.7)] == seen


SCRIPT = """
import sys
from pathlib import Path
from coordatt_deploy.conversion.export_run import export
from coordatt_deploy.conversion.plan import ExportPlan
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.progress import Stages
from coordatt_deploy.stage_cache.store import StageCache
from coordatt_deploy.user_code import import_file

folder = Path(sys.argv[1])
model = ModelRequest(str(folder / "net.py:Net"), input_size=(32, 32))
cache = StageCache(folder / "cache")
bundle = export(ExportPlan(model, formats=(Format.COREML,), output_dir=folder / "killed", cache=cache), Stages())
print(*bundle.reused)
"""


@pytest.mark.slow
def test_a_build_that_was_killed_goes_on_where_it_stopped(tmp_path):
    """
    What was done when SIGKILL came is not done again, and the bundle is whole.
    """
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    cache = StageCache(tmp_path / "cache")
    process = subprocess.Popen([sys.executable, "-I", tmp_path / "script.py", tmp_path])
    while process.poll() is None and not list(cache.folder.glob("[0-9a-f]*/files/coreml")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = {path.name for path in cache.folder.glob("[0-9a-f]*/files/coreml/*.mlpackage")}

    again = subprocess.run([sys.executable, "-I", tmp_path / "script.py", tmp_path], capture_output=True, text=True)

    assert 0 == again.returncode
    reused = set(again.stdout.split())
    assert done
    assert {f"coreml/{name}" for name in done} <= reused <= set(BOTH)
    assert BOTH == sorted(item.path for item in open_bundle(tmp_path / "killed").manifest.artifacts)
