import json

import pytest
from small_bundle import float_bundle


def test_no_bundle_at_all(run):
    """
    Exit 2, and how to make one.
    """
    result = run("profile", "nowhere")

    assert 2 == result.exit_code
    assert "coordatt-deploy build" in result.output


@pytest.mark.parametrize("threads", ["0", "1,x", "-1", "4096"])
def test_bad_thread_counts(run, threads):
    """
    Exit 2 before anything is opened.
    """
    result = run("profile", "nowhere", "--threads", threads)

    assert 2 == result.exit_code
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--threads", "1"), "--threads is for latency"),
        (("--min-seconds", "0.5"), "--min-seconds is for latency"),
        (("--cpu-affinity", "0"), "--cpu-affinity is for latency"),
    ],
)
def test_what_is_for_latency_means_nothing_for_instructions(run, arguments, said):
    """
    Exit 2, by the option's name.
    """
    result = run("profile", "nowhere", "--target", "qemu-arm64", *arguments)

    assert 2 == result.exit_code
    assert said in result.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cool-down", "2m"), "--cool-down is for --sustained"),
        (("--sustained", "10m", "--ops"), "--ops times their layers"),
        (("--sustained", "10m", "--samples", "50"), "--samples is for latency in turns"),
        (("--sustained", "10m", "--min-seconds", "5"), "--min-seconds is for latency in turns"),
        (("--sustained", "10m", "--target", "qemu-arm64"), "--target counts instructions"),
        (("--sustained", "10"), "give it with its unit: 90s, 10m or 1h"),
        (("--sustained", "ten minutes"), "'ten minutes' is no length of time"),
        (("--sustained", "0s"), "between 1 s and a day"),
        (("--sustained", "30h"), "between 1 s and a day"),
        (("--sustained", "10m", "--cool-down", "1e9h"), "between 0 and a day"),
    ],
)
def test_options_that_contradict_a_sustained_run(run, arguments, said):
    """
    Exit 2 before anything is opened, with the reason.
    """
    result = run("profile", "nowhere", *arguments)

    assert 2 == result.exit_code
    assert said in " ".join(result.output.split())


def test_a_sustained_run_is_shown_and_kept(run, tmp_path):
    """
    A second is too short for a verdict, which is a finding: exit 0, in table, document, Markdown, JUnit and page.
    """
    float_bundle(tmp_path / "net")
    result = run(
        "profile", "net", "--sustained", "1s", "--threads", "1", "--markdown", "told.md", "--junit", "told.xml"
    )

    assert 0 == result.exit_code
    assert "onnx fp32, 1 thread: undecided: too short: 4 windows of time, 40 are the least" in result.stdout
    kept = json.loads((tmp_path / "net/reports/profile.json").read_text())
    assert ["onnx/net.onnx"] == [item["artifact"] for item in kept["sustained"]]
    assert "undecided: too short" in (tmp_path / "told.md").read_text()
    assert "undecided: too short" in (tmp_path / "told.xml").read_text()
    assert 0 == run("report", "net").exit_code
    assert "Latency under sustained load" in (tmp_path / "net/reports/report.html").read_text()


def test_a_later_latency_leaves_sustained_runs_where_they_are(run, tmp_path):
    """
    And the other way round: they answer different questions.
    """
    float_bundle(tmp_path / "net")
    quick = ("--samples", "20", "--min-seconds", "0")
    for arguments in (quick, ("--sustained", "1s"), quick):
        assert 0 == run("profile", "net", *arguments).exit_code
    kept = json.loads((tmp_path / "net/reports/profile.json").read_text())

    assert (1, 1, 2) == (len(kept["runs"]), len(kept["sustained"]), len(kept["sessions"]))
    assert 0 == run("report", "net").exit_code


def test_a_sustained_run_of_another_machine_is_added_under_its_name(run, tmp_path):
    """
    Held to the bytes as latencies are, and shown with its place.
    """
    float_bundle(tmp_path / "net")
    assert 0 == run("profile", "net", "--sustained", "1s", "--output", "there.json").exit_code
    assert 0 == run("report", "net", "--add", "there.json", "--as", "pixel7").exit_code
    kept = json.loads((tmp_path / "net/reports/latency-pixel7.json").read_text())
    page = (tmp_path / "net/reports/report.html").read_text()

    assert ["pixel7"] == [item["place"] for item in kept["sustained"]]
    assert "onnx fp32, 1 thread, on pixel7" in page
    other = (tmp_path / "there.json").read_text().replace(kept["sustained"][0]["sha256"], "0" * 64)
    (tmp_path / "there.json").write_text(other)
    assert 2 == run("report", "net", "--add", "there.json", "--as", "other").exit_code
