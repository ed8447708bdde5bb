"""What ``profile --ops`` finds: where the time of a file goes, layer by layer, beside each layer's error."""

from dataclasses import dataclass, field

from coordatt_deploy.formats import Format, Precision, TargetCpu


@dataclass(frozen=True, slots=True)
class LayerError:
    """What ``parity`` found of a layer in the same bytes; see ``LayerVerdict``.

    Attributes:
        passed: Whether the layer itself is within tolerance; None where nothing of it can be seen.
        sqnr_db: Of the value in the whole file; None where it has no such value.
        excess: Error over allowance of the layer alone, or where that could not be run, in the whole file.
        inherits: Whether it is right with right inputs, but off in the whole file.
    """

    passed: bool | None
    sqnr_db: float | None
    excess: float | None
    inherits: bool


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """What was timed as one.

    Attributes:
        name: The runtime's name of the operator; of a piece, that of what its first operator makes.
        operators: As the format names them, in execution order.
        ms: Its time, less what timing it takes (``overhead_ms``).
    """

    name: str
    operators: tuple[str, ...]
    ms: float


@dataclass(frozen=True, slots=True)
class LayerTime:
    """A row: one layer, and what of the file computes it.

    Attributes:
        layer: Its id: the path of the torch module, and the operator where the module has several. None for what
            belongs to no layer, a delegate's partition for example.
        fused: Ids of other layers that were taken up by it: they are computed in the same time.
        block: Kind of the attention block that it is part of: ``coordatt``; None outside.
        ms: Of all that was timed of it.
        ci95_ms: 95 % interval of that time as it was measured, less the same overhead; None of too few turns.
        share: Of the whole: of the file's latency, or of the sum of all rows where that is greater.
        error: Of the layer; None where the file's bytes were not judged, or the layer was not.
        timed: What the time is made of.
    """

    layer: str | None
    fused: tuple[str, ...]
    block: str | None
    ms: float
    ci95_ms: tuple[float, float] | None
    share: float
    error: LayerError | None
    timed: tuple[OperatorTime, ...]


@dataclass(frozen=True, slots=True)
class OperatorProfile:
    """Where the time of one file goes.

    Attributes:
        path: In the bundle.
        format: Of the file.
        precision: That it computes in.
        target_cpu: The CPU family of its form; None where the form is the same for all.
        runtime: Name and version of what ran it.
        threads: Worker threads of the runtime.
        method: ``profiler``: the runtime's own tells of each operator in the whole file; ``submodels``: each layer was
            timed as a file of its own.
        whole_ms: Latency of the file as an application runs it, in turns with the rows.
        rows_ms: Sum of the rows.
        timed_ms: The same sum as it was timed, with the overhead.
        overhead_ms: What timing takes of each part, which was taken off: what the parts are longer than the whole,
            spread evenly, and no more than the shortest of them lasts.
        explained: Share of the whole that is in rows with a layer id.
        attention: Share of the whole that is in rows of attention blocks; None where the bundle does not say which
            layers these are.
        judged: Whether ``parity`` judged these bytes layer by layer.
        turns: How often file and rows took turns.
        rows: Dearest first.
    """

    path: str
    format: Format
    precision: Precision
    target_cpu: TargetCpu | None
    runtime: str
    threads: int
    method: str
    whole_ms: float
    rows_ms: float
    timed_ms: float
    overhead_ms: float
    explained: float
    attention: float | None
    judged: bool
    turns: int
    rows: tuple[LayerTime, ...] = field(default_factory=tuple)
