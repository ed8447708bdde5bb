"""Where the time of a file goes: its operators are timed in turns with the whole file, and joined to the layers.

    share of a row = its time / max(latency of the file, sum of all rows)

so that rows which sum to less than the file leave a rest that nothing explains, and rows which sum to more are no more
than all of it. Timing takes time itself: about 3 us an operator in ONNX Runtime's profiler, 1 us a call in LiteRT. It
is the same for every part, so what the parts sum to beyond the file is taken off them evenly, but never more than the
shortest part lasts: no operator takes less than nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.layer_map import LayerMap
from coordatt_deploy.profile.operator_result import LayerError, LayerTime, OperatorProfile, OperatorTime
from coordatt_deploy.profile.statistics import Samples, median_interval
from coordatt_deploy.runtimes import Runner
from coordatt_deploy.runtimes.operator_times import TimedPart, operator_timer, timed

WARMUPS: Final = 3
TURNS: Final = 30
FEWEST_TURNS: Final = 20  # as many as samples for an interval
PER_TURN: Final = 4  # of which the first brings the caches back


@dataclass(frozen=True, slots=True)
class Attention:
    """An attention block of a file.

    Attributes:
        name: Path of its module.
        kind: As the manifest has it.
    """

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class LayerFacts:
    """What is known of the layers of a file.

    Attributes:
        layers: Where each is in the file.
        attention: The blocks; None where that is not known.
        errors: By layer id; None where the file was not judged.
    """

    layers: LayerMap
    attention: tuple[Attention, ...] | None = None
    errors: Mapping[str, LayerError] | None = None


def time_operators(
    path: Path,
    artifact: Artifact,
    runner: Runner,
    feeds: Mapping[str, NumberArray],
    facts: LayerFacts,
    threads: int,
    *,
    turns: int = TURNS,
    step: Callable[[], None] = lambda: None,
) -> OperatorProfile:
    """Time the operators of a file in turns with the file itself.

    Args:
        path: Of the file.
        artifact: Its description.
        runner: The file, open with as many threads.
        feeds: One array per input, in the file's own dtype and layout.
        facts: What is known of its layers.
        threads: Worker threads of the runtime.
        turns: How often.
        step: Called after each turn.

    Raises:
        UsageError: The runtime tells no time per operator.
        MissingDependencyError: What cuts the format apart is not installed.
        BundleError: The file cannot be opened, or not be cut apart.
    """
    tensors = frozenset(part.tensor for layer in facts.layers.layers for part in layer.parts)
    whole: list[float] = []
    with operator_timer(artifact.format).open_clock(path, artifact, tensors, feeds, threads) as clock:
        for _ in range(WARMUPS):
            runner.infer(feeds)
            clock.run()
        for _ in range(turns):
            whole.append(_turn(lambda: runner.infer(feeds), alone=threads == 1))
            for _ in range(PER_TURN):
                clock.run()
            step()
        method, parts = clock.method.value, clock.parts()
    means = [turn_means(part) for part in parts]
    return operator_profile(
        artifact, runner.runtime, threads, method, np.array(whole), list(zip(parts, means, strict=True)), facts
    )


def _turn(call: Callable[[], object], *, alone: bool) -> float:
    """Return the mean time of a turn's calls but the first, in nanoseconds, without those that lost their core."""
    return _mean([timed(call, alone=alone) for _ in range(PER_TURN)][1:])


def _mean(times: Sequence[tuple[int, bool]]) -> float:
    kept = [taken for taken, lost in times if not lost] or [taken for taken, _ in times]
    return float(np.mean(kept))


def turn_means(part: TimedPart) -> Samples:
    """Return the mean time of each turn ``(turns,)`` in nanoseconds: see ``_turn``."""
    lost = part.lost or (False,) * len(part.samples_ns)
    pairs = list(zip(part.samples_ns, lost, strict=True))[WARMUPS:]
    turns = [pairs[start : start + PER_TURN] for start in range(0, len(pairs), PER_TURN)]
    return np.array([_mean(turn[1:]) for turn in turns])


