"""The evaluator of ML Programs: every operator against torch, inside a package that was saved and read back."""

import inspect
import math
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from coordatt_deploy.errors import BundleError, InferenceError
from coordatt_deploy.exporters.coreml.export import write_package
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools as ct
from coordatt_deploy.runtimes.coreml.evaluator.operators import OPERATORS
from coordatt_deploy.runtimes.coreml.evaluator.package import UnknownOperatorError, block_of, load, read_model
from coordatt_deploy.runtimes.coreml.evaluator.windows import UnsupportedFormError

from coremltools.converters.mil.backend.mil.load import load as to_proto  # isort: skip - after the quiet import
from coremltools.converters.mil.mil import Builder as mb  # isort: skip  # noqa: N813 - as everybody calls it
from coremltools.converters.mil.mil import types  # isort: skip

IOS16, IOS17, IOS18 = ct.target.iOS16, ct.target.iOS17, ct.target.iOS18
MIL_TYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32, "bool": types.bool}
FEW = settings(max_examples=15, deadline=None)
BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float16])


def save(folder, build, arrays, opset=IOS16, shapes=None):
    """Save the program that *build* makes of one placeholder per array."""
    specs = [
        mb.TensorSpec(shape, MIL_TYPES[array.dtype.name])
        for shape, array in zip(shapes or [array.shape for array in arrays], arrays, strict=True)
    ]
    # the builder takes the inputs' names from the function's signature
    main = {1: lambda a: build(a), 2: lambda a, b: build(a, b), 3: lambda a, b, c: build(a, b, c)}[len(arrays)]
    program = mb.program(input_specs=specs, opset_version=opset)(main)
    package = Path(tempfile.mkdtemp(dir=folder)) / "net.mlpackage"
    with tempfile.TemporaryDirectory() as weights:
        model = to_proto(program, weights, False, opset.value)
        stored = Path(weights) / "weight.bin"
        write_package(package, model.SerializeToString(), stored.read_bytes() if stored.exists() else None)
    return package


def evaluate(build, *arrays, opset=IOS16, operator=None):
    """Save, read back, evaluate; give the outputs in order. The program must hold *operator*."""
    with tempfile.TemporaryDirectory() as folder:
        package = save(Path(folder), build, arrays, opset)
        program = load(package)
        if operator is not None:
            assert operator in {operation.type for operation in block_of(read_model(package)[0]).operations}
    feeds = {port.name: array for port, array in zip(program.inputs, arrays, strict=True)}
    values = program.evaluate(feeds, [port.name for port in program.outputs])
    results = [values[port.name] for port in program.outputs]
    assert [port.dtype for port in program.outputs] == [result.dtype.name for result in results]
    return results[0] if len(results) == 1 else results


def noise(*shape, low=-3.0, high=3.0, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(dtype)


def double(array):
    return torch.from_numpy(np.asarray(array, dtype=np.float64))


def check(expected, actual, factor=1.0):
    """Hold a float32 result to *factor* times 1e-6, and an fp16 result to one rounding of the true value."""
    expected = np.asarray(expected, dtype=np.float64)
    assert expected.shape == actual.shape
    if actual.dtype == np.float16:
        with np.errstate(over="ignore"):
            half_step = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float64) / 2
        allowed = half_step * 1.001 + 2e-6 * factor * np.abs(expected)
        assert (np.abs(expected - actual) <= allowed).all()
    else:
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=1e-30)
        np.testing.assert_allclose(actual, expected, rtol=1e-6 * factor, atol=1e-6 * factor * min(scale, 1.0))


# Operators on each element, with the interval that the inputs are drawn from.
ELEMENTWISE = {
    "abs": (torch.abs, -3, 3),
    "acos": (torch.acos, -1, 1),
    "asin": (torch.asin, -1, 1),
    "atan": (torch.atan, -3, 3),
    "atanh": (torch.atanh, -0.9, 0.9),
    "ceil": (torch.ceil, -3, 3),
    "cos": (torch.cos, -3, 3),
    "cosh": (torch.cosh, -3, 3),
    "erf": (torch.erf, -7, 7),
    "exp": (torch.exp, -3, 3),
    "exp2": (torch.exp2, -3, 3),
    "floor": (torch.floor, -3, 3),
    "identity": (lambda x: x, -3, 3),
    "inverse": (lambda x: 1 / (x + 0.5), 0.1, 3),
    "log": (lambda x: torch.log(x + 0.5), 0.1, 3),
    "relu": (F.relu, -3, 3),
    "relu6": (F.relu6, -9, 9),
    "round": (torch.round, -3, 3),
    "rsqrt": (lambda x: torch.rsqrt(x + 0.5), 0.1, 3),
    "sigmoid": (torch.sigmoid, -9, 9),
    "sign": (torch.sign, -3, 3),
    "silu": (F.silu, -9, 9),
    "sin": (torch.sin, -3, 3),
    "sinh": (torch.sinh, -3, 3),
    "softplus": (F.softplus, -9, 9),
    "softsign": (F.softsign, -3, 3),
    "sqrt": (torch.sqrt, 0, 3),
    "square": (torch.square, -3, 3),
    "tan": (torch.tan, -1, 1),
    "tanh": (torch.tanh, -3, 3),
}
EPSILONS = {"inverse", "log", "rsqrt"}


@BOTH
@pytest.mark.parametrize("operator", ELEMENTWISE)
def test_elementwise(operator, dtype):
    """
    Each function of one value is torch's.
    """
    function, low, high = ELEMENTWISE[operator]
    x = noise(2, 3, 5, 7, low=low, high=high, dtype=dtype)
    extra = {"epsilon": dtype(0.5)} if operator in EPSILONS else {}

    actual = evaluate(lambda a: getattr(mb, operator)(x=a, **extra), x, operator=operator)

    check(function(double(x)), actual)


@pytest.mark.parametrize("operator", ["erf", "relu", "relu6", "sigmoid", "silu", "softplus", "tanh", "exp", "sqrt"])
def test_special_values(operator):
    """
    Zeros, infinities and NaN come out as torch has them; NaN is never hidden.
    """
    x = np.array([0.0, -0.0, 1e-30, -1e-30, 90.0, -90.0, np.inf, np.nan], dtype=np.float32)

    actual = evaluate(lambda a: getattr(mb, operator)(x=a), x)
    expected = ELEMENTWISE[operator][0](torch.from_numpy(x)).numpy()

    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-38)


def test_ties_round_to_even():
    """
    Halves go to the even neighbour.
    """
    x = np.array([-1.5, -0.5, 0.5, 1.5, 2.5], dtype=np.float32)

    assert [-2.0, 0.0, 0.0, 2.0, 2.0] == evaluate(lambda a: mb.round(x=a), x).tolist()


def test_nan_passes_through_every_activation():
    """
    No activation and no comparison with a constant turns NaN into a number.
    """
    x = np.full((1, 2, 1, 1), np.nan, dtype=np.float32)
    for operator, (attributes, _) in ACTIVATIONS.items():
        assert np.isnan(evaluate(lambda a, f=operator, k=attributes: getattr(mb, f)(x=a, **k), x)).all(), operator


# Activations with attributes.
ACTIVATIONS = {
    "clamped_relu": ({"alpha": 0.2, "beta": 1.5}, lambda x: torch.clamp(F.leaky_relu(x, 0.2), max=1.5)),
    "clip": ({"alpha": -0.7, "beta": 1.1}, lambda x: torch.clamp(x, -0.7, 1.1)),
    "elu": ({"alpha": 0.8}, lambda x: F.elu(x, 0.8)),
    "leaky_relu": ({"alpha": 0.1}, lambda x: F.leaky_relu(x, 0.1)),
    "linear_activation": ({"alpha": 1.7, "beta": -0.3}, lambda x: 1.7 * x - 0.3),
    "prelu": ({"alpha": np.array([0.1, 0.6])}, lambda x: F.prelu(x, torch.tensor([0.1, 0.6], dtype=x.dtype))),
    "scaled_tanh": ({"alpha": 1.7, "beta": 0.6}, lambda x: 1.7 * torch.tanh(0.6 * x)),
    "sigmoid_hard": ({"alpha": 1 / 6, "beta": 0.5}, F.hardsigmoid),
    "threshold": ({"alpha": 0.4}, lambda x: torch.clamp(x, min=0.4)),
    "thresholded_relu": ({"alpha": -0.5}, lambda x: F.threshold(x, -0.5, 0.0)),
}  # fmt: skip


def typed(attributes, dtype):
    return {key: np.asarray(value).astype(dtype)[()] for key, value in attributes.items()}


