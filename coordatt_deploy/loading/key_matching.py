"""Fit a checkpoint's names to a module's, saying what was renamed, or list everything that does not fit.

Only renamings that change no meaning are made: a prefix (``module.``, ``_orig_mod.``), a head that is a layer here and
an entry of a Sequential there (``classifier.`` and ``classifier.1.``), and the two published namings of coordinate
attention (``conv_h`` and ``conv_w`` gate rows and columns as ``conv2`` and ``conv3`` do).
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Final

import torch
from torch import nn

from coordatt_deploy.errors import UsageError
from coordatt_deploy.loading.checkpoints import Checkpoint
from coordatt_deploy.logs import log_folder
from coordatt_deploy.plurals import counted, verb

Tensors = Mapping[str, torch.Tensor]

COUNTER: Final = "num_batches_tracked"
# Left in state dicts by tools, never part of a network: a profiler's counts, and the counter of AveragedModel.
LEFTOVERS: Final = ("total_ops", "total_params", "n_averaged")
GATES: Final = {"conv_h": "conv2", "conv_w": "conv3"}
AVERAGE: Final = re.compile(r"(^|[._])(ema|averaged?|swa)([._]|$)", re.IGNORECASE)  # as training tools name a copy
SHOWN: Final = 5


@dataclass(frozen=True, slots=True)
class KeyMismatch:
    """What does not fit; empty where everything does.

    Attributes:
        missing: The module has them, the checkpoint does not.
        unexpected: The checkpoint has them, the module does not.
        misshapen: Name, shape in the checkpoint, shape in the module.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.misshapen)

    def lists(self, shown: int | None = None) -> list[tuple[int, str, list[str]]]:
        """How many, of what kind, and the first of them with the nearest name on the other side beside each."""
        shapes = [f"{name} {have}, the model has {want}" for name, have, want in self.misshapen[:shown]]
        lists = [
            (len(self.missing), "missing", _beside(self.missing[:shown], self.unexpected)),
            (len(self.unexpected), "unexpected", _beside(self.unexpected[:shown], self.missing)),
            (len(self.misshapen), "of another shape", shapes),
        ]
        return [entry for entry in lists if entry[0]]


def load_into(module: nn.Module, checkpoint: Checkpoint, *, allow_unexpected: bool = False) -> tuple[str, ...]:
    """Load *checkpoint* into *module*.

    Args:
        module: Gets every tensor that it has out of the checkpoint.
        checkpoint: Its names may differ by what ``rename`` knows.
        allow_unexpected: Leave out what the module does not have, such as auxiliary heads, and say so.

    Returns:
        What was unwrapped, renamed, left out, filled in or converted, for the user.

    Raises:
        UsageError: Names are missing, unexpected or of another shape, a weight is not finite, or the network's weights
            are there several times.
    """
    own = module.state_dict()
    copies = [prefix for prefix in _copies(checkpoint.state, own) if prefix]
    if len(copies) > 1:
        raise UsageError(_several(checkpoint, copies))
    state, notes = rename(checkpoint.state, own)
    filled = {name: own[name] for name in own if name.endswith(COUNTER) and name not in state}
    state = {name: tensor for name, tensor in state.items() if name in own or not name.endswith(COUNTER)}
    misfit = compare({**state, **filled}, own)
    if allow_unexpected and misfit.unexpected:
        notes.append(
            f"left out {counted(len(misfit.unexpected), 'tensor')} that the network does not have:"
            f" {_groups(misfit.unexpected)}"
        )
        state = {name: tensor for name, tensor in state.items() if name in own}
        misfit = replace(misfit, unexpected=())
    if misfit:
        raise UsageError(_mismatch(checkpoint, misfit))
    _check_finite(state, checkpoint.path.name)
    if filled:
        notes.append(f"{COUNTER} is missing {counted(len(filled), 'time')}, which inference does not use")
    others = {str(tensor.dtype).removeprefix("torch.") for name, tensor in state.items()
              if tensor.is_floating_point() and tensor.dtype != own[name].dtype}  # fmt: skip
    if others:
        notes.append(f"weights in {' and '.join(sorted(others))} were converted to float32")
    module.load_state_dict({**filled, **state}, strict=True)
    return (*checkpoint.notes, *notes)


def compare(state: Tensors, own: Tensors) -> KeyMismatch:
    """List the names and shapes in which *state* differs from a module's *own*."""
    return KeyMismatch(
        missing=tuple(name for name in own if name not in state),
        unexpected=tuple(name for name in state if name not in own),
        misshapen=tuple(
            (name, tuple(state[name].shape), tuple(tensor.shape))
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ),
    )


