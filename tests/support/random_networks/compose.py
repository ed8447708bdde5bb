"""Draw a network from a seed: one statement after another, each value kept at a healthy size.

What is drawn is run at once, in float64, on random and on constant inputs, so that the next statement knows the shape;
a statement that torch refuses, that gives nothing, or too much, is drawn again. A network that magnifies rounding is
none to hold a file against: ``compose`` says so instead of giving it.
"""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace

import torch
from torch import nn

from coordatt_deploy.graph.exported_program import dynamic_shapes
from coordatt_deploy.graph.graph import DynamicSize, tensor_outputs
from coordatt_deploy.loading.sizes import Bounds, unseen_sizes
from random_networks.network import PREAMBLE, Block, Network, Statement
from random_networks.operators import JOINED_ALIKE, JOINED_BROADCAST, OPERATORS, Draw, Operator

MOST_VALUES = 6000
TRIES = 40
# Weights and inputs moved by this share must move no output by more than that share of its greatest value: what jumps
# or is magnified more would be decided by the last digits.
MOVED, MOVES = 1e-5, 5e-3
OWN_DB = 85.0  # of float32 against float64 on random inputs; a chain of ten sums and products keeps 120 and more


class UnhealthyError(Exception):
    """The seed gives no network to judge a file by."""


@dataclass
class _Growth:
    """A network as it grows."""

    rng: random.Random
    dynamic: Bounds | None
    values: dict[str, list[torch.Tensor]]
    statements: list[Statement] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    layers: SimpleNamespace = field(default_factory=SimpleNamespace)
    namespace: dict[str, object] = field(default_factory=dict)

    def shapes(self, name: str) -> list[tuple[int, ...]]:
        return [tuple(value.shape) for value in self.values[name]]

    def evaluate(self, statement: Statement) -> list[torch.Tensor] | None:
        """The values of a statement, None where it has none that serve."""
        made = {name: eval(text, self.namespace) for name, text in statement.layers}  # noqa: S307 - our own text
        for name, layer in made.items():
            setattr(self.layers, name, layer.double())
        found = []
        for index in range(len(self.values[statement.needs[0]])):
            scope = {name: values[index] for name, values in self.values.items()} | {"self": self.layers}
            try:
                with torch.no_grad():
                    value = eval(statement.expression, self.namespace, scope)  # noqa: S307
            except (RuntimeError, IndexError, ValueError, TypeError, NotImplementedError):
                return None
            healthy = isinstance(value, torch.Tensor) and 0 < value.numel() <= MOST_VALUES and 0 < value.ndim <= 5
            if not healthy or not bool(torch.isfinite(value).all()):
                return None
            found.append(value)
        return found

    def add(self, statement: Statement) -> bool:
        """Take a statement into the network, and bring its values to a healthy size."""
        values = self.evaluate(statement)
        if values is None:
            return False
        floats = values[0].is_floating_point()
        if floats and float(values[0].std(correction=0)) < 1e-3:
            return False
        self._keep(statement, values)
        if floats:
            mean, deviation = float(values[0].mean()), float(values[0].std(correction=0))
            if not (0.3 <= deviation <= 3 and abs(mean) <= 3):
                name = statement.result
                text = f"({name} - {mean:.3g}) * {1 / deviation:.3g}" if abs(mean) > deviation / 2 else (
                    f"{name} * {1 / deviation:.3g}")  # fmt: skip
                scaled = Statement(self.name(), text, (name,), operator="scaled")
                again = self.evaluate(scaled)
                if again is not None:
                    self._keep(scaled, again)
        return True

    def _keep(self, statement: Statement, values: list[torch.Tensor]) -> None:
        self.values[statement.result] = values
        self.statements.append(replace(statement, shape=tuple(values[0].shape)))

    def name(self) -> str:
        return f"v{len(self.statements)}"

    def floats(self, axes: int | None = None) -> list[str]:
        return [name for name, values in self.values.items()
                if values[0].is_floating_point() and axes in (None, values[0].ndim)]  # fmt: skip


