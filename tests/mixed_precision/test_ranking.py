"""What int8 costs layer by layer, and the search for the fewest layers that must stay in float."""

import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from dask_cluster import LoopbackCluster
from exact_sums import exact_sums_of
from PIL import Image
from pixel_colours import mask_bundle, mask_folder

from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.cli import main
from coordatt_deploy.conversion.plan import QuantizePlan
from coordatt_deploy.data.calibration import CalibrationSet
from coordatt_deploy.data.images import preprocess
from coordatt_deploy.errors import UsageError
from coordatt_deploy.exporters import quantizer
from coordatt_deploy.formats import Format, TargetCpu
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import prepare
from coordatt_deploy.graph.graph import op_name
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.graph.saved_graph import load_graph
from coordatt_deploy.host import describe
from coordatt_deploy.layer_map import Layer, LayerMap, Part
from coordatt_deploy.mixed_precision import ranking
from coordatt_deploy.mixed_precision.ranking import Bench, predicted_db, rank_layers
from coordatt_deploy.progress import Stages
from coordatt_deploy.quantization.recipes import kept_in_float, parse
from coordatt_deploy.quantization.sensitivity import rank, units
from coordatt_deploy.runtimes.onnx import runner as onnx_runner
from coordatt_deploy.runtimes.reader import count_operators

STATIC = parse("static_wi8_ai8")
SIZE = (3, 32, 48)
TARGETS = [
    (Format.TFLITE, None),
    (Format.ONNX, TargetCpu.ARM64),
    (Format.ONNX, TargetCpu.X86_64),
    (Format.COREML, None),
]

# A network of which one layer cannot be int8: an input channel that is always 0 has weights so great that the step
# which covers them leaves nothing of the others, whatever equalisation does. In float they do not matter.
MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, spoilt, single):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU6())
        self.filter = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16), nn.ReLU6())
        self.mix = nn.Sequential(nn.Conv2d(16, 160, 1), nn.ReLU6())
        self.head = nn.Linear(3 if single else 160, 4)
        self.single = single
        self.eval()
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
            spoil = self.head if single else self.mix[0]
            if spoilt:
                self.filter[0].weight[0] = 0
                self.filter[0].bias[0] = 0
                spoil.weight[:, 0] = 150.0 if single else 3e4
            if single:
                spoil.weight[:, 0] += torch.arange(4.0) * 0.4
            colours = torch.rand(256, 3, 1, 1, generator=generator).expand(-1, -1, 32, 32) * 2 - 1
            logits = self.forward(colours)
            self.head.bias -= logits.mean(0)  # so that every class is named
            if not single:
                self.head.weight /= logits.std(0)[:, None]
                self.head.bias /= logits.std(0)

    def forward(self, image):
        if self.single:
            return self.head(image.mean((2, 3)))
        return self.head(self.mix(self.filter(self.stem(image))).mean((2, 3)))


def net(spoilt=True, single=False):
    return Net(spoilt, single).eval()
