"""What is asked for, checked before anything is loaded."""

import pytest

from coordatt_deploy.errors import UsageError
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.loading.preprocessing import (
    PreprocessingChanges,
)


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
