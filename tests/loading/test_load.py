import importlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from coordatt_deploy.artifact_specs import Preprocessing
from coordatt_deploy.errors import MissingDependencyError, UsageError
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import DynamicSize
from coordatt_deploy.inspection.captured_graph import inspect_source
from coordatt_deploy.loading.factories import attention_warning
from coordatt_deploy.loading.io_names import output_names
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.loaded_model import capture_source, reference_module
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.loading.preprocessing import (
    PreprocessingChanges,
    changes_from,
    parse_numbers,
    read_labels,
    read_preprocessing,
)

ZOO = Path(__file__).parents[1] / "zoo"


def zoo(model, **options):
    """The request for a model of the zoo: ``zoo("detector:pyramid")``."""
    file, _, factory = model.partition(":")
    return ModelRequest(f"{ZOO / file}.py:{factory}", **({"input_size": (64, 64)} | options))


def trouble(factory, **options):
    return zoo(f"trouble:{factory}", **options)


CLASSIFIERS = (
    "official_block:build", "official_network:mbv2_ca", "timm_like:hard_swish", "timm_like:silu",
    "timm_like:hard_gates", "home_made:one_dimensional", "home_made:two_branches", "bottleneck:Net",
)  # fmt: skip


@pytest.mark.parametrize("dynamic", [None, pytest.param((32, 96, 4), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_of_the_zoo_is_captured_as_it_is(name, dynamic):
    """
    Whoever wrote it: the graph computes the module's own function, at the captured size and at unseen ones.
    """
    torch.manual_seed(0)
    source = resolve(zoo(name, input_size=(64, 48), dynamic=dynamic))

    graph = capture_source(source)
    reference, remark = reference_module(source, graph)

    assert remark is None
    assert ("image",) == source.inputs
    assert ("logits",) == source.outputs
    for size in ((64, 48), *source.unseen_sizes()):
        image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        with torch.no_grad():
            expected = reference(image).numpy()
        assert np.allclose(expected, run(graph, {"image": image.numpy()})["logits"], rtol=0, atol=1e-12)


def test_a_size_that_torch_export_fixes_silently_is_found():
    """
    avg_pool2d with the input's own size as kernel is captured without an error, and is wrong at every other size.
    """
    torch.manual_seed(0)
    static = resolve(zoo("home_made:functional", input_size=(64, 48)))
    graph = capture_source(static)
    assert np.allclose(
        static.module(static.example[0]).detach().numpy(),
        run(graph, {"image": static.example[0].numpy()}, dtype=torch.float32)["logits"],
        atol=1e-5,
    )

    with pytest.raises(UsageError, match=r"no longer the same at .* avg_pool2d with kernel 24 at .*home_made\.py:\d+"):
        capture_source(resolve(zoo("home_made:functional", input_size=(64, 48), dynamic=(32, 96, 4))))


@pytest.mark.parametrize(
    ("name", "outputs"),
    [
        ("pyramid", ("p3", "p4", "p5")),
        ("nested_tuple", ("output_0", "output_1_0", "output_1_1")),
        ("named_levels", ("p3_boxes", "p3_scores", "p4_boxes", "p4_scores", "p5_boxes", "p5_scores")),
    ],
)
def test_nested_outputs_are_flattened_under_stable_names(name, outputs):
    """
    Keys, fields and places make the names; each output is the module's own.
    """
    torch.manual_seed(0)
    source = resolve(zoo(f"detector:{name}"))

    graph = capture_source(source)
    with torch.no_grad():
        leaves = [
            leaf for leaf in torch.utils._pytree.tree_leaves(source.module(*source.example)) if torch.is_tensor(leaf)
        ]
    results = run(graph, {"image": source.example[0].numpy()}, dtype=torch.float32)

    assert outputs == source.outputs == graph.outputs
    for output, leaf in zip(outputs, leaves, strict=True):
        assert np.allclose(leaf.numpy(), results[output], atol=1e-5)


def test_outputs_that_are_no_tensors_are_left_out_and_said():
    """
    A detector that returns its strides beside its levels.
    """
    notes = resolve(zoo("detector:named_levels")).notes

    assert "outputs that are no tensors are left out: strides_0, strides_1, strides_2" in notes


def test_several_inputs_are_called_as_in_the_signature():
    """
    Arguments with a default are no inputs; the shapes of the others can be given.
    """
    source = resolve(zoo("detector:image_and_prior", inputs={"prior": (1, 1, 64, 64)}))
    graph = capture_source(source)

    assert ("photo", "prior") == source.inputs == tuple(spec.name for spec in graph.inputs)
    assert [(1, 3, 64, 64), (1, 1, 64, 64)] == [spec.shape for spec in graph.inputs]
    with pytest.raises(UsageError, match="no input 'pror'; did you mean prior"):
        resolve(zoo("detector:image_and_prior", inputs={"pror": (1, 1, 64, 64)}))


def test_names_of_outputs_are_unique_and_plain():
    """
    What no format takes is replaced, and names that fall together are numbered.
    """
    tensor = torch.zeros(1, 2)

    assert (("a_b", "a_b_2", "output_0", "image_2"), ()) == output_names(
        {"a-b": tensor, "a": {"b": tensor}, 0: tensor, "image": tensor}, ("image",)
    )
    assert ("logits",) == output_names(tensor)[0] == output_names((tensor,))[0]
    assert ("output",) == output_names(torch.zeros(1, 2, 3, 4))[0]


def test_a_factory_from_an_importable_module(tmp_path, monkeypatch):
    """
    package.module:factory is looked for from the current folder, as Python does.
    """
    package = tmp_path / "users_package"
    package.mkdir()
    shutil.copy(ZOO / "official_block.py", package / "block.py")
    (package / "__init__.py").write_text("")
    (package / "nets.py").write_text("from .block import SmallClassifier as Backbone\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    by_module = resolve(ModelRequest("users_package.nets:Backbone", input_size=(32, 32)))
    by_file = resolve(ModelRequest("users_package/nets.py:Backbone", input_size=(32, 32)))

    assert "Backbone" == by_module.spec.name == by_file.spec.name
    assert type(by_module.module) is type(by_file.module)


def test_arguments_reach_the_factory():
    """
    --model-args by name, and num_classes where the factory has it.
    """
    source = resolve(trouble("plain", model_args={"width": 6}, num_classes=9))

    assert (6, 9) == (source.module[0].out_channels, source.module[3].out_features)


def test_a_module_that_is_built_already_and_a_class_are_factories_too():
    """
    A variable of the file that holds a module, and a class without needed arguments.
    """
    assert (1, 4) == tuple(resolve(trouble("READY")).module(torch.zeros(1, 3, 8, 8)).shape)
    assert "SmallClassifier" == resolve(zoo("official_block:SmallClassifier")).spec.name


def test_generic_names_of_factories_give_way_to_the_files():
    """
    ``build`` says nothing; a given name wins.
    """
    assert "official_block" == resolve(zoo("official_block:build")).spec.name
    assert "mine" == resolve(zoo("official_block:build", name="mine")).spec.name


def test_what_the_users_code_prints_stays_off_the_screen():
    """
    The factory prints; stdout belongs to results.
    """
    code = f"from coordatt_deploy.loading.load import *; resolve(ModelRequest({str(ZOO / 'trouble.py')!r} + ':plain'))"

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ("", "") == (done.stdout, done.stderr)


def test_fresh_modules_are_set_to_evaluation_and_it_is_said():
    """
    torch builds every module in training mode.
    """
    source = resolve(zoo("official_block:build"))

    assert not any(layer.training for layer in source.module.modules())
    assert "the model came in training mode and was set to evaluation with eval()" in source.notes


BAD = [
    ("zzzz", "there is no 'zzzz' in trouble; known: ByKeyword, "),
    ("plian", "did you mean plain"),
    ("CONSTANT", "is of type int; expected a function or class"),
    ("needs", r"needs width, depth; give them as --model-args '\{\"width\": ..., \"depth\": ...\}'"),
    ("returns_none", "returns a NoneType; expected a torch.nn.Module"),
    ("returns_class", r"returns the class Conv2d; return an instance: Conv2d\(...\)"),
    ("returns_pair", "returns a tuple of 2; return the torch.nn.Module alone"),
    ("scripted", "returns a TorchScript module"),
    ("half", r"float16; export needs float32 weights, call model\.float\(\)"),
    ("elsewhere", "0.weight is on device meta"),
    ("lazy", "run the model once before it is returned"),
    ("damaged", "0.weight holds 1 values that are NaN"),
    ("StaysInTraining", "norm stays in training mode after model.eval"),
    ("awaited", "is an async function; write it without async"),
    ("ReturnsDataclass", "returns a Result without a tensor in it; return tensors"),
    ("ReturnsNothing", "returns a dict without a tensor in it"),
    ("ByKeyword", "forward takes x by keyword only"),
    ("NoInput", "forward takes no input"),
]


@pytest.mark.parametrize(("name", "text"), BAD)
def test_bad_factories_are_told_in_one_line(name, text):
    """
    What was received, what was expected, what to do.
    """
    with pytest.raises(UsageError, match=text) as caught:
        resolve(trouble(name))

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "text", "line"), [
    ("raises", "RuntimeError: no such file: weights.pth", 'raise RuntimeError("no such file'),
    ("leaves", "SystemExit: usage: train.py", "sys.exit("),
])  # fmt: skip
def test_what_the_users_code_raises_goes_to_a_file(name, text, line):
    """
    One line for the screen names their line; the traceback is in the log.
    """
    with pytest.raises(UsageError, match=text) as caught:
        resolve(trouble(name))

    message = str(caught.value)
    log = Path(message.rpartition(" is in ")[2])
    assert "\n" not in message
    assert "trouble.py:" in message
    assert line in message
    assert "Traceback" in log.read_text(encoding="utf-8")


def test_data_dependent_control_flow_names_the_users_line():
    """
    torch.export's page of text is boiled down to file, line and remedy; control flow on sizes is no trouble.
    """
    source = resolve(trouble("LooksAtValues"))

    with pytest.raises(
        UsageError, match=r"depends on the values of a tensor at .*trouble\.py:\d+ \(if y\.mean\(\) > 0:\)"
    ):
        capture_source(source)

    assert capture_source(resolve(trouble("LooksAtSizes"))).outputs == ("output",)


def test_a_result_whose_size_depends_on_values_is_refused():
    """
    torch.export takes it, no phone does.
    """
    with pytest.raises(UsageError, match=r"size of the result of index at .*trouble\.py:\d+"):
        capture_source(resolve(trouble("Picks")))


@pytest.mark.parametrize(("model", "text"), [
    ("mobilenetv2_ca_10", "did you mean mobilenetv2_ca_100"),
    ("mobilenetv2_ca_10", "package.module:factory or path/to/file.py:factory"),
    ("no_such_package.nets:build", "no Python module 'no_such_package.nets'"),
    ("nowhere.py:build", "file nowhere.py does not exist"),
    (str(ZOO / "trouble.py"), "names no factory; add the function or class"),
    ("weights.pth", "is a file of weights; name the network with --model"),
    ("model.onnx", "is an artifact already"),
    ("missing.pt2", "program missing.pt2 does not exist"),
])  # fmt: skip
def test_what_names_no_model_is_answered_with_what_would(model, text):
    """
    Typos, missing files, and files of another kind.
    """
    with pytest.raises(UsageError, match=text):
        resolve(ModelRequest(model))


def test_wrong_arguments_are_answered_with_the_nearest():
    """
    Also where the model takes none.
    """
    with pytest.raises(UsageError, match="has no argument 'widht'; did you mean width"):
        resolve(trouble("plain", model_args={"widht": 3}))
    with pytest.raises(UsageError, match="takes no arguments"):
        resolve(trouble("READY", model_args={"width": 3}))
    with pytest.raises(UsageError, match="takes no argument 'depth'; it takes num_classes, reduction"):
        resolve(ModelRequest("mobilenetv2_ca_035", model_args={"depth": 3}))


def test_an_input_that_the_model_rejects_names_the_users_line():
    """
    A head for one size only.
    """
    with pytest.raises(UsageError, match=r"rejects an input of shape \(1, 3, 64, 64\).* at .*trouble\.py:\d+"):
        resolve(trouble("OnlyOneSize"))

    assert resolve(trouble("OnlyOneSize", input_size=(32, 32))).example[0].shape == (1, 3, 32, 32)


def test_a_dynamic_size_that_the_model_does_not_take_is_refused():
    """
    Tried on the module itself; a needed multiple is named, and with it the capture works.
    """
    with pytest.raises(UsageError, match="rejects an input of shape"):
        resolve(trouble("OnlyOneSize", input_size=(32, 32), dynamic=(32, 64, 32)))
    with pytest.raises(UsageError, match="does not lie within --dynamic-size 32:96:1"):
        resolve(trouble("NeedsMultiples", input_size=(128, 128), dynamic=(32, 96, 1)))
    source = resolve(trouble("NeedsMultiples", dynamic=(32, 96, 8)))

    assert (None, None) == capture_source(source).inputs[0].shape[2:]


def test_a_needed_multiple_is_named():
    """
    torch.export suggests it in its own words; the option is what the user needs.
    """
    net = resolve(trouble("NeedsMultiples")).module

    with pytest.raises(UsageError, match="height and width must be multiples of 8; give --dynamic-size MIN:MAX:8"):
        capture(net, (torch.zeros(1, 3, 64, 64),), dynamic=DynamicSize(32, 96))


def test_the_image_has_the_channels_that_the_model_takes():
    """
    Whatever order its convolutions are defined in.
    """
    assert (1, 3, 224, 224) == resolve(ModelRequest(f"{ZOO / 'trouble.py'}:DefinedLast")).example[0].shape


def test_the_channels_of_the_first_convolution_are_the_images():
    """
    Grey images need no option.
    """
    assert (1, 1, 64, 64) == tuple(resolve(trouble("GreyImages")).example[0].shape)


def test_the_reference_falls_back_to_the_graph_and_says_so():
    """
    A module that makes float32 tensors as it goes cannot compute in float64 itself.
    """
    source = resolve(trouble("OwnFloat32"))
    graph = capture_source(source)

    reference, remark = reference_module(source, graph)

    assert "captured graph" in remark
    (result,) = reference(source.example[0].double())
    assert torch.float64 == result.dtype
    assert torch.allclose(source.example[0].double().mean((2, 3)), result, atol=1e-12)


def _program(path, module, size=(64, 48), dynamic=None, batch=1):
    example = (torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0)),)
    torch.export.save(torch.export.export(module, example, dynamic_shapes=dynamic), path)
    return ModelRequest(str(path))


