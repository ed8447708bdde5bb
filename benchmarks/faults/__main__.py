"""Plant faults into the artifacts of a bundle and see whether the parity report names the layer.

    python -m benchmarks.faults BUNDLE [--seeds 50] [--format onnx] [--fault "bias dropped"]

Each seed edits one file in one place: the protobuf of an ONNX or Core ML model, the flatbuffer of a TFLite model. A
fault is *detected* when some layer is beyond tolerance, and *named* when the first one is a layer whose value comes
out of the edited operator (or, where the artifact holds no such value, out of the next one that it holds).
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from benchmarks.faults.bench import Bench, Outcome
from benchmarks.faults.planters import FAULTS
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.formats import Format


class Tally:
    """What became of the faults that were planted into one artifact."""

    def __init__(self, artifact: Artifact) -> None:
        self.name = Path(artifact.path).name
        self.counts: Counter[tuple[str, str]] = Counter()
        self.missed: list[str] = []

    def add(self, outcome: Outcome) -> None:
        """Count one."""
        for fault in (outcome.fault, ""):
            self.counts[fault, "planted"] += bool(outcome.planted)
            self.counts[fault, "named"] += outcome.detected and outcome.named
        if outcome.missed:
            at = ", ".join(outcome.planted[:4])
            if outcome.size is not None:
                at += f" (moves them by {outcome.size:.2g} times what rounding costs, {outcome.allowed:.3g} allowed)"
            self.missed.append(f"{self.name}, seed {outcome.seed}, {outcome.fault} at {at}: {outcome.said}")

    def cell(self, fault: str) -> str:
        """``5 of 5``; a dash where the file has no place for it."""
        planted = self.counts[fault, "planted"]
        return f"{self.counts[fault, 'named']} of {planted}" if planted else "–"


def run(bench: Bench, artifact: Artifact, faults: Sequence[str], seeds: int, first: int = 0) -> Tally:
    """Plant faults in turn, from seed *first* on, until *seeds* of them found a place."""
    tally, number = Tally(artifact), first
    while tally.counts["", "planted"] < seeds and number < first + 3 * max(seeds, len(faults)):
        tally.add(bench.plant(artifact, faults[number % len(faults)], number))
        number += 1
    return tally


def main() -> int:
    """Print how many of the planted faults were named, and every miss below; 1 if there was one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seeds", type=int, default=50, help="faults per artifact")
    parser.add_argument("--first", type=int, default=0, help="seed to begin with")
    parser.add_argument("--cases", type=int, default=2, help="golden inputs that layers are judged on")
    parser.add_argument("--format", action="append", type=Format)
    parser.add_argument("--only", default="", help="artifacts whose path holds this")
    parser.add_argument("--fault", action="append", choices=list(FAULTS))
    arguments = parser.parse_args()
    bench = Bench(arguments.bundle, arguments.cases)
    faults = arguments.fault or list(FAULTS)
    tallies, healthy = [], []
    for artifact in bench.bundle.manifest.artifacts:
        if (not arguments.format or artifact.format in arguments.format) and arguments.only in artifact.path:
            healthy.append(bench.judge(bench.bundle, artifact))
            print(healthy[-1].sentence(), file=sys.stderr, flush=True)
            tallies.append(run(bench, artifact, faults, arguments.seeds, arguments.first))
            print("\n".join(tallies[-1].missed), file=sys.stderr, flush=True)
    print("| fault |", " | ".join(tally.name for tally in tallies), "|")
    print("|---|" + "--:|" * len(tallies))
    for fault in faults:
        print(f"| {fault} |", " | ".join(tally.cell(fault) for tally in tallies), "|")
    print("| **all** |", " | ".join(tally.cell("") for tally in tallies), "|")
    print("| none planted |", " | ".join("passes" if item.passed else "FAILS" for item in healthy), "|")
    changes = [item.smallest_weight_change for item in healthy]
    print("| smallest weight change |", " | ".join("–" if it is None else f"{it:.1e}" for it in changes), "|")
    missed = [line for tally in tallies for line in tally.missed]
    print("\n".join(["", f"{len(missed)} missed", *missed]))
    return 1 if missed or not all(item.passed for item in healthy) else 0


if __name__ == "__main__":
    sys.exit(main())
