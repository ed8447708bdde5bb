"""What grows with the number of shards: 100,000 of one image each, on a scheduler and two workers of this machine.

Every tenth of the way it prints what each process has used since the last time: processor time per shard of the client
(this process), of the scheduler and of the workers, and the memory that each holds. Processor time, not the clock's, so
that other work on the machine changes little. At the end the answers are compared with what they must be.

    python benchmarks/scale_trial.py --shards 100000

With ``--pieces BUNDLE --dataset NAME`` it measures what an estimate for other sizes is made of instead: processor time
and bytes per image, bytes of what a worker gets once, seconds to connect.

    python benchmarks/scale_trial.py --pieces mobilenetv2_ca_035.digits --dataset digits --limit 400
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from coordatt_deploy.artifact_specs import Artifact, ModelSpec, Preprocessing, TensorSpec
from coordatt_deploy.bundle import Bundle, open_bundle
from coordatt_deploy.bundle_writing import finish, writing
from coordatt_deploy.data.dataset import Dataset, LabelledImage, Pixels
from coordatt_deploy.data.labelled import open_dataset
from coordatt_deploy.evaluation.cluster import connected
from coordatt_deploy.evaluation.cluster_messages import pack
from coordatt_deploy.evaluation.executors import ThisMachine
from coordatt_deploy.evaluation.metric_choice import classes_of, image_input, logits_of
from coordatt_deploy.evaluation.predict import run
from coordatt_deploy.evaluation.predictions import Trial, assembled, sharded
from coordatt_deploy.evaluation.scoring import Top1
from coordatt_deploy.files import sha256
from coordatt_deploy.formats import Format, Precision
from coordatt_deploy.manifest import Manifest

CLASSES = 3
ROWS = 10  # of the table
WAIT_S = 60


def main() -> None:
    """Read the options and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pieces", type=Path, metavar="BUNDLE")
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--limit", type=int, default=400)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, loopback(Path(folder), options.workers) as (address, processes):
        if options.pieces is None:
            grow(Path(folder), address, processes, options.shards)
        else:
            measure(open_bundle(options.pieces), options.dataset, options.limit, address)