@pytest.mark.parametrize("opset", [IOS16, IOS17])
@pytest.mark.parametrize("operator", ACTIVATIONS)
def test_activations(operator, opset):
    """
    Each activation is torch's, also where iOS 17 lets its constants have another type than its input.
    """
    attributes, function = ACTIVATIONS[operator]
    dtype = np.float16 if opset is IOS17 and operator not in ("clip", "threshold") else np.float32
    constants = typed(attributes, dtype)
    x = noise(2, 2, 5, 3)

    actual = evaluate(lambda a: getattr(mb, operator)(x=a, **constants), x, opset=opset, operator=operator)

    factor = 1.0 if dtype is np.float32 else 1e3  # fp16 constants are off by 2^-11
    check(function(double(x)), actual, factor)


@BOTH
@pytest.mark.parametrize(
    ("mode", "function"),
    [
        ("EXACT", F.gelu),
        ("TANH_APPROXIMATION", partial(F.gelu, approximate="tanh")),
        ("SIGMOID_APPROXIMATION", lambda x: x * torch.sigmoid(1.702 * x)),
    ],
)
def test_gelu(mode, function, dtype):
    """
    All three forms of GELU are torch's.
    """
    x = noise(3, 500, low=-6, high=6, dtype=dtype)

    check_sum(function(double(x)), evaluate(lambda a: mb.gelu(x=a, mode=mode), x, operator="gelu"))


@FEW
@given(alpha=st.floats(-2, 2, width=32), beta=st.floats(-2, 2, width=32))
def test_softplus_parametric(alpha, beta):
    """
    It is alpha * log(1 + exp(beta * x)), per channel.
    """
    x, a, b = noise(2, 2, 3, 4), np.array([alpha, 1.0], np.float32), np.array([beta, 0.5], np.float32)

    actual = evaluate(lambda v: mb.softplus_parametric(x=v, alpha=a, beta=b), x)

    shape = (1, 2, 1, 1)
    check(double(a).reshape(shape) * F.softplus(double(b).reshape(shape) * double(x), threshold=1e9), actual, 4)


@BOTH
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_softmax(axis, dtype):
    """
    Softmax is torch's along each axis, for inputs whose exponentials overflow as well.
    """
    x = noise(3, 4, 5, low=-200, high=200, dtype=dtype)

    actual = evaluate(lambda a: mb.softmax(x=a, axis=axis), x, operator="softmax")

    assert np.abs(torch.softmax(double(x), axis).numpy() - actual).max() < (1e-6 if dtype is np.float32 else 5e-4)


BINARY = {
    "add": torch.add, "floor_div": torch.floor_divide, "maximum": torch.maximum, "minimum": torch.minimum,
    "mod": torch.remainder, "mul": torch.mul, "pow": torch.pow, "real_div": torch.div, "sub": torch.sub,
    "equal": torch.eq, "greater": torch.gt, "greater_equal": torch.ge, "less": torch.lt, "less_equal": torch.le,
    "not_equal": torch.ne,
}  # fmt: skip
LOGICAL = {"logical_and": torch.logical_and, "logical_or": torch.logical_or, "logical_xor": torch.logical_xor}


@pytest.mark.parametrize("operator", BINARY)
@settings(max_examples=5, deadline=None)
@given(
    shapes=hnp.mutually_broadcastable_shapes(num_shapes=2, min_dims=1, max_dims=4, max_side=4),
    dtype=st.sampled_from([np.float32, np.float16, np.int32]),
    seed=st.integers(0, 99),
)
def test_binary(operator, shapes, dtype, seed):
    """
    Each function of two values is torch's, broadcasting included.
    """
    one, two = shapes.input_shapes
    x, y = noise(*one, low=1, high=9, seed=seed), noise(*two, low=1, high=3, seed=seed + 1)
    if operator in ("floor_div", "mod", "pow") or dtype is np.int32:
        x, y = np.floor(x), np.floor(y)  # away from the jumps, where a rounding of the quotient decides
    x, y = x.astype(dtype), y.astype(dtype)

    def build(a, b):
        result = getattr(mb, operator)(x=a, y=b)
        return mb.cast(x=result, dtype="int32") if result.dtype == types.bool else result

    actual = evaluate(build, x, y, operator=operator)
    expected = BINARY[operator](double(x), double(y)).numpy()

    if actual.dtype == np.int32:
        np.testing.assert_array_equal(actual, np.trunc(expected))
    else:
        check(expected, actual)


@pytest.mark.parametrize("operator", [*LOGICAL, "logical_not", "select"])
def test_logical(operator):
    """
    Booleans follow torch.
    """
    x, y = noise(3, 4), noise(3, 4, seed=1)
    p, q = torch.from_numpy(x) > 0, torch.from_numpy(y) > 0

    def build(a, b):
        left, right = mb.greater(x=a, y=0.0), mb.greater(x=b, y=0.0)
        if operator == "select":
            return mb.select(cond=left, a=a, b=b)
        inputs = {"x": left} if operator == "logical_not" else {"x": left, "y": right}
        return mb.cast(x=getattr(mb, operator)(**inputs), dtype="int32")

    expected = {
        "logical_not": lambda: torch.logical_not(p),
        "select": lambda: torch.where(p, torch.from_numpy(x), torch.from_numpy(y)),
    }.get(operator, lambda: LOGICAL[operator](p, q))()

    np.testing.assert_array_equal(evaluate(build, x, y, operator=operator), expected.numpy())


def test_cast_truncates():
    """
    Floats become integers as in C, and any number but 0 is true.
    """
    x = np.array([-1.9, -0.5, 0.0, 0.5, 1.9], dtype=np.float32)

    def build(a):
        true = mb.cast(x=mb.cast(x=a, dtype="bool"), dtype="int32")
        return mb.cast(x=a, dtype="int32"), true, mb.cast(x=a, dtype="fp16")

    whole, true, half = evaluate(build, x)

    assert [-1, 0, 0, 0, 1] == whole.tolist()
    assert [1, 1, 0, 1, 1] == true.tolist()
    assert x.astype(np.float16).tolist() == half.tolist()


REDUCTIONS = {
    "reduce_l1_norm": lambda x, axes, keep: x.abs().sum(axes, keep),
    "reduce_l2_norm": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "reduce_log_sum": lambda x, axes, keep: x.sum(axes, keep).log(),
    "reduce_log_sum_exp": torch.logsumexp,
    "reduce_max": torch.amax,
    "reduce_mean": torch.mean,
    "reduce_min": torch.amin,
    "reduce_prod": lambda x, axes, keep: x.log().sum(axes, keep).exp(),
    "reduce_sum": torch.sum,
    "reduce_sum_square": lambda x, axes, keep: x.square().sum(axes, keep),
}


@pytest.mark.parametrize("operator", REDUCTIONS)
@settings(max_examples=6, deadline=None)
@given(
    where=st.lists(st.tuples(st.integers(1, 5), st.sampled_from(["keep", "front", "back"])), min_size=1, max_size=3),
    keep=st.booleans(),
    dtype=st.sampled_from([np.float32, np.float16]),
)
def test_reductions(operator, where, keep, dtype):
    """
    Each reduction is torch's over any set of axes, counted from either end.
    """
    shape = [4, *(size for size, _ in where)]  # the first axis is kept: a result of rank 0 is no tensor
    picked = {"keep": None, "front": 1, "back": -len(where)}
    axes = [number + picked[side] for number, (_, side) in enumerate(where) if side != "keep"] or [1]
    x = noise(*shape, low=0.5, high=1.5, dtype=dtype)

    actual = evaluate(lambda a: getattr(mb, operator)(x=a, axes=axes, keep_dims=keep), x, operator=operator)

    check(REDUCTIONS[operator](double(x), tuple(axes), keep), actual, 4)


@pytest.mark.parametrize("opset", [IOS16, IOS17])
@pytest.mark.parametrize(("operator", "function"), [("reduce_argmax", torch.argmax), ("reduce_argmin", torch.argmin)])
def test_positions_of_extremes(operator, function, opset):
    """
    They are torch's.
    """
    x = noise(3, 4, 5)

    actual = evaluate(lambda a: getattr(mb, operator)(x=a, axis=1, keep_dims=True), x, opset=opset, operator=operator)

    np.testing.assert_array_equal(actual, function(torch.from_numpy(x), 1, keepdim=True).numpy())


