"""Do two profiles in a row agree within their own intervals, or say that they are noisy?

Runs ``coordatt-deploy profile`` again and again on one bundle, and compares each run with the one before it: artifact
by artifact, thread count by thread count. A pair is *honest* if the two 95 % intervals of the median overlap, or if one
of the two runs did not call the figure stable.

    python benchmarks/repeated_profiles.py mobilenetv2_ca_035.digits --runs 11
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any


def profile(bundle: Path, options: list[str]) -> list[dict[str, Any]]:
    """Measure once, in a process of its own, and return what a real runtime gave."""
    command = [sys.executable, "-m", "coordatt_deploy", "profile", str(bundle), "--json", *options]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return [item for item in json.loads(done.stdout)["results"] if item["origin"] == "measured"]


def overlap(one: list[float], other: list[float]) -> bool:
    """Whether two intervals share a point."""
    return one[0] <= other[1] and other[0] <= one[1]


def main() -> int:
    """Print a line per pair, then the rates; exit 1 where a pair was not honest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--format", action="append", default=[], help="of the bundle's files; repeatable")
    options = parser.parse_args()
    formats = [word for kind in options.format for word in ("--format", kind)]
    runs = []
    for number in range(options.runs):
        runs.append({(item["path"], item["threads"]): item for item in profile(options.bundle, formats)})
        shown = ", ".join(f"{Path(path).name} {item['median_ms']:.3f} ms {item['verdict']}"
                          for (path, _), item in runs[-1].items())  # fmt: skip
        print(f"run {number}: {shown}", flush=True)
    tally: Counter[str] = Counter()
    for before, after in pairwise(runs):
        for key, item in after.items():
            stable = before[key]["verdict"] == item["verdict"] == "stable"
            agree = overlap(before[key]["ci95_ms"], item["ci95_ms"])
            tally[f"{'stable' if stable else 'noisy'}, {'agree' if agree else 'differ'}"] += 1
            if stable and not agree:
                print(f"{key[0]}: {before[key]['ci95_ms']} then {item['ci95_ms']}, both called stable")
    pairs = sum(tally.values())
    dishonest = tally["stable, differ"]
    print(f"{pairs} pairs: {dict(tally)}; {pairs - dishonest} of {pairs} agree or say noisy")
    return 1 if dishonest else 0


if __name__ == "__main__":
    sys.exit(main())
