"""The HTML report, JUnit and Markdown."""

import base64
import dataclasses
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from markupsafe import escape
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Origin, Preprocessing, TensorSpec
from coordatt_deploy.bundle import Bundle
from coordatt_deploy.errors import BundleError
from coordatt_deploy.evaluation.result import Changed, DatasetRecord, EvaluationResult, SubjectAccuracy, UnreadableImage
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.host import Host
from coordatt_deploy.manifest import (
    CalibrationRecord,
    FoldReport,
    GoldenCase,
    LoweredBlock,
    LoweringReport,
    Manifest,
    RefusedFile,
    RefusedOperator,
)
from coordatt_deploy.mixed_precision.result import (
    CandidateRecord,
    FormatSearch,
    FormatSensitivity,
    LayerCostRecord,
    LimitVerdict,
    SearchDataset,
    SearchResult,
    Sensitivity,
)
from coordatt_deploy.parity.layers import LayerVerdict
from coordatt_deploy.parity.outputs import OutputParity
from coordatt_deploy.parity.reports import ParityRun, Standing
from coordatt_deploy.parity.result import ArtifactVerdict, GraphVerdict, ParityResult
from coordatt_deploy.parity.tolerances import Tolerance
from coordatt_deploy.profile.instructions import CountedArtifact, InstructionReports, InstructionRun
from coordatt_deploy.profile.noise import Evidence
from coordatt_deploy.profile.result import LatencyRecord, ProfileResult, SettingsRecord
from coordatt_deploy.report.junit import junit
from coordatt_deploy.report.markdown import cell, markdown
from coordatt_deploy.report.page.depth_plot import DepthPoint, depth_plot, stages
from coordatt_deploy.report.page.headline import headline
from coordatt_deploy.report.page.plots import ticks
from coordatt_deploy.report.page.render import Contents, page
from coordatt_deploy.report.write import write_page
from coordatt_deploy.run_records import Covered, NotRun, RunInputs
from coordatt_deploy.runtimes.file_graph import OperatorCount

HOSTILE = "<script>alert('x')</script>\"><img src=//evil.example/a.png onerror=fetch('//evil')>&amp;\u202eexe|`*_x_*`"
# An ending without a slash, so that it is still there in the last part of a path.
TAIL = "<script>'\"&"
WHERE_THERE_IS_ROOM = {"wbr", "text"}  # breaks in names, and names below the axis of a plot, depend on their length
CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")


def artifact(path: str, kind: Format = Format.ONNX) -> Artifact:
    image = TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW")
    return Artifact(path, kind, Precision.FP32, None, None, 1_234_567, "ab" * 32, (image,), (image,), f"{path}.json")


def manifest(name: str, *artifacts: Artifact) -> Manifest:
    spec = ModelSpec(name, Preprocessing((8, 8)), attention="coordatt", source_sha256="cd" * 32)
    fold = FoldReport(3, 2e-8, ())
    versions = {"torch": "2.13.0"}
    golden = (GoldenCase("noise"),)
    return Manifest(spec, (), (), artifacts, golden, fold=fold, tool_versions=versions, command="deploy me")


def row(layer: str, db: float | None = 130.0, *, passed: bool | None = True, note: str | None = None) -> LayerVerdict:
    error = None if db is None else 1e-6
    return LayerVerdict(
        layer_id=layer, operator="conv2d", sqnr_db=db, max_abs_error=error, local_sqnr_db=db,
        local_max_abs_error=error, local_allowed=1e-5, excess=None, local_excess=None, max_steps=None,
        local_max_steps=None, probe_max_abs_error=None, probe_allowed=None, exact=False, nonfinite=0, passed=passed,
        evidence=None, inherits=False, seen_through=None, note=note,
    )  # fmt: skip


