"""Models of the zoo, loaded and captured as they are."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from zoo_requests import ZOO, trouble, zoo

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.call_arguments import outputs
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import DynamicSize, static_shape
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.loaded_model import LoadedModel, capture_source, reference_module
from coordatt_deploy.loading.model_request import ModelRequest

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


class _Mask(nn.Module):
    """A mask, and a class for each place, of a pool that torch.export follows or not."""

    def __init__(self, pool):
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 4, 3, 2, 1), pool

    def forward(self, image):
        x = self.stem(image)
        x = x - self.pool(x)
        return x > 0.1, x.argmax(1)


def _source(module, outputs):
    spec = ModelSpec("net", Preprocessing((16, 16)))
    return LoadedModel(module.eval(), spec, (torch.randn(1, 3, 16, 16),), (), outputs=outputs, dynamic=(8, 32, 4))


def test_masks_and_classes_go_with_a_dynamic_size():
    """
    They are compared by how many differ, as there is nothing between yes and no.
    """
    graph = capture_source(_source(_Mask(nn.AdaptiveAvgPool2d(1)), ("mask", "classes")))

    assert (None, None) == graph.layers.layers[-1].shape[-2:]


def test_a_mask_of_a_size_that_torch_export_fixes_is_found():
    """
    The negative: the same mask, of a pool whose window is the size of the capture.
    """
    frozen = _Mask(lambda x: F.avg_pool2d(x, (1, x.shape[3])))

    with pytest.raises(UsageError, match=r"no longer the same at .* avg_pool2d with kernel 8 at .*test_load\.py:\d+"):
        capture_source(_source(frozen, ("mask", "classes")))


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


@pytest.mark.parametrize("how", ["slices", "unshuffle", "views", "blocks", "copies"])
def test_a_stem_that_turns_pixels_into_channels_takes_colour_images(how):
    """
    What its convolution takes are twelve channels or more; what the network takes are three.
    """
    source = resolve(trouble("SpaceToDepth", model_args={"how": how}))

    assert (1, 3, 64, 64) == tuple(source.example[0].shape)
    graph = capture_source(source)
    image = source.example[0]
    expected = source.module(image).detach()
    assert torch.allclose(expected, torch.from_numpy(run(graph, {"image": image.numpy()})["output"]).float(), atol=1e-5)


def test_the_shape_of_the_image_is_its_size():
    """
    A batch needs no size beside it, and golden images are made in that size.
    """
    source = resolve(trouble("GreyImages", input_size=None, inputs={"image": (4, 1, 48, 64)}))

    assert (4, 1, 48, 64) == tuple(source.example[0].shape)
    assert (48, 64) == source.spec.preprocessing.size


def test_two_sizes_that_disagree_are_refused():
    """
    Nobody knows which was meant.
    """
    with pytest.raises(UsageError, match=r"--input-shape gives images of 48x64, --input-size 64x64; leave one"):
        resolve(trouble("GreyImages", inputs={"image": (4, 1, 48, 64)}))


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


@pytest.mark.parametrize("name", ["../x", "a/b", "a b", ".hidden", "-x", "a\\b", "a:b", "x" * 101, "\n"])
def test_a_name_that_would_leave_the_folder_is_refused(name):
    """
    It becomes the bundle's folder and part of every file's name.
    """
    with pytest.raises(UsageError, match=r"cannot be part of a file name|at most 100 fit"):
        resolve(ModelRequest("mobilenetv2_ca_035.digits", name=name))


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


def test_a_dynamic_batch_is_open_on_the_first_axis_of_inputs_and_outputs():
    """
    The module is tried at batches that the capture does not see, alone and at other sizes.
    """
    source = resolve(zoo("official_block:build", input_size=(32, 48), batch=(1, 4), dynamic=(16, 64, 16)))
    graph = capture_source(source)

    assert 2 == source.example[0].shape[0]
    assert (1, 3, 4) == source.unseen_batches()
    assert (None, 3, None, None) == graph.inputs[0].shape
    assert {(1, 64, 16), (3, 16, 64), (4, 32, 48)} <= {(len(one), *one.shape[2:]) for _, (one,) in source.unseen()}


@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("OneRow", r"takes a batch of 1, and none of 2: .*cannot be multiplied.* at .*trouble\.py:\d+"),
        ("FourImages", r"takes a batch of 4, and none of 2: .* at .*trouble\.py:\d+"),
        ("TwoBiases", r"the model does not take a batch of 3: .* at .*trouble\.py:\d+"),
        ("AloneDoubled", "no longer the same at a batch of 1: its code does something else there"),
        ("FirstTwo", "no longer the same at a batch of 1"),
    ],
)
def test_a_model_whose_code_fixes_the_batch_is_refused(factory, reason):
    """
    With the line of its code and what to write, or what to leave out.
    """
    with pytest.raises(UsageError, match=f"{reason}.*leave --dynamic-batch out"):
        capture_source(resolve(trouble(factory, input_size=(8, 8), batch=(1, 4))))


def test_an_input_with_another_first_axis_does_not_share_the_batch():
    """
    Five anchors stay five; an input that is given like the images, one beside each, shares it.
    """
    shapes = {"anchors": (5, 4), "prior": (1, 4)}
    source = resolve(trouble("WithAnchors", input_size=(8, 8), inputs=shapes, batch=(1, 4)))
    graph = capture_source(source)

    assert [(None, 3, 8, 8), (5, 4), (None, 4)] == [spec.shape for spec in graph.inputs]
    assert (None, 5) == static_shape(outputs(graph.module.graph)[0].meta["val"])
