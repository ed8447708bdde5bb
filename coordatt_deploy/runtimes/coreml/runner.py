"""Open ``.mlpackage`` files: with Core ML itself on macOS, with the ML Program evaluator everywhere else.

Both give the same kind of runner, and each result says which it was: ``measured`` or ``evaluated``. The artifact on
disk is never touched; Core ML gets a copy, because its package reader writes to what it opens.
"""

import json
import platform
import shutil
import sys
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from coordatt_deploy import __version__
from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, Origin, TensorSpec
from coordatt_deploy.errors import BundleError, UsageError
from coordatt_deploy.runtimes import Runner
from coordatt_deploy.runtimes.coreml.coremltools_import import coremltools as ct
from coordatt_deploy.runtimes.coreml.coremltools_import import proto
from coordatt_deploy.runtimes.coreml.evaluator.package import (
    block_of,
    inner_ports,
    input_ports,
    load,
    output_names,
    read_model,
)
from coordatt_deploy.runtimes.coreml.evaluator.program import Port, Program
from coordatt_deploy.scratch import Scratch

Arrays = dict[str, NumberArray]

PIXELS = "uint8"  # of an image input; no array input of Core ML has this type
PROBABILITIES = "classLabel_probs"  # as coremltools calls it

_FEATURE_TYPES = {"float16": "FLOAT16", "float32": "FLOAT32", "int32": "INT32"}


def open_artifact(
    path: Path,
    artifact: Artifact,
    *,
    threads: int = 1,
    tensors: tuple[str, ...] = (),
    exact_sums: bool = False,  # noqa: ARG001 - it computes the same wherever it runs
) -> Runner:
    """Open the package at *path*; see ``Runtime.open_artifact``.

    ``threads`` holds for the evaluator's matrix products; Core ML chooses its own.

    Raises:
        BundleError: The package is damaged, or has no tensor of a name asked for.
        UnknownOperatorError: It cannot be evaluated; it needs Core ML itself.
    """
    if core_ml_works():
        return CoreMLRunner(path, artifact, tensors)
    return EvaluatorRunner(path, artifact, threads, tensors)


def core_ml_works() -> bool:
    """Whether this machine is a Mac whose coremltools can run models."""
    if sys.platform != "darwin":
        return False
    try:
        # only coremltools on a Mac has it
        from coremltools.libcoremlpython import _MLModelProxy
    except ImportError:
        return False
    return _MLModelProxy is not None


class EvaluatorRunner:
    """A package run by the ML Program evaluator, operator by operator."""

    runtime = f"ML Program evaluator {__version__}"
    origin = Origin.EVALUATED

    def __init__(self, path: Path, artifact: Artifact, threads: int, tensors: tuple[str, ...]) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.program: Program = load(path)
        program = self.program
        found = _names(program.inputs), _names(program.outputs)
        self._wanted = _checked(*found, program.names, artifact, tensors, path)
        self._limited = partial(ThreadpoolController().limit, limits=threads, user_api="blas")

    def infer(self, feeds: Mapping[str, NumberArray]) -> Arrays:
        """Run once; see ``Runner.infer``.

        Raises:
            UsageError: The feeds do not fit the package's inputs.
        """
        fed = program_feeds(self.program.inputs, self.inputs, feeds)
        with self._limited():
            values = self.program.evaluate(fed, self._wanted)
        results = {spec.name: values[spec.name].astype(spec.dtype, copy=False) for spec in self.outputs}
        for name in self._wanted:
            if name not in results:
                results[name] = _as_float(self.program.dequantized(name, values[name]))
        return results

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class CoreMLRunner:
    """A package run by Core ML on the CPU, of which the numerics do not depend on the Mac's other units."""

    origin = Origin.MEASURED

    def __init__(self, path: Path, artifact: Artifact, tensors: tuple[str, ...]) -> None:
        self.inputs, self.outputs = artifact.inputs, artifact.outputs
        self.runtime = f"Core ML, macOS {platform.mac_ver()[0]}"
        model, _ = read_model(path)
        self._ports = input_ports(model)
        inner = inner_ports(model).keys()
        wanted = _checked(_names(self._ports), output_names(model), inner, artifact, tensors, path)
        described = model.description
        self._labels: list[str] | None = (
            json.loads(described.metadata.userDefined["labels"]) if described.predictedFeatureName else None
        )
        self._tensors = wanted[len(artifact.outputs) :]
        self._folder = Scratch()
        copy = self._folder.folder / path.name
        shutil.copytree(path, copy)
        if self._tensors:
            mark_outputs(copy, self._tensors)
        try:
            self._model = ct.models.MLModel(str(copy), compute_units=ct.ComputeUnit.CPU_ONLY)
        except Exception as error:  # Core ML raises whatever its compiler says
            self._folder.remove()
            raise BundleError(f"Core ML cannot open {path.name}: {error}") from error

    def infer(self, feeds: Mapping[str, NumberArray]) -> Arrays:
        """Run once; see ``Runner.infer``.

        Raises:
            UsageError: The feeds do not fit the package's inputs.
        """
        program_feeds(self._ports, self.inputs, feeds)  # checks them
        images = {spec.name for spec in self.inputs if spec.dtype == PIXELS}
        values = self._model.predict(
            {name: _as_image(array[0]) if name in images else np.asarray(array) for name, array in feeds.items()}
        )
        if self._labels is not None:  # a classifier gives its values by name of class
            (spec,) = self.outputs
            values[spec.name] = [[values[PROBABILITIES][label] for label in self._labels]]
        results = {spec.name: np.array(values[spec.name]).astype(spec.dtype, copy=False) for spec in self.outputs}
        for name in self._tensors:
            results[name] = _as_float(np.array(values[name]))
        return results

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._folder.remove()


