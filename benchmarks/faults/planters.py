"""The faults: each planter edits one place of a file and returns the operators that are now wrong, first one first."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.faults.files import WEIGHTED, Array, EditedFile, Op
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.formats import Precision
from coordatt_deploy.layer_map import LayerMap


@dataclass
class Place:
    """Where a fault may go.

    Attributes:
        norms: Running variance and shift of every BatchNorm of the captured graph, by layer id.
        random: Chooses the place; the same seed gives the same one.
        shapes: Of every layer's value at the size of the capture, by layer id.
    """

    file: EditedFile
    layers: LayerMap
    artifact: Artifact
    norms: Mapping[str, tuple[Array, Array]]
    random: np.random.Generator
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def is_int8(self) -> bool:
        """Whether it computes on an integer grid."""
        return self.artifact.precision is Precision.INT8

    def choose(self, *kinds: str) -> Iterator[Op]:
        """Give the operators of these kinds in random order."""
        found = self.file.of_kind(*kinds)
        yield from (found[index] for index in self.random.permutation(len(found)))

    def weighted(self) -> Iterator[tuple[Op, Array, Array | None]]:
        """Give the operators with weights in random order, with copies of those."""
        for op in self.choose(*WEIGHTED):
            yield op, *self.file.weights(op)

    def captured_length(self, tensor: str, axis: int) -> int | None:
        """Return how long an axis of a tensor was at the capture, where the map knows the tensor."""
        for layer in self.layers.layers:
            if len(layer.parts) == 1 and layer.parts[0].tensor == tensor:
                axes = layer.parts[0].axes or tuple(range(len(layer.shape)))
                return self.shapes[layer.layer_id][axes[axis]]
        return None

    def maker(self, tensor: str) -> Op | None:
        """Return the convolution that makes a tensor, through operators that only move or bound it."""
        made_by = self.file.made_by()
        op = made_by.get(tensor)
        while op is not None and op.kind not in WEIGHTED:
            op = made_by.get(op.inputs[0]) if op.inputs else None
        return op


SHORTEST_WINDOW: Final = 3
Planter = Callable[[Place], Sequence[Op]]


def _along(values: Array, axis: int, rank: int) -> Array:
    return values.reshape([-1 if at == axis else 1 for at in range(rank)])


def _change(place: Place, op: Op, share: float) -> Sequence[Op]:
    """Change one weight by *share* of the greatest."""
    weights, _ = place.file.weights(op)
    used = np.flatnonzero(weights)  # zeros may be padding that nothing reads
    weights.ravel()[place.random.choice(used)] += share * np.abs(weights).max()
    place.file.put(op, weights, None)
    return [op]


def weight_changed(place: Place) -> Sequence[Op]:
    return _change(place, next(place.choose(*WEIGHTED)), 0.1)


def weight_changed_a_little(place: Place) -> Sequence[Op]:
    """As little as the storage leaves to be told from its own rounding."""
    share = {Precision.FP32: 0.01, Precision.FP16: 0.05, Precision.INT8: 0.5}[place.artifact.precision]
    return _change(place, next(place.choose(*WEIGHTED)), share)


def first_layer_changed(place: Place) -> Sequence[Op]:
    return _change(place, place.file.of_kind(*WEIGHTED)[0], 0.1)


def last_layer_changed(place: Place) -> Sequence[Op]:
    """One weight of the thousand that a logit is made of: float16 and int8 round more than a tenth of it."""
    share = {Precision.FP32: 0.1, Precision.FP16: 1.0, Precision.INT8: 1.0}[place.artifact.precision]
    return _change(place, place.file.of_kind(*WEIGHTED)[-1], share)


def two_layers_changed(place: Place) -> Sequence[Op]:
    """The earlier of the two is to be named."""
    found = place.file.of_kind(*WEIGHTED)
    one, other = sorted(place.random.choice(len(found), 2, replace=False))
    _change(place, found[other], 0.5)
    return _change(place, found[one], 0.5)


def bias_dropped(place: Place) -> Sequence[Op]:
    for op, weights, bias in place.weighted():
        if bias is not None and np.abs(bias).max() > (0.05 if place.is_int8 else 1e-4):
            place.file.put(op, weights, 0 * bias)
            return [op]
    return []


def channels_rolled(place: Place) -> Sequence[Op]:
    for op, weights, bias in place.weighted():
        axis, _ = place.file.axes(op, weights)
        if weights.shape[axis] > 1 and not place.is_int8:
            place.file.put(op, np.roll(weights, 1, axis), None if bias is None else np.roll(bias, 1))
            return [op]
    return []


def channels_swapped(place: Place) -> Sequence[Op]:
    for op, weights, bias in place.weighted():
        axis, _ = place.file.axes(op, weights)
        size = weights.shape[axis]
        used = np.flatnonzero(np.abs(np.moveaxis(weights, axis, 0)).reshape(size, -1).max(1))
        if len(used) < 2:
            continue
        order = np.arange(size)
        one, other = place.random.choice(used, 2, replace=False)
        order[[one, other]] = other, one
        place.file.put(op, np.take(weights, order, axis), None if bias is None else bias[order])
        return [op]
    return []


def inputs_reversed(place: Place) -> Sequence[Op]:
    """A first layer that reads BGR where RGB comes, or any other with its inputs in the wrong order."""
    for op, weights, _ in place.weighted():
        outputs, inputs = place.file.axes(op, weights)
        if outputs != inputs and weights.shape[inputs] > 1:
            place.file.put(op, np.flip(weights, inputs), None)
            return [op]
    return []


def reads_bgr(place: Place) -> Sequence[Op]:
    op = place.file.of_kind(*WEIGHTED)[0]
    weights, _ = place.file.weights(op)
    place.file.put(op, np.flip(weights, place.file.axes(op, weights)[1]), None)
    return [op]


def sign_flipped(place: Place) -> Sequence[Op]:
    for op, weights, _ in place.weighted():
        axis, _ = place.file.axes(op, weights)
        strength = np.abs(np.moveaxis(weights, axis, 0)).reshape(weights.shape[axis], -1).max(1)
        signs = np.ones(weights.shape[axis], weights.dtype)
        signs[place.random.choice(np.flatnonzero(strength))] = -1
        place.file.put(op, weights * _along(signs, axis, weights.ndim), None)
        return [op]
    return []


def sibling_weights(place: Place) -> Sequence[Op]:
    """The weights of another layer of the same shape."""
    for op, weights, bias in place.weighted():
        for _, its_weights, its_bias in place.weighted():
            same = its_weights.shape == weights.shape and (bias is None) == (its_bias is None)
            if same and not np.array_equal(weights, its_weights):
                place.file.put(op, its_weights, its_bias)
                return [op]
    return []


def weights_in_half(place: Place) -> Sequence[Op]:
    """Weights that went through float16 in a float32 file."""
    if place.artifact.precision is not Precision.FP32:
        return []
    op, weights, _ = next(place.weighted())
    place.file.put(op, weights.astype(np.float16).astype(np.float32), None)
    return [op]


def logits_scaled(place: Place) -> Sequence[Op]:
    op = place.file.of_kind(*WEIGHTED)[-1]
    weights, bias = place.file.weights(op)
    change = 1.25 if place.is_int8 else 1.02
    place.file.put(op, (weights * change).astype(weights.dtype), None if bias is None else bias * change)
    return [op]


def kernel_transposed(place: Place) -> Sequence[Op]:
    for op, weights, _ in place.weighted():
        axes = place.file.spatial  # channels stand in a weight where they stand in an activation
        if weights.ndim == 4 and weights.shape[axes[0]] == weights.shape[axes[1]] == 3:
            place.file.put(op, np.swapaxes(weights, *axes), None)
            return [op]
    return []


def kernel_turned(place: Place) -> Sequence[Op]:
    """Convolution in place of correlation: the window upside down."""
    for op, weights, _ in place.weighted():
        axes = place.file.spatial  # channels stand in a weight where they stand in an activation
        if weights.ndim == 4 and weights.shape[axes[0]] == weights.shape[axes[1]] == 3:
            place.file.put(op, np.flip(weights, axes), None)
            return [op]
    return []


def matrix_transposed(place: Place) -> Sequence[Op]:
    """A square matrix or pointwise convolution with outputs and inputs exchanged."""
    for op, weights, _ in place.weighted():
        outputs, inputs = place.file.axes(op, weights)
        if outputs != inputs and weights.shape[outputs] == weights.shape[inputs] > 1:
            place.file.put(op, np.swapaxes(weights, outputs, inputs), None)
            return [op]
    return []


def layout_mixed_up(place: Place) -> Sequence[Op]:
    """Weights that another layout's order was read into."""
    for op, weights, _ in place.weighted():
        last = place.file.spatial == (1, 2)  # (O, H, W, I), depthwise (1, H, W, C); else (O, I, H, W)
        depthwise = weights.ndim == 4 and weights.shape[0 if last else 1] == 1
        if weights.ndim == 4 and weights.shape[2] == 3:
            order = ((3, 1, 2, 0) if last else (2, 3, 0, 1)) if depthwise else ((0, 3, 1, 2) if last else (0, 2, 3, 1))
        elif weights.ndim == 2 and min(weights.shape) > 1:
            order = (1, 0)
        else:
            continue
        place.file.put(op, np.transpose(weights, order).reshape(weights.shape), None)
        return [op]
    return []


