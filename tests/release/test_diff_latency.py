"""Latency in ``diff``: real files take turns, equal bytes do not, and two documents are compared or refused."""

import dataclasses
import shutil
from collections import Counter

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from latencies import quiet
from onnx import numpy_helper
from small_bundle import FLOAT_ONNX, float_bundle

from coordatt_deploy.artifact_specs import Origin
from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.cli import main
from coordatt_deploy.documents import dump
from coordatt_deploy.errors import MissingDependencyError, UsageError
from coordatt_deploy.files import sha256
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.host import Host
from coordatt_deploy.manifest import MANIFEST
from coordatt_deploy.profile import pairs
from coordatt_deploy.profile.latency import Latency
from coordatt_deploy.profile.paired import Batch
from coordatt_deploy.profile.pairs import PairSettings
from coordatt_deploy.profile.reports import ProfileReports, runs_of, session_of
from coordatt_deploy.profile.result import ArtifactLatency, Profile, SettingsRecord, profile_result
from coordatt_deploy.profile.turns import OpenFile
from coordatt_deploy.progress import Stages
from coordatt_deploy.release import latency_change
from coordatt_deploy.release.diff import DiffPlan, diff
from coordatt_deploy.release.diff_result import Change, ChangeKind, DiffSettings

SHORT = DiffSettings(min_seconds=0.5, min_effect=0.2)


