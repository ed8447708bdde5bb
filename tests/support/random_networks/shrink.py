"""Make a network that fails smaller, as long as it fails in the same way."""

import re

from random_networks.network import Network
from random_networks.trial import Trial, attempt

MOST_TRIALS = 25


def shrink(network: Network) -> Network:
    """Return the smallest network that still has the first fault of *network*; itself where it has none."""
    first = _kinds(attempt(network))
    if not first:
        return network
    kind = first[0]
    trials, found = 0, True
    while found:
        found = False
        for candidate in network.smaller():
            trials += 1
            if trials > MOST_TRIALS:
                return network
            if candidate.statements and kind in _kinds(attempt(candidate, layers="layer" in kind)):
                network, found = candidate, True
                break
    return network


def _kinds(trial: Trial) -> list[str]:
    """The faults without numbers and names of values."""
    return [re.sub(r"(v\d+|layer_\w+|\d[\d.e+-]*|'[^']*'|\([^)]*\))", "#", item)[:60] for item in trial.faults]