def gates_swapped(place: Place) -> Sequence[Op]:
    for op in place.choose("split"):  # both gates in one convolution, taken apart behind it
        if place.file.swap_outputs(op):
            return [op]
    blocks = [i.layer_id.removesuffix(".conv2") for i in place.layers.layers if i.layer_id.endswith(".conv2")]
    for index in place.random.permutation(len(blocks)):
        found = []
        for leaf in (".conv2", ".conv3"):
            layer = place.layers.resolved(blocks[index] + leaf)
            if layer is not None and (op := place.maker(layer.parts[0].tensor)) is not None:
                found.append(op)
        if len(found) == 2 and found[0] is not found[1]:
            (first, second), values = found, [place.file.weights(op) for op in found]
            if values[0][0].shape == values[1][0].shape:
                place.file.put(first, *values[1])
                place.file.put(second, *values[0])
                return found
    return []


def wrong_axis(place: Place) -> Sequence[Op]:
    """Turn what a mean works on by 90 degrees: it then goes over the other axis, and its shape stays."""
    for op in place.choose("mean"):
        axis, shape = place.file.reduced_axis(op), place.file.shape(op.inputs[0])
        if axis is None or shape is None:
            continue
        others = [at for at, size in enumerate(shape) if at != axis and size == shape[axis] > 1]
        if others and place.file.turn(op, axis, others[0]):
            return [op]
    return []