def rename(state: Tensors, own: Tensors) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return *state* under the names of *own* as far as renaming leads, and what was done."""
    notes: list[str] = []
    leftovers = [name for name in state if name not in own and name.rpartition(".")[2] in LEFTOVERS]
    if leftovers:
        notes.append(f"left out {counted(len(leftovers), 'entry')} of training tools ({leftovers[0]})")
    renamed = {name: tensor for name, tensor in state.items() if name not in leftovers}
    for step in (_uncompiled, _with_prefix, _gates, _heads):
        names, note = step(renamed, own)
        targets = [names.get(name, name) for name in renamed]
        if note is not None and len(set(targets)) == len(targets):  # no two names fall together
            renamed = dict(zip(targets, renamed.values(), strict=True))
            notes.append(note)
    return renamed, notes


def head_classes(state: Tensors) -> int | None:
    """Return the number of logits that a classifier's checkpoint holds; None where it has no ``classifier``."""
    for name, tensor in state.items():
        if tensor.ndim == 2 and f".{name}".endswith((".classifier.weight", ".classifier.1.weight")):
            return int(tensor.shape[0])
    return None


def _uncompiled(state: Tensors, own: Tensors) -> tuple[dict[str, str], str | None]:
    """Take away what torch.compile puts into names; it may stand anywhere in them."""
    names = {name: ".".join(part for part in name.split(".") if part != "_orig_mod") for name in state}
    changed = sum(old != new for old, new in names.items())
    if not changed or any("_orig_mod" in name for name in own):
        return {}, None
    return names, f"removed '_orig_mod.' (of torch.compile) from {changed} names"


def _with_prefix(state: Tensors, own: Tensors) -> tuple[dict[str, str], str | None]:
    """Take away a prefix of the checkpoint's, or put the module's own before, whatever makes most names meet."""
    best, chosen = sum(name in own for name in state), ("", "")
    for removed in dict.fromkeys(("", *_prefixes(state), *_copies(state, own))):
        for added in ("", *_prefixes(own)):
            if removed == added:
                continue
            hits = sum(added + name.removeprefix(removed) in own for name in state if name.startswith(removed))
            if hits > best:
                best, chosen = hits, (removed, added)
    removed, added = chosen
    if not removed and not added:
        return {}, None
    names = {name: added + name.removeprefix(removed) for name in state if name.startswith(removed)}
    if not removed:
        return names, f"put the prefix {added!r} before {counted(len(names), 'name')}"
    instead = f" and put {added!r} in its place" if added else ""
    return names, f"removed the prefix {removed!r} from {counted(len(names), 'name')}{instead}"


def _prefixes(names: Iterable[str]) -> list[str]:
    """The prefixes that at least half of the names have, ending with a point, the shortest first."""
    counts: Counter[str] = Counter()
    every = list(names)
    for name in every:
        parts = name.split(".")[:-1]
        counts.update(".".join(parts[:depth]) + "." for depth in range(1, len(parts) + 1))
    return sorted((prefix for prefix, count in counts.items() if 2 * count >= len(every)), key=len)


def _gates(state: Tensors, own: Tensors) -> tuple[dict[str, str], str | None]:
    """Exchange conv_h, conv_w and conv2, conv3 in blocks of coordinate attention where the module says otherwise."""
    names: dict[str, str] = {}
    done: Counter[str] = Counter()
    blocks = [name.removesuffix("bn1.weight") for name in own if f".{name}".endswith(".bn1.weight")]
    for block in blocks:
        for pairs in (GATES, {ours: theirs for theirs, ours in GATES.items()}):
            if all(
                f"{block}{old}.weight" in state and f"{block}{old}.weight" not in own
                and f"{block}{new}.weight" in own and f"{block}{new}.weight" not in state
                for old, new in pairs.items()
            ):  # fmt: skip
                done[f"read {' and '.join(pairs)} as {' and '.join(pairs.values())}"] += 1
                for old, new in pairs.items():
                    names |= {name: f"{block}{new}.{name.removeprefix(f'{block}{old}.')}"
                              for name in state if name.startswith(f"{block}{old}.")}  # fmt: skip
    note = "; ".join(f"{what} in {counted(count, 'attention block')}" for what, count in done.items())
    return names, note or None


