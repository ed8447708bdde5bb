"""Results that another machine wrote, added to a bundle: held to its bytes, shown with their place."""

import json
import os
import re
import shutil

import pytest
from click.testing import CliRunner
from small_bundle import float_bundle

from coordatt_deploy.added_results import MOST_BYTES
from coordatt_deploy.cli import main
from coordatt_deploy.formats import Format

COREML = "coreml/net.mlpackage"
MAC = "Apple M2 (arm64)"


def call(*arguments):
    return CliRunner().invoke(main, [str(item) for item in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle, and the documents that the commands write of its ONNX file."""
    folder = tmp_path_factory.mktemp("made")
    bundle = float_bundle(folder / "net", also=(Format.COREML,))
    for command in ("parity", "profile"):
        more = ("--min-seconds", "0.05", "--ops") if command == "profile" else ("--outputs-only",)
        result = call(command, bundle, "--format", "onnx", *more, "--output", folder / f"{command}.json")
        assert (folder / f"{command}.json").exists(), result.output
    return folder


@pytest.fixture
def bundle(made, tmp_path):
    return shutil.copytree(made / "net", tmp_path / "net")


def document(made, kind, **changes):
    """A document as a Mac would write it: of the Core ML package, with *changes* to its run and, by ``result_``, to
    what was found.
    """  # fmt: skip
    text = json.loads((made / f"{kind}.json").read_text())
    manifest = json.loads((made / "net/manifest.json").read_text())
    file = next(item for item in manifest["artifacts"] if item["path"] == COREML)
    for run in (*text["runs"], *text.get("operators", ())):
        run |= {"artifact": COREML, "sha256": file["sha256"], "machine": MAC}
        run["result"] |= {"path": COREML}
        if "origin" in run["result"]:
            run["result"] |= {"format": "coreml", "runtime": "Core ML 9", "origin": "measured"}
        if kind == "parity":
            run["result"]["sha256"] = file["sha256"]
        run["result"] |= {key[7:]: value for key, value in changes.items() if key.startswith("result_")}
        run |= {key: value for key, value in changes.items() if not key.startswith("result_")}
    return text


def written(path, text):
    path.write_text(json.dumps(text))
    return path


def page(bundle):
    return (bundle / "reports/report.html").read_text()


def test_what_a_mac_judged_is_the_verdict_on_a_file_that_was_not_judged_here(made, bundle, tmp_path):
    """
    The headline counts it, says on which machine that was, and goes on counting it.
    """
    assert 0 == call("parity", bundle, "--format", "onnx").exit_code
    before = call("report", bundle)
    assert "1 was not judged: net.mlpackage" in page(bundle), before.output

    result = call("report", bundle, "--add", written(tmp_path / "mac.json", document(made, "parity")), "--as", "mac")
    again = call("report", bundle)

    assert (0, 0) == (result.exit_code, again.exit_code), result.output
    assert "added 1 run of parity on mac as reports/parity-mac.json" in result.output
    for text in ("All 2 files compute the model", "net.mlpackage was judged on mac, as its document tells"):
        assert text in page(bundle)


def test_a_file_that_fails_on_the_mac_fails(made, bundle, tmp_path):
    """
    Whatever was found here: the place with the real runtime is not overruled.
    """
    call("parity", bundle, "--format", "onnx")
    failed = document(made, "parity", result_passed=False, result_problem="output logits is beyond tolerance")

    call("report", bundle, "--add", written(tmp_path / "mac.json", failed), "--as", "mac")

    assert "1 of 2 files does not compute the model" in page(bundle)


def test_a_measured_verdict_stands_before_an_evaluated_one(made, bundle, tmp_path):
    """
    The evaluator's run is kept, as a further one; where the evaluator runs on the other machine it changes nothing.
    """
    evaluated = document(made, "parity", result_origin="evaluated", result_runtime="ML Program evaluator")
    (bundle / "reports").mkdir()
    written(bundle / "reports/parity.json", evaluated)
    call("report", bundle, "--add", written(tmp_path / "linux.json", evaluated), "--as", "linux")
    assert "evaluated without the runtime" in page(bundle)
    assert "on linux" not in page(bundle).partition("Further parity runs")[0]

    call("report", bundle, "--add", written(tmp_path / "mac.json", document(made, "parity")), "--as", "mac")

    evidence, _, further = page(bundle).partition("Further parity runs")
    assert "measured on the real runtime" in evidence
    assert "evaluated without the runtime" not in evidence
    assert "ML Program evaluator" in further


def test_latency_of_another_machine(made, bundle, tmp_path):
    """
    A file that cannot be timed here gets its figure from there, named; a section of its own has all of it.
    """
    found = document(made, "profile")
    median = found["runs"][0]["result"]["median_ms"]

    result = call("report", bundle, "--add", written(tmp_path / "mac.json", found))

    assert 0 == result.exit_code, result.output
    assert (bundle / "reports/latency-apple-m2-arm64.json").exists()
    summary, _, section = page(bundle).partition("Latency on other machines")
    assert f"{median:.3g} ms" in summary
    assert "on apple-m2-arm64" in summary
    assert f"{median:.3f}" in section


def test_where_the_time_goes_is_kept_and_held_to_the_bytes(made, bundle, tmp_path):
    """
    What ``--ops`` told is not lost; of other bytes it is refused, and so are runs of a call that nothing is told of.
    """
    found = document(made, "profile")
    other, loose = (json.loads(json.dumps(found)) for _ in range(2))
    other["operators"][0]["sha256"] = "ab" * 32
    loose["sessions"] = []

    refused = [call("report", bundle, "--add", written(tmp_path / "x.json", text)) for text in (other, loose)]
    assert [2, 2] == [result.exit_code for result in refused]
    assert ["is of other bytes" in refused[0].output, "does not tell of" in refused[1].output] == [True, True]
    assert not (bundle / "reports").exists() or not list((bundle / "reports").glob("latency-*.json"))

    assert 0 == call("report", bundle, "--add", written(tmp_path / "mac.json", found), "--as", "mac").exit_code

    kept = json.loads((bundle / "reports/latency-mac.json").read_text())
    assert ["mac"] == [run["place"] for run in kept["operators"]]
    assert found["operators"][0]["result"]["rows"] == kept["operators"][0]["result"]["rows"]


def test_adding_once_more_replaces(made, bundle, tmp_path):
    """
    A later document of the same place answers the same question; two places stand beside each other.
    """
    failed = written(tmp_path / "a.json", document(made, "parity", result_passed=False))
    passed = written(tmp_path / "b.json", document(made, "parity"))

    for path, place in ((failed, "mac"), (passed, "mac"), (passed, "other")):
        assert 0 == call("report", bundle, "--add", path, "--as", place).exit_code

    assert 1 == len(json.loads((bundle / "reports/parity-mac.json").read_text())["runs"])
    assert "does not compute" not in page(bundle)
    assert {"mac", "other"} == {path.stem[7:] for path in (bundle / "reports").glob("parity-*.json")}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sha256": "ab" * 32}, r"is of other bytes of coreml/net.mlpackage: abababababab, here [0-9a-f]{12}; run"),
        ({"sha256": None}, "does not say which bytes of coreml/net.mlpackage"),
        ({"artifact": "../../etc/passwd"}, "has no such file"),
        ({"place": "qemu-arm64:cortex-a53"}, "tells of runs on qemu-arm64:cortex-a53"),
        ({"machine": None}, "name that with --as"),
        ({"result_passed": "yes"}, "is no document of runs"),
    ],
    ids=["other bytes", "no hash", "other file", "emulated", "no machine", "misshapen"],
)
def test_what_does_not_fit_is_refused_whole(changes, told, made, bundle, tmp_path):
    """
    With exit code 2, why, and nothing written: neither the document nor another that fits.
    """
    good = written(tmp_path / "good.json", document(made, "profile"))

    result = call(
        "report", bundle, "--add", good, "--add", written(tmp_path / "x.json", document(made, "parity", **changes))
    )

    assert 2 == result.exit_code
    assert re.search(told, result.output), result.output
    assert not list((bundle / "reports").glob("*-*.json"))


def test_what_is_no_document_of_ours_is_refused(bundle, tmp_path):
    """
    A manifest, a text, a list, a file that is not there, one of a hundred megabytes, a pipe.
    """
    (tmp_path / "text.json").write_text("not JSON")
    (tmp_path / "list.json").write_text("[1]")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    os.mkfifo(tmp_path / "pipe.json")
    paths = [
        bundle / "manifest.json",
        tmp_path / "pipe.json",
        *(tmp_path / f"{name}.json" for name in ("text", "list", "large", "gone")),
    ]

    found = [call("report", bundle, "--add", path) for path in paths]

    assert [2] * 6 == [result.exit_code for result in found]
    assert all(str(path) in result.output for path, result in zip(paths, found, strict=True))


@pytest.mark.parametrize("name", ["here", "../up", "Mac Mini", "-x", "a" * 61, ""])
def test_a_name_that_would_be_no_file_name_is_refused(name, made, bundle, tmp_path):
    """
    The name becomes part of a file's: small letters, digits, dots and dashes.
    """
    result = call("report", bundle, "--add", written(tmp_path / "m.json", document(made, "parity")), f"--as={name}")

    assert 2 == result.exit_code
    assert "is no name for a machine" in result.output


def test_a_hostile_document_is_harmless(made, bundle, tmp_path):
    """
    Its texts are shown as texts, its machine becomes a plain name, and its command is not offered to be typed.
    """
    evil = document(made, "parity", machine="../../<script>alert(1)</script>\x1b[31m", command="rm -rf ~",
                    result_runtime="<img src=x onerror=alert(2)>")  # fmt: skip

    result = call("report", bundle, "--add", written(tmp_path / "evil.json", evil))

    assert 0 == result.exit_code, result.output
    assert "\x1b" not in result.output
    assert (bundle / "reports/parity-script-alert-1-script-31m.json").exists()
    assert "rm -rf" not in page(bundle)
    assert "<img src=x" not in page(bundle)


def test_as_without_a_document_is_refused(bundle):
    """
    It would name nothing.
    """
    result = call("report", bundle, "--as", "mac")

    assert (2, True) == (result.exit_code, "give --add FILE too" in result.output)


@pytest.mark.parametrize("median_ms", [0.0, -5.0, 1e308])
def test_a_latency_that_no_clock_gives_is_refused(made, bundle, tmp_path, median_ms):
    """
    It would be drawn beside the others', and of zero no ratio can be made; nothing is kept of it.
    """
    told = document(made, "profile", result_median_ms=median_ms)
    for run in told["operators"]:
        run["result"].pop("median_ms")
    result = call("report", bundle, "--add", written(tmp_path / "mac.json", told), "--as", "mac")

    assert 2 == result.exit_code
    assert f"takes {median_ms:g} ms, which no clock gives; measure there again" in result.output
    assert not (bundle / "reports").exists()