"""


def data(count=12, shape=SIZE, name="image"):
    values = np.random.default_rng(0).uniform(-1, 1, (count, *shape)).astype(np.float32)
    return CalibrationSet("noise", {name: values}, tuple(map(str, range(count))), 0)


def lowered(module, kind_, cpu):
    graph = fold_batchnorms(capture(module, (torch.zeros(1, *SIZE),)))[0]
    return lower(graph, target_of(kind_, cpu))[0]


# units and their ranking


@pytest.mark.parametrize(("kind_", "cpu"), TARGETS)
def test_every_computation_is_in_one_unit_that_a_recipe_can_name(tiny, kind_, cpu):
    """
    In every runtime's form nothing is left out and nothing counts twice; what no layer stands for joins one.
    """
    graph = lowered(tiny, kind_, cpu)
    found = units(graph)
    nodes = [name for unit in found for name in unit.nodes]
    computing = {
        node.name for node in graph.module.graph.nodes
        if op_name(node) in {"conv2d", "linear", "mean", "mul", "add", "sigmoid", "matmul"}
    }  # fmt: skip
    known = {layer.layer_id for layer in graph.layers.layers}

    assert len(nodes) == len(set(nodes))
    assert computing <= set(nodes)
    assert [("image", ())] == [(unit.name, unit.layers) for unit in found if not unit.layers]
    assert {layer for unit in found for layer in unit.layers} <= known


def test_a_convolution_goes_by_its_own_name_with_its_activation(tiny):
    """
    The folded BatchNorm and the fused ReLU6 are no layers of their own.
    """
    names = {unit.name: unit for unit in units(lowered(tiny, Format.TFLITE, None))}

    assert ("stem.0", "stem.2") == names["stem.0"].layers
    assert not {"stem.1", "stem.2"} & set(names)


def test_core_ml_ranks_what_core_ml_quantizes(tiny):
    """
    Its quantizer leaves products and gates in float: they are no candidates there.
    """
    graph = lowered(tiny, Format.COREML, None)
    every, integer = (units(graph, kinds) for kinds in (None, quantizer(Format.COREML).integer_operators()))

    assert {unit.name for unit in integer} < {unit.name for unit in every}
    assert not [unit.name for unit in integer if "sigmoid" in unit.name]


def spoilt(tiny):
    """The network with a projection that int8 cannot hold: see MODEL."""
    net = copy.deepcopy(tiny)
    with torch.no_grad():
        net.block[1].weight[0] = 0
        net.block[1].bias[0] = 0
        net.block[4].weight[:, 0] = 300.0
    return net


@pytest.mark.parametrize(("kind_", "cpu"), TARGETS)
def test_the_spoilt_layer_is_ranked_first(tiny, kind_, cpu):
    """
    In every form, by far; without the fault it is not.
    """
    costs = rank(lowered(spoilt(tiny), kind_, cpu), data(), integer=quantizer(kind_).integer_operators())
    sound = rank(lowered(tiny, kind_, cpu), data(), integer=quantizer(kind_).integer_operators())

    assert "block.4" == costs[0].name
    assert costs[0].sqnr_db < costs[1].sqnr_db - 10
    assert costs[0].share > 0.9
    assert min(cost.sqnr_db for cost in sound) > costs[0].sqnr_db + 10
    assert math.isclose(1.0, sum(cost.share for cost in costs))


def test_ranking_repeats_and_more_levels_cost_less(tiny):
    """
    The same figures in every run; weights of seven bits cost more than weights of eight.
    """
    graph = lowered(tiny, Format.TFLITE, None)
    first, again, coarse = rank(graph, data()), rank(graph, data()), rank(graph, data(), levels=64)

    assert first == again
    assert predicted_db(coarse) < predicted_db(first)


def test_operators_between_kept_layers_stay_in_float():
    """
    One that is no layer's follows its readers; one that an int8 operator reads as well does not.
    """
    layers = LayerMap(tuple(Layer(name, "op", (1,), (Part(name),)) for name in ("a", "b", "c")))
    chain = [(["x"], ["a"]), (["a"], ["helper"]), (["helper"], ["b"]), (["b"], ["c"])]
    shared = [*chain[:3], (["helper"], ["c"])]

    assert {"a", "b", "helper"} == kept_in_float(("a", "b"), layers, chain)
    assert {"a", "b"} == kept_in_float(("a", "b"), layers, shared)
    assert set() == kept_in_float((), layers, chain)
    with pytest.raises(UsageError, match="no such layer"):
        kept_in_float(("d",), layers, chain)


# with real converters


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def build(folder, *formats, **options):
    """Export MODEL; returns the bundle's folder."""
    (folder / "net.py").write_text(MODEL)
    chosen = [part for name in formats for part in ("--format", name)]
    arguments = (
        "--model-args",
        json.dumps(options),
        "--input-size",
        32,
        "--mean",
        "0.5,0.5,0.5",
        "--std",
        "0.5,0.5,0.5",
    )
    result = run("export", "--model", f"{folder}/net.py:net", *arguments, *chosen, "--output-dir", folder / "bundle")
    assert 0 == result.exit_code, result.output
    return folder / "bundle"


def photos(folder, root, each=12):
    """Colourful images, each in the folder of the class that the float network gives it: its accuracy is 100 %.

    No class has more than *each*, so that a network which names one class for all of them fails.
    """
    bundle = open_bundle(root)
    call = prepare(load_graph(bundle.path("reference")))
    generator = np.random.default_rng(0)
    found = {}
    for _ in range(200):
        tiles = generator.integers(0, 256, (4, 4, 3), dtype=np.uint8) // 2 + generator.integers(0, 128, 3, np.uint8)
        image = Image.fromarray(tiles).resize((32, 32), Image.Resampling.NEAREST)
        logits = call({"image": preprocess(image, bundle.manifest.model.preprocessing)[None]})["logits"]
        found.setdefault(int(logits.argmax()), []).append(image)
    assert sum(len(images) >= each for images in found.values()) >= 2
    for label, images in found.items():
        place = folder / "photos" / str(label)
        place.mkdir(parents=True)
        for index, image in enumerate(images[:each]):
            image.save(place / f"{index:03d}.png")
    return folder / "photos"