def overhead_of(timed: Sequence[float], whole: float) -> float:
    """Return what is taken off each part: what they sum to beyond the whole, evenly, at most the shortest of them."""
    return max(0.0, min((sum(timed) - whole) / len(timed), *timed)) if timed else 0.0


def operator_profile(
    artifact: Artifact,
    runtime: str,
    threads: int,
    method: str,
    whole: Samples,
    parts: Sequence[tuple[TimedPart, Samples]],
    facts: LayerFacts,
) -> OperatorProfile:
    """Join what was timed to the layers.

    Args:
        artifact: The file.
        runtime: Name and version.
        threads: Of it.
        method: See ``OperatorProfile``.
        whole: Nanoseconds of the file, of each turn.
        parts: What was timed, with its nanoseconds of each turn.
        facts: What is known of the layers.
    """
    whole_ns = float(np.median(whole))
    medians = [float(np.median(times)) for _, times in parts]
    overhead = overhead_of(medians, whole_ns)
    places = _layers_by_tensor(facts.layers)
    groups: dict[str | None, list[int]] = {}
    for index, (part, _) in enumerate(parts):
        layer = places.get(part.tensor, (None,))[0] if part.tensor is not None else None
        groups.setdefault(layer, []).append(index)
    total = max(whole_ns, sum(value - overhead for value in medians))
    rows = []
    for layer, group in groups.items():
        own = sum(medians[index] - overhead for index in group)
        fused = dict.fromkeys(
            name for index in group for name in places.get(parts[index][0].tensor or "", (None,))[1:] if name
        )
        row = LayerTime(
            layer=layer,
            fused=tuple(name for name in fused if name != layer),
            block=_block(layer, facts.attention or ()),
            ms=own / 1e6,
            ci95_ms=_interval([parts[index][1] for index in group], overhead * len(group)),
            share=own / total,
            error=None if facts.errors is None or layer is None else facts.errors.get(layer),
            timed=tuple(
                OperatorTime(parts[index][0].name, parts[index][0].operators, (medians[index] - overhead) / 1e6)
                for index in group
            ),
        )
        rows.append(row)
    return OperatorProfile(
        path=artifact.path,
        format=artifact.format,
        precision=artifact.precision,
        target_cpu=artifact.target_cpu,
        runtime=runtime,
        threads=threads,
        method=method,
        whole_ms=whole_ns / 1e6,
        rows_ms=sum(row.ms for row in rows),
        timed_ms=sum(medians) / 1e6,
        overhead_ms=overhead / 1e6,
        explained=sum(row.share for row in rows if row.layer is not None),
        attention=None if facts.attention is None else sum(row.share for row in rows if row.block is not None),
        judged=facts.errors is not None,
        turns=len(whole),
        rows=tuple(sorted(rows, key=lambda row: -row.ms)),
    )


def _layers_by_tensor(layers: LayerMap) -> dict[str, tuple[str, ...]]:
    """For each tensor the layer that has it as its value, and those that are in it as well or were fused into one."""
    found: dict[str, list[str]] = {}
    for layer in layers.layers:
        for part in layer.parts:
            found.setdefault(part.tensor, []).append(layer.layer_id)
    taken_up: dict[str, list[str]] = {}
    for layer in layers.layers:
        if layer.seen_through is not None:
            judged = layers.resolved(layer.layer_id)
            if judged is not None:
                taken_up.setdefault(judged.layer_id, []).append(layer.layer_id)
    return {
        tensor: tuple(dict.fromkeys([*own, *(name for item in own for name in taken_up.get(item, ()))]))
        for tensor, own in found.items()
    }


def _block(layer: str | None, blocks: Sequence[Attention]) -> str | None:
    if layer is None:
        return None
    inside = (block.kind for block in blocks if block.name and layer.startswith((f"{block.name}.", f"{block.name}:")))
    whole = (block.kind for block in blocks if block.name == layer)
    return next(inside, None) or next(whole, None)


def _interval(times: Sequence[Samples], overhead: float) -> tuple[float, float] | None:
    total = np.sum(times, axis=0)
    if total.size < FEWEST_TURNS:
        return None
    low, high = median_interval(total.reshape(-1, 1))
    return max(0.0, low - overhead) / 1e6, max(0.0, high - overhead) / 1e6
