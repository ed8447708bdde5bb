"""Every backbone with every attention block in every format: exported, and judged layer by layer.

    python -m benchmarks.zoo_matrix FOLDER [--size 64] [--name efficientnet_b0_gc …]

A model that FOLDER has a result of is not done again, so a run that was ended goes on where it was. The weights are
random and the input is small: the question is whether the files compute what torch does, not how fast or how well.
Prints a table in Markdown; exits with 1 if a file is missing or a judge finds a difference.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from coordatt_deploy.formats import FORMATS
from coordatt_deploy.models import list_models

MODELS: Final = tuple(
    name
    for name in list_models()
    if name.startswith("efficientnet_b0") or (name.startswith("mobilenet") and name.endswith("_100"))
)  # at width 1.0: three backbones, plain and with seven blocks
ATTEMPT_SECONDS: Final = 1200.0  # the largest takes three minutes on two busy cores


def main() -> None:
    """Do what is not done, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--name", action="append", choices=MODELS)
    parser.add_argument("--attempt-seconds", type=float, default=ATTEMPT_SECONDS, help="that a command may take")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    names = options.name or MODELS
    results = {name: _result(name, options.folder, options.size, options.attempt_seconds) for name in names}
    print(f"| model at {options.size}x{options.size} | {' | '.join(FORMATS)} |\n|---|{'---|' * len(FORMATS)}")
    for name, verdicts in results.items():
        print(f"| {name} | {' | '.join(verdicts.get(kind, 'no file') for kind in FORMATS)} |")
    failed = any(verdicts.get(kind) != "passed" for verdicts in results.values() for kind in FORMATS)
    sys.exit(1 if failed else 0)


def _result(name: str, folder: Path, size: int, seconds: float) -> dict[str, str]:
    """The verdict on the files of each format; the worst where a format has several.

    What took too long is not kept, so that the next run tries it again.
    """
    path = folder / f"{name}_{size}.json"
    if not path.exists():
        try:
            judged = _judged(name, folder / name, size, seconds)
        except subprocess.TimeoutExpired as late:
            verdict = f"{late.cmd[3]} took longer than {late.timeout:g} s"
            print(f"{name}: {verdict}", file=sys.stderr, flush=True)
            return dict.fromkeys(FORMATS, verdict)
        path.write_text(json.dumps(judged), encoding="utf-8")
        shutil.rmtree(folder / name, ignore_errors=True)
    verdicts: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return verdicts


def _judged(name: str, bundle: Path, size: int, seconds: float) -> dict[str, str]:
    shutil.rmtree(bundle, ignore_errors=True)
    verdicts: dict[str, str] = {}
    for kind in FORMATS:
        exported = _run(seconds, "export", "--model", name, "--input-size", str(size), "--precision", "fp32",
                        "--format", kind, "--output-dir", str(bundle))  # fmt: skip
        if exported.returncode:
            verdicts[kind] = f"export: {_last_line(exported)}"
    if not (bundle / "manifest.json").exists():
        return verdicts
    judged = _run(seconds, "parity", str(bundle), "--layers", "--json")
    try:
        results = json.loads(judged.stdout)["artifacts"]
    except (json.JSONDecodeError, KeyError):
        return {kind: f"parity: {_last_line(judged)}" for kind in FORMATS} | verdicts
    for result in results:
        verdict = "passed" if result["passed"] else str(result["problem"] or result["summary"])
        if verdicts.get(result["format"], "passed") == "passed":
            verdicts[result["format"]] = verdict
    return verdicts


def _run(seconds: float, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "coordatt_deploy", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)  # noqa: S603 - our own command


def _last_line(process: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in process.stderr.splitlines() if line.strip()]
    return lines[-1][:200] if lines else f"exit code {process.returncode}"


if __name__ == "__main__":
    main()