IMAGE = noise(2, 8, 4, 6)
TENSOR = torch.from_numpy(IMAGE)
# Operators that only move data: how the program is built, and what torch gives.
MOVES = {
    "concat": (lambda a: mb.concat(values=[a, a], axis=2), torch.cat([TENSOR, TENSOR], 2)),
    "concat interleaved": (
        lambda a: mb.concat(values=[a, a], axis=1, interleave=True), torch.repeat_interleave(TENSOR, 2, 1)),
    "crop": (lambda a: mb.crop(x=a, crop_height=[1, 0], crop_width=[2, 1]), TENSOR[:, :, 1:, 2:-1]),
    "depth_to_space": (
        lambda a: mb.depth_to_space(x=a, block_size=2),
        TENSOR.reshape(2, 2, 2, 2, 4, 6).permute(0, 3, 4, 1, 5, 2).reshape(2, 2, 8, 12)),
    "expand_dims": (lambda a: mb.expand_dims(x=a, axes=[0, -1]), TENSOR[None, ..., None]),
    "fill": (lambda a: mb.add(x=a, y=mb.fill(shape=mb.shape(x=a), value=2.0)), TENSOR + 2.0),
    "flatten2d": (lambda a: mb.flatten2d(x=a, axis=2), TENSOR.reshape(16, 24)),
    "gather": (lambda a: mb.gather(x=a, indices=[3, 0, -1], axis=1), TENSOR[:, [3, 0, -1]]),
    "gather_along_axis": (
        lambda a: mb.gather_along_axis(x=a, indices=np.ones((2, 8, 1, 6), np.int32), axis=2), TENSOR[:, :, 1:2]),
    "pad": (
        lambda a: mb.pad(x=a, pad=[1, 0, 2, 3], mode="constant", constant_val=0.5),
        F.pad(TENSOR, (2, 3, 1, 0), value=0.5)),
    "pad reflect": (
        lambda a: mb.pad(x=a, pad=[1, 2, 3, 1], mode="reflect"), F.pad(TENSOR, (3, 1, 1, 2), mode="reflect")),
    "pad replicate": (
        lambda a: mb.pad(x=a, pad=[1, 2, 3, 1], mode="replicate"), F.pad(TENSOR, (3, 1, 1, 2), mode="replicate")),
    "pixel_shuffle": (lambda a: mb.pixel_shuffle(x=a, upscale_factor=2), F.pixel_shuffle(TENSOR, 2)),
    "pixel_unshuffle": (lambda a: mb.pixel_unshuffle(x=a, downscale_factor=np.uint32(2)), F.pixel_unshuffle(TENSOR, 2)),
    "range_1d": (
        lambda a: mb.add(x=a, y=mb.range_1d(start=mb.reduce_min(x=mb.sub(x=a, y=a)), end=6.0, step=1.0)),
        TENSOR + torch.arange(6)),
    "reshape": (lambda a: mb.reshape(x=a, shape=[0, 2, -1, 6]), TENSOR.reshape(2, 2, -1, 6)),
    "reverse": (lambda a: mb.reverse(x=a, axes=[1, -1]), TENSOR.flip(1, 3)),
    "reverse all": (lambda a: mb.reverse(x=a), TENSOR.flip(0, 1, 2, 3)),
    "slice_by_index": (
        lambda a: mb.slice_by_index(
            x=a, begin=[0, -3, 1, 5], end=[1, 7, 0, 0], stride=[1, 2, 1, -2],
            end_mask=[False, False, True, False], squeeze_mask=[True, False, False, False]),
        torch.from_numpy(IMAGE[0, -3:7:2, 1:, 5:0:-2].copy())),
    "slice_by_index reversed": (
        lambda a: mb.slice_by_index(
            x=a, begin=[0, 0, 0, 0], end=[0, 0, 0, 0], stride=[1, -1, 1, -2],
            begin_mask=[True] * 4, end_mask=[True] * 4),
        torch.from_numpy(IMAGE[:, ::-1, :, ::-2].copy())),
    "slice_by_size": (lambda a: mb.slice_by_size(x=a, begin=[0, 2, 1, 0], size=[-1, 3, -1, 2]), TENSOR[:, 2:5, 1:, :2]),
    "space_to_depth": (
        lambda a: mb.space_to_depth(x=a, block_size=2),
        TENSOR.reshape(2, 8, 2, 2, 3, 2).permute(0, 3, 5, 1, 2, 4).reshape(2, 32, 2, 3)),
    "split": (lambda a: mb.split(x=a, num_splits=2, axis=1), TENSOR.chunk(2, 1)),
    "split sizes": (lambda a: mb.split(x=a, split_sizes=[1, 5, 2], axis=1), TENSOR.split([1, 5, 2], 1)),
    "squeeze": (lambda a: mb.squeeze(x=mb.expand_dims(x=a, axes=[0, 3])), TENSOR),
    "squeeze axes": (lambda a: mb.squeeze(x=mb.expand_dims(x=a, axes=[0, 3]), axes=[-3]), TENSOR[None]),
    "stack": (lambda a: mb.stack(values=[a, a], axis=1), torch.stack([TENSOR, TENSOR], 1)),
    "tile": (lambda a: mb.tile(x=a, reps=[1, 2, 1, 3]), TENSOR.repeat(1, 2, 1, 3)),
    "transpose": (lambda a: mb.transpose(x=a, perm=[0, -1, 1, 2]), TENSOR.permute(0, 3, 1, 2)),
}  # fmt: skip


@pytest.mark.parametrize("opset", [IOS16, IOS17])
@pytest.mark.parametrize("case", MOVES)
def test_moves(case, opset):
    """
    Data lands where torch puts it, to the bit.
    """
    build, expected = MOVES[case]
    actual = evaluate(build, IMAGE, opset=opset, operator=case.split()[0])

    expected = expected if isinstance(expected, tuple) else (expected,)
    for want, have in zip(expected, actual if isinstance(actual, list) else [actual], strict=True):
        np.testing.assert_array_equal(have, want.numpy())


@pytest.mark.parametrize("case", [case for case in MOVES if case.split()[0] not in ("fill", "range_1d", "pad")])
def test_moves_keep_fp16(case):
    """
    Moving fp16 values changes none of them.
    """
    image = IMAGE.astype(np.float16)
    wide = MOVES[case][1]
    actual = evaluate(MOVES[case][0], image)

    expected = wide if isinstance(wide, tuple) else (wide,)
    for want, have in zip(expected, actual if isinstance(actual, list) else [actual], strict=True):
        np.testing.assert_array_equal(have, want.numpy().astype(np.float16))


def test_shape_of_a_flexible_input(tmp_path):
    """
    A program asks for the size it is given, and is right at each one.
    """

    def build(a):
        sizes = mb.shape(x=a)
        half = mb.gather(x=sizes, indices=[2], axis=0)
        return mb.reshape(x=a, shape=mb.concat(values=[np.array([-1], np.int32), half], axis=0))

    symbols = [(1, 3, ct.converters.mil.mil.get_new_symbol(), 4)]
    program = load(save(tmp_path, build, [np.zeros((1, 3, 2, 4), np.float32)], shapes=symbols))

    assert (1, 3, None, 4) == program.inputs[0].shape
    for size in (2, 5):
        x = noise(1, 3, size, 4)
        (actual,) = program.evaluate({"a": x}, [program.outputs[0].name]).values()
        np.testing.assert_array_equal(x.reshape(-1, size), actual)


# Windows.


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 2, 4]))
    per_group_in, per_group_out = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    per_axis = lambda low, high: draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))  # noqa: E731
    return {
        "groups": groups,
        "channels": (groups * per_group_in, groups * per_group_out),
        "kernel": per_axis(1, 3),
        "strides": per_axis(1, 3),
        "dilations": per_axis(1, 2),
        "size": per_axis(5, 8),
        "pad": draw(st.lists(st.integers(0, 2), min_size=2 * rank, max_size=2 * rank)),
        "bias": draw(st.booleans()),
        "dtype": draw(st.sampled_from([np.float32, np.float16])),
    }


def torch_pad(x, pad):
    """Pad as MIL says it: before and after, from the first spatial axis on."""
    pairs = [tuple(pad[i : i + 2]) for i in range(0, len(pad), 2)]
    return F.pad(x, [n for pair in reversed(pairs) for n in pair])


def same_padding(case, lower):
    """What TensorFlow's SAME asks for: ceil(size / stride) outputs, the odd element after (or before) the input."""
    pads = []
    for n, k, s, d in zip(case["size"], case["kernel"], case["strides"], case["dilations"], strict=True):
        total = max(0, (math.ceil(n / s) - 1) * s + (k - 1) * d + 1 - n)
        less, more = total // 2, total - total // 2
        pads += [more, less] if lower else [less, more]
    return pads


CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@settings(max_examples=60, deadline=None)
@given(case=convolutions(), pad_type=st.sampled_from(["custom", "valid", "same", "same_lower"]))
def test_conv(case, pad_type):
    """
    Convolutions of any rank, stride, dilation, padding and grouping are torch's.
    """
    (inputs, outputs), dtype, rank = case["channels"], case["dtype"], len(case["size"])
    x = noise(2, inputs, *case["size"], low=-1, high=1, dtype=dtype)
    weight = noise(outputs, inputs // case["groups"], *case["kernel"], low=-1, high=1, dtype=dtype, seed=1)
    bias = noise(outputs, low=-1, high=1, dtype=dtype, seed=2) if case["bias"] else None
    pads = {
        "custom": case["pad"], "valid": [0] * 2 * rank,
        "same": same_padding(case, False), "same_lower": same_padding(case, True),
    }[pad_type]  # fmt: skip
    attributes = {key: case[key] for key in ("strides", "dilations", "groups")} | {"pad_type": pad_type}
    if pad_type == "custom":
        attributes["pad"] = case["pad"]
    if bias is not None:
        attributes["bias"] = bias

    actual = evaluate(lambda a: mb.conv(x=a, weight=weight, **attributes), x, operator="conv")
    expected = CONVOLVE[rank](
        torch_pad(double(x), pads), double(weight), None if bias is None else double(bias),
        stride=case["strides"], dilation=case["dilations"], groups=case["groups"],
    )  # fmt: skip

    check_sum(expected, actual)


def check_sum(expected, actual):
    """For sums whose terms cancel: held to the size of the terms, about 1 here, not of the result."""
    expected = np.asarray(expected, dtype=np.float64)
    assert expected.shape == actual.shape
    half_step = 0.0
    if actual.dtype == np.float16:
        half_step = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float64) / 2 * 1.001
    assert (np.abs(expected - actual) <= half_step + 1e-5).all()


def test_conv_takes_a_weight_that_is_computed():
    """
    The weight may be a tensor of the program.
    """
    x, weight = noise(1, 3, 6, 6), noise(4, 3, 3, 3, seed=1)

    actual = evaluate(lambda a, b: mb.conv(x=a, weight=b, pad_type="valid"), x, weight)

    check_sum(F.conv2d(double(x), double(weight)), actual)


