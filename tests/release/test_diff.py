"""``diff``: each kind of change is found, its absence is not made up, and what is not known is said with a remedy."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper
from small_bundle import FLOAT_ONNX, float_bundle

from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.cli import main
from coordatt_deploy.documents import dump, from_json, parse_object
from coordatt_deploy.errors import UsageError
from coordatt_deploy.files import sha256
from coordatt_deploy.formats import Format
from coordatt_deploy.manifest import MANIFEST, RefusedFile
from coordatt_deploy.parity import reports as parity_reports
from coordatt_deploy.parity.run import ParityPlan, check_parity
from coordatt_deploy.progress import Stages
from coordatt_deploy.release.diff import DiffPlan, diff
from coordatt_deploy.release.diff_result import Change, ChangeKind, DiffResult, DiffSettings
from coordatt_deploy.release.file_changes import partition_changes
from coordatt_deploy.runtime_versions import RuntimeNeeds
from coordatt_deploy.runtimes.delegate import Delegate

EXACT = DiffPlan(latency=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A bundle that was judged."""
    bundle = open_bundle(float_bundle(tmp_path_factory.mktemp("written") / "a"))
    check_parity(bundle, ParityPlan(layers=False), Stages())
    return bundle.root


@pytest.fixture
def pair(written, tmp_path):
    """Two copies of it."""
    for name in ("a", "b"):
        shutil.copytree(written, tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


def changed(root, **changes):
    """Give a manifest other values."""
    bundle = open_bundle(root, verify=False)
    (root / MANIFEST).write_text(replace(bundle.manifest, **changes).dump())


def change_model(root, **changes):
    changed(root, model=replace(open_bundle(root).manifest.model, **changes))


def change_file(root, **changes):
    (artifact,) = open_bundle(root, verify=False).manifest.artifacts
    changed(root, artifacts=(replace(artifact, **changes),))


def rewrite(root, edit):
    """Give the only file another content."""
    path = root / FLOAT_ONNX
    model = onnx.load(path)
    edit(model)
    onnx.save(model, path)
    change_file(root, bytes=path.stat().st_size, sha256=sha256(path))


def add_word(model):
    model.metadata_props.add(key="said", value="again")


def run(*arguments):
    return CliRunner().invoke(main, ["diff", *map(str, arguments)])


def compared(pair, plan=EXACT):
    return diff(*pair, plan, Stages())


def of(result, kind, subject=None):
    """Verdicts of the rows of a kind."""
    return [row.verdict for row in result.rows if row.kind is kind and subject in (None, row.subject)]


# Nothing differs --------------------------------------------------------------------------------------------------


def test_a_bundle_differs_in_nothing_from_itself(pair):
    """
    Every row says so but accuracy, which neither knows; equal bytes are not timed, and the exit code is 0.
    """
    result = compared(pair, DiffPlan())

    assert Change.NO_DIFFERENCE is result.verdict
    assert {Change.NO_DIFFERENCE, Change.NOT_COMPARED} == {row.verdict for row in result.rows}
    assert [Change.NOT_COMPARED] == of(result, ChangeKind.ACCURACY)
    assert ["same bytes"] == [row.change for row in result.rows if row.kind is ChangeKind.LATENCY]
    assert 0 == run(*pair).exit_code


def test_the_document_comes_back_as_it_went_out(pair):
    """
    ``--json`` prints what ``schema diff`` describes.
    """
    printed = run(*pair, "--json", "--quiet")
    document = parse_object(printed.stdout)

    assert 1 == document["schema_version"]
    assert from_json(DiffResult, document) == replace(
        compared(pair, DiffPlan()), host=from_json(DiffResult, document).host
    )


# What an app relies on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subject", "changes"),
    [
        ("preprocessing", {"preprocessing": "mean"}),
        ("preprocessing", {"pixels": True}),
        ("labels", {"labels": ("cat", "dog")}),
    ],
)
def test_a_change_of_preprocessing_or_labels_is_a_regression(pair, subject, changes):
    """
    Unless it is accepted: then it is shown and does not fail.
    """
    if "preprocessing" in changes:
        old = open_bundle(pair[1]).manifest.model.preprocessing
        changes = {"preprocessing": replace(old, mean=(0.0, 0.0, 0.0))}
    change_model(pair[1], **changes)
    accepted = replace(EXACT, settings=DiffSettings(accept=(ChangeKind.CONTRACT,)))

    assert [Change.REGRESSION] == of(compared(pair), ChangeKind.CONTRACT, subject)
    assert [Change.ACCEPTED] == of(compared(pair, accepted), ChangeKind.CONTRACT, subject)
    assert 1 == run(*pair, "--no-latency").exit_code
    assert 0 == run(*pair, "--no-latency", "--accept", "contract").exit_code