def compose(seed: int) -> Network:
    """Draw the network of *seed*.

    Raises:
        UnhealthyError: It would magnify rounding, or torch.export itself cannot follow it with a dynamic size.
    """
    rng = random.Random(f"network {seed}")  # noqa: S311 - no secret
    growth, inputs = _begin(rng)
    wanted = rng.randint(6, 14)
    if rng.random() < 0.25:
        _block(growth)
    for _ in range(TRIES * wanted):
        if len(growth.statements) >= wanted:
            break
        _grow(growth)
    outputs = _outputs(growth)
    keys = tuple(rng.sample(("scores", "mask", "boxes", "features", "embedding"), len(outputs)))
    keys = keys if len(outputs) > 1 and rng.random() < 0.5 else ()
    network = Network(
        seed, inputs, tuple(growth.statements), outputs, keys, tuple(growth.blocks), growth.dynamic
    ).pruned()
    check_healthy(network)
    return network


def _begin(rng: random.Random) -> tuple[_Growth, tuple[tuple[str, tuple[int, ...]], ...]]:
    """Draw the inputs, and what they are tried with: random, constant, and at other sizes where those are dynamic."""
    dynamic = rng.choice(((8, 24, 4), (8, 20, 2), (9, 21, 1))) if rng.random() < 0.22 else None
    batch = 1 if dynamic else rng.choice((1, 1, 1, 2, 3))
    low, high, step = dynamic or (7, 20, 1)
    size = tuple(rng.randrange(low, high + 1, step) for _ in range(2))
    inputs = {"image": (batch, rng.choice((3, 3, 3, 1, 4)), *size)}
    if rng.random() < 0.3:
        other = rng.choice(((batch, rng.choice((3, 6)), *size), (batch, rng.randint(3, 9)), (batch, 5, 8)))
        inputs["input_1"] = other
    sizes = [size, *(unseen_sizes(dynamic, size) if dynamic else ())]
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    values: dict[str, list[torch.Tensor]] = {}
    for name, shape in inputs.items():
        tried = [(*shape[:2], *item) if len(shape) == 4 else shape for item in sizes]
        values[name] = [torch.randn(item, generator=generator).double() for item in tried]
        values[name].append(torch.full(shape, 0.7, dtype=torch.float64))
    growth = _Growth(rng, dynamic, values)
    exec(PREAMBLE, growth.namespace)  # noqa: S102 - our own text
    return growth, tuple(inputs.items())


def _grow(growth: _Growth) -> None:
    rng, choice = growth.rng, growth.rng.random()
    names = growth.floats()
    name = names[-1] if rng.random() < 0.7 else rng.choice(names)
    if choice < 0.18:
        statement = _joined(growth, name)
    elif choice < 0.26:
        statement = _again(growth, name)
    else:
        statement = _drawn(growth, name)
    if statement is not None:
        growth.add(statement)


def _drawn(growth: _Growth, name: str, operators: Sequence[Operator] = OPERATORS) -> Statement | None:
    value = growth.values[name][0]
    fitting = [item for item in operators if item.axes == value.ndim and not item.last
               and not (item.sized and growth.dynamic)]  # fmt: skip
    if not fitting:
        return None
    (operator,) = growth.rng.choices(fitting, [item.weight for item in fitting])
    return _written(growth, operator, name)


def _written(growth: _Growth, operator: Operator, name: str) -> Statement | None:
    shape = tuple(growth.values[name][0].shape)
    written = operator.write(Draw(growth.rng, shape, growth.dynamic is not None))
    if written is None:
        return None
    text, *makers = (written,) if isinstance(written, str) else written
    layers = []
    expression = re.sub(r"\bX\b", name, text)
    for index, maker in enumerate(makers):
        layer, seed = f"layer_{len(growth.statements)}_{index}", growth.rng.randrange(10_000)
        expression = re.sub(rf"\bL{index}\b", f"self.{layer}", expression)
        own = maker.replace("SEED", str(seed))
        layers.append((layer, own if own.startswith(("parameter", "constant")) else f"settled({own}, {seed})"))
    return Statement(growth.name(), expression, (name,), tuple(layers), operator=operator.name)


