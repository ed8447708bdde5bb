"""Random networks, composed of the operators of the table: every file is right, or refused in a cell that says so."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from random_networks import trial
from random_networks.compose import compose
from random_networks.network import Network, Statement
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


def cases_of(expression, tmp_path):
    """What a network of one expression of an image may be off by, by the name of the case, in each format."""
    shape = (1, 3, 12, 12)
    network = Network(0, (("image", shape),), (Statement("v0", expression, ("image",)),), ("v0",))
    found = trial._cases(network, network.module(tmp_path), tuple(Format))
    return {case.name: {kind: allowed / np.abs(case.expected[0]).max() for kind, (allowed,) in case.allowed.items()}
            for case in found}  # fmt: skip


def test_rounding_costs_little_on_random_inputs():
    """
    What constants are allowed is no licence: on noise a few units in the last place are all.
    """
    network = compose(3)
    with TemporaryDirectory() as folder:
        cases = trial._cases(network, network.module(Path(folder)), tuple(Format))

    for case in cases[:2]:
        for allowed in case.allowed.values():
            assert all(own <= 1e-5 * np.abs(value).max() for own, value in zip(allowed, case.expected, strict=True))


def test_a_small_sigmoid_is_allowed_what_its_runtime_is_off_by(tmp_path):
    """
    ONNX Runtime's keeps an absolute error, the others' a relative one.
    """
    found = cases_of("(image.tanh() - 14).sigmoid()", tmp_path)["random"]

    assert found[Format.ONNX] > 0.1
    assert found[Format.TFLITE] < 1e-4


def test_a_normalised_constant_is_allowed_what_a_sum_is_off_by(tmp_path):
    """
    Nothing is left of it but the rounding of a mean, a thousand times as large; of noise no more than a few units.
    """
    found = cases_of("F.group_norm(image * 0.3 + 0.7, 1, eps=1e-6) + 2", tmp_path)

    assert found["all 1.0"][Format.TFLITE] > 1e-4
    assert found["random"][Format.TFLITE] < 2e-5  # the mean of 432 elements counts there too


def test_only_refusals_that_the_table_says_are_marked():
    """
    A median is refused, a convolution is not; a bicubic resize is written by products of known sizes.
    """
    assert trial.marked("median", Format.ONNX, dynamic=False)
    assert not trial.marked("conv2d", Format.ONNX, dynamic=True)
    assert not trial.marked("no_such_operator", Format.ONNX, dynamic=True)
    assert trial.marked("upsample_bicubic2d", Format.COREML, dynamic=True)
    assert not trial.marked("upsample_bicubic2d", Format.COREML, dynamic=False)


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