def verdict(path: str, *layers: LayerVerdict) -> ArtifactVerdict:
    first = next((item.layer_id for item in layers if item.passed is False), None)
    output = OutputParity(
        name="logits", passed=first is None, max_abs_error=2e-6, allowed=4e-5, worst_case=0, worst_index=(0,),
        mismatched=0, elements=10, sqnr_db=120.0, cosine=1.0, top1_agreement=1.0, nonfinite=0,
    )  # fmt: skip
    return ArtifactVerdict(
        path=path, sha256="ab" * 32, format=Format.ONNX, precision=Precision.FP32, recipe=None, target_cpu=None,
        runtime="onnxruntime 1.2", origin=Origin.MEASURED, passed=first is None,
        problem=None if first is None else f"first beyond tolerance at {first}", max_abs_error=2e-6,
        allowed=4e-5, sqnr_db=120.0, top1_agreement=1.0,
        tolerance=Tolerance(16.0, Precision.FP32, "sums in another order"), outputs=(output,),
        first_diverging_layer=first, summary=f"{path}: all layers within tolerance", marked_difference=0.0,
        layers=layers,
    )  # fmt: skip


def parity(*items: ArtifactVerdict) -> ParityResult:
    return ParityResult(all(item.passed for item in items), None, ("noise",), items)


def profile(path: str) -> ProfileResult:
    samples = (*(1_000_000 + 7_919 * index % 400_000 for index in range(300)), 30_000_000)
    result = LatencyRecord(
        path=path, format=Format.ONNX, precision=Precision.FP32, target_cpu=None, runtime="onnxruntime 1.2",
        origin=Origin.MEASURED, threads=1, median_ms=1.2, p90_ms=1.3, p95_ms=1.3, p99_ms=1.4, iqr_ms=0.1,
        ci95_ms=(1.19, 1.21), verdict="noisy", reason="spread", load_ms=3.0, first_inference_ms=2.0,
        peak_memory_bytes=9_000_000, warning=None, samples_ns=samples, warmups_ns=(), samples_per_round=43,
        openings=7, lost_ns=(None,) * 301, evidence=Evidence(),
    )  # fmt: skip
    host = Host(HOSTILE, "x86_64", ("avx",), 2, 2, "Debian", "3.11", {})
    settings = SettingsRecord((1,), 5, 301, 7, 0.5, (), 0)
    return ProfileResult(host, settings, (result,), ())


def accuracy(path: str) -> EvaluationResult:
    subject = SubjectAccuracy(
        name=path, path=path, sha256="ab" * 32, format=Format.ONNX, precision=Precision.FP32, recipe=None,
        target_cpu=None, runtime="onnxruntime 1.2", origin=Origin.MEASURED, correct=9, top1=0.9, correct_top5=10,
        top5=1.0, difference_points=-1.0, interval_points=(-2.0, 0.5), p_value=0.5, lost=1, gained=0, agreement=0.9,
        sqnr_db=40.0, exact=False, nonfinite=0, changed=(Changed("b.png", 1, 1, 2),), passed=False,
        problem="one point was lost", warning="another machine may differ",
    )  # fmt: skip
    images = DatasetRecord("digits", 10, 11, 10, "names", (UnreadableImage("a.png", "truncated"),))
    return EvaluationResult(False, 0.5, None, images, "reference", 0.95, (subject,), notes=("grey images",))


def contents(name: str = "net", layer: str = "features.3", path: str = "onnx/net_fp32.onnx") -> Contents:
    layers = [row(f"{layer}.{index}", 130.0 - index) for index in range(40)]
    layers[20] = row(f"{layer}.20", 20.0, passed=False, note=name)
    layers[25] = row(f"{layer}.25", None, passed=None, note="absent: " + name)
    layers[30] = replace(row(f"{layer}.30", None), max_abs_error=0.0, local_max_abs_error=0.0)
    return Contents(
        manifest(name, artifact(path)),
        name,
        parity(verdict(path, *layers)),
        profile(path),
        {path: OperatorCount({name: 3}, name)},
        f"Made by {name}",
    )


def parity_of(found: Contents) -> ParityResult:
    assert found.parity is not None
    return found.parity


