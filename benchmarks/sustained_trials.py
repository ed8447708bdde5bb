"""How often is ``profile --sustained`` right? Made-up latencies over time, of which it is known whether they change.

Each trial is a run of 240 windows, as one of a minute or more has: noise of seven kinds, alone, with a shift of 10 % at
a random time between a tenth and four fifths of the run, or with an exponential approach to 15 %, as that of a device
that heats up, whose time constant is a random one of 3 % to 40 % of the run.

    python -m benchmarks.sustained_trials --trials 400
"""

import argparse
from collections import Counter
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy.profile.sustained_result import Course, SustainedVerdict, Window
from coordatt_deploy.profile.sustained_verdict import judge

Series = NDArray[np.float64]

WINDOWS: Final = 240
SHIFT: Final = 0.10
APPROACH: Final = 0.15


def correlated(rng: np.random.Generator, count: int, memory: float, spread: float) -> Series:
    """Return noise whose values hold a share *memory* of the one before (AR(1)), of standard deviation *spread*."""
    values = rng.standard_normal(count + 200)
    for at in range(1, len(values)):
        values[at] = memory * values[at - 1] + np.sqrt(1 - memory**2) * values[at]
    return spread * values[200:]


def bursts(rng: np.random.Generator, count: int) -> Series:
    """Return noise of 2 % with bursts of 10 % to 60 %, of five windows on average, after each sixty or so."""
    level = np.exp(0.02 * rng.standard_normal(count))
    at = int(rng.geometric(1 / 60))
    while at < count:
        length = int(rng.geometric(1 / 5))
        level[at : at + length] *= 1 + rng.uniform(0.1, 0.6)
        at += length + int(rng.geometric(1 / 60))
    return level


def spikes(rng: np.random.Generator, count: int) -> Series:
    """Return noise of 1.5 %; 6 % of the windows take much longer, twice as long on average: stolen time."""
    stolen = rng.random(count) < 0.06
    return np.exp(0.015 * rng.standard_normal(count)) * np.where(stolen, 1 + rng.exponential(1.0, count), 1.0)


NOISE: Final[dict[str, Callable[[np.random.Generator, int], Series]]] = {
    "white, 3 %": lambda rng, count: np.exp(0.03 * rng.standard_normal(count)),
    "AR(1) 0.5, 3 %": lambda rng, count: np.exp(correlated(rng, count, 0.5, 0.03)),
    "AR(1) 0.8, 2 %": lambda rng, count: np.exp(correlated(rng, count, 0.8, 0.02)),
    "AR(1) 0.9, 2 %": lambda rng, count: np.exp(correlated(rng, count, 0.9, 0.02)),
    "heavy tails": lambda rng, count: np.exp(np.clip(0.02 * rng.standard_t(2, count), -0.5, 1.0)),
    "bursts": bursts,
    "steal spikes": spikes,
}


def unchanged(_: np.random.Generator, count: int) -> Series:
    """Return a level that stays."""
    return np.ones(count)


def shifted(rng: np.random.Generator, count: int) -> Series:
    """Return a level that rises at once."""
    return np.where(np.arange(count) < count * rng.uniform(0.1, 0.8), 1.0, 1 + SHIFT)


def heating(rng: np.random.Generator, count: int) -> Series:
    """Return a level that rises ever more slowly."""
    return 1 + APPROACH * (1 - np.exp(-np.arange(count) / (count * rng.uniform(0.03, 0.4))))


LEVELS: Final = {"unchanged": unchanged, "shifted": shifted, "heating": heating}


def verdict(medians: Series, seconds: float = 600.0) -> SustainedVerdict:
    """Return what is said of windows with these medians, in milliseconds, of a run of so many seconds."""
    step = seconds / len(medians)
    return judge(
        [Window(at * step, 100, value, value, value, value) for at, value in enumerate(medians.tolist())]
    ).verdict


def trial(noise: str, level: str, rng: np.random.Generator, count: int = WINDOWS) -> Course:
    """Return the verdict on one run of made-up windows."""
    return verdict(5.0 * NOISE[noise](rng, count) * LEVELS[level](rng, count)).course


def main() -> None:
    """Print a row for each kind of noise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400, help="Of each kind of noise and each level.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for noise in NOISE:
        rng = np.random.default_rng(options.seed)
        told = []
        for level in LEVELS:
            found = Counter(trial(noise, level, rng) for _ in range(options.trials))
            told.append(f"{level}: " + ", ".join(f"{course} {count}" for course, count in found.most_common()))
        print(f"{noise}: {'; '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