def frozen_pool(place: Place) -> Sequence[Op]:
    """A pool with the window of a smaller image: it misses the last rows or columns.

    Where the size is dynamic it sees as much as at the capture: right there, and wrong at every larger size.
    """
    for op in place.choose("mean"):
        axis, shape = place.file.reduced_axis(op), place.file.shape(op.inputs[0])
        if axis is None or not shape:
            continue
        length = shape[axis] - 1 if shape[axis] else place.captured_length(op.inputs[0], axis)
        if length and place.file.shorten(op, axis, length):
            return [op]
    return []


def frozen_window(place: Place) -> Sequence[Op]:
    """A mean over a dynamic size as a pool whose window is that of the capture, as converters write it.

    Not where a smaller golden size leaves it no output at all (3 places at the capture, 2 there): ONNX Runtime 1.32
    then divides by zero, and the process is gone.
    """
    for op in place.choose("mean"):
        axis, shape = place.file.reduced_axis(op), place.file.shape(op.inputs[0])
        if axis is None or not shape or shape[axis]:
            continue
        length = place.captured_length(op.inputs[0], axis)
        if length and length > SHORTEST_WINDOW and place.file.fix_window(op, axis, length):
            return [op]
    return []


def mean_is(kind: str) -> Planter:
    def plant(place: Place) -> Sequence[Op]:
        return next(([op] for op in place.choose("mean") if not place.is_int8 and place.file.rename(op, kind)), [])

    return plant