def everything() -> Contents:
    """Contents whose every field of the page says something."""
    found = contents()
    assert found.parity is not None
    assert found.profile is not None
    (file,), (timed,) = found.parity.artifacts, found.profile.results
    judged = replace(
        file,
        recipe="static_wi8_ai8",
        warning="saturates here",
        layers_problem="no map",
        marked_difference=1e-7,
        outputs=(replace(file.outputs[0], name="logits"),),
        layers=(*file.layers[:-1], replace(file.layers[-1], seen_through="features.9", inherits=True, note="late")),
    )
    unrun = replace(file, path="onnx/other.onnx", runtime="", origin=None, passed=None, outputs=(), layers=(),
                    layers_problem="not installed", problem="not installed", summary=None)  # fmt: skip
    graph = GraphVerdict("folded", "features.3.20", False, None, None, None, "off at features.3.20", file.layers)
    spec = replace(found.manifest.model, labels=("zero", "one"))
    return replace(
        found,
        manifest=replace(
            found.manifest,
            model=spec,
            artifacts=(*found.manifest.artifacts, replace(artifact("onnx/other.onnx"), recipe="dynamic")),
            notes=("an axis was renamed",),
        ),
        parity=replace(found.parity, artifacts=(judged, unrun), graphs=(graph,), skipped=(NotRun("a.onnx", "slow"),)),
        profile=replace(
            found.profile,
            host=replace(found.profile.host, container="docker", board="Pi", versions={"onnx": "1.2"}),
            results=(replace(timed, warning="saturates here"),),
        ),
        accuracy=(accuracy("onnx/net_fp32.onnx"),),
        standings=(Standing("onnx/net_fp32.onnx", further=(emulated(judged),)),),
        instructions={"qemu-arm64:cortex-a53": InstructionReports((counted("onnx/net_fp32.onnx"),))},
        sensitivity=Sensitivity(
            "static_wi8_ai8", CalibrationRecord("photos", 8, 0, "ab"), 8,
            (FormatSensitivity(Format.ONNX, None, 20.0, (
                LayerCostRecord("features.7", ("features.7",), "conv2d", 30.0, 0.5, 1.0, 29.0),)),),
        ),
        search=SearchResult(
            reached=True, max_drop_points=0.5, recipe="static_wi8_ai8", dataset=SearchDataset("validation", 90, ()),
            results=(FormatSearch(Format.ONNX, None, "onnx/a.onnx", True, ("features.8",), 9, -0.2, (-0.4, 0.1),
                                  "reports/recipe.json", ()),),
        ),
        commands=("measure me",),
    )  # fmt: skip


def emulated(file: ArtifactVerdict) -> ParityRun:
    return ParityRun(
        kind="parity", artifact=file.path, sha256=file.sha256, place="qemu-arm64:cortex-a72",
        inputs=RunInputs("street photos", 4), covered=Covered(1), tool_versions={}, time="2026-01-01", result=file,
    )  # fmt: skip


def counted(path: str) -> InstructionRun:
    result = CountedArtifact(
        path, Format.ONNX, Precision.FP32, None, None, "onnxruntime on a box", Origin.EMULATED, 7_000_000,
        {"fmla": 3_000_000}, (7_000_000,), 0.0,
    )  # fmt: skip
    return InstructionRun(
        kind="instructions", artifact=path, sha256="ab", place="qemu-arm64:cortex-a53", inputs=RunInputs("golden", 1),
        covered=Covered(), tool_versions={}, time="2026-01-01", result=result,
    )  # fmt: skip


@dataclass
class Poison:
    """Puts a tag at the end of every text below a value, and remembers the texts."""

    texts: list[str] = field(default_factory=list)

    def __call__(self, value: object) -> object:
        if type(value) is str:
            self.texts.append(f"{value}{TAIL}")
            return self.texts[-1]
        if isinstance(value, Preprocessing):  # its texts are held to a list of words
            return value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            fields = [item.name for item in dataclasses.fields(value)]
            return replace(value, **{name: self(getattr(value, name)) for name in fields})
        if isinstance(value, tuple):
            return tuple(self(item) for item in value)
        return {self(key): self(item) for key, item in value.items()} if isinstance(value, Mapping) else value


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


