"""Export strangers' networks to every format, prove the files, and write down what became of each.

    python -m benchmarks.survey [--only TEXT] [--faults N] [--timeout SECONDS] [--document FILE] [--write-docs]

Each network of ``survey_networks`` goes the way of a user's: ``export`` to all formats, ``parity`` of outputs and of
every layer. The files are also run by ONNX Runtime and LiteRT directly and held against torch, without this project's
runners and judges. A network has a process of its own: one that crashes or hangs ends alone. What was found of it is
kept in one document, from which ``--write-docs`` makes docs/models.md. A run continues where an earlier one of the same
sources stopped.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.survey_networks import FAULTED, NETWORKS, Network, missing_libraries
from benchmarks.survey_page import PAGE, page
from benchmarks.survey_results import NetworkResult, Survey, Verdict
from coordatt_deploy.documents import dump, load
from coordatt_deploy.files import write_whole

ROOT: Final = Path(__file__).parents[1]
DOCUMENT: Final = ROOT / "benchmarks" / "survey.json"
SOURCES: Final = ("coordatt_deploy", "exporters", "models", "benchmarks/survey_networks.py", "benchmarks/survey_run.py")
RUN: Final = ("-m", "benchmarks.survey_run")
TIMEOUT_S: Final = 1500.0  # the slowest takes about two minutes of an idle machine


def sources() -> str:
    """Return the last commit that changed what the results depend on, with a plus where files differ from it."""
    commit = _git("log", "-1", "--format=%h", "--", *SOURCES)
    return commit + ("+" if _git("status", "--porcelain", "--", *SOURCES) else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(ROOT), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - our own git
    return done.stdout.strip()


def examine(network: Network, timeout_s: float, keep: Path | None, faults: int = 0) -> NetworkResult:
    """Take one network through a process of its own; what becomes of the process becomes the result.

    Args:
        network: Which.
        timeout_s: After which it is ended.
        keep: Where its bundle is kept; None: nowhere.
        faults: How many are planted into each of its files afterwards.
    """
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result, log = Path(folder) / "result.json", Path(folder) / "log.txt"
        command = [sys.executable, *RUN, network.key, str(result), str(keep or folder)]
        command += [str(faults)]
        with log.open("w") as noise:
            process = subprocess.Popen(  # noqa: S603 - this project's own module
                command, cwd=ROOT, stdout=noise, stderr=noise, start_new_session=True
            )
            try:
                process.wait(timeout_s)
                problem = None if process.returncode == 0 else _last_words(log, process.returncode)
            except subprocess.TimeoutExpired:
                problem = f"took more than {timeout_s:.0f} s"
            finally:
                _end(process)
        if result.exists():
            found = load(NetworkResult, result.read_text(encoding="utf-8"))
        else:
            found = NetworkResult(network.key, network.side)
    return replace(
        found, problem=found.problem or problem, sources=sources(), seconds=round(time.monotonic() - begun, 1)
    )


def _last_words(log: Path, code: int) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"the process ended with {code}: {lines[-1][:300] if lines else 'it said nothing'}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End what is left of a process and its children, which it is the leader of."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def update(survey: Survey, networks: Sequence[Network], missing: dict[str, str]) -> Survey:
    """Return the document for these networks alone, with the libraries that are left out."""
    known = {network.key for network in networks}
    kept = [item for item in survey.results if item.network in known]
    return replace(survey, results=tuple(kept), left_out=missing)


def put(survey: Survey, result: NetworkResult, order: Sequence[str]) -> Survey:
    """Put a result into the document, in place of an earlier one."""
    results = {item.network: item for item in survey.results} | {result.network: result}
    return replace(survey, results=tuple(results[key] for key in order if key in results))


def line(result: NetworkResult) -> str:
    """Return one result as a line for the terminal."""
    artifacts = [
        f"{item.format}/{item.precision} {item.verdict}"
        + ("" if item.lowest_sqnr_db is None else f" {item.lowest_sqnr_db:.0f} dB")
        + (f" ({item.detail})" if item.detail else "")
        for item in result.artifacts
    ]
    what = "; ".join([*artifacts, *([f"CRASHED: {result.problem}"] if result.problem else [])])
    return f"{result.network:40} {result.seconds:5.0f} s  {what}"


def main() -> int:
    """Survey what is asked for and not yet known; 1 where a network crashed or a file failed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", help="networks with this in their names")
    parser.add_argument("--again", action="store_true", help="also those with a result of these sources")
    parser.add_argument("--earlier", action="store_true", help="results of earlier sources will do where all passed")
    parser.add_argument(
        "--faults",
        type=int,
        default=0,
        help="plant so many into each file of ten networks, and take those networks alone",
    )
    parser.add_argument("--timeout", type=float, default=TIMEOUT_S, help="seconds for one network")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    parser.add_argument("--keep", type=Path, help="keep the bundles here")
    parser.add_argument("--write-docs", action="store_true", help=f"write {PAGE.name} and survey nothing")
    options = parser.parse_args()
    survey = load(Survey, options.document.read_text("utf-8")) if options.document.exists() else Survey()
    if options.write_docs:
        write_whole(PAGE, page(survey))
        return 0
    missing, now = missing_libraries(), sources()
    for library, reason in missing.items():
        print(f"{library} is left out: {reason}")
    survey = update(survey, NETWORKS, missing)
    chosen = [item for item in NETWORKS if not options.only or any(text in item.key for text in options.only)]
    if options.faults:
        chosen = [item for item in chosen if item.key in FAULTED]
    done = {item.network for item in survey.results
            if (item.sources == now or (options.earlier and item.verdict is Verdict.PASSED))
            and bool(item.faults) >= bool(options.faults)}  # fmt: skip
    waiting = [item for item in chosen if item.library not in missing and (options.again or item.key not in done)]
    order = [item.key for item in NETWORKS]
    for index, network in enumerate(waiting, 1):
        result = examine(network, options.timeout, options.keep, options.faults)
        survey = put(survey, result, order)
        write_whole(options.document, dump(survey))
        print(f"[{index}/{len(waiting)}] {line(result)}", flush=True)
    return _exit_code(survey.results)


def _exit_code(results: Iterable[NetworkResult]) -> int:
    return int(any(item.verdict in (Verdict.FAILED, Verdict.CRASHED) for item in results))


if __name__ == "__main__":
    sys.exit(main())
