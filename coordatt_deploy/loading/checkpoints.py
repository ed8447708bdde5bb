"""Read a checkpoint without running anything that is in it, and say what it is when it is none.

Safetensors files and what ``torch.load`` reads with ``weights_only`` are taken, by content and not by suffix. Beside
tensors and plain containers only objects that hold data and do nothing are let in (a Namespace of training options,
paths, numbers and arrays of NumPy); everything else that a pickle could ask for is refused by name.
"""

import argparse
import pathlib
import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from coordatt_deploy.errors import UsageError
from coordatt_deploy.logs import write_traceback
from coordatt_deploy.plurals import counted, plural, verb
from coordatt_deploy.user_code import first_line

# Moving averages first: where a training script keeps one, it is what it evaluates.
WRAPPERS: Final = (
    "state_dict_ema", "model_ema", "ema", "ema_state_dict", "params_ema", "state_dict", "model_state_dict", "model",
    "model_state", "net", "network", "weights", "params", "module",
)  # fmt: skip

# Hold data, run nothing when they are built. Pickles name NumPy's module as it was called when they were written.
_NUMPY: Final = import_module("numpy._core.multiarray")
_HARMLESS: Final[list[type | tuple[type, str]]] = [
    argparse.Namespace,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
    (pathlib.PurePosixPath, "pathlib.PosixPath"),
    (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
    np.ndarray,
    np.dtype,
    *{type(np.dtype(kind)) for kind in "?bhilqBHILQefdFD"},
    *((_NUMPY.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_NUMPY._reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]

DEEPEST: Final = 16  # entries in one another before the state dict; training scripts have three

_GLOBAL: Final = re.compile(r"GLOBAL ([\w.<>]+)")  # how torch names what it refused to look up

_MAGIC: Final = (
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
    (b"BZh", "is compressed with bzip2; unpack it first"),
    (b"\xfd7zXZ", "is compressed with xz; unpack it first"),
    (b"Rar!", "is a RAR archive; unpack it first"),
    (b"7z\xbc\xaf", "is a 7-Zip archive; unpack it first"),
    (b"\x89HDF", "is an HDF5 file (Keras?); export the weights from torch"),
)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of a checkpoint.

    Attributes:
        path: The file.
        state: By name, on the CPU, as they lie in the file.
        notes: What was unwrapped or left out, for the user.
    """

    path: Path
    state: Mapping[str, torch.Tensor]
    notes: tuple[str, ...] = ()


def read_checkpoint(path: Path, *, key: str | None = None) -> Checkpoint:
    """Read a state dict; no code in the file is run.

    Args:
        path: A ``.safetensors`` file, or a ``.pth``, ``.pt``, ``.ckpt`` or ``.tar`` that ``torch.save`` wrote.
        key: Under which entry the state dict lies (``model_ema``, or ``a.b`` for one inside another, or a number in a
            list), or what its names begin with (``ema_model`` of ``ema_model.conv.weight``); None to find it.

    Raises:
        UsageError: The file is missing, truncated, something else, holds code, or holds no state dict.
    """
    check_file(path, "checkpoint", "a .safetensors or .pth file")
    loaded = _load(path)
    notes: list[str] = []
    if key is not None:
        loaded = _entry(path, loaded, key, notes)
    loaded = _out_of_list(path, loaded, notes)
    wrappers: list[str] = []
    others: list[str] = []
    while isinstance(loaded, Mapping) and len(wrappers) < DEEPEST and (wrapper := _wrapper(loaded)) is not None:
        others += [name for name in WRAPPERS if name != wrapper and _holds_tensors(loaded.get(name))]
        wrappers.append(wrapper)
        loaded = loaded[wrapper]
    if wrappers:
        also = f"; it also holds {_some(others)}" if others else ""
        notes.append(f"read {'.'.join(wrappers)!r} of the checkpoint{also}")
    if not isinstance(loaded, Mapping) or not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise UsageError(f"checkpoint {path.name} holds no state dict (names to tensors), but {_describe(loaded)}")
    state = {str(name): value for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    left_out = [str(name) for name, value in loaded.items() if not isinstance(value, torch.Tensor)]
    if left_out:
        notes.append(f"left out what is no tensor: {_some(left_out)}")
    for name, tensor in state.items():
        if tensor.is_sparse or tensor.is_quantized or tensor.is_complex() or tensor.device.type == "meta":
            raise UsageError(f"checkpoint {path.name}: {name} is no plain dense tensor; save float32 weights")
    return Checkpoint(path, state, tuple(notes))


def _entry(path: Path, loaded: object, key: str, notes: list[str]) -> object:
    """What lies under *key*, or whose names begin with it where a copy lies in one state dict with others."""
    left = key.split(".")
    while left:
        if isinstance(loaded, Mapping) and left[0] in loaded:
            loaded = loaded[left.pop(0)]
        elif isinstance(loaded, list | tuple) and left[0].isdecimal() and int(left[0]) < len(loaded):
            loaded = loaded[int(left.pop(0))]
        else:
            break
    if not left:
        return loaded
    prefix = ".".join(left) + "."
    state = loaded[wrapper] if isinstance(loaded, Mapping) and (wrapper := _wrapper(loaded)) is not None else loaded
    items = state.items() if isinstance(state, Mapping) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, torch.Tensor)}
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if not inside:
        raise UsageError(f"checkpoint {path.name} has no entry {key!r}, but {_describe(loaded)}")
    others = len(tensors) - len(inside)
    notes.append(
        f"read the {counted(len(inside), 'tensor')} whose {plural(len(inside), 'name')}"
        f" {verb(len(inside), 'begins')} with {prefix!r}; {counted(others, 'other')} {verb(others, 'is')} left out"
    )
    return inside


def _out_of_list(path: Path, loaded: object, notes: list[str]) -> object:
    """The only state dict in a list or tuple; as it is where there is no list."""
    while isinstance(loaded, list | tuple):
        places = [index for index, item in enumerate(loaded) if _holds_tensors(item) or isinstance(item, list | tuple)]
        if not places:
            break
        if len(places) > 1:
            raise UsageError(
                f"checkpoint {path.name} holds a {type(loaded).__name__} of {len(loaded)} entries; {len(places)} of"
                f" them could hold weights: name one, as in --checkpoint-key {places[0]}"
            )
        notes.append(f"read entry {places[0]} of a {type(loaded).__name__} of {len(loaded)}")
        loaded = loaded[places[0]]
    return loaded


def check_file(path: Path, what: str, expected: str) -> None:
    """Recognise by their first bytes the files that are often taken for weights and programs.

    Args:
        path: The file.
        what: What the user says it is, e.g. ``checkpoint``.
        expected: What would be right, e.g. ``a .pth file``.

    Raises:
        UsageError: It is missing, a folder, empty, a pointer, a web page, compressed, or of another format.
    """
    if path.is_dir():
        raise UsageError(f"{what} {path} is a folder; name {expected}")
    if not path.is_file():
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        close = get_close_matches(path.name, siblings, n=1, cutoff=0.6)
        hint = f"did you mean {path.parent / close[0]}?" if close else f"name {expected}"
        raise UsageError(f"{what} {path} does not exist; {hint}")
    with path.open("rb") as stream:
        start = stream.read(1024)
    name = f"{what} {path.name}"
    if not start:
        raise UsageError(f"{name} is empty; download or copy it again")
    if start.startswith(b"version https://git-lfs.github.com/spec"):
        wanted = re.search(rb"^size (\d+)$", start, flags=re.MULTILINE)
        size = f" ({int(wanted[1]):,} bytes)" if wanted else ""
        raise UsageError(f"{name} is a git-LFS pointer, not the weights{size}; run: git lfs pull")
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        title = re.search(rb"<title>\s*(.*?)\s*</title>", start, flags=re.DOTALL | re.IGNORECASE)
        shown = f" ({title[1][:80].decode(errors='replace')!r})" if title else ""
        raise UsageError(f"{name} is a web page{shown}, not weights: the download went wrong; download it again")
    if text.startswith(b"{") and not start.startswith(b"{\x00"):
        raise UsageError(f"{name} is a JSON text, not weights; was a download refused?")
    for magic, what in _MAGIC:
        if start.startswith(magic):
            raise UsageError(f"{name} {what}")
    if start[4:8] == b"TFL3":
        raise UsageError(f"{name} is a TFLite model; expected {expected}")


def _load(path: Path) -> object:
    if zipfile.is_zipfile(path):
        _check_zip(path)
    elif _starts_with(path, b"PK\x03\x04"):  # a zip's directory stands at its end
        raise UsageError(_truncated(path))
    elif _looks_like_safetensors(path):
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError) as error:
            raise UsageError(_damaged(path, error)) from error
    try:
        with torch.serialization.safe_globals([*_HARMLESS]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # torch speaks of pickle protocols; our error says what to do
            loaded: object = torch.load(path, map_location="cpu", weights_only=True)
            return loaded
    except Exception as error:  # torch.load raises whatever the bytes lead it to
        raise UsageError(_why_unreadable(path, error)) from error


def check_members(path: Path, what: str) -> None:
    """Read every member of an archive and hold it to its checksum; torch itself does not look at them.

    Args:
        path: A zip archive.
        what: What the user says it is, e.g. ``checkpoint``.

    Raises:
        UsageError: A member cannot be read, or is not what was written.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError) as error:
        raise UsageError(f"{what} {path.name} is damaged ({first_line(error)}); copy or download it again") from None
    if damaged is not None:
        raise UsageError(
            f"{what} {path.name} is damaged: {damaged} is not what its checksum (CRC-32) says; copy or download it"
            " again, or, if it was saved with torch.serialization.set_crc32_options(False), save it with checksums"
        )


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UsageError(_damaged(path, error)) from error
    inner = [name.partition("/")[2] for name in names]
    if "models/model.json" in inner or "serialized_exported_program.json" in names:
        raise UsageError(f"{path.name} is a saved program, not a checkpoint; give it as --model {path}")
    if any(name.startswith("code/") for name in inner):
        raise UsageError(
            f"checkpoint {path.name} is a TorchScript program, which holds code; save its weights alone:"
            " torch.save(torch.jit.load(path).state_dict(), 'weights.pth')"
        )
    if not any(name.endswith("data.pkl") for name in names):
        raise UsageError(f"checkpoint {path.name} is an archive of {_some(names)}; unpack it and name the .pth inside")
    check_members(path, "checkpoint")


def _starts_with(path: Path, magic: bytes) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(magic)) == magic


def _looks_like_safetensors(path: Path) -> bool:
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as stream:
        start = stream.read(9)
    return len(start) == 9 and start[8:] == b"{" and 2 <= int.from_bytes(start[:8], "little") <= 100_000_000


def _why_unreadable(path: Path, error: Exception) -> str:
    text = str(error)
    asked = _GLOBAL.search(text)
    if asked and not _ends_within_a_pickle(path):
        return (
            f"checkpoint {path.name} holds pickled code or objects ({asked[1]}), which are never run here;"
            " save its state dict alone: torch.save(model.state_dict(), path)"
        )
    return _damaged(path, error)


def _ends_within_a_pickle(path: Path) -> bool:
    """Whether a file of the old format stops before its pickles do; their operators are listed, none is carried out."""
    if zipfile.is_zipfile(path):
        return False
    try:
        with path.open("rb") as stream:
            for _ in range(4):  # the format's number, its version, the machine's traits, the object
                for _ in pickletools.genops(stream):
                    pass
    except ValueError:
        return True
    return False


def _truncated(path: Path) -> str:
    return f"checkpoint {path.name} is truncated ({path.stat().st_size:,} bytes); copy or download it again"


def _damaged(path: Path, error: Exception) -> str:
    text = str(error)
    cut = isinstance(error, EOFError) or re.search(
        r"EOF|central directory|truncated|incomplete metadata|not fully covered|header too small|invalid header", text
    )
    if cut or _GLOBAL.search(text):
        return _truncated(path)
    size = f"{path.stat().st_size:,} bytes"
    if isinstance(error, pickle.UnpicklingError | RuntimeError | SafetensorError | IndexError | KeyError):
        log = write_traceback(error, "checkpoint")
        return (
            f"checkpoint {path.name} ({size}) is no file of torch or safetensors, or is damaged; details are in {log}"
        )
    return f"checkpoint {path.name} ({size}) cannot be read: {first_line(error)}"


def _wrapper(loaded: Mapping[object, object]) -> str | None:
    """The entry that the state dict lies under; None where *loaded* is the state dict itself."""
    return next((name for name in WRAPPERS if _holds_tensors(loaded.get(name))), None)


def _holds_tensors(value: object) -> bool:
    """Whether tensors lie in a mapping or below it; a pickle may put a mapping into itself, or one into many."""
    waiting, seen = [value], set[int]()
    while waiting:
        item = waiting.pop()
        if isinstance(item, torch.Tensor):
            return item is not value
        if isinstance(item, Mapping) and id(item) not in seen:
            seen.add(id(item))
            waiting += item.values()
    return False


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a mapping with {_some([str(name) for name in value]) or 'nothing in it'}"
    return f"a {type(value).__name__}"


def _some(names: list[str], count: int = 6) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