def _joined(growth: _Growth, name: str) -> Statement | None:
    """Draw what two values become together."""
    rng, mine = growth.rng, growth.shapes(name)
    found: list[tuple[str, str]] = []
    for other in growth.floats():
        theirs = growth.shapes(other)
        if other == name:
            continue
        if theirs == mine:
            found += [(other, text) for text in JOINED_ALIKE] * 2
        elif all(_spreads(small, large) for small, large in zip(theirs, mine, strict=True)):
            found += [(other, text) for text in JOINED_BROADCAST]
        elif len(mine[0]) == len(theirs[0]) == 4:
            mode = rng.choice(("nearest", "bilinear"))
            size = "A.shape[2:]" if growth.dynamic else f"{mine[0][2:]}"
            found += [(other, f"torch.cat([A, F.interpolate(B, size={size}, mode='{mode}')], 1)")]
        elif len(mine[0]) == 4 and theirs[0] == mine[0][:2]:
            found += [(other, "A * B.sigmoid()[:, :, None, None]"), (other, "A + B.unsqueeze(-1).unsqueeze(-1)")] * 3
        elif len(mine[0]) == len(theirs[0]) == 2:
            found += [(other, "torch.cat([A, B], 1)")]
        elif len(mine[0]) == len(theirs[0]) == 3 and mine[0][2] == theirs[0][2]:
            found += [(other, "torch.cat([A, B], 1)"), (other, "(A @ B.transpose(1, 2)).softmax(-1) @ B")]
    if not found:
        return None
    other, text = rng.choice(found)
    expression = re.sub(r"\bA\b", name, re.sub(r"\bB\b", other, text))
    return Statement(growth.name(), expression, (name, other), operator="joined")


def _spreads(small: tuple[int, ...], large: tuple[int, ...]) -> bool:
    return len(small) <= len(large) and all(
        mine in (1, theirs) for mine, theirs in zip(small[::-1], large[::-1], strict=False)
    )


def _again(growth: _Growth, name: str) -> Statement | None:
    """Use the layers of an earlier statement on another value of the same shape."""
    earlier = [item for item in growth.statements if item.layers and len(item.needs) == 1 and item.needs[0] != name
               and growth.shapes(item.needs[0]) == growth.shapes(name)]  # fmt: skip
    if not earlier:
        return None
    item = growth.rng.choice(earlier)
    expression = re.sub(rf"\b{item.needs[0]}\b", name, item.expression)
    return Statement(growth.name(), expression, (name,), operator=f"{item.operator} again")


def _block(growth: _Growth) -> None:
    """Begin with a convolution and a module of its own that is called twice or thrice."""
    rng, channels = growth.rng, growth.values["image"][0].shape[1]
    stem = Statement("v0", "self.stem(image)", ("image",), (
        ("stem", f"settled(nn.Conv2d({channels}, {rng.choice((4, 6, 8))}, 3, {rng.choice((1, 2))}, 1), 1)"),
    ), operator="conv2d")  # fmt: skip
    if not growth.add(stem):
        return
    name = growth.floats()[-1]
    inner = _Growth(rng, growth.dynamic, {"x": growth.values[name]}, namespace=growth.namespace)
    wanted = rng.randint(1, 4)
    for _ in range(TRIES):
        if len(inner.statements) >= wanted:
            break
        before = inner.floats()[-1]
        statement = _drawn(inner, before)
        values = None if statement is None else inner.evaluate(statement)
        if statement is not None and values is not None and [
            tuple(value.shape) for value in values
        ] == inner.shapes("x"):  # fmt: skip
            inner.add(statement)
    if not inner.statements:
        return
    block = Block("Block", tuple(inner.statements))
    growth.blocks.append(block)
    exec(block.source(), growth.namespace)  # noqa: S102 - our own text
    call = rng.choice(("self.block({0})", "{0} + self.block({0})"))
    for index in range(rng.randint(2, 3)):
        before = growth.floats()[-1]
        layers = (("block", "Block()"),) if index == 0 else ()
        growth.add(Statement(growth.name(), call.format(before), (before,), layers, operator="block"))


