"""ML Programs of a few operators: built with coremltools, saved, read back and evaluated."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from coordatt_deploy.exporters.coreml.export import write_package
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools as ct
from coordatt_deploy.runtimes.coreml.evaluator.package import block_of, load, read_model

from coremltools.converters.mil.backend.mil.load import load as to_proto  # isort: skip - after the quiet import
from coremltools.converters.mil.mil import Builder as mb  # isort: skip  # noqa: N813 - as everybody calls it
from coremltools.converters.mil.mil import types  # isort: skip

IOS16, IOS17, IOS18 = ct.target.iOS16, ct.target.iOS17, ct.target.iOS18
MIL_TYPES = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32, "bool": types.bool}
FEW = settings(max_examples=15, deadline=None)
BOTH = pytest.mark.parametrize("dtype", [np.float32, np.float16])


def save(folder, build, arrays, opset=IOS16, shapes=None):
    """Save the program that *build* makes of one placeholder per array."""
    specs = [
        mb.TensorSpec(shape, MIL_TYPES[array.dtype.name])
        for shape, array in zip(shapes or [array.shape for array in arrays], arrays, strict=True)
    ]
    # the builder takes the inputs' names from the function's signature
    main = {1: lambda a: build(a), 2: lambda a, b: build(a, b), 3: lambda a, b, c: build(a, b, c)}[len(arrays)]
    program = mb.program(input_specs=specs, opset_version=opset)(main)
    package = Path(tempfile.mkdtemp(dir=folder)) / "net.mlpackage"
    with tempfile.TemporaryDirectory() as weights:
        model = to_proto(program, weights, False, opset.value)
        stored = Path(weights) / "weight.bin"
        write_package(package, model.SerializeToString(), stored.read_bytes() if stored.exists() else None)
    return package


def evaluate(build, *arrays, opset=IOS16, operator=None):
    """Save, read back, evaluate; give the outputs in order. The program must hold *operator*."""
    with tempfile.TemporaryDirectory() as folder:
        package = save(Path(folder), build, arrays, opset)
        program = load(package)
        if operator is not None:
            assert operator in {operation.type for operation in block_of(read_model(package)[0]).operations}
    feeds = {port.name: array for port, array in zip(program.inputs, arrays, strict=True)}
    values = program.evaluate(feeds, [port.name for port in program.outputs])
    results = [values[port.name] for port in program.outputs]
    assert [port.dtype for port in program.outputs] == [result.dtype.name for result in results]
    return results[0] if len(results) == 1 else results


def noise(*shape, low=-3.0, high=3.0, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).uniform(low, high, shape).astype(dtype)


def double(array):
    return torch.from_numpy(np.asarray(array, dtype=np.float64))


def check(expected, actual, factor=1.0):
    """Hold a float32 result to *factor* times 1e-6, and an fp16 result to one rounding of the true value."""
    expected = np.asarray(expected, dtype=np.float64)
    assert expected.shape == actual.shape
    if actual.dtype == np.float16:
        with np.errstate(over="ignore"):
            half_step = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float64) / 2
        allowed = half_step * 1.001 + 2e-6 * factor * np.abs(expected)
        assert (np.abs(expected - actual) <= allowed).all()
    else:
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=1e-30)
        np.testing.assert_allclose(actual, expected, rtol=1e-6 * factor, atol=1e-6 * factor * min(scale, 1.0))


def check_sum(expected, actual):
    """For sums whose terms cancel: held to the size of the terms, about 1 here, not of the result."""
    expected = np.asarray(expected, dtype=np.float64)
    assert expected.shape == actual.shape
    half_step = 0.0
    if actual.dtype == np.float16:
        half_step = np.spacing(np.abs(expected).astype(np.float16)).astype(np.float64) / 2 * 1.001
    assert (np.abs(expected - actual) <= half_step + 1e-5).all()


def small(a):
    """Two convolutions and a head, with names."""
    first = mb.conv(x=a, weight=noise(8, 3, 3, 3, low=-1, high=1), pad_type="same", name="first")
    active = mb.relu(x=first, name="active")
    second = mb.conv(x=active, weight=noise(4, 8, 1, 1, low=-1, high=1, seed=1), pad_type="valid", name="second")
    return mb.reduce_mean(x=second, axes=[2, 3], name="logits")


def inner(test, *arguments):
    """Run a property test on one example of our choice."""
    return lambda: test.hypothesis.inner_test(*arguments)
