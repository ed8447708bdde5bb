"""The comparison's error rates on noise that was recorded on a busy machine (``data/README.md``)."""

from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

from coordatt_deploy.profile.compare import Design, Outcome, compare_latencies
from coordatt_deploy.profile.latency import Latency, ProfileSettings
from coordatt_deploy.profile.noise import Evidence

CALLED = {Outcome.FASTER, Outcome.SLOWER}
SLOWDOWN = 1.1


@pytest.fixture(scope="module")
def profiles():
    """The recorded profiles: by runner (samples, samples less lost time; rounds; calls a round) in microseconds."""
    with np.load(Path(__file__).parents[1] / "data/noise.npz", allow_pickle=False) as archive:
        names = sorted({name.partition("/")[0] for name in archive.files})
        keys = sorted({name.partition("/")[2] for name in archive.files})
        return [{key: archive[f"{name}/{key}"].astype(np.float64) for key in keys} for name in names]


def latency(profile, name, factor=1.0):
    """Return what the tool would have measured, or that slowed down.

    What is slowed down is the network; what other processes took stays as it was.
    """
    wall, own = profile[name].reshape(2, -1) * 1e3
    lost = wall - own  # NaN where nobody measured it
    slowed = np.where(np.isnan(own), wall * factor, own * factor + lost)
    return Latency(
        samples_ns=tuple(slowed.astype(int).tolist()),
        lost_ns=tuple(None if np.isnan(value) else max(0, int(value)) for value in lost),
        openings=ProfileSettings().openings,
        per_round=profile[name].shape[-1],
        evidence=Evidence(other_cores=float(profile["told"][1]), idle_cores=1),
    )


def networks(profiles):
    return [name.removesuffix("_a") for name in profiles[0] if name.endswith("_a")]


def test_the_recording_is_of_a_busy_machine(profiles):
    """
    At least fifteen profiles, four networks twice each, at default settings; other work wanted both cores.
    """
    settings = ProfileSettings()

    assert len(profiles) >= 15
    assert 4 == len(networks(profiles))
    for profile in profiles:
        shapes = [values.shape for values in profile.values() if values.ndim == 3]
        assert 2 * 4 + 1 == len(shapes)
        assert all((2, settings.rounds) == shape[:2] and shape[2] >= 10 for shape in shapes)
        assert profile["told"][1] > 1


def test_error_rates_of_one_run(profiles):
    """
    Taking turns, copies are told apart in at most one trial in a hundred, ten per cent are found in at least 95.
    """
    trials = false = found = 0
    for profile, name, order in product(profiles, networks(profiles), ("ab", "ba")):
        one, other = (f"{name}_{copy}" for copy in order)
        a = latency(profile, one)
        trials += 1
        false += compare_latencies(a, latency(profile, other)).outcome in CALLED
        found += compare_latencies(a, latency(profile, other, SLOWDOWN)).outcome is Outcome.SLOWER

    assert false <= 0.01 * trials
    assert found >= 0.95 * trials


def test_two_runs_are_not_told_apart_by_the_load(profiles):
    """
    Between profiles, minutes apart, the same network is called another one in at most one trial in a hundred.
    """
    trials = false = 0
    speeds = [latency(profile, "yardstick") for profile in profiles]
    for name in networks(profiles):
        runs = [latency(profile, f"{name}_a") for profile in profiles]
        for i, j in combinations(range(len(runs)), 2):
            found = compare_latencies(runs[i], runs[j], design=Design.TWO_RUNS, yardsticks=(speeds[i], speeds[j]))
            trials, false = trials + 1, false + (found.outcome in CALLED)

    assert false <= 0.01 * trials
