"""Accuracies as JUnit XML and Markdown, as the command writes them."""

from xml.etree import ElementTree

from colours import BLIND_TO_BLUE, RIGHT, run


def test_a_drop_beyond_the_limit_is_a_failure(bundle, photos, tmp_path):
    """
    A suite for each subject; the artifact that is blind to a class fails with what it lost, the right one passes.
    """
    opened = bundle(right=RIGHT, blind=BLIND_TO_BLUE)
    files = ["--junit", tmp_path / "junit.xml", "--markdown", tmp_path / "summary.md"]
    result = run("evaluate", opened.root, "--dataset", photos(4), "--workers", 1, "--max-drop", 1, *files)
    root = ElementTree.fromstring((tmp_path / "junit.xml").read_text())  # noqa: S314 - ours
    failures = {suite.get("name"): suite.get("failures") for suite in root}
    text = (tmp_path / "summary.md").read_text()

    assert 1 == result.exit_code, result.output
    assert ("3", "1", "0") == tuple(root.get(key) for key in ("tests", "failures", "skipped"))
    assert ["0", "0", "1"] == list(failures.values())
    assert "difference -33.33" in root.find(".//failure").get("message")
    assert "not all files are within the limit" in text
    assert 1 == text.count("❌ beyond") == text.count("✅ within")


def test_without_a_limit_figures_pass(bundle, photos, tmp_path):
    """
    Nothing was asked of them; the figures are there all the same.
    """
    opened = bundle(right=RIGHT, blind=BLIND_TO_BLUE)
    files = ["--junit", tmp_path / "junit.xml", "--markdown", tmp_path / "summary.md"]
    result = run("evaluate", opened.root, "--dataset", photos(4), "--workers", 1, *files)
    root = ElementTree.fromstring((tmp_path / "junit.xml").read_text())  # noqa: S314 - ours

    assert 0 == result.exit_code, result.output
    assert "0" == root.get("failures")
    assert "66.67%" in "".join(item.text for item in root.iter("system-out"))
    assert "66.67%" in (tmp_path / "summary.md").read_text()


def test_an_image_with_a_hostile_name_is_text(bundle, photos, tmp_path):
    """
    The dataset's folder is named like markup; the page of a CI run shows it, and obeys none of it.
    """
    opened = bundle(right=RIGHT)
    folder = photos(4).rename(tmp_path / "<img src=x onerror=alert(1)>")
    summary = tmp_path / "summary.md"
    result = run("evaluate", opened.root, "--dataset", folder, "--workers", 1, "--markdown", summary)

    assert 0 == result.exit_code, result.output
    assert "&lt;img" in summary.read_text()
    assert "<img" not in summary.read_text()


def test_a_folder_that_is_not_there_is_told_before_the_work(bundle, photos, tmp_path):
    """
    Exit 2, and nothing was evaluated.
    """
    opened = bundle(right=RIGHT)
    result = run("evaluate", opened.root, "--dataset", photos(4), "--junit", tmp_path / "none" / "junit.xml")

    assert 2 == result.exit_code
    assert not (opened.root / "reports").exists()