def _classifier():
    torch.manual_seed(0)
    return resolve(zoo("official_block:build")).module


def test_a_saved_program_keeps_names_sizes_and_function(tmp_path):
    """
    Its layers are called as in the code that it was saved from, and its size is its own.
    """
    module = _classifier()
    source = resolve(_program(tmp_path / "saved.pt2", module))
    graph = capture_source(source)
    feeds = {"image": source.example[0].numpy()}
    expected = module.double()(source.example[0].double()).detach().numpy()

    assert "saved" == source.spec.name
    assert (64, 48) == source.spec.preprocessing.size
    assert {"stem.0", "attention.conv1", "head.3"} <= {layer.layer_id for layer in graph.layers.layers}
    assert np.allclose(expected, run(graph, feeds)["logits"], rtol=0, atol=1e-12)
    assert reference_module(source, graph)[1] is None


def test_a_program_of_another_shape_is_refused(tmp_path):
    """
    A static program takes its own size only, a dynamic one what its bounds allow, and neither a larger batch.
    """
    request = _program(tmp_path / "static.pt2", _classifier())
    with pytest.raises(UsageError, match=r"saved for inputs of 1 x 3 x 64 x 48 .* 32x32 was asked for"):
        resolve(ModelRequest(request.model, input_size=(32, 32)))
    with pytest.raises(UsageError, match="a batch of 1 was asked for"):
        resolve(_program(tmp_path / "batch.pt2", _classifier(), batch=2))
    height = torch.export.Dim("height", min=32, max=96)
    request = _program(tmp_path / "dynamic.pt2", _classifier(), dynamic=({2: height},))

    assert (80, 48) == resolve(ModelRequest(request.model, input_size=(80, 48))).spec.preprocessing.size
    with pytest.raises(UsageError, match="takes sizes from 32 to 96 on axis 2, not 128"):
        resolve(ModelRequest(request.model, input_size=(128, 48)))