@pytest.fixture(scope="module")
def onnx_bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spoilt")
    root = build(folder, "onnx")
    return root, photos(folder, root)


@pytest.mark.slow
def test_search_keeps_the_spoilt_layer_and_the_recipe_replays_it(onnx_bundle):
    """
    Plain int8 loses most of the accuracy; with one layer in float nothing; the file gives the same bytes again.
    """
    root, folder = onnx_bundle
    arguments = ("quantize", root, "--format", "onnx", "--calibration-data", folder)
    plain = run(*arguments)
    drop = run("evaluate", root, "--dataset", folder, "--labels-by", "index", "--max-drop", 5, "--workers", 1)
    found = run(*arguments, "--max-drop", 5, "--json")
    document = json.loads(found.stdout)["search"]
    (result,) = document["results"]
    artifact = root / result["path"]
    content, stages = artifact.read_bytes(), len(open_bundle(root).manifest.stages)
    again = run(*arguments, "--recipe", root / result["recipe_file"])

    assert (0, 1, 0, 0) == (plain.exit_code, drop.exit_code, found.exit_code, again.exit_code), plain.output
    assert ["mix.0"] == result["kept"]
    assert result["difference_points"] >= -5
    assert document["results"][0]["attempts"][0]["points"] < -5
    assert content == artifact.read_bytes()
    assert stages < len(open_bundle(root).manifest.stages)
    assert document == json.loads((root / "reports" / "search.json").read_text())
    assert ["mix.0", "mix.1"] == json.loads((root / result["recipe_file"]).read_text())["float_layers"]


@pytest.mark.slow
def test_a_search_on_a_cluster_finds_what_one_here_finds(onnx_bundle, tmp_path):
    """
    The same candidates with the same counts; the document says who ran them.
    """
    root, folder = onnx_bundle
    weights = ("--format", "onnx", "--recipe", "weight_only_wi8_afp32", "--dataset", folder)
    here = run("quantize", root, *weights, "--max-size", "0.9x", "--json")
    with LoopbackCluster(tmp_path) as cluster:
        cluster.worker()
        there = run("quantize", root, *weights, "--max-size", "0.9x", "--cluster", cluster.address, "--json")
    assert here.exit_code == there.exit_code, here.output + there.output
    found = [json.loads(result.stdout)["search"] for result in (here, there)]

    assert found[0]["results"] == found[1]["results"]
    assert f"run on 1 worker of {cluster.address}" in found[1]["dataset"]["notes"][-1]


@pytest.mark.slow
def test_limits_of_size_and_latency(onnx_bundle):
    """
    Plain int8 loses most, float is too large: what is chosen keeps the spoilt layer in float and the limit to the byte.
    No file is a hundred bytes or takes a thousandth of the time: nothing is written, and the nearest is named.
    """
    root, folder = onnx_bundle
    arguments = ("quantize", root, "--format", "onnx", "--calibration-data", folder)
    before = {path: path.stat().st_mtime_ns for path in (root / "onnx").iterdir()}
    small = run(*arguments, "--max-size", "100B", "--json")
    weights = ("--format", "onnx", "--recipe", "weight_only_wi8_afp32", "--dataset", folder)
    fast = run("quantize", root, *weights, "--max-latency", "0.001x")
    untouched = {path: path.stat().st_mtime_ns for path in (root / "onnx").iterdir()}
    sizes = {
        item["name"]: item["size_bytes"] for item in json.loads(small.stdout)["search"]["results"][0]["candidates"]
    }
    limit = sizes["fp32"] - 1
    found = run(*arguments, "--recipe", "static_wi8_ai8", "--max-size", f"{limit}B", "--json")
    document = json.loads(found.stdout)["search"]
    (result,) = document["results"]
    artifact = root / result["path"]
    content = artifact.read_bytes()
    again = run(*arguments, "--recipe", root / result["recipe_file"])

    assert (1, 1, 0, 0) == (small.exit_code, fast.exit_code, found.exit_code, again.exit_code), found.output
    assert before == untouched
    nearest = json.loads(small.stdout)["search"]["results"][0]["nearest"]
    assert (root / nearest).name == f"net_{min(sizes, key=sizes.get)}_arm64.onnx"
    assert "NOT REACHED" in fast.stdout
    assert "nearest is" in fast.stdout
    assert artifact.stat().st_size <= limit
    assert "mix.0" in result["kept"]
    assert content == artifact.read_bytes()
    assert document == json.loads((root / "reports" / "search.json").read_text())