@settings(max_examples=40, deadline=None)
@given(case=convolutions(), pad_type=st.sampled_from(["custom", "valid"]), extra=st.booleans())
def test_conv_transpose(case, pad_type, extra):
    """
    Transposed convolutions are torch's, with output_padding where an output shape is given.
    """
    (inputs, outputs), dtype, rank = case["channels"], case["dtype"], len(case["size"])
    pad = [n for n in case["pad"][:rank] for _ in (0, 1)] if pad_type == "custom" else [0] * 2 * rank
    x = noise(2, inputs, *case["size"], low=-1, high=1, dtype=dtype)
    weight = noise(inputs, outputs // case["groups"], *case["kernel"], low=-1, high=1, dtype=dtype, seed=1)
    more = [1 if extra and s > 1 else 0 for s in case["strides"]]
    function = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[rank]
    sizes = [
        (n - 1) * s + (k - 1) * d + 1 - 2 * p + m
        for n, s, k, d, p, m in zip(
            case["size"], case["strides"], case["kernel"], case["dilations"], pad[::2], more, strict=True)
    ]  # fmt: skip
    attributes = {key: case[key] for key in ("strides", "dilations", "groups")} | {"pad_type": pad_type, "pad": pad}
    if extra:
        attributes["output_shape"] = [2, outputs, *sizes]

    actual = evaluate(lambda a: mb.conv_transpose(x=a, weight=weight, **attributes), x, operator="conv_transpose")
    expected = function(
        double(x), double(weight), stride=case["strides"], padding=pad[::2], output_padding=more,
        groups=case["groups"], dilation=case["dilations"],
    )  # fmt: skip

    check_sum(expected, actual)


def test_conv_transpose_same_undoes_the_size_of_a_same_convolution():
    """
    With padding "same" the output is stride times as large; it is the gradient of the convolution that made it smaller.
    """
    x, weight = noise(1, 2, 3, 4, low=-1, high=1), noise(2, 3, 3, 3, low=-1, high=1, seed=1)

    actual = evaluate(lambda a: mb.conv_transpose(x=a, weight=weight, pad_type="same", strides=[2, 2]), x)
    larger = torch.zeros(1, 3, 6, 8, dtype=torch.float64, requires_grad=True)
    smaller = F.conv2d(F.pad(larger, (0, 1, 0, 1)), double(weight), stride=2)
    (expected,) = torch.autograd.grad(smaller, larger, double(x))

    check_sum(expected, actual)


@st.composite
def pools(draw):
    rank = draw(st.integers(1, 3))
    kernel = draw(st.lists(st.integers(1, 4), min_size=rank, max_size=rank))
    return {
        "kernel_sizes": kernel,
        # torch and MIL disagree, in ceil mode, about a window that begins behind the input
        "strides": [draw(st.integers(1, min(k, 3))) for k in kernel],
        "half": [draw(st.integers(0, k // 2)) for k in kernel],
        "size": draw(st.lists(st.integers(4, 7), min_size=rank, max_size=rank)),
        "ceil_mode": rank < 3 and draw(st.booleans()),
    }


AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
MAXIMUM = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


@BOTH
@settings(max_examples=40, deadline=None)
@given(case=pools(), exclude=st.booleans())
def test_pools(case, exclude, dtype):
    """
    Average and maximum pools are torch's: any padding, ceil mode, padding counted or not.
    """
    rank, half = len(case["size"]), case["half"]
    x = noise(2, 3, *case["size"], dtype=dtype)
    attributes = {key: case[key] for key in ("kernel_sizes", "strides", "ceil_mode")}
    attributes |= {"pad_type": "custom", "pad": [n for n in half for _ in (0, 1)]}
    where = {"kernel_size": case["kernel_sizes"], "stride": case["strides"], "padding": half,
             "ceil_mode": case["ceil_mode"]}  # fmt: skip

    mean, most = evaluate(
        lambda a: (
            mb.avg_pool(x=a, exclude_padding_from_average=exclude, **attributes),
            mb.max_pool(x=a, **attributes),
        ),
        x,
    )

    check_sum(AVERAGE[rank](double(x), count_include_pad=not exclude, **where), mean)
    np.testing.assert_array_equal(MAXIMUM[rank](double(x), **where).numpy(), most)


@pytest.mark.parametrize("pad_type", ["valid", "same", "same_lower"])
def test_pools_of_named_padding(pad_type):
    """
    The named paddings are those of convolutions.
    """
    case = {"size": [6, 5], "kernel": [3, 2], "strides": [2, 2], "dilations": [1, 1]}
    pads = [0] * 4 if pad_type == "valid" else same_padding(case, pad_type == "same_lower")
    x = noise(1, 2, 6, 5, low=0.1)
    attributes = {"kernel_sizes": [3, 2], "strides": [2, 2], "pad_type": pad_type}

    mean, most = evaluate(lambda a: (mb.avg_pool(x=a, **attributes), mb.max_pool(x=a, **attributes)), x)

    padded = torch_pad(double(x), pads)
    check(F.avg_pool2d(padded, (3, 2), 2), mean)
    np.testing.assert_array_equal(F.max_pool2d(padded, (3, 2), 2).numpy(), most)


def test_padding_never_wins_a_maximum():
    """
    The maximum of negative values stays negative at the border.
    """
    x = noise(1, 1, 3, 3, low=-2, high=-1)

    assert evaluate(lambda a: mb.max_pool(x=a, kernel_sizes=[3, 3], pad_type="same"), x).max() < 0


def test_a_window_outside_the_input_is_refused():
    """
    A pool whose last window would hold no element of the input is an error that names operator and tensor.
    """
    attributes = {"kernel_sizes": [1], "strides": [3], "pad_type": "custom", "pad": [0, 0], "ceil_mode": True}

    with pytest.raises(UnsupportedFormError, match=r"avg_pool at pooled: a window of 1 with stride 3") as caught:
        evaluate(lambda a: mb.avg_pool(x=a, name="pooled", **attributes), noise(1, 1, 3))
    assert 3 == caught.value.exit_code


# Resizing.


@settings(max_examples=20, deadline=None)
@given(size=st.tuples(st.integers(1, 6), st.integers(1, 6)), out=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_resize_bilinear(size, out):
    """
    Aligned and unaligned corners are torch's.
    """
    x = noise(2, 3, *size)

    def build(a):
        sizes = {"target_size_height": out[0], "target_size_width": out[1]}
        return (
            mb.resize_bilinear(x=a, sampling_mode="STRICT_ALIGN_CORNERS", **sizes),
            mb.resize_bilinear(x=a, sampling_mode="UNALIGN_CORNERS", **sizes),
        )

    aligned, unaligned = evaluate(build, x, operator="resize_bilinear")

    check_sum(F.interpolate(double(x), out, mode="bilinear", align_corners=True), aligned)
    check_sum(F.interpolate(double(x), out, mode="bilinear", align_corners=False), unaligned)


@pytest.mark.parametrize(
    ("mode", "out", "expected"),
    [
        ("UNALIGN_CORNERS", 5, [0.0, 0.1, 0.5, 0.9, 1.0]),
        ("STRICT_ALIGN_CORNERS", 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("ALIGN_CORNERS", 5, [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("DEFAULT", 5, [0.0, 0.4, 0.8, 1.0, 1.0]),
        ("OFFSET_CORNERS", 5, [0.1, 0.3, 0.5, 0.7, 0.9]),
        ("UNALIGN_CORNERS", 6, [0.0, 0.0, 1 / 3, 2 / 3, 1.0, 1.0]),
        ("STRICT_ALIGN_CORNERS", 6, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        ("DEFAULT", 6, [0.0, 1 / 3, 2 / 3, 1.0, 1.0, 1.0]),
        ("OFFSET_CORNERS", 6, [1 / 12, 3 / 12, 5 / 12, 7 / 12, 9 / 12, 11 / 12]),
        ("ALIGN_CORNERS", 1, [0.5]),
        ("STRICT_ALIGN_CORNERS", 1, [0.0]),
    ],
)
def test_sampling_modes(mode, out, expected):
    """
    The values 0 and 1 are sampled at the places that the operator set's documentation tabulates.
    """
    x = np.array([0.0, 1.0], dtype=np.float32).reshape(1, 1, 1, 2)

    old = evaluate(
        lambda a: mb.resize_bilinear(x=a, target_size_height=1, target_size_width=out, sampling_mode=mode), x
    )
    new = evaluate(
        lambda a: mb.resize(
            x=a, shape=np.array([0, out], np.int32), resized_dims=np.uint32(2), sampling_mode=mode,
            interpolation_mode="LINEAR"),
        x, opset=IOS17, operator="resize",
    )  # fmt: skip

    np.testing.assert_allclose(old.ravel(), expected, atol=1e-6)
    np.testing.assert_allclose(new.ravel(), expected, atol=1e-6)


@BOTH
def test_upsampling(dtype):
    """
    By whole factors and by fractions, nearest and bilinear, upsampling is torch's.
    """
    x = noise(2, 3, 4, 6, dtype=dtype)

    def build(a):
        whole = {"scale_factor_height": 2, "scale_factor_width": 3}
        part = {"scale_factor_height": 1.5, "scale_factor_width": 2.5}
        return (
            mb.upsample_nearest_neighbor(x=a, **whole),
            mb.upsample_nearest_neighbor(x=a, **part),
            mb.upsample_bilinear(x=a, align_corners=False, **whole),
            mb.upsample_bilinear(x=a, align_corners=True, **part),
            mb.resize_nearest_neighbor(x=a, target_size_height=8, target_size_width=6),
            mb.resize_nearest_neighbor(x=a, target_size_height=3, target_size_width=9),
        )

    nearest, partial_nearest, unaligned, aligned, doubled, odd = evaluate(build, x)
    wide = double(x)

    np.testing.assert_array_equal(nearest, F.interpolate(wide, scale_factor=(2, 3)).numpy())
    np.testing.assert_array_equal(partial_nearest, F.interpolate(wide, scale_factor=(1.5, 2.5)).numpy())
    check_sum(F.interpolate(wide, scale_factor=(2, 3), mode="bilinear", align_corners=False), unaligned)
    check_sum(F.interpolate(wide, (6, 15), mode="bilinear", align_corners=True), aligned)
    np.testing.assert_array_equal(doubled, F.interpolate(wide, (8, 6)).numpy())
    np.testing.assert_array_equal(odd, F.interpolate(wide, (3, 9)).numpy())


def test_resizing_that_is_not_documented_is_refused():
    """
    Nearest neighbours with aligned corners round in a way that nobody states: refused, with operator and tensor.
    """
    with pytest.raises(UnsupportedFormError, match="resize at big: nearest-neighbour resize with sampling mode"):
        evaluate(
            lambda a: mb.resize(
                x=a, shape=np.array([3, 3], np.int32), resized_dims=np.uint32(2), name="big",
                interpolation_mode="NEAREST_NEIGHBOR", sampling_mode="ALIGN_CORNERS"),
            noise(1, 1, 2, 2), opset=IOS17,
        )  # fmt: skip


# Products and normalisations.


@BOTH
def test_linear(dtype):
    """
    A linear layer is torch's, for inputs of rank 2 and 3.
    """
    weight, bias = noise(5, 7, low=-1, high=1, dtype=dtype), noise(5, low=-1, high=1, dtype=dtype, seed=1)
    for shape in [(3, 7), (2, 3, 7)]:
        x = noise(*shape, low=-1, high=1, dtype=dtype, seed=2)
        with_bias, without = evaluate(
            lambda a: (mb.linear(x=a, weight=weight, bias=bias), mb.linear(x=a, weight=weight)), x, operator="linear"
        )
        check_sum(F.linear(double(x), double(weight), double(bias)), with_bias)
        check_sum(F.linear(double(x), double(weight)), without)


@FEW
@given(
    left=st.booleans(), right=st.booleans(), batch=st.integers(1, 3), dtype=st.sampled_from([np.float32, np.float16])
)
def test_matmul(left, right, batch, dtype):
    """
    Products of stacks of matrices are torch's, transposed or not, broadcasting the stacks.
    """
    x = noise(batch, 1, *((4, 3) if left else (3, 4)), low=-1, high=1, dtype=dtype)
    y = noise(2, *((5, 4) if right else (4, 5)), low=-1, high=1, dtype=dtype, seed=1)

    actual = evaluate(lambda a, b: mb.matmul(x=a, y=b, transpose_x=left, transpose_y=right), x, y, operator="matmul")

    one = double(x).mT if left else double(x)
    check_sum(one @ (double(y).mT if right else double(y)), actual)


def test_einsum():
    """
    The two equations that the operator set allows are torch's.
    """
    x, y = noise(2, 3, 4, 5, low=-1, high=1), noise(2, 5, 4, 6, low=-1, high=1, seed=1)

    actual = evaluate(lambda a, b: mb.einsum(values=(a, b), equation="nchw,nwhu->nchu"), x, y, operator="einsum")

    check_sum(torch.einsum("nchw,nwhu->nchu", double(x), double(y)), actual)


@BOTH
def test_normalisations(dtype):
    """
    Batch, instance and layer norm are torch's, with and without scale and shift; l2_norm is what its name says.
    """
    x = noise(2, 4, 5, 3, dtype=dtype)
    mean, beta = noise(4, dtype=dtype, seed=1), noise(4, dtype=dtype, seed=3)
    variance, gamma = noise(4, low=0.5, high=2, dtype=dtype, seed=2), noise(4, low=-1, high=1, dtype=dtype, seed=4)
    scale, shift = noise(5, 3, low=-1, high=1, dtype=dtype, seed=5), noise(5, 3, dtype=dtype, seed=6)
    epsilon = dtype(1e-3)

    def build(a):
        per_channel = {"gamma": gamma, "beta": beta, "epsilon": epsilon}
        return (
            mb.batch_norm(x=a, mean=mean, variance=variance, **per_channel),
            mb.batch_norm(x=a, mean=mean, variance=variance, epsilon=epsilon),
            mb.instance_norm(x=a, **per_channel),
            mb.instance_norm(x=a, epsilon=epsilon),
            mb.layer_norm(x=a, axes=[2, -1], gamma=scale, beta=shift, epsilon=epsilon),
            mb.layer_norm(x=a, axes=[1], epsilon=epsilon),
            mb.l2_norm(x=a, epsilon=epsilon),
        )

    actual = evaluate(build, x)
    wide, eps = double(x), float(epsilon)
    moments = double(mean), double(variance)
    expected = (
        F.batch_norm(wide, *moments, double(gamma), double(beta), eps=eps),
        F.batch_norm(wide, *moments, eps=eps),
        F.instance_norm(wide, weight=double(gamma), bias=double(beta), eps=eps),
        F.instance_norm(wide, eps=eps),
        F.layer_norm(wide, (5, 3), double(scale), double(shift), eps=eps),
        F.layer_norm(wide.movedim(1, -1), (4,), eps=eps).movedim(-1, 1),
        wide / (wide.square().sum((1, 2, 3), keepdim=True) + eps).sqrt(),
    )
    for want, have in zip(expected, actual, strict=True):
        check_sum(want, have)


# Compressed weights and quantized activations.


def test_affine_weights():
    """
    Per tensor and per axis, iOS 16's affine weights are scale * (q - zero_point).
    """
    q = np.random.default_rng(0).integers(-128, 128, (3, 4, 2)).astype(np.int8)
    scale, zero = np.array([0.1, 0.02, 3.0, 0.5], np.float32), np.array([0, 5, -7, 100], np.int8)

    def build(a):
        per_axis = mb.constexpr_affine_dequantize(quantized_data=q, scale=scale, zero_point=zero, axis=1)
        whole = mb.constexpr_affine_dequantize(
            quantized_data=q, scale=np.float32(0.25), zero_point=np.int8(3), axis=0)  # fmt: skip
        return mb.mul(x=a, y=per_axis), mb.mul(x=a, y=whole)

    per_axis, whole = evaluate(build, np.ones((1, 1, 1), np.float32), operator="constexpr_affine_dequantize")

    check((double(q) - double(zero)[:, None]) * double(scale)[:, None], per_axis)
    check((double(q) - 3) * 0.25, whole)


def test_blockwise_weights():
    """
    iOS 18's int4 and int8 weights have one scale and offset per block.
    """
    q = np.random.default_rng(0).integers(-8, 8, (4, 6)).astype(types.np_int4_dtype)
    scale, offset = noise(2, 3, low=0.1, high=2), np.array([[0, 1, -2], [3, -4, 5]])

    def build(a):
        return mb.mul(
            x=a,
            y=mb.constexpr_blockwise_shift_scale(data=q, scale=scale, offset=offset.astype(types.np_int4_dtype)),
        ), mb.mul(x=a, y=mb.constexpr_blockwise_shift_scale(data=q, scale=scale[:1, :1]))

    blocks, plain = evaluate(
        build, np.ones((1, 1), np.float32), opset=IOS18, operator="constexpr_blockwise_shift_scale"
    )

    per_element = torch.ones(2, 2, dtype=torch.float64)
    wide = double(q.astype(np.int8))
    expected = (wide - torch.kron(double(offset), per_element)) * torch.kron(double(scale), per_element)
    # blocks are (2, 2): both axes of 4 × 6 hold 2 × 3 scales
    check(expected, blocks)
    check(wide * float(scale[0, 0]), plain)


def test_packed_palette():
    """
    iOS 16 packs indices from the least significant bit on, across bytes: the example of the documentation.
    """
    # i4 = 3 | i3..i0 = 1, 2, 3, 0
    indices = np.array([0b01_10_11_00, 0b11], dtype=np.uint8)
    lut = np.array([10.0, 20.0, 30.0, 40.0], dtype=np.float32)

    actual = evaluate(
        lambda a: mb.add(x=a, y=mb.constexpr_lut_to_dense(indices=indices, lut=lut, shape=np.array([5], np.uint32))),
        np.zeros(5, np.float32), operator="constexpr_lut_to_dense",
    )  # fmt: skip

    assert [10.0, 40.0, 30.0, 20.0, 40.0] == actual.tolist()


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8])
def test_packed_palettes_of_every_width(bits):
    """
    Indices of 1, 2, 4, 6 and 8 bits are unpacked to what was packed.
    """
    generator = np.random.default_rng(bits)
    indices = generator.integers(0, 2**bits, 3 * 7)
    lut = generator.normal(size=2**bits).astype(np.float32)
    stream = "".join(f"{index:0{bits}b}"[::-1] for index in indices)
    packed = np.array([int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)], dtype=np.uint8)

    actual = evaluate(
        lambda a: mb.add(x=a, y=mb.constexpr_lut_to_dense(indices=packed, lut=lut, shape=np.array([3, 7], np.uint32))),
        np.zeros((3, 7), np.float32),
    )

    np.testing.assert_array_equal(actual, lut[indices].reshape(3, 7))


def test_palette_per_group_and_of_vectors():
    """
    iOS 18's grouped and vector palettes: the two examples of the documentation.
    """
    grouped = np.array([[2, 3], [3, 0], [1, 0], [3, 0], [2, 1], [0, 3]]).astype(types.np_uint2_dtype)
    tables = np.array([1.0, 5.0, 9.0, 13.0, 2.0, 10.0, 18.0, 26.0], np.float32).reshape(2, 1, 4, 1)
    bits = np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]]).astype(types.np_uint1_dtype)
    vectors = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], np.float32).reshape(1, 1, 1, 2, 3)

    def build(a):
        return (
            mb.mul(x=a, y=mb.constexpr_lut_to_dense(indices=grouped, lut=tables)),
            mb.mul(x=a, y=mb.constexpr_lut_to_dense(indices=bits, lut=vectors, vector_axis=1)),
            mb.mul(x=a, y=mb.constexpr_lut_to_dense(indices=bits, lut=vectors, vector_axis=-1)),
        )

    groups, along_1, along_2 = evaluate(build, np.ones(1, np.float32), opset=IOS18)
    a, b = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]

    assert [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]] == groups.tolist()
    assert [[*map(list, zip(a, a, strict=True)), *map(list, zip(b, a, strict=True))],
            [*map(list, zip(b, b, strict=True)), *map(list, zip(a, a, strict=True))]] == along_1.tolist()  # fmt: skip
    assert [[a + a, b + a], [b + b, a + a]] == along_2.tolist()


