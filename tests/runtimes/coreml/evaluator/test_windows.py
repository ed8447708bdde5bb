"""Convolutions and pools against torch, inside a package that was saved and read back."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mil_programs import BOTH, check, check_sum, double, evaluate, inner, mb, noise

from coordatt_deploy.errors import InferenceError
from coordatt_deploy.runtimes.coreml.evaluator.operators import OPERATORS
from coordatt_deploy.runtimes.coreml.evaluator.windows import UnsupportedFormError


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
    Average and maximum pools are torch's, padding counted or not; with ceil mode where what hangs over is not counted.
    """
    rank, half = len(case["size"]), case["half"]
    if not exclude:  # Core ML is known to depart from torch with overhang, and with more padding than one
        case, half = {**case, "ceil_mode": False}, [min(pad, 1) for pad in half]
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


def test_what_hangs_over_the_edge_counts_as_padding():
    """
    What apple/coremltools#2844 and #2772 print of real Core ML: the whole window divides, where torch's has 9.5 and 48.
    """
    numbers = np.arange(49, dtype=np.float32)
    attributes = {"pad_type": "valid", "ceil_mode": True}

    image = evaluate(
        lambda a: mb.avg_pool(x=a, kernel_sizes=[2, 2], strides=[3, 3], **attributes), numbers.reshape(1, 1, 7, 7)
    )
    line = evaluate(
        lambda a: mb.avg_pool(x=a, kernel_sizes=[2], strides=[3], **attributes), numbers[:7].reshape(1, 1, 7)
    )
    excluded = evaluate(
        lambda a: mb.avg_pool(
            x=a, kernel_sizes=[2, 2], strides=[3, 3], exclude_padding_from_average=True, **attributes),
        numbers.reshape(1, 1, 7, 7),
    )  # fmt: skip

    assert [[4.0, 7.0, 4.75], [25.0, 28.0, 15.25], [21.25, 22.75, 12.0]] == image[0, 0].tolist()
    assert [0.5, 3.5, 3.0] == line[0, 0].tolist()
    assert [[4.0, 7.0, 9.5], [25.0, 28.0, 30.5], [42.5, 45.5, 48.0]] == excluded[0, 0].tolist()


@pytest.mark.parametrize(
    ("operator", "attributes", "shape", "reason"),
    [
        ("avg_pool", {"kernel_sizes": [7, 7], "strides": [4, 4], "pad_type": "custom", "pad": [3, 3, 3, 3]},
         (1, 1, 16, 12), "more than one element of padding wrong .*1901"),
        ("avg_pool", {"kernel_sizes": [2], "pad_type": "same_lower"}, (1, 1, 2), "same_lower"),
        ("max_pool", {"kernel_sizes": [2], "pad_type": "same_lower"}, (1, 1, 2), "same_lower"),
    ],
)  # fmt: skip
def test_pools_that_core_ml_gets_wrong_are_refused(operator, attributes, shape, reason):
    """
    What is reported to go wrong on macOS, nobody says how, is not computed as if it were right.
    """
    with pytest.raises(UnsupportedFormError, match=reason):
        evaluate(lambda a: getattr(mb, operator)(x=a, **attributes), noise(*shape))


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


CONVOLUTION = {
    "groups": 2, "channels": (4, 6), "kernel": [3, 2], "strides": [2, 1], "dilations": [1, 2], "size": [6, 7],
    "pad": [1, 0, 2, 1], "bias": True, "dtype": np.float32,
}  # fmt: skip
POOL = {"kernel_sizes": [3, 3], "strides": [2, 2], "half": [1, 1], "size": [6, 5], "ceil_mode": False}

# Faults as somebody might write them: the operator, what is made of it, and the test that must notice.
FAULTS = {
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


TESTED = {"conv", "conv_transpose", "avg_pool", "max_pool"}
