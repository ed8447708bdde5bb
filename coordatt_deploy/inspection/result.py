"""What an inspection finds."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

from coordatt_deploy.artifact_specs import About, TensorSpec
from coordatt_deploy.documents import REQUIRED
from coordatt_deploy.runtime_versions import RuntimeNeeds
from coordatt_deploy.runtimes.delegate import Delegate, DelegateRecord

SHOWN: Final = 10  # layers in the list of the largest


@dataclass(frozen=True, slots=True)
class Block:
    """An attention block.

    Attributes:
        kind: ``coordatt``, ``squeeze_excite``, ``eca`` and so on; ``docs/performance.md`` has all.
        name: Path of the module that holds it, or the tensor that it gives.
        channels: Of the feature map.
        height: None where dynamic.
        width: None where dynamic.
        form: How it is written: ``concatenated`` or ``branches`` in a model, the lowered form in an artifact; None
            where it is not known.
    """

    kind: str
    name: str
    channels: int
    height: int | None
    width: int | None
    form: str | None


@dataclass(frozen=True, slots=True)
class LayerSize:
    """Where bytes and work lie.

    Attributes:
        layer: Layer id, or the tensor that the operator gives.
        operator: As the model or format names it.
        bytes: Of the weights that no earlier layer has.
        macs: Multiply-accumulates; None where they were not counted by layer.
    """

    layer: str
    operator: str
    bytes: int
    macs: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that will fail or cost on a phone.

    Attributes:
        rule: Name of the rule of ``lint``.
        where: Layer id.
        what: What it is there.
        remedy: What to do about it.
        applied: Whether an export by this tool does it.
        line: ``file:line`` of the user's code; None where it is not known.
    """

    rule: str
    where: str
    what: str
    remedy: str
    applied: bool
    line: str | None = None


@dataclass(frozen=True, slots=True)
class InspectionResult:
    """What is known of a model or file, as a document. What is null is not known; see ``Inspection`` for the fields."""

    VERSION: ClassVar[int] = 1

    subject: str
    parameters: int | None
    macs: int | None
    macs_by_work: Mapping[str, int] | None
    operators: Mapping[str, int] | None
    attention_blocks: tuple[Block, ...] | None
    inputs: tuple[TensorSpec, ...] | None
    outputs: tuple[TensorSpec, ...] | None
    bytes: int | None
    layers: tuple[LayerSize, ...] | None
    lint: tuple[Finding, ...] | None
    uncounted: Mapping[str, int] | None
    notes: tuple[str, ...]
    delegates: Mapping[str, DelegateRecord]
    needs: RuntimeNeeds | None = None
    about: About | None = None


@dataclass(frozen=True, slots=True)
class BundleInspectionResult(InspectionResult):
    """What is known of a bundle, as a document: of its model, and of each of its files by path."""

    artifacts: Mapping[str, InspectionResult] = field(default_factory=dict, metadata=REQUIRED)


@dataclass(frozen=True, slots=True)
class Inspection:
    """The answer.

    Attributes:
        subject: What was inspected.
        parameters: Elements of the weights. A model counts what training adjusts; a file counts what it holds, with
            BatchNorm folded and constants added.
        macs: Multiply-accumulates of one inference, pools and gates included.
        macs_by_work: The same by what they are spent on: convolution, linear, pooling, elementwise.
        operators: How many of each.
        attention_blocks: In execution order.
        inputs: Names, shapes, types.
        outputs: Names, shapes, types.
        bytes: On disk, or of the weights of a model.
        layers: The largest by weights, largest first.
        delegates: What accelerators take of it; only known of files.
        lint: What will fail or cost; only known of models.
        uncounted: Operators whose work no rule counts.
        notes: What else is to be said.
        needs: Of the runtime that opens it; only known of files.
        about: Author, licence and description that a file has.
    """

    subject: str
    parameters: int
    macs: int
    macs_by_work: Mapping[str, int]
    operators: Mapping[str, int]
    attention_blocks: tuple[Block, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    bytes: int
    layers: tuple[LayerSize, ...]
    delegates: tuple[Delegate, ...] = ()
    lint: tuple[Finding, ...] = ()
    uncounted: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    needs: RuntimeNeeds | None = None
    about: About | None = None

    def record(self) -> InspectionResult:
        """Return the answer as documents hold it."""
        return InspectionResult(
            subject=self.subject,
            parameters=self.parameters,
            macs=self.macs,
            macs_by_work=self.macs_by_work,
            operators=self.operators,
            attention_blocks=self.attention_blocks,
            inputs=self.inputs,
            outputs=self.outputs,
            bytes=self.bytes,
            layers=self.layers,
            lint=self.lint,
            uncounted=self.uncounted,
            notes=self.notes,
            delegates={item.name: item.record() for item in self.delegates},
            needs=self.needs,
            about=self.about,
        )


@dataclass(frozen=True, slots=True)
class BundleInspection:
    """The model of a bundle, and each of its files.

    Attributes:
        bundle: Its folder.
        reference: The captured model; None where torch is not installed.
        artifacts: By path, in the order of the manifest.
        notes: What could not be read, and why.
    """

    bundle: Path
    reference: Inspection | None
    artifacts: Mapping[str, Inspection]
    notes: tuple[str, ...] = ()

    def record(self) -> BundleInspectionResult:
        """Return what documents hold: the reference, under the bundle's name, and the artifacts beside it."""
        known = None if self.reference is None else self.reference.record()
        return BundleInspectionResult(
            subject=str(self.bundle),
            parameters=None if known is None else known.parameters,
            macs=None if known is None else known.macs,
            macs_by_work=None if known is None else known.macs_by_work,
            operators=None if known is None else known.operators,
            attention_blocks=None if known is None else known.attention_blocks,
            inputs=None if known is None else known.inputs,
            outputs=None if known is None else known.outputs,
            bytes=None if known is None else known.bytes,
            layers=None if known is None else known.layers,
            lint=None if known is None else known.lint,
            uncounted=None if known is None else known.uncounted,
            notes=(() if known is None else known.notes) + self.notes,
            delegates={} if known is None else known.delegates,
            artifacts={path: item.record() for path, item in self.artifacts.items()},
        )


def largest(sizes: list[LayerSize]) -> tuple[LayerSize, ...]:
    """The first ``SHOWN`` by bytes."""
    return tuple(sorted((item for item in sizes if item.bytes), key=lambda item: -item.bytes)[:SHOWN])
