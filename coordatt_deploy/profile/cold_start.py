"""Load time, first inference and peak memory of an artifact, each in a process of its own.

A process that has opened one artifact is no longer cold for the next one: libraries are loaded, heaps have grown, and
peak memory never comes down. The child is this very module; it needs the torch-free half only.
"""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, TensorSpec
from coordatt_deploy.documents import from_json, to_json
from coordatt_deploy.errors import BundleError, DeployError, error_named
from coordatt_deploy.files import inside
from coordatt_deploy.interruption import end_with_parent
from coordatt_deploy.profile.latency import ColdStart
from coordatt_deploy.runtimes import runtime
from coordatt_deploy.runtimes.first_run import trust_files
from coordatt_deploy.scratch import Scratch

if sys.platform != "win32":
    import resource


def cold_start(
    root: Path, artifact: Artifact, *, threads: int = 1, size: tuple[int, int] = (224, 224), timeout_s: float = 600.0
) -> ColdStart:
    """Open an artifact of the bundle at *root* in a new process and run it once.

    Args:
        root: The bundle.
        artifact: Which of its artifacts.
        threads: Worker threads of the runtime.
        size: Height and width of the input where the artifact leaves them open.
        timeout_s: After so many seconds the process is ended.

    Raises:
        DeployError: What the process raised, e.g. MissingDependencyError.
        BundleError: It died, or took too long.
    """
    order = {"root": str(root), "artifact": to_json(artifact), "threads": threads, "size": size}
    with Scratch() as folder:
        answer = folder / "answer.json"
        # -P: what lies in the folder that the user happens to be in is not imported.
        command = [sys.executable, "-P", "-m", "coordatt_deploy.profile.cold_start", str(answer), str(os.getpid())]
        try:
            done = subprocess.run(  # noqa: S603  (this interpreter, this module)
                command, input=json.dumps(order), capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            raise BundleError(
                f"{artifact.path} was not opened and run once within {timeout_s:g} s in a process of its own"
            ) from None
        if not answer.exists():
            raise BundleError(
                f"{artifact.path} could not be opened and run once in a process of its own: {_exit_message(done)}"
            )
        result = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in result:
        raise error_named(result["error"], DeployError)(result["text"])
    return ColdStart(**result)


def _exit_message(done: "subprocess.CompletedProcess[str]") -> str:
    if done.returncode < 0:
        return f"signal {-done.returncode} ended it; the runtime crashed, or memory ran out"
    last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
    return f"exit code {done.returncode}: {last[0]}"


def observe(root: Path, artifact: Artifact, threads: int, size: tuple[int, int]) -> ColdStart:
    """Do in this process what ``cold_start`` promises; truthful only if nothing was opened here before."""
    module = runtime(artifact.format)
    feeds = {spec.name: random_input(spec, size) for spec in artifact.inputs}
    before = _start_of_peak()
    start = time.perf_counter_ns()
    with module.open_artifact(inside(root, artifact.path), artifact, threads=threads) as runner:
        opened = time.perf_counter_ns()
        runner.infer(feeds)
        end = time.perf_counter_ns()
    peak = _peak()
    return ColdStart(
        load_ms=(opened - start) / 1e6,
        first_inference_ms=(end - opened) / 1e6,
        peak_memory_bytes=None if before is None or peak is None else max(0, peak - before),
    )


def random_input(spec: TensorSpec, size: tuple[int, int]) -> NumberArray:
    """Return noise for the input *spec*; open axes become 1, and *size* where the layout says H and W."""
    known = {"H": size[0], "W": size[1]}
    axes = zip(spec.shape, spec.layout, strict=True)
    shape = [known.get(letter, 1) if length is None else length for length, letter in axes]
    dtype = np.dtype(spec.dtype)
    rng = np.random.default_rng(0)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)
    return rng.random(shape).astype(dtype)


def _start_of_peak() -> int | None:
    """Forget the peak so far, where the kernel lets one, and return what this process holds now, in bytes."""
    if sys.platform == "linux":
        try:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        except OSError:
            return _peak()
        return _status("VmRSS")
    return _peak()


def _peak() -> int | None:
    if sys.platform == "linux":
        return _status("VmHWM")
    if sys.platform == "win32":
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS


def _status(key: str) -> int | None:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def main() -> None:
    """Read an order from standard input, write the answer to the file named first; end with the second, a process."""
    end_with_parent(int(sys.argv[2]), watch=False)
    trust_files()  # whatever happens, it happens to this process
    order = json.load(sys.stdin)
    answer = Path(sys.argv[1])
    try:
        cold = observe(
            Path(order["root"]), from_json(Artifact, order["artifact"]), order["threads"], tuple(order["size"])
        )
        result = to_json(cold)
    except DeployError as error:
        result = {"error": type(error).__name__, "text": str(error)}
    answer.write_text(json.dumps(result, allow_nan=False), encoding="utf-8")
    # Runtimes have crashed in the destructors of their libraries; the answer is written, nothing is left to do.
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