def test_a_program_saved_in_training_mode_is_refused(tmp_path):
    """
    eval() comes too late for it.
    """
    request = _program(tmp_path / "training.pt2", _classifier().train())

    with pytest.raises(UsageError, match="was saved in training mode"):
        resolve(request)


def test_what_is_no_program_is_refused(tmp_path):
    """
    A checkpoint under the suffix of a program; arguments for what is built already.
    """
    torch.save(_classifier().state_dict(), tmp_path / "weights.pt2")
    with pytest.raises(UsageError, match=r"program weights\.pt2 cannot be read by torch"):
        resolve(ModelRequest(str(tmp_path / "weights.pt2")))
    request = _program(tmp_path / "saved.pt2", _classifier())
    with pytest.raises(UsageError, match="--model-args means nothing for"):
        resolve(ModelRequest(request.model, model_args={"width": 2}))


def test_a_checkpoint_goes_into_the_users_own_class(tmp_path):
    """
    With a prefix and the other naming of the gates, and what was renamed is said.
    """
    torch.manual_seed(3)
    state = resolve(zoo("official_network:mbv2_ca")).module.state_dict()
    other = {f"module.{name.replace('conv2.', 'conv_h.').replace('conv3.', 'conv_w.')}": t for name, t in state.items()}
    torch.save({"state_dict": other}, tmp_path / "weights.pth")

    source = resolve(zoo("official_network:mbv2_ca", checkpoint=tmp_path / "weights.pth"))

    assert "read conv_h and conv_w as conv2 and conv3 in 2 attention blocks" in source.notes
    assert all(torch.equal(tensor, source.module.state_dict()[name]) for name, tensor in state.items())


