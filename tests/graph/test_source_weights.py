"""The reference's weights are those that everything was made from."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.errors import BundleError
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.graph import weights_sha256
from coordatt_deploy.graph.saved_graph import load_graph, save_graph
from coordatt_deploy.graph.source_weights import baked_sha256, check_source_weights
from coordatt_deploy.manifest import BakeReport, Manifest

IMAGE = TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW")


class Net(nn.Module):
    """With a buffer and a head that the forward pass never reads, tied weights, and a constant of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.again = self.conv
        self.auxiliary = nn.Linear(3, 7)
        self.register_buffer("scale", torch.tensor([0.5, 2.0, 1.0]))

    def forward(self, image):
        value = self.again(self.norm(self.conv(image)))
        return (value * torch.tensor(3.0)).mean((2, 3)) * self.scale


@pytest.fixture
def saved(tmp_path):
    """A folder with the captured graph, and the manifest of its bundle."""
    module = Net().eval()
    graph = capture(module, (torch.randn(1, 3, 8, 8),), input_names=["image"], output_names=["logits"])
    save_graph(graph, tmp_path, module.state_dict())
    spec = ModelSpec("net", Preprocessing((8, 8)), source_sha256=weights_sha256(module))
    return tmp_path, Manifest(spec, (IMAGE,), (IMAGE,), ())


def test_the_weights_that_the_bundle_was_made_from_are_recognised(saved):
    """Unused and tied tensors belong to the hash as well; the graph that is read back computes the same."""
    folder, manifest = saved

    assert check_source_weights(folder, manifest)
    assert "auxiliary.weight" in load_file(folder / "weights.safetensors")
    load_graph(folder)


@pytest.mark.parametrize("name", ["conv.weight", "norm.running_var", "scale", "auxiliary.bias"])
def test_other_weights_are_refused(saved, name):
    """One tensor with other values, in each role."""
    folder, manifest = saved
    tensors = load_file(folder / "weights.safetensors")
    save_file(tensors | {name: tensors[name] + 1}, folder / "weights.safetensors")

    with pytest.raises(BundleError, match="are not those that the bundle was made from"):
        check_source_weights(folder, manifest)


def test_a_state_without_its_tensors_is_refused(saved):
    """A list of names says nothing where a tensor is missing."""
    folder, manifest = saved
    document = json.loads((folder / "graph.json").read_text())
    (folder / "graph.json").write_text(json.dumps(document | {"state": document["state"] | {"more": "more"}}))

    with pytest.raises(BundleError, match="does not hold"):
        check_source_weights(folder, manifest)


def test_a_bundle_of_before_says_nothing(saved):
    """Without the list of names the weights are neither refused nor said to be verified."""
    folder, manifest = saved
    document = json.loads((folder / "graph.json").read_text())
    del document["state"]
    (folder / "graph.json").write_text(json.dumps(document))

    assert not check_source_weights(folder, manifest)


@pytest.mark.parametrize("softmax", [False, True])
def test_baked_preprocessing_is_part_of_the_hash(saved, softmax):
    """The hash of a baked bundle follows from the weights and from what was baked in; another preprocessing is not."""
    folder, manifest = saved
    before = manifest.model.preprocessing
    sha256 = baked_sha256(manifest.model.source_sha256, before, softmax=softmax)
    spec = replace(manifest.model, source_sha256=sha256)
    baked = replace(manifest, model=spec, bake=BakeReport((), "folded", 0.0, "", before))

    assert check_source_weights(folder, baked)
    other = replace(before, mean=(0.1, 0.2, 0.3))
    with pytest.raises(BundleError, match="are not those"):
        check_source_weights(folder, replace(baked, bake=replace(baked.bake, preprocessing=other)))
