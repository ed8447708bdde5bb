import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordatt_deploy.errors import UsageError
from coordatt_deploy.formats import Format
from coordatt_deploy.loading.sizes import (
    LARGEST_TRIED,
    batch_within,
    check_size,
    fixed_sizes,
    formats_for_dynamic,
    parse_dynamic_batch,
    parse_dynamic_size,
    size_within,
    unseen_batches,
    unseen_sizes,
)


@pytest.mark.parametrize("size", [(0, 0), (4097, 4097), (224, 0)])
def test_an_impossible_size_is_refused(size):
    """
    Zero, and beyond the largest.
    """
    with pytest.raises(UsageError, match="must lie between 1 and 4096"):
        check_size(size)
    assert (1, 4096) == check_size((1, 4096))


@pytest.mark.parametrize(
    ("text", "expected"), [("96:320", (96, 320, 1)), ("96:320:32", (96, 320, 32)), ("90:325:32", (96, 320, 32))]
)
def test_a_range_is_rounded_inwards_to_its_step(text, expected):
    """
    The bounds themselves are sizes that the model takes.
    """
    assert expected == parse_dynamic_size(text)


@pytest.mark.parametrize("text", ["96", "96:", ":320", "320:96", "96:96", "100:120:64", "96:320:0", "a:b", "96:9999"])
def test_what_is_no_range_is_refused(text):
    """
    Also a range in which only one size is left.
    """
    with pytest.raises(UsageError):
        parse_dynamic_size(text)


ranges = st.builds(
    lambda low, steps, step: (low * step, (low + steps) * step, step),
    st.integers(1, 20),
    st.integers(3, 20),
    st.sampled_from([1, 2, 7, 32]),
)


@given(bounds=ranges, height=st.integers(1, 800), width=st.integers(1, 800))
def test_the_unseen_sizes_are_new_and_not_square(bounds, height, width):
    """
    With four sizes or more to choose from, one check is tall, one is wide, and both axes of both are new.
    """
    low, high, step = bounds
    captured = size_within(bounds, (height, width))

    sizes = unseen_sizes(bounds, captured)

    assert {True, False} == {h > w for h, w in sizes}
    for size in sizes:
        assert size[0] != size[1]
        assert size[0] != captured[0]
        assert size[1] != captured[1]
        assert all(low <= value <= high and value % step == 0 for value in size)


def test_tflite_is_refused_with_the_sizes_to_export_instead():
    """
    Asked for by name it is an error; by default it is left out and said.
    """
    bounds = parse_dynamic_size("96:320")
    with pytest.raises(UsageError, match="--input-size 96, --input-size 192, --input-size 320"):
        formats_for_dynamic(bounds, tuple(Format), asked=True)

    formats, note = formats_for_dynamic(bounds, tuple(Format), asked=False)

    assert (Format.ONNX, Format.COREML) == formats
    assert "one input size" in note
    assert ((Format.ONNX,), None) == formats_for_dynamic(bounds, (Format.ONNX,), asked=True)


def test_fixed_sizes_stay_within_the_range():
    """
    A narrow range gives what it has.
    """
    assert (96, 192, 320) == fixed_sizes((96, 320, 1))
    assert (100, 105, 110) == fixed_sizes((100, 110, 5))


@pytest.mark.parametrize(("text", "expected"), [("1:8", (1, 8)), (" 2 : 3 ", (2, 3)), ("1:4096", (1, 4096))])
def test_a_range_of_batches(text, expected):
    """
    Both bounds are batches that the model takes.
    """
    assert expected == parse_dynamic_batch(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x", "'x' is no range of batches; give MIN:MAX in images: 1:8"),
        ("4", "is no range of batches"),
        ("1:8:2", "is no range of batches"),
        ("4:2", "'4:2' holds no two batches; give the smaller one first"),
        ("3:3", "holds no two batches"),
        ("0:3", "'0:3' is a batch from 0 to 3 images; it must lie between 1 and 4096"),
        ("1:4097", "must lie between 1 and 4096"),
    ],
)
def test_what_is_no_range_of_batches_is_refused(text, expected):
    """
    With what was received, what is expected, and an example.
    """
    with pytest.raises(UsageError, match=expected):
        parse_dynamic_batch(text)


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_unseen_batches_are_within_the_range_and_not_the_captured_one(low, more):
    """
    The smallest is always among them; wherever the range has two others, two differ from the captured one.
    """
    bounds = (low, low + more)
    captured = batch_within(bounds)

    batches = unseen_batches(bounds, captured)

    assert 2 <= captured <= bounds[1]
    assert low == batches[0]
    assert all(low <= batch <= bounds[1] for batch in batches)
    assert max(batches) <= max(LARGEST_TRIED, low + 2)
    assert len(set(batches) - {captured}) >= min(2, more)


def test_the_captured_batch_is_none_that_a_fixed_axis_has():
    """
    An input of two anchors is no batch of two; where all batches are taken so, it is said.
    """
    assert 3 == batch_within((1, 8), [2, 5])
    with pytest.raises(
        UsageError, match="inputs with a first axis of 2 cannot be told from those that share the batch"
    ):
        batch_within((1, 2), [2])


def test_tflite_is_refused_with_a_dynamic_batch():
    """
    There is no size to name instead: without the option it takes one image.
    """
    with pytest.raises(UsageError, match=r"TFLite files have one batch: .*export it without --dynamic-batch"):
        formats_for_dynamic(None, tuple(Format), asked=True)

    formats, note = formats_for_dynamic(None, tuple(Format), asked=False)

    assert (Format.ONNX, Format.COREML) == formats
    assert "one batch" in note
