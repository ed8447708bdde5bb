"""Get a module out of a program that ``torch.export.save`` wrote.

torch's reader of these files can be made to run what is pickled in them: read only programs that you trust.
"""

import zipfile
from pathlib import Path
from typing import SupportsInt

import torch

from coordatt_deploy.errors import UsageError
from coordatt_deploy.graph.graph import aten
from coordatt_deploy.graph.passes.functionalise import DROPOUTS
from coordatt_deploy.loading.checkpoints import check_file, check_members
from coordatt_deploy.loading.factories import LoadedModule
from coordatt_deploy.user_code import quietly


def build_program(path: Path, input_size: tuple[int, int] | None, batch: int | None = None) -> LoadedModule:
    """Read a program that ``torch.export.save`` wrote.

    Args:
        path: The ``.pt2`` file.
        input_size: (H, W) that the user asks for; None for the saved one.
        batch: Of the inputs whose first axis the program leaves open; None for one image, and the saved number of what
            is none.

    Raises:
        UsageError: It is no such file, is damaged, was saved in training mode, or for another size.
    """
    check_file(path, "program", "a .pt2 file that torch.export.save wrote")
    if zipfile.is_zipfile(path):
        check_members(path, "program")
    program = quietly(
        lambda: torch.export.load(path),
        f"program {path.name} cannot be read by torch {torch.__version__}; is it whole, and saved by"
        " torch.export.save? It raises",
    )
    _refuse_training(program, path.name)
    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    names = tuple(str(name) for name in program.graph_signature.user_inputs)
    shapes = []
    for name in names:
        if not isinstance(values.get(name), torch.Tensor):
            raise UsageError(
                f"program {path.name} takes {name}, which is no tensor; save it with tensors as inputs only"
            )
        shapes.append(_saved_shape(values[name], input_size, path.name, program, batch))
    image = next((shape for shape in shapes if len(shape) == 4), None)
    size = None if image is None else (image[2], image[3])
    return LoadedModule(
        module=program.module(), name=path.stem, input_size=size, inputs=names, shapes=tuple(shapes), is_program=True
    )


def _saved_shape(
    value: torch.Tensor,
    input_size: tuple[int, int] | None,
    file: str,
    program: torch.export.ExportedProgram,
    batch: int | None = None,
) -> tuple[int, ...]:
    """The shape of an input with the user's size put in where the program leaves it open."""
    wanted: list[int | None] = [1, None, *input_size] if input_size and value.ndim == 4 else [None] * value.ndim
    if value.ndim == 4:
        wanted[0] = batch or 1
    elif batch is not None and value.ndim and not isinstance(value.shape[0], int):
        wanted[0] = batch
    shape = []
    for axis, (saved, want) in enumerate(zip(value.shape, wanted, strict=True)):
        if isinstance(saved, int):
            if want not in (None, saved):
                text = " x ".join(str(item) for item in value.shape)
                what = (
                    f"a batch of {wanted[0]}"
                    if axis == 0
                    else f"an input of {input_size[0]}x{input_size[1]}"
                    if input_size
                    else ""
                )
                raise UsageError(
                    f"program {file} was saved for inputs of {text} and takes nothing else, but {what} was asked for;"
                    " save it again with that size, or with dynamic_shapes"
                )
            shape.append(saved)
            continue
        bounds = program.range_constraints.get(saved.node.expr)
        low, high = (1, None) if bounds is None else (int(bounds.lower), _finite(bounds.upper))
        if want is not None and (want < low or (high is not None and want > high)):
            raise UsageError(f"program {file} takes sizes from {low} to {high or 'any'} on axis {axis}, not {want}")
        shape.append(want if want is not None else int(saved.node.hint) if saved.node.hint is not None else low)
    return tuple(shape)


def _finite(bound: SupportsInt) -> int | None:
    try:
        return int(bound)
    except (OverflowError, TypeError, ValueError):
        return None


def _refuse_training(program: torch.export.ExportedProgram, file: str) -> None:
    for node in program.graph.nodes:
        norm = node.target is aten.batch_norm.default and node.args[5] is True and node.args[3] is not None
        if norm or (node.target in DROPOUTS and node.args[2] is True):
            raise UsageError(
                f"program {file} was saved in training mode ({node.name} computes as in training);"
                " call model.eval() before torch.export.export and save it again"
            )