def _as_image(pixels: NumberArray) -> Image.Image:
    """(H, W, C) of bytes as Core ML takes them; one channel is grey."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def program_feeds(ports: tuple[Port, ...], specs: tuple[TensorSpec, ...], feeds: Mapping[str, NumberArray]) -> Arrays:
    """Return the feeds as the program itself takes them: images (1, H, W, 3) of bytes as (1, 3, H, W) of floats.

    Raises:
        UsageError: The text says what was received and what is expected.
    """
    if set(feeds) != {port.name for port in ports}:
        wanted = ", ".join(port.name for port in ports)
        raise UsageError(f"the inputs given are {', '.join(sorted(feeds)) or 'none'}; the package takes {wanted}")
    fed: Arrays = {}
    types = {spec.name: spec.dtype for spec in specs}
    for port in ports:
        array, wanted = np.asarray(feeds[port.name]), types.get(port.name, port.dtype)
        if array.dtype != wanted:
            raise UsageError(f"{port.name} is {array.dtype}, the package takes {wanted}")
        if wanted == PIXELS and array.ndim == 4:
            array = np.ascontiguousarray(array.transpose(0, 3, 1, 2).astype(np.float32))
        fed[port.name] = array
        refusal = port.refuses(array.shape)
        if refusal is not None:
            raise UsageError(refusal)
    return fed


def mark_outputs(package: Path, tensors: tuple[str, ...]) -> None:
    """Make inner tensors outputs of the *package* as well, by editing its specification in place.

    Raises:
        BundleError: Core ML cannot give out a tensor of that type.
    """
    model, folder = read_model(package)
    ports = inner_ports(model)
    for name in tensors:
        port = ports[name]
        if port.dtype not in _FEATURE_TYPES:
            raise BundleError(f"Core ML cannot give out {name} of {package.name}: it is of type {port.dtype}")
        block_of(model).outputs.append(name)
        array = model.description.output.add(name=name).type.multiArrayType
        array.dataType = proto.FeatureTypes_pb2.ArrayFeatureType.ArrayDataType.Value(_FEATURE_TYPES[port.dtype])
        if None not in port.shape:
            array.shape.extend(port.shape)
    (folder / "model.mlmodel").write_bytes(model.SerializeToString())


def _checked(
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    inner: Collection[str],
    artifact: Artifact,
    tensors: tuple[str, ...],
    path: Path,
) -> tuple[str, ...]:
    """The artifact's outputs and the *tensors* that are asked for beside them, if the package has them all."""
    for what, found, specs in (("inputs", inputs, artifact.inputs), ("outputs", outputs, artifact.outputs)):
        if sorted(found) != sorted(_names(specs)):
            wanted = ", ".join(_names(specs))
            raise BundleError(f"{path.name} has the {what} {', '.join(found)}; the manifest says {wanted}")
    missing = sorted(set(tensors) - set(inner) - set(inputs))
    if missing:
        raise BundleError(f"{path.name} has no tensor {', '.join(missing)}: the layer map belongs to another file")
    return tuple(dict.fromkeys((*_names(artifact.outputs), *tensors)))


def _names(specs: tuple[TensorSpec, ...] | tuple[Port, ...]) -> tuple[str, ...]:
    return tuple(spec.name for spec in specs)


def _as_float(value: NumberArray) -> NumberArray:
    """Widen what is not float yet; fp16 becomes float32 without loss."""
    return value if value.dtype in (np.float32, np.float64) else value.astype(np.float32)
