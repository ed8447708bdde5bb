"""Try many networks and count what became of them."""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context

from coordatt_deploy.formats import FORMATS, Format
from random_networks.compose import UnhealthyError, compose
from random_networks.network import Network
from random_networks.trial import FINE, Ending, Trial, attempt


@dataclass(frozen=True, slots=True)
class Survey:
    """What became of the networks of some seeds.

    Attributes:
        trials: One for each healthy network.
        unhealthy: Seeds that gave none, with the reason.
        operators: How often each operator was drawn in the healthy ones.
    """

    trials: tuple[Trial, ...]
    unhealthy: dict[int, str]
    operators: dict[str, int]

    @property
    def faults(self) -> str:
        """What should not be, by seed."""
        return "\n".join(f"seed {trial.seed}: {fault}" for trial in self.trials for fault in trial.faults)

    def share(self, kind: Format) -> float:
        """Share of the networks that a format has right, of those that it was asked for."""
        endings = self._endings(kind)
        return endings[Ending.RIGHT] / max(1, sum(endings.values()))

    def _endings(self, kind: Format) -> Counter[Ending]:
        return Counter(item.ending for trial in self.trials for item in trial.formats if item.file_format is kind)

    def table(self) -> str:
        """For people: a row for each ending, a column for each format; and what refusals were for."""
        titles = [FORMATS[kind].title for kind in Format]
        lines = [
            f"{len(self.trials)} networks; {len(self.unhealthy)} seeds gave none: {_counts(self.unhealthy.values())}"
        ]
        lines.append(f"{'':40}" + "".join(f"{title:>10}" for title in titles))
        for ending in Ending:
            counts = [self._endings(kind)[ending] for kind in Format]
            lines.append(f"{ending.value:40}" + "".join(f"{count:10}" for count in counts))
        lines.append(f"{'ended before any format':40}{sum(trial.problem is not None for trial in self.trials):10}")
        for kind in Format:
            refused = [name for trial in self.trials for item in trial.formats
                       if item.file_format is kind for name in item.refused]  # fmt: skip
            lines.append(
                f"{FORMATS[kind].title}: {self.share(kind):.1%} right; refused: {_counts(refused) or 'nothing'}"
            )
        return "\n".join([*lines, self.faults])


def _counts(items: object) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(items).most_common())


def survey(first: int, count: int, *, workers: int = 1, layers: bool = True) -> Survey:
    """Try the networks of the seeds from *first* until there were *count* healthy ones, and say how far it is."""
    trials: list[Trial] = []
    unhealthy: dict[int, str] = {}
    operators: Counter[str] = Counter()
    begun = time.monotonic()
    for seed, why, trial, drawn in _all(first, count, workers, layers):
        operators.update(drawn)
        if why is not None:
            unhealthy[seed] = why
            continue
        trials.append(trial)
        bad = "; ".join(trial.faults)
        print(  # noqa: T201
            f"{len(trials):4} of {count}  {time.monotonic() - begun:5.0f} s  seed {seed}  {bad or _short(trial)}",
              file=sys.stderr, flush=True)  # fmt: skip
    return Survey(tuple(trials), unhealthy, dict(operators))


def _short(trial: Trial) -> str:
    return ", ".join(f"{item.file_format} {item.ending}" for item in trial.formats if item.ending in FINE)


def _all(first: int, count: int, workers: int, layers: bool) -> Iterator[tuple[int, str | None, Trial, list[str]]]:
    seeds = iter(range(first, first + 4 * count))
    done = 0
    if workers == 1:
        for seed in seeds:
            result = _one((seed, layers))
            yield result
            done += result[1] is None
            if done == count:
                return
        return
    with get_context("spawn").Pool(workers) as pool:
        for result in pool.imap(_one, ((seed, layers) for seed in seeds)):
            yield result
            done += result[1] is None
            if done == count:
                return


def _one(job: tuple[int, bool]) -> tuple[int, str | None, Trial, list[str]]:
    import torch

    torch.set_num_threads(1)
    seed, layers = job
    try:
        network: Network = compose(seed)
    except UnhealthyError as error:
        return seed, str(error), Trial(seed), []
    return seed, None, attempt(network, layers=layers), [item.operator for item in network.statements]


WORKERS = int(os.environ.get("FUZZ_WORKERS", "2"))
