"""Our side of a session: one process on another machine, kept alive, that artifacts are opened in.

Starting an emulated machine and importing a runtime there takes ten seconds, an inference a few; so feeds are streamed
to it. How the process is started is the target's business: it answers on its stdout what ``session_messages`` says.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import time
import weakref
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self, TypeAlias, TypeVar, cast

import numpy as np

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, Origin, TensorSpec
from coordatt_deploy.documents import from_json, object_of
from coordatt_deploy.errors import ConversionError, DeployError, error_named
from coordatt_deploy.logs import log_folder
from coordatt_deploy.scratch import Scratch
from coordatt_deploy.targets import TargetName
from coordatt_deploy.targets.session_messages import (
    Answer,
    CloseAnswer,
    ErrorAnswer,
    InferAnswer,
    OpenAnswer,
    Request,
    VersionsAnswer,
)

SERVER_MODULE: Final = "coordatt_deploy.targets.session_server"

# Relative to the server's working folder, as everything that changes from run to run.
FEEDS: Final = "feeds.npz"
RESULTS: Final = "results.npz"

# Half an hour for one answer: a large network takes minutes under emulation, a hung one for ever.
ANSWER_TIMEOUT_S: Final = 1800.0

Launch: TypeAlias = Callable[[Path, IO[bytes]], "subprocess.Popen[bytes]"]
"""Starts the server in a working folder; its stdin and stdout are pipes, its stderr goes to the log."""

A = TypeVar("A", bound=Answer)


class Session:
    """A process on another machine that runs ``session_server``. Use as a context manager.

    Attributes:
        name: The target and its CPU.
        origin: Of what it computes.
        folder: Its working folder, which goes with it.
    """

    def __init__(
        self, name: TargetName, launch: Launch, *, origin: Origin, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> None:
        """Start it.

        Args:
            name: The target and its CPU.
            launch: Starts the server.
            origin: Of what it computes.
            timeout_s: Seconds after which an answer is given up.
        """
        self.name, self.origin = name, origin
        self._timeout_s = timeout_s
        self._unread = b""
        self._opened = 0
        self._scratch = Scratch()
        self.folder = self._scratch.folder
        self._log = self.folder / "log"
        try:
            with self._log.open("wb") as log:
                self._process = launch(self.folder, log)
        except BaseException:
            self._scratch.remove()
            raise
        self._cleanup = weakref.finalize(self, _end, self._process, self._scratch)

    def versions(self, packages: Iterable[str], formats: Iterable[str]) -> dict[str, str]:
        """Import the runtimes of *formats* and return the versions of *packages*, as the server sees them."""
        request: Request = {"do": "versions", "packages": [*packages], "formats": [*formats]}
        return self._ask(request, VersionsAnswer)["versions"]

    def open_artifact(self, path: Path, artifact: Artifact, tensors: tuple[str, ...] = ()) -> "SessionRunner":
        """Open the file at *path* in this session, which has to outlive the runner.

        Raises:
            BundleError: The runtime cannot open it.
            ConversionError: The runtime died of it.
        """
        place = self.folder / str(self._opened) / path.name
        place.parent.mkdir()
        place.symlink_to(path.absolute())
        self._opened += 1
        relative = place.relative_to(self.folder).as_posix()
        request: Request = {"do": "open", "path": relative, "artifact": object_of(artifact), "tensors": [*tensors]}
        return SessionRunner(self, self._ask(request, OpenAnswer))

    def infer(
        self, runner: int, feeds: Mapping[str, NumberArray], *, mark: int | None = None
    ) -> dict[str, NumberArray]:
        """Run the artifact *runner* once; with *mark*, its instructions are counted under that number."""
        np.savez(self.folder / FEEDS, *feeds.values())
        request: Request = {
            "do": "infer", "runner": runner, "names": [*feeds], "feeds": FEEDS, "results": RESULTS, "mark": mark,
        }  # fmt: skip
        names = self._ask(request, InferAnswer)["names"]
        with np.load(self.folder / RESULTS, allow_pickle=False) as archive:
            return {name: archive[f"arr_{index}"] for index, name in enumerate(names)}

    def close_artifact(self, runner: int) -> None:
        """Close the artifact *runner*, unless the server has ended already."""
        if self._process.poll() is None:
            self._ask({"do": "close", "runner": runner}, CloseAnswer)

    def _ask(self, request: Request, kind: type[A]) -> A:  # noqa: ARG002 - the kind is for the type checker
        """Send one request and return the answer, which is a *kind*.

        Raises:
            DeployError: What the server answered, as the same class.
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
            raise ConversionError(f"{self._exit_message()} during {request['do']!r}; its log is {self._keep_log()}")
        answer = json.loads(line)
        if "error" in answer:
            raise self._error(answer)
        return cast("A", answer)

    def _error(self, answer: ErrorAnswer) -> DeployError:
        kind = error_named(answer["error"], ConversionError)
        return kind(f"on {self.name}: {answer['text']}; the guest's log is {self._keep_log()}")

    def close(self) -> None:
        """End the server and remove its files."""
        self._cleanup()

    def _read_line(self) -> bytes:
        """Return the next line of stdout; empty when the server has ended."""
        pipe = self._process.stdout
        assert pipe is not None  # noqa: S101 - opened above
        deadline = time.monotonic() + self._timeout_s
        while b"\n" not in self._unread:
            ready, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                log = self._keep_log()
                self.close()
                raise ConversionError(
                    f"the guest {self.name} gave no answer within {self._timeout_s:g} s; its log is {log}"
                )
            block = os.read(pipe.fileno(), 1 << 16)
            if not block:
                return b""
            self._unread += block
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _exit_message(self) -> str:
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        return f"the guest {self.name} {how}"

    def _keep_log(self) -> Path:
        """Copy the log to where it outlives this session."""
        kept = log_folder() / f"{self.name.name}-guest.log"
        shutil.copyfile(self._log, kept)
        return kept

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _end(process: "subprocess.Popen[bytes]", scratch: Scratch) -> None:
    """End *process* and remove its files."""
    process.kill()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # closing flushes, and nobody reads any more
                pipe.close()
    process.wait()
    scratch.remove()


class SessionRunner:
    """An artifact opened in a session; a ``coordatt_deploy.runtimes.Runner``.

    Attributes:
        inputs: What ``infer`` eats.
        outputs: What ``infer`` gives.
        runtime: E.g. ``onnxruntime 1.31.1 on qemu-arm64:neoverse-n1``.
        origin: That of the session.
    """

    def __init__(self, session: Session, opened: OpenAnswer) -> None:
        """Wrap what the server answered to ``open``."""
        self._session, self._number = session, opened["runner"]
        self.inputs = from_json(tuple[TensorSpec, ...], opened["inputs"])
        self.outputs = from_json(tuple[TensorSpec, ...], opened["outputs"])
        self.runtime = f"{opened['runtime']} on {session.name}"
        self.origin = session.origin

    def infer(self, feeds: Mapping[str, NumberArray], *, mark: int | None = None) -> dict[str, NumberArray]:
        """Run once; the arrays are the caller's to keep. With *mark*, count its instructions under that number."""
        return self._session.infer(self._number, feeds, mark=mark)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._session.close_artifact(self._number)
