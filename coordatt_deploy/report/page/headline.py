"""The headline: whether the files of the manifest compute the model's function, and what was not judged of them."""

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from coordatt_deploy.artifact_specs import Artifact, Origin
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.parity.reports import ParityRun, Standing
from coordatt_deploy.parity.result import ArtifactVerdict, ParityResult
from coordatt_deploy.plurals import counted
from coordatt_deploy.report.page.figures import file_name
from coordatt_deploy.run_records import GOLDEN, HELD_OUT, HERE

BROUGHT: Final = (GOLDEN, HELD_OUT)  # inputs that a bundle brings


@dataclass(frozen=True, slots=True)
class Headline:
    """The first thing that a reader sees.

    Attributes:
        model: Its name.
        kind: ``good``, ``bad`` or ``odd``: the colour.
        text: The verdict over all files.
        facts: What the model is.
        weights: The beginning of their hash.
        believed: What could not be verified, a sentence each.
    """

    model: str
    kind: str
    text: str
    facts: str
    weights: str
    believed: tuple[str, ...] = ()


class State(enum.Enum):
    """What is known of a file that the manifest names."""

    PASSED = "passed"
    FAILED = "failed"
    UNPROVEN = "unproven"
    OUTDATED = "outdated"
    NOT_RUN = "not run"
    UNJUDGED = "unjudged"


def state_of(artifact: Artifact, verdict: ArtifactVerdict | None, standing: Standing | None) -> State:
    """Return what is known of one file.

    Args:
        artifact: As the manifest has it now.
        verdict: That says most; None without any.
        standing: With the other runs of its bytes; None where only the verdict is known.
    """
    further = () if standing is None else standing.further
    if any(run.result.passed is False for run in further):
        return State.FAILED
    if verdict is not None and verdict.sha256 == artifact.sha256 and verdict.passed is not None:
        if verdict.passed:
            return State.PASSED
        return State.FAILED if verdict.provable else State.UNPROVEN
    if further:
        return State.PASSED
    if verdict is None:
        return State.UNJUDGED
    return State.NOT_RUN if verdict.sha256 == artifact.sha256 else State.OUTDATED


def headline(manifest: Manifest, parity: ParityResult | None, standings: Sequence[Standing] = ()) -> Headline:
    """Say whether the files compute the model's function, what was not judged, and whether all are there.

    It is good news only where every file of the manifest was judged, layers and outputs, on the golden inputs.
    """
    known = {item.path: item for item in standings}
    verdicts = {item.path: item for item in parity.artifacts} if parity else {}
    states = {item.path: state_of(item, verdicts.get(item.path), known.get(item.path)) for item in manifest.artifacts}
    kind, text = _verdict(states)
    gaps = _gaps(states, verdicts, known)
    if kind == "good" and (gaps or manifest.refused):
        kind, text = "odd", text.removeprefix("✓ ")
    if manifest.refused:
        missing, asked = len(manifest.refused), len(manifest.refused) + len(manifest.artifacts)
        gaps.append(f"{missing} of the {asked} files that were asked for could not be written.")
    believed = parity.believed if parity else ()
    gaps += _places(states, known)
    facts, weights = _facts(manifest), manifest.model.source_sha256[:16]
    return Headline(manifest.model.name, kind, " ".join([text, *gaps]), facts, weights, believed)


def _facts(manifest: Manifest) -> str:
    model = manifest.model
    height, width = model.preprocessing.size
    found = {block.kind: None for report in manifest.lowering.values() for block in report.blocks}
    attention = model.attention or ", ".join(found) or "none"
    source = f" ({manifest.golden_source} among them)" if manifest.golden_source else ""
    return f"{height} × {width} input, attention: {attention}, {counted(len(manifest.golden), 'golden input')}{source}"


