"""Random networks, composed of the operators of the table: every file is right, or refused in a cell that says so."""

import os

import numpy as np
import pytest
import torch
from random_networks import trial
from random_networks.compose import compose
from random_networks.survey import survey
from random_networks.trial import Ending

from coordatt_deploy.formats import FORMATS, Format

NETWORKS = int(os.environ.get("FUZZ_NETWORKS", "8"))
FIRST = int(os.environ.get("FUZZ_FIRST", "0"))
ENOUGH = 100  # a share of fewer says little
RIGHT = 0.9


@pytest.mark.parametrize("seed", [3, 4, 6])
def test_a_random_network_is_right_in_every_format(seed):
    """
    Through the runtimes against torch, and at every layer by parity.
    """
    found = trial.attempt(compose(seed))

    assert () == found.faults
    assert [Ending.RIGHT] * len(Format) == [item.ending for item in found.formats]


def test_a_seed_is_one_network():
    """
    Its text alone says what it is.
    """
    assert compose(3).source() == compose(3).source()
    assert compose(3).source() != compose(4).source()


def test_smaller_networks_run(tmp_path):
    """
    Whatever is left out, torch computes what is left.
    """
    network = compose(1)

    smaller = list(network.smaller())

    assert smaller
    for item in smaller:
        assert len(item.statements) + len(item.outputs) < len(network.statements) + len(network.outputs)
        with torch.no_grad():
            item.module(tmp_path)(*item.feeds(0))


def test_a_wrong_file_is_told(monkeypatch):
    """
    The negative: what a runtime gives, moved by a thousandth of the greatest value in one place.
    """
    right_one = trial.opened

    def wrong(path, file_format):
        right = right_one(path, file_format)

        def moved(feeds):
            results = {name: np.array(value) for name, value in right(feeds).items()}
            for value in results.values():
                value.flat[0] += 1e-3 * np.abs(value).max()
            return results

        return moved

    monkeypatch.setattr(trial, "opened", wrong)

    (found,) = trial.attempt(compose(3), (Format.ONNX,)).formats

    assert found.ending is Ending.MISSED  # parity runs the file by itself, and passes what is right
    assert "off by" in found.detail


def test_integers_have_to_be_equal():
    """
    Rounding excuses no other position and no other answer.
    """
    mask = torch.tensor([True, False])

    assert trial._allowed(mask, noise=0.0) == 0.0
    assert trial._allowed(torch.randn(9), noise=1.0) == float("inf")
    assert trial._allowed(torch.ones(9), noise=0.0) == pytest.approx(trial.LEAST)


@pytest.mark.slow
def test_many_random_networks(capsys):
    """
    ``make fuzz`` runs 300: nothing crashes, nothing wrong is passed, and nine in ten are right in each format.
    """
    found = survey(FIRST, NETWORKS)
    with capsys.disabled():
        print(found.table())  # noqa: T201

    endings = [item.ending for tried in found.trials for item in tried.formats]
    assert Ending.CRASHED not in endings
    assert Ending.MISSED not in endings
    assert [] == [item.problem for item in found.trials if item.problem]
    if NETWORKS >= ENOUGH:
        assert dict.fromkeys(FORMATS, True) == {kind: found.share(kind) >= RIGHT for kind in FORMATS}
