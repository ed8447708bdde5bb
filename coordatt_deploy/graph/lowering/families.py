"""Which terms are which attention block; the letters are those of ``blocks.Term``.

eca              x * gate(across(mean x))
cbam             x * gate(mlp(mean x) + mlp(max x)), then x * gate(places([max_c x; mean_c x]))
triplet          the mean of x * gate(places(...)) over two or three pairs of the axes C, H and W
strip_pooling    x * gate(mix(act(along(rows) + along(columns))))
timm_strip       x * gate(along(rows) + along(columns)), convolved or not
timm_scoord      x * gate(mix(act(mix(rows))) + mix(act(mix(columns))))
timm_ela         x * gate(act(norm(along(rows)))) * gate(act(norm(along(columns))))
global_context   x * gate(mlp(context)) + mlp(context), either or both
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import fx

from coordatt_deploy.graph.call_arguments import argument
from coordatt_deploy.graph.graph import weight
from coordatt_deploy.graph.lowering.blocks import Kind, Role, Term

ROWS_AND_COLUMNS: Final = ["NCH", "NCW"]


@dataclass(frozen=True, slots=True)
class Match:
    """A block that a term is: its kind, and the channels between its two mixing layers where it has two."""

    kind: Kind
    squeezed: int | None = None


class Families:
    """Tells blocks by their terms, in one graph."""

    def __init__(self, module: fx.GraphModule, nodes: Mapping[str, fx.Node]) -> None:
        """Prepare for the terms of one graph.

        Args:
            module: The graph, for its weights.
            nodes: By name.
        """
        self.module, self.nodes = module, nodes

    def match(self, term: Term) -> Match | None:
        """Return which block *term* is, as the value that a block gives; None if it is none."""
        if triplet_branches(term) is not None:
            return Match(Kind.TRIPLET)
        gates = gates_of(term)
        if gates is None:
            return self._global_context(term)
        if len(gates) == 2:
            alike = _pooled(gates) == ROWS_AND_COLUMNS and all(self._is_local(gate.terms[0]) for gate in gates)
            return Match(Kind.LOCAL) if alike else None
        (gate,) = gates
        return next((found for rule in self._rules() if (found := rule(gate.terms[0])) is not None), None) or (
            self._global_context(term)
        )

    def _rules(self) -> tuple[Callable[[Term], Match | None], ...]:
        return (self._eca, self._channel_gate, self._spatial_gate, self._strips)

    def _eca(self, term: Term) -> Match | None:
        fits = term.role is Role.ACROSS and _is_pool(term.terms[0], Role.MEAN, "NC")
        return Match(Kind.ECA) if fits else None

    def _channel_gate(self, term: Term) -> Match | None:
        """The same two layers of the mean and of the greatest value."""
        if term.role is not Role.SUM:
            return None
        layers = [self._layers(item, "NC") for item in term.terms]
        pools = {pool_of(item).role for item in term.terms}
        if None in layers or pools != {Role.MEAN, Role.GREATEST} or not self._same_weights(*layers):
            return None
        return Match(Kind.CHANNEL_GATE, self._squeezed(layers[0]))

    def _spatial_gate(self, term: Term) -> Match | None:
        return Match(Kind.SPATIAL_GATE) if places_of(term) == "HW" else None

    def _strips(self, term: Term) -> Match | None:
        """Gates that both strips share."""
        if term.role is Role.MIX:
            inside = term.terms[0]
            summed = inside.terms[0] if inside.role is Role.ACTIVATION else inside
            fits = summed.role is Role.SUM and _pooled(summed.terms) == ROWS_AND_COLUMNS
            return Match(Kind.STRIP_POOLING) if fits and all(map(_is_along, summed.terms)) else None
        if term.role is not Role.SUM or _pooled(term.terms) != ROWS_AND_COLUMNS:
            return None
        if all(_is_along(item) or item.role is Role.MEAN for item in term.terms):
            return Match(Kind.STRIP)
        layers = [self._layers(item, None) for item in term.terms]
        widths = {self._squeezed(item) for item in layers}
        return Match(Kind.SIMPLE_COORD, widths.pop()) if None not in layers and len(widths) == 1 else None

    def _global_context(self, term: Term) -> Match | None:
        """A context that gates the map, is added to it, or both."""
        added = term if term.role is Role.SUM else None
        gated = next((item for item in added.terms if item.role is not Role.MIX), None) if added is not None else term
        layers: list[tuple[Term, ...] | None] = []
        if added is not None:
            layers += [self._layers(item, "NC") for item in added.terms if item.role is Role.MIX]
        if gated is not None and gated.role is Role.PRODUCT:
            gates = gates_of(gated)
            layers += [None if gates is None or len(gates) != 1 else self._layers(gates[0].terms[0], "NC")]
        elif gated is None or gated.role is not Role.FEATURE:
            return None
        if not layers or None in layers or len({self._squeezed(item) for item in layers}) != 1:
            return None
        roles = {item.role for item in term.every()}
        if not roles & {Role.CONTEXT, Role.NORM}:  # plain layers of a mean are squeeze-and-excitation
            return None
        return Match(Kind.GLOBAL_CONTEXT, self._squeezed(layers[0]))

    def _layers(self, term: Term, pooled: str | None) -> tuple[Term, ...] | None:
        """The two mixing layers of ``mix(act(norm(mix(pool))))``, outer first; norm and activation may be missing."""
        if term.role is not Role.MIX:
            return None
        inner = term.terms[0]
        while inner.role in {Role.ACTIVATION, Role.NORM}:
            inner = inner.terms[0]
        if inner.role is not Role.MIX:
            return None
        pool = inner.terms[0]
        fits = pool.role in {Role.MEAN, Role.GREATEST, Role.CONTEXT} and pooled in (None, kept_axes(pool))
        return (term, inner) if fits else None

    def _is_local(self, term: Term) -> bool:
        inner = term.terms[0] if term.role is Role.ACTIVATION else term
        return inner.role is Role.NORM and _is_along(inner.terms[0])

    def _squeezed(self, layers: tuple[Term, ...] | None) -> int | None:
        kernel = None if layers is None else self._weight(layers[1])
        return None if kernel is None else int(kernel.shape[0])

    def _same_weights(self, first: tuple[Term, ...] | None, second: tuple[Term, ...] | None) -> bool:
        if first is None or second is None:
            return False
        pairs = [(self._weight(a), self._weight(b)) for a, b in zip(first, second, strict=True)]
        return all(a is not None and b is not None and (a is b or torch.equal(a, b)) for a, b in pairs)

    def _weight(self, term: Term) -> torch.Tensor | None:
        return weight(self.module, argument(self.nodes[term.node], 1, "weight"))


def gates_of(term: Term) -> tuple[Term, ...] | None:
    """Return the gates of a product with the feature map, rows before columns; None if it is anything else."""
    leaves = _leaves(term)
    features = [leaf for leaf in leaves if leaf.role is Role.FEATURE]
    gates = [leaf for leaf in leaves if leaf.role is Role.GATE]
    if len(features) != 1 or not gates or len(gates) + 1 != len(leaves):
        return None
    return tuple(sorted(gates, key=lambda gate: "".join(letter for letter in gate.axes if letter in "HW")))


def _leaves(term: Term) -> list[Term]:
    if term.role is not Role.PRODUCT:
        return [term]
    return [leaf for item in term.terms for leaf in _leaves(item)]


def triplet_branches(term: Term) -> tuple[Term, ...] | None:
    """Return the gates of triplet attention over (C, H), (C, W) and (H, W); None if *term* is something else."""
    summed = term.terms[0] if term.role is Role.SCALE else term
    parts = _summands(summed)
    gates = [gates_of(part) for part in parts]
    if len(parts) not in {2, 3} or any(gate is None or len(gate) != 1 for gate in gates):
        return None
    alone = [gate[0] for gate in gates if gate is not None]
    pairs = [places_of(gate.terms[0]) for gate in alone]
    fits = len(set(pairs)) == len(pairs) and {"CW", "CH"} <= set(pairs)
    ordered = sorted(zip(pairs, alone, strict=True), key=lambda item: item[0] or "")
    return tuple(gate for _, gate in ordered) if fits else None


def _summands(term: Term) -> list[Term]:
    return [part for item in term.terms for part in _summands(item)] if term.role is Role.SUM else [term]


def places_of(term: Term) -> str | None:
    """Return the two axes that a convolution of the greatest values and the means runs over, in alphabetical order."""
    inner = term.terms[0] if term.role is Role.ACTIVATION else term
    joined = inner.terms[0] if inner.role is Role.PLACES else None
    if joined is None or joined.role is not Role.JOIN:
        return None
    if len(joined.terms) != 2 or {item.role for item in joined.terms} != {Role.MEAN, Role.GREATEST}:
        return None
    return "".join(sorted(letter for letter in joined.terms[0].axes if letter in "CHW"))


def kept_axes(pool: Term) -> str:
    """Return the letters of the axes that a pool keeps, in alphabetical order behind the batch."""
    return "N" + "".join(sorted(letter for letter in pool.axes if letter in "CHW"))


def pool_of(term: Term) -> Term:
    """Return the first pool that a term is made of; the term itself where it is made of none."""
    pools = (item for item in term.every() if item.role in {Role.MEAN, Role.GREATEST, Role.CONTEXT})
    return next(pools, term)


def _pooled(terms: tuple[Term, ...]) -> list[str]:
    return sorted(kept_axes(pool_of(term)) for term in terms)


def _is_pool(term: Term, role: Role, kept: str) -> bool:
    return term.role is role and kept_axes(term) == kept


def _is_along(term: Term) -> bool:
    return term.role is Role.ALONG and term.terms[0].role is Role.MEAN
