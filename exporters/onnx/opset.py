"""Write a model in another opset, through ONNX's own version converter, and prove that it still says the same.

torch writes opset 18 natively and no older one. The converter has no way down for every operator, and leaves attributes
behind that the older operator does not have; those that say what is so anyway are taken off here, and any other is an
error.
"""

from typing import Final

import onnx
from onnx import defs, helper, version_converter

from coordatt_deploy.errors import ConversionError
from coordatt_deploy.exporters import ExportRequest
from coordatt_deploy.formats import Format
from coordatt_deploy.runtime_versions import RuntimeLimits
from coordatt_deploy.runtimes.argument_checks import first_line
from coordatt_deploy.runtimes.onnx.needs import OPSETS, newest_opset

NAMELESS: Final = ("", "ai.onnx")


def in_opset(model: onnx.ModelProto, request: ExportRequest) -> onnx.ModelProto:
    """Return *model* in the opset that is asked for, or in the newest that the oldest runtime opens.

    Raises:
        ConversionError: An operator cannot be written in it; the text has the lowest opset that can be.
    """
    present = opset_of(model)
    wanted = wanted_opset(request.limits, present)
    if wanted == present:
        return model
    try:
        return _converted(model, wanted)
    except ConversionError as error:
        raise ConversionError(f"{error}; {_instead(model, wanted, present)}") from error


def opset_of(model: onnx.ModelProto) -> int:
    """Return the opset of ai.onnx that a model is in."""
    return max((item.version for item in model.opset_import if item.domain in NAMELESS), default=0)


def wanted_opset(limits: RuntimeLimits, present: int) -> int:
    """Return the opset to write.

    Raises:
        ConversionError: The oldest runtime is older than every opset.
    """
    if limits.opset is not None:
        return limits.opset
    runtime = limits.of(Format.ONNX)
    newest = present if runtime is None else newest_opset(runtime)
    if newest is None:
        raise ConversionError(f"no opset is as old as ONNX Runtime {runtime}; give a newer one to --min-runtime")
    return min(present, newest)


def _converted(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    before = opset_of(model)
    try:
        converted = version_converter.convert_version(model, opset)
        for node in converted.graph.node:
            _without_newer_attributes(node, opset, before)
        onnx.checker.check_model(converted, full_check=True)
    except ConversionError:
        raise
    except Exception as error:  # the converter raises RuntimeError, the checker its own kinds
        said = first_line(error).rpartition("failed: ")[2]
        raise ConversionError(f"onnx.version_converter cannot write opset {opset}: {said}") from error
    lost = {name for node in model.graph.node for name in node.output} - {
        name for node in converted.graph.node for name in node.output
    }
    if lost:
        raise ConversionError(f"onnx.version_converter lost {', '.join(sorted(lost)[:3])} on the way to opset {opset}")
    return converted


def _without_newer_attributes(node: onnx.NodeProto, opset: int, before: int) -> None:
    """Take off attributes that the operator of *opset* does not have, where they say what it does anyway."""
    known = defs.get_schema(node.op_type, opset, node.domain).attributes
    for attribute in [item for item in node.attribute if item.name not in known]:
        newer = defs.get_schema(node.op_type, before, node.domain).attributes.get(attribute.name)
        usual = None if newer is None else newer.default_value
        same = usual is not None and helper.get_attribute_value(attribute) == helper.get_attribute_value(usual)
        # of Split: how many equal parts there are, which the number of outputs says as well
        if not same and (attribute.name != "num_outputs" or attribute.i != len(node.output)):
            raise ConversionError(
                f"{node.op_type} in {node.name} has {attribute.name}, which opset {opset} does not know"
            )
        node.attribute.remove(attribute)


def _instead(model: onnx.ModelProto, wanted: int, present: int) -> str:
    """Say which opset would do."""
    for opset in range(wanted + 1, present + 1) if wanted < present else range(wanted - 1, present - 1, -1):
        try:
            _converted(model, opset) if opset != present else None
        except ConversionError:
            continue
        which = "lowest" if wanted < present else "highest"
        return f"the {which} that works for this network is {opset}, for ONNX Runtime {OPSETS[opset]} and newer"
    return "leave --opset and --min-runtime out"
