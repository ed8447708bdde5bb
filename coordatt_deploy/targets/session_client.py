"""The host's side of an emulated target: one guest process, kept alive, that artifacts are opened in.

Starting a guest and importing a runtime there takes ten seconds, an inference a few; so feeds are streamed to it.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from coordatt_deploy import errors
from coordatt_deploy.artifact_specs import Artifact, Origin, TensorSpec
from coordatt_deploy.documents import from_json, to_json
from coordatt_deploy.errors import ConversionError, DeployError, MissingDependencyError
from coordatt_deploy.logs import log_folder
from coordatt_deploy.targets.qemu_arm64.counts import parse_marks, per_inference, rules_text
from coordatt_deploy.targets.qemu_arm64.cpus import Cpu
from coordatt_deploy.targets.qemu_arm64.sysroot import NAME, OURS, SETUP_COMMAND, Sysroot

GUEST_MODULE: Final = "coordatt_deploy.targets.session_server"
LOG_NAME: Final = f"{NAME}-guest.log"

# Relative to the guest's working folder, as everything that changes from run to run.
FEEDS: Final = "feeds.npz"
RESULTS: Final = "results.npz"

# Half an hour for one answer: a large network takes minutes under emulation, a hung one for ever.
ANSWER_TIMEOUT_S: Final = 1800.0


class Guest:
    """An emulated machine with one CPU, running ``guest``. Use as a context manager."""

    def __init__(
        self, box: Sysroot, cpu: Cpu, *, counting: bool = False, compiling: bool = False,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:  # fmt: skip
        """Start it.

        Args:
            box: What it runs in.
            cpu: What it runs on.
            counting: Load the instruction counter.
            compiling: Let Python leave its compiled modules in the box, while that is being built.
            timeout_s: Seconds after which an answer is given up.

        Raises:
            MissingDependencyError: *counting* in a box without the instruction counter.
        """
        if counting and box.no_counts_because is not None:
            raise MissingDependencyError(
                f"target {NAME} cannot count instructions: {box.no_counts_because}; parity works without."
                f" Then run: {SETUP_COMMAND}"
            )
        self.cpu = cpu
        self._timeout_s = timeout_s
        self._unread = b""
        self._opened = 0
        self._scratch = Path(tempfile.mkdtemp(prefix=f"{NAME}-"))
        self._marks, self._log = self._scratch / "marks", self._scratch / "log"
        try:
            self._process = self._start(box, counting, compiling)
        except BaseException:
            shutil.rmtree(self._scratch, ignore_errors=True)
            raise
        self._cleanup = weakref.finalize(self, _end, self._process, self._scratch)

    def _start(self, box: Sysroot, counting: bool, compiling: bool) -> "subprocess.Popen[bytes]":
        view, rules = self._scratch / "view", self._scratch / "rules"
        box.make_view(self.cpu, view)
        rules.write_text(rules_text(), encoding="utf-8")
        command = box.qemu(self.cpu, view, box.plugin(rules, self._marks) if counting else ())
        env = box.environment(self._scratch)
        # No site module, no user's packages, not the working folder on the path, no compiled files left behind.
        flags = ["-S", "-s", "-P", "-B"]
        if compiling:  # only files that exist are found below the view: new ones need their real paths
            command[command.index("-0") : command.index("-0") + 2] = []
            env["PYTHONPATH"] = f"{view / OURS / 'code'}:{box.root / 'site'}"
            flags.remove("-B")
        with self._log.open("wb") as log:
            return subprocess.Popen(  # noqa: S603 - our own box and module, checked by hash
                [*command, *flags, "-m", GUEST_MODULE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self._scratch,
                env=env,
            )

    def versions(self, packages: Iterable[str], formats: Iterable[str]) -> dict[str, str]:
        """Import the runtimes of *formats* and return the versions of *packages*, as the guest sees them."""
        found: dict[str, str] = self.ask({"do": "versions", "packages": [*packages], "formats": [*formats]})["versions"]
        return found

    def open_artifact(self, path: Path, artifact: Artifact, tensors: tuple[str, ...] = ()) -> "EmulatedRunner":
        """Open the file at *path* in this guest, which has to outlive the runner.

        Raises:
            BundleError: The runtime cannot open it.
            ConversionError: The runtime died of it.
        """
        place = self._scratch / str(self._opened) / path.name
        place.parent.mkdir()
        place.symlink_to(path.absolute())
        self._opened += 1
        relative = place.relative_to(self._scratch).as_posix()
        request = {"do": "open", "path": relative, "artifact": to_json(artifact), "tensors": [*tensors]}
        return EmulatedRunner(self, self.ask(request))

    def infer(
        self, runner: int, feeds: Mapping[str, NDArray[Any]], *, mark: int | None = None
    ) -> dict[str, NDArray[Any]]:
        """Run the artifact *runner* once; with *mark*, its instructions are counted under that number."""
        np.savez(self._scratch / FEEDS, *feeds.values())
        answer = self.ask(
            {"do": "infer", "runner": runner, "names": [*feeds], "feeds": FEEDS, "results": RESULTS, "mark": mark}
        )
        with np.load(self._scratch / RESULTS, allow_pickle=False) as archive:
            return {name: archive[f"arr_{index}"] for index, name in enumerate(answer["names"])}

    def counted(self) -> list[dict[str, int]]:
        """Return the instructions by class of each inference that had a mark."""
        return per_inference(parse_marks(self._marks.read_text(encoding="utf-8")))

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request and return the answer.

        Raises:
            DeployError: What the guest answered, as the same class.
            ConversionError: It died or does not answer; the text names its log file.
        """
        pipe = self._process.stdin
        assert pipe is not None  # noqa: S101 - opened above
        try:
            pipe.write(json.dumps(request).encode() + b"\n")
            pipe.flush()
            line = self._read_line()
        except BrokenPipeError:
            line = b""
        if not line:
            raise ConversionError(f"{self._obituary()} during {request['do']!r}; its log is {self._keep_log()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            kind = getattr(errors, answer["error"], ConversionError)
            raise (kind if issubclass(kind, DeployError) else ConversionError)(
                f"on {NAME}:{self.cpu.name}: {answer['text']}; the guest's log is {self._keep_log()}"
            )
        return answer

    @property
    def alive(self) -> bool:
        """Whether it still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the guest and remove its files."""
        self._cleanup()

    def _read_line(self) -> bytes:
        """Return the next line of stdout; empty when the guest has ended."""
        pipe = self._process.stdout
        assert pipe is not None  # noqa: S101 - opened above
        deadline = time.monotonic() + self._timeout_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                log = self._keep_log()
                self.close()
                raise ConversionError(
                    f"the guest {NAME}:{self.cpu.name} gave no answer within {self._timeout_s:g} s; its log is {log}"
                )
            block = os.read(pipe.fileno(), 1 << 16)
            if not block:
                return b""
            self._unread += block
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _obituary(self) -> str:
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        return f"the guest {NAME}:{self.cpu.name} {how}"

    def _keep_log(self) -> Path:
        """Copy the log to where it outlives this guest."""
        kept = log_folder() / LOG_NAME
        shutil.copyfile(self._log, kept)
        return kept

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _end(process: "subprocess.Popen[bytes]", scratch: Path) -> None:
    """End *process* and remove its files."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # closing flushes, and nobody reads any more
                pipe.close()
    process.wait()
    shutil.rmtree(scratch, ignore_errors=True)


class EmulatedRunner:
    """An artifact opened in a guest; a ``coordatt_deploy.runtimes.Runner`` whose results are emulated.

    Attributes:
        inputs: What ``infer`` eats.
        outputs: What ``infer`` gives.
        runtime: E.g. ``onnxruntime 1.31.1 on qemu-arm64:neoverse-n1``.
        origin: Always emulated.
    """

    def __init__(self, guest: Guest, opened: Mapping[str, Any], *, owns_guest: bool = False) -> None:
        """Wrap what the guest answered to ``open``; with *owns_guest* the guest ends with the runner."""
        self._guest, self._owns_guest = guest, owns_guest
        self._number: int = opened["runner"]
        self.inputs = from_json(tuple[TensorSpec, ...], opened["inputs"])
        self.outputs = from_json(tuple[TensorSpec, ...], opened["outputs"])
        self.runtime = f"{opened['runtime']} on {NAME}:{guest.cpu.name}"
        self.origin = Origin.EMULATED

    def infer(self, feeds: Mapping[str, NDArray[Any]], *, mark: int | None = None) -> dict[str, NDArray[Any]]:
        """Run once; the arrays are the caller's to keep. With *mark*, count its instructions under that number."""
        return self._guest.infer(self._number, feeds, mark=mark)

    def infer_many(self, feeds: Iterable[Mapping[str, NDArray[Any]]]) -> list[dict[str, NDArray[Any]]]:
        """Run once for each of *feeds*, in order."""
        return [self.infer(one) for one in feeds]

    def owning_guest(self) -> Self:
        """Make the guest end with this runner."""
        self._owns_guest = True
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owns_guest:
            self._guest.close()
        elif kind is None and self._guest.alive:
            self._guest.ask({"do": "close", "runner": self._number})
