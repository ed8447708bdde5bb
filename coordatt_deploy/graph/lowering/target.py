"""Lowering targets: how a graph is written for one runtime on one kind of CPU. Each format's folder states its own."""

import enum
from dataclasses import dataclass
from typing import Protocol, cast

from coordatt_deploy.format_modules import Role, load
from coordatt_deploy.formats import Format, TargetCpu
from coordatt_deploy.graph.lowering.decompositions.table import Decomposition
from coordatt_deploy.graph.lowering.forms import Form
from coordatt_deploy.graph.lowering.pointwise import HardSwishForm
from coordatt_deploy.graph.lowering.term_writer import AS_THEY_STAND, TermStyle


class GlobalPool(enum.StrEnum):
    """How a global pool whose result is (N, C) is written."""

    AS_IT_IS = "as it is"
    FLAT = "flat"
    DEEP = "deep"


@dataclass(frozen=True, slots=True)
class LoweringTarget:
    """A runtime on a kind of CPU, as far as the fastest form depends on them.

    Attributes:
        name: As reports say it, e.g. ``onnx-arm64``.
        forms: Of coordinate attention and squeeze-and-excitation, in order of preference; the last serves every block
            and every size.
        terms: How every other attention block is written.
        hard_swish: How a hard-swish is written.
        global_pool: How a global pool is written.
        decompositions: Operators that the converter does not write, or writes wrongly, and that are put in the terms of
            others for it.
    """

    name: str
    forms: tuple[Form, ...] = (Form.MEANS,)
    terms: TermStyle = AS_THEY_STAND
    hard_swish: HardSwishForm = HardSwishForm.OPERATOR
    global_pool: GlobalPool = GlobalPool.AS_IT_IS
    decompositions: tuple[Decomposition, ...] = ()

    def __str__(self) -> str:
        return self.name


class Lowering(Protocol):
    """What ``exporters/<format>/lowering.py`` offers: which form its converter and runtime are fastest with."""

    def targets(self) -> tuple[LoweringTarget, ...]:
        """Return every target of the format."""

    def target(self, cpu: TargetCpu | None, *, integer: bool) -> LoweringTarget:
        """Return the target of an artifact.

        Args:
            cpu: The CPU family that it is for; None where none is given or forms do not differ.
            integer: Whether activations are integers as well.
        """


def lowering(file_format: Format) -> Lowering:
    """Return the module that knows the targets of *file_format*.

    Raises:
        MissingDependencyError: A package it needs is not installed.
    """
    return cast("Lowering", load(file_format, Role.LOWERING))


def target_of(file_format: Format, cpu: TargetCpu | None = None, *, integer: bool = False) -> LoweringTarget:
    """Return the target of an artifact of *file_format*; see ``Lowering.target``."""
    return lowering(file_format).target(cpu, integer=integer)


def all_targets() -> tuple[LoweringTarget, ...]:
    """Return the targets of all formats."""
    return tuple(target for file_format in Format for target in lowering(file_format).targets())
