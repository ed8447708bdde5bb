"""Time per operator from ONNX Runtime's profiler, at the optimisation level and with the threads of a measurement.

The profiler tells of the operators that are left after ONNX Runtime's own optimisation. That graph is written out
beside, and each of its operators is counted with the layer of what it makes: fused ones keep the name of the last
tensor, those in blocked layout (NCHWc) have it in their own name, integer ones with the channels last have the name of
an operator of the file. What moves data is counted with what reads it. Whatever else is found by no name is counted
with no layer: its neighbours could be any.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import onnx
import onnxruntime as ort

from coordatt_deploy.array_types import NumberArray
from coordatt_deploy.artifact_specs import Artifact
from coordatt_deploy.errors import BundleError
from coordatt_deploy.runtimes.argument_checks import check_threads, checked, first_line
from coordatt_deploy.runtimes.file_graph import Node
from coordatt_deploy.runtimes.onnx.runner import session_options, start_session
from coordatt_deploy.runtimes.onnx.vocabulary import VOCABULARY
from coordatt_deploy.runtimes.operator_times import Method, TimedPart, owned_tensors, owners
from coordatt_deploy.scratch import Scratch

BLOCKED: Final = "_nchwc"  # behind the name of the tensor, in the names of operators in blocked layout
KERNEL: Final = "_kernel_time"
NUMBERED: Final = re.compile(r"_token_\d+$")  # what makes a name of ONNX Runtime's another one
INLINED: Final = "_inlfunc_"  # before the names of what is inside of an operator that is a function
MOVERS: Final = VOCABULARY.carriers | {"ReorderInput", "ReorderOutput"}


def open_clock(
    path: Path, artifact: Artifact, tensors: frozenset[str], feeds: Mapping[str, NumberArray], threads: int
) -> "OnnxOperatorClock":
    """See ``OperatorTimer.open_clock``."""
    check_threads(threads)
    scratch = Scratch()
    try:
        optimised = scratch.folder / "optimised.onnx"
        options = session_options(threads)
        options.enable_profiling = True
        options.profile_file_prefix = str(scratch.folder / "trace")
        options.optimized_model_filepath = str(optimised)
        session = start_session(path, options)
        graphs = (
            _nodes(onnx.load(path, load_external_data=False)),
            _nodes(onnx.load(optimised, load_external_data=False)),
        )
    except BundleError:
        scratch.remove()
        raise
    except Exception as error:  # onnx's exceptions share no base but Exception
        scratch.remove()
        raise BundleError(f"{path.name} cannot be profiled: {first_line(error)}; build the bundle again") from error
    return OnnxOperatorClock(session, scratch, checked(feeds, artifact.inputs), *graphs, tensors)


def _nodes(model: onnx.ModelProto) -> tuple[tuple[str, Node], ...]:
    """The operators with their names, which may be empty."""
    return tuple(
        (node.name, Node(node.op_type, tuple(node.input), tuple(node.output)))
        for node in model.graph.node
        if node.op_type != "Constant"
    )


class OnnxOperatorClock:
    """A session that is profiled; made by ``open_clock``."""

    method = Method.PROFILER

    def __init__(
        self,
        session: ort.InferenceSession,
        scratch: Scratch,
        feeds: Mapping[str, NumberArray],
        original: tuple[tuple[str, Node], ...],
        optimised: tuple[tuple[str, Node], ...],
        tensors: frozenset[str],
    ) -> None:
        self._session: ort.InferenceSession | None = session
        self._scratch, self._feeds = scratch, dict(feeds)
        self._original, self._optimised, self._tensors = original, optimised, tensors

    def run(self) -> None:
        """See ``OperatorClock.run``."""
        assert self._session is not None  # noqa: S101 - nobody runs it behind its end
        self._session.run(None, self._feeds)

    def parts(self) -> tuple[TimedPart, ...]:
        """See ``OperatorClock.parts``."""
        assert self._session is not None  # noqa: S101 - it ends once
        trace = Path(self._session.end_profiling()).read_text(encoding="utf-8")
        return join_trace(trace, self._original, self._optimised, self._tensors)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            self._session.end_profiling()
        self._session = None
        self._scratch.remove()


def join_trace(
    trace: str,
    original: Sequence[tuple[str, Node]],
    optimised: Sequence[tuple[str, Node]],
    tensors: frozenset[str],
) -> tuple[TimedPart, ...]:
    """Return the times of a trace, each with the tensor of the layer map that it belongs to.

    Args:
        trace: As ONNX Runtime writes it, of one run or several.
        original: The operators of the file, by name.
        optimised: Those of the optimised graph, in the order in which they run.
        tensors: Of the layer map.
    """
    times: dict[tuple[str, str, str], list[int]] = {}
    for event in json.loads(trace):
        if event.get("cat") == "Node" and event["name"].endswith(KERNEL):
            arguments = event["args"]
            key = event["name"].removesuffix(KERNEL), arguments["op_name"], arguments.get("node_index", "")
            times.setdefault(key, []).append(int(event["dur"]) * 1000)
    known = owned_tensors([node for _, node in original], tensors)
    of_operator = {name: node.outputs[0] for name, node in original if name and node.outputs}
    nodes = [_with_old_names(name, node, known, of_operator) for name, node in optimised]
    found = owners(nodes, known, _moves)
    in_order = [operator for _, operator, _ in times] == [node.operator for node in nodes]
    by_name = {name: owner for (name, _), owner in zip(optimised, found, strict=True) if name}
    return tuple(
        TimedPart(name, (operator,), found[place] if in_order else by_name.get(name), tuple(samples))
        for place, ((name, operator, _), samples) in enumerate(times.items())
    )


def _with_old_names(name: str, node: Node, known: Mapping[str, str], of_operator: Mapping[str, str]) -> Node:
    """Let an operator in another layout make the tensor of the file that it makes, in another order, as well.

    In blocked layout it is called after the tensor; with the channels last, its result or itself after the operator.
    """
    if any(output in known for output in node.outputs):
        return node
    stem = name.rpartition(BLOCKED)[0]
    names = (NUMBERED.sub("", text) for text in (*node.outputs, name))
    old = stem if stem in known else next((of_operator[text] for text in names if text in of_operator), None)
    return node if old is None else Node(node.operator, node.inputs, (*node.outputs, old))


def _moves(node: Node) -> bool:
    """Whether an operator moves data, or is inside of one that ONNX Runtime wrote out."""
    return node.operator in MOVERS or any(output.startswith(INLINED) for output in node.outputs)
