"""What a case is: the file that is changed, and what is run on it."""

import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from coordatt_deploy.cli import main
from coordatt_deploy.data.calibration import load_calibration
from coordatt_deploy.errors import DeployError
from coordatt_deploy.loading.load import resolve
from coordatt_deploy.loading.model_request import ModelRequest
from coordatt_deploy.loading.preprocessing import read_labels, read_preprocessing
from coordatt_deploy.manifest import Manifest
from coordatt_deploy.plain_text import plain
from coordatt_deploy.quantization.recipes import load_recipe
from fuzzing.bases import __file__ as factory
from fuzzing.bases import rehash
from fuzzing.mutations import mutate

EVALUATE = "evaluate bundle --dataset user/labelled --labels-by index --workers 1"
PROFILE = "profile bundle --samples 20 --warmups 1 --min-seconds 0"
ONE_FORMAT = ("parity bundle --outputs-only", "parity bundle --outputs-only", "parity bundle", PROFILE, EVALUATE)
OF_FILES = (*ONE_FORMAT, "inspect bundle", "inspect {file}", "inspect {file}", "report bundle")

# Which files there are, by kind, and what reads them. Commands of one format get the file's own as --format. What
# begins with a colon is a function of the library: commands that end in a conversion would do nothing else before it.
KINDS: tuple[tuple[str, Sequence[str]], ...] = (
    ("bundle/manifest.json", (*OF_FILES[:-3], "report bundle")),
    ("bundle/*/*.layers.json", ("parity bundle", "parity bundle", "inspect {artifact}")),
    ("bundle/reports/*.json", ("report bundle", "report bundle", "parity bundle --outputs-only", EVALUATE)),
    ("bundle/reference/graph.json", ("parity bundle", EVALUATE)),
    ("bundle/reference/weights.safetensors", ("parity bundle", EVALUATE)),
    ("bundle/golden/*.npz", ("parity bundle --outputs-only", "parity bundle")),
    ("bundle/golden/expected.json", ("parity bundle --outputs-only", "inspect bundle")),
    ("bundle/golden/images/*.png", ("parity bundle --outputs-only",)),
    ("bundle/*/*.onnx", OF_FILES),
    ("bundle/*/*.onnx", OF_FILES),
    ("bundle/*/*.tflite", OF_FILES),
    ("bundle/*/*.tflite", OF_FILES),
    ("bundle/*/*.mlpackage/Manifest.json", OF_FILES),
    ("bundle/*/*.mlpackage/*.mlmodel", OF_FILES),
    ("bundle/*/*.mlpackage/*/weight.bin", OF_FILES),
    ("user/weights.pth", (":load",)),
    ("user/old.pt", (":load",)),
    ("user/weights.safetensors", (":load",)),
    ("user/labelled/*/*", (EVALUATE, "parity bundle --outputs-only --inputs user/labelled", ":calibrate")),
    ("user/inputs.npz", ("parity bundle --outputs-only --inputs {file}",)),
    ("user/calibration.npz", (":calibrate",)),
    ("user/recipe.json", (":recipe",)),
    ("user/preprocessing.json", (":preprocessing",)),
    ("user/labels.json", (":labels",)),
    ("user/tolerance.*", ("parity bundle --outputs-only --tolerance {file}",)),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One file changed, and one command.

    Attributes:
        seed: Of every choice in it.
        file: Relative to the folder that holds ``bundle`` and ``user``.
        command: Its words.
    """

    seed: int
    file: str
    command: tuple[str, ...]

    @property
    def artifact(self) -> str | None:
        """The path in the bundle of the artifact that is changed; None where something else is."""
        parts = Path(self.file).parts
        one = len(parts) > 2 and parts[0] == "bundle" and Path(parts[2]).suffix in (".onnx", ".tflite", ".mlpackage")
        return "/".join(parts[1:3]) if one else None


def make(seed: int, root: Path) -> Case:
    """Return the case of that seed for what lies in *root*."""
    rng = random.Random(seed)  # noqa: S311 - no secret
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    kinds = [(found, commands) for pattern, commands in KINDS if (found := [f for f in files if fnmatch(f, pattern)])]
    found, commands = kinds[seed % len(kinds)]  # every kind gets its turn
    file, command = rng.choice(found), rng.choice(commands)
    folder = Path(file).parts[1]
    artifact = next(
        (name for name in files if name.startswith(f"bundle/{folder}/") and not name.endswith(".json")), file
    )
    if ".mlpackage/" in artifact:
        artifact = artifact[: artifact.index(".mlpackage/") + len(".mlpackage")]
    words = command.replace("{artifact}", artifact)
    words = words.replace("{file}", f"bundle/{shown}" if (shown := Case(seed, file, ()).artifact) else file).split()
    if folder in ("onnx", "tflite", "coreml") and command in ONE_FORMAT:
        words += ["--format", folder]
    elif command.startswith("parity") and "reference" not in file:
        words += ["--format", "onnx"]
    return Case(seed, file, tuple(words))


def apply(case: Case, root: Path) -> None:
    """Change the case's file in *root*; its hash in the manifest is made true again."""
    rng = random.Random(case.seed ^ 0x5EED)  # noqa: S311
    path = root / case.file
    path.write_bytes(mutate(path.read_bytes(), path.suffix.removeprefix("."), rng))
    inside = case.file.removeprefix("bundle/")
    if inside not in (case.file, "manifest.json"):
        rehash(root / "bundle", case.artifact or inside)


def run(case: Case) -> int:
    """Run the case's command in this process, in the folder that holds ``bundle`` and ``user``; return its exit code.

    Raises:
        Exception: Whatever gets through: a bug.
    """
    name, *options = case.command
    if not name.startswith(":"):
        try:
            main([name, *options])
        except SystemExit as error:
            return int(error.code or 0)
        return 0
    try:
        FUNCTIONS[name](Path(case.file))
    except DeployError as error:  # as the command line does
        sys.stderr.write(f"Error: {plain(str(error))}\n")
        return error.exit_code
    return 0


def _load(path: Path) -> object:
    return resolve(ModelRequest(model=f"{factory}:build", checkpoint=path, input_size=(24, 32)))


def _calibrate(path: Path) -> object:
    manifest = Manifest.parse(Path("bundle/manifest.json").read_text())
    source = path if path.suffix == ".npz" else Path("user/labelled")
    return load_calibration(source, manifest.inputs, manifest.model.preprocessing)


FUNCTIONS: dict[str, Callable[[Path], object]] = {
    ":load": _load,
    ":calibrate": _calibrate,
    ":recipe": lambda path: load_recipe(str(path)),
    ":preprocessing": read_preprocessing,
    ":labels": read_labels,
}