def test_the_attention_that_was_recognised_stands_in_the_headline():
    """
    Of a network that nobody said anything of, the kinds that lowering found; none where there are none.
    """
    path = "onnx/a.onnx"
    blocks = tuple(LoweredBlock(f"block.{index}", kind, 16, None, 8, 8, "four_axes")
                   for index, kind in enumerate(("eca", "triplet", "eca")))  # fmt: skip
    unsaid = replace(manifest("net", artifact(path)), model=ModelSpec("net", Preprocessing((8, 8))))
    found = replace(unsaid, lowering={path: LoweringReport("onnx-arm64", blocks, (), {}, 0.0, "")})

    assert "attention: none" in headline(unsaid, None).facts
    assert "attention: eca, triplet" in headline(found, None).facts


def test_hostile_names_stay_text() -> None:
    """A model, layer, file and operator named like markup add not one tag or attribute to the page."""
    tame = Structure(page(contents()))
    wild = Structure(page(contents(HOSTILE, HOSTILE, f"onnx/{HOSTILE.replace('/', '')}.onnx")))
    tags = [tag for tag, _ in tame.tags if tag not in WHERE_THERE_IS_ROOM]
    assert tags == [tag for tag, _ in wild.tags if tag not in WHERE_THERE_IS_ROOM]
    assert {tag for tag, _ in wild.tags}.isdisjoint({"script", "img", "iframe", "object", "form", "input"})
    assert not [key for _, attrs in wild.tags for key in attrs if key.startswith("on") or key == "src"]
    assert "<script>alert('x')</script>" in "".join(wild.words)


def test_no_text_of_manifest_or_results_is_markup() -> None:
    """A tag in every text field of the manifest and of all results stays text."""
    poison = Poison()
    wild = poison(everything())
    assert isinstance(wild, Contents)
    text = page(wild)
    assert len(poison.texts) > 100
    assert [] == re.findall("(?i)<script", text)
    tags = [tag for tag, _ in Structure(page(everything())).tags if tag not in WHERE_THERE_IS_ROOM]
    assert tags == [tag for tag, _ in Structure(text).tags if tag not in WHERE_THERE_IS_ROOM]
    words = "".join(Structure(text).words)
    said = ("net", "coordatt", "deploy me", "torch", "2.13.0", "static_wi8_ai8", "Saturates here", "Not installed",
            "sums in another order", "logits", "folded", "features.3.20", "features.9", "late", "docker", "avx",
            "digits", "a.png", "grey images", "one point was lost", "another machine may differ", "Spread",
            "onnxruntime 1.2", "dynamic", "Made by net", "qemu-arm64:cortex-a72", "inputs of street photos",
            "features.7", "features.8", "validation", "measure me")  # fmt: skip
    assert [] == [name for name in said if f"{name}{TAIL}" not in words]


def test_no_figure_that_is_a_text_is_markup() -> None:
    """Not even a text where a count is expected, which types alone would keep out, adds a tag."""
    found = everything()
    (scored,) = found.accuracy
    assert found.manifest.fold is not None
    fold = replace(found.manifest.fold, folded=HOSTILE)  # type: ignore[arg-type]
    images = replace(scored.dataset, classes=HOSTILE)  # type: ignore[arg-type]
    wild = replace(found, manifest=replace(found.manifest, fold=fold), accuracy=(replace(scored, dataset=images),))
    text = page(wild)
    assert [tag for tag, _ in Structure(page(found)).tags] == [tag for tag, _ in Structure(text).tags]
    words = "".join(Structure(text).words)
    assert f"{HOSTILE} BatchNorms were folded" in words
    assert f"in {HOSTILE} classes" in words


def test_what_other_commands_found_is_on_the_page() -> None:
    """Verdicts under emulation, instructions, what int8 costs by layer, and how the search ended."""
    words = " ".join(" ".join(Structure(page(everything())).words).split())
    for text in ("Further parity runs", "qemu-arm64:cortex-a72", "Instructions on other CPUs", "7.0 1.000 3.0",
                 "What int8 costs by layer", "30.0 dB 29.0 dB 50.0% 100.0%", "holds 1 of 9 -0.20"):  # fmt: skip
        assert text in words


