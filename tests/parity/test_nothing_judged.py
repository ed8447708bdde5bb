"""Nothing judged is not passed: every judge counts against what the manifest and the graph say must be there."""

import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper
from torch import nn

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.bundle import open_bundle, save_golden
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.cli import main
from coordatt_deploy.errors import BundleError
from coordatt_deploy.files import sha256
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.saved_graph import save_graph
from coordatt_deploy.layer_map import Layer, LayerMap, Part
from coordatt_deploy.manifest import GoldenCase, Manifest
from coordatt_deploy.parity.bundle_cases import candidate_of, golden_cases
from coordatt_deploy.parity.executors import LocalExecutor
from coordatt_deploy.parity.layer_run import LayerRun, by_layer
from coordatt_deploy.parity.layers import check_map
from coordatt_deploy.parity.reference_layers import ReferenceLayers
from coordatt_deploy.parity.result import ArtifactParity
from coordatt_deploy.parity.run import ParityPlan, check_artifact, check_parity
from coordatt_deploy.parity.tolerances import TOLERANCES
from coordatt_deploy.progress import Stages
from coordatt_deploy.runtimes import provenance

SPEC = ModelSpec("net", Preprocessing((4, 4)), source_sha256="0" * 64)
IMAGE = TensorSpec("image", (1, 3, 4, 4), "float32", "NCHW")
DOUBLED, HALVED = (TensorSpec(name, IMAGE.shape, "float32", "NCHW") for name in ("doubled", "halved"))
CASES = 3
ARCHIVES = ("inputs", "outputs", "rounding_fp32", "rounding_fp16")


class Net(nn.Module):
    """Two layers, each of them an output."""

    def forward(self, image):
        doubled = image * 2.0
        return doubled, doubled / 4.0


@pytest.fixture(scope="module")
def graph():
    return capture(Net().eval(), (torch.rand(*IMAGE.shape),), input_names=["image"], output_names=["doubled", "halved"])


@pytest.fixture(scope="module")
def whole(graph, tmp_path_factory):
    """A bundle of a network with two outputs that are exactly right."""
    folder = tmp_path_factory.mktemp("bundles") / "net"
    images = [np.random.default_rng(seed).uniform(-1, 1, IMAGE.shape).astype(np.float32) for seed in range(CASES)]
    with writing(folder, SPEC.source_sha256) as staging:
        (staging / "onnx").mkdir()
        (staging / "golden").mkdir()
        path = staging / "onnx/net_fp32.onnx"
        _save(path)
        parts = [(Part("doubled"),), (Part("halved"),)]
        placed = [replace(layer, parts=at) for layer, at in zip(graph.layers.layers, parts, strict=True)]
        path.with_suffix(".layers.json").write_text(LayerMap(tuple(placed)).dump())
        (staging / "reference").mkdir()
        save_graph(graph, staging / "reference")
        results = {"doubled": [image * 2.0 for image in images], "halved": [image / 2.0 for image in images]}
        rounded = {name: [value + np.float32(1e-7) for value in values] for name, values in results.items()}
        save_golden(staging / "golden/inputs.npz", {"image": images})
        save_golden(staging / "golden/outputs.npz", results)
        for name in ("rounding_fp32", "rounding_fp16"):
            save_golden(staging / f"golden/{name}.npz", rounded)
        artifact = Artifact("onnx/net_fp32.onnx", Format.ONNX, Precision.FP32, None, None, path.stat().st_size,
                            sha256(path), (IMAGE,), (DOUBLED, HALVED), "onnx/net_fp32.layers.json")  # fmt: skip
        golden = tuple(GoldenCase(f"noise_{index}") for index in range(CASES))
        finish(staging, Manifest(SPEC, (IMAGE,), (DOUBLED, HALVED), (artifact,), golden=golden))
    return folder


