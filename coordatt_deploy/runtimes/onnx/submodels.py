"""Cut an ONNX artifact apart, for ONNX Runtime."""

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import onnx
import onnxruntime as ort

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact, TensorSpec
from coordatt_deploy.errors import BundleError
from coordatt_deploy.runtimes.argument_checks import checked, first_line
from coordatt_deploy.runtimes.onnx.runner import DTYPES, EXACT_SUMS, LOG_ERRORS, LOG_FATAL, PROVIDERS
from coordatt_deploy.runtimes.submodels import GIVEN


def open_pieces(
    path: Path, artifact: Artifact, tensors: tuple[str, ...], *, exact_sums: bool = False
) -> "OnnxSubmodels":
    """Cut the file at *path* apart at *tensors*; see ``SubmodelExtractor.open_pieces``."""
    options = ort.SessionOptions()
    if exact_sums:
        options.add_session_config_entry(*EXACT_SUMS)
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    options.log_severity_level = LOG_ERRORS
    try:
        model = cut(onnx.load(path), tensors)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=list(PROVIDERS))
    except Exception as error:  # onnx's and ONNX Runtime's exceptions share no base but Exception
        raise BundleError(f"{path.name} cannot be cut apart: {first_line(error)}; build the bundle again") from error
    return OnnxSubmodels(session, model, artifact, tensors, exact_sums=exact_sums)


def write_pieces(
    path: Path, artifact: Artifact, tensors: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]], target: Path
) -> Artifact:
    """Write the file at *path* cut apart; see ``SubmodelExtractor.write_pieces``."""
    model = onnx.load(path)
    types = _types(model)  # of the whole file: behind a cut they cannot all be inferred
    model = cut(model, tensors)
    own = {spec.name for spec in artifact.inputs}
    given = tuple(
        TensorSpec(
            value.name,
            (None,) * len(shapes[value.name.removesuffix(GIVEN)]),
            _dtype(value.type.tensor_type.elem_type),
            "",
        )
        for value in model.graph.input
        if value.name not in own
    )
    for value in model.graph.input:
        if value.name not in own:
            sizes = shapes[value.name.removesuffix(GIVEN)]
            kind = value.type.tensor_type.elem_type
            value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, sizes))
    returned = {spec.name for spec in artifact.outputs}
    made = tuple(
        TensorSpec(name, (None,) * len(shapes[name]), _dtype(types[name]), "")
        for name in tensors
        if name not in returned
    )
    onnx.save(model, target)
    return replace(artifact, inputs=artifact.inputs + given, outputs=artifact.outputs + made)


def cut(model: onnx.ModelProto, tensors: tuple[str, ...]) -> onnx.ModelProto:
    """Return *model* with every reader of one of *tensors* reading an input, and all of them outputs.

    Raises:
        BundleError: The model has no such tensor.
    """
    graph = model.graph
    types = _types(model)
    made = {name for node in graph.node for name in node.output}
    missing = [name for name in tensors if name not in made]
    if missing:
        raise BundleError(f"the file has no tensor {', '.join(missing[:3])}; the layer map belongs to another file")
    cuts = set(tensors)
    read: set[str] = set()
    for node in graph.node:
        for position, name in enumerate(node.input):
            if name in cuts:
                node.input[position] = name + GIVEN
                read.add(name)
    returned = {value.name for value in graph.output}
    for name in tensors:
        if name in read:
            graph.input.append(onnx.helper.make_tensor_value_info(name + GIVEN, types[name], None))
        if name not in returned:
            graph.output.append(onnx.ValueInfoProto(name=name))
    return model


def _dtype(elem_type: int) -> str:
    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type)).name)


def _types(model: onnx.ModelProto) -> Mapping[str, int]:
    """Element types of inner values: float, unless they are positions, class maps or masks."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = [*inferred.value_info, *inferred.output]
    return defaultdict(
        lambda: int(onnx.TensorProto.FLOAT),
        {v.name: v.type.tensor_type.elem_type for v in values if v.type.tensor_type.elem_type},
    )


def _piece(model: onnx.ModelProto, tensor: str) -> onnx.ModelProto:
    """Return what of *model*, cut apart, makes one tensor."""
    makers = {name: node for node in model.graph.node for name in node.output}
    wanted, needed = [tensor], {tensor}
    while wanted:
        node = makers.get(wanted.pop())
        sources = set(node.input) - needed if node is not None else set()
        wanted += sources
        needed |= sources
    graph = onnx.helper.make_graph(
        [node for node in model.graph.node if set(node.output) & needed],
        tensor,
        [value for value in model.graph.input if value.name in needed],
        [onnx.ValueInfoProto(name=tensor)],
        [value for value in model.graph.initializer if value.name in needed],
    )
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


class OnnxSubmodels:
    """The pieces in one session; made by ``open_pieces``."""

    def __init__(
        self,
        session: ort.InferenceSession,
        model: onnx.ModelProto,
        artifact: Artifact,
        tensors: tuple[str, ...],
        *,
        exact_sums: bool = False,
    ) -> None:
        self._session, self._model, self._exact_sums = session, model, exact_sums
        self._artifact = artifact
        self._tensors = tensors
        self._given = {
            value.name: DTYPES.get(value.type, "float32")
            for value in session.get_inputs()
            if value.name.endswith(GIVEN)
        }

    def infer(self, feeds: Mapping[str, NumberArray], given: Mapping[str, NumberArray]) -> dict[str, NumberArray]:
        """Run every piece; see ``Submodels.infer``."""
        arrays = dict(checked(feeds, self._artifact.inputs))
        for name, dtype in self._given.items():
            arrays[name] = np.ascontiguousarray(given[name.removesuffix(GIVEN)], dtype=dtype)
        try:
            return dict(zip(self._tensors, self._session.run(list(self._tensors), arrays), strict=True))
        except Exception:  # noqa: BLE001 - its exceptions share no base but this
            return self._one_by_one(arrays)

    def _one_by_one(self, arrays: Mapping[str, NumberArray]) -> dict[str, NumberArray]:
        """Run each piece by itself: one that is refused takes the others with it."""
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        if self._exact_sums:
            options.add_session_config_entry(*EXACT_SUMS)
        options.log_severity_level = LOG_FATAL  # what is refused is told by what is missing
        made = {}
        for name in self._tensors:
            with suppress(Exception):
                piece = _piece(self._model, name)
                session = ort.InferenceSession(piece.SerializeToString(), options, providers=list(PROVIDERS))
                (made[name],) = session.run([name], {value.name: arrays[value.name] for value in session.get_inputs()})
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
