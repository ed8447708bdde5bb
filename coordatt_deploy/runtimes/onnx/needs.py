"""What an ONNX file needs: ONNX Runtime opens what is of no newer opset and IR version than the ONNX that it has."""

from collections.abc import Iterable
from typing import Final

from coordatt_deploy.runtime_versions import RuntimeNeeds, in_order

# The first release of ONNX Runtime with kernels for each opset of ai.onnx, and the first that reads each IR version
# (https://onnxruntime.ai/docs/reference/compatibility.html). ONNX Runtime 1.15.1 was seen to open opsets 14 to 18, and
# of 19 to have no Reshape, so that opset is counted from the next release on.
OPSETS: Final = {
    7: "0.1", 8: "0.1", 9: "0.3", 10: "0.4", 11: "1.0", 12: "1.3", 13: "1.6", 14: "1.8", 15: "1.10", 16: "1.11",
    17: "1.12", 18: "1.14", 19: "1.16", 20: "1.17", 21: "1.18", 22: "1.21",
}  # fmt: skip
IR_VERSIONS: Final = {3: "0.1", 4: "0.4", 5: "0.4", 6: "1.0", 7: "1.4", 8: "1.10", 9: "1.16", 10: "1.18"}
OWN_DOMAINS: Final = ("", "ai.onnx")


def runtime_needs(ir_version: int, opsets: Iterable[tuple[str, int]]) -> RuntimeNeeds:
    """Return what a file needs.

    Args:
        ir_version: That it says.
        opsets: Domain and version of each that it imports.
    """
    opset = max((version for domain, version in opsets if domain in OWN_DOMAINS), default=0)
    versions = {"ir": ir_version, "opset": opset}
    asked = {f"opset {opset}": _first(OPSETS, opset), f"IR version {ir_version}": _first(IR_VERSIONS, ir_version)}
    unknown = [what for what, least in asked.items() if least is None]
    if unknown:
        return RuntimeNeeds({}, " and ".join(unknown), versions)
    because, least = max(asked.items(), key=lambda item: in_order(str(item[1])))
    return RuntimeNeeds({"onnxruntime": str(least)}, because, versions)


def newest_opset(runtime: str) -> int | None:
    """Return the newest opset that a version of ONNX Runtime opens; None where it is older than all."""
    known = [opset for opset, least in OPSETS.items() if in_order(least) <= in_order(runtime)]
    return max(known, default=None)


def _first(table: dict[int, str], version: int) -> str | None:
    return table.get(max(version, min(table)))