def _save(path):
    names = {"doubled": 2.0, "halved": 0.5}
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Mul", ["image", f"by_{name}"], [name]) for name in names],
            "net",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, IMAGE.shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, IMAGE.shape) for name in names],
            [helper.make_tensor(f"by_{name}", TensorProto.FLOAT, (), [value]) for name, value in names.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    helper.set_model_props(model, {provenance.KEY: SPEC.source_sha256})
    onnx.save(model, path)


@pytest.fixture
def bundle(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "net")
    return tmp_path / "net"


def rewritten(bundle, **changes):
    """Return the bundle with other values in its manifest, and every hash right."""
    manifest = replace(open_bundle(bundle, verify=False).manifest, **changes)
    finish(bundle, manifest)
    return open_bundle(bundle)


def said(bundle):
    """What parity says of outputs, on the command line; it must not say passed."""
    result = CliRunner().invoke(main, ["parity", str(bundle), "--outputs-only"], catch_exceptions=False)
    assert result.exit_code in (1, 2)
    assert "passed" not in result.output
    return result.output


def test_a_complete_bundle_passes(whole):
    """
    The negative: both outputs judged on every case.
    """
    report = check_parity(open_bundle(whole), ParityPlan(need_layers=True), Stages())

    assert (True, 0) == (report.passed, report.exit_code)
    assert [(2, 2)] == [(item.layers.judged, len(item.layers.rows)) for item in report.artifacts]
    assert [("doubled", 144), ("halved", 144)] == [(item.name, item.elements) for item in report.artifacts[0].outputs]


@pytest.mark.parametrize("file", ARCHIVES)
@pytest.mark.parametrize("kept", [{}, {"doubled": 3, "halved": 2}, {"doubled": 3}, {"image": 2}, {"image": 4}])
def test_a_golden_archive_that_lacks_cases_or_tensors_proves_nothing(bundle, file, kept):
    """
    Empty, a case short, without one of the outputs, or with one too many; hashes all right.
    """
    save_golden(bundle / f"golden/{file}.npz", {name: [np.zeros(IMAGE.shape)] * count for name, count in kept.items()})
    rewritten(bundle)

    assert f"golden/{file}.npz holds" in said(bundle)


def test_no_golden_case_proves_nothing(bundle):
    """
    Neither in the manifest nor in the archives.
    """
    for file in ARCHIVES:
        save_golden(bundle / f"golden/{file}.npz", {})
    rewritten(bundle, golden=())

    assert "the manifest names no golden case" in said(bundle)


def test_outputs_that_the_manifest_does_not_name_prove_nothing(bundle):
    """
    A model without outputs cannot be proven.
    """
    rewritten(bundle, outputs=())

    assert "names no output" in said(bundle)


@pytest.mark.parametrize("kept", ["doubled", "halved"])
def test_an_output_that_is_not_judged_is_named(whole, kept):
    """
    Where cases of the user's own, or of another source, lack one.
    """
    opened = open_bundle(whole)
    candidate = candidate_of(opened, opened.manifest.artifacts[0], golden_cases(opened))
    cases = replace(candidate.cases, outputs={kept: candidate.cases.outputs[kept]})

    verdict = check_artifact(
        replace(candidate, cases=cases),
        lambda: LocalExecutor(1).open_artifact(candidate.path, candidate.artifact),
        TOLERANCES,
        lambda: None,
    )

    (missing,) = {"doubled", "halved"} - {kept}
    assert (False, f"1 of 2 outputs were not judged: {missing}") == (verdict.passed, verdict.problem)


# Layers --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(graph):
    return ReferenceLayers(graph)


def with_layers(whole, reference, layers):
    """The verdict of an artifact whose outputs are right, with this layer map."""
    opened = open_bundle(whole)
    candidate = replace(candidate_of(opened, opened.manifest.artifacts[0], golden_cases(opened)), layers=layers)
    run = LayerRun(opened.manifest, "net", reference, LocalExecutor(1), 6, Stages(), None)
    tolerance = TOLERANCES[Format.ONNX, Precision.FP32]
    return run.with_layers(candidate, ArtifactParity(candidate.artifact, "", None, True, tolerance=tolerance))


def other_maps(layers):
    first, second, *rest = layers
    return {
        "empty": ((), "lacks"),
        "one is missing": ((first, *rest), f"it lacks {second.layer_id}"),
        "another's": (
            (first, replace(second, layer_id="stranger"), *rest),
            f"it lacks {second.layer_id}",
        ),
        "one too many": ((*layers, replace(second, layer_id="stranger")), "it names stranger"),
        "one stands twice": ((*layers, second), f"{second.layer_id} stands there 2 times"),
        "a circle": (
            (
                Layer(first.layer_id, "conv2d", first.shape, seen_through=second.layer_id),
                Layer(second.layer_id, "conv2d", second.shape, seen_through=first.layer_id),
                *rest,
            ),
            "where nothing can be seen",
        ),
        "seen through nothing": (
            (Layer(first.layer_id, "conv2d", first.shape, seen_through="stranger"), second, *rest),
            "where nothing can be seen",
        ),
    }


KINDS = ("empty", "one is missing", "another's", "one too many", "one stands twice", "a circle", "seen through nothing")


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_map_that_is_not_the_graphs_fails(whole, reference, kind):
    """
    However right the outputs are; the sentence says what is wrong with the map.
    """
    layers, expected = other_maps(reference.graph.layers.layers)[kind]

    verdict = with_layers(whole, reference, LayerMap(layers))

    assert verdict.passed is False
    assert "its layer map is not that of the reference graph" in verdict.problem
    assert expected in verdict.problem


def test_a_layer_map_of_which_nothing_can_be_seen_fails(whole, reference):
    """
    All layers absent.
    """
    absent = tuple(replace(layer, parts=(), absent="gone") for layer in reference.graph.layers.layers)

    verdict = with_layers(whole, reference, LayerMap(absent))

    assert verdict.passed is False
    assert f"no layer was judged: nothing can be seen of any of its {len(absent)}" == verdict.problem


@pytest.mark.parametrize("kind", ["empty", "absent"])
def test_parity_does_not_pass_a_file_whose_map_says_nothing(bundle, graph, kind):
    """
    The whole command: exit code 1, and the reason.
    """
    absent = tuple(replace(layer, parts=(), absent="gone") for layer in graph.layers.layers)
    (bundle / "onnx/net_fp32.layers.json").write_text(LayerMap(() if kind == "empty" else absent).dump())
    rewritten(bundle)

    result = CliRunner().invoke(main, ["parity", str(bundle)], catch_exceptions=False)

    assert 1 == result.exit_code
    assert "FAILED" in result.output
    assert {"empty": "0 layers for 2", "absent": "no layer was judged"}[kind] in result.output


def test_the_graphs_own_map_is_right(shared_graph):
    """
    The negative, with one layer fused into the next and one absent.
    """
    reference = ReferenceLayers(shared_graph)
    first, second, third, *rest = shared_graph.layers.layers
    fused = replace(first, parts=(), seen_through=second.layer_id)

    check_map(reference.graph.layers, reference.nodes)
    check_map(LayerMap((fused, second, replace(third, parts=(), absent="gone"), *rest)), reference.nodes)
    by_layer(shared_graph)


def test_a_reference_that_names_fewer_layers_than_it_has_tensors_is_refused(shared_graph):
    """
    What its graph computes and its map leaves out, nobody would look at.
    """
    layers = LayerMap(shared_graph.layers.layers[:3])

    with pytest.raises(BundleError, match=r"graph\.json names layers for 3 of the"):
        by_layer(replace(shared_graph, layers=layers))
    with pytest.raises(BundleError, match="its layer map is not that of the reference graph"):
        check_map(LayerMap(()), ())
