"""Evaluations on a Dask cluster: a real scheduler and workers, as processes of this machine."""

import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
from colours import BLIND_TO_BLUE, RIGHT, run
from dask_cluster import DEADLY, NOT_INSTALLED, OTHER_CPU, OTHER_VERSION, LoopbackCluster
from PIL import Image
from pixel_colours import mask_bundle, mask_folder, pictures

from coordatt_deploy.errors import TargetError, UsageError, WorkerDiedError
from coordatt_deploy.evaluation import run as evaluation_run
from coordatt_deploy.evaluation.cluster_address import check_address
from coordatt_deploy.evaluation.reports import read_reports
from coordatt_deploy.evaluation.run import EvaluationPlan, evaluate_bundle
from coordatt_deploy.progress import Silent, Stages

EACH = 60  # images of each of three colours


@pytest.fixture
def cluster(tmp_path):
    """A scheduler; tests start the workers that they need."""
    (tmp_path / "dask").mkdir()
    with LoopbackCluster(tmp_path / "dask") as started:
        yield started


@pytest.fixture
def without_torch(monkeypatch):
    """The float file takes the reference's place: workers need not import torch, which takes seconds."""
    monkeypatch.setattr(evaluation_run, "find_spec", lambda name: None if name == "torch" else object())


def evaluated(bundle, folder, progress=None, **options):
    found = evaluate_bundle(bundle, EvaluationPlan(str(folder), **options), Stages(progress or Silent()))
    return found.record()


def figures(record):
    """What was found, without where."""
    return replace(record, notes=())


class AfterImages(Silent):
    """Does something once, when so many images were answered."""

    def __init__(self, count, action):
        self.left, self.action = count, action

    def advance(self, handle):  # noqa: ARG002 - the protocol's
        self.left -= 1
        if self.left == 0:
            self.action()


@pytest.mark.slow  # workers import torch
def test_two_workers_give_the_counts_of_one_process(bundle, photos, cluster):
    """
    The float64 reference, a right file, a wrong one and two broken images: nothing differs but where it was run, which
    the document says; the files of the bundle went to each worker once, also for a second evaluation.
    """
    opened, folder = bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(EACH)
    (folder / "red" / "7.png").write_bytes(b"not an image")
    (folder / "green" / "8.png").write_bytes((folder / "green" / "8.png").read_bytes()[:60])
    here = evaluated(opened, folder, workers=1)
    cluster.worker()
    cluster.worker()
    there = evaluated(opened, folder, cluster=cluster.address)
    pieces = [cluster.log(worker).count("store_piece") for worker in cluster.processes[1:]]
    again = evaluated(opened, folder, cluster=cluster.address)

    assert figures(here) == figures(there) == figures(again)
    assert (178, 2 * EACH - 2) == (there.subjects[0].correct, there.subjects[2].correct)
    assert any(note.startswith(f"run on 2 workers of {cluster.address}: 2 × ") for note in there.notes)
    assert [5, 5] == pieces  # the graph and its weights, two artifacts, and the job
    assert pieces == [cluster.log(worker).count("store_piece") for worker in cluster.processes[1:]]
    kept = read_reports((opened.root / "reports" / "evaluate.json").read_text()).runs[-1]
    assert cluster.address in kept.machine
    assert {"distributed", "onnxruntime", "torch"} <= kept.tool_versions.keys()


