"""``python -m fuzzing FIRST COUNT [--small]`` runs cases by hand; ``--keep FOLDER`` uses what was made before."""

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from fuzzing import bases, lanes

parser = argparse.ArgumentParser()
parser.add_argument("first", type=int)
parser.add_argument("count", type=int)
parser.add_argument("--small", action="store_true")
parser.add_argument("--keep", type=Path)
arguments = parser.parse_args()
torch.set_num_threads(1)
root = arguments.keep or Path(tempfile.mkdtemp()) / "root"
if not root.exists():
    root.mkdir(parents=True)
    bases.prepare(root, whole=not arguments.small)
work = Path(tempfile.mkdtemp(prefix="fuzz-"))
begun = time.monotonic()
found = lanes.run_all(range(arguments.first, arguments.first + arguments.count), root, work, 2)
print(f"{len(found)} cases in {time.monotonic() - begun:.0f} s", dict(Counter(item.ended.code for item in found)))  # noqa: T201
for item in found:
    if item.problems:
        print(item)  # noqa: T201
print("kept in", work)  # noqa: T201
