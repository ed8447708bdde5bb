"""What processes make of the images: the same figures, and no silence about what goes wrong."""

from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import pytest
from colours import BLIND_TO_BLUE, RIGHT, evaluated, reported, run
from exact_sums import exact_sums_of

from coordatt_deploy.errors import DeployError
from coordatt_deploy.evaluation import executors
from coordatt_deploy.evaluation.run import EvaluationPlan, evaluate_bundle
from coordatt_deploy.formats import TargetCpu
from coordatt_deploy.host import describe
from coordatt_deploy.progress import Stages
from coordatt_deploy.runtimes.onnx import reader as onnx_reader
from coordatt_deploy.runtimes.onnx import runner as onnx_runner


def test_two_processes_give_the_same_figures(bundle, photos):
    """
    However the images are shared out.
    """
    opened, folder = bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(9)
    documents = [
        evaluate_bundle(opened, EvaluationPlan(str(folder), workers=workers), Stages()).record() for workers in (1, 2)
    ]

    assert documents[0] == documents[1]


def test_corrupt_images_are_named_and_counted(bundle, photos):
    """
    Never fatal, never silently dropped: figures are over the others.
    """
    folder = photos(4)
    (folder / "red" / "0.png").write_bytes(b"not an image")
    (folder / "green" / "1.png").write_bytes((folder / "green" / "1.png").read_bytes()[:60])
    result = run("evaluate", bundle().root, "--dataset", folder, "--workers", 1)
    document = reported(folder.parent / "bundle")

    assert 0 == result.exit_code
    assert ["green/1.png", "red/0.png"] == [item["image"] for item in document["dataset"]["unreadable"]]
    assert (10, 12) == (document["dataset"]["images"], document["dataset"]["available"])
    assert 1.0 == document["subjects"][0]["top1"]
    assert "2 images could not be read" in result.stdout
    assert "red/0.png" in result.stdout


def test_only_corrupt_images(bundle, photos):
    """
    Then there is nothing to measure: exit code 2, and a name to look at.
    """
    folder = photos(1)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    result = run("evaluate", bundle().root, "--dataset", folder, "--workers", 1)

    assert 2 == result.exit_code
    assert "none of the 3 images" in result.stderr
    assert "deep blue/0.png" in result.stderr


def test_damaged_artifact_fails_without_spoiling_the_others(bundle, photos):
    """
    It has a reason in its place, the rest has figures, and the exit code is 1.
    """
    opened = bundle(right=RIGHT, blind=BLIND_TO_BLUE)
    (opened.root / "onnx" / "blind.onnx").write_bytes(b"no ONNX")
    found = evaluated(opened, photos(2))

    assert 6 == found.subjects[1].correct
    assert "cannot open blind.onnx" in found.subjects[2].problem
    assert (False, 1) == (found.subjects[2].passed, found.exit_code)


def test_a_dead_worker_is_told(bundle, photos, monkeypatch):
    """
    What the system ends for want of memory does not hang the command, and leaves advice.
    """

    class Dying(ThreadPoolExecutor):
        def __init__(self, *_, max_workers, **__):
            super().__init__(max_workers)
            self._processes = {}

        def submit(self, *_, **__):
            future = Future()
            future.set_exception(BrokenProcessPool())
            return future

    monkeypatch.setattr("coordatt_deploy.processes.ProcessPoolExecutor", Dying)
    with pytest.raises(DeployError, match="--workers 1"):
        evaluate_bundle(bundle(), EvaluationPlan(str(photos(20)), workers=2), Stages())


def test_files_for_another_cpu_are_evaluated_by_what_that_computes(bundle, photos, monkeypatch):
    """
    Where this CPU saturates, the file for ARM64 is opened with exact sums and its figures say so; others are not. What
    this CPU makes of it stands beside them.
    """
    opened = []
    start = onnx_runner.start_session

    def watched(path, options, inner=()):
        opened.append((path.stem, exact_sums_of(options)))
        return start(path, options, inner)

    found = bundle(right=RIGHT, blind=BLIND_TO_BLUE)
    pairs = zip(found.manifest.artifacts, (TargetCpu.ARM64, TargetCpu.X86_64), strict=True)
    artifacts = [replace(item, target_cpu=cpu) for item, cpu in pairs]
    found = replace(found, manifest=replace(found.manifest, artifacts=tuple(artifacts)))
    monkeypatch.setattr(onnx_runner, "start_session", watched)
    monkeypatch.setattr(onnx_reader, "saturation_cause", lambda *_: "this CPU saturates")
    laptop = replace(describe(), architecture="x86_64")
    monkeypatch.setattr(executors, "describe", lambda: laptop)

    document = evaluated(found, photos(2)).record()

    assert {("right", True), ("blind", False), ("right", False)} == set(opened)
    here = {item.name: item.score_as_run_here for item in document.subjects}
    assert {"reference": None, "onnx/right.onnx": 1.0, "onnx/blind.onnx": None} == here
    warnings = {item.name: item.warning for item in document.subjects}
    assert warnings["reference"] is None
    assert warnings["onnx/right.onnx"] == (
        "judged without this CPU's saturation, as arm64 computes it; this CPU saturates"
    )
    assert f"coordatt-deploy parity {found.root} --target" in warnings["onnx/blind.onnx"]
