"""A model that is ready to be captured, its capture, and its float64 reference."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import torch
from PIL import Image
from torch import nn

from coordatt_deploy.artifact_specs import ModelSpec, OutputKind
from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.call_arguments import outputs
from coordatt_deploy.graph.capture import capture, trial
from coordatt_deploy.graph.execution import run
from coordatt_deploy.graph.graph import DynamicBatch, DynamicSize, Graph, op_name, static_shape, tensor_outputs
from coordatt_deploy.loading.sizes import BatchBounds, Bounds, unseen_batches, unseen_sizes
from coordatt_deploy.user_code import source_line

MOST_CHANGED: Final = 1e-3  # of a value, or of the greatest one
MOST_FLIPPED: Final = 1e-3  # of the elements of a mask

Images = tuple[tuple[str, Image.Image, int | None], ...]
"""Real images for the golden inputs: name, image, class where it is known."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model ready to be captured.

    Attributes:
        module: In evaluation mode, float32.
        spec: Its name, preprocessing, labels and the hash of its weights.
        example: One tensor per input.
        images: Real images for the golden inputs: name, image, class.
        inputs: Stable names of the inputs.
        outputs: Stable names of the outputs, nested ones flattened.
        notes: What was assumed, renamed or done, for the user to read.
        dynamic: Bounds of a dynamic height and width; None for a static size.
        batch: Bounds of a dynamic batch; None for a static one.
        output_kinds: What outputs are, by name, where that is known of the architecture.
        golden_source: What the images are, in words; empty where the model takes none.
    """

    module: nn.Module
    spec: ModelSpec
    example: tuple[torch.Tensor, ...]
    images: Images
    inputs: tuple[str, ...] = ("image",)
    outputs: tuple[str, ...] = ("logits",)
    notes: tuple[str, ...] = ()
    dynamic: Bounds | None = None
    batch: BatchBounds | None = None
    output_kinds: Mapping[str, OutputKind] = field(default_factory=dict)
    golden_source: str = ""

    def unseen_sizes(self) -> tuple[tuple[int, int], ...]:
        """The sizes at which a dynamic model has to be right as well; none for a static one."""
        return () if self.dynamic is None else unseen_sizes(self.dynamic, self.spec.preprocessing.size)

    def unseen_batches(self) -> tuple[int, ...]:
        """The batches at which a dynamic model has to be right as well; none for a static one."""
        return () if self.batch is None else unseen_batches(self.batch, self.example[0].shape[0])

    def unseen(self) -> Iterator[tuple[str, list[torch.Tensor]]]:
        """Yield inputs at every size and every batch that the capture did not see, with the words for them."""
        for size in self.unseen_sizes():
            yield f"{size[0]}x{size[1]}", at_size(self.example, size)
        places = (*self.unseen_sizes(), None)
        for index, batch in enumerate(self.unseen_batches()):
            place = places[index % len(places)]
            example = self.example if place is None else at_size(self.example, place)
            at = "" if place is None else f" at {place[0]}x{place[1]}"
            yield f"a batch of {batch}{at}", at_batch(example, batch)


def capture_source(source: LoadedModel) -> Graph:
    """Capture the model under its stable names, with its dynamic size and batch if it has them.

    Raises:
        UsageError: torch.export cannot follow the model, or fixed a size that should have stayed open.
    """
    graph = capture(
        source.module,
        source.example,
        input_names=source.inputs,
        output_names=source.outputs,
        dynamic=None if source.dynamic is None else DynamicSize(*source.dynamic),
        batch=None if source.batch is None else DynamicBatch(*source.batch),
    )
    for at, inputs in source.unseen():
        _check_unseen(source, graph, at, inputs)
    return graph


def _check_unseen(source: LoadedModel, graph: Graph, at: str, inputs: list[torch.Tensor]) -> None:
    """Compare the graph with the module at a size that the capture did not see: torch.export fixes some silently."""
    expected = tensor_outputs(trial(source.module, inputs))
    feeds = {name: tensor.numpy() for name, tensor in zip(source.inputs, inputs, strict=True)}
    declared = [static_shape(node.meta["val"]) for node in outputs(graph.module.graph)]
    try:
        results = [torch.from_numpy(run(graph, feeds, dtype=torch.float32)[name]) for name in source.outputs]
        fits = all(
            all(size in (None, found) for size, found in zip(shape, tensor.shape, strict=True))
            for tensor, shape in zip(expected, declared, strict=True)
        )
    except RuntimeError:
        results, fits = [], False
    if not fits or len(results) != len(expected) or not all(map(_same, results, expected)):
        fixed = _fixed_pools(graph)
        where = f" (it looks like {'; '.join(fixed)})" if fixed else ""
        if source.batch is not None and at.startswith("a batch"):
            raise UsageError(
                f"captured with a dynamic batch, the model is no longer the same at {at}: its code does something else"
                " there, or torch.export fixed a number that the code computes of the batch; compute the same for every"
                " batch, or leave --dynamic-batch out"
            )
        raise UsageError(
            f"captured with a dynamic size, the model is no longer the same at {at}: torch.export"
            f" fixed a size that the code computes{where}; write such pools as x.mean(3, keepdim=True) or as adaptive"
            " pools, or leave --dynamic-size out"
        )


def _same(result: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether two results differ by rounding alone.

    A wrong kernel changes the first digits; rounding in another order changes the sixth. Where that is next to a
    boundary, a mask or a class is another one.
    """
    if result.shape != expected.shape:
        return False
    if not expected.is_floating_point():
        return float((result != expected).double().mean()) <= MOST_FLIPPED
    greatest = float(expected.abs().max())
    return torch.allclose(result, expected, rtol=MOST_CHANGED, atol=MOST_CHANGED * greatest)