def _heads(state: Tensors, own: Tensors) -> tuple[dict[str, str], str | None]:
    """Exchange ``classifier.weight`` and ``classifier.1.weight``: a linear layer, alone or as entry of a Sequential."""
    names: dict[str, str] = {}
    for theirs, ours in ((state, own), (own, state)):
        inside: dict[tuple[str, str] | None, list[str]] = {}
        for name in ours:
            if name not in theirs:
                inside.setdefault(_entry(name), []).append(name)
        for name in theirs:
            parent, _, leaf = name.rpartition(".")
            weight = theirs.get(f"{parent}.weight")
            entries = inside.get((parent, leaf), ())
            if name not in ours and len(entries) == 1 and weight is not None and weight.ndim == 2:
                old, new = (name, entries[0]) if theirs is state else (entries[0], name)
                names[old] = new
    return names, f"read {', '.join(f'{old} as {new}' for old, new in names.items())}" if names else None


def _entry(name: str) -> tuple[str, str] | None:
    """``("classifier", "weight")`` for ``classifier.1.weight``; None for what is no entry of a Sequential."""
    parts = name.split(".")
    return (".".join(parts[:-2]), parts[-1]) if len(parts) > 2 and parts[-2].isdigit() else None


def _check_finite(state: Tensors, file: str) -> None:
    bad = {name: int((~torch.isfinite(tensor)).sum()) for name, tensor in state.items() if tensor.is_floating_point()}
    damaged = [name for name, count in bad.items() if count]
    if damaged:
        others = (
            f", and {counted(len(damaged) - 1, 'other tensor')} {verb(len(damaged) - 1, 'holds')} some too"
            if len(damaged) > 1
            else ""
        )
        raise UsageError(
            f"checkpoint {file}: {damaged[0]} holds {bad[damaged[0]]} values that are NaN or infinite{others};"
            " the training diverged or the file is damaged: take an earlier checkpoint"
        )


def _mismatch(checkpoint: Checkpoint, misfit: KeyMismatch) -> str:
    parts = []
    for count, kind, lines in misfit.lists(SHOWN):
        more = f" and {count - len(lines)} more" if count > len(lines) else ""
        parts.append(f"{count} {kind}: {', '.join(lines)}{more}")
    log = log_folder() / f"checkpoint-{os.getpid()}.log"
    every = [f"{kind}: {line}" for _, kind, lines in misfit.lists() for line in lines]
    log.write_text("\n".join(every) + "\n", encoding="utf-8")
    remedy = "Is it of another architecture, width or number of classes?"
    if misfit.unexpected and not misfit.missing and not misfit.misshapen:
        remedy = "The network has all of its own weights: leave the others out with --allow-unexpected."
    what = f"checkpoint {checkpoint.path.name} does not fit the model: {'; '.join(parts)}."
    return f"{what} {remedy} The whole list is in {log}"


def _copies(state: Tensors, own: Tensors) -> list[str]:
    """The prefixes under which all of the module's own names are found, counters aside."""
    names = [name for name in own if not name.endswith(COUNTER)]
    if not names:
        return []
    found = [name.removesuffix(names[0]) for name in state if f".{name}".endswith(f".{names[0]}")]
    return [prefix for prefix in found if all(prefix + name in state for name in names)]


def _several(checkpoint: Checkpoint, copies: list[str]) -> str:
    """Say which copies of the weights there are; a moving average is what training scripts evaluate."""
    keys = sorted((prefix.rstrip(".") for prefix in copies), key=lambda key: AVERAGE.search(key) is None)
    listed = " or ".join(
        f"--checkpoint-key {key}"
        + (" (a moving average, which training scripts evaluate)" if AVERAGE.search(key) else "")
        for key in keys
    )
    return f"checkpoint {checkpoint.path.name} holds the network's weights {len(copies)} times; take {listed}"


def _groups(names: Iterable[str]) -> str:
    """Name tensors by the module that they belong to, with how many each has."""
    counts = Counter(name.partition(".")[0] if "." in name else name for name in names)
    return ", ".join(name if count == 1 else f"{name} ({count})" for name, count in counts.items())


def _beside(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """Each name with the nearest of *others* in brackets, if one is near."""
    by_leaf: dict[str, list[str]] = {}
    for other in others:
        by_leaf.setdefault(other.rpartition(".")[2], []).append(other)
    lines = []
    for name in names:
        close = get_close_matches(name, by_leaf.get(name.rpartition(".")[2], ()), n=1, cutoff=0.6)
        lines.append(f"{name} (nearest: {close[0]})" if close else name)
    return lines