def test_the_checkpoint_says_how_many_classes_a_model_of_ours_has(tmp_path):
    """
    A fine-tuned head needs no option, and the model's own labels no longer hold.
    """
    from coordatt_deploy.models import create_model

    torch.save({"ema": create_model("mobilenetv2_ca_035", num_classes=7).state_dict()}, tmp_path / "seven.pth")

    source = resolve(ModelRequest("mobilenetv2_ca_035.digits", checkpoint=tmp_path / "seven.pth"))

    assert 7 == source.module.classifier[1].out_features
    assert source.spec.labels is None
    assert all(label is None for _, _, label in source.images)


def test_timm_is_asked_for_with_its_install_line(monkeypatch):
    """
    timm is not among the dependencies.
    """
    real = importlib.import_module

    def without_timm(name, package=None):
        if name == "timm":
            raise ModuleNotFoundError("No module named 'timm'", name="timm")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without_timm)

    with pytest.raises(MissingDependencyError, match="pip install timm"):
        resolve(ModelRequest("timm:efficientnet_b0"))


def test_attention_that_was_asked_for_and_is_not_there_is_said():
    """
    timm builds mobilenetv2 without complaint and without the attention that se_layer names.
    """
    warning = attention_warning("timm:mobilenetv2_100", {"se_layer": "coord"}, 0)

    assert "se_layer was given, but no attention block was found" in warning
    assert attention_warning("timm:efficientnet_b0", {"se_layer": "coord"}, 16) is None
    assert attention_warning("timm:mobilenetv2_100", None, 0) is None


