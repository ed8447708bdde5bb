"""The layer map: where each layer's value of the captured graph is in an artifact.

Names die in conversion: simplifiers drop metadata, fused operators vanish, lowered tensors are scaled, sliced or split.
So every node of the captured graph has a stable ``layer_id`` (the module's name, with the operator where a module has
several: ``features.4.conv.6:mul_1``), and each pass, exporter and quantizer hands on where that value is now. The
reference value of a layer follows from the tensors of an artifact by

    value = concatenate(parts, axis),   part = transpose(tensor[..., channels]) / factor
"""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.documents import dump, load
from coordatt_deploy.errors import BundleError
from coordatt_deploy.files import read_text

TAKEN_UP: Final = "taken up by what reads it"  # the note of a layer of which parity asks for a proof


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor that holds a layer's value, or one stretch of it.

    Attributes:
        tensor: Name of the tensor in the artifact (or of the node, inside a graph).
        axes: Axis ``i`` of the tensor is axis ``axes[i]`` of the layer's value; None where nothing moved.
        factor: tensor = factor * value; a number, or one per channel of the value (axis 1).
        channels: First and one past the last channel of the *tensor* (on its channel axis) that belong to the value;
            None for all.
    """

    tensor: str
    axes: tuple[int, ...] | None = None
    factor: float | tuple[float, ...] = 1.0
    channels: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of the captured graph and where its value is. Exactly one of parts, seen_through, absent is set.

    Attributes:
        layer_id: Stable name.
        operator: Operator of the captured graph, e.g. ``conv2d``.
        shape: Of the value in the captured graph, batch first; None for a dynamic axis.
        parts: The tensors that make up the value, in the order of their concatenation.
        axis: Axis of the value along which the parts are concatenated.
        seen_through: The later layer that this one was fused into, and at which it is judged.
        absent: Why the value is nowhere in the artifact.
        note: A remark for the reader, e.g. what it was fused with.
    """

    layer_id: str
    operator: str
    shape: tuple[int | None, ...]
    parts: tuple[Part, ...] = ()
    axis: int = 0
    seen_through: str | None = None
    absent: str | None = None
    note: str | None = None

    def __post_init__(self) -> None:
        if sum((bool(self.parts), self.seen_through is not None, self.absent is not None)) != 1:
            raise ValueError(f"{self.layer_id}: give parts, or the layer it is seen through, or why it is absent")


