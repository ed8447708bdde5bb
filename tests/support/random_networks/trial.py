"""Export a network to every format as ``export`` does it, and hold each file against torch, in this process.

Files are run through ONNX Runtime and LiteRT themselves (Core ML packages through the ML Program evaluator) on random
and on constant inputs, dynamic ones at other sizes as well, and then judged by the project's own parity too.

How far a file may be from the float64 of torch is what rounding costs this very network: what torch's own float32 is
off by, or the exact network in which weights, inputs and what every operator gives are moved by half a unit in the last
place, whichever is more. ``MULTIPLE`` of that are allowed, as parity allows: runtimes sum in another order than torch.
On a constant input torch's own may be off by nothing, by luck; what a runtime computes there is rounded all the same,
and a normalisation magnifies it: the mean of n equal values, added one after another, is off by sqrt(n) such halves.
"""

import enum
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from runtimes_alone import opened
from torch import nn
from torch._decomp import get_decompositions
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, colour_of
from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.conversion.captured_model import CapturedModel
from coordatt_deploy.conversion.float_artifact import FloatArtifact, convert, plan_float_jobs
from coordatt_deploy.conversion.golden import golden_inputs, write_golden
from coordatt_deploy.errors import ConversionError, DeployError, UnsupportedOperatorsError
from coordatt_deploy.formats import FORMATS, Format, Precision, TargetCpu
from coordatt_deploy.graph.graph import tensor_outputs, weights_sha256
from coordatt_deploy.graph.operator_support import Verdict, table
from coordatt_deploy.graph.passes.batchnorm import fold_batchnorms
from coordatt_deploy.graph.saved_graph import save_graph
from coordatt_deploy.loading.loaded_model import LoadedModel, capture_source, reference_module
from coordatt_deploy.loading.sizes import unseen_sizes
from coordatt_deploy.parity.run import ParityPlan, check_parity
from coordatt_deploy.parity.tolerances import TOLERANCES
from coordatt_deploy.progress import Stages
from coordatt_deploy.tensors import decode, encode
from random_networks.network import Network

MULTIPLE = 16.0
ROUNDS = 4
SUMS = frozenset({"mean", "sum", "var", "std", "var_mean", "linalg_vector_norm", "logsumexp"})
NORMALISATIONS = get_decompositions([
    torch.ops.aten.native_batch_norm, torch.ops.aten.native_group_norm, torch.ops.aten.native_layer_norm,
])  # fmt: skip
# Sixteen units in the last place of the greatest value: what is exact by luck is not asked of others.
LEAST = 2.0**-20
PROVABLE_DB = 60.0  # of float32 against float64; a constant image under a normalisation keeps nothing
MARKED_UNPROVEN = "has no operator"


class Ending(enum.StrEnum):
    """How the export of a network to a format ended."""

    RIGHT = "right"
    REFUSED = "refused in a marked cell"
    UNPROVEN = "written, and nothing here can run it"
    WRONG = "wrong"
    UNMARKED = "refused by the converter"
    DISAGREES = "right, and parity says otherwise"
    MISSED = "wrong, and parity passes it"
    CRASHED = "crashed"


FINE = (Ending.RIGHT, Ending.REFUSED, Ending.UNPROVEN)


@dataclass(frozen=True, slots=True)
class FormatTrial:
    """What became of a network in one format; ``refused`` are operators that the table marks."""

    file_format: Format
    ending: Ending
    detail: str = ""
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Trial:
    """What became of one network; ``problem`` is what ended it before any format."""

    seed: int
    formats: tuple[FormatTrial, ...] = ()
    problem: str | None = None

    @property
    def faults(self) -> tuple[str, ...]:
        """What should not be, a line each."""
        found = [
            f"{item.file_format}: {item.ending}: {item.detail}" for item in self.formats if item.ending not in FINE
        ]
        return tuple([self.problem] if self.problem else found)


