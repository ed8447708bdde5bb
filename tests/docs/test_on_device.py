"""The snippets for apps use the names, shapes and numbers of the files that they name."""

import json
import re
import shutil
import subprocess
from math import prod
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coordatt_deploy.conversion import export_run
from coordatt_deploy.conversion.plan import DEFAULT_MODEL, ExportPlan
from coordatt_deploy.data.images import preprocess
from coordatt_deploy.models import model_card
from coordatt_deploy.progress import Stages
from coordatt_deploy.runtimes.executorch.program_file import METADATA_METHOD
from coordatt_deploy.runtimes.reader import read_metadata

PAGE = (Path(__file__).parents[2] / "docs" / "on-device.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"```(kotlin|swift|cpp)\n(.*?)```", PAGE, re.DOTALL)


def _of(language, bundle):
    """The snippet of a language whose first line names an artifact of that bundle, and the artifact's path."""
    for found, text in SNIPPETS:
        match = re.match(rf"// (\S+) of {bundle}\b", text)
        if found == language and match:
            return text, match[1]
    raise AssertionError(f"no {language} for {bundle}")


def test_the_page_has_every_language():
    """
    Kotlin and Swift both ways, both for ExecuTorch, and C++.
    """
    assert ["kotlin", "kotlin", "swift", "swift", "kotlin", "swift", "cpp", "cpp"] == [
        language for language, _ in SNIPPETS
    ]


def test_the_numbers_are_those_of_the_embedded_default():
    """
    Size, range, mean and std as the model's card has them.
    """
    card = model_card(DEFAULT_MODEL)
    assert (96, 96) == card.preprocessing.size
    assert ((0.5,) * 3, (0.5,) * 3, (0.0, 1.0)) == (
        card.preprocessing.mean,
        card.preprocessing.std,
        card.preprocessing.input_range,
    )
    assert ("RGB", "bilinear", "none") == (
        card.preprocessing.colour,
        card.preprocessing.resize,
        card.preprocessing.crop,
    )
    assert 10 == len(card.labels)


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler here")
def test_the_cpp_function_gives_the_tools_own_tensor(tmp_path):
    """
    Compiled as it stands on the page, and fed with a picture of noise.
    """
    text, _ = _of("cpp", "digits")
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    (tmp_path / "pixels").write_bytes(pixels.tobytes())
    (tmp_path / "main.cpp").write_text(
        text + '#include <cstdio>\nint main() {\n  std::vector<std::uint8_t> rgb(3 * height * width);\n'
        '  if (std::fread(rgb.data(), 1, rgb.size(), stdin) != rgb.size()) return 1;\n'
        "  const auto tensor = to_tensor(rgb.data());\n"
        "  std::fwrite(tensor.data(), sizeof(float), tensor.size(), stdout);\n}\n",
        encoding="utf-8",
    )  # fmt: skip
    subprocess.run(["g++", "-std=c++17", "-Wall", "-Werror", "main.cpp", "-o", "main"], cwd=tmp_path, check=True)

    given = subprocess.run([tmp_path / "main"], input=pixels.tobytes(), capture_output=True, check=True).stdout
    expected = preprocess(Image.fromarray(pixels), model_card(DEFAULT_MODEL).preprocessing)

    assert np.allclose(expected, np.frombuffer(given, np.float32).reshape(3, 96, 96), rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("bundle", ["digits", "digits_baked"])
def test_the_snippets_name_what_the_files_have(bundle, tmp_path):
    """
    The artifact exists in the bundle that the page's command makes; its names, sizes and types stand in the code.
    """
    baked = bundle == "digits_baked"
    made = export_run.export(ExportPlan(bake=baked, softmax=baked, output_dir=tmp_path / bundle), Stages())
    artifacts = {artifact.path: artifact for artifact in made.manifest.artifacts}

    for language in ("kotlin", "swift") if baked else ("kotlin", "swift", "cpp"):
        text, path = _of(language, bundle)
        (image,), (output,) = artifacts[path].inputs, artifacts[path].outputs
        if language == "kotlin":
            size = re.search(r"allocateDirect\(([\d* ]+)\)", text)[1]
            assert prod(image.shape) * np.dtype(image.dtype).itemsize == prod(map(int, size.split("*")))
            assert f'"image" to {image.name}' in text
            assert f'"{output.name}" to {output.name}' in text
            assert ("uint8" if baked else "float32", "NHWC") == (image.dtype, image.layout)
        elif language == "swift" and not baked:
            assert f"shape: {list(image.shape)}, dataType: .{image.dtype}" in text
            assert f'["{image.name}":' in text
            assert f'featureValue(for: "{output.name}")' in text
        elif language == "cpp":
            names = SNIPPETS[-1][1]
            assert f'inputs[] = {{"{image.name}"}}' in names
            assert f'outputs[] = {{"{output.name}"}}' in names
            assert Path(path).name in names
            assert (1, 3, 96, 96) == image.shape
        else:
            assert "mobilenetv2_ca_035_digits_fp16(" in text
            assert ("uint8", "NHWC") == (image.dtype, image.layout)
    for language, text in SNIPPETS if not baked else ():
        match = re.match(r"// (executorch/\S+) of digits\b", text)
        if match:
            (image,) = artifacts[match[1]].inputs
            sizes = re.search(r"(?:longArrayOf\(|shape: \[)([\d, ]+)", text)[1]
            assert image.shape == tuple(map(int, sizes.split(","))), language
            assert ("float32", "NCHW") == (image.dtype, image.layout)
            metadata = read_metadata(made.root / match[1], artifacts[match[1]].format)
            assert language == "swift" or {"preprocessing", "labels"} <= metadata.keys()
            assert language == "swift" or METADATA_METHOD in text
    expected = json.loads((made.root / "golden" / "images" / "expected.json").read_text(encoding="utf-8"))
    assert {"image", "label", "tensor", "outputs"} == set(expected["images"][0])
    assert all(place["channels"] for place in expected["images"][0]["tensor"]["places"])
