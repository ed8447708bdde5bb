"""What coremltools writes wrong, or not at all: held against torch through the evaluator, which means Core ML."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, Preprocessing
from coordatt_deploy.errors import UnsupportedOperatorsError
from coordatt_deploy.exporters import ExportRequest
from coordatt_deploy.exporters.coreml import export as coreml
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.graph.capture import capture
from coordatt_deploy.graph.graph import DynamicSize
from coordatt_deploy.graph.lowering.lower import lower
from coordatt_deploy.graph.lowering.target import target_of
from coordatt_deploy.runtimes.coreml.evaluator.package import load

ALLOWED = {Precision.FP32: 1e-5, Precision.FP16: 4e-3}


class Function(nn.Module):
    """A function of an image, behind a convolution: what a converter sees of a constant input is another matter."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.function = nn.Conv2d(3, 4, 3, padding=1), function

    def forward(self, x):
        return self.function(self.stem(x))


def packaged(folder, module, size, dynamic=None, precision=Precision.FP32):
    """Export *module* and open the package in the evaluator."""
    graph = capture(module.eval(), (torch.randn(1, 3, *size),), dynamic=dynamic)
    graph = lower(graph, target_of(Format.COREML))[0]
    path = folder / f"{precision.value}.mlpackage"
    exported = coreml.export(graph, ExportRequest(ModelSpec("net", Preprocessing(size)), precision, path))
    return load(path), exported


def check(program, module, sizes, precision=Precision.FP32):
    """Hold the program to torch on every size."""
    for size in sizes:
        x = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = module(x).numpy()
        (output,) = (port.name for port in program.outputs)
        actual = program.evaluate({program.inputs[0].name: x.numpy()}, [output])[output]
        np.testing.assert_allclose(actual, expected, rtol=0, atol=ALLOWED[precision] * max(1, np.abs(expected).max()))


POOLS = {
    "ceil": (nn.AvgPool2d(2, 2, ceil_mode=True), 9),
    "ceil, padding counted": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), 9),
    "ceil, padding not counted": (nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), 8),
    "the last window left out of one axis": (nn.AvgPool2d(3, 3, 1, ceil_mode=True), 8),
    "the last window left out of both": (nn.AvgPool2d(3, 3, 1, ceil_mode=True), 11),
    "a window smaller than its stride": (nn.AvgPool2d(1, 3, ceil_mode=True), 9),
    "much padding": (nn.AvgPool2d(7, 4, 3), 12),
    "divisor": (nn.AvgPool2d(3, 2, 1, ceil_mode=True, divisor_override=5), 8),
    "maximum, the last window left out": (nn.MaxPool2d(3, 3, 1, ceil_mode=True), 8),
}


@pytest.mark.parametrize("precision", ALLOWED)
@pytest.mark.parametrize("name", POOLS)
def test_pools(name, precision, tmp_path):
    """
    Pools mean what torch means, also where Core ML counts what hangs over the edge.
    """
    pool, size = POOLS[name]
    module = Function(pool)

    program, exported = packaged(tmp_path, module, (size, size + 1), precision=precision)

    check(program, module, [(size, size + 1)], precision)
    assert all(
        layer.parts for layer in exported.layers.layers if "pool" in layer.layer_id or "function" in layer.layer_id
    )


OPEN_POOLS = {
    "ceil": nn.AvgPool2d(3, 2, ceil_mode=True),
    "ceil, padding counted": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "ceil, padding not counted": nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "much padding": nn.AvgPool2d(7, 4, 3),
    "divisor": nn.AvgPool2d(3, 2, ceil_mode=True, divisor_override=5),
}


@pytest.mark.parametrize("name", OPEN_POOLS)
def test_pools_of_sizes_that_only_the_run_knows(name, tmp_path):
    """
    At every size the same, though no map of shares can be computed beforehand.
    """
    module = Function(OPEN_POOLS[name])

    program, _ = packaged(tmp_path, module, (16, 16), DynamicSize(8, 32, 8))

    check(program, module, [(8, 8), (16, 24), (32, 8)])


def test_without_the_correction_the_file_is_wrong(tmp_path, monkeypatch):
    """
    coremltools' own conversion of the same pool is not called right: its last column is not torch's.
    """
    monkeypatch.setattr(coreml, "corrected", lambda _: memoryview(b""))  # a context that does nothing
    module = Function(OPEN_POOLS["ceil"])

    program, _ = packaged(tmp_path, module, (16, 16), DynamicSize(8, 32, 8))

    with pytest.raises(AssertionError, match="Mismatched elements"):
        check(program, module, [(8, 8)])