def weighed_search(name: str = "w4") -> SearchResult:
    files = (
        CandidateRecord("fp32", "onnx/net_fp32.onnx", None, (), 2_000_000, 0.0, (-1.0, 1.0),
                        verdict=LimitVerdict.EXCEEDS, reasons=("2,000,000 bytes are 2.00 × 1MB",), pareto=True),
        CandidateRecord(name, "onnx/net_w4.onnx", name, (), 600_000, -0.5, (-1.5, 0.5), latency_ms=1.0,
                        latency_ratio=0.5, ratio_interval=(0.45, 0.55), pareto=True, chosen=True),
    )  # fmt: skip
    result = FormatSearch(Format.ONNX, None, "onnx/net_w4.onnx", True, (), 0, -0.5, None, None, (), candidates=files)
    return SearchResult(True, None, "any", SearchDataset("validation", 90, ()), (result,), max_size="1MB")


def test_what_was_weighed_is_a_table_and_a_plot() -> None:
    """Each file with its verdict; the plot tells its figures in words, and hostile names stay text."""
    text = page(replace(everything(), search=weighed_search(HOSTILE)))
    words = " ".join("".join(Structure(text).words).split())

    assert "onnx: size at most 1MB: reached" in words
    assert "2,000,000 bytes are 2.00 × 1MB" in words
    assert "0.450 … 0.550" in words
    assert "Accuracy against size, onnx" in text
    assert HOSTILE in words
    assert HOSTILE not in text


def test_each_dataset_has_its_table() -> None:
    """A run on a few images does not take the place of one on all of them."""
    (scored,) = everything().accuracy
    few = replace(scored, dataset=replace(scored.dataset, images=3, source="three digits"))
    text = page(replace(everything(), accuracy=(few, scored)))
    assert 2 == text.count("Accuracy on labelled images")
    assert text.index("3 images of three digits") < text.index("10 images of digits")


def test_repeat_it_holds_every_command_that_was_typed() -> None:
    """Those that wrote files, those that judged them, each once, and the one that makes the page."""
    found = everything()
    made = replace(found.manifest, commands=("coordatt-deploy build", "coordatt-deploy quantize net"))
    judged = ("coordatt-deploy build", "coordatt-deploy evaluate net --dataset photos")
    text = page(replace(found, manifest=made, commands=judged))
    repeat = text[text.index("Repeat it") :]
    lines = ["coordatt-deploy build", "coordatt-deploy quantize net", judged[1], "coordatt-deploy report net"]
    assert "\n".join(lines) in repeat


def test_texts_of_a_plot_are_escaped_and_the_plot_is_not() -> None:
    """A plot is markup to a template; what it is told of is not."""
    plot = depth_plot(1, HOSTILE, HOSTILE, [DepthPoint(TAIL, 20.0, None, False)], TAIL)
    assert plot == plot.__html__()
    assert ["svg", "title", "desc"] == [tag for tag, _ in Structure(plot).tags][:3]
    assert {"script", "img"}.isdisjoint(tag for tag, _ in Structure(plot).tags)


def test_page_refers_to_nothing_outside() -> None:
    """No address, import or link but the empty icon and those to the page's own sections, which are there."""
    text = page(contents()).replace(str(escape(HOSTILE)), "")
    assert [] == re.findall(r"https?:|url\(|@import|//\w", text)
    tags = Structure(text).tags
    icon, *links = [attrs["href"] for _, attrs in tags if "href" in attrs]
    assert "data:," == icon
    assert [f"#{attrs['id']}" for tag, attrs in tags if tag == "section" and "id" in attrs] == links


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
    assert words.index("The file does not compute") < words.index("First beyond tolerance at features.3.20")
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