def _verdict(states: Mapping[str, State]) -> tuple[str, str]:
    """Return the colour and the first sentences."""
    total, found = len(states), list(states.values())
    failed, unproven, passed = (found.count(item) for item in (State.FAILED, State.UNPROVEN, State.PASSED))
    rest = [_rest(states, state, words) for state, words in _REST.items() if state in found]
    if not (failed or unproven or passed):
        never = all(state is State.UNJUDGED for state in found)
        return "odd", " ".join(["Parity was not checked.", *(() if never else rest)])
    if failed or unproven:
        first = [f"{_some(failed, total)} {_do(failed)} not compute the model's function."] if failed else []
        unproven_ones = _some(unproven, total)
        first += [f"Nothing can be proven of {unproven_ones[:1].lower()}{unproven_ones[1:]}."] if unproven else []
        return "bad", " ".join(["✗", *first, *rest])
    if rest:
        return "odd", " ".join([f"{_some(passed, total)} {_compute(passed)} the model's function.", *rest])
    every = "The file computes" if total == 1 else f"All {total} files compute"
    return "good", f"✓ {every} the model's function."


_REST: Final = {
    State.UNJUDGED: "not judged",
    State.NOT_RUN: "not run here",
    State.OUTDATED: "judged before {it} changed, and not since",
}


def _rest(states: Mapping[str, State], state: State, words: str) -> str:
    paths = [path for path, found in states.items() if found is state]
    names = ", ".join(file_name(path) for path in paths)
    one = len(paths) == 1
    was = words.format(it="it" if one else "they")
    return f"{len(paths)} {'was' if one else 'were'} {was}: {names}."


def _gaps(
    states: Mapping[str, State], verdicts: Mapping[str, ArtifactVerdict], known: Mapping[str, Standing]
) -> list[str]:
    """Say what of the files that passed was not looked at."""
    passed = [path for path, state in states.items() if state is State.PASSED]
    runs = {path: _shown(known[path]) for path in passed if path in known}
    bare = [path for path in passed if not _has_layers(path, verdicts, runs)]
    other: dict[str, list[str]] = {}
    for path, run in runs.items():
        where = "" if run is None or run.place == HERE or _measured(run) else f" on {run.place}"
        if run is not None and (where or run.inputs.source not in (*BROUGHT, "unknown")):
            what = "golden inputs" if run.inputs.source in BROUGHT else f"inputs of {run.inputs.source}"
            other.setdefault(f"{run.inputs.count} {what}{where}", []).append(path)
    own = [path for path, run in runs.items() if run is not None and run.variant]
    told = []
    if bare:
        told.append(f"Of {_of(bare, passed)} the outputs alone were judged, no layer.")
    for text, paths in other.items():
        told.append(f"{_of(paths, passed).capitalize()} {_was(paths)} judged on {text} alone.")
    if own:
        told.append(f"{_of(own, passed).capitalize()} {_was(own)} judged by tolerances of the user's own.")
    return told


def _places(states: Mapping[str, State], known: Mapping[str, Standing]) -> list[str]:
    """Say of which files it was another machine that found out what is known of them."""
    elsewhere: dict[str, list[str]] = {}
    for path, state in states.items():
        run = _shown(known[path]) if path in known and state in (State.PASSED, State.FAILED) else None
        if run is not None and run.place != HERE and _measured(run):
            elsewhere.setdefault(run.place, []).append(path)
    return [
        f"{', '.join(map(file_name, paths))} {_was(paths)} judged on {place}, as its document tells."
        for place, paths in elsewhere.items()
    ]


def _measured(run: ParityRun) -> bool:
    return run.result.origin is Origin.MEASURED


def _shown(standing: Standing) -> ParityRun | None:
    """The run that says most of the file's bytes."""
    if standing.run is not None and not standing.outdated and standing.run.answered:
        return standing.run
    return next(iter(standing.further), None)


def _has_layers(path: str, verdicts: Mapping[str, ArtifactVerdict], runs: Mapping[str, ParityRun | None]) -> bool:
    run = runs.get(path)
    if run is not None:
        return run.covered.layers > 0
    verdict = verdicts.get(path)
    return verdict is not None and any(layer.passed is not None for layer in verdict.layers)


def _of(some: Sequence[str], every: Sequence[str]) -> str:
    if len(some) == len(every):
        return "it" if len(every) == 1 else f"all {len(every)}"
    return f"{len(some)} of them"


def _was(paths: Sequence[str]) -> str:
    return "was" if len(paths) == 1 else "were"


def _some(count: int, total: int) -> str:
    return "The file" if total == 1 else f"{count} of {total} files"


def _do(count: int) -> str:
    return "does" if count == 1 else "do"


def _compute(count: int) -> str:
    return "computes" if count == 1 else "compute"