def _outputs(growth: _Growth) -> tuple[str, ...]:
    used = {name for item in growth.statements for name in item.needs}
    leaves = [item.result for item in growth.statements if item.result not in used]
    if not leaves:
        raise UnhealthyError("nothing could be drawn")
    rng = growth.rng
    chosen = [leaves[-1], *rng.sample(leaves[:-1], min(len(leaves) - 1, rng.choice((0, 1, 1, 2))))]
    if rng.random() < 0.15 and len(growth.statements) > 2:  # an inner value as well
        inner = growth.statements[len(growth.statements) // 2].result
        chosen += [] if inner in chosen else [inner]
    if rng.random() < 0.25:
        name = growth.floats()[-1]
        fitting = [item for item in OPERATORS if item.last and item.axes == growth.values[name][0].ndim]
        if fitting:
            (operator,) = rng.choices(fitting, [item.weight for item in fitting])
            statement = _written(growth, operator, name)
            if statement is not None and growth.add(statement):
                chosen.append(statement.result)
    return tuple(dict.fromkeys(chosen))


# Health ---------------------------------------------------------------------------------------------------------------


def check_healthy(network: Network) -> None:
    """Refuse a network that is decided by last digits.

    Raises:
        UnhealthyError: It is.
    """
    with TemporaryDirectory() as folder, torch.no_grad():
        module = network.module(Path(folder))
        if network.dynamic:
            _check_dynamic(network, module)
        cases = [network.feeds(5), network.feeds(6), [torch.full(shape, 0.7) for shape in network.shapes()]]
        rounded = [tensor_outputs(module(*case)) for case in cases]
        exact = [tensor_outputs(module.double()(*(value.double() for value in case))) for case in cases]
        for index, (mine, theirs) in enumerate(zip(rounded, exact, strict=True)):
            for own, reference in zip(mine, theirs, strict=True):
                if index < 2 and decibels(own, reference) < OWN_DB:
                    raise UnhealthyError("float32 loses it")
        for seed in range(3):
            _jitter(module, seed)
            for index, case in enumerate(cases[:2]):
                generator = torch.Generator().manual_seed(seed)
                moved = [value.double() * (1 + MOVED * torch.randn(value.shape, generator=generator)) for value in case]
                for now, reference in zip(tensor_outputs(module(*moved)), exact[index], strict=True):
                    scale = float(reference.double().abs().max())
                    if not float((now.double() - reference.double()).abs().max()) <= MOVES * scale:
                        raise UnhealthyError("it jumps or magnifies")


def _check_dynamic(network: Network, module: nn.Module) -> None:
    example = tuple(network.feeds(5))
    try:
        torch.export.export(
            module, example, dynamic_shapes=dynamic_shapes(example, DynamicSize(*network.dynamic)), strict=False
        )
    except Exception:  # noqa: BLE001 - torch.export raises many kinds
        raise UnhealthyError("torch.export takes no dynamic size for it") from None


def _jitter(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.mul_(1 + MOVED * torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype))


def decibels(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Signal over error, infinite where both are equal."""
    error = float((value.double() - reference.double()).square().mean())
    signal = float(reference.double().square().mean())
    ratio = torch.tensor(signal / error if error else float("inf")) if error or signal else torch.tensor(float("inf"))
    return float(10 * torch.log10(ratio))


def counted(networks: Mapping[int, Network]) -> dict[str, int]:
    """How often each operator was drawn."""
    found: dict[str, int] = {}
    for network in networks.values():
        for item in network.statements:
            found[item.operator] = found.get(item.operator, 0) + 1
    return found