def test_labels_that_are_swapped_are_named(pair):
    """
    The places that differ, not all of them.
    """
    change_model(pair[0], labels=("cat", "dog", "cow"))
    change_model(pair[1], labels=("cat", "cow", "dog"))
    (row,) = (row for row in compared(pair).rows if row.subject == "labels")

    assert ("1: dog, 2: cow", "1: cow, 2: dog") == (row.before, row.after)


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"dtype": "uint8"}, Change.REGRESSION),
        ({"shape": (1, 3, 16, 16)}, Change.REGRESSION),
        ({"layout": "NHWC"}, Change.REGRESSION),
        ({"name": "picture"}, Change.REGRESSION),
        ({"scale": 0.5, "zero_point": 3}, Change.CHANGED),
    ],
)
def test_a_change_of_an_input_of_a_file_is_a_regression_and_of_its_grid_information(pair, changes, verdict):
    """
    An app can read scale and zero point from the file; name, shape, type and layout are in its calls.
    """
    image = TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW")
    change_file(pair[1], inputs=(replace(image, **changes),))

    assert verdict in of(compared(pair), ChangeKind.CONTRACT)
    assert set(of(compared(pair), ChangeKind.CONTRACT)) <= {verdict, Change.NO_DIFFERENCE}


@pytest.mark.parametrize(("least", "verdict"), [("1.14", Change.REGRESSION), ("1.9", Change.IMPROVEMENT)])
def test_a_file_that_needs_a_newer_runtime_is_a_regression(pair, least, verdict):
    """
    Versions are compared as numbers: 1.14 is above 1.10, 1.9 below.
    """
    change_file(pair[0], needs=RuntimeNeeds({"onnxruntime": "1.10"}, "opset"))
    change_file(pair[1], needs=RuntimeNeeds({"onnxruntime": least}, "opset"))

    assert [verdict] == of(compared(pair), ChangeKind.CONTRACT, "least onnxruntime")


# Files, sizes, operators, parity ----------------------------------------------------------------------------------


def test_a_file_that_is_gone_is_a_regression_and_a_new_one_is_not(pair):
    """
    With the reason that B has for it.
    """
    artifacts = open_bundle(pair[0]).manifest.artifacts
    changed(pair[1], artifacts=(), refused=(RefusedFile(FLOAT_ONNX, Format.ONNX, "fp32", "no such operator"),))
    gone, new = compared(pair), compared(pair[::-1])

    assert 1 == len(artifacts)
    assert [Change.REGRESSION] == of(gone, ChangeKind.FILES)
    assert "no such operator" in next(row.reason for row in gone.rows if row.kind is ChangeKind.FILES)
    assert [Change.CHANGED] == of(new, ChangeKind.FILES)


def test_a_model_that_was_renamed_has_the_same_files(pair):
    """
    The only file of a kind is the counterpart, and its new name is told.
    """
    (pair[1] / FLOAT_ONNX).rename(pair[1] / "onnx" / "other.onnx")
    change_file(pair[1], path="onnx/other.onnx")
    result = compared(pair)

    assert [Change.CHANGED] == of(result, ChangeKind.FILES)
    assert [Change.NO_DIFFERENCE] == of(result, ChangeKind.SIZE)


@pytest.mark.parametrize(("extra", "verdict"), [(2000, Change.REGRESSION), (1, Change.NO_DIFFERENCE)])
def test_growth_beyond_what_is_allowed_is_a_regression(pair, extra, verdict):
    """
    And the other way round an improvement.
    """
    rewrite(pair[1], lambda model: setattr(model, "doc_string", "x" * extra))
    back = {Change.REGRESSION: Change.IMPROVEMENT}.get(verdict, verdict)
    wide = replace(EXACT, settings=DiffSettings(max_size_growth=5.0))

    assert [verdict] == of(compared(pair), ChangeKind.SIZE)
    assert [back] == of(compared(pair[::-1]), ChangeKind.SIZE)
    assert [Change.NO_DIFFERENCE] == of(compared(pair, wide), ChangeKind.SIZE)


def test_operators_are_told_by_their_number(pair):
    """
    More of them are information.
    """

    def slower(model):
        model.graph.initializer.append(numpy_helper.from_array(np.eye(3, dtype=np.float32)[:, :, None, None], "one"))
        model.graph.node[0].input[0] = "again"
        model.graph.node.insert(0, helper.make_node("Conv", ["image", "one"], ["again"]))

    rewrite(pair[1], slower)
    (row,) = (row for row in compared(pair).rows if row.kind is ChangeKind.OPERATORS)

    assert (Change.CHANGED, "+1 Conv", 1.0, 2.0) == (row.verdict, row.change, row.before_value, row.after_value)


