"""A network as a list of statements: its source, its module, and the same with statements left out."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from coordatt_deploy.loading.sizes import Bounds

PREAMBLE = '''
import torch
import torch.nn.functional as F
from torch import nn

from coordatt_deploy.models.attention_options import CoordAttOptions
from coordatt_deploy.models.coordatt import CoordAtt


def settled(layer, seed):
    """Weights and statistics such as training leaves: no scale is 1, no mean is 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in layer.state_dict().items():
        if tensor.ndim > 1:
            tensor.normal_(0, (tensor.numel() / tensor.shape[0]) ** -0.5, generator=generator)
        elif name.endswith(("weight", "var")):
            tensor.uniform_(0.5, 1.5, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(0, 0.3, generator=generator)
    return layer.eval()


def parameter(seed, *shape):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def constant(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
'''


@dataclass(frozen=True, slots=True)
class Statement:
    """One line of a forward.

    Attributes:
        result: The name that the value gets.
        expression: Python, in which earlier results stand by their names.
        needs: Those names.
        layers: Attributes of the module that it uses, with what makes them; a later statement may name them again.
        shape: Of the value.
        operator: What it was drawn as.
    """

    result: str
    expression: str
    needs: tuple[str, ...]
    layers: tuple[tuple[str, str], ...] = ()
    shape: tuple[int, ...] = ()
    operator: str = ""


@dataclass(frozen=True, slots=True)
class Block:
    """A module of its own: one value in, one of the same shape out."""

    name: str
    statements: tuple[Statement, ...]

    def source(self) -> str:
        """The text of its class."""
        return _class(self.name, ("x",), self.statements, self.statements[-1].result)


@dataclass(frozen=True, slots=True)
class Network:
    """A whole network.

    Attributes:
        seed: That it was drawn from.
        inputs: Shape of each input by its name.
        statements: Of its forward.
        outputs: Names of the values that it returns.
        keys: Their keys in a dictionary; empty where it returns a tuple or a tensor.
        blocks: Modules that it is made of besides.
        dynamic: Bounds of a dynamic height and width; None for a static size.
    """

    seed: int
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    statements: tuple[Statement, ...]
    outputs: tuple[str, ...]
    keys: tuple[str, ...] = ()
    blocks: tuple[Block, ...] = ()
    dynamic: Bounds | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, as the command line gives them."""
        if self.keys:
            return self.keys
        return tuple(f"output_{index}" for index in range(len(self.outputs))) if len(self.outputs) > 1 else ("output",)

    def source(self) -> str:
        """The text of a Python module with the class ``Net``."""
        shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in self.inputs)
        size = f"; dynamic size {':'.join(map(str, self.dynamic))}" if self.dynamic else ""
        used = " ".join(text for item in self.statements for _, text in item.layers)
        blocks = [block.source() for block in self.blocks if re.search(rf"\b{block.name}\(", used)]
        returned = ", ".join(self.outputs)
        if self.keys:
            pairs = zip(self.keys, self.outputs, strict=True)
            returned = "{" + ", ".join(f'"{key}": {name}' for key, name in pairs) + "}"
        names = tuple(name for name, _ in self.inputs)
        whole = _class("Net", names, self.statements, returned)
        return f'"""Random network {self.seed}: {shapes}{size}."""\n' + "\n\n".join([PREAMBLE, *blocks, whole])

    def module(self, folder: Path) -> nn.Module:
        """Write the source into *folder* and return the network, in evaluation mode.

        The file is there for the line that a refusal names.
        """
        path = folder / f"network_{self.seed}.py"
        path.write_text(self.source(), encoding="utf-8")
        namespace: dict[str, object] = {"__name__": path.stem}
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)  # noqa: S102 - our own text
        made: nn.Module = namespace["Net"]()
        return made.eval()

    def feeds(self, seed: int, size: tuple[int, int] | None = None) -> list[torch.Tensor]:
        """Random inputs, images of another (H, W) where one is given."""
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=generator) for shape in self.shapes(size)]

    def shapes(self, size: tuple[int, int] | None = None) -> list[tuple[int, ...]]:
        """Shapes of the inputs, images of another (H, W) where one is given."""
        whole = [shape for _, shape in self.inputs]
        return [(*shape[:2], *size) if size is not None and len(shape) == 4 else shape for shape in whole]

    def pruned(self) -> "Network":
        """Without the statements that no output needs, or inputs beyond the first that nothing reads."""
        needed = set(self.outputs)
        kept = []
        for item in reversed(self.statements):
            if item.result in needed:
                needed.update(item.needs)
                kept.append(item)
        inputs = tuple(item for index, item in enumerate(self.inputs) if index == 0 or item[0] in needed)
        return replace(self, statements=_with_layers(kept[::-1], self.statements), inputs=inputs)

    def smaller(self) -> Iterator["Network"]:
        """Yield the network with one output less, or one statement less: its value taken from before it."""
        for name in self.outputs if len(self.outputs) > 1 else ():
            kept = [index for index, other in enumerate(self.outputs) if other != name]
            keys = tuple(self.keys[index] for index in kept) if self.keys else ()
            yield replace(self, outputs=tuple(self.outputs[index] for index in kept), keys=keys).pruned()
        shapes = dict(self.inputs) | {item.result: item.shape for item in self.statements}
        for item in reversed(self.statements):
            same = [name for name in item.needs if shapes[name] == item.shape]
            free = item.result in self.outputs and not any(item.result in other.needs for other in self.statements)
            for other in same or (item.needs if free else ()):
                if other not in dict(self.inputs):
                    yield self._renamed(item.result, other).pruned()

    def _renamed(self, old: str, new: str) -> "Network":
        statements = [
            replace(
                item,
                expression=re.sub(rf"\b{old}\b", new, item.expression),
                needs=tuple(dict.fromkeys(new if name == old else name for name in item.needs)),
            )
            for item in self.statements
            if item.result != old
        ]
        outputs = list(dict.fromkeys(new if name == old else name for name in self.outputs))
        keys = self.keys[: len(outputs)]
        return replace(self, statements=_with_layers(statements, self.statements), outputs=tuple(outputs), keys=keys)


def _with_layers(kept: Sequence[Statement], before: Sequence[Statement]) -> tuple[Statement, ...]:
    """Make every layer where it is used first: what made it may have gone."""
    makers = {name: text for item in before for name, text in item.layers}
    made: set[str] = set()
    found = []
    for item in kept:
        used = dict.fromkeys(re.findall(r"self\.(\w+)", item.expression))
        layers = tuple((name, makers[name]) for name in used if name not in made)
        made.update(used)
        found.append(replace(item, layers=layers))
    return tuple(found)


def _class(name: str, inputs: Sequence[str], statements: Sequence[Statement], returned: str) -> str:
    layers = [f"        self.{layer} = {text}" for item in statements for layer, text in item.layers]
    lines = [f"        {item.result} = {item.expression}" for item in statements]
    return "\n".join([
        f"class {name}(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *layers,
        "",
        f"    def forward(self, {', '.join(inputs)}):",
        *lines,
        f"        return {returned}",
        "",
    ])  # fmt: skip
