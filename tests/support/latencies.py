"""Latencies as machines give them, made up from a seed."""

import numpy as np

MS = 1e6  # nanoseconds


def quiet(count=400, centre=5 * MS, spread=0.01, seed=0):
    """A latency as a quiet machine gives it."""
    return centre * np.random.default_rng(seed).normal(1, spread, count)


def two_states(share):
    """A latency that jumps between 5 ms and 8 ms, the slow state taking *share* of the calls."""
    slow = np.random.default_rng(3).random(400) < share
    return np.where(slow, 8 / 5, 1.0) * quiet(spread=0.02)


def sliding():
    """A latency that slides up by 30 %."""
    return quiet() * np.linspace(1, 1.3, 400)


def slowed_down():
    """A latency that goes up by 40 % in the midst, at the 26th round of ten, and stays there."""
    return quiet() * np.where(np.arange(400) < 250, 1.0, 1.4)
