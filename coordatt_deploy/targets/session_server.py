"""The guest's side of an emulated target: opens artifacts and runs them with the project's own runtimes.

It runs on the emulated machine, started by ``emulated.Guest``. Requests arrive on stdin and answers leave on stdout,
one JSON document per line; arrays travel as .npz files named in them, never pickled.

    {"do": "versions", "formats": […]}                            -> {"versions": {…}}
    {"do": "open", "path", "artifact", "tensors"}                  -> {"runner", "inputs", "outputs", "runtime"}
    {"do": "infer", "runner", "names", "feeds", "results", "mark"} -> {"names"}
    {"do": "close", "runner"}                                      -> {}

Whatever a runtime prints goes to stderr, which is the host's log file.
"""

import gc
import json
import os
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.documents import from_json, to_json
from coordatt_deploy.errors import ConversionError, DeployError
from coordatt_deploy.formats import Format
from coordatt_deploy.logs import set_environment
from coordatt_deploy.targets.qemu_arm64.counts import MARK


class Session:
    """The artifacts that are open in this guest."""

    def __init__(self) -> None:
        # Targets and runtimes don't import each other (the host's side needs none): found by name, when used.
        self._runtimes = import_module("coordatt_deploy.runtimes")
        self._runners: dict[int, Any] = {}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Carry out one request."""
        handlers = {"versions": self._versions, "open": self._open, "infer": self._infer, "close": self._close}
        return handlers[request["do"]](request)

    def _versions(self, request: Mapping[str, Any]) -> dict[str, Any]:
        for kind in request["formats"]:
            self._runtimes.runtime(Format(kind))
        return {"versions": {name: version(name) for name in request["packages"]}}

    def _open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        artifact = from_json(Artifact, request["artifact"])
        opened = self._runtimes.runtime(artifact.format).open_artifact(
            Path(request["path"]), artifact, threads=1, tensors=tuple(request["tensors"])
        )
        number = len(self._runners)
        runner = self._runners[number] = opened.__enter__()
        specs = {"inputs": to_json(runner.inputs), "outputs": to_json(runner.outputs)}
        return {"runner": number, "runtime": runner.runtime, **specs}

    def _infer(self, request: Mapping[str, Any]) -> dict[str, Any]:
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

    def _close(self, request: Mapping[str, Any]) -> dict[str, Any]:
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
    set_environment()
    gc.disable()  # collections would fall into one inference and not into the next
    session = Session()
    while line := sys.stdin.readline():
        try:
            answer = session.answer(json.loads(line))
        except DeployError as error:
            answer = {"error": type(error).__name__, "text": str(error)}
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything; the host is told, the log has the rest
            traceback.print_exc()
            answer = {"error": ConversionError.__name__, "text": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