METRICS = """
import numpy as np


def wrong(outputs, label):
    return float(np.argmax(outputs["logits"]) != label)


def right(outputs, labels):
    return float(np.mean([np.argmax(one["logits"]) == label for one, label in zip(outputs, labels)]))


wrong.higher_is_better, wrong.per_image = False, True
right.higher_is_better, right.per_image = True, False
"""


@pytest.mark.slow
@pytest.mark.parametrize(("function", "worse"), [("wrong", 1), ("right", -1)])
def test_search_by_a_metric_of_the_users_own(onnx_bundle, tmp_path, function, worse):
    """
    Of each image, the lower the better, or of all, the higher: the same layer stays in float, and what is lost is in
    the metric's own unit.
    """
    root, folder = onnx_bundle
    (tmp_path / "metrics.py").write_text(METRICS)
    named = ("--metric", f"{tmp_path / 'metrics.py'}:{function}", "--max-drop", 0.05)

    found = run("quantize", root, "--format", "onnx", "--calibration-data", folder, *named, "--json")
    shown = run("quantize", root, "--format", "onnx", "--calibration-data", folder, *named)

    document = json.loads(found.stdout)["search"]
    (result,) = document["results"]
    first, last = result["attempts"][0], result["attempts"][-1]
    assert 0 == found.exit_code, found.output
    assert ["mix.0"] == result["kept"]
    assert (function, "", worse < 0) == tuple(document["metric"][key] for key in ("name", "unit", "higher_is_better"))
    assert 0.05 < first["points"] * worse <= 1
    assert last["points"] * worse <= 0.05
    assert (first["lost"] is None) == (function == "right")
    assert first["lost"] is None or first["lost"] > first["gained"]
    assert f"At most 0.05 of {function} lost" in shown.stdout


@pytest.mark.slow
def test_search_by_the_iou_of_masks(tmp_path):
    """
    What masks are scored by where nothing else is said; points, as of top-1.
    """
    root = mask_bundle(tmp_path / "bundle").root
    data = mask_folder(tmp_path / "data", 12)
    arguments = ("quantize", root, "--format", "onnx", "--calibration-data", data / "images", "--dataset", data)

    found = run(*arguments, "--max-drop", 50, "--json")
    top1 = run(*arguments, "--max-drop", 50, "--metric", "top-1")

    document = json.loads(found.stdout)["search"]
    assert 0 == found.exit_code, found.output
    assert ("miou", "points") == (document["metric"]["name"], document["metric"]["unit"])
    assert -50 <= document["results"][0]["difference_points"] <= 50
    assert (root / document["results"][0]["path"]).exists()
    assert 2 == top1.exit_code
    assert "accuracy needs a classifier" in top1.output


@pytest.mark.slow
def test_ranking_is_verified_with_artifacts(onnx_bundle):
    """
    The spoilt layer leads; what is measured is near to what was simulated.
    """
    root, folder = onnx_bundle
    result = run("quantize", root, "--format", "onnx", "--calibration-data", folder, "--sensitivity", "--json")
    layers = json.loads(result.stdout)["sensitivity"]["results"][0]["layers"]

    assert 0 == result.exit_code, result.output
    assert "mix.0" == layers[0]["name"]
    measured = [layer for layer in layers if layer["verified_db"] is not None]
    assert 3 == len(measured)
    assert all(abs(layer["verified_db"] - layer["sqnr_db"]) < 4 for layer in measured)