def with_kernel(folder, size):
    """A bundle of one convolution with a kernel of so many pixels each way."""
    root = float_bundle(folder)
    path = root / FLOAT_ONNX
    model = onnx.load(path)
    weights = np.ones((4, 3, size, size), np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "weights"))
    model.graph.node[0].attribute[0].CopyFrom(onnx.helper.make_attribute("pads", [size // 2] * 4))
    onnx.save(model, path)
    bundle = open_bundle(root, verify=False)
    (artifact,) = bundle.manifest.artifacts
    own = dataclasses.replace(artifact, bytes=path.stat().st_size, sha256=sha256(path))
    (root / MANIFEST).write_text(dataclasses.replace(bundle.manifest, artifacts=(own,)).dump())
    return root


def latency_row(result):
    (row,) = (row for row in result.rows if row.kind is ChangeKind.LATENCY)
    return row


def test_files_that_differ_are_told_apart_whatever_else_the_machine_does(tmp_path):
    """
    A convolution of 31 x 31 against one of 3 x 3, there and back: a regression and an improvement.
    """
    small, great = with_kernel(tmp_path / "small", 3), with_kernel(tmp_path / "great", 31)
    slower, faster = (
        latency_row(diff(*order, DiffPlan(settings=SHORT), Stages())) for order in ((small, great), (great, small))
    )

    assert (Change.REGRESSION, Change.IMPROVEMENT) == (slower.verdict, faster.verdict)
    assert slower.latency.ratio > 1.5
    assert slower.latency.batches == len(slower.latency.differences) == len(slower.latency.controls)
    assert slower.before_value < slower.after_value


def test_equal_bytes_are_timed_where_that_is_asked_for(tmp_path, monkeypatch):
    """
    Otherwise nothing is opened for it.
    """
    root = float_bundle(tmp_path / "net")
    timed = []
    original = latency_change.measure_pair
    monkeypatch.setattr(latency_change, "measure_pair", lambda *rest: timed.append(1) or original(*rest))
    left_out = latency_row(diff(root, root, DiffPlan(settings=SHORT), Stages()))
    before = len(timed)
    asked = latency_row(diff(root, root, DiffPlan(settings=SHORT, measure_identical=True), Stages()))

    assert (0, 1) == (before, len(timed))
    assert (Change.NO_DIFFERENCE, None) == (left_out.verdict, left_out.latency)
    assert asked.latency.control_ratio is not None
    assert "A against itself" in asked.reason


@pytest.fixture
def made_up(monkeypatch):
    """Batches of which *differences* and *controls* are made up, a second each."""

    def use(differences, controls):
        batches = [
            (Batch({"median": one}, {"median": other}, (1.0, 1.0, 1.0)), float(number + 1))
            for number, (one, other) in enumerate(zip(differences, controls, strict=True))
        ]
        monkeypatch.setattr(pairs, "batches", lambda *_: iter(batches))

    return use


def other_bytes(root, folder):
    """A copy whose file has a word more."""
    shutil.copytree(root, folder)
    path = folder / FLOAT_ONNX
    model = onnx.load(path)
    model.metadata_props.add(key="said", value="again")
    onnx.save(model, path)
    bundle = open_bundle(folder, verify=False)
    (artifact,) = bundle.manifest.artifacts
    own = dataclasses.replace(artifact, bytes=path.stat().st_size, sha256=sha256(path))
    (folder / MANIFEST).write_text(dataclasses.replace(bundle.manifest, artifacts=(own,)).dump())
    return folder


@pytest.fixture
def copies(tmp_path):
    root = float_bundle(tmp_path / "a")
    return root, other_bytes(root, tmp_path / "b")


def scattered(centre, spread, count=12):
    return [centre + spread * value for value in np.resize((-1.0, 1.0, 0.5, -0.5, 0.2, -0.2), count)]


@pytest.mark.parametrize(
    ("difference", "spread", "verdict", "said"),
    [
        (0.05, 0.005, Change.REGRESSION, "A against itself"),
        (-0.05, 0.005, Change.IMPROVEMENT, "A against itself"),
        (0.0, 0.005, Change.NO_DIFFERENCE, "A against itself"),
        (0.0, 0.1, Change.INCONCLUSIVE, "--min-seconds"),
        (0.0296, 0.1, Change.INCONCLUSIVE, "--min-effect"),
    ],
)
def test_a_latency_is_one_of_three_things_and_says_what_would_decide_it(
    copies, made_up, difference, spread, verdict, said
):
    """
    Clear cases are called; noise asks for seconds, what lies at the very limit for another limit.
    """
    made_up(scattered(difference, spread), scattered(0.0, spread))
    row = latency_row(diff(*copies, DiffPlan(), Stages()))

    assert verdict is row.verdict
    assert said in row.reason


def test_medians_that_are_slower_are_not_called_equal(copies, monkeypatch):
    """
    The fastest calls are as fast as before, and every second call is not: that is not "no difference".
    """

    def batches(median):
        for number, value in enumerate(scattered(0.0, 0.002)):
            wide = {"fast tenth": 0.5 * value, "median": value}
            yield Batch({"fast tenth": value, "median": value + median}, wide, (1.0, 1.0, 1.2)), float(number + 1)

    monkeypatch.setattr(pairs, "batches", lambda *_: batches(0.2))
    slower = latency_row(diff(*copies, DiffPlan(), Stages()))
    monkeypatch.setattr(pairs, "batches", lambda *_: batches(0.0))
    equal = latency_row(diff(*copies, DiffPlan(), Stages()))

    assert ("fast tenth", Change.INCONCLUSIVE) == (slower.latency.figure, slower.verdict)
    assert "jumps between states" in slower.reason
    assert Change.NO_DIFFERENCE is equal.verdict


def test_samples_that_other_processes_took_decide_nothing(copies, monkeypatch):
    """
    Inconclusive, without a figure that nobody measured, and strict JSON.
    """
    nothing = Batch({"median": np.nan}, {"median": np.nan}, (np.nan, np.nan, np.nan))
    monkeypatch.setattr(pairs, "batches", lambda *_: iter([(nothing, 10.0 * number) for number in range(1, 9)]))
    row = latency_row(diff(*copies, DiffPlan(), Stages()))
    printed = CliRunner().invoke(main, ["diff", *map(str, copies), "--json", "--quiet"])

    assert (Change.INCONCLUSIVE, None, None) == (row.verdict, row.before, row.after)
    assert "quieter machine" in row.reason
    assert "NaN" not in printed.stdout


def test_copies_that_differ_leave_it_inconclusive(copies, made_up):
    """
    Where a differs from itself by as much, no time mends it, and the reason says so.
    """
    made_up(scattered(0.05, 0.002), scattered(0.05, 0.002))
    row = latency_row(diff(*copies, DiffPlan(), Stages()))

    assert Change.INCONCLUSIVE is row.verdict
    assert "quieter machine" in row.reason
    assert row.latency.floor == pytest.approx(0.05, rel=0.05)


def test_what_only_an_evaluator_runs_is_not_compared(copies, monkeypatch):
    """
    Nor what has no runtime here; the reason says which.
    """
    row = latency_row_of(copies, monkeypatch, Origin.EVALUATED)

    assert Change.NOT_COMPARED is row.verdict
    assert "evaluated" in row.reason

    def missing(_):
        raise MissingDependencyError("pip install it")

    monkeypatch.setattr(latency_change, "runtime", missing)

    assert "pip install it" == latency_row(diff(*copies, DiffPlan(), Stages())).reason


def latency_row_of(copies, monkeypatch, origin):
    from coordatt_deploy.runtimes.onnx.runner import OnnxRuntimeRunner

    monkeypatch.setattr(OnnxRuntimeRunner, "origin", origin)
    return latency_row(diff(*copies, DiffPlan(), Stages()))


def test_an_interruption_has_no_verdict(copies, monkeypatch):
    """
    A batch that was cut short is not taken for one.
    """
    real = pairs.measure_openings
    monkeypatch.setattr(
        pairs, "measure_openings", lambda *given, **more: dataclasses.replace(real(*given, **more), interrupted=True)
    )

    with pytest.raises(KeyboardInterrupt):
        diff(*copies, DiffPlan(settings=SHORT), Stages())


def test_each_order_of_opening_is_had_equally_often(copies, monkeypatch):
    """
    What is opened later is faster or slower for that alone.
    """
    orders = []
    real = pairs._timed
    monkeypatch.setattr(pairs, "_timed", lambda entries, *rest: orders.append(tuple(entries)) or real(entries, *rest))
    bundle = open_bundle(copies[0])
    inputs = {name: values[0] for name, values in bundle.golden("inputs").items()}
    file = OpenFile(bundle.path(FLOAT_ONNX), bundle.manifest.artifacts[0], inputs)
    batches = pairs.batches(file, file, PairSettings(min_seconds=0.1))
    for _ in range(12):
        next(batches)

    assert {2} == set(Counter(orders[1:]).values())
    assert 6 == len(set(orders[1:]))


# Two documents ----------------------------------------------------------------------------------------------------

HOST = Host("CPU", "x86_64", ("avx2",), 2, 2, "Linux", "3.11", {"numpy": "2.3"})


@pytest.fixture
def document(tmp_path):
    """Writes a ``profile.json`` and returns its path."""

    def write(name, *, centre=5e6, seed=0, threads=1, path="onnx/net.onnx", inputs=(1, 3, 8, 8), origin=Origin.MEASURED,
              affinity=(), **host):  # fmt: skip
        latency = Latency(tuple(int(value) for value in quiet(600, centre, seed=seed)), threads=threads, openings=10)
        own = Latency(tuple(int(value) for value in quiet(600, 1.5e6, seed=seed + 50)), openings=10)
        item = ArtifactLatency(path, Format.ONNX, Precision.FP32, None, "onnxruntime 1", origin, latency)
        profile = Profile(
            dataclasses.replace(HOST, **host), (item,), {threads: own}, SettingsRecord(cpu_affinity=affinity),
            inputs={} if inputs is None else {"image": inputs},
        )  # fmt: skip
        result = profile_result(profile)
        reports = ProfileReports(runs_of(result, {}, {}, name), (session_of(result, name),))
        file = tmp_path / f"{name}.json"
        file.write_text(dump(reports))
        return file

    return write


def test_two_documents_of_one_machine_are_compared_by_latency_alone(document):
    """
    A fifth slower is a regression; equal ones stay inconclusive, as two runs apart have no control.
    """
    slower = diff(document("a"), document("b", centre=6e6, seed=1), DiffPlan(), Stages())
    equal = diff(document("c"), document("d", seed=2), DiffPlan(), Stages())
    wide = diff(document("e"), document("f", seed=2), DiffPlan(settings=DiffSettings(min_effect=0.15)), Stages())

    assert [Change.REGRESSION] == [row.verdict for row in slower.rows]
    assert [Change.INCONCLUSIVE] == [row.verdict for row in equal.rows]
    assert "in one run" in equal.rows[0].reason
    assert [Change.NO_DIFFERENCE] == [row.verdict for row in wide.rows]
    assert (1, 0, 0) == (slower.exit_code, equal.exit_code, wide.exit_code)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"cpu": "another"}, "other CPUs: CPU, then another"),
        ({"architecture": "aarch64"}, "architectures"),
        ({"features": ("avx512f",)}, "features"),
        ({"cores": 8}, "numbers of cores: 2, then 8"),
        ({"cores_available": 1}, "usable cores: 2, then 1"),
        ({"cpu_limit": 0.5}, "CPU limits: none, then 0.5"),
        ({"threads": 2}, "threads: 1, then 2"),
        ({"inputs": (1, 3, 16, 16)}, "1x3x8x8, then image 1x3x16x16"),
        ({"inputs": None}, "older version"),
        ({"affinity": (0,)}, "pinned"),
        ({"path": "onnx/other.onnx"}, "no file in common"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_documents_that_say_nothing_of_each_other_are_refused(document, other, said):
    """
    Exit 2, by what differs, and what to do instead.
    """
    result = CliRunner().invoke(main, ["diff", str(document("a")), str(document("b", **other))])

    assert 2 == result.exit_code
    assert said in result.output
    assert "coordatt-deploy diff BUNDLE BUNDLE" in result.output


def test_what_is_no_profile_is_refused(document, tmp_path):
    """
    Exit 2; likewise a dataset, which a profile knows nothing of.
    """
    (tmp_path / "other.json").write_text("{}")
    first = document("a")

    with pytest.raises(UsageError, match="cannot be read as a profile"):
        diff(first, tmp_path / "other.json", DiffPlan(), Stages())
    with pytest.raises(UsageError, match="--dataset"):
        diff(first, first, DiffPlan(dataset="digits"), Stages())


def test_what_was_evaluated_is_not_compared(document):
    """
    An evaluator's time says nothing of a device.
    """
    found = diff(document("a", origin=Origin.EVALUATED), document("b", origin=Origin.EVALUATED), DiffPlan(), Stages())

    assert [Change.NOT_COMPARED] == [row.verdict for row in found.rows]
