"""How often is ``diff`` right about latency? Equal files again and again, and one that an identity convolution slows.

Three bundles are made of one ONNX file of BUNDLE: ``a``, the file; ``equal``, the same with a word more in its
metadata, so that its bytes differ and it is timed; ``slowed``, the same with convolutions of an identity on its image,
as many as make it 5 % slower. How many is measured, and so is what they really cost; both stand in ``made.json``. Then
each trial is ``coordatt-deploy diff`` in a process of its own, with default seconds, or with the options behind the
others. Results are kept in ``trials.jsonl``: a run that was ended goes on.

    python -m benchmarks.diff_trials BUNDLE build/trials --equal 100 --slowed 40
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.bundle import Bundle, open_bundle
from coordatt_deploy.files import sha256
from coordatt_deploy.manifest import MANIFEST
from coordatt_deploy.profile.paired import paired
from coordatt_deploy.profile.pairs import PairSettings, batches
from coordatt_deploy.profile.turns import OpenFile

SLOWDOWN = 0.05
PROBED = 20  # convolutions of which the cost of one is learnt


def made(source: Bundle, artifact: Artifact, folder: Path, change: Sequence[str], convolutions: int = 0) -> Bundle:
    """Write a bundle of one file into *folder*.

    Args:
        source: Where the file is from.
        artifact: The file.
        folder: That is written, in the place of what is there.
        change: Words that are added to the metadata.
        convolutions: Identities that the image goes through first.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source.root, folder)
    path = folder / artifact.path
    model = onnx.load(path)
    for word in change:
        model.metadata_props.add(key=word, value=word)
    _slow(model.graph, convolutions)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    own = dataclasses.replace(artifact, bytes=path.stat().st_size, sha256=sha256(path))
    (folder / MANIFEST).write_text(dataclasses.replace(source.manifest, artifacts=(own,)).dump())
    return open_bundle(folder)


def _slow(graph: onnx.GraphProto, convolutions: int) -> None:
    if not convolutions:
        return
    image, first = graph.input[0], f"{graph.input[0].name}_again_{convolutions}"
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name == image.name:
                node.input[position] = first
    channels = image.type.tensor_type.shape.dim[1].dim_value
    identity = np.eye(channels, dtype=np.float32)[:, :, None, None]
    graph.initializer.append(numpy_helper.from_array(identity, "identity"))
    before = image.name
    for number in range(1, convolutions + 1):
        after = f"{image.name}_again_{number}"
        graph.node.insert(number - 1, helper.make_node("Conv", [before, "identity"], [after], kernel_shape=[1, 1]))
        before = after


def ratio(a: Bundle, b: Bundle, seconds: float) -> tuple[float, tuple[float, float]]:
    """Time the only file of *b* against that of *a* for so many seconds."""
    inputs = {name: values[0] for name, values in a.golden("inputs").items()}
    files = [OpenFile(side.path(item.path), item, inputs) for side in (a, b) for item in side.manifest.artifacts]
    taken = takewhile(lambda item: item[1] < seconds, batches(files[0], files[1], PairSettings(min_seconds=seconds)))
    known = paired([batch for batch, _ in taken])
    if known is None:
        raise SystemExit("other processes leave nothing to measure")
    return known.difference.ratio, known.difference.ci95


def prepare(source: Path, folder: Path, path: str | None, seconds: float) -> None:
    """Write the three bundles and ``made.json``, unless they are there."""
    if (folder / "made.json").exists():
        return
    bundle = open_bundle(source)
    files = [item for item in bundle.manifest.artifacts if item.path.endswith(".onnx") and path in (None, item.path)]
    if not files:
        raise SystemExit(f"{source} has no ONNX file {path or ''}")
    file = files[0]
    a = made(bundle, file, folder / "a", ())
    made(bundle, file, folder / "equal", ("copy",))
    probe, _ = ratio(a, made(bundle, file, folder / "slowed", (), PROBED), seconds)
    count = max(1, round(PROBED * SLOWDOWN / (probe - 1)))
    found, interval = ratio(a, made(bundle, file, folder / "slowed", (), count), seconds)
    said = {"file": file.path, "convolutions": count, "ratio": found, "ci95": interval, "seconds": seconds}
    (folder / "made.json").write_text(json.dumps(said) + "\n")


def trial(folder: Path, kind: str, options: Sequence[str]) -> dict[str, object]:
    """Run ``diff`` once, and return what it says of the latency."""
    command = [sys.executable, "-Im", "coordatt_deploy", "diff", str(folder / "a"), str(folder / kind)]
    load = os.getloadavg()[0]
    done = subprocess.run(  # noqa: S603
        [*command, "--json", "--quiet", *options], capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    rows = json.loads(done.stdout)["rows"]
    (row,) = (item for item in rows if item["kind"] == "latency")
    evidence = {
        key: row["latency"][key] for key in ("ratio", "ci95", "p", "control_ci95", "figure", "batches", "seconds")
    }
    return {"kind": kind, "verdict": row["verdict"], "load": load, "options": list(options), **evidence}


def main() -> None:
    """Run what is left to run, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path, help="for the bundles and the results")
    parser.add_argument("--equal", type=int, default=100, help="trials of equal files")
    parser.add_argument("--slowed", type=int, default=40, help="trials of the slowed file")
    parser.add_argument("--file", help="path of the ONNX file in the bundle; its first by default")
    parser.add_argument("--making-seconds", type=float, default=120.0, help="of each measurement that makes the file")
    arguments, options = parser.parse_known_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    prepare(arguments.bundle, arguments.folder, arguments.file, arguments.making_seconds)
    log = arguments.folder / "trials.jsonl"
    found = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    print((arguments.folder / "made.json").read_text(), end="")
    for kind, wanted in (("equal", arguments.equal), ("slowed", arguments.slowed)):
        have = [item for item in found if (item["kind"], item["options"]) == (kind, options)]
        for number in range(len(have), wanted):
            have.append(trial(arguments.folder, kind, options))
            with log.open("a") as stream:
                stream.write(json.dumps(have[-1]) + "\n")
            shown = f"{have[-1]['ratio']:.4f} in {have[-1]['batches']} batches, {have[-1]['seconds']:.0f} s"
            print(f"{kind} {number}: {have[-1]['verdict']}, {shown}, load {have[-1]['load']:.1f}", flush=True)
        counts = Counter(item["verdict"] for item in have[:wanted])
        print(f"{kind}: {dict(counts)} of {min(len(have), wanted)}", flush=True)


if __name__ == "__main__":
    main()
