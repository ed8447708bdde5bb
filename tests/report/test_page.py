"""The HTML report, JUnit and Markdown."""

import base64
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.errors import BundleError
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.manifest import GoldenCase, Manifest
from coordatt_deploy.report.junit import junit
from coordatt_deploy.report.markdown import cell, markdown
from coordatt_deploy.report.page.plots import ticks
from coordatt_deploy.report.page.render import Contents, page

HOSTILE = "<script>alert('x')</script>\"><img src=//evil.example/a.png onerror=fetch('//evil')>&amp;\u202eexe|`*_x_*`"
CHROMIUM = shutil.which("chromium")


def artifact(path: str, kind: Format = Format.ONNX) -> Artifact:
    image = TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW")
    return Artifact(path, kind, Precision.FP32, None, None, 1_234_567, "ab" * 32, (image,), (image,), f"{path}.json")


def manifest(name: str, *artifacts: Artifact) -> Manifest:
    spec = ModelSpec(name, Preprocessing((8, 8)), attention="coordatt", source_sha256="cd" * 32)
    fold = {"folded": 3, "max_relative_error": 2e-8, "layers": []}
    versions = (("torch", "2.13.0"),)
    golden = (GoldenCase("noise"),)
    return Manifest(spec, (), (), artifacts, golden, fold=fold, tool_versions=versions, command="deploy me")


def row(layer: str, db: float | None = 130.0, *, passed: bool | None = True, **more: Any) -> dict[str, Any]:
    error = None if db is None else 1e-6
    return {
        "layer_id": layer, "operator": "conv2d", "sqnr_db": db, "max_abs_error": error, "local_sqnr_db": db,
        "local_max_abs_error": error, "local_allowed": 1e-5, "exact": False, "nonfinite": 0, "passed": passed,
        "inherits": False, "seen_through": None, "note": None,
    } | more  # fmt: skip