def _fixed_pools(graph: Graph) -> list[str]:
    """Pools whose kernel is as large as the feature map was when it was captured."""
    found = []
    for node in graph.module.graph.nodes:
        if node.op == "call_function" and "pool2d" in str(node.target) and isinstance(node.args[1], list | tuple):
            sizes = node.args[0].meta["val"].shape[2:]
            for kernel, side in zip(node.args[1], sizes, strict=False):
                if not isinstance(side, int) and isinstance(kernel, int) and side.node.hint == kernel > 1:
                    at = source_line(node.meta.get("stack_trace", ""))
                    found.append(f"{op_name(node)} with kernel {kernel}{f' at {at}' if at else ''}")
    return list(dict.fromkeys(found))


def at_size(example: tuple[torch.Tensor, ...], size: tuple[int, int]) -> list[torch.Tensor]:
    """Return inputs like *example* with images of another (H, W)."""
    generator = torch.Generator().manual_seed(size[0])
    return [
        torch.randn(*tensor.shape[:2], *size, generator=generator) if tensor.ndim == 4 else tensor for tensor in example
    ]


def at_batch(example: Sequence[torch.Tensor], batch: int) -> list[torch.Tensor]:
    """Return inputs like *example* with another batch, in those that share it with the first."""
    generator = torch.Generator().manual_seed(batch)
    return [
        torch.randn(batch, *tensor.shape[1:], generator=generator)
        if tensor.ndim and tensor.shape[0] == example[0].shape[0]
        else tensor
        for tensor in example
    ]


class _InFloat64(nn.Module):
    """A captured graph as a module that computes in float64."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        feeds = {spec.name: tensor.numpy() for spec, tensor in zip(self.graph.inputs, inputs, strict=True)}
        results = run(self.graph, feeds)
        return tuple(torch.from_numpy(results[name]) for name in self.graph.outputs)


def reference_module(source: LoadedModel, graph: Graph) -> tuple[nn.Module, str | None]:
    """Return what gives the float64 reference, and a remark where it is not the user's own module.

    The module itself is asked wherever it can compute in float64; code that makes float32 tensors as it goes may not.
    """
    module = source.module.double()
    try:
        trial(module, [tensor.double() if tensor.is_floating_point() else tensor for tensor in source.example])
    except UsageError as error:
        source.module.float()
        return _InFloat64(graph), f"the float64 reference is the captured graph, as the model itself refuses: {error}"
    return module, None
