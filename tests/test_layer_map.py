import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordatt_deploy.errors import BundleError
from coordatt_deploy.layer_map import Layer, LayerMap, Part, place_all, restore, takes_together

VALUE = np.random.default_rng(0).standard_normal((1, 6, 4, 5))


def _layer(*parts, shape=VALUE.shape, axis=0):
    return Layer("block", "conv2d", shape, parts, axis)


def test_a_permuted_scaled_and_padded_tensor_gives_the_value_back():
    """
    tensor = transpose(factor * value) with channels 2 to 8 of 10.
    """
    tensor = np.full((1, 4, 5, 10), 99.0)
    tensor[..., 2:8] = 6.0 * VALUE.transpose(0, 2, 3, 1)

    restored = restore(_layer(Part("t", (0, 2, 3, 1), 6.0, (2, 8))), {"t": tensor})

    assert np.allclose(VALUE, restored, rtol=0, atol=1e-12)


def test_two_branches_are_joined():
    """
    The strips that a lowering runs apart are one value of the reference.
    """
    joined = np.concatenate([VALUE[:, :, :, :1], VALUE[:, :, :2, 1:2]], axis=2)
    tensors = {"h": VALUE[:, :, :, :1], "w": VALUE[:, :, :2, 1:2].transpose(0, 1, 3, 2)}
    layer = _layer(Part("h"), Part("w", (0, 1, 3, 2)), shape=(1, 6, 6, 1), axis=2)

    assert np.array_equal(joined, restore(layer, tensors))


def test_a_value_without_a_batch_axis_may_lie_behind_an_axis_of_size_one():
    """
    One of q, k and v, cut from a tensor of five axes whose first is left over in the file.
    """
    value = np.random.default_rng(1).standard_normal((4, 2, 3, 5))

    assert np.array_equal(value, restore(_layer(Part("t"), shape=value.shape), {"t": value[None]}))
    with pytest.raises(ValueError, match="cannot stand for"):
        restore(_layer(Part("t"), shape=value.shape), {"t": value.reshape(2, 2, 2, 3, 5)})


def test_axes_that_lie_in_one_are_taken_apart():
    """
    The rows of four patches in one matrix, of as many axes as the value or of fewer; axes in another order are none.
    """
    value = np.random.default_rng(2).standard_normal((4, 16, 6))
    layer = _layer(Part("t"), shape=value.shape)

    for shape in ((1, 64, 6), (64, 6), (64, 6, 1)):
        placed = place_all([layer], {"block": value}, {"t": shape})
        assert shape == placed["t"].shape
        assert np.array_equal(value, restore(layer, placed))
    other = value.transpose(1, 0, 2)
    assert (16, 4, 6) == restore(layer, {"t": other}).shape
    dynamic = _layer(Part("t"), shape=(None, 16, 6))
    assert (1, 64, 6) == restore(dynamic, {"t": value.reshape(1, 64, 6)}).shape


@pytest.mark.parametrize(
    ("shape", "sizes", "expected"),
    [
        ((1, 64, 6), (4, 16, 6), True),
        ((64, 6), (4, 16, 6), True),
        ((4, 96), (4, 16, 6), True),
        ((4, 16, 6), (64, 6), False),
        ((16, 4, 6), (4, 16, 6), False),
        ((64, 5), (4, 16, 6), False),
        ((0, 6), (0, 4, 6), True),
    ],
)
def test_neighbouring_axes_may_be_in_one(shape, sizes, expected):
    """
    None is parted, none changes places, and no element is lost.
    """
    assert expected == takes_together(shape, sizes)


def test_two_halves_without_a_batch_axis_are_placed_where_they_are_found():
    """
    Queries (4, 4, 16, 16) in two tensors (1, 4, 2, 16, 16): what is placed there is read back, and two rows are none.
    """
    value = np.random.default_rng(0).standard_normal((4, 4, 16, 16))
    layer = Layer("attn:select", "select", value.shape, (Part("low"), Part("high")), axis=1)

    placed = place_all([layer], {"attn:select": value}, {"low": (1, 4, 2, 16, 16), "high": (1, 4, 2, 16, 16)})

    assert np.array_equal(value[None, :, :2], placed["low"])
    assert np.array_equal(value, restore(layer, placed))
    with pytest.raises(ValueError, match="cannot stand for"):
        restore(layer, {"low": np.zeros((2, 2, 2, 16, 16)), "high": placed["high"]})


@pytest.mark.parametrize("batch", [1, 2, 4, 6])
def test_strips_of_several_images_lose_an_axis_and_no_image(batch):
    """
    A tensor of three axes that holds a stretch of each image, whatever the size of the batch.
    """
    value = np.random.default_rng(1).standard_normal((batch, 6, 7, 1))
    tensors = {"h": value[:, :, :4, 0], "w": value[:, :, 4:, 0]}
    layer = _layer(Part("h"), Part("w"), shape=value.shape, axis=2)
    flat = {"h": value[:, :, :4].transpose(0, 2, 3, 1).reshape(-1, 6), "w": tensors["w"]}
    joined = _layer(Part("h", (0, 2, 3, 1)), Part("w"), shape=value.shape, axis=2)

    assert np.array_equal(value, restore(layer, tensors))
    assert np.array_equal(value, restore(joined, flat))


def test_a_factor_per_channel():
    """
    Equalised layers are scaled channel by channel.
    """
    factors = tuple(float(f) for f in range(1, 7))
    tensor = VALUE * np.array(factors).reshape(1, -1, 1, 1)

    assert np.allclose(VALUE, restore(_layer(Part("t", factor=factors)), {"t": tensor}), rtol=0, atol=1e-12)