@pytest.mark.slow
def test_what_cannot_be_reached_is_said(tmp_path):
    """
    A network of one layer that int8 ruins: exit code 1, no artifact, no recipe, and the bundle as it was.
    """
    root = build(tmp_path, "onnx", single=True)
    folder = photos(tmp_path, root)
    before = (root / "manifest.json").read_text()
    result = run("quantize", root, "--format", "onnx", "--calibration-data", folder, "--max-drop", 1)

    assert 1 == result.exit_code, result.output
    assert "cannot be reached short of keeping every layer in float" in result.stdout
    assert json.loads(before)["artifacts"] == json.loads((root / "manifest.json").read_text())["artifacts"]
    assert not list((root / "reports").glob("recipe-*"))
    assert not list((root / "onnx").glob("*static*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind_", list(Format))
def test_layers_stay_in_float_in_every_format(tmp_path, kind_):
    """
    All kept: the file is the float one again. One kept: only its weights are wide, and its fault is gone.
    """
    root = build(tmp_path, kind_.value)
    folder = photos(tmp_path, root)
    bundle = open_bundle(root)
    plan = QuantizePlan((replace(STATIC, adjust=False),), (kind_,), calibration=str(folder), count=16)
    weighed, _ = rank_layers(bundle, plan, Stages())
    (job, costs), graph = weighed[0], load_graph(root / "reference")
    every = [layer for cost in costs for layer in cost.layers]
    first = next(cost for cost in costs if cost.name == "mix.0")
    figures = {}
    with Bench(graph, job, job.data) as bench:
        for name, layers in (("none", []), ("spoilt", list(first.layers)), ("all", every)):
            with bench.artifact(layers) as (place, artifact):
                figures[name] = bench.sqnr_db(place, artifact), artifact.bytes
                operators = count_operators(place / artifact.path, kind_).names

    assert "mix.0" == costs[0].name
    assert figures["none"][0] < 15 < 25 < figures["spoilt"][0] < figures["all"][0]
    assert figures["all"][0] > 45  # TFLite's own input stays int8; Core ML computes in float16
    assert not {"QUANTIZE", "QuantizeLinear", "quantize"} & set(operators)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (("--max-drop", 0.5, "--recipe", "weight_only_wi8_afp32"), "one static recipe"),
        (("--max-drop", 0.5, "--dataset", "digits"), "the digits have the labels"),
        (("--sensitivity", "--dataset", "digits"), "--dataset, --metric, --limit and --cluster are for --max-drop"),
        (("--dataset", "digits"), "coordatt-deploy evaluate"),
        (("--sensitivity", "--format", "tflite", "--recipe", "palettized_w6"), "one static recipe"),
    ],
)
def test_slips_on_the_command_line(onnx_bundle, arguments, answer):
    """
    Exit code 2, with what to do instead.
    """
    root, folder = onnx_bundle
    calibrated = () if "--recipe" in arguments else ("--calibration-data", folder)
    result = run("quantize", root, *calibrated, *arguments)

    assert 2 == result.exit_code, result.output
    assert answer in result.stderr.replace("\n", " ")


@pytest.mark.slow
def test_calibration_images_without_labels(onnx_bundle, tmp_path):
    """
    A search needs labels: the answer names --max-drop and what the folder lacks.
    """
    root, folder = onnx_bundle
    (tmp_path / "flat").mkdir()
    for index, path in enumerate(sorted(folder.rglob("*.png"))):
        (tmp_path / "flat" / f"{index}.png").write_bytes(path.read_bytes())
    result = run("quantize", root, "--calibration-data", tmp_path / "flat", "--max-drop", 1)

    assert 2 == result.exit_code
    assert "--max-drop needs labelled images" in result.stderr


@pytest.mark.slow
def test_artifacts_for_arm_are_measured_without_this_cpus_saturation(tmp_path, monkeypatch):
    """
    The ranking opens each with exact sums, and the document says so; those for x86-64 are measured as they run.
    """
    root = build(tmp_path, Format.ONNX)
    folder = photos(tmp_path, root)
    opened = []
    start = onnx_runner.start_session

    def watched(path, options, inner=()):
        opened.append(exact_sums_of(options))
        return start(path, options, inner)

    monkeypatch.setattr(onnx_runner, "start_session", watched)
    laptop = replace(describe(), architecture="x86_64", features=("avx", "avx2"))
    monkeypatch.setattr(ranking, "describe", lambda: laptop)
    for cpu, exact in ((TargetCpu.ARM64, True), (TargetCpu.X86_64, False)):
        opened.clear()
        plan = QuantizePlan(
            (replace(STATIC, adjust=False),), (Format.ONNX,), target_cpus=(cpu,), calibration=str(folder), count=16
        )
        _, document = rank_layers(open_bundle(root), plan, Stages())

        assert exact in opened
        assert exact or True not in opened
        assert exact == ("as arm64 computes it" in (document.results[0].warning or ""))