def test_inspect_says_that_attention_is_not_there():
    """
    The note stands where the user looks: among what was found.
    """
    source = resolve(ModelRequest(f"{ZOO / 'trouble.py'}:plain"))

    assert any("se_layer was given" in note for note in inspect_source(source, "timm:x", {"se_layer": "coord"}).notes)
    assert not any("se_layer" in note for note in inspect_source(source, "timm:x").notes)


@pytest.mark.parametrize("name", ["../x", "a/b", "a b", ".hidden", "-x", "a\\b", "a:b", "x" * 101, "\n"])
def test_a_name_that_would_leave_the_folder_is_refused(name):
    """
    It becomes the bundle's folder and part of every file's name.
    """
    with pytest.raises(UsageError, match=r"cannot be part of a file name|at most 100 fit"):
        resolve(ModelRequest("mobilenetv2_ca_035.digits", name=name))


def test_preprocessing_of_the_users_own():
    """
    Options over the model's own values; without them the assumption is said.
    """
    given = PreprocessingChanges(mean=(0.5,) * 3, std=(0.5,) * 3, colour="BGR", input_range=(-1.0, 1.0))

    source = resolve(zoo("official_block:build", input_size=(64, 48), preprocessing=given))

    assert Preprocessing((64, 48), (0.5,) * 3, (0.5,) * 3, "BGR", input_range=(-1.0, 1.0)) == source.spec.preprocessing
    assert not any("assumed" in note for note in source.notes)
    assert any("assumed to be ImageNet's" in note for note in resolve(zoo("official_block:build")).notes)