def test_the_summary_has_a_row_for_every_file() -> None:
    """Each of the manifest, judged or not, and each that could not be written, in this order, the operator with it."""
    found = everything()
    gap = RefusedOperator(
        operator="stft", layer="features.9", line="net.py:7", reason="TFLite has none", remedy="use convolutions"
    )
    refused = RefusedFile("tflite/net.tflite", Format.TFLITE, "fp32", "it cannot", operators=(gap,))
    text = page(replace(found, manifest=replace(found.manifest, refused=(refused,))))
    table = text[text.index('<table class="summary">') :].partition("</table>")[0]
    bodies = re.split('<tbody class="file(?: wrong)?">', table)[1:]
    words = [" ".join(" ".join(Structure(body).words).split()) for body in bodies]
    starts = ("onnx fp32 net_fp32.onnx", "onnx dynamic other.onnx", "tflite fp32 net.tflite")
    assert [True] * 3 == [row.replace("_ ", "_").startswith(start) for row, start in zip(words, starts, strict=True)]
    for row, said in zip(words, ("1.23 MB 120.0 dB", "not run", "not written"), strict=True):
        assert said in row
    assert "stft in features.9 at net.py:7: TFLite has none; use convolutions" in words[2]


def test_the_summary_says_why_a_file_failed_once() -> None:
    """Below its figures; a file that passed needs no words."""
    passed = verdict("onnx/net_fp32.onnx", row("features.3"))
    fine = page(replace(contents(), parity=parity(passed)))
    wrong = page(contents())
    assert 'class="why"' not in fine
    assert 1 == wrong.partition("What each verdict rests on")[0].count("irst beyond tolerance at features.3.20")


def test_artifacts_come_before_torch_graphs() -> None:
    """The graphs between the captured network and the files are folded away."""
    text = page(everything())
    depth = text[text.index('<section id="depth">') : text.index('<section id="outputs">')]
    assert depth.index("SQNR along the depth of onnx") < depth.index("<details>")
    assert depth.index("1 torch graph between") < depth.index("SQNR along the depth of folded")


def test_an_evaluators_samples_are_not_plotted() -> None:
    """Three calls of what is no runtime; the table has the figures and the page says why there is no plot."""
    found = contents()
    assert found.profile is not None
    (timed,) = found.profile.results
    evaluated = replace(timed, origin=Origin.EVALUATED, samples_ns=(1, 2, 3))
    text = page(replace(found, profile=replace(found.profile, results=(evaluated,))))
    assert "Latency of net" not in text
    assert "1 file was run by an evaluator" in text
    assert "1.200" in text[text.index('<section id="latency">') :]


def test_size_latency_and_error_stand_in_one_plot() -> None:
    """Of files that were timed on their runtime and judged, two at least; its discs say what they are."""
    paths = ("onnx/net_fp32.onnx", "tflite/net_fp32.tflite")
    found = contents()
    files = (artifact(paths[0]), replace(artifact(paths[1], Format.TFLITE), bytes=400_000))
    both = parity(verdict(paths[0], row("a")), replace(verdict(paths[1], row("a")), format=Format.TFLITE, sqnr_db=40.0))
    timed = [replace(profile(path).results[0], path=path) for path in paths]
    assert found.profile is not None
    measured = replace(found.profile, results=tuple(timed))
    text = page(replace(found, manifest=manifest("net", *files), parity=both, profile=measured))
    plot = text[text.index("Size, latency and error</bdi></h3>") :].partition("</figure>")[0]
    discs = [float(attrs["r"] or 0) for tag, attrs in Structure(plot).tags if tag == "circle"]
    assert 2 == len(discs)
    assert abs(discs[1] / discs[0] - (400_000 / 1_234_567) ** 0.5) < 0.01
    assert "<title>tflite fp32: 0.40 MB, 1.2 ms, SQNR 40.0 dB, passed</title>" in plot
    assert "Size, latency and error</bdi></h3>" not in page(found)


