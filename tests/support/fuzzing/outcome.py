"""How a case may end, and how it may not."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from runtimes_alone import opened

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import open_bundle
from coordatt_deploy.parity.tolerances import TOLERANCES, tolerance_of
from coordatt_deploy.tensors import decode, encode
from fuzzing.cases import Case

MOST_BYTES = 4 << 30
OBEYED = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
OWN = {"bundle", "user", "canary", "cache", "output"}
# Two int8 files that both keep 20 dB of the reference are within 14 dB of one another: their noises add up.
INTEGER_DB = 14.0

Answers = Mapping[str, Mapping[str, list[np.ndarray]]]


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: ``code`` is negative for a signal, None where it was ended for its time."""

    code: int | None
    traceback: bool
    peak_bytes: int
    seconds: float
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """A case with what is wrong with its end; nothing is where ``problems`` is empty."""

    case: Case
    ended: Ended
    problems: tuple[str, ...]

    def __str__(self) -> str:
        tail = "\n    ".join(self.ended.text.strip().splitlines()[-6:])
        case = f"seed {self.case.seed}: {self.case.file}: {' '.join(self.case.command)}"
        return f"{case}: {'; '.join(self.problems)}\n    {tail}"


def state(place: Path) -> dict[str, bytes]:
    """Return everything outside of the bundle that a case must leave alone."""
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for folder in ("canary", "user")
        for path in (place / folder).rglob("*")
        if path.is_file()
    }


def judge(case: Case, ended: Ended, place: Path, before: Mapping[str, bytes]) -> Outcome:
    """Hold how a case ended to what every command promises."""
    problems = []
    if ended.code is None:
        problems.append(f"had not ended after {ended.seconds:.0f} s")
    elif ended.code < 0:
        problems.append(f"signal {-ended.code} ended it")
    elif ended.traceback or "Traceback (most recent call last)" in ended.text:
        problems.append("a traceback")
    elif not 0 <= ended.code <= 3:
        problems.append(f"exit code {ended.code}")
    if ended.peak_bytes > MOST_BYTES:
        problems.append(f"{ended.peak_bytes / 1e9:.1f} GB of memory")
    errors = [line for line in ended.text.splitlines() if line.startswith("Error: ")]
    if len(errors) > 1 or (ended.code in (2, 3) and not problems and len(errors) != 1):
        problems.append(f"{len(errors)} error lines")
    if OBEYED.search(ended.text):
        problems.append("prints what a terminal obeys")
    if state(place) != before:
        problems.append("a file outside of the bundle was changed")
    strays = {path.name for path in place.iterdir()} - OWN
    if strays:
        problems.append(f"left {', '.join(sorted(strays))} beside the bundle")
    return Outcome(case, ended, tuple(problems))


def answers_of(bundle: Path) -> Answers:
    """Return what each artifact gives on the golden inputs, through its runtime and nothing else."""
    opened = open_bundle(bundle)
    inputs = opened.golden("inputs")
    return {item.path: _answers(bundle / item.path, item, inputs) for item in opened.manifest.artifacts}


def changed(path: str, base: Path, mutated: Path, known: Answers) -> str | None:
    """Say how far a changed artifact that passed is from the unchanged one; None where it is within its tolerance."""
    opened = open_bundle(base)
    artifact = next(item for item in opened.manifest.artifacts if item.path == path)
    tolerance = tolerance_of(artifact, TOLERANCES)
    basis = tolerance.basis.value if tolerance.weight_bits is None else "fp32"
    reference, rounding = opened.golden("outputs"), opened.golden(f"rounding_{basis}")
    now = _answers(mutated / path, artifact, opened.golden("inputs"))
    for name, before in known[path].items():
        errors = [np.abs(a - b) for a, b in zip(before, now[name], strict=True)]
        if tolerance.weight_bits is None:
            own = max(float(np.abs(a - b).max()) for a, b in zip(rounding[name], reference[name], strict=True))
            allowed = 2 * tolerance.multiple * own  # each file on another side of the reference
            worst = max(float(error.max()) for error in errors)
            if not worst <= allowed:
                return f"PASSED, but {name} is off by {worst:.3g}, {allowed:.3g} allowed"
        else:
            signal = sum(float(np.square(a).sum()) for a in before)
            noise = sum(float(np.square(error).sum()) for error in errors)
            decibels = 10 * np.log10(signal / noise) if noise else np.inf
            if not decibels >= INTEGER_DB:
                return f"PASSED, but {name} keeps {decibels:.1f} dB"
    return None


def _answers(path: Path, artifact: Artifact, inputs: Mapping[str, list[np.ndarray]]) -> dict[str, list[np.ndarray]]:
    run = opened(path, artifact.format)
    found: dict[str, list[np.ndarray]] = {}
    for index in range(len(next(iter(inputs.values())))):
        given = run({spec.name: encode(inputs[spec.name][index], spec) for spec in artifact.inputs})
        for spec in artifact.outputs:
            found.setdefault(spec.name, []).append(np.asarray(decode(given[spec.name], spec), np.float64))
    return found
