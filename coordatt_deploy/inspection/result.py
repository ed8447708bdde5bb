"""What an inspection finds."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from coordatt_deploy.artifact_specs import TensorSpec
from coordatt_deploy.documents import to_json
from coordatt_deploy.runtimes.delegate import Delegate

SHOWN: Final = 10  # layers in the list of the largest


@dataclass(frozen=True, slots=True)
class Block:
    """An attention block.

    Attributes:
        kind: ``coordatt`` or ``squeeze_excite``.
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

    def to_json(self) -> dict[str, Any]:
        """Return the answer as plain JSON data."""
        document = {item.name: to_json(getattr(self, item.name)) for item in fields(self) if item.name != "delegates"}
        return document | {
            "delegates": {item.name: item.to_json() for item in self.delegates},
        }


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

    def to_json(self) -> dict[str, Any]:
        """Return the keys of the reference, and the artifacts beside them."""
        document: dict[str, Any] = dict.fromkeys(("parameters", "macs", "operators", "attention_blocks", "lint"))
        document["delegates"] = {}
        notes = list(self.notes)
        if self.reference is not None:
            document = self.reference.to_json()
            notes = [*self.reference.notes, *notes]
        artifacts = {path: item.to_json() for path, item in self.artifacts.items()}
        return document | {"subject": str(self.bundle), "notes": notes, "artifacts": artifacts}


def largest(sizes: list[LayerSize]) -> tuple[LayerSize, ...]:
    """The first ``SHOWN`` by bytes."""
    return tuple(sorted((item for item in sizes if item.bytes), key=lambda item: -item.bytes)[:SHOWN])