def delegate(taken, partitions, *rejected):
    left = sum(count for _, count, _ in rejected)
    return Delegate("xnnpack", taken + left, taken, partitions, rejected, "a table")


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (delegate(10, 1), delegate(10, 1), Change.NO_DIFFERENCE),
        (delegate(10, 1), delegate(12, 1), Change.NO_DIFFERENCE),
        (delegate(10, 1), delegate(10, 3), Change.REGRESSION),
        (delegate(10, 3), delegate(10, 1), Change.IMPROVEMENT),
        (delegate(10, None), delegate(9, None, ("SIGN", 1, "no kernel")), Change.REGRESSION),
        (delegate(9, None, ("SIGN", 1, "no kernel")), delegate(10, None), Change.IMPROVEMENT),
        (delegate(9, 3, ("SIGN", 1, "no kernel")), delegate(8, 1, ("SIGN", 2, "no kernel")), Change.REGRESSION),
    ],
)
def test_more_changes_between_accelerator_and_cpu_are_a_regression(before, after, verdict):
    """
    More partitions, or more operators left to the CPU; either alone is enough.
    """
    sides = [
        SimpleNamespace(inspected=lambda _, found=item: SimpleNamespace(delegates=(found,))) for item in (before, after)
    ]
    file = SimpleNamespace(path="tflite/net.tflite")
    (row,) = partition_changes(*sides, file, file)

    assert verdict is row.verdict
    assert ("SIGN" in row.change) == (before.rejected != after.rejected)


def test_parity_that_fails_now_is_a_regression(pair):
    """
    One that passes now is an improvement; one that was not judged is inconclusive, with the command that decides.
    """
    path = pair[1] / "reports" / "parity.json"
    reports = parity_reports.read_reports(path.read_text())
    failed = replace(reports.runs[0], result=replace(reports.runs[0].result, passed=False, problem="far off"))
    path.write_text(dump(replace(reports, runs=(failed,))))

    assert [Change.REGRESSION] == of(compared(pair), ChangeKind.PARITY)
    assert [Change.IMPROVEMENT] == of(compared(pair[::-1]), ChangeKind.PARITY)

    path.unlink()
    (row,) = (row for row in compared(pair).rows if row.kind is ChangeKind.PARITY)

    assert Change.INCONCLUSIVE is row.verdict
    assert f"coordatt-deploy parity {pair[1]}" in row.reason
    assert 0 == run(*pair, "--no-latency").exit_code
    assert 1 == run(*pair, "--no-latency", "--fail-inconclusive").exit_code


def test_parity_of_other_bytes_is_not_that_of_the_file(pair):
    """
    A verdict on what the file was says nothing of what it is.
    """
    rewrite(pair[1], add_word)

    assert [Change.INCONCLUSIVE] == of(compared(pair), ChangeKind.PARITY)


# What is written --------------------------------------------------------------------------------------------------


def test_files_for_pull_requests_and_machines(pair, tmp_path):
    """
    The verdict first; a regression fails in JUnit; a hostile name is inert everywhere.
    """
    change_model(pair[0], labels=("a", "b"))
    change_model(pair[1], labels=("<script>alert(1)</script>", "|b|"))
    files = {kind: tmp_path / f"out.{kind}" for kind in ("junit", "markdown", "html")}
    result = run(*pair, "--no-latency", *(word for kind, file in files.items() for word in (f"--{kind}", file)))
    suites = ElementTree.parse(files["junit"]).getroot()  # noqa: S314 - we wrote it
    markdown, page = files["markdown"].read_text(), files["html"].read_text()

    assert 1 == result.exit_code
    assert "1 regression" in " ".join(result.stdout.split())  # the paths may fill the first line
    assert "1 regression" in markdown.splitlines()[0]
    assert "\\|b\\|" in markdown
    assert "<script" not in page
    assert "1 regression" in page
    assert "1" == suites.get("failures")
    assert "contract" == next(suite.get("name") for suite in suites if suite.get("failures") != "0")


def test_nothing_is_written_where_a_file_could_not_be(pair, tmp_path):
    """
    Refused before the work, not after it.
    """
    result = run(*pair, "--html", tmp_path / "nowhere" / "page.html")

    assert 2 == result.exit_code
    assert "nowhere" in result.output


# Slips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--min-effect", "three"), "no percentage"),
        (("--min-effect", "0"), "--min-effect"),
        (("--min-seconds", "-1"), "--min-seconds"),
        (("--threads", "4096"), "threads"),
        (("--max-size-growth", "-1%"), "--max-size-growth"),
        (("--max-drop", "200"), "--max-drop"),
        (("--metric", "top-1"), "--dataset"),
        (("--accept", "latencies"), "latency"),
        (("--format", "coreml"), "neither"),
    ],
)
def test_slips_on_the_command_line(pair, options, said):
    """
    Exit 2, by the option's name.
    """
    result = run(*pair, *options)

    assert 2 == result.exit_code
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_bundle_and_a_file_are_not_compared(pair, tmp_path):
    """
    Nor what is not there.
    """
    with pytest.raises(UsageError, match="is a file"):
        diff(pair[0], pair[1] / MANIFEST, EXACT, Stages())
    with pytest.raises(UsageError, match="does not exist"):
        diff(pair[0], tmp_path / "c", EXACT, Stages())


def test_a_damaged_bundle_is_refused(pair):
    """
    Exit 2, before anything is compared.
    """
    with (pair[1] / FLOAT_ONNX).open("ab") as stream:
        stream.write(b"x")

    assert 2 == run(*pair).exit_code


def test_json_is_strict(pair):
    """
    No NaN or infinity in what is printed, whatever is compared.
    """

    def refuse(text):
        raise AssertionError(text)

    json.loads(run(*pair, "--no-latency", "--json", "--quiet").stdout, parse_constant=refuse)
