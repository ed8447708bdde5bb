"""Operators that only move data against torch, inside a package that was saved and read back."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mil_programs import IOS16, IOS17, evaluate, mb, noise, save

from coordatt_deploy.errors import InferenceError
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools as ct
from coordatt_deploy.runtimes.coreml.evaluator import shapes
from coordatt_deploy.runtimes.coreml.evaluator.operators import OPERATORS
from coordatt_deploy.runtimes.coreml.evaluator.package import load
from coordatt_deploy.runtimes.coreml.evaluator.windows import UnsupportedFormError

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
    "fill_like": (lambda a: mb.add(x=a, y=mb.fill_like(ref_tensor=a, value=2.0)), TENSOR + 2.0),
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
    "topk": (lambda a: mb.topk(x=a, k=3, axis=1), TENSOR.topk(3, 1)),
    "topk ascending": (lambda a: mb.topk(x=a, k=2, axis=2, ascending=True), TENSOR.topk(2, 2, largest=False)),
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


@pytest.mark.parametrize(
    "case", [case for case in MOVES if case.split()[0] not in ("fill", "fill_like", "range_1d", "pad")]
)
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


def test_scalars_are_joined_to_a_list():
    """
    coremltools joins single sizes to a shape: the size of two axes of an input, as a list of two.
    """
    sizes = evaluate(
        lambda a: mb.concat(
            values=[mb.gather(x=mb.shape(x=a), indices=axis, axis=0) for axis in (1, 3)], axis=0),
        IMAGE,
    )  # fmt: skip

    assert [8, 6] == np.asarray(sizes).tolist()
    assert [3, 5] == shapes.concat([np.int32(3), np.int32(5)], axis=0, interleave=False).tolist()


def test_one_element_is_not_sliced_backwards():
    """
    coremltools' own test of it is expected to fail on macOS, so nothing is computed in Core ML's place.
    """
    attributes = {"begin": [-1, 0], "end": [-2, 0], "stride": [-1, 1], "begin_mask": [False, True]}

    with pytest.raises(UnsupportedFormError, match="one element backwards"):
        evaluate(lambda a: mb.slice_by_index(x=a, end_mask=[False, True], **attributes), noise(1, 3))


def test_zeros_of_a_shape_keep_the_axes_from_the_end():
    """
    Since iOS 17 a shape may be longer than the input's; a 0 that no axis stands at is 1.
    """
    x = np.arange(6, dtype=np.float32).reshape(2, 3)

    longer = evaluate(lambda a: mb.reshape(x=a, shape=[1, 0, -1, 0]), x, opset=IOS17, operator="reshape")

    np.testing.assert_array_equal(x[None, None], longer)


# Faults as somebody might write them: the operator, what is made of it, and the test that must notice.
FAULTS = {
    "no interleaving": (
        "concat", lambda right: lambda values, axis, **_: right(values, axis=axis, interleave=False),
        lambda: test_moves("concat interleaved", IOS16)),
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


TESTED = {*(case.split()[0] for case in MOVES), "shape"}