def verdict(path: str, layers: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    first = next((item["layer_id"] for item in layers if item["passed"] is False), None)
    output = {
        "name": "logits", "passed": first is None, "max_abs_error": 2e-6, "allowed": 4e-5, "sqnr_db": 120.0,
        "cosine": 1.0, "top1_agreement": 1.0, "mismatched": 0, "elements": 10, "nonfinite": 0,
    }  # fmt: skip
    return {
        "path": path, "sha256": "ab" * 32, "format": "onnx", "precision": "fp32", "recipe": None,
        "runtime": "onnxruntime 1.2", "origin": "measured", "passed": first is None,
        "problem": None if first is None else f"first beyond tolerance at {first}", "max_abs_error": 2e-6,
        "allowed": 4e-5, "sqnr_db": 120.0, "exact": False, "nonfinite": 0, "top1_agreement": 1.0,
        "tolerance": {"multiple": 16.0, "basis": "fp32", "reason": "sums in another order"}, "outputs": [output],
        "first_diverging_layer": first, "summary": f"{path}: all layers within tolerance", "layers_problem": None,
        "marked_difference": 0.0, "layers": layers,
    } | more  # fmt: skip


def parity(*items: dict[str, Any]) -> dict[str, Any]:
    return {"schema_version": 1, "passed": all(item["passed"] for item in items), "artifacts": list(items)}


def profile(path: str) -> dict[str, Any]:
    samples = [1_000_000 + 7_919 * index % 400_000 for index in range(300)] + [30_000_000]
    result = {
        "path": path, "runtime": "onnxruntime 1.2", "origin": "measured", "threads": 1, "median_ms": 1.2,
        "p90_ms": 1.3, "p99_ms": 1.4, "ci95_ms": [1.19, 1.21], "verdict": "noisy", "reason": "spread",
        "load_ms": 3.0, "first_inference_ms": 2.0, "peak_memory_bytes": 9_000_000, "samples_ns": samples,
    }  # fmt: skip
    host = {"cpu": HOSTILE, "architecture": "x86_64", "features": ["avx"], "cores": 2, "cores_available": 2,
            "memory_bytes": None, "os": "Debian", "python": "3.11", "container": None, "before": None}  # fmt: skip
    return {"schema_version": 1, "host": host, "settings": {"threads": [1]}, "results": [result]}


def contents(name: str = "net", layer: str = "features.3", path: str = "onnx/net_fp32.onnx") -> Contents:
    layers = [row(f"{layer}.{index}", 130.0 - index) for index in range(40)]
    layers[20] = row(f"{layer}.20", 20.0, passed=False, note=name)
    layers[25] = row(f"{layer}.25", None, passed=None, note="absent: " + name)
    layers[30] = row(f"{layer}.30", None, max_abs_error=0.0, local_max_abs_error=0.0)
    found = verdict(path, layers)
    return Contents(
        manifest(name, artifact(path)), name, parity(found), profile(path), {path: ({name: 3}, name)}, f"Made by {name}"
    )


class Structure(HTMLParser):
    """Every tag with its attributes, and the text outside of style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_hostile_names_stay_text() -> None:
    """A model, layer, file and operator named like markup add not one tag or attribute to the page."""
    tame = Structure(page(contents()))
    wild = Structure(page(contents(HOSTILE, HOSTILE, f"onnx/{HOSTILE.replace('/', '')}.onnx")))
    ignored = {"wbr"}
    assert [t for t, _ in tame.tags if t not in ignored] == [t for t, _ in wild.tags if t not in ignored]
    assert {tag for tag, _ in wild.tags}.isdisjoint({"script", "img", "iframe", "object", "form", "input"})
    assert not [key for _, attrs in wild.tags for key in attrs if key.startswith("on") or key == "src"]
    assert "<script>alert('x')</script>" in "".join(wild.words)


def test_page_refers_to_nothing_outside() -> None:
    """No address, import or link but the empty icon."""
    text = page(contents()).replace(escape(HOSTILE), "")
    assert [] == re.findall(r"https?:|url\(|@import|//\w", text)
    links = [attrs["href"] for _, attrs in Structure(text).tags if "href" in attrs]
    assert ["data:,"] == links


def test_every_plot_has_a_title_and_a_text_alternative() -> None:
    """Each figure's SVG is an image to a screen reader, named by its own title and desc, which are unique."""
    text = page(contents())
    plots = [attrs for tag, attrs in Structure(text).tags if tag == "svg" and attrs.get("role") == "img"]
    assert 2 == len(plots)
    ids = [attrs["id"] for tag, attrs in Structure(text).tags if tag in ("title", "desc") and "id" in attrs]
    assert len(set(ids)) == len(ids)
    assert sorted(ids) == sorted(part for plot in plots for part in (plot["aria-labelledby"] or "").split())
    assert re.search(r"<desc [^>]+>39 of 40 layers seen, lowest 20 dB at features\.3\.20; first beyond", text)


def test_verdict_stands_first_and_names_the_layer() -> None:
    """What failed and where is said before any plot."""
    words = " ".join(Structure(page(contents())).words)
    assert words.index("1 of 1 files do not compute") < words.index("First beyond tolerance at features.3.20")
    assert words.index("First beyond tolerance at features.3.20") < words.index("Agreement along the depth")


def test_verdict_on_an_older_file_is_said_to_be_out_of_date() -> None:
    """An artifact that was exported again after parity ran is not shown as passed."""
    found = contents()
    assert found.parity is not None
    newer = replace(found.manifest, artifacts=(replace(found.manifest.artifacts[0], sha256="ef" * 32),))
    assert "out of date" in page(replace(found, manifest=newer))
    assert "out of date" not in page(found)


def test_report_without_a_profile_or_without_parity() -> None:
    """What was not run is said, the rest is shown."""
    assert "Latency on this machine" not in page(replace(contents(), profile=None))
    assert "Parity was not checked" in page(replace(contents(), parity=None))


@pytest.mark.parametrize("broken", [{"artifacts": 3}, {"artifacts": [{}]}, {}, {"artifacts": [{"path": 1}]}])
def test_damaged_document_is_refused(broken: dict[str, Any]) -> None:
    """A document that does not fit says which commands write it again."""
    with pytest.raises(BundleError, match="coordatt-deploy parity"):
        page(replace(contents(), parity={"schema_version": 1} | broken))


def test_ticks_are_round_and_within() -> None:
    """Scales of any size get a few round numbers."""
    assert [0.0, 50.0, 100.0, 150.0] == ticks(0, 153, 4)
    assert [0.2, 0.4] == ticks(0.11, 0.55, 3)


def test_junit_counts_and_names() -> None:
    """Failures, skips and passes are counted per suite; the failing case is the layer."""
    root = ElementTree.fromstring(junit(contents().parity or {}))  # noqa: S314 - written by this test
    assert {"tests": "42", "failures": "3", "skipped": "1"} == {
        k: root.attrib[k] for k in ("tests", "failures", "skipped")
    }
    failed = [case.attrib["name"] for case in root.iter("testcase") if case.find("failure") is not None]
    assert ["verdict", "logits", "features.3.20"] == failed


def test_junit_survives_what_xml_cannot_hold() -> None:
    """Control characters and lone surrogates in names give well-formed XML."""
    bad = f"{HOSTILE}\x00\x1b[31m\ud800\ufffe"
    text = junit(parity(verdict(bad, [row(bad)])))
    root = ElementTree.fromstring(text.encode())  # noqa: S314 - written by this test
    assert 1 == len(list(root.iter("testsuite")))


def test_markdown_cells_stay_cells() -> None:
    """A hostile name breaks no table and makes no markup."""
    text = markdown(parity(verdict(HOSTILE + "\n| a | b |", [row("x")])), HOSTILE)
    (line,) = [line for line in text.splitlines() if "passed |" in line]
    assert 8 == len(re.findall(r"(?<!\\)\|", line))
    assert "<img" not in text
    assert r"a\_b" == cell("a_b")


class Browser:
    """Headless Chromium, spoken to over its debugging pipe."""

    def __init__(self, folder: str) -> None:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()
        flags = (
            "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
            f" --disable-component-update --disable-sync --remote-debugging-pipe --user-data-dir={folder} about:blank"
        )
        command = f"exec {CHROMIUM} {flags} 3<&{theirs_in} 4>&{theirs_out}"
        self.process = subprocess.Popen(
            ["bash", "-c", command], pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(theirs_in)
        os.close(theirs_out)
        self.read_end, self.write_end = ours_in, ours_out
        self.calls, self.rest, self.session = 0, b"", None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.calls += 1
        message = {"id": self.calls, "method": method, "params": params}
        os.write(
            self.write_end, json.dumps(message | ({"sessionId": self.session} if self.session else {})).encode() + b"\0"
        )
        while True:
            answer = self.receive()
            if answer.get("id") == self.calls:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            block = os.read(self.read_end, 1 << 16)
            assert block, "Chromium ended"
            self.rest += block
        message, _, self.rest = self.rest.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer

    def open(self, path: Path) -> None:
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def happened(self, *methods: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event["method"] in methods]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        os.close(self.read_end)
        os.close(self.write_end)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed; run: make system-packages")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        started = Browser(folder)
        yield started
        started.close()


@pytest.mark.slow
@pytest.mark.parametrize("words", [("net", "features.3"), (HOSTILE, HOSTILE), ("n" * 300, "l" * 300)])
def test_page_in_a_browser(browser: Browser, tmp_path: Path, words: tuple[str, str]) -> None:
    """Nothing but the file is fetched, no script runs, nothing is logged, nothing sticks out from 360 to 1600 px."""
    model, layer = words
    file = tmp_path / "report.html"
    path = f"onnx/{model.replace('/', '')}.onnx"
    file.write_text(page(contents(model, layer, path)), encoding="utf-8")
    browser.open(file)
    assert [file.as_uri()] == [event["request"]["url"] for event in browser.happened("Network.requestWillBeSent")]
    problems = browser.happened("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown",
                                "Page.javascriptDialogOpening")  # fmt: skip
    assert [] == problems
    browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    for width in (360, 390, 600, 768, 1024, 1280, 1600):
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=True)
        assert (width, width) == (width, browser.evaluate("document.scrollingElement.scrollWidth"))
    plots = browser.evaluate(
        "[...document.querySelectorAll('svg[role=img]')].map(s => [s.querySelector('title').textContent.length > 5,"
        " s.querySelector('desc').textContent.length > 20, s.getBoundingClientRect().height > 100])"
    )
    assert [[True, True, True]] * 2 == plots


@pytest.mark.slow
def test_browser_sees_what_would_be_wrong(browser: Browser, tmp_path: Path) -> None:
    """The twin of the test above: an image, a script error and a wide box are all noticed."""
    file = tmp_path / "wrong.html"
    wide = "<meta name=viewport content='width=device-width'><div style='width:700px'>x</div>"
    file.write_text(f"{wide}<img src='{tmp_path.as_uri()}/a.png'><script>missing()</script>", encoding="utf-8")
    browser.open(file)
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=True)
    assert 2 == len(browser.happened("Network.requestWillBeSent"))
    assert browser.happened("Runtime.exceptionThrown")
    assert browser.evaluate("document.scrollingElement.scrollWidth") > 360


