"""One command at several places: one report with all of them, and no answer believed without a look."""

import json
import os
import pickle
from pathlib import Path

import pytest
from click.testing import CliRunner
from colours import BLIND_TO_BLUE, RIGHT, photo_writer, write_colours
from small_bundle import float_bundle
from ssh_server import SshServer, needs_sshd

from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.cli import main
from coordatt_deploy.documents import load
from coordatt_deploy.fleet.result import FleetResult
from coordatt_deploy.kept_results import read_results
from coordatt_deploy.targets.places import Delivery
from coordatt_deploy.targets.ssh.connection import CONFIG

pytestmark = needs_sshd


@pytest.fixture
def server(tmp_path, monkeypatch):
    found = SshServer(tmp_path / "board", home='Ann\'s "home"')
    monkeypatch.setenv(CONFIG, str(found.config))
    yield found
    found.stop()


@pytest.fixture
def bundle(tmp_path):
    return float_bundle(tmp_path / "my 'net'")


def called(*words, code=0):
    result = CliRunner().invoke(main, [*map(str, words)])
    assert code == result.exit_code, result.output
    return result


def answers(server, text, code=0):
    """Let the tool there write *text* as its document."""
    (server.folder / "answer").write_bytes(text if isinstance(text, bytes) else text.encode())
    server.install(
        script=f'while [ "$1" != --output ]; do shift; done\ncat "{server.folder}/answer" >"$2"; exit {code}\n'
    )


@pytest.mark.slow
def test_two_places_give_one_report(server, bundle):
    """
    Parity here and on a machine without torch: both verdicts in one document, both kept in the bundle and on its page.
    """
    server.install(without=("torch", "onnx", "coremltools"))
    result = load(
        FleetResult, called("parity", bundle, "--target", "here", "--target", server.address, "--json").stdout
    )
    name = f"127.0.0.1-{server.port}"
    assert ["here", name] == [place.place for place in result.places]
    assert all(place.found.parity.runs[0].result.passed for place in result.places)
    assert name == result.places[1].found.parity.runs[0].place
    kept = read_results(open_bundle(bundle))
    assert {"here", name} == {run.place for run in kept.parity.runs}
    assert (bundle / f"reports/junit-{name}.xml").is_file()
    shown = called("report", bundle, "--csv", bundle.parent / "places.csv")
    assert '<section id="places">' in Path(shown.stdout.strip()).read_text()
    lines = (bundle.parent / "places.csv").read_text().splitlines()
    assert [["here", "onnx/net.onnx"], [name, "onnx/net.onnx"]] == [line.split(",")[:2] for line in lines[1:]]


@pytest.mark.slow
def test_profile_at_two_places(server, bundle, tmp_path):
    """
    Latencies of two places stand side by side; with --output the bundle stays as it is.
    """
    server.install(without=("torch",))
    fleet = tmp_path / "fleet.toml"
    fleet.write_text(f'[hosts.desk]\naddress = "here"\n[hosts.pi4]\naddress = "{server.address}"\ncpu = "cortex-a72"\n')
    out = tmp_path / "all.json"
    shown = called(
        "profile", bundle, "--targets", fleet, "--samples", 20, "--min-seconds", 0.05, "--output", out
    ).stdout
    assert "desk" in shown
    assert "cortex-a72" in shown
    result = load(FleetResult, out.read_text())
    assert ["desk", "pi4"] == [place.found.profile.runs[0].place for place in result.places]
    assert not (bundle / "reports").exists()


@pytest.mark.slow
def test_accuracy_at_two_places(server, tmp_path):
    """
    Accuracy here and on a machine without torch, on images of the user's that travel: the same counts of every file,
    and there the float file stands for the reference, which is said.
    """
    server.install(without=("torch",))
    root = write_colours(tmp_path / "net", right=RIGHT, blind=BLIND_TO_BLUE).root
    photos = photo_writer(tmp_path)(4)
    words = [
        "evaluate",
        root,
        "--dataset",
        photos,
        "--max-drop",
        1,
        "--workers",
        1,
        "--target",
        "here",
        "--target",
        server.address,
    ]
    result = load(FleetResult, called(*words, "--json", code=1).stdout)
    here, there = [{run.artifact: run.result for run in place.found.evaluation.runs} for place in result.places]
    assert ("reference" in here, "reference" in there) == (True, False)
    assert {"onnx/right.onnx": 12, "onnx/blind.onnx": 8} == {path: item.correct for path, item in there.items()}
    assert {path: here[path].correct for path in there} == {path: item.correct for path, item in there.items()}
    assert [str(photos)] * 2 == [place.found.evaluation.runs[0].dataset.source for place in result.places]
    assert ["torch is not installed" in place.found.evaluation.runs[0].notes[-1] for place in result.places[1:]] == [
        True
    ]


