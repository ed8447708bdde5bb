"""What is compared: networks that differ by their attention block alone, and the files of each. Needs no torch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from coordatt_deploy import host, targets
from coordatt_deploy.errors import MissingDependencyError, UsageError, nearest
from coordatt_deploy.format_modules import need_converters
from coordatt_deploy.formats import FORMATS, Format, Precision, TargetCpu
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.models import list_models, model_card
from coordatt_deploy.models.attention_options import Activation
from coordatt_deploy.models.registry import ATTENTION_BLOCKS, TAGS, attention_kind
from coordatt_deploy.profile.latency import ProfileSettings
from coordatt_deploy.quantization.recipes import STATIC_INT8, checked, load_recipe

BACKBONE: Final = "mobilenetv2_100"
OFFICIAL: Final = "default"
OURS: Final = "ours"
FAMILIES: Final = {"x86_64": TargetCpu.X86_64, "AMD64": TargetCpu.X86_64, "aarch64": TargetCpu.ARM64,
                   "arm64": TargetCpu.ARM64}  # fmt: skip  # of platform.machine()


@dataclass(frozen=True, slots=True)
class Subject:
    """A network of the comparison.

    Attributes:
        backbone: As the user names it: a plain model, or a network of their own.
        attention: The kind of its blocks; None without any.
        activation: That the blocks were given; None as published.
        untouched: Whether it is the user's own network as it came, whatever its blocks are.
    """

    backbone: str
    attention: str | None = None
    activation: Activation | None = None
    untouched: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the others are held against it."""
        return self.attention is None and not self.untouched


@dataclass(frozen=True, slots=True)
class Way:
    """A way to a file.

    Attributes:
        export: ``default`` (the official converter) or ``ours``.
        format: Of the file.
        precision: fp32, fp16, or int8 by the recipe ``static_wi8_ai8``.
        target_cpu: Whose form it has; None where forms do not differ.
    """

    export: str
    format: Format
    precision: Precision
    target_cpu: TargetCpu | None = None


@dataclass(frozen=True, slots=True)
class CostPlan:
    """What to compare.

    Attributes:
        backbones: Plain models of this package, by name.
        model: A network of the user's own, whose blocks are exchanged; None for none.
        attention: Kinds of blocks; empty for every one that models are named after.
        activation: That every block which has one is measured with as well; None for none.
        input_size: (H, W); None for each network's own.
        formats: Empty for all.
        precisions: fp32 where none is named.
        latency: How to measure it; None to leave it out.
        target: Whose instructions are counted, as ``targets.parse`` reads it; None to leave them out.
    """

    backbones: tuple[str, ...] = (BACKBONE,)
    model: ModelRequest | None = None
    attention: tuple[str, ...] = ()
    activation: Activation | None = None
    input_size: tuple[int, int] | None = None
    formats: tuple[Format, ...] = ()
    precisions: tuple[Precision, ...] = (Precision.FP32,)
    latency: ProfileSettings | None = field(default_factory=ProfileSettings)
    target: str | None = None

    def check(self) -> None:
        """Refuse what can be refused before any work.

        Raises:
            UsageError: An unknown backbone, block, size or target, or a backbone that is not plain.
            MissingDependencyError: A converter is not installed, or the target is not set up.
        """
        if not self.backbones and self.model is None:
            raise UsageError("there is nothing to compare: name a --backbone or a --model")
        plain = [name for name in list_models() if model_card(name).attended is None]
        for name in self.backbones:
            if name not in plain:
                raise UsageError(f"{name} is no plain backbone of this package; {nearest(name, plain)}")
        if self.latency is not None and len(self.latency.threads) != 1:
            raise UsageError("attention-cost measures with one number of threads; call it once for each")
        _ = self.subjects, self.ways()
        for subject in self.subjects:
            self.request(subject).check()
        if self.target is not None:
            _check_counting(self.target)
        need_converters(way.format for way in self.ways())

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """The networks, each backbone's plain one first.

        Raises:
            UsageError: An unknown block.
        """
        kinds = tuple(dict.fromkeys(map(attention_kind, self.attention))) or tuple(TAGS.values())
        names = (*self.backbones, *(() if self.model is None else (self.model.name or self.model.model,)))
        return tuple(subject for name in names for subject in self._of(name, kinds))

    def _of(self, backbone: str, kinds: tuple[str, ...]) -> Iterator[Subject]:
        yield Subject(backbone)
        if backbone not in self.backbones:
            yield Subject(backbone, untouched=True)
        for kind in kinds:
            yield Subject(backbone, kind)
            if self.activation is not None and "activation" in ATTENTION_BLOCKS[kind].options.names():
                yield Subject(backbone, kind, self.activation)

    def request(self, subject: Subject) -> ModelRequest:
        """Return what the loader is asked for; of a network of the user's own it is the network as it came."""
        if subject.backbone not in self.backbones:
            assert self.model is not None  # noqa: S101 - see ``subjects``
            return self.model
        arguments = {} if subject.attention is None else {"attention": subject.attention, **block_options(subject)}
        return ModelRequest(subject.backbone, model_args=arguments or None, input_size=self.input_size)

    def ways(self) -> tuple[Way, ...]:
        """Return the ways in which each network is written.

        Raises:
            UsageError: No format has one of the precisions.
        """
        found = []
        for kind in self.formats or tuple(Format):
            for precision in dict.fromkeys(self.precisions):
                if precision not in FORMATS[kind].precisions and precision is not Precision.INT8:
                    continue
                if precision is Precision.INT8:
                    checked(load_recipe(STATIC_INT8), kind)
                found.append(Way(OFFICIAL, kind, precision))
                cpus = self._cpus() if FORMATS[kind].per_cpu else (None,)
                found += [Way(OURS, kind, precision, cpu) for cpu in cpus]
        if not found:
            formats = ", ".join(self.formats or Format)
            raise UsageError(f"{' and '.join(self.precisions)} is no precision of {formats}; name another one")
        return tuple(found)

    def _cpus(self) -> tuple[TargetCpu, ...]:
        """The CPU families whose forms are looked at: this machine's is timed, the target's is counted on."""
        here = {FAMILIES.get(host.describe().architecture, TargetCpu.ARM64)} if self.latency is not None else set()
        there = {TargetCpu.ARM64} if self.target is not None or self.latency is None else set()
        return tuple(cpu for cpu in TargetCpu if cpu in here | there)


def _check_counting(text: str) -> None:
    """Refuse a target that cannot count.

    Raises:
        UsageError: There is no such target.
        MissingDependencyError: It is not set up, or cannot count.
    """
    name = targets.parse(text)
    found = targets.target(name.name).status()
    if found.state != "ready":
        raise MissingDependencyError(f"target {name.name} is {found.state}: {found.reason}; run: {found.command}")
    if not found.counts:
        raise MissingDependencyError(f"target {name.name} cannot count instructions: {found.counting_problem}")


def block_options(subject: Subject) -> Mapping[str, str]:
    """Return the options of the block that differ from what was published."""
    return {} if subject.activation is None else {"activation": subject.activation.value}
