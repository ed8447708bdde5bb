"""Get a module out of code that is not this package's: a factory of the user's, or timm.

Importing code runs it, which is what the user asked for by naming it. What it prints goes to a log file, and so does
the traceback if it raises; the screen gets one line that names the user's own line.
"""

import importlib
import importlib.util
import inspect
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Final, Protocol, cast

import torch
from torch import nn

from coordatt_deploy.artifact_specs import OutputKind, Preprocessing
from coordatt_deploy.errors import MissingDependencyError, UsageError, nearest
from coordatt_deploy.loading.checkpoints import check_file
from coordatt_deploy.loading.timm_preprocessing import check_size, read_config
from coordatt_deploy.logs import write_traceback
from coordatt_deploy.user_code import first_line, import_file, quietly, search_first


class Factory(Protocol):
    """What the user names: a function, a class, or a module that is built already."""

    def __call__(self, **arguments: object) -> object:
        """Give the model; what really comes back is looked at."""


# Names that say nothing of the model; the file's own name is used instead.
_GENERIC: Final = frozenset({
    "model", "net", "network", "factory", "build", "create", "make", "get", "main", "build_model", "create_model",
    "make_model", "get_model", "build_net", "get_net", "create_net", "Model", "Net", "Network",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoadedModule:
    """A module as it came, and what its source says of it.

    Attributes:
        module: Not yet checked.
        name: For file names.
        notes: For the user.
        input_size: (H, W) that it is meant for; None where unknown.
        preprocessing: Its own; None where unknown.
        labels: Its own; None where unknown.
        attention: Its attention block, where that is known without looking.
        inputs: Names of the inputs; empty to look at ``forward``.
        shapes: Of the inputs, where they are fixed.
        registry: The name under which this package lists it; None for everything else.
        is_program: Whether it is a saved program, whose mode is part of its operators.
        dataset: The packaged data that it was trained on; None for everything else.
        untrained: Whether its weights are known to be random.
        output_kinds: What outputs are, by name, where that is known of the architecture.
    """

    module: nn.Module
    name: str
    notes: tuple[str, ...] = ()
    input_size: tuple[int, int] | None = None
    preprocessing: Preprocessing | None = None
    labels: tuple[str, ...] | None = None
    attention: str | None = None
    inputs: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    registry: str | None = None
    is_program: bool = False
    dataset: str | None = None
    untrained: bool = False
    output_kinds: Mapping[str, OutputKind] = field(default_factory=dict)


def build_factory(name: str, arguments: Mapping[str, object], num_classes: int | None = None) -> LoadedModule:
    """Call the factory that ``package.module:factory`` or ``path/to/file.py:factory`` names.

    Args:
        name: As above; the factory may be a function, a class, a method of a class, or a module that is built already.
        arguments: Keyword arguments for it.
        num_classes: Passed on as ``num_classes``.

    Raises:
        UsageError: There is no such file, module or factory; it needs other arguments, raises, or returns no module.
    """
    place_of_code, colon, attribute = name.rpartition(":")
    if not colon or not attribute or not place_of_code or attribute.endswith(".py"):
        code_of = place_of_code or "path/to/file.py" if colon else name
        raise UsageError(f"{name} names no factory; add the function or class that gives the model: {code_of}:build")
    is_file = place_of_code.endswith(".py") or "/" in place_of_code or os.sep in place_of_code
    code = _import_file(Path(place_of_code)) if is_file else _import_module(place_of_code)
    found = _attribute(code, attribute, name)
    given = dict(arguments) | ({} if num_classes is None else {"num_classes": num_classes})
    if isinstance(found, nn.Module):
        if given:
            raise UsageError(f"{name} is a module that is built already and takes no arguments; leave them out")
        module: object = found
    else:
        _check_arguments(found, given, name)
        module = quietly(lambda: found(**given), f"{name} raises")
    return LoadedModule(module=_as_module(module, name), name=_model_name(attribute, Path(place_of_code)))


def _as_module(value: object, name: str) -> nn.Module:
    if isinstance(value, torch.jit.ScriptModule):
        raise UsageError(
            f"{name} returns a TorchScript module, which torch.export does not take; return the Python module"
        )
    if isinstance(value, nn.Module):
        for key, tensor in value.named_parameters():
            if isinstance(tensor, nn.UninitializedParameter):
                raise UsageError(f"{name}: {key} has no shape yet; run the model once before it is returned")
            if tensor.device.type == "meta":
                raise UsageError(f"{name}: {key} is on device meta, which holds no weights; build the model on the CPU")
        return value
    if isinstance(value, type) and issubclass(value, nn.Module):
        raise UsageError(f"{name} returns the class {value.__name__}; return an instance: {value.__name__}(...)")
    if isinstance(value, tuple | list) and any(isinstance(item, nn.Module) for item in value):
        raise UsageError(f"{name} returns a {type(value).__name__} of {len(value)}; return the torch.nn.Module alone")
    if inspect.iscoroutine(value):
        value.close()
        raise UsageError(f"{name} is an async function; write it without async, it is called and not awaited")
    raise UsageError(f"{name} returns a {type(value).__name__}; expected a torch.nn.Module")


def _import_file(path: Path) -> ModuleType:
    check_file(path, "file", "a .py file with the model in it")
    return import_file(path)


def _import_module(name: str) -> ModuleType:
    search_first(Path.cwd())
    try:
        missing = importlib.util.find_spec(name) is None
    except ModuleNotFoundError as error:
        if not name.startswith(f"{error.name}."):
            raise UsageError(f"importing {name} needs {error.name}, which is not installed") from error
        missing = True
    except (ImportError, ValueError, AttributeError):
        missing = True
    except Exception as error:  # the __init__.py of a package above
        log = write_traceback(error, "intake")
        raise UsageError(f"importing {name} raises {first_line(error)}; the traceback is in {log}") from error
    if missing:
        raise UsageError(
            f"there is no Python module {name!r} here or among the installed packages; run from the folder that holds"
            " its package, or name the file: path/to/file.py:factory"
        )
    return quietly(lambda: importlib.import_module(name), f"importing {name} raises")


def _attribute(code: ModuleType, attribute: str, name: str) -> Factory:
    found: object = code
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [key for key, value in vars(found).items() if not key.startswith("_") and _may_build(value, code)]
            hint = nearest(part, known) if known else "there is no function or class in it"
            raise UsageError(f"{name}: there is no {part!r} in {getattr(found, '__name__', attribute)}; {hint}")
        found = getattr(found, part)
    if not callable(found):
        raise UsageError(
            f"{name} is of type {type(found).__name__}; expected a function or class that gives a torch.nn.Module"
        )
    return cast(Factory, found)


def _may_build(value: object, code: ModuleType) -> bool:
    return isinstance(value, nn.Module) or (callable(value) and getattr(value, "__module__", None) == code.__name__)


def _check_arguments(factory: Factory, given: Mapping[str, object], name: str) -> None:
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some builtins have none
        return
    kinds = inspect.Parameter
    parameters = signature.parameters.values()
    known = [item.name for item in parameters if item.kind in (kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)]
    if not any(item.kind is kinds.VAR_KEYWORD for item in parameters):
        for key in given:
            if key not in known:
                takes = nearest(key, known) if known else "it takes none"
                raise UsageError(f"{name} has no argument {key!r}; {takes}")
    needed = [
        item.name
        for item in parameters
        if item.default is kinds.empty
        and item.kind in (kinds.POSITIONAL_ONLY, kinds.POSITIONAL_OR_KEYWORD, kinds.KEYWORD_ONLY)
        and item.name not in given
    ]
    if needed:
        shown = ", ".join(f'"{key}": ...' for key in needed)
        raise UsageError(f"{name} needs {', '.join(needed)}; give them as --model-args '{{{shown}}}'")


def _model_name(attribute: str, path: Path) -> str:
    last = attribute.rpartition(".")[2]
    if last not in _GENERIC:
        return last
    stem = path.stem if path.suffix == ".py" else str(path).rpartition(".")[2]
    return path.resolve().parent.name if stem == "__init__" else stem


def build_timm(
    name: str,
    arguments: Mapping[str, object],
    num_classes: int | None,
    *,
    loaded: bool = False,
    input_size: tuple[int, int] | None = None,
) -> LoadedModule:
    """Build a model of timm, with fresh weights unless *arguments* say ``{"pretrained": true}``.

    Args:
        name: As timm lists it.
        arguments: For ``timm.create_model``.
        num_classes: Passed on.
        loaded: Whether a checkpoint comes into it afterwards.
        input_size: (H, W) that the user asks for; None for the model's own.

    Raises:
        MissingDependencyError: timm is not installed.
        UsageError: timm has no such model, refuses the arguments, or builds it for another size.
    """
    try:
        timm = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        if error.name != "timm":
            raise
        raise MissingDependencyError(f"timm:{name} needs timm, which is not installed; run: pip install timm") from None
    known = timm.list_models()
    if name.partition(".")[0] not in known:
        raise UsageError(f"timm {timm.__version__} has no model {name!r}; {nearest(name.partition('.')[0], known)}")
    given = {"pretrained": False} | dict(arguments) | ({} if num_classes is None else {"num_classes": num_classes})
    module = quietly(lambda: timm.create_model(name, **given), f"timm.create_model({name!r}) raises")
    config = getattr(module, "pretrained_cfg", None) or {}
    check_size(name, config, input_size, given)
    weights = bool(given["pretrained"])
    known_of = read_config(config, pretrained=weights)
    fresh = ('timm\'s weights are fresh; give a --checkpoint or {"pretrained": true}',)
    return LoadedModule(
        module=_as_module(module, f"timm:{name}"),
        name=f"timm_{name}",
        notes=(*(() if weights or loaded else fresh), *known_of.notes),
        untrained=not (weights or loaded),
        input_size=_image_size(given) or known_of.preprocessing.size,
        preprocessing=known_of.preprocessing,
        labels=known_of.labels if weights else None,
    )


def _image_size(arguments: Mapping[str, object]) -> tuple[int, int] | None:
    """The (H, W) that timm was told to build a module of fixed size for."""
    size = arguments.get("img_size")
    pair = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    return (int(pair[0]), int(pair[1])) if len(pair) == 2 else None


def attention_warning(model: str, arguments: Mapping[str, object] | None, blocks: int) -> str | None:
    """Say that attention was asked for and none is there: timm ignores ``se_layer`` where a model has no place for it.

    Args:
        model: As the user named it.
        arguments: The factory's arguments.
        blocks: How many attention blocks were found in the captured graph.
    """
    asked = [key for key in ("se_layer", "attn_layer", "attn", "attention") if (arguments or {}).get(key)]
    if blocks or not asked:
        return None
    why = (
        "; timm builds it only where a model's definition has squeeze-excite (efficientnet_b0 has, mobilenetv2 has not)"
        if model.startswith("timm:")
        else ""
    )
    return f"{asked[0]} was given, but no attention block was found in the captured model{why}"