def test_place_that_fails_costs_the_others_nothing(server, bundle, tmp_path):
    """
    An unreachable place is listed with its reason, the other's verdict is kept, exit code 3.
    """
    answers(server, parity_of(bundle, tmp_path))
    shown = called("parity", bundle, "--target", server.address, "--target", "ssh://127.0.0.1:1", code=3).stdout
    assert "127.0.0.1-1: ssh://127.0.0.1:1 cannot be used: nothing answers at its port" in " ".join(shown.split())
    assert "1 of 2 places answered" in shown
    assert [f"127.0.0.1-{server.port}"] == [run.place for run in read_results(open_bundle(bundle)).parity.runs]


def parity_of(bundle, tmp_path):
    """What parity writes of the bundle."""
    out = tmp_path / "parity.json"
    if not out.exists():
        called("parity", bundle, "--outputs-only", "--output", out)
    return out.read_text()


def changed(text, change):
    document = json.loads(text)
    change(document)
    return json.dumps(document)


def of_run(**values):
    def change(document):
        document["runs"][0] |= values

    return change


def test_what_a_machine_cannot_run_is_said(server, bundle, tmp_path):
    """
    A file that a place has no runtime for is not passed over: the table says so, with the reason.
    """

    def skipped(document):
        document.update(runs=[], skipped=[{"path": "onnx/net.onnx", "reason": "onnxruntime is not installed"}])

    answers(server, changed(parity_of(bundle, tmp_path), skipped), code=3)
    shown = " ".join(called("parity", bundle, "--target", server.address, code=3).stdout.split())
    assert "not run: onnxruntime is not installed" in shown


def failed(document):
    document["runs"][0]["result"] |= {"passed": False}


HOSTILE = {
    "a pickle": lambda _: pickle.dumps({"graphs": os.system}),
    "HTML": lambda _: "<script>alert(1)</script>",
    "nested a million deep": lambda _: "[" * 1_000_000,
    "an object nested deep": lambda _: '{"runs":' * 100_000,
    "a number of a million digits": lambda _: '{"runs": ' + "9" * 1_000_000 + "}",
    "twice the same key": lambda text: text.replace('"graphs"', '"runs"', 1),
    "NaN": lambda text: text.replace("true", "NaN", 1),
    "nothing of a file": lambda text: changed(text, lambda document: document.update(runs=[])),
    "other bytes": lambda text: changed(text, of_run(sha256="0" * 64)),
    "no bytes": lambda text: changed(text, of_run(sha256=None)),
    "a file of no bundle": lambda text: changed(text, of_run(artifact="../../etc/passwd")),
    "another machine's runs": lambda text: changed(text, of_run(place="here2")),
    "another file's verdict": lambda text: changed(
        text, lambda document: document["runs"][0]["result"].update(path="onnx/other.onnx")
    ),
    "another command's document": lambda _: '{"schema_version": 2, "runs": [], "sessions": []}',
    "a later schema": lambda text: changed(text, lambda document: document.update(schema_version=99)),
    "not UTF-8": lambda _: b"\xff\xfe{}",
    "half a surrogate": lambda text: text.replace('"golden"', '"\\ud800"', 1),
}


class Answering:
    """A place that answers what it is told to."""

    def __init__(self, answer):
        self.answer = answer if isinstance(answer, bytes) else answer.encode()

    def run(self, *_):
        return Delivery(0, self.answer)


def test_hostile_answers_are_refused(bundle, tmp_path, monkeypatch):
    """
    Whatever a machine answers that is not this bundle's parity is refused in a line, and nothing of it is kept.
    """
    good = parity_of(bundle, tmp_path)
    for name, make in HOSTILE.items():
        place = Answering(make(good))
        monkeypatch.setattr("coordatt_deploy.targets.places.open_place", lambda *_, place=place, **__: place)
        result = called("parity", bundle, "--target", "ssh://board", code=3)
        assert "0 of 1 place answered" in result.stdout, name
        assert "Traceback" not in result.output, name
        assert len(result.stdout) < 2000, name
        assert not [*bundle.glob("reports/parity*")], name