def test_sparse_weights():
    """
    Both editions put the stored values where the mask is set.
    """
    # set bits, from the least significant on: i2 and i3
    packed = np.array([0b01100], dtype=np.uint8)
    mask = np.array([[1, 0, 0], [0, 1, 1]]).astype(types.np_uint1_dtype)

    old = evaluate(
        lambda a: mb.add(
            x=a,
            y=mb.constexpr_sparse_to_dense(
                nonzero_data=np.array([3.0, 5.0], np.float32), mask=packed, shape=np.array([5], np.uint32)),
        ),
        np.zeros(5, np.float32), operator="constexpr_sparse_to_dense",
    )  # fmt: skip
    new = evaluate(
        lambda a: mb.add(
            x=a, y=mb.constexpr_sparse_to_dense(nonzero_data=np.array([3.0, 5.0, 7.0], np.float32), mask=mask)
        ),
        np.zeros((2, 3), np.float32), opset=IOS18,
    )  # fmt: skip

    assert [0.0, 0.0, 3.0, 5.0, 0.0] == old.tolist()
    assert [[3.0, 0.0, 0.0], [0.0, 5.0, 7.0]] == new.tolist()


def test_sparse_and_compressed_weights():
    """
    iOS 18's sparse weights that are quantized or palettized as well: the examples of the documentation.
    """
    mask = np.array([[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]]).astype(types.np_uint1_dtype)
    data = np.array([10, 11, 3, 4, 5, 6, 7, 8, 9], np.int8)
    scale, offset = np.array([[0.1, 0.2, 0.3, 0.4]], np.float32), np.array([[1, 2, 3, 4]], np.int8)
    indices = np.array([0, 1, 1, 0, 1, 1, 0, 0, 1]).astype(types.np_uint1_dtype)
    lut = np.array([2.0, 3.0], np.float32).reshape(1, 1, 2, 1)

    def build(a):
        where, values = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=mask, nonzero_data=data, scale=scale, offset=offset
        )
        places, looked_up = mb.constexpr_lut_to_sparse(indices_mask=mask, indices_nonzero_data=indices, lut=lut)
        return (
            mb.add(x=a, y=mb.constexpr_sparse_to_dense(nonzero_data=values, mask=where)),
            mb.add(x=a, y=mb.constexpr_sparse_to_dense(nonzero_data=looked_up, mask=places)),
        )  # fmt: skip

    scaled, table = evaluate(build, np.zeros((4, 4), np.float32), opset=IOS18)

    expected = [[0.9, 1.8, 0, 0], [0.2, 0.4, 0.6, 0], [0, 0, 0.9, 1.2], [0.7, 1.4, 0, 0]]
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)
    assert [[2, 3, 0, 0], [3, 2, 3, 0], [0, 0, 3, 2], [2, 3, 0, 0]] == table.tolist()


@pytest.mark.parametrize("opset", [IOS16, IOS18])
def test_weights_stored_in_fp16(opset):
    """
    A weight that is stored in fp16 computes in fp32.
    """
    stored = noise(3, 4, dtype=np.float16)

    actual = evaluate(
        lambda a: mb.mul(x=a, y=mb.constexpr_cast(source_val=stored, output_dtype="fp32")),
        np.ones((1, 1), np.float32), opset=opset, operator="constexpr_cast",
    )  # fmt: skip

    np.testing.assert_array_equal(actual, stored.astype(np.float32))


