"""The Python interface: a module as it stands in a script or notebook becomes a bundle, and the bundle answers."""

import pkgutil
import subprocess
import sys

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import coordatt_deploy
from coordatt_deploy.bundle_writing import writing
from coordatt_deploy.files import sha256

EXAMPLE = (torch.zeros(1, 3, 16, 24),)


class Net(nn.Module):
    """A convolution, a normalisation, and five classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def forward(self, image):
        return self.head(self.norm(self.conv(image)).relu().mean((2, 3)))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return coordatt_deploy.export(Net(), EXAMPLE, tmp_path_factory.mktemp("api") / "net", formats=["onnx"])


def test_a_module_becomes_a_bundle_and_stays_as_it_was(tmp_path):
    """
    In training mode, in float32, with the same weights and hooks, and torch with as many threads as before.
    """
    net = Net()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    threads = torch.get_num_threads()

    bundle = coordatt_deploy.export(net, EXAMPLE[0], tmp_path / "net", formats=["onnx"], name="mine")

    assert ["onnx/mine_fp32_arm64.onnx"] == [item.path for item in bundle.artifacts]
    assert (16, 24) == bundle.manifest.model.preprocessing.size
    assert net.training
    assert threads == torch.get_num_threads()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_results_are_typed_and_show_themselves_in_notebooks(bundle):
    """
    Verdicts by artifact, figures with intervals, a page; each with a table for people.
    """
    verdict = bundle.check_parity()
    latency = bundle.measure_latency(samples=20, min_seconds=0.0)
    page = bundle.write_report()

    assert verdict.passed
    assert [True] == [item.passed for item in verdict.artifacts]
    assert latency.results[0].median_ms > 0
    assert page == bundle.root / "reports" / "report.html"
    assert page.read_text(encoding="utf-8").count("onnx fp32 arm64") > 1
    for item, text in ((bundle, "layers mapped"), (verdict, "passed"), (latency, "median ms")):
        assert item._repr_html_().startswith("<pre")
        assert text in item._repr_html_()


def test_nothing_is_printed(bundle, capfd):
    """
    Unless progress is asked for, which goes to stderr.
    """
    bundle.check_parity(layers=False)
    bundle.check_parity(layers=False)._repr_html_()

    assert ("", "") == capfd.readouterr()


@pytest.mark.slow
def test_a_wrong_file_does_not_pass(tmp_path):
    """
    The negative: one weight of the file is another, under a hash that fits.
    """
    copy = coordatt_deploy.export(Net(), EXAMPLE, tmp_path / "net", formats=["onnx"])
    (artifact,) = copy.artifacts
    model = onnx.load(copy.root / artifact.path)
    head = next(item for item in model.graph.initializer if item.name == "head.weight")
    head.CopyFrom(numpy_helper.from_array(1.001 * numpy_helper.to_array(head), "head.weight"))
    with writing(copy.root, copy.manifest.model.source_sha256) as staging:
        onnx.save(model, staging / artifact.path)
        manifest = (staging / "manifest.json").read_text()
        (staging / "manifest.json").write_text(manifest.replace(artifact.sha256, sha256(staging / artifact.path)))

    verdict = coordatt_deploy.open_bundle(copy.root).check_parity()

    assert not verdict.passed
    assert "head" == verdict.artifacts[0].layers.first_diverging_layer


@pytest.mark.slow
def test_int8_and_its_accuracy(tmp_path):
    """
    The embedded network by its name, quantized on the digits and evaluated on them.
    """
    bundle = coordatt_deploy.export("mobilenetv2_ca_035.digits", output_dir=tmp_path / "digits", formats=["onnx"])

    bundle = bundle.quantize()
    found = bundle.evaluate("digits", limit=20, workers=1)

    assert ["fp32", "int8"] == [item.precision for item in bundle.artifacts]
    assert 3 == len(found.subjects)
    assert "top-1" in found._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "keywords", "said"),
    [
        ((Net(),), {}, "example is missing"),
        ((Net(), torch.zeros(1, 3, 8, 8, dtype=torch.int64)), {}, "torch.int64"),
        ((3, EXAMPLE), {}, "expected a torch.nn.Module"),
        ((Net(), EXAMPLE), {"formats": ["onx"]}, "onnx"),
        ((Net(), EXAMPLE), {"preprocessing": {"meen": 0}}, "mean"),
        ((Net(), (torch.zeros(1, 4, 8, 8),)), {"formats": ["onnx"]}, "channels"),
        (("mobilenet_v9",), {}, "mobilenet"),
    ],
)
def test_a_mistake_is_one_error_that_says_what_to_do(arguments, keywords, said, tmp_path):
    """
    Of a kind that callers catch, before anything is written.
    """
    with pytest.raises(coordatt_deploy.UsageError, match=said):
        coordatt_deploy.export(*arguments, output_dir=tmp_path / "net", **keywords)

    assert not (tmp_path / "net").exists()


def test_importing_loads_nothing():
    """
    Neither torch nor NumPy; an unknown name is an AttributeError.
    """
    code = (
        "import sys, coordatt_deploy as c; assert not {'torch', 'numpy', 'rich'} & sys.modules.keys();"
        "assert not hasattr(c, 'exprot'); assert {'export', 'open_bundle', 'Bundle'} <= set(dir(c))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_board_without_torch_measures(bundle):
    """
    What only runs artifacts needs no torch.
    """
    code = (
        "import sys; sys.modules['torch'] = None; import coordatt_deploy;"
        f"b = coordatt_deploy.open_bundle({str(bundle.root)!r});"
        "assert b.measure_latency(samples=20, min_seconds=0).results;"
        "v = b.check_parity(); assert v.artifacts[0].passed is True, v"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_public_name_is_a_modules():
    """
    ``coordatt_deploy.export`` stays the function, whatever is imported.
    """
    modules = {item.name for item in pkgutil.iter_modules(coordatt_deploy.__path__)}

    assert not modules & set(coordatt_deploy.__all__)


def test_a_script_without_a_guard_runs_once(tmp_path):
    """
    Worker processes do not import the caller's script, in which the network's class stands.
    """
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\nfrom torch import nn\nimport coordatt_deploy\n"
        "print('begun')\n"
        "class Small(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.conv = nn.Conv2d(3, 4, 3)\n"
        "    def forward(self, image):\n        return self.conv(image).relu()\n"
        "bundle = coordatt_deploy.export(Small(), torch.zeros(1, 3, 8, 8), 'small', formats=['onnx', 'coreml'])\n"
        "print(bundle.check_parity().passed, len(bundle.artifacts))\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert "begun\nTrue 3\n" == done.stdout
    assert "" == done.stderr
