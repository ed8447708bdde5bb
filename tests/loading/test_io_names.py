"""Names of inputs and outputs."""

import numpy as np
import pytest
import torch
from zoo_requests import zoo

from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.execution import run
from coordatt_deploy.loading.io_names import output_names
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.loaded_model import capture_source


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