@pytest.mark.slow
@pytest.mark.usefixtures("without_torch")
def test_a_killed_workers_shards_are_done_again(bundle, photos, cluster):
    """
    One of two workers is killed halfway: the same counts, and every image once.
    """
    opened, folder = bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(EACH)
    here = evaluated(opened, folder, workers=1)
    cluster.worker()
    killed = cluster.worker()
    halfway = AfterImages(3 * EACH // 2, killed.kill)
    there = evaluated(opened, folder, halfway, cluster=cluster.address)

    assert -signal.SIGKILL == killed.wait()
    assert figures(here) == figures(there)
    assert -3 * EACH // 2 == halfway.left


@pytest.mark.slow
@pytest.mark.usefixtures("without_torch")
def test_a_stopped_worker_holds_nothing_back(bundle, photos, cluster):
    """
    What it was at is given to another one as well, when nothing else is left to do.
    """
    opened, folder = bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(EACH)
    here = evaluated(opened, folder, workers=1)
    cluster.worker()
    stopped = cluster.worker()
    halfway = AfterImages(3 * EACH // 2, lambda: stopped.send_signal(signal.SIGSTOP))
    begun = time.monotonic()
    there = evaluated(opened, folder, halfway, cluster=cluster.address)

    assert time.monotonic() - begun < 60  # Dask itself gives a worker up after five minutes
    assert stopped.poll() is None
    assert figures(here) == figures(there)


@pytest.mark.slow
@pytest.mark.usefixtures("without_torch")
def test_a_shard_that_ends_every_worker_is_told(bundle, photos, cluster):
    """
    In one line, with an image of it, when four workers died of it one after the other; not for ever.
    """
    opened, folder = bundle(), photos(4)
    Image.new("RGB", (9, 9)).save(folder / "green" / "2.png")
    for _ in range(4):
        cluster.worker(before=DEADLY)
    with pytest.raises(WorkerDiedError, match=r"4 workers died, .* green/2\.png; their logs") as caught:
        evaluated(opened, folder, cluster=cluster.address)

    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.usefixtures("without_torch")
@pytest.mark.parametrize(
    ("before", "said"),
    [
        (OTHER_VERSION, r"1 of 2 workers would not answer .* tcp://\S+: onnxruntime is 0\.1 there and .* here"),
        (NOT_INSTALLED, r"1 of 2 workers would not answer .* it has no coordatt-deploy that knows --cluster"),
        (OTHER_CPU, r"1 of 2 workers would not answer .* its CPU is of riscv64, this machine's of "),
    ],
    ids=["another version", "not installed", "another CPU"],
)
def test_a_worker_that_would_answer_otherwise_is_refused(bundle, photos, cluster, before, said):
    """
    Before any image is sent, with its address and what is different; nothing is reported.
    """
    opened = bundle()
    cluster.worker()
    cluster.worker(before=before)
    with pytest.raises(TargetError, match=said) as caught:
        evaluated(opened, photos(4), cluster=cluster.address)

    assert 3 == caught.value.exit_code
    assert "answer" not in cluster.log(cluster.processes[1]).replace("answers", "")
    assert not (opened.root / "reports" / "evaluate.json").exists()


def test_a_scheduler_that_is_not_there(bundle, photos):
    """
    One line within some seconds, exit code 3; also where something listens that says nothing.
    """
    opened, folder = bundle(), photos(2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        begun = time.monotonic()
        mute = run("evaluate", opened.root, "--dataset", folder, "--cluster", f"tcp://127.0.0.1:{port}")
        assert time.monotonic() - begun < 15
    absent = run("evaluate", opened.root, "--dataset", folder, "--cluster", f"tcp://127.0.0.1:{port}")

    for result in (mute, absent):
        assert 3 == result.exit_code
        assert 1 == result.stderr.strip().count("\n") + 1
        assert f"the scheduler tcp://127.0.0.1:{port} does not answer" in result.stderr


def test_a_scheduler_without_workers(bundle, photos, cluster):
    """
    How to start one is said.
    """
    with pytest.raises(TargetError, match=f"no workers; start some: dask worker {cluster.address}"):
        evaluated(bundle(), photos(2), cluster=cluster.address)


@pytest.mark.parametrize(
    "address",
    ["scheduler:8786", "http://scheduler:8786", "tcp://-oProxyCommand:1", "tcp://scheduler", "tcp://scheduler:0",
     "tcp://scheduler:99999", "tcp://a b:1", "inproc://1", "tcp://host:1/x", ""],
)  # fmt: skip
def test_an_address_is_looked_at_first(address):
    """
    Refused with what one looks like, before anything is connected to.
    """
    with pytest.raises(UsageError, match="expected the address of a Dask scheduler"):
        check_address(address)


@pytest.mark.parametrize("address", ["tcp://scheduler:8786", "tls://10.0.0.1:1", "tcp://[::1]:8786"])
def test_addresses_of_schedulers(address):
    """
    Names, numbers and both protocols.
    """
    check_address(address)


def test_what_does_not_go_with_a_cluster():
    """
    It is said what to leave out.
    """
    for option in ({"workers": 2}, {"target": "qemu-arm64"}):
        with pytest.raises(UsageError, match=f"leave --{next(iter(option))} out"):
            EvaluationPlan("digits", cluster="tcp://scheduler:8786", **option)


METRICS = """
def worst(outputs, label, image):
    assert image.width == 8
    return float(outputs["logits"].max()) + label
worst.higher_is_better = True

def spread(outputs, labels, images):
    return float(sum(abs(item["logits"]).sum() for item in outputs)) + sum(labels)
spread.higher_is_better = True
spread.per_image = False
"""


@pytest.mark.slow
@pytest.mark.usefixtures("without_torch")
def test_metrics_of_the_users_own_are_computed_here(bundle, photos, cluster, tmp_path):
    """
    Outputs come back and the function is called on this machine, for each image and for all at once: no file of the
    user's goes to a worker, and the scores are the same.
    """
    (tmp_path / "own_metrics.py").write_text(METRICS)
    opened, folder = bundle(right=RIGHT, blind=BLIND_TO_BLUE), photos(20)
    (folder / "red" / "7.png").write_bytes(b"not an image")
    cluster.worker()
    cluster.worker()
    for name in ("worst", "spread"):
        metric = f"{tmp_path / 'own_metrics.py'}:{name}"
        here, there = (
            evaluated(opened, folder, metric=metric, **where)
            for where in ({"workers": 1}, {"cluster": cluster.address})
        )
        assert figures(here) == figures(there)


@pytest.mark.usefixtures("without_torch")
def test_masks_go_with_their_images(tmp_path, cluster):
    """
    mIoU of files in folders, and of an archive: counts of pixels are the same.
    """
    bundle, folder = (
        mask_bundle(tmp_path / "bundle", right=RIGHT, blind=BLIND_TO_BLUE),
        mask_folder(tmp_path / "data", 9),
    )
    images, masks = pictures(9)
    np.savez(tmp_path / "set.npz", images=images, masks=masks)
    cluster.worker(threads=2)
    for source in (folder, tmp_path / "set.npz"):
        assert figures(evaluated(bundle, source, workers=1)) == figures(
            evaluated(bundle, source, cluster=cluster.address)
        )


def test_help_does_without_dask():
    """
    Nor does an evaluation on this machine load it.
    """
    script = (
        "import sys\nfrom click.testing import CliRunner\nfrom coordatt_deploy.cli import main\n"
        "result = CliRunner().invoke(main, ['evaluate', '--help'])\n"
        "import coordatt_deploy.evaluation.run\n"
        "assert '--cluster' in result.output, result.output\n"
        "assert not {'dask', 'distributed'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_dask_is_not_installed(bundle, photos, monkeypatch):
    """
    The extra that brings it is named, with exit code 3.
    """
    monkeypatch.setitem(sys.modules, "distributed", None)
    monkeypatch.delitem(sys.modules, "coordatt_deploy.evaluation.cluster", raising=False)
    result = run("evaluate", bundle().root, "--dataset", photos(2), "--cluster", "tcp://127.0.0.1:8786")

    assert 3 == result.exit_code
    assert "pip install 'coordatt-deploy[cluster]'" in result.stderr
