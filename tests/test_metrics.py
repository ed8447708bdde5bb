import math

import numpy as np
import pytest

from coordatt_deploy.metrics import sqnr_db, sqnr_db_of_energies


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [
        (100.0, 1.0, 20.0),
        (1.0, 1.0, 0.0),
        (1.0, 0.0, math.inf),
        (0.0, 0.0, math.inf),
        (math.nan, 0.0, math.inf),
        (0.0, 1.0, -math.inf),
        (0.0, math.nan, -math.inf),
        (math.nan, 1.0, -math.inf),
        (1.0, math.nan, math.nan),
        (1.0, math.inf, math.nan),
        (math.inf, 1.0, math.inf),
        (math.inf, math.inf, math.nan),
    ],
)
def test_the_ratio_of_energies(signal, noise, expected):
    """
    Decibels; without noise, without a signal and with what is not finite there are fixed answers.
    """
    assert sqnr_db_of_energies(signal, noise) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("signal", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_arrays_that_are_not_finite_have_no_ratio(signal, bad):
    """
    Whatever the signal.
    """
    assert math.isnan(sqnr_db([np.array([bad])], [np.array([signal])]))


def test_the_energies_of_all_cases_are_added_up():
    """
    One ratio over the cases, not the mean of theirs.
    """
    reference = [np.array([3.0, 4.0]), np.array([0.0])]
    candidate = [np.array([3.0, 4.0]), np.array([0.5])]

    assert sqnr_db(candidate, reference) == sqnr_db_of_energies(25.0, 0.25)