@dataclass(frozen=True, slots=True)
class LayersDocument:
    """The document ``*.layers.json``: a layer map beside its artifact.

    Attributes:
        coverage: Share of the layers whose value is in the artifact; see ``LayerMap.coverage``.
        layers: In execution order.
    """

    VERSION: ClassVar[int] = 1

    coverage: float
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class LayerMap:
    """All layers of the captured graph in execution order, for one artifact."""

    layers: tuple[Layer, ...]

    @property
    def coverage(self) -> float:
        """Share of the layers whose value is in the artifact, itself or through the layer it was fused into."""
        return sum(layer.absent is None for layer in self.layers) / len(self.layers) if self.layers else 0.0

    def resolved(self, layer_id: str) -> Layer | None:
        """Return the layer with parts at which *layer_id* is judged; None if it is absent."""
        by_id = {layer.layer_id: layer for layer in self.layers}
        layer = by_id[layer_id]
        while layer.seen_through is not None:
            layer = by_id[layer.seen_through]
        return layer if layer.parts else None

    def carried(self, places: Mapping[str, Part | None], reasons: Mapping[str, str] | None = None) -> "LayerMap":
        """Hand the map on through a stage that renamed, permuted or scaled tensors.

        Args:
            places: For each tensor of the old map, where its value is now (axes, factor and channels relative to the
                old tensor); None or missing where it is gone.
            reasons: Why a tensor is gone; ``<tensor>`` to text, with ``->layer_id`` for "seen through that layer", and
                ``=>layer_id`` for one that is only known to read it (``TAKEN_UP``).
        """
        return LayerMap(tuple(_carry(layer, places, reasons or {}) for layer in self.layers))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a ``.layers.json``.

        Raises:
            BundleError: It is missing, not JSON, of another schema, or an entry is misshapen.
        """
        try:
            return cls(load(LayersDocument, read_text(path)).layers)
        except FileNotFoundError:
            raise BundleError(f"{path.name} is missing: the bundle has no layer map for this artifact") from None
        except (OSError, ValueError) as error:
            raise BundleError(f"{path.name} is not a layer map: {error}") from None

    def dump(self) -> str:
        """Return the map as one JSON document."""
        return dump(LayersDocument(round(self.coverage, 4), self.layers))


def _carry(layer: Layer, places: Mapping[str, Part | None], reasons: Mapping[str, str]) -> Layer:
    if not layer.parts:
        return layer
    moved = [_compose(part, places.get(part.tensor)) for part in layer.parts]
    kept = tuple(part for part in moved if part is not None)
    if len(kept) == len(moved):
        return replace(layer, parts=kept)
    gone = next(part.tensor for part, now in zip(layer.parts, moved, strict=True) if now is None)
    reason = reasons.get(gone, f"no tensor of the artifact corresponds to {gone}")
    if reason.startswith(("->", "=>")):
        note = "fused" if reason.startswith("->") else TAKEN_UP
        return replace(layer, parts=(), seen_through=reason[2:], note=note)
    return replace(layer, parts=(), absent=reason)


def _compose(first: Part, then: Part | None) -> Part | None:
    """Where the value is after two moves: *first* value -> old tensor, *then* old tensor -> new tensor."""
    if then is None:
        return None
    axes = first.axes if then.axes is None else (
        then.axes if first.axes is None else tuple(first.axes[axis] for axis in _without_surplus(then.axes, first.axes))
    )  # fmt: skip
    factor: float | tuple[float, ...]
    if isinstance(first.factor, tuple) or isinstance(then.factor, tuple):
        factor = tuple(float(f) for f in np.asarray(first.factor) * np.asarray(then.factor))
    else:
        factor = first.factor * then.factor
    channels = first.channels if then.channels is None else then.channels
    if first.channels is not None and then.channels is not None:
        start = then.channels[0] + first.channels[0]
        channels = (start, start + first.channels[1] - first.channels[0])
    return Part(then.tensor, axes, factor, channels)


def _without_surplus(axes: tuple[int, ...], of_value: tuple[int, ...]) -> tuple[int, ...]:
    """The order of the axes that the value has; those beyond are of size 1, stand last, and are left out."""
    return tuple(axis for axis in axes if axis < len(of_value))


def restore(layer: Layer, tensors: Mapping[str, NumberArray]) -> NDArray[np.float64]:
    """Return the layer's value, in the captured graph's own layout, from the tensors of an artifact.

    Args:
        layer: A layer with parts.
        tensors: Dequantized tensors by name.

    Returns:
        float64, of the captured graph's shape.

    Raises:
        KeyError: A part's tensor is not among *tensors*.
        ValueError: A tensor has not as many elements as the map says.
    """
    values = [_restore_part(part, layer, np.asarray(tensors[part.tensor], dtype=np.float64)) for part in layer.parts]
    return values[0] if len(values) == 1 else np.concatenate(values, axis=layer.axis)


def _restore_part(part: Part, layer: Layer, tensor: NDArray[np.float64]) -> NDArray[np.float64]:
    rank = len(layer.shape)
    axes = part.axes or tuple(range(rank))
    if tensor.ndim != rank:  # a runtime dropped or added axes of size 1
        tensor = _unsqueeze(tensor, layer, axes, part.channels)
    elif part.channels is None and len(layer.parts) == 1:
        tensor = _parted(tensor, [layer.shape[axis] for axis in axes])
    if part.channels is not None:
        tensor = np.take(tensor, range(*part.channels), axis=axes.index(1))
    value = np.transpose(tensor, np.argsort(axes))
    factor = np.asarray(part.factor, dtype=np.float64)
    if factor.ndim == 1:
        factor = factor.reshape([-1 if axis == 1 else 1 for axis in range(rank)])
    return value / factor


def takes_together(shape: Sequence[int], sizes: Sequence[int]) -> bool:
    """Whether *shape* is that of a tensor of *sizes* of which neighbouring axes were taken together.

    As a linear layer's kernel has the rows of all images; axes of size 1 may come and go.
    """
    ends = set(accumulate(sizes, operator.mul))
    return math.prod(shape) == math.prod(sizes) and all(
        end in ends or end == 1 for end in accumulate(shape, operator.mul)
    )


def _parted(tensor: NDArray[np.float64], sizes: Sequence[int | None]) -> NDArray[np.float64]:
    """Take axes apart that lie in one in *tensor*; where sizes are dynamic, or others, it is left as it is."""
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes) or tuple(known) == tensor.shape or not takes_together(tensor.shape, known):
        return tensor
    return tensor.reshape(known)


def spare_axes(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """Return the axes of size 1 that a tensor of *shape* has beyond *rank*; fewer where it has not as many.

    The last ones, and the first axis only after all others: it is the batch, unless the batch was taken apart.
    """
    ones = [axis for axis in range(len(shape)) if shape[axis] == 1]
    return tuple(ones[max(0, len(ones) - max(0, len(shape) - rank)) :])


def _unsqueeze(
    tensor: NDArray[np.float64], layer: Layer, axes: tuple[int, ...], channels: tuple[int, int] | None
) -> NDArray[np.float64]:
    """Give *tensor* the rank of the layer's value; only axes of size 1 come or go."""
    if tensor.ndim > len(axes):
        spare = spare_axes(tensor.shape, len(axes))
        if len(spare) < tensor.ndim - len(axes):
            raise ValueError(f"{layer.layer_id}: a tensor of shape {tensor.shape} cannot stand for {layer.shape}")
        return np.squeeze(tensor, spare)
    sizes = [layer.shape[axis] for axis in axes]
    if len(layer.parts) > 1:
        sizes[axes.index(layer.axis)] = None  # it holds a stretch of this axis only
    if channels is not None:
        sizes[axes.index(1)] = None
    known = math.prod(size or 1 for size in sizes)
    # Several images stay apart; one may have been dropped with its axis.
    several = layer.shape[0] is None or ((sizes[0] or 1) > 1 and tensor.size % known == 0)
    if axes[0] == 0 and sizes[0] is None and sizes.count(None) > 1:  # a dynamic batch stays in front
        sizes[0] = tensor.shape[0]
    if axes[0] == 0 and not several and (None in sizes or known != tensor.size):
        sizes[0] = tensor.shape[0] if tensor.ndim >= len(sizes) else 1
    if sizes.count(None) > 1:
        raise ValueError(f"{layer.layer_id}: a tensor of shape {tensor.shape} cannot stand for {layer.shape}")
    return tensor.reshape([-1 if size is None else size for size in sizes])