@pytest.mark.parametrize("precision", ALLOWED)
def test_two_to_a_power(precision, tmp_path):
    """
    2 to the power of x is not x squared; 3 to the power of x, and x squared, are as they were.
    """
    module = Function(lambda y: torch.pow(2.0, y) + 3.0**y - y**2)

    program, _ = packaged(tmp_path, module, (4, 4), precision=precision)

    check(program, module, [(4, 4)], precision)
    assert "exp2" in {step.operator for step in program.steps}


def test_slopes_of_what_is_no_image(tmp_path):
    """
    PReLU over vectors and sequences, a slope each.
    """
    slopes = nn.Parameter(torch.tensor([0.1, 0.5, -0.2, 0.9]))
    module = Function(lambda y: F.prelu(y.flatten(2), slopes).mean(2) + F.prelu(y.mean((2, 3)), slopes))

    program, _ = packaged(tmp_path, module, (4, 5))

    check(program, module, [(4, 5)])
    assert "prelu" not in {step.operator for step in program.steps}


@pytest.mark.parametrize("factor", [1.3, 1.7, 2.5])
def test_nearest_neighbours_by_a_fractional_factor(factor, tmp_path):
    """
    torch goes by the factor that is given, Core ML by the ratio of the sizes: written as torch means it.
    """
    module = Function(lambda y: F.interpolate(y, scale_factor=factor))

    program, _ = packaged(tmp_path, module, (7, 11))

    check(program, module, [(7, 11)])


SIZES = [(8, 8), (16, 24), (32, 8)]
RESIZED = {
    "bilinear, twice as large": lambda y: F.interpolate(y[:, :, ::2, ::2], size=y.shape[2:], mode="bilinear"),
    "bilinear, corners aligned": lambda y: F.interpolate(
        y[:, :, ::2, ::2], size=y.shape[2:], mode="bilinear", align_corners=True),
    "bilinear, no factor": lambda y: F.interpolate(y[:, :, 1:-1, 2:], size=y.shape[2:], mode="bilinear"),
    "bilinear, no factor, aligned": lambda y: F.interpolate(
        y[:, :, 1:-1, 2:], size=y.shape[2:], mode="bilinear", align_corners=True),
    "nearest, four times as large": lambda y: F.interpolate(y[:, :, ::4, ::4], size=y.shape[2:]),
    "nearest, no factor": lambda y: F.interpolate(y[:, :, 1:-1, 2:], size=y.shape[2:]),
    "bilinear, by a half": lambda y: F.interpolate(y[:, :, 1:], scale_factor=0.5, mode="bilinear"),
    "nearest, by a half": lambda y: F.interpolate(y[:, :, 1:], scale_factor=0.5),
    "bilinear, by a factor that no float32 is": lambda y: F.interpolate(y, scale_factor=(1.3, 0.7), mode="bilinear"),
    "filled to its size": lambda y: y + y.new_ones(y.shape[2], y.shape[3]) * 0.3,
    "cropped": lambda y: F.pad(y, (-1, 2, 0, -3)),
    "unequal parts": lambda y: torch.cat(
        torch.cat([y.mean(3), y.mean(2)], 2).split([y.shape[2], y.shape[3]], 2)[::-1], 2),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("precision", ALLOWED)
@pytest.mark.parametrize("name", RESIZED)
def test_sizes_that_only_the_run_knows(name, precision, tmp_path):
    """
    Resizing to another tensor's size, by whole factors or none, and unequal parts, at every allowed size.
    """
    module = Function(RESIZED[name])

    program, _ = packaged(tmp_path, module, (16, 16), DynamicSize(8, 32, 8), precision)

    check(program, module, SIZES, precision)
    if "large" in name or "corners" in name:  # a factor was found and proven: one operator
        assert "gather" not in {step.operator for step in program.steps}


def test_a_factor_that_is_no_fraction_at_every_size_is_refused_with_its_line(tmp_path):
    """
    The negative: torch takes 28 rows of 100 for 0.29, 29 hundredths would be 29.
    """
    module = Function(lambda y: F.interpolate(y, scale_factor=0.29, mode="bilinear"))

    with pytest.raises(UnsupportedOperatorsError, match="resize to a size instead") as caught:
        packaged(tmp_path, module, (98, 98), DynamicSize(98, 101))

    (refused,) = caught.value.refused
    assert "upsample_bilinear2d" == refused.operator
    assert "test_torch_operators.py" in refused.line


def test_windows_left_out_on_one_axis_alone_are_right(tmp_path):
    """
    Windows that torch leaves out on one axis and keeps on the other, which Core ML has no word for.
    """
    module = Function(nn.AvgPool2d((1, 2), (3, 3), ceil_mode=True))

    program, _ = packaged(tmp_path, module, (9, 10))

    check(program, module, [(9, 10)], Precision.FP32)