def test_a_plot_of_layers_has_its_own_scale_the_limit_stages_and_words() -> None:
    """Int8 files fill their plot as float files do; who points at a layer reads what was found there."""
    layers = [f"features.{stage}.conv.{index}" for stage in range(12) for index in range(4)]

    def drawn(level: float) -> str:
        points = [DepthPoint(name, level + at % 7, level + 5.0, True, 0.1, 0.05) for at, name in enumerate(layers)]
        return str(depth_plot(1, "t", "d", points, None))

    def curve(plot: str) -> list[float]:
        shape = re.search(r'class="curve" d="([^"]+)"', plot)
        assert shape
        return [float(value) for value in re.findall(r" ([\d.]+)", shape[1])]

    assert curve(drawn(120.0)) == curve(drawn(30.0))
    assert max(curve(drawn(30.0))) - min(curve(drawn(30.0))) > 80
    plot = drawn(30.0)
    assert 1 == plot.count('class="limit"')
    assert "error over what is allowed" in plot
    assert "<title>features.3.conv.1: whole 36.0 dB, alone 35.0 dB, 0.05 of what is allowed</title>" in plot
    assert all(f">{stage}</text>" in plot for stage in range(12))
    assert "features.0 to features.11" in plot


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (("stem.0", "a.0", "b.0", "head"), [("stem", 0), ("a", 1), ("b", 2), ("head", 3)]),
        (("f.0.a", "f.0.b", "f.1.a", "f.2.a", "f.2.b", "f.2:add"), [("f.0.a", 0), ("f.0.b", 1)]),
        (("stem", "b.0.a", ":add", "b.1.a", ":add_1", "b.2.a", "head"), [("stem", 0), ("b.0", 1), ("b.1", 3)]),
    ],
)
def test_stages_are_what_begins_alike(layers: tuple[str, ...], expected: list[tuple[str, int]]) -> None:
    """By as few parts of the name as divide the network."""
    assert expected == stages(layers)[: len(expected)]


