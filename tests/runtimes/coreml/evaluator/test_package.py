"""Reading packages: unknown operators, damage, and what is left alone."""

import inspect
import subprocess
import sys

import numpy as np
import pytest
from mil_programs import evaluate, mb, noise, save, small

from coordatt_deploy.errors import BundleError
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools as ct
from coordatt_deploy.runtimes.coreml.evaluator import package as reading
from coordatt_deploy.runtimes.coreml.evaluator.operators import OPERATORS
from coordatt_deploy.runtimes.coreml.evaluator.package import UnknownOperatorError, block_of, load, read_model


def test_unknown_operator_is_named():
    """
    An operator that is not in the table is named with the tensor that it makes, before anything is computed.
    """
    assert "cumsum" not in OPERATORS

    with pytest.raises(UnknownOperatorError, match=r"operator cumsum \(first at running\).*macOS") as caught:
        evaluate(lambda a: mb.relu(x=mb.cumsum(x=a, axis=0, name="running")), noise(3))
    assert 3 == caught.value.exit_code


@pytest.mark.parametrize(
    "damage", ["missing", "no manifest", "manifest", "outside", "model", "weights", "half the weights", "network"]
)
def test_a_damaged_package_is_one_clear_line(damage, tmp_path):
    """
    Whatever is wrong with a package, the error is ours, names it and gives exit code 2.
    """
    package = save(tmp_path, lambda a: mb.mul(x=a, y=noise(40, 40)), [noise(40, 40)])
    manifest, data = package / "Manifest.json", package / "Data/com.apple.CoreML"
    match damage:
        case "missing":
            package = package.with_name("other.mlpackage")
        case "no manifest":
            manifest.unlink()
        case "manifest":
            manifest.write_text(manifest.read_text()[:40])
        case "outside":
            manifest.write_text(manifest.read_text().replace("com.apple.CoreML/model.mlmodel", "../../secret"))
        case "model":
            (data / "model.mlmodel").write_bytes((data / "model.mlmodel").read_bytes()[:-25])
        case "weights":
            (data / "weights/weight.bin").unlink()
        case "half the weights":
            weights = data / "weights/weight.bin"
            weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
        case "network":
            builder = ct.models.neural_network.NeuralNetworkBuilder(
                [("a", ct.models.datatypes.Array(1))], [("b", ct.models.datatypes.Array(1))]
            )
            (data / "model.mlmodel").write_bytes(builder.spec.SerializeToString())

    with pytest.raises(BundleError, match=r"\.mlpackage") as caught:
        load(package)
    assert 2 == caught.value.exit_code
    assert "\n" not in str(caught.value)


def test_the_package_is_not_written_to(package):
    """
    Reading changes no byte and no time stamp of the package.
    """
    before = {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in package.rglob("*")}

    load(package).evaluate({"a": noise(1, 3, 6, 6)}, ["logits"])

    assert before == {
        path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in package.rglob("*")
    }


def test_torch_is_not_needed(package):
    """
    Where torch is not installed the evaluator works, and gives the same numbers.
    """
    np.save(package.parent / "x.npy", noise(1, 3, 6, 6))
    script = inspect.cleandoc(f"""
        import sys
        sys.modules["torch"] = None
        import numpy as np
        from pathlib import Path
        from coordatt_deploy.runtimes.coreml.evaluator.package import load
        folder = Path({str(package.parent)!r})
        values = load(folder / "net.mlpackage").evaluate({{"a": np.load(folder / "x.npy")}}, ["logits"])
        np.save(folder / "y.npy", values["logits"])
    """)

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    expected = load(package).evaluate({"a": noise(1, 3, 6, 6)}, ["logits"])["logits"]
    np.testing.assert_array_equal(expected, np.load(package.parent / "y.npy"))


def test_a_value_beyond_any_network_is_refused(tmp_path, monkeypatch):
    """
    By the shapes that the loader infers.
    """
    saved = save(tmp_path, small, [noise(1, 3, 8, 8)])
    load(saved)
    monkeypatch.setattr(reading, "LARGEST_VALUE", 100)

    with pytest.raises(BundleError, match="more than 100 numbers"):
        load(saved)


def test_constants_that_take_all_memory_are_refused(tmp_path):
    """
    The loader computes what works on constants alone: a few bytes ask for 32 GiB.
    """
    saved = save(tmp_path, lambda a: mb.add(x=a, y=mb.fill(shape=[4], value=1.0)), [noise(4)])
    model, folder = read_model(saved)
    for operation in block_of(model).operations:
        value = operation.attributes["val"].immediateValue.tensor if operation.type == "const" else None
        if value is not None and list(value.ints.values) == [4]:
            value.ints.values[0] = (1 << 31) - 1
            value.ints.values.append(4)
            operation.attributes["val"].type.tensorType.dimensions[0].constant.size = 2
            operation.outputs[0].type.tensorType.dimensions[0].constant.size = 2
    (folder / "model.mlmodel").write_bytes(model.SerializeToString())

    with pytest.raises(BundleError, match="MemoryError"):
        load(saved)
