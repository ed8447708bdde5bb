"""Operators that slide a window over the spatial axes: convolutions and pools.

    conv:   y[m, o] = bias[m] + sum over c, k of  weight[m, c, k] * x[c, o * stride + k * dilation - before]
    pools:  y[c, o] = mean or maximum over k of   x[c, o * stride + k - before]

``o`` is a place in the output, ``k`` a tap of the window, ``before`` the padding in front of the axis. Arrays are
(N, C, *spatial) with one to three spatial axes, float32; arguments have the names of the MIL operator set.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.errors import DeployError

Array = NumberArray

# Elements of a depthwise convolution's output that are worked on at once: three such float32 buffers stay in a
# second-level cache of 1 MiB (measured: 64 Ki is 1.6 times as fast as the whole (96, 112, 112) tensor at once).
DEPTHWISE_BLOCK: Final = 1 << 16


class UnsupportedFormError(DeployError):
    """An operator of the table in a form whose meaning is not documented; Core ML itself is needed to know it."""

    exit_code = 3


def padding(
    pad_type: str, size: Sequence[int], window: Sequence[int], strides: Sequence[int], pad: Array
) -> list[tuple[int, int]]:
    """Return the elements added before and after each spatial axis.

    Args:
        pad_type: ``valid``, ``custom``, ``same`` (the odd element comes after) or ``same_lower`` (before).
        size: Of the input's spatial axes.
        window: Extent of the window, dilation included.
        strides: Per spatial axis.
        pad: For ``custom``: before and after, axis by axis.
    """
    if pad_type == "valid":
        return [(0, 0)] * len(size)
    if pad_type == "custom":
        return [(int(pad[2 * axis]), int(pad[2 * axis + 1])) for axis in range(len(size))]
    if pad_type not in ("same", "same_lower"):
        raise UnsupportedFormError(f"pad_type is {pad_type!r}; known: valid, custom, same, same_lower")
    # as many outputs as ceil(size / stride)
    totals = [max(0, (-(-n // s) - 1) * s + k - n) for n, k, s in zip(size, window, strides, strict=True)]
    halves = [(total // 2, total - total // 2) for total in totals]
    return halves if pad_type == "same" else [(after, before) for before, after in halves]


def _pad(x: Array, pads: Sequence[tuple[int, int]], value: float) -> Array:
    if not any(itertools.chain.from_iterable(pads)):
        return x
    if min(itertools.chain.from_iterable(pads)) < 0:
        raise UnsupportedFormError(f"negative padding {list(pads)}")
    return np.pad(x, [(0, 0), (0, 0), *pads], constant_values=value)


def _taps(
    kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], size: Sequence[int]
) -> Iterator[tuple[int, tuple["slice[int, int, int]", ...]]]:
    """Yield each tap of the window: its number, and where in the padded input it meets every output."""
    for number, tap in enumerate(itertools.product(*(range(k) for k in kernel))):
        starts = [t * d for t, d in zip(tap, dilations, strict=True)]
        yield (
            number,
            tuple(slice(start, start + s * (n - 1) + 1, s) for start, s, n in zip(starts, strides, size, strict=True)),
        )


def conv(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    strides: Array,
    pad_type: str,
    pad: Array,
    dilations: Array,
    groups: int,
) -> Array:
    """Convolve ``x`` (N, C_in, *D) with ``weight`` (C_out, C_in / groups, *K)."""
    kernel, step, spread = weight.shape[2:], [int(s) for s in strides], [int(d) for d in dilations]
    window = [(k - 1) * d + 1 for k, d in zip(kernel, spread, strict=True)]
    pads = padding(pad_type, x.shape[2:], window, step, pad)
    x = _pad(x, pads, 0.0)
    size = [(n - k) // s + 1 for n, k, s in zip(x.shape[2:], window, step, strict=True)]
    if groups == x.shape[1] and groups > 1:
        y = _depthwise(x, weight, step, spread, size)
    else:
        y = _dense(x, weight, int(groups), step, spread, size)
    if bias is not None:
        np.add(y, bias.reshape(-1, *[1] * len(kernel)), out=y)
    return y


def _dense(
    x: Array, weight: Array, groups: int, strides: Sequence[int], dilations: Sequence[int], size: Sequence[int]
) -> Array:
    """As one matrix product per group: (C_out / groups, C_in / groups * K) @ (C_in / groups * K, places)."""
    batch, channels = x.shape[:2]
    outputs, kernel = weight.shape[0], weight.shape[2:]
    taps = int(np.prod(kernel))
    columns = np.empty((batch, channels, taps, *size), dtype=x.dtype) if taps > 1 else None
    if columns is None:  # pointwise: the input itself, without a copy where the stride is 1
        columns = x[(slice(None), slice(None), *(slice(None, None, s) for s in strides))]
    else:
        for number, places in _taps(kernel, strides, dilations, size):
            columns[:, :, number] = x[(slice(None), slice(None), *places)]
    columns = columns.reshape(batch, groups, channels // groups * taps, int(np.prod(size)))
    product = weight.reshape(groups, outputs // groups, -1) @ columns
    return product.reshape(batch, outputs, *size)


def _depthwise(x: Array, weight: Array, strides: Sequence[int], dilations: Sequence[int], size: Sequence[int]) -> Array:
    """Tap by tap over blocks of channels: each channel has its own window, so there is no matrix to multiply."""
    outputs, kernel = weight.shape[0], weight.shape[2:]
    if outputs != x.shape[1]:  # several outputs per channel
        x = np.repeat(x, outputs // x.shape[1], axis=1)
    taps = weight.reshape(outputs, -1, *[1] * len(kernel))
    y = np.empty((x.shape[0], outputs, *size), dtype=x.dtype)
    block = max(1, DEPTHWISE_BLOCK // max(1, x.shape[0] * int(np.prod(size))))
    for first in range(0, outputs, block):
        channels = slice(first, first + block)
        total = y[:, channels]
        product = np.empty_like(total)
        for number, places in _taps(kernel, strides, dilations, size):
            part = x[(slice(None), channels, *places)]
            np.multiply(part, taps[channels, number], out=product if number else total)
            if number:
                total += product
    return y


def conv_transpose(
    x: Array,
    weight: Array,
    bias: Array | None = None,
    *,
    pad: Array,
    output_shape: Array | None = None,
    pad_type: str,
    strides: Array,
    dilations: Array,
    groups: int,
) -> Array:
    """Spread each element of ``x`` (N, C_in, *D) over a window of ``weight`` (C_in, C_out / groups, *K)."""
    batch, channels, kernel = x.shape[0], x.shape[1], weight.shape[2:]
    step, spread, size = [int(s) for s in strides], [int(d) for d in dilations], x.shape[2:]
    full = [(n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip(size, step, kernel, spread, strict=True)]
    before, wanted = _crop(pad_type, size, full, step, pad, output_shape)
    per_group = weight.shape[1]
    matrix = weight.reshape(groups, channels // groups, -1).swapaxes(
        1, 2
    )  # (groups, C_out / groups * K, C_in / groups)
    columns = matrix @ x.reshape(batch, groups, channels // groups, -1)
    columns = columns.reshape(batch, groups * per_group, -1, *size)
    room = [max(f, b + w) for f, b, w in zip(full, before, wanted, strict=True)]
    y = np.zeros((batch, groups * per_group, *room), dtype=x.dtype)
    for number, places in _taps(kernel, step, spread, size):
        y[(slice(None), slice(None), *places)] += columns[:, :, number]
    y = y[(slice(None), slice(None), *(slice(b, b + w) for b, w in zip(before, wanted, strict=True)))]
    return y if bias is None else y + bias.reshape(-1, *[1] * len(kernel))


def _crop(
    pad_type: str,
    size: Sequence[int],
    full: Sequence[int],
    strides: Sequence[int],
    pad: Array,
    output_shape: Array | None,
) -> tuple[list[int], list[int]]:
    """How much of the *full* result is cut off in front of each axis, and how much is then kept."""
    axes = range(len(size))
    if pad_type == "custom":
        before = [int(pad[2 * axis]) for axis in axes]
        wanted = [full[axis] - before[axis] - int(pad[2 * axis + 1]) for axis in axes]
    elif pad_type == "valid":
        before, wanted = [0] * len(size), list(full)
    elif pad_type == "same":
        wanted = [n * s for n, s in zip(size, strides, strict=True)]
        before = [max(0, f - w) // 2 for f, w in zip(full, wanted, strict=True)]
    else:
        raise UnsupportedFormError(f"pad_type is {pad_type!r}; known: valid, custom, same")
    if output_shape is not None:
        wanted = [int(n) for n in output_shape[2:]]
    return before, wanted


def avg_pool(
    x: Array,
    *,
    kernel_sizes: Array,
    strides: Array,
    pad_type: str,
    pad: Array,
    ceil_mode: bool,
    exclude_padding_from_average: bool,
) -> Array:
    """Mean over each window; padding counts as zeros, or not at all.

    What only ``ceil_mode`` adds behind the input counts as padding does, where torch leaves it out: apple/coremltools
    #2844 prints 4.75 for a window that holds 9 and 10 alone, where torch has 9.5.
    """
    if pad_type == "custom" and not exclude_padding_from_average and max(pad, default=0) > 1:
        raise UnsupportedFormError(
            "Core ML is reported to compute a mean that counts more than one element of padding wrong"
            " (apple/coremltools#1901)"
        )
    windows = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    elements = np.ones((), np.intp)
    for window, size in zip(windows, x.shape[2:], strict=True):
        elements = np.multiply.outer(elements, window.counts(size, exclude_padding_from_average))
    mean: Array = np.true_divide(_slide(x, windows, np.add, 0.0), elements.astype(x.dtype))
    return mean


def max_pool(x: Array, *, kernel_sizes: Array, strides: Array, pad_type: str, pad: Array, ceil_mode: bool) -> Array:
    """Maximum of each window; padding never wins."""
    return _slide(x, _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode), np.maximum, -np.inf)


class _Window:
    """A pool's window along one axis."""

    __slots__ = ("after", "before", "kernel", "out", "stride")

    def __init__(self, size: int, kernel: int, stride: int, pads: tuple[int, int], ceil_mode: bool) -> None:
        self.kernel, self.stride, (self.before, self.after) = kernel, stride, pads
        span = size + self.before + self.after - kernel
        self.out = (-(-span // stride) if ceil_mode else span // stride) + 1
        if ceil_mode and (self.out - 1) * stride >= size + self.before and self.before + self.after > 0:
            self.out -= 1  # the last window would start behind the input
        if (self.out - 1) * stride >= size + self.before or kernel <= self.before:
            raise UnsupportedFormError(
                f"a window of {kernel} with stride {stride} and padding {pads} lies outside an axis of {size}"
            )

    def room(self, size: int) -> tuple[int, int]:
        """Elements before and after an axis of *size* that the windows reach."""
        return self.before, max(0, (self.out - 1) * self.stride + self.kernel - size - self.before)

    def counts(self, size: int, exclude_padding: bool) -> NDArray[np.intp]:
        """Elements that each window's mean divides by."""
        start = np.arange(self.out) * self.stride
        stop = start + self.kernel
        if exclude_padding:
            start, stop = np.maximum(start, self.before), np.minimum(stop, size + self.before)
        counts: NDArray[np.intp] = stop - start
        return counts


def _windows(
    x: Array, kernel_sizes: Array, strides: Array, pad_type: str, pad: Array, ceil_mode: bool
) -> list[_Window]:
    kernel, step, size = [int(k) for k in kernel_sizes], [int(s) for s in strides], x.shape[2:]
    if pad_type == "same_lower" and len(size) == 1:  # coremltools' own tests expect it to fail: rdar://98852008
        raise UnsupportedFormError("Core ML is known to compute a pool over one axis with pad_type 'same_lower' wrong")
    pads = padding(pad_type, size, kernel, step, pad)
    return [_Window(n, k, s, p, ceil_mode) for n, k, s, p in zip(size, kernel, step, pads, strict=True)]


def _slide(x: Array, windows: Sequence[_Window], combine: np.ufunc, padded_with: float) -> Array:
    """Combine the elements of each window, one axis after the other."""
    x = _pad(x, [window.room(n) for window, n in zip(windows, x.shape[2:], strict=True)], padded_with)
    for axis, window in enumerate(windows, start=2):
        starts = range(0, window.out * window.stride, window.stride)
        if window.out < window.kernel:  # few long windows
            parts = [combine.reduce(_cut(x, axis, slice(s, s + window.kernel)), axis, keepdims=True) for s in starts]
            x = parts[0] if len(parts) == 1 else np.concatenate(parts, axis)
        else:
            last = starts[-1] + 1
            total = _cut(x, axis, slice(0, last, window.stride))
            for tap in range(1, window.kernel):
                total = combine(total, _cut(x, axis, slice(tap, tap + last, window.stride)))
            x = total
    return x


def _cut(x: Array, axis: int, places: "slice[int, int, int]") -> Array:
    part: Array = x[(*[slice(None)] * axis, places)]
    return part