@pytest.mark.slow
def test_dark_light_and_paper(browser: Browser, tmp_path: Path) -> None:
    """Text stands out from its ground in the dark, in the light and on paper, and paper is white."""
    file = tmp_path / "report.html"
    file.write_text(page(contents()), encoding="utf-8")
    browser.open(file)
    grounds = {}
    for scheme, media in (("light", "screen"), ("dark", "screen"), ("dark", "print")):
        browser.call(
            "Emulation.setEmulatedMedia", media=media, features=[{"name": "prefers-color-scheme", "value": scheme}]
        )
        low = browser.evaluate(LEAST_CONTRAST)
        assert low["ratio"] >= 4.5, (scheme, media, low)
        grounds[scheme, media] = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert "rgb(255, 255, 255)" == grounds["dark", "print"]
    assert grounds["dark", "screen"] != grounds["light", "screen"]
    pdf = base64.b64decode(browser.call("Page.printToPDF")["data"])
    assert pdf.startswith(b"%PDF")


# WCAG's contrast of every text with the ground that it stands on.
LEAST_CONTRAST = """(() => {
  const parse = c => c.match(/[\\d.]+/g).map(Number);
  const lum = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((s, v, i) => s + v * [0.2126, 0.7152, 0.0722][i], 0);
  let worst = {ratio: 99};
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) || e.closest('title, desc')) continue;
    let g = e;
    while (g && (p => p.length > 3 && p[3] == 0)(parse(getComputedStyle(g).backgroundColor))) g = g.parentElement;
    const style = getComputedStyle(e), ink = parse(e.closest('svg') ? style.fill : style.color);
    const [a, b] = [lum(ink), lum(parse(getComputedStyle(g).backgroundColor))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < worst.ratio) worst = {ratio, text: e.textContent.slice(0, 40)};
  }
  return worst;
})()"""