def grow(folder: Path, address: str, processes: dict[str, list[psutil.Process]], shards: int) -> None:
    """Answer *shards* shards and print what each tenth of them took."""
    bundle = colour_bundle(folder / "bundle")
    trial = Trial(bundle, bundle.manifest.artifacts, False, "image", Top1("logits"))
    # What the images themselves hold is no part of the question: there are three, over and over.
    pixels = [np.full((8, 8, 3), np.eye(CLASSES, dtype=np.uint8)[label] * 200) for label in range(CLASSES)]
    images = [LabelledImage(f"{row}", row % CLASSES, Pixels(pixels[row % CLASSES])) for row in range(shards)]
    print(
        "| shards | " + " | ".join(f"{name}, ms of CPU a shard | {name}, MiB" for name in processes) + " | ms a shard |"
    )
    print("|" + "---|" * (2 * len(processes) + 2))
    done, before, begun = 0, {name: cpu_s(group) for name, group in processes.items()}, time.monotonic()

    def step() -> None:
        nonlocal done, before, begun
        done += 1
        if done % max(1, shards // ROWS) == 0:
            each = max(1, shards // ROWS)
            now = {name: cpu_s(group) for name, group in processes.items()}
            cells = [
                f"{1e3 * (now[name] - before[name]) / each:.2f} | {mib(group):.0f}" for name, group in processes.items()
            ]
            print(f"| {done:,} | {' | '.join(cells)} | {1e3 * (time.monotonic() - begun) / each:.2f} |", flush=True)
            before, begun = now, time.monotonic()

    with connected(address) as cluster:
        found = assembled(trial, shards, cluster.answers(trial, sharded(images, 1), step))
    expected = np.arange(shards) % CLASSES
    if not (np.array_equal(found.rows, np.arange(shards)) and np.array_equal(found.scored[0][:, 0], expected)):
        raise SystemExit("answers are missing or wrong")
    print(f"all {shards:,} answers are right; shards by worker: {dict(cluster.answered)}")


def measure(bundle: Bundle, name: str, limit: int, address: str) -> None:
    """Print the pieces of an estimate."""
    dataset = open_dataset(name, bundle.manifest.model.labels, classes_of(bundle), None, image_input(bundle))
    dataset = dataset.limited(limit, 0)
    artifacts, tensor = bundle.manifest.artifacts, image_input(bundle).name
    trial = Trial(bundle, artifacts, False, tensor, Top1(logits_of(bundle)[0].name))
    reference = Trial(bundle, (), True, tensor, trial.scoring)
    print(f"{len(dataset)} images of {dataset.source}, {len(artifacts)} artifacts")
    begun, held, text = time.process_time(), 0, 0
    for shard in sharded(dataset.images, 16):
        packed = pack(shard, masks=False)
        held, text = held + sum(map(len, packed.blobs.values())), text + len(packed.document)
    packing = 1e3 * (time.process_time() - begun)
    each = len(dataset)
    print(
        f"an image: {held / each:,.0f} bytes, its record {text / each:,.0f}, read and hashed in {packing / each:.2f} ms"
    )
    begun = time.process_time()
    for image in dataset.images:
        image.tensor(bundle.manifest.model.preprocessing)
    print(f"decoding and preprocessing: {1e3 * (time.process_time() - begun) / each:.2f} ms an image")
    for one in (reference, *(Trial(bundle, (item,), False, tensor, trial.scoring) for item in artifacts)):
        print(f"{one.names[0]}: {cpu_ms(one, dataset)} ms an image, decoding included")
    begun = time.monotonic()
    with connected(address) as cluster:
        print(f"connected, and all workers introduced, in {time.monotonic() - begun:.2f} s")
        here, there = run(trial, dataset.images, ThisMachine(1)), run(trial, dataset.images, cluster)
        print(f"files that each worker got: {dict(cluster.sent_bytes)} bytes")
        before = sum(cluster.sent_bytes.values())
        run(trial, dataset.images, cluster)
        print(f"and for the same once more: {sum(cluster.sent_bytes.values()) - before}")
    if not all(np.array_equal(here.scored[index], there.scored[index]) for index in here.scored):
        raise SystemExit("the cluster answers otherwise than this process")


def cpu_ms(trial: Trial, dataset: Dataset) -> str:
    """Return the milliseconds of processor time that an image takes in this process, opening files left out."""
    with_opening = run_cpu_s(trial, dataset)
    opening = run_cpu_s(trial, dataset.limited(1, 0))
    return f"{1e3 * (with_opening - opening) / (len(dataset) - 1):.2f}"


def run_cpu_s(trial: Trial, dataset: Dataset) -> float:
    """Return the processor time of this process for all images."""
    begun = time.process_time()
    run(trial, dataset.images, ThisMachine(1))
    return time.process_time() - begun


def cpu_s(group: list[psutil.Process]) -> float:
    """Processor time that processes have taken."""
    return sum(sum(item.cpu_times()[:2]) for item in group)


def mib(group: list[psutil.Process]) -> float:
    """Memory that processes hold."""
    return sum(item.memory_info().rss for item in group) / 2**20


@contextmanager
def loopback(folder: Path, workers: int) -> Iterator[tuple[str, dict[str, list[psutil.Process]]]]:
    """Start a scheduler and workers on this machine; they end with the block."""
    started: list[subprocess.Popen[bytes]] = []

    def start(what: str, pattern: str, *options: str) -> str:
        log = folder / f"{len(started)}.log"
        with log.open("wb") as stream:
            command = [sys.executable, "-m", f"distributed.cli.dask_{what}", "--host", "127.0.0.1", *options]
            started.append(subprocess.Popen(command, stdout=stream, stderr=stream))  # noqa: S603 - our own
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            found = re.search(pattern, log.read_text(errors="replace"))
            if found:
                return found[1]
            time.sleep(0.05)
        raise SystemExit(f"the {what} did not start:\n{log.read_text(errors='replace')}")

    try:
        address = start("scheduler", r"Scheduler at:\s+(tcp://\S+)", "--port", "0", "--no-dashboard", "--no-show")
        for _ in range(workers):
            start("worker", r"Registered to:\s+(tcp://\S+)", address, "--no-nanny", "--no-dashboard", "--nthreads", "1",
                  "--local-directory", str(folder))  # fmt: skip
        named = {"client": [psutil.Process()], "scheduler": [psutil.Process(started[0].pid)],
                 "workers": [psutil.Process(item.pid) for item in started[1:]]}  # fmt: skip
        yield address, named
    finally:
        for item in started:
            item.kill()  # a worker whose scheduler ends with it waits for that for minutes
        for item in started:
            item.wait()


def colour_bundle(folder: Path) -> Bundle:
    """Write a bundle of one ONNX file that names the channel with the greatest mean."""
    spec = ModelSpec(
        "channels", Preprocessing((8, 8), (0.0,) * 3, (1.0,) * 3), ("red", "green", "blue"), source_sha256="0" * 64
    )
    image, logits = TensorSpec("image", (1, 3, 8, 8), "float32", "NCHW"), TensorSpec("logits", (1, 3), "float32", "NC")
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["mean"]),
            helper.make_node("Flatten", ["mean"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        ],
        "channels",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, image.shape)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, logits.shape)],
        [numpy_helper.from_array(np.eye(3, dtype=np.float32), "weight")],
    )
    with writing(folder, spec.source_sha256) as staging:
        path = staging / "onnx" / "channels.onnx"
        path.parent.mkdir()
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
        path.with_suffix(".layers.json").write_text("{}")
        artifact = Artifact(
            "onnx/channels.onnx", Format.ONNX, Precision.FP32, None, None, path.stat().st_size, sha256(path), (image,),
            (logits,), "onnx/channels.layers.json",
        )  # fmt: skip
        finish(staging, Manifest(spec, (image,), (logits,), (artifact,)))
    return open_bundle(folder)


if __name__ == "__main__":
    main()
