"""``python -m random_networks FIRST COUNT`` tries networks; ``--show`` prints them, ``--shrink`` what is left."""

import argparse
import time
from pathlib import Path

import torch

from random_networks.compose import UnhealthyError, compose
from random_networks.shrink import shrink
from random_networks.survey import survey
from random_networks.trial import attempt

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("first", type=int)
parser.add_argument("count", type=int, nargs="?", default=1)
parser.add_argument("--show", action="store_true", help="print the source of each network")
parser.add_argument("--shrink", action="store_true", help="make what fails smaller, and print its source")
parser.add_argument("--outputs-only", action="store_true", help="leave parity of layers out")
parser.add_argument("--workers", type=int, default=1)
arguments = parser.parse_args()
torch.set_num_threads(1)
begun = time.monotonic()
if arguments.show or arguments.shrink:
    for seed in range(arguments.first, arguments.first + arguments.count):
        try:
            network = compose(seed)
        except UnhealthyError as error:
            print(f"seed {seed}: {error}")  # noqa: T201
            continue
        if arguments.shrink:
            network = shrink(network)
        print(network.source())  # noqa: T201
        print(*attempt(network).faults or ("nothing is wrong",), sep="\n")  # noqa: T201
else:
    found = survey(arguments.first, arguments.count, workers=arguments.workers, layers=not arguments.outputs_only)
    print(found.table())  # noqa: T201
print(f"{time.monotonic() - begun:.0f} s", Path.cwd())  # noqa: T201