def image_turned(place: Place) -> Sequence[Op]:
    """Height and width of the image exchanged."""
    op = place.file.ops[0]
    return [op] if op.kind in ("conv", "pad") and place.file.turn(op, *place.file.spatial) else []


def wrong_epsilon(place: Place) -> Sequence[Op]:
    """A BatchNorm folded with eps = 1e-3 where it is 1e-5."""
    names = list(place.norms)
    for index in place.random.permutation(len(names)):
        layer = place.layers.resolved(names[index])
        variance, shift = place.norms[names[index]]
        if layer is None:
            continue
        op = place.maker(layer.parts[0].tensor)
        if op is None:
            continue
        weights, bias = place.file.weights(op)
        axis, _ = place.file.axes(op, weights)
        if weights.shape[axis] != variance.size or bias is None:
            continue
        ratio = np.sqrt((variance + 1e-5) / (variance + 1e-3))
        factor = np.asarray(layer.parts[0].factor)
        changed = (weights * _along(ratio, axis, weights.ndim)).astype(weights.dtype)
        # below what the storage itself rounds away, nothing can be seen
        least = {Precision.FP32: 1e-3, Precision.FP16: 0.02, Precision.INT8: 0.2}[place.artifact.precision]
        if np.abs(ratio - 1).max() < least:
            continue
        place.file.put(op, changed, ((bias - shift * factor) * ratio + shift * factor).astype(bias.dtype))
        return [op]
    return []


def bound_dropped(place: Place) -> Sequence[Op]:
    """In int8 the grid itself ends at 6, so that nothing changes."""
    if place.is_int8:
        return []
    kinds = ("conv",) if place.file.spatial == (1, 2) else ("relu6",)  # channels last: a convolution has its bounds
    return next(([op] for op in place.choose(*kinds) if place.file.rename(op, "relu")), [])


def overflow(place: Place) -> Sequence[Op]:
    if place.is_int8:
        return []
    op, weights, _ = next(place.weighted())
    limit = float(np.finfo(weights.dtype).max)
    with np.errstate(over="ignore"):
        scaled = np.clip(weights.astype(np.float64) * limit, -limit, limit).astype(weights.dtype)
    place.file.put(op, scaled, None)
    return [op]


def not_a_number(place: Place) -> Sequence[Op]:
    if place.is_int8:
        return []
    op, weights, _ = next(place.weighted())
    weights.ravel()[place.random.choice(np.flatnonzero(weights))] = np.nan
    place.file.put(op, weights, None)
    return [op]


def padding_shifted(place: Place) -> Sequence[Op]:
    return next(([op] for op in place.choose("conv", "pad") if place.file.shift_padding(op)), [])


def replaced(old: str, new: str) -> Planter:
    def plant(place: Place) -> Sequence[Op]:
        return next(([op] for op in place.choose(old) if not place.is_int8 and place.file.rename(op, new)), [])

    return plant


def residual_dropped(place: Place) -> Sequence[Op]:
    for op in place.choose("add"):
        place.file.rewire(op, 0, op.inputs[1])
        return [op]
    return []


def wrong_scale(place: Place) -> Sequence[Op]:
    """The step of one channel's weights is twice what it should be."""
    for op in place.choose(*WEIGHTED):
        for grid in place.file.grids(op):
            if grid.what == "weights":
                scale = grid.scale.copy()
                scale.ravel()[place.random.integers(scale.size)] *= 2
                grid.put(scale, grid.zero_point)
                return [op]
    return []


