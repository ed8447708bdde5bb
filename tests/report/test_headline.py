"""The headline of the page: counted over the manifest's files, with what was not judged."""

import json
from dataclasses import replace

import pytest

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Origin, Preprocessing, TensorSpec
from coordatt_deploy.documents import dump
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.parity.reports import ParityReports, ParityRun, ParitySettings, read_reports
from coordatt_deploy.parity.result import ArtifactVerdict
from coordatt_deploy.report.page.headline import Headline, headline
from coordatt_deploy.run_records import GOLDEN, HERE, Covered, RunInputs

PATHS = ("onnx/net.onnx", "tflite/net.tflite", "coreml/net.mlpackage")
SPEC = TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW")


def manifest(*paths: str) -> Manifest:
    artifacts = tuple(
        Artifact(path, Format.ONNX, Precision.FP32, None, None, 9, "aa", (SPEC,), (SPEC,), f"{path}.json")
        for path in paths
    )
    return Manifest(ModelSpec("net", Preprocessing((8, 8))), (), (), artifacts)


def run(path: str, *, passed: bool | None = True, source: str = GOLDEN, layers: int = 9, place: str = HERE,
        own: bool = False) -> ParityRun:  # fmt: skip
    origin = Origin.MEASURED if place == HERE else Origin.EMULATED
    verdict = ArtifactVerdict(path, "aa", Format.ONNX, Precision.FP32, None, None, "ort", origin, passed)
    return ParityRun(
        kind="parity", artifact=path, sha256="aa", place=place, inputs=RunInputs(source, 8),
        covered=Covered(1, layers, layers), tool_versions={}, time="1", result=verdict,
        settings=ParitySettings(own_tolerances=own),
    )  # fmt: skip


def shown(bundle: Manifest, *runs: ParityRun) -> Headline:
    reports = ParityReports(runs)
    hashes = {artifact.path: artifact.sha256 for artifact in bundle.artifacts}
    return headline(bundle, reports.known(hashes), reports.standings(hashes))


def test_all_judged_in_full_is_good_news():
    """
    Every file of the manifest, layers and outputs, on the golden inputs.
    """
    found = shown(manifest(*PATHS), *map(run, PATHS))

    assert ("good", "✓ All 3 files compute the model's function.") == (found.kind, found.text)


def test_a_partial_run_is_no_good_news():
    """
    One file of three, outputs alone, on photos: said in so many words, and not green.
    """
    found = shown(manifest(*PATHS), run(PATHS[0], source="photos", layers=0))

    assert "odd" == found.kind
    assert found.text == (
        "1 of 3 files computes the model's function. 2 were not judged: net.tflite, net.mlpackage."
        " Of it the outputs alone were judged, no layer. It was judged on 8 inputs of photos alone."
    )


@pytest.mark.parametrize(
    "gap",
    [{"layers": 0}, {"source": "photos"}, {"own": True}, {"place": "qemu-arm64:cortex-a53"}],
    ids=lambda gap: next(iter(gap)),
)
def test_each_gap_takes_the_green_away(gap):
    """
    Layers, golden inputs, built-in tolerances, this machine: whatever is missing for one file is said.
    """
    found = shown(manifest(*PATHS), run(PATHS[0], **gap), *map(run, PATHS[1:]))

    assert "odd" == found.kind
    assert found.text.startswith("All 3 files compute the model's function. ")
    assert "1 of them" in found.text.lower()


def test_a_later_failure_on_other_inputs_is_not_hidden_by_the_full_run():
    """
    Whoever failed on photos does not compute the function, although the golden inputs passed.
    """
    found = shown(manifest(*PATHS), *map(run, PATHS), run(PATHS[1], passed=False, source="photos"))

    assert ("bad", "✗ 1 of 3 files does not compute the model's function.") == (found.kind, found.text)


def test_a_failure_under_emulation_counts():
    """
    A file that is wrong on the CPU that it is made for is wrong.
    """
    found = shown(manifest(*PATHS), *map(run, PATHS), run(PATHS[0], passed=False, place="qemu-arm64:cortex-a53"))

    assert "bad" == found.kind


def test_a_file_that_changed_since_is_not_judged():
    """
    Its verdict is of other bytes; those of a file that is gone do not count at all.
    """
    bundle = manifest(*PATHS)
    changed = replace(bundle, artifacts=(replace(bundle.artifacts[0], sha256="bb"), *bundle.artifacts[1:]))

    found = shown(changed, *map(run, PATHS), run("onnx/gone.onnx", passed=False))

    assert "odd" == found.kind
    assert "2 of 3 files compute the model's function. 1 was judged before it changed, and not since: net.onnx." in (
        found.text
    )


def test_a_file_that_could_not_be_run_is_named():
    """
    As not run here, which is not passed.
    """
    found = shown(manifest(*PATHS), *map(run, PATHS[:2]), run(PATHS[2], passed=None, layers=0))

    assert ("odd", "2 of 3 files compute the model's function. 1 was not run here: net.mlpackage.") == (
        found.kind,
        found.text,
    )


def test_nothing_judged_at_all():
    """
    Is said, and neither good nor bad.
    """
    assert ("odd", "Parity was not checked.") == (shown(manifest(*PATHS)).kind, shown(manifest(*PATHS)).text)


def test_a_run_that_the_fuller_one_contains_is_not_told_again():
    """
    Outputs on the same inputs with the same verdict; with another verdict it is.
    """
    hashes = {PATHS[0]: "aa"}
    full, part = run(PATHS[0]), run(PATHS[0], layers=0)

    (standing,) = ParityReports((full, part)).standings(hashes)
    assert (full, ()) == (standing.run, standing.further)
    failed = run(PATHS[0], layers=0, passed=False)
    (standing,) = ParityReports((full, failed)).standings(hashes)
    assert (failed,) == standing.further


def test_documents_of_older_versions_are_read():
    """
    Without commands, machines and what was believed by each run: the verdicts are the same, and can be gone on with.
    """
    reports = ParityReports(tuple(map(run, PATHS)), believed=("golden outputs",))
    document = json.loads(dump(reports))
    for item in document["runs"]:
        for key in ("command", "machine", "believed"):
            del item[key]
        for key in ("as_run_here", "judged_error"):
            del item["result"][key]

    old = read_reports(json.dumps(document))

    assert reports.result().artifacts == old.result().artifacts
    assert ("golden outputs",) == old.result().believed
    again = run(PATHS[0])
    assert len(PATHS) == len(old.with_runs(old.result(), (again,)).runs)