def test_axes_of_size_one_may_be_dropped():
    """
    A runtime may hold (1, 6, 1, 1) as (1, 6).
    """
    value = VALUE[:, :, :1, :1]

    assert np.array_equal(value, restore(_layer(Part("t"), shape=(1, 6, 1, 1)), {"t": value.reshape(1, 6)}))


@given(
    first=st.permutations(range(4)),
    second=st.permutations(range(4)),
    factors=st.tuples(st.floats(0.5, 4), st.floats(0.5, 4)),
)
def test_moves_compose(first, second, factors):
    """
    Carrying a map through two stages is the same as moving the tensor twice.
    """
    middle = factors[0] * VALUE.transpose(first)
    last = factors[1] * middle.transpose(second)
    start = LayerMap((_layer(Part("a")),))

    carried = start.carried({"a": Part("b", tuple(first), factors[0])}).carried(
        {"b": Part("c", tuple(second), factors[1])}
    )

    assert np.allclose(VALUE, restore(carried.layers[0], {"c": last}), rtol=0, atol=1e-12)


def test_a_lost_tensor_is_absent_with_its_reason_or_seen_through_another():
    """
    Nothing is lost without a word.
    """
    start = LayerMap(tuple(Layer(name, "relu", (1,), (Part(name),)) for name in "abc"))

    carried = start.carried({"c": Part("z")}, {"a": "->c", "b": "computed at compile time"})

    assert ["c", None, None] == [layer.seen_through for layer in carried.layers]
    assert "computed at compile time" == carried.layers[1].absent
    assert Part("z") == carried.resolved("a").parts[0]
    assert carried.coverage == pytest.approx(2 / 3)


def test_the_map_survives_its_file(tmp_path):
    """
    What is dumped is what is loaded.
    """
    start = LayerMap((_layer(Part("t", (0, 2, 3, 1), (1.0,) * 6, (0, 6))), Layer("gone", "mul", (1, None), absent="x")))
    (tmp_path / "m.layers.json").write_text(start.dump())

    assert start == LayerMap.load(tmp_path / "m.layers.json")


@pytest.mark.parametrize("text", ["", "[]", '{"schema_version": 1}', '{"schema_version": 2, "layers": []}'])
def test_a_damaged_map_is_refused(tmp_path, text):
    """
    One line, whatever is wrong with it.
    """
    (tmp_path / "m.layers.json").write_text(text)

    with pytest.raises(BundleError):
        LayerMap.load(tmp_path / "m.layers.json")


def test_a_layer_is_present_or_seen_through_or_absent():
    """
    Never two of them, never none.
    """
    with pytest.raises(ValueError, match="give parts"):
        Layer("x", "relu", (1,))
    with pytest.raises(ValueError, match="give parts"):
        Layer("x", "relu", (1,), (Part("t"),), absent="but here it is")


def test_layers_that_share_a_tensor_leave_each_other_room():
    """
    The whole first and a half of it later, or two halves: each value is found again, whatever the order.
    """
    parts = (Part("t", channels=(0, 2)), Part("t", channels=(2, 4)))
    strips = np.arange(1.0, 9.0).reshape(1, 2, 4)  # two strips, one behind the other
    both = Layer("both", "mul", (1, 2, 4), parts, axis=2)
    halves = [Layer(f"half{at}", "getitem", (1, 2, 2), (part,)) for at, part in zip((0, 2), parts, strict=True)]
    values = {"both": strips, "half0": strips[..., :2], "half2": strips[..., 2:]}

    for layers in ([both, *halves], [both, halves[1]], halves, halves[::-1]):
        tensors = place_all(layers, values, {"t": (1, 4, 2)})
        assert np.array_equal(strips, restore(both, tensors))


def test_two_stretches_of_a_sequence_may_share_the_channels_of_an_image():
    """
    What is joined along the positions lies in one tensor, one stretch in the lower and one in the upper channels.
    """
    value = np.random.default_rng(0).standard_normal((1, 3, 8))
    layer = _layer(Part("t", (0, 1, 2), 1.0, (0, 3)), Part("t", (0, 1, 2), 1.0, (3, 6)), shape=value.shape, axis=2)

    placed = place_all([layer], {"block": value}, {"t": (1, 6, 4, 1)})

    assert np.array_equal(np.concatenate([value[..., :4], value[..., 4:]], axis=1)[..., None], placed["t"])
    assert np.array_equal(value, restore(layer, placed))


def test_a_sequence_may_lie_in_an_image_that_is_turned():
    """
    A value (N, C, positions) lies in a tensor (N, C, positions, 1), of which a later stage makes channels-last.
    """
    value = VALUE[:, :, :, 0]  # (1, 6, 4)
    first = LayerMap((_layer(Part("wide", (0, 1, 2)), shape=value.shape),))

    (layer,) = first.carried({"wide": Part("last", (0, 2, 3, 1))}).layers

    assert np.array_equal(value, restore(layer, {"last": value.transpose(0, 2, 1)[:, :, None]}))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_dynamic_batch_stays_in_front_of_the_axes_that_a_file_drops(batch):
    """
    The map does not know the number; another open axis of the value is read from what is left.
    """
    value = np.random.default_rng(1).standard_normal((batch, 6, 7, 1))

    for shape in ((None, 6, 7, 1), (None, 6, None, 1)):
        assert np.array_equal(value, restore(_layer(Part("t"), shape=shape), {"t": value[..., 0]}))
    assert np.array_equal(value[:, :, :1], restore(_layer(Part("t"), shape=(None, 6, 1, 1)), {"t": value[:, :, 0, 0]}))
