"""Programs that torch.export saved."""

import numpy as np
import pytest
import torch
from zoo_requests import zoo

from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.execution import run
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.loaded_model import capture_source, reference_module
from coordatt_deploy.loading.model_request import ModelRequest


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