@pytest.mark.parametrize(("name", "kind"), [("int8", torch.int8), ("uint8", torch.uint8)])
@FEW
@given(
    scale=st.sampled_from([2**-8, 0.125, 0.375, 0.5, 0.75, 1.5]),  # few bits: every product below is exact
    zero=st.integers(0, 100),
    dtype=st.sampled_from([np.float32, np.float16]),
)
def test_quantized_activations(name, kind, scale, zero, dtype):
    """
    Quantizing saturates and rounds as torch does, per tensor and per channel; dequantizing undoes it up to half a step.
    """
    x, step = noise(2, 3, 40, low=-60, high=60), dtype(scale)
    x = (np.round(x * 4) / 4 * step).astype(dtype)  # quarters of a step: ties as well
    point = np.dtype(name).type(zero)

    def build(a):
        whole = mb.quantize(input=a, scale=step, zero_point=point, output_dtype=name)
        channels = mb.quantize(
            input=a, scale=np.array([step] * 3), zero_point=np.array([point] * 3), output_dtype=name, axis=1
        )
        return (
            mb.cast(x=whole, dtype="int32"),
            mb.dequantize(input=whole, scale=step, zero_point=point),
            mb.dequantize(input=channels, scale=np.array([step] * 3), zero_point=np.array([point] * 3), axis=1),
            mb.dequantize(input=mb.quantize(input=a, scale=step, output_dtype=name), scale=step),
        )  # fmt: skip

    grid, whole, channels, plain = evaluate(build, x, opset=IOS17)
    # torch's own kernel multiplies by 1 / scale, which may round a tie away: fake_quantize's definition, in float64
    limits, steps = torch.iinfo(kind), torch.round(double(x) / float(step))
    expected = torch.clamp(steps + zero, limits.min, limits.max)
    centred = torch.clamp(steps, limits.min, limits.max)

    np.testing.assert_array_equal(grid, expected.numpy())
    np.testing.assert_array_equal(whole, ((expected - zero) * float(step)).numpy().astype(dtype))
    np.testing.assert_array_equal(channels, whole)
    np.testing.assert_array_equal(plain, (centred * float(step)).numpy().astype(dtype))


# Storage.


def test_fp16_overflows_to_infinity():
    """
    A value above 65504 is infinite as soon as an operator gives it out, and what follows sees infinity.
    """
    x = np.array([300.0, 200.0], dtype=np.float16)

    squared, back = evaluate(lambda a: (mb.square(x=a), mb.sqrt(x=mb.square(x=a))), x)

    assert [np.inf, 40000.0] == squared.tolist()
    assert [np.inf, 200.0] == back.tolist()


def test_fp16_sums_accumulate_in_float32():
    """
    4096 ones add up to 4096, though counting in fp16 stops at 2048.
    """
    ones = np.ones((1, 4096), dtype=np.float16)

    product, mean = evaluate(
        lambda a: (mb.linear(x=a, weight=np.ones((1, 4096), np.float16)), mb.reduce_sum(x=a, axes=[1])), ones
    )

    assert 4096.0 == product.item() == mean.item()


def test_fp16_rounds_after_every_operator():
    """
    (1 + 2^-11) - 1 is 0 in fp16 and 2^-11 in fp32.
    """

    def build(a):
        kind = np.float16 if a.dtype == types.fp16 else np.float32
        return mb.sub(x=mb.add(x=a, y=kind(2**-11)), y=kind(1))

    assert 0.0 == evaluate(build, np.ones(1, np.float16)).item()
    assert 2**-11 == evaluate(build, np.ones(1, np.float32)).item()


# The program as a whole.


def small(a):
    """Two convolutions and a head, with names."""
    first = mb.conv(x=a, weight=noise(8, 3, 3, 3, low=-1, high=1), pad_type="same", name="first")
    active = mb.relu(x=first, name="active")
    second = mb.conv(x=active, weight=noise(4, 8, 1, 1, low=-1, high=1, seed=1), pad_type="valid", name="second")
    return mb.reduce_mean(x=second, axes=[2, 3], name="logits")


@pytest.fixture
def package(tmp_path):
    return save(tmp_path, small, [noise(1, 3, 6, 6)])


def test_inner_tensors_can_be_asked_for(package):
    """
    Every tensor can be had by its name, and asking for it does not change the outputs.
    """
    program, x = load(package), noise(1, 3, 6, 6)

    plain = program.evaluate({"a": x}, ["logits"])
    more = program.evaluate({"a": x}, ["logits", "first", "active"])

    np.testing.assert_array_equal(plain["logits"], more["logits"])
    np.testing.assert_array_equal(np.maximum(more["first"], 0), more["active"])
    assert {"a", "first", "active", "second", "logits"} <= program.names


def test_inner_tensors_on_a_grid_can_be_dequantized(tmp_path):
    """
    An integer tensor inside is given out as the floats that it stands for.
    """

    def build(a):
        grid = mb.quantize(
            input=a,
            scale=np.array([0.5, 0.25], np.float32),
            zero_point=np.array([3, -4], np.int8),
            output_dtype="int8",
            axis=1,
            name="grid",
        )
        back = mb.dequantize(
            input=grid, scale=np.array([0.5, 0.25], np.float32), zero_point=np.array([3, -4], np.int8), axis=1, name="b"
        )
        return mb.relu(x=back, name="c")

    program = load(save(tmp_path, build, [noise(1, 2, 5)], opset=IOS17))
    values = program.evaluate({"a": noise(1, 2, 5)}, ["grid", "b"])

    assert np.int8 == values["grid"].dtype
    np.testing.assert_array_equal(values["b"], program.dequantized("grid", values["grid"]))
    assert values["b"] is program.dequantized("b", values["b"])


def test_a_piece_can_be_cut_out(package):
    """
    Feeding an inner tensor computes only what follows from it.
    """
    program, x = load(package), noise(1, 3, 6, 6)
    inner = program.evaluate({"a": x}, ["active", "logits"])

    again = program.evaluate({"active": inner["active"]}, ["logits"])
    other = program.evaluate({"active": inner["active"] + 1}, ["logits"])

    np.testing.assert_array_equal(inner["logits"], again["logits"])
    assert not np.array_equal(inner["logits"], other["logits"])


def test_what_is_fed_is_not_computed_again(tmp_path):
    """
    Of two results of one operator, one can be fed and the other computed.
    """

    def build(a):
        left, right = mb.split(x=a, num_splits=2, axis=0, name="half")
        return mb.sub(x=left, y=right, name="difference")

    program = load(save(tmp_path, build, [noise(2, 3)]))
    left, right = (port.name for port in program.steps[0].outputs)
    x, fed = noise(2, 3), noise(1, 3, seed=9)

    values = program.evaluate({"a": x, left: fed}, ["difference", left])

    np.testing.assert_array_equal(fed - x[1:], values["difference"])
    np.testing.assert_array_equal(fed, values[left])
    assert right not in values


def test_results_are_the_callers(package):
    """
    Writing into a result changes neither the program nor the feeds.
    """
    program, x = load(package), noise(1, 3, 6, 6)
    first = program.evaluate({"a": x}, ["a", "logits"])
    expected = first["logits"].copy()
    first["a"][:] = 0
    first["logits"][:] = 0

    np.testing.assert_array_equal(expected, program.evaluate({"a": x}, ["logits"])["logits"])


@pytest.mark.parametrize(
    ("feeds", "wanted", "message"),
    [({}, ["logits"], "a was not fed"), ({"a": noise(1, 3, 6, 6)}, ["logit"], "logit is not in the program")],
)
def test_what_is_missing_is_named(package, feeds, wanted, message):
    """
    A value that was not fed and a name that does not exist are told apart.
    """
    with pytest.raises(KeyError, match=message):
        load(package).evaluate(feeds, wanted)


def test_values_are_let_go_when_nobody_reads_them(package):
    """
    After each step, what no later step reads is dropped, but for what was asked for.
    """
    plan = load(package)._plan(frozenset({"a"}), ("logits", "first"))

    assert [("conv", []), ("relu", []), ("conv", ["active"]), ("reduce_mean", ["second"])] == [
        (step.operator, dead) for step, dead in plan
    ]


def test_a_changed_weight_changes_the_result(package):
    """
    The weights come from the file: one changed bit of it shows.
    """
    x = noise(1, 3, 6, 6)
    before = load(package).evaluate({"a": x}, ["logits"])["logits"]
    file = package / "Data/com.apple.CoreML/weights/weight.bin"
    weight = noise(4, 8, 1, 1, low=-1, high=1, seed=1)
    data, old = file.read_bytes(), weight.tobytes()
    assert 1 == data.count(old)
    weight[0, 0] += 0.5
    file.write_bytes(data.replace(old, weight.tobytes()))

    after = load(package).evaluate({"a": x}, ["logits"])["logits"]

    assert not np.array_equal(before[:, 0], after[:, 0])
    np.testing.assert_array_equal(before[:, 1:], after[:, 1:])


