"""Names for a model's inputs and outputs that stay the same in every format.

A single image is ``image`` and a single matrix is ``logits``, whatever the user's code calls them. Several inputs are
called as in ``forward``'s signature. Nested outputs are flattened: keys of a dict and names of a named tuple are used
as they stand, places in a list or tuple are numbered after ``output``, and the parts of a path are joined by ``_``.
"""

import inspect
import re
from typing import Final

import torch
from torch import nn
from torch.utils import _pytree as pytree

from coordatt_deploy.errors import UsageError

IMAGE: Final = "image"


def input_names(module: nn.Module, given: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Return a name per input.

    Args:
        module: Its ``forward`` is looked at; arguments with a default value keep it and are no inputs.
        given: Names that are known already; empty to look.

    Raises:
        UsageError: ``forward`` takes no input, or one by keyword only.
    """
    names = given
    if not names:
        parameters = inspect.signature(module.forward).parameters.values()
        required = [item for item in parameters if item.default is inspect.Parameter.empty]
        by_keyword = [item.name for item in required if item.kind is inspect.Parameter.KEYWORD_ONLY]
        if by_keyword:
            raise UsageError(
                f"forward takes {', '.join(by_keyword)} by keyword only; export passes inputs in order, so drop the *"
            )
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        names = tuple(item.name for item in required if item.kind in positional)
        if not names and any(item.kind is inspect.Parameter.VAR_POSITIONAL for item in parameters):
            names = (IMAGE,)
    if not names:
        raise UsageError("forward takes no input; a model for export takes at least one tensor")
    return (IMAGE,) if len(names) == 1 else tuple(_plain(name) for name in names)


def output_names(returned: object, inputs: tuple[str, ...] = ()) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a name per tensor in what a model returned, and where it returned something else.

    Args:
        returned: What ``forward`` gave: a tensor, or tensors in lists, tuples, named tuples and dicts.
        inputs: Names that are taken.

    Raises:
        UsageError: There is no tensor in it.
    """
    leaves = pytree.tree_leaves_with_path(returned)
    tensors = [path for path, leaf in leaves if isinstance(leaf, torch.Tensor)]
    others = tuple(_path_name(path) or "output" for path, leaf in leaves if not isinstance(leaf, torch.Tensor))
    if not tensors:
        kind = type(returned).__name__
        raise UsageError(
            f"the model returns a {kind} without a tensor in it; return tensors, alone or in a tuple or dict"
        )
    if len(leaves) == 1 and all(isinstance(key, pytree.SequenceKey) for key in tensors[0]):
        matrix = pytree.tree_leaves(returned)[0].ndim == 2
        return ("logits" if matrix else "output",), others
    names: list[str] = []
    for path in tensors:
        name = base = _path_name(path)
        count = 1
        while name in names or name in inputs:
            count += 1
            name = f"{base}_{count}"
        names.append(name)
    return tuple(names), others


def _path_name(path: pytree.KeyPath) -> str:
    parts = []
    for key in path:
        if isinstance(key, pytree.MappingKey):
            parts.append(str(key.key))
        elif isinstance(key, pytree.GetAttrKey):
            parts.append(key.name)
        elif isinstance(key, pytree.SequenceKey):
            parts.append(str(key.idx) if parts else f"output_{key.idx}")
    return _plain("_".join(parts))


def _plain(name: str) -> str:
    """Letters, digits and underscores, not beginning with a digit: what every format takes."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII)
    return plain if plain and not plain[0].isdigit() else f"output_{plain}"