@dataclass(frozen=True, slots=True)
class Case:
    """One input with what torch makes of it, and how far each output may be from that."""

    name: str
    feeds: list[torch.Tensor]
    expected: list[np.ndarray] = field(default_factory=list)
    allowed: dict[Format, list[float]] = field(default_factory=dict)


def attempt(network: Network, formats: Iterable[Format] = tuple(Format), *, layers: bool = True) -> Trial:
    """Export a network and judge every file of it.

    Args:
        network: What to export.
        formats: To write; those that take no dynamic size are left out of a dynamic network's.
        layers: Whether parity judges every layer as well.
    """
    kinds = [kind for kind in formats if network.dynamic is None or FORMATS[kind].fixed_size_because is None]
    with TemporaryDirectory(prefix="random-network-") as folder:
        try:
            return Trial(network.seed, tuple(_attempt(network, kinds, Path(folder), layers)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what was looked for
            return Trial(network.seed, problem=f"ended with {type(error).__name__}: {_line(error)}")


def _attempt(network: Network, kinds: Sequence[Format], folder: Path, layers: bool) -> list[FormatTrial]:
    module = network.module(folder)
    cases = _cases(network, module, kinds)
    module.float()
    source = _source(network, module)
    graph = capture_source(source)
    model = CapturedModel(source, graph, module.state_dict(), None, source.spec.preprocessing)
    folded, _ = fold_batchnorms(graph)
    cpu = (TargetCpu.ARM64, TargetCpu.X86_64)[network.seed % 2]
    wanted = [(kind, Precision.FP32, cpu if FORMATS[kind].per_cpu else None) for kind in kinds]
    ended: dict[Format, FormatTrial] = {}
    made: list[FloatArtifact] = []
    with writing(folder / "bundle", source.spec.source_sha256) as staging:
        (folder / "folded").mkdir()
        save_graph(folded, folder / "folded", lines=True)
        (staging / "reference").mkdir()
        save_graph(graph, staging / "reference", model.state)
        golden = golden_inputs(graph.inputs, source.spec.preprocessing, (), source.unseen_sizes())
        for job in plan_float_jobs(wanted, source.spec, folder / "folded", staging, golden.feeds):
            try:
                made.append(convert(job))
            except UnsupportedOperatorsError as error:
                names = tuple(item.operator for item in error.refused)
                known = all(marked(name, job.kind, dynamic=network.dynamic is not None) for name in names)
                ending = Ending.REFUSED if known else Ending.UNMARKED
                ended[job.kind] = FormatTrial(job.kind, ending, _line(error), names)
            except ConversionError as error:
                ended[job.kind] = FormatTrial(job.kind, Ending.UNMARKED, _line(error.__cause__ or error))
            except Exception as error:  # noqa: BLE001 - as above
                ended[job.kind] = FormatTrial(job.kind, Ending.CRASHED, f"{type(error).__name__}: {_line(error)}")
        exact, _ = reference_module(source, graph)
        write_golden(staging, golden, graph, exact)
        finish(staging, replace(
            model.manifest(""), artifacts=tuple(item.artifact for item in made), golden=golden.cases,
            lowering={item.artifact.path: item.lowering for item in made},
        ))  # fmt: skip
    verdicts = _parity(folder / "bundle", layers) if made else {}
    for item in made:
        wrong, unproven = _hold(folder / "bundle" / item.artifact.path, item.artifact, network, cases)
        ended[item.artifact.format] = _ending(item.artifact.format, wrong, unproven, verdicts[item.artifact.path])
    return [ended[kind] for kind in kinds]


def marked(operator: str, kind: Format, *, dynamic: bool) -> bool:
    """Whether the table says of an operator that a format refuses it, or writes it in other terms of known sizes."""
    cells = [row.cells[kind] for row in table().rows if row.operator == operator]
    refusing = (Verdict.REFUSED, Verdict.DECOMPOSED) if dynamic else (Verdict.REFUSED,)
    return any(cell.verdict in refusing for cell in cells)


def _ending(kind: Format, wrong: str | None, unproven: bool, parity: str | None) -> FormatTrial:
    if unproven:
        return FormatTrial(kind, Ending.UNPROVEN if parity is not None else Ending.MISSED, wrong or "")
    if wrong is not None:
        return FormatTrial(kind, Ending.MISSED if parity is None else Ending.WRONG, wrong)
    return FormatTrial(kind, Ending.RIGHT) if parity is None else FormatTrial(kind, Ending.DISAGREES, parity)


def _source(network: Network, module: nn.Module) -> LoadedModel:
    first = network.inputs[0][1]
    channels = first[1]
    preprocessing = Preprocessing(first[2:], (0.5,) * channels, (0.5,) * channels, colour_of(channels))
    return LoadedModel(
        module=module,
        spec=ModelSpec(f"network_{network.seed}", preprocessing, source_sha256=weights_sha256(module), untrained=True),
        example=tuple(network.feeds(5)),
        images=(),
        inputs=tuple(name for name, _ in network.inputs),
        outputs=network.names,
        dynamic=network.dynamic,
    )


# torch ----------------------------------------------------------------------------------------------------------------


def _cases(network: Network, module: nn.Module, kinds: Sequence[Format]) -> list[Case]:
    sizes = [None, *(unseen_sizes(network.dynamic, network.inputs[0][1][2:]) if network.dynamic else ())]
    cases = [Case(f"random {size or ''}".strip(), network.feeds(11, size)) for size in sizes]
    cases.append(Case("other random", network.feeds(12)))
    cases += [Case(f"all {value}", [torch.full(s, value) for s in network.shapes()]) for value in (0.0, 1.0, -0.5)]
    with torch.no_grad():
        rounded = [tensor_outputs(module(*case.feeds)) for case in cases]
        exact = module.double()
        expected = [_run(exact, case.feeds) for case in cases]
        own = [[_squares(mine, reference) for mine, reference in zip(*pair, strict=True)]
               for pair in zip(rounded, expected, strict=True)]  # fmt: skip
        costs = {kind: _costs(exact, cases, expected, TOLERANCES[kind, "fp32"].sigmoid_error) for kind in kinds}
    return [
        replace(case, expected=[value.double().numpy() for value in expected[index]], allowed={
            kind: [_allowed(*item) for item in zip(expected[index], map(max, own[index], cost[index]), strict=True)]
            for kind, cost in costs.items()
        })
        for index, case in enumerate(cases)
    ]  # fmt: skip


def _run(module: nn.Module, feeds: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return tensor_outputs(module(*(value.double() for value in feeds)))


def _costs(
    exact: nn.Module, cases: Sequence[Case], expected: Sequence[Sequence[torch.Tensor]], sigmoid_error: float
) -> list[list[float]]:
    """What rounding costs each output of each case: mean squares, the greatest of ``ROUNDS``."""
    found = [[0.0 for _ in outputs] for outputs in expected]
    state = {name: tensor.clone() for name, tensor in exact.state_dict().items()}
    for seed in range(ROUNDS):
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in exact.state_dict().items():
            tensor.copy_(_moved(state[name], generator))
        for index, case in enumerate(cases):
            feeds = [_moved(value.double(), generator) for value in case.feeds]
            with _Rounded(generator, sigmoid_error):
                now = _run(exact, feeds)
            costs = map(_squares, now, expected[index])
            found[index] = [max(old, cost) for old, cost in zip(found[index], costs, strict=True)]
    for name, tensor in exact.state_dict().items():
        tensor.copy_(state[name])
    return found


class _Rounded(TorchDispatchMode):
    """Moves what every operator computes by half a unit in the last place, and a sigmoid by its runtime's own error."""

    def __init__(self, generator: torch.Generator, sigmoid_error: float) -> None:
        super().__init__()
        self.generator, self.sigmoid_error = generator, sigmoid_error

    def __torch_dispatch__(
        self, func: torch._ops.OpOverload, types: object, args: tuple[object, ...] = (), kwargs: object = None
    ) -> object:
        if func in NORMALISATIONS:  # its mean is a sum
            with self:
                return NORMALISATIONS[func](*args, **(kwargs or {}))
        results = func(*args, **(kwargs or {}))
        if any(item.alias_info is not None for item in func._schema.returns):  # a view
            return results
        return tree_map_only(torch.Tensor, partial(self._rounded, func, args[0] if args else None), results)

    def _rounded(self, func: torch._ops.OpOverload, source: object, value: torch.Tensor) -> torch.Tensor:
        terms = 1.0
        if func.overloadpacket.__name__ in SUMS and isinstance(source, torch.Tensor):
            terms = source.numel() / value.numel()
        moved = _moved(value, self.generator, terms**0.5)
        if func.overloadpacket is not torch.ops.aten.sigmoid:
            return moved
        return moved + self.sigmoid_error * torch.randn(value.shape, generator=self.generator, dtype=value.dtype)


def _moved(value: torch.Tensor, generator: torch.Generator, halves: float = 1.0) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    return value * (1 + halves * 2.0**-24 * torch.randn(value.shape, generator=generator, dtype=value.dtype))


def _squares(value: torch.Tensor, reference: torch.Tensor) -> float:
    return float((value.double() - reference.double()).square().mean())


def _allowed(reference: torch.Tensor, noise: float) -> float:
    """The root of the mean square that an output may be off by; infinite where float32 says nothing of it."""
    if not reference.is_floating_point():
        return 0.0 if noise == 0 else float("inf")
    signal = float(reference.square().mean())
    if not noise <= signal * 10 ** (-PROVABLE_DB / 10) and signal > 0:
        return float("inf")
    return MULTIPLE * max(noise**0.5, LEAST / MULTIPLE * float(reference.abs().max()), 1e-12)


# The files ------------------------------------------------------------------------------------------------------------


def _hold(path: Path, artifact: Artifact, network: Network, cases: Sequence[Case]) -> tuple[str | None, bool]:
    """Say what is wrong with a file, None where nothing is; and whether it could not be run here."""
    try:
        run = opened(path, artifact.format)
    except Exception as error:  # noqa: BLE001 - runtimes raise what they like
        return f"cannot be opened: {_line(error)}", type(error).__name__ == "UnknownOperatorError"
    for case in cases:
        given = {name: value.numpy() for (name, _), value in zip(network.inputs, case.feeds, strict=True)}
        try:
            results = run({spec.name: encode(given[spec.name], spec) for spec in artifact.inputs})
        except Exception as error:  # noqa: BLE001 - as above
            return f"does not run on {case.name}: {_line(error)}", False
        for name, expected, allowed in zip(network.names, case.expected, case.allowed[artifact.format], strict=True):
            spec = next(spec for spec in artifact.outputs if spec.name == name)
            actual = decode(np.asarray(results[name]), spec)
            if actual.shape != expected.shape:
                return f"{name} is {actual.shape} instead of {expected.shape} on {case.name}", False
            error = float(np.sqrt(np.mean(np.square(actual.astype(np.float64) - expected))))
            if not error <= allowed:
                scale = float(np.abs(expected).max()) or 1.0
                text = f"{name} is off by {error / scale:.1e} of its greatest value on {case.name}"
                return f"{text}, {allowed / scale:.1e} allowed", False
    return None, False


def _parity(bundle: Path, layers: bool) -> dict[str, str | None]:
    """What the project's own parity says against each file; None where it passes."""
    report = check_parity(open_bundle(bundle), ParityPlan(layers=layers), Stages()).record()
    found: dict[str, str | None] = {}
    for item in report.artifacts:
        problem = item.problem or ("" if item.passed else "it did not pass")
        if item.passed and item.layers_passed is False:
            problem = f"layer {item.first_diverging_layer}: {item.layers_problem or item.summary}"
        elif item.passed and item.layers_problem:
            problem = item.layers_problem
        found[item.path] = re.sub(r"\s+", " ", problem)[:400] or None
    return found


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"\x1b\[\d*m", "", lines[0])[:500] if lines else type(error).__name__


__all__ = ["Case", "DeployError", "Ending", "FormatTrial", "Trial", "attempt"]