def test_unknown_operator_is_named():
    """
    An operator that is not in the table is named with the tensor that it makes, before anything is computed.
    """
    assert "cumsum" not in OPERATORS

    with pytest.raises(UnknownOperatorError, match=r"operator cumsum \(first at running\).*macOS") as caught:
        evaluate(lambda a: mb.relu(x=mb.cumsum(x=a, axis=0, name="running")), noise(3))
    assert 3 == caught.value.exit_code


@pytest.mark.parametrize(
    "damage", ["missing", "no manifest", "manifest", "outside", "model", "weights", "half the weights", "network"]
)
def test_a_damaged_package_is_one_clear_line(damage, tmp_path):
    """
    Whatever is wrong with a package, the error is ours, names it and gives exit code 2.
    """
    package = save(tmp_path, lambda a: mb.mul(x=a, y=noise(40, 40)), [noise(40, 40)])
    manifest, data = package / "Manifest.json", package / "Data/com.apple.CoreML"
    match damage:
        case "missing":
            package = package.with_name("other.mlpackage")
        case "no manifest":
            manifest.unlink()
        case "manifest":
            manifest.write_text(manifest.read_text()[:40])
        case "outside":
            manifest.write_text(manifest.read_text().replace("com.apple.CoreML/model.mlmodel", "../../secret"))
        case "model":
            (data / "model.mlmodel").write_bytes((data / "model.mlmodel").read_bytes()[:-25])
        case "weights":
            (data / "weights/weight.bin").unlink()
        case "half the weights":
            weights = data / "weights/weight.bin"
            weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        case "network":
            builder = ct.models.neural_network.NeuralNetworkBuilder(
                [("a", ct.models.datatypes.Array(1))], [("b", ct.models.datatypes.Array(1))]
            )
            (data / "model.mlmodel").write_bytes(builder.spec.SerializeToString())

    with pytest.raises(BundleError, match=r"\.mlpackage") as caught:
        load(package)
    assert 2 == caught.value.exit_code
    assert "\n" not in str(caught.value)


def test_the_package_is_not_written_to(package):
    """
    Reading changes no byte and no time stamp of the package.
    """
    before = {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in package.rglob("*")}

    load(package).evaluate({"a": noise(1, 3, 6, 6)}, ["logits"])

    assert before == {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in package.rglob("*")
    }


def test_torch_is_not_needed(package):
    """
    Where torch is not installed the evaluator works, and gives the same numbers.
    """
    np.save(package.parent / "x.npy", noise(1, 3, 6, 6))
    script = inspect.cleandoc(f"""
        import sys
        sys.modules["torch"] = None
        import numpy as np
        from pathlib import Path
        from coordatt_deploy.runtimes.coreml.evaluator.package import load
        folder = Path({str(package.parent)!r})
        values = load(folder / "net.mlpackage").evaluate({{"a": np.load(folder / "x.npy")}}, ["logits"])
        np.save(folder / "y.npy", values["logits"])
    """)

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    expected = load(package).evaluate({"a": noise(1, 3, 6, 6)}, ["logits"])["logits"]
    np.testing.assert_array_equal(expected, np.load(package.parent / "y.npy"))


def inner(test, *arguments):
    """Run a property test on one example of our choice."""
    return lambda: test.hypothesis.inner_test(*arguments)


CONVOLUTION = {
    "groups": 2, "channels": (4, 6), "kernel": [3, 2], "strides": [2, 1], "dilations": [1, 2], "size": [6, 7],
    "pad": [1, 0, 2, 1], "bias": True, "dtype": np.float32,
}  # fmt: skip
POOL = {"kernel_sizes": [3, 3], "strides": [2, 2], "half": [1, 1], "size": [6, 5], "ceil_mode": False}

# Faults as somebody might write them: the operator, what is made of it, and the test that must notice.
FAULTS = {
    "relu6 without its bound": (
        "relu6", lambda _: lambda x: np.maximum(x, 0), lambda: test_elementwise("relu6", np.float32)),
    "epsilon outside the root": (
        "rsqrt", lambda _: lambda x, epsilon: 1 / (np.sqrt(x) + epsilon),
        lambda: test_elementwise("rsqrt", np.float32)),
    "a rough erf": ("erf", lambda _: lambda x: np.tanh(1.128 * x), lambda: test_elementwise("erf", np.float16)),
    "halves rounded up": ("round", lambda _: lambda x: np.floor(x + 0.5), lambda: test_ties_round_to_even()),
    "threshold as maximum": (
        "thresholded_relu", lambda _: lambda x, alpha: np.maximum(x, alpha),
        lambda: test_activations("thresholded_relu", IOS16)),
    "softmax that overflows": (
        "softmax", lambda _: lambda x, axis: np.exp(x) / np.exp(x).sum(axis, keepdims=True),
        lambda: test_softmax(1, np.float32)),
    "another axis": (
        "reduce_mean", lambda right: lambda x, axes, keep_dims: right(x, axes=1 - axes, keep_dims=keep_dims),
        inner(test_reductions, "reduce_mean", [(4, "front")], True, np.float32)),
    "no interleaving": (
        "concat", lambda right: lambda values, axis, **_: right(values, axis=axis, interleave=False),
        lambda: test_moves("concat interleaved", IOS16)),
    "padding shifted by one": (
        "conv", lambda right: lambda x, pad, **rest: right(x, pad=np.roll(pad, 1), **rest),
        inner(test_conv, CONVOLUTION, "custom")),
    "dropped bias": (
        "conv", lambda right: lambda x, bias=None, **rest: right(x, **rest), inner(test_conv, CONVOLUTION, "same")),  # noqa: ARG005
    "odd padding on the other side": (
        "conv", lambda right: lambda x, pad_type, **rest: right(x, pad_type="same", **rest),  # noqa: ARG005
        inner(test_conv, {**CONVOLUTION, "kernel": [2, 2], "dilations": [1, 1]}, "same_lower")),
    "padding counted": (
        "avg_pool", lambda right: lambda x, **rest: right(x, **{**rest, "exclude_padding_from_average": False}),
        inner(test_pools, POOL, True, np.float32)),
    "floor for ceil": (
        "max_pool", lambda right: lambda x, **rest: right(x, **{**rest, "ceil_mode": False}),
        inner(test_pools, {**POOL, "ceil_mode": True}, True, np.float32)),
    "corners aligned": (
        "resize_bilinear", lambda right: lambda x, **rest: right(x, **{**rest, "sampling_mode": "ALIGN_CORNERS"}),
        inner(test_resize_bilinear, (3, 4), (5, 6))),
    "no transposition": (
        "matmul", lambda right: lambda x, y, **_: right(x, y.swapaxes(1, 2), transpose_x=False, transpose_y=True),
        inner(test_matmul, True, False, 1, np.float32)),
    "zero point added": (
        "dequantize", lambda right: lambda zero_point=0, **rest: right(zero_point=-1.0 * zero_point, **rest),
        inner(test_quantized_activations, "int8", torch.int8, 0.5, 3, np.float32)),
    "bits from the other end": (
        "constexpr_lut_to_dense",
        lambda right: lambda indices, **rest: right(np.packbits(np.unpackbits(indices), bitorder="little"), **rest),
        lambda: test_packed_palettes_of_every_width(2)),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_noticed(fault, monkeypatch):
    """
    The tests above fail when the operator is wrong.
    """
    operator, spoil, noticed_by = FAULTS[fault]
    monkeypatch.setitem(OPERATORS, operator, spoil(OPERATORS[operator]))

    # a wrong shape is noticed by the evaluator itself
    with pytest.raises((AssertionError, ExceptionGroup, InferenceError, RuntimeError, ValueError)):
        noticed_by()


TESTED = {
    *ELEMENTWISE, *ACTIVATIONS, *BINARY, *LOGICAL, *REDUCTIONS, *(case.split()[0] for case in MOVES),
    "cast", "gelu", "logical_not", "reduce_argmax", "reduce_argmin", "select", "shape", "softmax",
    "softplus_parametric",
    "conv", "conv_transpose", "avg_pool", "max_pool",
    "resize", "resize_bilinear", "resize_nearest_neighbor", "upsample_bilinear", "upsample_nearest_neighbor",
    "linear", "matmul", "einsum", "batch_norm", "instance_norm", "layer_norm", "l2_norm",
    "constexpr_affine_dequantize", "constexpr_blockwise_shift_scale", "constexpr_cast", "constexpr_lut_to_dense",
    "constexpr_lut_to_sparse", "constexpr_sparse_blockwise_shift_scale", "constexpr_sparse_to_dense", "dequantize",
    "quantize",
}  # fmt: skip


def test_every_operator_has_a_test():
    """
    An operator that is added to the table is added to the tests.
    """
    assert set(OPERATORS) == TESTED
