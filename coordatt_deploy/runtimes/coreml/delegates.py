"""What the Neural Engine takes of an ML Program.

Apple publishes no list. The table holds only what measurements on devices or Apple's documentation say: what is not in
it may still be refused.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from coordatt_deploy.runtimes.delegate import Delegate, looked_up
from coordatt_deploy.runtimes.file_graph import FileGraph


@dataclass(frozen=True, slots=True)
class Reason:
    """Why the Neural Engine leaves an operator to the CPU, and who says so."""

    text: str
    source: str


_COMPUTE_PLANS = "compute plans recorded on devices, e.g. huggingface.co/mickekringai/kb-whisper-coreml"
_NO_PATH = Reason("the engine has no hardware path for it", "https://ane-guide.readthedocs.io, part 1, chapter 4")
ENGINE_REJECTS: Final[Mapping[str, Reason]] = {
    **dict.fromkeys(
        ("gather", "gather_nd", "gather_along_axis"), Reason("Core ML places it on the CPU", _COMPUTE_PLANS)
    ),
    **dict.fromkeys(("scatter", "scatter_nd", "scatter_along_axis", "reduce_prod", "lstm", "gru", "rnn"), _NO_PATH),
}
ENGINE_FP16: Final = Reason(
    "the engine computes in float16 only; a float32 program stays on CPU and GPU",
    "https://apple.github.io/coremltools/docs-guides/source/typed-execution.html",
)
ENGINE_FLEXIBLE: Final = Reason(
    "sizes within a range keep the whole program off the engine at every size but the default one",
    "https://github.com/apple/coremltools/issues/2370",
)
ENGINE_RANK: Final = 5
WHOLE: Final = "every operator"


def neural_engine(graph: FileGraph) -> Delegate:
    """Look up what is known of the Neural Engine's refusals in an ML Program."""
    whole: Reason | None = None
    kinds = Counter(tensor.dtype for tensor in graph.tensors.values() if tensor.bytes is None)
    if kinds["float32"] > kinds["float16"]:
        whole = ENGINE_FP16
    elif graph.flexible:
        whole = ENGINE_FLEXIBLE
    if whole is not None:
        everything = {(WHOLE, whole.text): len(graph.nodes)}
        return looked_up("neural_engine", graph, everything, whole.source)
    reasons: Counter[tuple[str, str]] = Counter()
    sources = []
    for node in graph.nodes:
        rank = max((len(graph.shape(name)) for name in (*node.inputs, *node.outputs)), default=0)
        known = ENGINE_REJECTS.get(node.operator)
        if known is not None:
            reasons[node.operator, known.text] += 1
            sources.append(known.source)
        elif rank > ENGINE_RANK:
            reasons[node.operator, f"it has a tensor of {rank} axes; Core ML takes {ENGINE_RANK}"] += 1
    source = "; ".join(dict.fromkeys(sources)) or "nothing in it is known to be refused; Apple publishes no list"
    return looked_up("neural_engine", graph, reasons, source)