def test_accuracy_on_other_images_is_refused(tmp_path, monkeypatch):
    """
    A place that tells of another dataset than it was sent is no answer; the right one is.
    """
    root = write_colours(tmp_path / "net", right=RIGHT).root
    photos, file = photo_writer(tmp_path)(1), tmp_path / "told.json"
    called("evaluate", root, "--dataset", photos, "--workers", 1, "--output", file)
    for source, code in ((str(photos), 0), ("digits", 3), ("2/photos", 3)):

        def renamed(document, source=source):
            for run in document["runs"]:
                run["inputs"]["source"] = run["dataset"]["source"] = source

        place = Answering(changed(file.read_text(), renamed))
        monkeypatch.setattr("coordatt_deploy.targets.places.open_place", lambda *_, place=place, **__: place)
        shown = called("evaluate", root, "--dataset", photos, "--target", "ssh://board", code=code).stdout
        assert (code == 0) == ("tells of the dataset" not in shown)


def test_escapes_and_markup_in_an_answer_do_nothing(server, bundle, tmp_path):
    """
    Terminal escapes are shown as text, and markup reaches the page as text.
    """
    text = changed(
        parity_of(bundle, tmp_path),
        lambda document: document["runs"][0].update(machine="\x1b[2J<script>alert(1)</script>[bold]"),
    )
    answers(server, text)
    shown = called("parity", bundle, "--target", server.address).stdout
    assert "\x1b[2J" not in shown
    assert "\\x1b[2J<script>" in shown
    page = Path(called("report", bundle).stdout.strip()).read_text()
    assert "<script>alert" not in page


def test_exit_code_follows_the_verdicts(server, bundle, tmp_path):
    """
    A failed verdict is exit code 1, whatever exit code the machine gave.
    """
    answers(server, changed(parity_of(bundle, tmp_path), failed), code=0)
    assert "FAILED" in called("parity", bundle, "--target", server.address, code=1).stdout


def test_reason_of_the_machine_is_told(server, bundle):
    """
    What the command there says of why it failed is told with the place.
    """
    server.install(script="echo 'Error: no runtime \033[31mhere' >&2; exit 3\n")
    shown = called("parity", bundle, "--target", server.address, code=3).stdout
    assert "no runtime \\x1b[31mhere" in shown


@pytest.mark.slow
def test_inspect_and_doctor_of_another_machine(server, bundle):
    """
    What a machine has, and what it makes of a bundle.
    """
    server.install(without=("torch",))
    found = load(FleetResult, called("doctor", "--target", server.address, "--json").stdout).places[0].found
    assert {"torch": None} == {part.name: part.version for part in found.installation.parts if part.name == "torch"}
    found = load(FleetResult, called("inspect", bundle, "--target", server.address, "--json").stdout).places[0].found
    assert ["onnx/net.onnx"] == [*found.bundle_inspection.artifacts]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--target", "ssh://-oProxyCommand=x"], "is no name of a machine"),
        (["--target", "here", "--target", "here"], "here is named 2 times"),
        (["--group", "pilot"], "give it too: --targets fleet.toml"),
        (["--target", "ssh://pi", "--junit", "x.xml"], "--junit is for one place"),
        (["--targets", "nowhere.toml"], "cannot be read"),
    ],
)
def test_bad_usage(bundle, words, told):
    """
    What cannot be meant is refused before anything is connected.
    """
    assert told in called("parity", bundle, *words, code=2).output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["profile", "--threads", "2"], "--threads is for latency, and of qemu-arm64:neoverse-n1 instructions"),
        (["profile", "--ops"], "--ops is for latency"),
        (["inspect"], "runs files, and inspect reads them"),
        (["doctor"], "doctor tells of qemu-arm64:neoverse-n1 without --target"),
    ],
)
def test_what_emulated_machines_do_not_do(bundle, words, told):
    """
    What an emulated machine among the places cannot do is refused before the others begin.
    """
    command, *options = words
    subject = [] if command == "doctor" else [bundle]
    places = ["--target", "here", "--target", "qemu-arm64"]
    assert told in called(command, *subject, *options, *places, code=2).output


def test_table_of_places_needs_another_place(bundle):
    """
    Without another place there is nothing to compare, which is said.
    """
    called("parity", bundle, "--outputs-only")
    assert "holds results of no other place" in called("report", bundle, "--csv", bundle / "x.csv", code=2).output


def test_here_is_what_no_target_is(bundle):
    """
    One target that is this machine changes nothing.
    """
    assert "passed" in called("parity", bundle, "--outputs-only", "--target", "here").output
    assert (bundle / "reports/parity.json").is_file()