@pytest.mark.parametrize(("document", "text"), [
    ('{"maen": [0.5]}', "unknown key 'maen'; did you mean mean"),
    ('{"mean": [0.5, 0.5]}', "mean has 2 numbers; expected 3"),
    ('{"mean": "0.5"}', "mean is '0.5'; expected 3 numbers"),
    ('{"mean": [0.5, null, 0.5]}', "expected 3 numbers"),
    ('{"std": [1, 0, 1]}', "std .* positive"),
    ('{"colour": "RBG"}', "colour is 'RBG'; did you mean RGB"),
    ('{"resize": "bilinaer"}', "did you mean bilinear"),
    ('{"crop_ratio": true}', "crop_ratio is True; expected a number"),
    ('{"crop_ratio": 1.5}', "crop_ratio is 1.5"),
    ('{"input_range": [1, 0]}', "input_range is 1 to 0"),
    ('{"size": [32, 32]}', "preprocessing gives images of 32x32, but the input is 64x64"),
    ("[1, 2]", "holds a list; expected an object"),
    ("{", "is no JSON text"),
])  # fmt: skip
def test_a_bad_preprocessing_file_is_answered_by_key(document, text, tmp_path):
    """
    Typos by the nearest name, values by what was expected.
    """
    path = tmp_path / "preprocessing.json"
    path.write_text(document)

    with pytest.raises(UsageError, match=text):
        resolve(zoo("official_block:build", preprocessing=read_preprocessing(path)))


def test_a_preprocessing_file_may_be_that_of_a_manifest(tmp_path):
    """
    One number stands for three channels; words are taken in any case.
    """
    path = tmp_path / "preprocessing.json"
    path.write_text('{"size": [64, 48], "mean": 0.5, "std": [0.25, 0.5, 1], "colour": "bgr", "crop": "Center"}')

    expected = PreprocessingChanges((64, 48), (0.5, 0.5, 0.5), (0.25, 0.5, 1.0), colour="BGR", crop="center")

    assert expected == read_preprocessing(path)


def test_options_win_over_the_preprocessing_file(tmp_path):
    """
    What an option says replaces the file's value; what neither says stays the model's.
    """
    (tmp_path / "preprocessing.json").write_text('{"mean": 0.25, "resize": "nearest"}')
    base = Preprocessing((64, 48), std=(2.0, 2.0, 2.0))

    changes = read_preprocessing(tmp_path / "preprocessing.json").overridden_by(changes_from({"mean": 0.5}))

    assert Preprocessing((8, 8), (0.5,) * 3, (2.0,) * 3, resize="nearest") == changes.applied_to(base, (8, 8))
    assert changes
    assert not PreprocessingChanges()


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (ModelRequest("mobilenetv2_ca_10"), "unknown model 'mobilenetv2_ca_10'; did you mean mobilenetv2_ca_100"),
        (ModelRequest("net.onnx"), "is an artifact already"),
        (ModelRequest("net.pth"), "name the network with --model"),
        (ModelRequest("mobilenetv2_ca_100", input_size=(8, 8)), "between 32 and 4096"),
        (ModelRequest("net.py:net", input_size=(8, 5000)), "between 1 and 4096"),
        (ModelRequest("net.py:net", preprocessing=PreprocessingChanges(colour="RBG")), "did you mean RGB"),
        (ModelRequest("net.py:net", preprocessing=PreprocessingChanges(crop="centre")), "did you mean center"),
    ],
)
def test_a_request_is_checked_before_torch_is_loaded(request_, text):
    """
    What the user mistyped is answered without their model.
    """
    with pytest.raises(UsageError, match=text):
        request_.check()