@pytest.mark.parametrize("broken", [{"artifacts": 3}, {"artifacts": [{}]}, {}, {"artifacts": [{"path": 1}]}])
def test_damaged_document_is_refused(tmp_path: Path, broken: dict[str, object]) -> None:
    """A document that does not fit says which command writes it again."""
    (tmp_path / "reports").mkdir()
    document = {"schema_version": 1, "passed": True, "target": None, "cases": []} | broken
    (tmp_path / "reports/parity.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(BundleError, match="coordatt-deploy parity"):
        write_page(Bundle(tmp_path, manifest("net")))


def test_figures_that_cannot_be_are_refused() -> None:
    """A latency without a sample says which commands write it again."""
    found = contents()
    assert found.profile is not None
    empty = replace(found.profile, results=(replace(found.profile.results[0], samples_ns=()),))
    with pytest.raises(BundleError, match="coordatt-deploy profile"):
        page(replace(found, profile=empty))


def test_ticks_are_round_and_within() -> None:
    """Scales of any size get a few round numbers."""
    assert [0.0, 50.0, 100.0, 150.0] == ticks(0, 153, 4)
    assert [0.2, 0.4] == ticks(0.11, 0.55, 3)


def test_junit_counts_and_names() -> None:
    """Failures, skips and passes are counted per suite; the failing case is the layer."""
    root = ElementTree.fromstring(junit(parity_of(contents())))  # noqa: S314 - written by this test
    assert {"tests": "42", "failures": "3", "skipped": "1"} == {
        k: root.attrib[k] for k in ("tests", "failures", "skipped")
    }
    failed = [case.attrib["name"] for case in root.iter("testcase") if case.find("failure") is not None]
    assert ["verdict", "logits", "features.3.20"] == failed


def test_junit_survives_what_xml_cannot_hold() -> None:
    """Control characters and lone surrogates in names give well-formed XML."""
    bad = f"{HOSTILE}\x00\x1b[31m\ud800\ufffe"
    text = junit(parity(verdict(bad, row(bad))))
    root = ElementTree.fromstring(text.encode())  # noqa: S314 - written by this test
    assert 1 == len(list(root.iter("testsuite")))


def test_markdown_cells_stay_cells() -> None:
    """A hostile name breaks no table and makes no markup."""
    text = markdown(parity(verdict(HOSTILE + "\n| a | b |", row("x"))), HOSTILE)
    (line,) = [line for line in text.splitlines() if "passed |" in line]
    assert 8 == len(re.findall(r"(?<!\\)\|", line))
    assert "<img" not in text
    assert r"a\_b" == cell("a_b")
    assert r"&lt;b&gt; &amp; \\\[x\]" == cell(r"<b> & \[x]")  # each letter once: an escape is not escaped again


class Browser:
    """Headless Chromium, driven through its driver."""

    def __init__(self, folder: str) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for flag in ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run",
                     "disable-background-networking", "disable-component-update", "disable-sync",
                     f"user-data-dir={folder}"):  # fmt: skip
            options.add_argument(f"--{flag}")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        self.driver = webdriver.Chrome(options, Service(CHROMEDRIVER))

    def open(self, path: Path) -> None:
        """Load a file to its end; what happened before is forgotten."""
        self.driver.get("about:blank")  # ends what the page before, or the browser's own first page, still loads
        for kind in ("performance", "browser"):
            self.driver.get_log(kind)
        self.driver.get(path.as_uri())
        self.events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        self.problems = self.driver.get_log("browser")

    def call(self, method: str, **params: object) -> Mapping[str, str]:
        """Call a method of the DevTools protocol."""
        result: Mapping[str, str] = self.driver.execute_cdp_cmd(method, params)
        return result

    def evaluate(self, expression: str) -> object:
        result: object = self.driver.execute_script(f"return {expression}")
        return result

    def requested(self) -> list[str]:
        """Return every address that the page asked for."""
        return [
            event["params"]["request"]["url"] for event in self.events if event["method"] == "Network.requestWillBeSent"
        ]

    def dialogs(self) -> list[str]:
        return [event["method"] for event in self.events if event["method"] == "Page.javascriptDialogOpening"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None or CHROMEDRIVER is None:
        pytest.skip("chromium and its driver are not installed; run: make system-packages")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        started = Browser(folder)
        yield started
        started.driver.quit()


@pytest.mark.slow
@pytest.mark.parametrize("words", [("net", "features.3"), (HOSTILE, HOSTILE), ("n" * 300, "l" * 300)])
def test_page_in_a_browser(browser: Browser, tmp_path: Path, words: tuple[str, str]) -> None:
    """Nothing but the file is fetched, no script runs, nothing is logged, nothing sticks out from 360 to 1600 px."""
    model, layer = words
    file = tmp_path / "report.html"
    path = f"onnx/{model.replace('/', '')}.onnx"
    file.write_text(page(contents(model, layer, path)), encoding="utf-8")
    browser.open(file)
    assert [file.as_uri()] == browser.requested()
    assert ([], []) == (browser.problems, browser.dialogs())
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
def test_nothing_is_wider_than_a_phone_or_a_sheet(browser: Browser, tmp_path: Path) -> None:
    """No part of the page with all its sections, but what scrolls in a box of its own; paper has no navigation."""
    file = tmp_path / "report.html"
    file.write_text(page(everything()), encoding="utf-8")
    browser.open(file)
    for media, width in (("screen", 390), ("print", 690)):
        browser.call("Emulation.setEmulatedMedia", media=media)
        browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=True)
        assert [] == browser.evaluate(WIDER)
    assert "none" == browser.evaluate("getComputedStyle(document.querySelector('nav')).display")
    assert "none" != browser.evaluate("getComputedStyle(document.querySelector('.summary thead')).display")
    browser.call("Emulation.setEmulatedMedia", media="screen")


# Elements that stick out of the window, those inside a box that scrolls left out.
WIDER = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, nav ul'))
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => e.outerHTML.slice(0, 80))"""


@pytest.mark.slow
def test_browser_sees_what_would_be_wrong(browser: Browser, tmp_path: Path) -> None:
    """The twin of the test above: an image, a script error and a wide box are all noticed."""
    file = tmp_path / "wrong.html"
    wide = "<meta name=viewport content='width=device-width'><div style='width:700px'>x</div>"
    file.write_text(f"{wide}<img src='{tmp_path.as_uri()}/a.png'><script>missing()</script>", encoding="utf-8")
    browser.open(file)
    browser.call("Emulation.setDeviceMetricsOverride", width=360, height=800, deviceScaleFactor=1, mobile=True)
    assert [file.as_uri(), f"{tmp_path.as_uri()}/a.png"] == browser.requested()
    assert "missing is not defined" in " ".join(entry["message"] for entry in browser.problems)
    width = browser.evaluate("document.scrollingElement.scrollWidth")
    assert isinstance(width, int)
    assert width > 360


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
        assert isinstance(low, dict)
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
