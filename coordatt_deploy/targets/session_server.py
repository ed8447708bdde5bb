"""The other machine's side of a session: opens artifacts and runs them with the project's own runtimes.

``session_client`` starts it there, with ``logs.ENVIRONMENT`` set. Requests arrive on stdin and answers leave on stdout;
``session_messages`` has their forms. Whatever a runtime prints goes to stderr, which is the client's log file.
"""

import gc
import json
import os
import sys
import traceback
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Final, assert_never

import numpy as np

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.documents import from_json, to_json
from coordatt_deploy.errors import ConversionError, DeployError
from coordatt_deploy.formats import Format
from coordatt_deploy.runtimes import Runner, runtime
from coordatt_deploy.runtimes.first_run import trust_files
from coordatt_deploy.targets.session_messages import (
    Answer,
    CloseAnswer,
    CloseRequest,
    ErrorAnswer,
    InferAnswer,
    InferRequest,
    OpenAnswer,
    OpenRequest,
    Request,
    VersionsAnswer,
    VersionsRequest,
)

# A mark is the system call getpgid(MARK + number): it fails, and what counts instructions sees it pass
# (qemu_arm64/qemu_icount.c).
MARK: Final = 0x51000000


class Server:
    """The artifacts that are open on this machine."""

    def __init__(self) -> None:
        self._runners: dict[int, Runner] = {}
        self._opened = 0

    def answer(self, request: Request) -> Answer:
        """Carry out one request."""
        if request["do"] == "versions":
            return self._versions(request)
        if request["do"] == "open":
            return self._open(request)
        if request["do"] == "infer":
            return self._infer(request)
        if request["do"] == "close":
            return self._close(request)
        assert_never(request)

    def _versions(self, request: VersionsRequest) -> VersionsAnswer:
        for file_format in request["formats"]:
            runtime(Format(file_format))
        return {"versions": {name: version(name) for name in request["packages"]}}

    def _open(self, request: OpenRequest) -> OpenAnswer:
        artifact = from_json(Artifact, request["artifact"])
        opened = runtime(artifact.format).open_artifact(
            Path(request["path"]), artifact, threads=1, tensors=tuple(request["tensors"])
        )
        number, self._opened = self._opened, self._opened + 1
        runner = self._runners[number] = opened.__enter__()
        return {
            "runner": number,
            "inputs": to_json(runner.inputs),
            "outputs": to_json(runner.outputs),
            "runtime": runner.runtime,
        }

    def _infer(self, request: InferRequest) -> InferAnswer:
        with np.load(request["feeds"], allow_pickle=False) as archive:
            feeds = {name: archive[f"arr_{index}"] for index, name in enumerate(request["names"])}
        runner = self._runners[request["runner"]]
        if request["mark"] is None:
            results = runner.infer(feeds)
        else:
            mark(2 * request["mark"])
            results = runner.infer(feeds)
            mark(2 * request["mark"] + 1)
        np.savez(request["results"], *results.values())
        return {"names": list(results)}

    def _close(self, request: CloseRequest) -> CloseAnswer:
        self._runners.pop(request["runner"]).__exit__(None, None, None)
        return {}


def mark(number: int) -> None:
    """Have the instruction counter note where its counters stand; without one nothing happens."""
    with suppress(ProcessLookupError):  # there is no such process
        os.getpgid(MARK + number)


def main() -> None:
    """Answer requests until stdin ends."""
    # Runtimes print from C++ as well: the answers get a descriptor of their own, and stdout becomes stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    trust_files()  # whatever happens, it happens to this process
    gc.disable()  # collections would fall into one inference and not into the next
    server = Server()
    while line := sys.stdin.readline():
        answer: Answer | ErrorAnswer
        try:
            answer = server.answer(json.loads(line))
        except DeployError as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything; the client is told, the log has the rest
            traceback.print_exc()
            answer = {"error": ConversionError.__name__, "text": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