def test_a_possible_request_passes_its_check():
    """
    The negative: nothing is looked up on the disk.
    """
    changes = PreprocessingChanges(colour="BGR", resize="nearest", crop="none", mean=(1.0,))

    ModelRequest("nowhere/net.py:net", input_size=(1, 4096), preprocessing=changes).check()
    ModelRequest("mobilenetv2_ca_100", input_size=(32, 32)).check()


@pytest.mark.parametrize("classes", ["7", 7.0, True, -1])
def test_a_number_of_classes_that_is_none_is_refused(classes):
    """
    --model-args may hold any JSON.
    """
    with pytest.raises(UsageError, match=r"num_classes is .*; it must be a whole number of at least 1"):
        resolve(ModelRequest("mobilenetv2_ca_035", model_args={"num_classes": classes}))


def test_numbers_on_the_command_line():
    """
    Commas between them; anything else is refused by the option's name.
    """
    assert (0.5, -1.0, 2.0) == parse_numbers("0.5,-1, 2", "--mean")
    for text in ("", "a,b", "0.5;0.5", "nan,0,0"):
        with pytest.raises(UsageError, match="--mean is"):
            parse_numbers(text, "--mean")


def test_the_users_own_images_are_the_golden_ones(tmp_path):
    """
    Spread over the folder, unlabelled, sixteen at most.
    """
    for index in range(40):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index:02d}.png")

    images = resolve(zoo("official_block:build", golden=tmp_path)).images

    assert 16 == len(images)
    assert [None] * 16 == [label for _, _, label in images]
    assert [0, 39] == [images[0][1].getpixel((0, 0))[0], images[-1][1].getpixel((0, 0))[0]]


def test_labels_have_to_be_as_many_as_the_logits():
    """
    Labels of another model are refused.
    """
    source = resolve(zoo("official_block:build", labels=tuple("abcdef")))

    assert tuple("abcdef") == source.spec.labels
    with pytest.raises(UsageError, match="3 labels were given, but the model's outputs have 6 classes"):
        resolve(zoo("official_block:build", labels=tuple("abc")))


def test_the_packages_own_models_still_come_by_name():
    """
    The embedded default keeps its labels, its preprocessing and its trained weights.
    """
    source = resolve(ModelRequest("mobilenetv2_ca_035.digits"))

    assert tuple("0123456789") == source.spec.labels
    assert (96, 96) == source.spec.preprocessing.size
    assert () == source.notes
    assert nn.Linear is type(source.module.classifier[1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat\ndog\n", ("cat", "dog")),
        ("\ufeffcat\r\n dog \r\n\r\n", ("cat", "dog")),
        ('["cat", "dog"]', ("cat", "dog")),
        ('{"1": "dog", "0": "cat"}', ("cat", "dog")),
    ],
)
def test_labels_are_lines_or_json(text, expected, tmp_path):
    """
    As torchvision, Keras and plain lists have them.
    """
    (tmp_path / "labels").write_text(text, encoding="utf-8")

    assert expected == read_labels(tmp_path / "labels")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "expected a name for each class"),
        ("cat\n\ndog", "expected a name for each class"),
        ("cat\ncat", "'cat' occurs twice"),
        ('["cat", 1]', "expected a name for each class"),
        ('["cat"', "is no JSON text"),
        ('{"a": "cat"}', "the keys must be the classes' numbers"),
    ],
)
def test_bad_labels_are_refused(text, problem, tmp_path):
    """
    A name that is missing would shift all that follow.
    """
    (tmp_path / "labels").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=problem):
        read_labels(tmp_path / "labels")
    with pytest.raises(UsageError, match="does not exist"):
        read_labels(tmp_path / "nowhere")