def place(layer: Layer, value: NumberArray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float64]]:
    """Undo ``restore``: the tensors that an artifact holds where it is given *value*.

    Args:
        layer: A layer with parts.
        value: In the captured graph's own layout.
        shapes: Of the parts' tensors, as the artifact has them.

    Returns:
        float64 tensors by name; channels that do not belong to the value are 0.
    """
    rank, start = value.ndim, 0
    tensors: dict[str, NDArray[np.float64]] = {}
    for position, part in enumerate(layer.parts):
        axes = part.axes or tuple(range(rank))
        shape = shapes[part.tensor]
        plain = _without_spare(shape, rank)
        length = value.shape[layer.axis]
        if len(layer.parts) > 1:
            whole = length - start
            of_tensor = plain[axes.index(layer.axis)] if len(plain) == rank else math.prod(shape) * length // value.size
            length = of_tensor if position < len(layer.parts) - 1 else whole
        piece = np.take(np.asarray(value, np.float64), range(start, start + length), axis=layer.axis)
        start += length
        factor = np.asarray(part.factor, dtype=np.float64)
        if factor.ndim == 1:
            factor = factor.reshape([-1 if axis == 1 else 1 for axis in range(rank)])
        moved = np.transpose(piece * factor, axes)
        if part.channels is not None:
            first, last = part.channels
            axis = axes.index(1)
            after = int(np.prod(shape)) * (last - first) // moved.size - last
            moved = np.pad(moved, [(first, after) if at == axis else (0, 0) for at in range(rank)])
        tensors[part.tensor] = tensors.get(part.tensor, 0.0) + moved.reshape(shape)  # parts may share a tensor
    return tensors


def _without_spare(shape: tuple[int, ...], rank: int) -> tuple[int, ...]:
    """The shape as ``restore`` reads it: without the axes of size 1 that it has to spare."""
    spare = spare_axes(shape, rank)
    return tuple(size for axis, size in enumerate(shape) if axis not in spare)


def place_all(
    layers: Sequence[Layer], values: Mapping[str, NumberArray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, NDArray[np.float64]]:
    """Return every tensor that an artifact holds where each of *layers* has the value given for it.

    Layers may share a tensor, each with channels of its own.

    Args:
        layers: Layers with parts.
        values: By layer id, in the captured graph's own layout.
        shapes: Of all their tensors.
    """
    tensors: dict[str, NDArray[np.float64]] = {}
    for layer in layers:
        value, own = values[layer.layer_id], {part.tensor: shapes[part.tensor] for part in layer.parts}
        placed = place(layer, value, own)
        if any(part.channels is not None for part in layer.parts):  # the other channels are another layer's
            held = place(layer, np.ones_like(value, dtype=np.float64), own)
            placed = {
                name: np.where(held[name] != 0, tensor, tensors.get(name, 0.0)) for name, tensor in placed.items()
            }
        tensors |= placed
    return tensors
