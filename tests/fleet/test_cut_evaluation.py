"""An evaluation on another machine whose connection is cut: the counts are those of this machine, to the last one."""

import hashlib
import os
import threading
import time

import numpy as np
import pytest
from click.testing import CliRunner
from colours import BLIND_TO_BLUE, COLOURS, RIGHT, write_colours
from PIL import Image
from ssh_server import SshServer, needs_sshd

from coordatt_deploy.cli import main
from coordatt_deploy.documents import load
from coordatt_deploy.evaluation.reports import read_reports
from coordatt_deploy.fleet.result import FleetResult
from coordatt_deploy.targets.ssh import files
from coordatt_deploy.targets.ssh.connection import CONFIG

pytestmark = [needs_sshd, pytest.mark.slow]


def write_photos(folder, count):
    """Images of a colour each, so far apart that the network is wrong about some."""
    generator = np.random.default_rng(0)
    for index in range(count):
        name = [*COLOURS][index % len(COLOURS)]
        (folder / name).mkdir(parents=True, exist_ok=True)
        pixels = np.array(COLOURS[name]) + generator.integers(-120, 121, 3) + generator.integers(-9, 10, (8, 8, 3))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / name / f"{index}.png")
    return folder


def waits(condition, seconds=600):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_evaluation_over_two_cuts(tmp_path, monkeypatch, count):
    """
    Cut once while images travel and once while they are evaluated, the same figures come back as without any machine
    in between, and each image travelled whole.
    """
    monkeypatch.setattr(files, "BATCH_FILES", count // 5)
    server = SshServer(tmp_path / "board", home='Ann\'s "home"')
    monkeypatch.setenv(CONFIG, str(server.config))
    bundle = write_colours(tmp_path / "net", right=RIGHT, blind=BLIND_TO_BLUE).root
    photos = write_photos(tmp_path / "photos", count)
    tool = server.install()
    tool.write_text(tool.read_text().replace("#!/bin/sh\n", f'#!/bin/sh\necho x >>"{server.folder}/began"\n'))
    store, cuts = server.home / ".cache/coordatt-deploy/store", []

    def cut():
        waits(lambda: store.is_dir() and len(os.listdir(store)) > count // 4)  # noqa: PTH208 - no Path for each
        cuts.append(server.cut())
        waits((server.folder / "began").exists)
        time.sleep(2 if count > 1000 else 0.2)
        cuts.append(server.cut())

    thread = threading.Thread(target=cut)
    thread.start()
    try:
        words = ["evaluate", str(bundle), "--dataset", str(photos), "--workers", "1"]
        there = CliRunner().invoke(main, [*words, "--target", server.address, "--json"])
        thread.join()
    finally:
        server.stop()
    assert 0 == there.exit_code, there.output
    assert 2 == len([found for found in cuts if found])
    assert "x\n" == (server.folder / "began").read_text()
    (place,) = load(FleetResult, there.stdout).places
    assert {hashlib.sha256(path.read_bytes()).hexdigest() for path in photos.rglob("*.png")} <= {*os.listdir(store)}  # noqa: PTH208

    assert 0 == CliRunner().invoke(main, words).exit_code
    here = read_reports((bundle / "reports/evaluate.json").read_text())
    assert [run.result for run in here.runs] == [run.result for run in place.found.evaluation.runs]
    assert all(0 < run.result.correct < count for run in here.runs)
    assert [run.dataset for run in here.runs] == [run.dataset for run in place.found.evaluation.runs]
    assert {count} == {run.dataset.images for run in place.found.evaluation.runs}