def scales_swapped(place: Place) -> Sequence[Op]:
    """The steps of a layer's channels in the wrong order."""
    for op in place.choose(*WEIGHTED):
        for grid in place.file.grids(op):
            if grid.what == "weights" and grid.scale.size > 1 and np.ptp(grid.scale) > 0.5 * grid.scale.mean():
                grid.put(np.roll(grid.scale, 1), grid.zero_point)
                return [op]
    return []


def wrong_zero_point(place: Place) -> Sequence[Op]:
    """A result whose zero lies a quarter of the grid beside where it was: what is now beyond the grid is lost."""
    for op in place.choose(*WEIGHTED, "add", "MUL", "Mul", "mul"):
        for grid in place.file.grids(op):
            if grid.what == "result" and grid.scale.size == grid.zero_point.size == 1:
                moved = grid.zero_point + (64 if grid.zero_point.ravel()[0] < 0 else -64)
                grid.put(grid.scale, moved)
                return [op]
    return []


def result_clipped(place: Place) -> Sequence[Op]:
    """A result whose step is half of what its range needs: calibration that saw too little."""
    for op in place.choose(*WEIGHTED, "add", "MUL", "Mul", "mul"):
        for grid in place.file.grids(op):
            if grid.what == "result" and grid.scale.size == 1:
                grid.put(grid.scale / 2, grid.zero_point)
                return [op]
    return []


def bias_misread(place: Place) -> Sequence[Op]:
    """A bias on another step than its integers were made for."""
    for op in place.choose(*WEIGHTED):
        _, bias = place.file.weights(op)
        for grid in place.file.grids(op):
            if grid.what == "bias" and bias is not None and np.abs(bias).max() > 0.1:
                place.file.put(op, place.file.weights(op)[0], bias * 2)
                return [op]
    return []


FAULTS: Final[Mapping[str, Planter]] = {
    # those that the format's every converter has been seen to make
    "weight changed by 10 % of the greatest": weight_changed,
    "bias dropped": bias_dropped,
    "wrong zero point": wrong_zero_point,
    "wrong scale": wrong_scale,
    "gates h and w swapped": gates_swapped,
    "mean over the wrong axis": wrong_axis,
    "BatchNorm folded with the wrong eps": wrong_epsilon,
    "ReLU6 became ReLU": bound_dropped,
    "layout mixed up": layout_mixed_up,
    "overflow": overflow,
    "padding shifted by one": padding_shifted,
    "pool frozen at a smaller size": frozen_pool,
    "window frozen at the captured size": frozen_window,
    # and others
    "weight changed a little": weight_changed_a_little,
    "first layer changed": first_layer_changed,
    "last layer changed": last_layer_changed,
    "two layers changed": two_layers_changed,
    "channels rolled by one": channels_rolled,
    "two channels swapped": channels_swapped,
    "inputs in reverse order": inputs_reversed,
    "image read as BGR": reads_bgr,
    "image turned": image_turned,
    "sign of a channel flipped": sign_flipped,
    "weights of a sibling": sibling_weights,
    "weights went through float16": weights_in_half,
    "logits scaled": logits_scaled,
    "kernel transposed": kernel_transposed,
    "kernel upside down": kernel_turned,
    "matrix transposed": matrix_transposed,
    "mean became sum": mean_is("sum"),
    "mean became maximum": mean_is("max"),
    "sigmoid became tanh": replaced("sigmoid", "tanh"),
    "sigmoid became hard sigmoid": replaced("sigmoid", "hard_sigmoid"),
    "hard swish became ReLU": replaced("hard_swish", "relu"),
    "residual dropped": residual_dropped,
    "a weight is NaN": not_a_number,
    "scales in the wrong order": scales_swapped,
    "result clipped": result_clipped,
    "bias on another step": bias_misread,
}
