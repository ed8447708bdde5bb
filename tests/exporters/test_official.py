"""What the official converters write, to be compared with: the same function, in files that their runtimes open."""

import numpy as np
import pytest
import torch
from torch import nn

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.errors import ConversionError
from coordatt_deploy.exporters import official
from coordatt_deploy.formats import FORMATS, Format, Precision
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.tensors import decode, encode

# Where none quantizes a file here, and why.
NO_QUANTIZER = {Format.COREML: "needs macOS", Format.EXECUTORCH: "quantizes networks in torch"}


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten()).eval()  # fmt: skip


class Refused(nn.Module):
    """Holds an operator that no converter knows."""

    def forward(self, x):
        return torch.special.bessel_j0(x)


def computed(path, made, kind, precision, image):
    artifact = Artifact(path.name, kind, precision, None, None, 0, "", made.inputs, made.outputs, "")
    with runtime(kind).open_artifact(path, artifact) as runner:
        (given,), (returned,) = runner.inputs, runner.outputs
        return decode(runner.infer({given.name: encode(image, given)})[returned.name], returned)


@pytest.mark.slow
@pytest.mark.parametrize("kind", Format)
def test_the_file_computes_what_the_module_does(kind, tmp_path):
    """
    Its inputs and outputs are as described; in int8 as well, where the quantizer runs here.
    """
    net, image = module(), torch.randn(1, 3, 12, 16)
    images = np.random.default_rng(0).standard_normal((8, 3, 12, 16), np.float32)
    path, small = (tmp_path / f"{name}{FORMATS[kind].suffix}" for name in ("net", "small"))
    expected = net(image).detach().numpy()

    made = official(kind).export(net, image, Precision.FP32, path)

    assert np.allclose(expected, computed(path, made, kind, Precision.FP32, image.numpy()), atol=1e-4)
    if kind in NO_QUANTIZER:
        with pytest.raises(ConversionError, match=NO_QUANTIZER[kind]):
            official(kind).quantize(path, images, small)
    else:
        quantized = official(kind).quantize(path, images, small)
        found = computed(small, quantized, kind, Precision.INT8, image.numpy())
        assert np.abs(found - expected).max() < 0.15 * np.abs(expected).max()  # its accuracy is its own affair
        assert not np.array_equal(found, computed(path, made, kind, Precision.FP32, image.numpy()))


@pytest.mark.slow
@pytest.mark.parametrize("kind", Format)
def test_what_a_converter_refuses_is_told_by_its_name(kind, tmp_path):
    """
    In one line, with the log of the rest.
    """
    with pytest.raises(ConversionError, match=r"cannot convert it: .* its own text is in"):
        official(kind).export(Refused(), torch.rand(1, 3, 8, 8), Precision.FP32, tmp_path / f"n{FORMATS[kind].suffix}")
